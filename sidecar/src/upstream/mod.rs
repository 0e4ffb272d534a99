//! Connections to endpoints.
//!
//! In: an endpoint and a request. Out: its response, on a pooled connection. Everything here belongs to one worker, and a
//! request is sent, and its answer read, by the task that asks: HTTP/1 connections have no task at all, HTTP/2
//! connections one each. A request whose fate is not known is never sent twice from here. An endpoint that turns out not
//! to speak the version of HTTP that is wanted gets the request in the other.

mod ability;
mod connect;
pub(crate) mod dead_peer;
mod dial;
mod h1;
mod h2;
mod open;
mod pool;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::cell::OnceCell;
use std::time::Duration;

use http::Response;
use tulle_mesh::identity::SpiffeId;

use crate::balance::{Cluster, LimitReached, Permit};
use crate::http::body::Body;
use crate::http::upgrade::Tunnel;
use crate::tls::Material;

pub(crate) use connect::{Connection, DEFAULT_CONNECT_TIMEOUT, KEEPALIVE, connect, prepare};
pub(crate) use h1::ResponseBody as Http1Body;
pub(crate) use h2::ResponseBody as Http2Body;
pub(crate) use pool::Pools;

/// Which HTTP to speak to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HttpVersion {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// What an attempt needs besides the request.
pub(crate) struct SendOptions<'a> {
    /// Whose endpoint it is, for timeouts, limits and counters.
    pub(crate) cluster: &'a Cluster,
    /// The certificate and trust bundle for new connections.
    pub(crate) tls: Option<&'a std::sync::Arc<Material>>,
    /// What to speak.
    pub(crate) version: HttpVersion,
    /// Where interim (1xx) responses go.
    pub(crate) interim: &'a crate::http::server::Interim,
    /// Takes whom the endpoint has proved to be, before anything of the request is sent: it is known of attempts without an
    /// answer too. Stays empty in plaintext.
    pub(crate) proven: &'a OnceCell<SpiffeId>,
}

impl SendOptions<'_> {
    fn prove(&self, peer: Option<&SpiffeId>) {
        if let Some(peer) = peer {
            // Of another connection to the same endpoint, which is the same one.
            let _ = self.proven.set(peer.clone());
        }
    }
}

/// An endpoint's answer.
pub(crate) struct Answer {
    /// Head and body.
    pub(crate) response: Response<Body>,
    /// After 101, or 2xx to CONNECT: the connection's bytes.
    pub(crate) tunnel: Option<Tunnel>,
}

/// What a tunnel occupies until it ends.
pub(crate) enum Hold {
    /// A connection of its cluster.
    Connection(#[expect(dead_code, reason = "held for its drop")] Permit),
    /// A connection that was made for requests.
    Opened(#[expect(dead_code, reason = "held for its drop")] open::Opened),
    /// A stream of a connection.
    Stream(#[expect(dead_code, reason = "held for its drop")] h2::Lease),
}

/// Why an attempt has no answer.
#[derive(Debug)]
pub(crate) enum SendError {
    /// The connection could not be made.
    Connect(ConnectError),
    /// The peer provably has not processed the request (refused stream, GOAWAY above it, closed before a byte was
    /// taken).
    NotProcessed(&'static str),
    /// The connection ended before the response's head; the peer may have processed the request.
    Reset(&'static str),
    /// What came was not HTTP.
    Protocol(String),
    /// The endpoint speaks only a version of HTTP in which the request can't be said. Nothing of it was sent.
    Version(&'static str),
    /// The request is none in the version of HTTP that the endpoint speaks, which is the client's fault.
    Request(&'static str),
    /// The request's own body failed: the client went away or broke the protocol.
    RequestBody(crate::http::body::BodyError),
    /// The cluster's limit on connections or waiting requests is reached.
    Overflow(LimitReached),
}

/// Why a connection could not be made. Nothing was sent, so it is always safe to try again.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// The system's error.
    Io(std::io::Error),
    /// It took longer than this.
    Timeout(Duration),
    /// The TLS handshake failed.
    Tls(String),
    /// The peer is someone else.
    Identity {
        /// Who it should be.
        expected: String,
        /// Who it says it is.
        presented: String,
    },
    /// The endpoint speaks mesh TLS and this workload has no certificate yet.
    NoCertificate,
    /// Where the endpoint's HTTP/2 settings should have come, it closed the connection or, `answered`, said something
    /// else.
    NotHttp2 {
        /// It said something else.
        answered: bool,
    },
}

impl ConnectError {
    /// The same for another request that waited for the same connection.
    fn duplicate(&self) -> Self {
        match self {
            Self::Io(error) => Self::Io(std::io::Error::new(error.kind(), error.to_string())),
            Self::Timeout(limit) => Self::Timeout(*limit),
            Self::Tls(reason) => Self::Tls(reason.clone()),
            Self::Identity { expected, presented } => {
                Self::Identity { expected: expected.clone(), presented: presented.clone() }
            }
            Self::NoCertificate => Self::NoCertificate,
            Self::NotHttp2 { answered } => Self::NotHttp2 { answered: *answered },
        }
    }

    /// What is said of an endpoint that does not speak HTTP/2.
    pub(crate) fn not_http2(answered: bool) -> &'static str {
        match answered {
            true => "the endpoint does not speak HTTP/2",
            false => "the endpoint closed the connection instead of beginning HTTP/2",
        }
    }
}

//! Connections to endpoints.
//!
//! In: an endpoint and a request. Out: its response, on a pooled connection. Everything here belongs to one worker.

mod connect;

use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};

use crate::balance::{Cluster, Endpoint};
use crate::http::body::Body;
use crate::http::upgrade::Tunnel;
use crate::snapshot::Snapshot;
use crate::tls::Material;

pub(crate) use connect::{Connection, DEFAULT_CONNECT_TIMEOUT, KEEPALIVE, connect, prepare};

/// One worker's connections to endpoints.
#[derive(Default)]
pub(crate) struct Pools {}

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
}

/// An endpoint's answer.
pub(crate) struct Answer {
    /// Head and body.
    pub(crate) response: Response<Body>,
    /// After 101, or 2xx to CONNECT: the connection's bytes.
    pub(crate) tunnel: Option<Tunnel>,
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
    /// The request's own body failed: the client went away or broke the protocol.
    RequestBody(crate::http::body::BodyError),
    /// The cluster's limit on connections or waiting requests is reached.
    Overflow,
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
}

impl Pools {
    /// Lets go of idle connections to endpoints that `snapshot` does not hold any more; those in use end when their last
    /// request does.
    pub(crate) fn retain(&self, _snapshot: &Snapshot) {}

    /// Sends `request` to `endpoint` and waits for the response's head. Cancel-safe: dropping the future gives the
    /// connection up (HTTP/1) or resets the stream (HTTP/2).
    pub(crate) async fn send(
        self: &Rc<Self>,
        _endpoint: &std::sync::Arc<Endpoint>,
        _request: Request<Body>,
        _options: SendOptions<'_>,
    ) -> Result<Answer, SendError> {
        unimplemented!("the wire founder's")
    }
}

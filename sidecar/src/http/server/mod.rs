//! Serves HTTP/1.1 and HTTP/2 on a connection, and calls a handler for each request.
//!
//! In: a connection's bytes, whose protocol is known. Out: requests to a [`Handler`], in the order in which they came
//! (HTTP/1) or all at once (HTTP/2), and its answers back. A connection is one future: nothing here spawns, and a
//! request that the client gives up is dropped where it stands.
//!
//! What a handler may rely on: the method, target, Host and framing of a request are valid and unambiguous; its
//! authority is in Host or, where there is none, in the URI; Transfer-Encoding is gone. What it need not care about in
//! its answer: Connection, Keep-Alive, Transfer-Encoding and the framing of the body, which are written here.

mod h1;
mod h2;
mod idle;
mod interim;
mod timer;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tulle_mesh::model::{Http2, Http10, HttpConnection};

pub(crate) use self::h1::{RequestBody, serve as serve_http1};
pub(crate) use self::h2::{StreamBody, serve as serve_http2};
pub(crate) use self::interim::Interim;
pub(crate) use self::timer::Timer;

use super::body::{Body, BodyError};
use super::h1::request::HeadLimits;
use super::upgrade::Tunnel;

/// What a server calls for each request.
pub(crate) trait Handler {
    /// What it answers with. It is read to its end ([`http_body::Body::is_end_stream`] or `None`) unless the method or
    /// the status rules a body out. Dropping it before its end tells the handler that the client did not get it all.
    type Body: http_body::Body<Data = Bytes, Error = BodyError> + 'static;

    /// Answers one request. Dropped when the client goes away.
    fn handle(&self, request: Request<Body>, interim: Interim) -> impl Future<Output = Reply<Self::Body>>;
}

/// A handler's answer.
pub(crate) struct Reply<B> {
    /// Head and body.
    pub(crate) response: Response<B>,
    /// With 101, or 2xx to CONNECT: where the connection's bytes go once the head is written. The response's body is
    /// dropped when the tunnel ends.
    pub(crate) tunnel: Option<Tunnel>,
    /// Close the connection after this answer. Over HTTP/2 it carries others, and stays open.
    pub(crate) close: bool,
}

/// The limits and timeouts of a listener's connections.
#[derive(Clone, Debug)]
pub(crate) struct ServerOptions {
    /// Close a connection without requests after this long; `None`: never.
    pub(crate) idle_timeout: Option<Duration>,
    /// Give up a stream on which nothing moves for this long; `None`: never.
    pub(crate) stream_idle_timeout: Option<Duration>,
    /// Give up when a head has not arrived this long after its first byte.
    pub(crate) head_timeout: Duration,
    /// How long a client has to close its end of an HTTP/1 connection that is closed, and to send what is left of a
    /// request that nobody wants to read.
    pub(crate) close_timeout: Duration,
    /// How large a head may be.
    pub(crate) head: HeadLimits,
    /// What is set of HTTP/2.
    pub(crate) http2: Http2,
    /// Whether old clients are served.
    pub(crate) http_10: Http10,
}

impl ServerOptions {
    /// Envoy's default.
    const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
    /// Envoy's default.
    pub(crate) const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
    /// Envoy has none, which leaves it open to slow clients. Long enough for a head in many packets over a bad link.
    const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
    /// Envoy's default.
    const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
    /// Envoy's default.
    const MAX_HEAD_BYTES: u32 = 60 * 1024;
    /// Envoy's default.
    const MAX_HEAD_FIELDS: u32 = 100;
    /// Envoy's default.
    pub(crate) const MAX_CONCURRENT_STREAMS: u32 = 1024;
}

impl Default for ServerOptions {
    /// As a mesh has them.
    fn default() -> Self {
        let size = |limit| usize::try_from(limit).unwrap_or(usize::MAX);
        Self {
            idle_timeout: Some(Self::IDLE_TIMEOUT),
            stream_idle_timeout: Some(HttpConnection::MESH_STREAM_IDLE),
            head_timeout: Self::HEAD_TIMEOUT,
            close_timeout: Self::CLOSE_TIMEOUT,
            head: HeadLimits { bytes: size(Self::MAX_HEAD_BYTES), fields: size(Self::MAX_HEAD_FIELDS) },
            http2: Http2 { streams: Some(HttpConnection::MESH_STREAMS), ..Http2::default() },
            http_10: Http10 { accepted: true, default_host: None },
        }
    }
}

impl From<&HttpConnection> for ServerOptions {
    fn from(model: &HttpConnection) -> Self {
        let limit = |limit: Option<Duration>, default| {
            Some(limit.unwrap_or(default)).filter(|limit| !limit.is_zero())
        };
        let size =
            |limit: Option<u32>, default| usize::try_from(limit.unwrap_or(default)).unwrap_or(usize::MAX);
        Self {
            idle_timeout: limit(model.idle_timeout, Self::IDLE_TIMEOUT),
            stream_idle_timeout: limit(model.stream_idle_timeout, Self::STREAM_IDLE_TIMEOUT),
            head_timeout: model.request_headers_timeout.unwrap_or(Self::HEAD_TIMEOUT),
            close_timeout: model.close_timeout.unwrap_or(Self::CLOSE_TIMEOUT),
            head: HeadLimits {
                bytes: size(model.max_request_headers_bytes, Self::MAX_HEAD_BYTES),
                fields: size(model.max_headers, Self::MAX_HEAD_FIELDS),
            },
            http2: model.http2,
            http_10: model.http_10.clone(),
        }
    }
}

//! Serves HTTP/1.1 and HTTP/2 on a connection, and calls a handler for each request.

use std::future::Future;

use bytes::Bytes;
use http::{Request, Response};

use super::body::{Body, BodyError};
use super::upgrade::Tunnel;

/// What a server calls for each request.
pub(crate) trait Handler {
    /// What it answers with. Dropping it before its end tells the handler that the client did not get it all.
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
    /// Close the connection after this answer.
    pub(crate) close: bool,
}

/// Sends interim (1xx) responses before the final one. Cheap to clone; does nothing where the client can't take them.
#[derive(Clone, Default)]
pub(crate) struct Interim {}

impl Interim {
    /// Queues an interim response; the server writes it before it polls the handler again.
    pub(crate) fn send(&self, _response: Response<()>) {
        unimplemented!("the wire founder's")
    }
}

//! The HTTP server's interface until `crate::http::server` holds it.

use crate::http::proxy::Proxy;
use crate::io::Stream;
use crate::worker::drain::Drain;

#[derive(Default)]
pub(crate) struct ServerOptions {}

impl From<&tulle_mesh::model::HttpConnection> for ServerOptions {
    fn from(_: &tulle_mesh::model::HttpConnection) -> Self {
        Self {}
    }
}

pub(crate) async fn serve_http1(_: Stream, _: &Proxy, _: &ServerOptions, _: &Drain) {
    unimplemented!("the wire founder's")
}

pub(crate) async fn serve_http2(_: Stream, _: &Proxy, _: &ServerOptions, _: &Drain) {
    unimplemented!("the wire founder's")
}

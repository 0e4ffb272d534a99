//! Stands in for the HTTP server until the proxy is a handler.

use crate::http::proxy::Proxy;
use crate::http::server::ServerOptions;
use crate::io::Stream;
use crate::worker::drain::Drain;

pub(crate) async fn serve_http1(_: Stream, _: &Proxy, _: &ServerOptions, _: &Drain) {}

pub(crate) async fn serve_http2(_: Stream, _: &Proxy, _: &ServerOptions, _: &Drain) {}

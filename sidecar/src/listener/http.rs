//! Connections that carry HTTP.

use std::rc::Rc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::connection::{Connection, Opened};

use crate::detect::{Detector, Spoken};
use crate::http::proxy::{Downstream, Proxy, Target};
use crate::http::server::{ServerOptions, serve_http1, serve_http2};
use crate::upstream::HttpVersion;

/// Which HTTP a client speaks, if it does.
pub(super) fn version(spoken: &Spoken) -> Option<HttpVersion> {
    match spoken {
        Spoken::Http10 | Spoken::Http1 => Some(HttpVersion::Http1),
        Spoken::Http2 => Some(HttpVersion::Http2),
        Spoken::Tls(_) | Spoken::Other | Spoken::Unfinished | Spoken::Nothing => None,
    }
}

impl Connection {
    /// Serves plaintext that can only be HTTP, of either version.
    pub(super) async fn http_only(
        &self,
        (mut socket, mut detector): (TcpStream, Detector),
        target: Target,
        options: &ServerOptions,
        silence: Duration,
    ) {
        // A client that says nothing, or is gone, needs no answer.
        let said = self.while_idle(silence, detector.http_version(&mut socket)).await;
        let Some(Ok(Some(version))) = said else { return };
        self.http(Opened::plaintext(detector.into_stream(socket)), version, target, options).await;
    }

    /// Serves HTTP of a known version.
    pub(super) async fn http(
        &self,
        opened: Opened,
        version: HttpVersion,
        target: Target,
        options: &ServerOptions,
    ) {
        let Opened { stream, identity, certificate, tls_facts, server_name, .. } = opened;
        let downstream = Downstream {
            tls: stream.is_tls(),
            direction: self.direction(),
            peer: self.client,
            direct: self.direct,
            local: self.destination,
            original: self.original(),
            identity,
            certificate,
            tls_facts,
            server_name,
            target,
        };
        let proxy = Proxy::new(self.worker.clone(), Rc::new(downstream));
        let drain = &self.worker.drain;
        // Boxed once for a connection, so that connections of bytes don't carry the room that HTTP needs.
        match version {
            HttpVersion::Http1 => Box::pin(serve_http1(stream, &proxy, options, drain)).await,
            HttpVersion::Http2 => Box::pin(serve_http2(stream, &proxy, options, drain)).await,
        }
    }
}

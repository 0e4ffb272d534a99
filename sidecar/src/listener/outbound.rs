//! Connections of the application to other services.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::connection::{Connection, Opened};
use super::refusal::Refusal;
use crate::config::OutboundPolicy;
use crate::detect::{Detector, PATIENCE};
use crate::http::proxy::Target;
use crate::http::server::ServerOptions;
use crate::io::Stream;
use crate::worker::NoListener;

impl Connection {
    /// Serves the forward proxy. What is no HTTP is answered with 400 by the HTTP server.
    pub(super) async fn forward_proxy(&self, socket: TcpStream) {
        self.http_only(socket, Target::Authority, &ServerOptions::default(), SILENCE_LIMIT).await;
    }

    /// Serves a local port that stands for `name`. Its configuration is asked for at once, because a server that speaks
    /// first would wait for a client that does too.
    pub(super) async fn outbound(&self, socket: TcpStream, name: &Arc<str>) {
        match self.worker.outbound(name).await {
            Ok(current) => match current.outbound.get(name) {
                Some(listener) => self.follow(socket, &current, listener, SILENCE_LIMIT).await,
                None => self.without_listener(socket, name).await,
            },
            Err(NoListener::Unknown) if self.worker.outbound_policy == OutboundPolicy::AllowAny => match name
                .parse()
            {
                Ok(destination) => self.session(None).pass_through(Stream::from(socket), &destination).await,
                Err(_) => self.without_listener(socket, name).await,
            },
            Err(NoListener::Unknown | NoListener::Unavailable) => self.without_listener(socket, name).await,
        }
    }

    /// Tells a client that speaks HTTP why there is no answer, and resets any other.
    async fn without_listener(&self, mut socket: TcpStream, name: &Arc<str>) {
        let mut detector = Detector::default();
        let version = tokio::time::timeout(PATIENCE, detector.detect(&mut socket)).await;
        let spoken = version.ok().and_then(Result::ok);
        let stream = detector.into_stream(socket);
        match spoken.as_ref().and_then(super::http::version) {
            Some(version) => {
                self.http(
                    Opened::plaintext(stream),
                    version,
                    Target::Service(name.clone()),
                    &ServerOptions::default(),
                )
                .await;
            }
            None => {
                self.refused(Refusal::NoListener);
                Stream::Tcp(stream).reset();
            }
        }
    }
}

/// How long an application may hold a connection open without a word: Envoy's default for a stream.
const SILENCE_LIMIT: Duration = Duration::from_secs(300);

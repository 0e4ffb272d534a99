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
use crate::tcp::passthrough::Outside;
use crate::worker::NoListener;

impl Connection {
    /// Serves the forward proxy. What is no HTTP is answered with 400 by the HTTP server.
    pub(super) async fn forward_proxy(&self, socket: TcpStream) {
        self.http_only(
            (socket, Detector::default()),
            Target::Authority,
            &ServerOptions::default(),
            SILENCE_LIMIT,
        )
        .await;
    }

    /// Serves a local port that stands for `name`. Its configuration is asked for at once, because a server that speaks
    /// first would wait for a client that does too.
    pub(super) async fn outbound(&self, socket: TcpStream, name: &Arc<str>) {
        match self.worker.outbound(name).await {
            Ok(current) => match current.outbound.get(name) {
                Some(listener) => self.follow(socket, &current, listener, SILENCE_LIMIT).await,
                None => self.without_listener(socket, name).await,
            },
            Err(NoListener::Unknown) if self.worker.outbound_policy == OutboundPolicy::AllowAny => {
                match name.parse() {
                    Ok(destination) => {
                        let outside = Outside::Name(&destination);
                        self.session(None).pass_through(Stream::from(socket), outside).await;
                    }
                    Err(_) => self.without_listener(socket, name).await,
                }
            }
            Err(NoListener::Unknown | NoListener::Unavailable) => self.without_listener(socket, name).await,
        }
    }

    /// Serves a captured connection. Where the mesh does not know its destination, it goes there as it is, if policy lets
    /// it. Where the control plane does not say, it goes nowhere: the destination might be one of the mesh, and what
    /// would have been encrypted for it must not go out in plaintext.
    pub(super) async fn captured(&self, socket: TcpStream) {
        let name: Arc<str> = self.destination.to_string().into();
        match self.worker.outbound(&name).await {
            Ok(current) => match current.outbound.get(&name) {
                Some(listener) => self.follow(socket, &current, listener, SILENCE_LIMIT).await,
                None => self.without_listener(socket, &name).await,
            },
            Err(NoListener::Unknown) if self.worker.outbound_policy == OutboundPolicy::AllowAny => {
                let outside = Outside::Address(self.destination);
                self.session(None).pass_through(Stream::from(socket), outside).await;
            }
            Err(why) => {
                self.refused(match why {
                    NoListener::Unknown => Refusal::UnknownDestination,
                    NoListener::Unavailable => Refusal::Unavailable,
                });
                self.explain(socket, &name).await;
            }
        }
    }

    /// As [`Connection::explain`], and counts a client that is reset.
    async fn without_listener(&self, socket: TcpStream, name: &Arc<str>) {
        if !self.explain(socket, name).await {
            self.refused(Refusal::NoListener);
        }
    }

    /// Tells a client that speaks HTTP why there is no answer, and resets any other. Returns whether it spoke HTTP.
    async fn explain(&self, mut socket: TcpStream, name: &Arc<str>) -> bool {
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
                true
            }
            None => {
                Stream::Tcp(stream).reset();
                false
            }
        }
    }
}

/// How long an application may hold a connection open without a word: Envoy's default for a stream.
const SILENCE_LIMIT: Duration = Duration::from_secs(300);

//! HTTP/1 on one port.
//!
//! In: connections and what answers their requests. Out: the answers. `axum::serve` would speak HTTP/2 as well, which
//! nobody asks of these ports and which is a large part of a program.

use std::io;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A port that is to be served.
pub(super) struct Port {
    listener: TcpListener,
    http: http1::Builder,
    router: Router,
}

impl Port {
    /// Registers `listener`, which does not block, with the runtime.
    ///
    /// # Errors
    /// When the reactor does not take it.
    pub(super) fn new(listener: std::net::TcpListener, router: Router) -> io::Result<Self> {
        let mut http = http1::Builder::new();
        // Who does not finish a request's head is not waited for.
        http.timer(TokioTimer::new());
        Ok(Self { listener: TcpListener::from_std(listener)?, http, router })
    }

    /// Answers requests until `end` changes, and then those that are in flight.
    pub(super) async fn serve(mut self, mut end: watch::Receiver<()>) {
        let open = GracefulShutdown::new();
        loop {
            tokio::select! {
                (socket, _) = Listener::accept(&mut self.listener) => self.connection(socket, &open),
                // Its sender gone means the same.
                _ = end.changed() => break,
            }
        }
        drop(self.listener);
        open.shutdown().await;
    }

    fn connection(&self, socket: TcpStream, open: &GracefulShutdown) {
        let service = TowerToHyperService::new(self.router.clone());
        let served = open.watch(self.http.serve_connection(TokioIo::new(socket), service));
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection to an admin or health port broke");
            }
        });
    }
}

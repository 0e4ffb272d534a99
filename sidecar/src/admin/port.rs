//! HTTP/1 on one port, and beside it the one service of gRPC where that is wanted.
//!
//! In: connections and what answers their requests. Out: the answers. `axum::serve` would speak HTTP/2 as well, which
//! nobody else asks of these ports and which is a large part of a program. No client has more than [`MAX_PER_CLIENT`] connections:
//! others, a kubelet first of all, must get their answers whoever else comes in crowds.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{Admin, csds};

/// The most connections of one address.
const MAX_PER_CLIENT: usize = 100;

/// A port that is to be served.
pub(super) struct Port {
    listener: TcpListener,
    http: http1::Builder,
    router: Router,
    csds: Option<Arc<Admin>>,
    clients: Clients,
}

impl Port {
    /// Registers `listener`, which does not block, with the runtime. `csds`: what answers those that begin HTTP/2.
    ///
    /// # Errors
    /// When the reactor does not take it.
    pub(super) fn new(
        listener: std::net::TcpListener,
        router: Router,
        csds: Option<Arc<Admin>>,
    ) -> io::Result<Self> {
        let mut http = http1::Builder::new();
        // Who does not finish a request's head is not waited for.
        http.timer(TokioTimer::new());
        let listener = TcpListener::from_std(listener)?;
        Ok(Self { listener, http, router, csds, clients: Clients::default() })
    }

    /// Answers requests until `end` changes, and then those that are in flight.
    pub(super) async fn serve(mut self, mut end: watch::Receiver<()>) {
        let open = GracefulShutdown::new();
        loop {
            tokio::select! {
                (socket, client) = Listener::accept(&mut self.listener) => {
                    match self.clients.enter(client.ip()) {
                        Some(entry) => self.connection(socket, entry, &open),
                        None => tracing::debug!(%client, "an admin or health port is closed to who has many connections"),
                    }
                }
                // Its sender gone means the same.
                _ = end.changed() => break,
            }
        }
        drop(self.listener);
        open.shutdown().await;
    }

    fn connection(&self, socket: TcpStream, entry: Entry, open: &GracefulShutdown) {
        let service = TowerToHyperService::new(self.router.clone());
        let (http, csds, open) = (self.http.clone(), self.csds.clone(), open.watcher());
        tokio::spawn(async move {
            if let Some(admin) = csds
                && csds::is_http2(&socket).await
            {
                if let Err(error) = csds::serve(socket, admin).await {
                    tracing::debug!(%error, "a gRPC connection to the admin port broke");
                }
            } else if let Err(error) = open.watch(http.serve_connection(TokioIo::new(socket), service)).await
            {
                tracing::debug!(%error, "a connection to an admin or health port broke");
            }
            drop(entry);
        });
    }
}

/// How many connections each client has.
#[derive(Clone, Default)]
struct Clients(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection; it counts until it is dropped.
struct Entry {
    clients: Clients,
    client: IpAddr,
}

impl Clients {
    /// Counts another one, unless there are too many.
    fn enter(&self, client: IpAddr) -> Option<Entry> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(client).or_default();
        if *count >= MAX_PER_CLIENT {
            return None;
        }
        *count += 1;
        Some(Entry { clients: self.clone(), client })
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut open = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_of_one_client_keeps_no_other_out() {
        let clients = Clients::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut crowd: Vec<_> =
            (0..MAX_PER_CLIENT).map(|_| clients.enter(one).expect("there is room")).collect();
        assert!(clients.enter(one).is_none());
        assert!(clients.enter(other).is_some());
        crowd.pop();
        assert!(clients.enter(one).is_some(), "who leaves makes room");
        crowd.clear();
        assert!(clients.0.lock().expect("nobody panics with it").is_empty());
    }
}

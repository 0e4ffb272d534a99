//! The TLS end of the webhook's port: TCP connections come in, those whose handshake succeeded go out.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// The longest a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The most handshakes at one time.
const MAX_HANDSHAKES: usize = 64;

type Ready = (TlsStream<TcpStream>, SocketAddr);

/// Hands over connections to axum.
pub(super) struct TlsListener {
    ready: mpsc::Receiver<Ready>,
    local: SocketAddr,
}

impl TlsListener {
    /// Accepts from `listener` until `stop`, each connection with the newest certificate.
    pub(super) fn new(
        listener: TcpListener,
        tls: watch::Receiver<Option<Arc<ServerConfig>>>,
        stop: CancellationToken,
    ) -> io::Result<Self> {
        let local = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(MAX_HANDSHAKES);
        tokio::spawn(async move {
            tokio::select! {
                () = accept(listener, tls, sender) => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(Self { ready, local })
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> Ready {
        match self.ready.recv().await {
            Some(ready) => ready,
            // Nothing is accepted any more: the server is about to end.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

async fn accept(
    listener: TcpListener,
    mut tls: watch::Receiver<Option<Arc<ServerConfig>>>,
    ready: mpsc::Sender<Ready>,
) {
    // Whoever connects before waits in the listener's backlog.
    if tls.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let (tcp, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the webhook can't accept a connection");
                // Out of file descriptors, most likely: without a pause this would spin.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(config) = tls.borrow().clone() else { continue };
        let ready = ready.clone();
        tokio::spawn(async move {
            let _permit = permit;
            match timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(tcp)).await {
                Ok(Ok(stream)) => drop(ready.send((stream, address)).await),
                Ok(Err(error)) => {
                    tracing::debug!(peer = %address, %error, "a handshake with the webhook failed")
                }
                Err(_) => tracing::debug!(peer = %address, "a handshake with the webhook took too long"),
            }
        });
    }
}

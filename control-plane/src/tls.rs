//! The TLS end of port 15012: connections come in, [`Connection`]s whose peer is known go out.
//!
//! TLS 1.3 only. A client certificate is optional, because a workload's first certificate is fetched here, but one that
//! is presented must be of the mesh and in force. Sessions are not resumed: a resumed one would skip that check. The
//! server's own certificate is issued by the authority that it serves, renewed at half of its life, and replaced
//! together with the trust bundle, without touching open connections.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use rustls::crypto::aws_lc_rs;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tulle_mesh::identity::SpiffeId;

use crate::ca::issuer::{self, IssueError};
use crate::ca::{Authority, Bundle};
use crate::caller::{Peer, PeerCertificate};

/// The longest a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The most handshakes at one time; whoever comes after waits in the listener's backlog. It bounds what a stampede of
/// reconnecting sidecars costs.
const MAX_HANDSHAKES: usize = 128;

/// The server's side of TLS, kept up to date by [`ServerTls::run`].
pub struct ServerTls {
    authority: Arc<Authority>,
    identity: SpiffeId,
    hosts: Vec<String>,
    config: watch::Sender<Arc<Settings>>,
    bundle: watch::Receiver<Bundle>,
}

/// What one handshake uses.
struct Settings {
    tls: Arc<ServerConfig>,
    bundle: Bundle,
    /// Until when the server's certificate is valid.
    not_after: SystemTime,
}

impl ServerTls {
    /// Issues the server's certificate for `hosts` (DNS names and IP addresses).
    ///
    /// # Errors
    /// When a host can't stand in a certificate.
    pub fn new(
        authority: Arc<Authority>,
        identity: SpiffeId,
        hosts: Vec<String>,
    ) -> Result<Self, IssueError> {
        let bundle = authority.bundle();
        let settings = settings(&authority, &identity, &hosts, bundle.borrow().clone())?;
        Ok(Self { config: watch::Sender::new(Arc::new(settings)), authority, identity, hosts, bundle })
    }

    /// Renews the certificate and follows the trust bundle until it is cancelled.
    pub async fn run(mut self, accept: Accept, stop: CancellationToken) {
        let settings = self.config.subscribe();
        let accepting = tokio::spawn(accept.run(settings, stop.clone()));
        loop {
            let left = self.config.borrow().not_after.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::select! {
                () = stop.cancelled() => break,
                changed = self.bundle.changed() => if changed.is_err() { break },
                () = sleep((left / 2).max(Duration::from_secs(1))) => {}
            }
            let bundle = self.bundle.borrow_and_update().clone();
            match settings_of(&self, bundle) {
                Ok(settings) => {
                    self.config.send_replace(Arc::new(settings));
                }
                Err(error) => tracing::error!(%error, "can't renew the control plane's certificate"),
            }
        }
        if let Err(error) = accepting.await {
            tracing::error!(%error, "the accept loop died");
        }
    }
}

fn settings_of(server: &ServerTls, bundle: Bundle) -> Result<Settings, IssueError> {
    settings(&server.authority, &server.identity, &server.hosts, bundle)
}

fn settings(
    authority: &Authority,
    identity: &SpiffeId,
    hosts: &[String],
    bundle: Bundle,
) -> Result<Settings, IssueError> {
    let failed = |reason: String| IssueError::Signing(reason);
    let (leaf, key) = authority.certify_self(identity, hosts, SystemTime::now())?;
    let mut roots = RootCertStore::empty();
    for root in bundle.roots.iter() {
        roots.add(root.der.clone()).map_err(|e| failed(e.to_string()))?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|e| failed(e.to_string()))?;
    let chain = [leaf.der].into_iter().chain(leaf.intermediates).collect();
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| failed(e.to_string()))?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .map_err(|e| failed(e.to_string()))?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    Ok(Settings { tls: Arc::new(tls), bundle, not_after: leaf.not_after })
}

/// Accepts connections and hands over those whose handshake succeeded.
pub struct Accept {
    listener: TcpListener,
    trust_domain: String,
    ready: mpsc::Sender<io::Result<Connection>>,
}

impl Accept {
    /// Takes connections from `listener`; they come out of the receiver.
    pub fn new(
        listener: TcpListener,
        authority: &Authority,
    ) -> (Self, mpsc::Receiver<io::Result<Connection>>) {
        let (ready, connections) = mpsc::channel(MAX_HANDSHAKES);
        (Self { listener, trust_domain: authority.trust_domain().as_str().into(), ready }, connections)
    }

    async fn run(self, settings: watch::Receiver<Arc<Settings>>, stop: CancellationToken) {
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        loop {
            let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let (tcp, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "can't accept a connection");
                    // Out of file descriptors, most likely: without a pause this would spin.
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let settings = Arc::clone(&settings.borrow());
            let (trust_domain, ready) = (self.trust_domain.clone(), self.ready.clone());
            tokio::spawn(async move {
                let _permit = permit;
                let shaken = timeout(HANDSHAKE_TIMEOUT, handshake(tcp, &settings, &trust_domain)).await;
                match shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                    // When nobody receives any more, the server is about to end.
                    Ok(connection) => drop(ready.send(Ok(connection)).await),
                    Err(error) => tracing::debug!(peer = %address, %error, "TLS handshake failed"),
                }
            });
        }
    }
}

async fn handshake(tcp: TcpStream, settings: &Settings, trust_domain: &str) -> io::Result<Connection> {
    let address = tcp.peer_addr()?;
    tcp.set_nodelay(true)?;
    let tls = TlsAcceptor::from(Arc::clone(&settings.tls)).accept(tcp).await?;
    let refused = |reason: &str| io::Error::new(io::ErrorKind::PermissionDenied, reason.to_owned());
    let certificate = match tls.get_ref().1.peer_certificates().and_then(<[_]>::first) {
        None => None,
        Some(leaf) => {
            let identity = issuer::spiffe_id(leaf)
                .ok_or_else(|| refused("the client certificate has not exactly one SPIFFE ID"))?;
            if identity.trust_domain() != trust_domain {
                return Err(refused("the client certificate is of another trust domain"));
            }
            let (not_before, not_after) =
                issuer::validity(leaf).ok_or_else(|| refused("the client certificate can't be read"))?;
            let root = issuer::root_of(leaf, &settings.bundle);
            Some(Arc::new(PeerCertificate { identity, not_before, not_after, root }))
        }
    };
    Ok(Connection { tls, peer: Peer { address, certificate } })
}

/// A connection after its handshake.
pub struct Connection {
    tls: TlsStream<TcpStream>,
    peer: Peer,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

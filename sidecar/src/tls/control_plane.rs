//! The connection to the control plane.
//!
//! In: its address, what to trust, and how this workload proves itself: by the certificate that it holds, or by its join
//! token, which is read from its file each time. Out: a gRPC channel over one TLS connection that never reconnects by
//! itself, so that whoever uses it decides when and with which proof.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::uri::Authority;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::metadata::{Ascii, MetadataValue};
use tulle_mesh::identity::{SpiffeId, TrustDomain};

use super::certificate::{CertificateFacts, TrustBundle};
use super::error::{HandshakeError, with_causes};
use super::material::{Material, MaterialError, control_plane_config, root_store};
use super::verify::ControlPlaneVerifier;
use crate::config;
use crate::grpc::{Channel, Watch};
use crate::http::h2::ping::Pace;
use crate::upstream::{self, dead_peer};

/// How long reaching the control plane may take, the TLS handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A control plane that is frozen or cut off is noticed after the sum.
const PACE: Pace = Pace { interval: Duration::from_secs(10), timeout: Duration::from_secs(5) };

/// Where the control plane is, and who it has to be.
#[derive(Clone, Debug)]
pub(crate) struct ControlPlane {
    config: config::ControlPlane,
    identity: SpiffeId,
    pace: Pace,
}

/// How this workload proves itself.
#[derive(Clone, Copy)]
pub(crate) enum Proof<'a> {
    /// By its certificate.
    Certificate(&'a Material),
    /// By its join token, where one is configured.
    Token,
}

/// A connection to the control plane.
pub(crate) struct Session {
    /// For calls.
    pub(crate) channel: Channel,
    token: Option<MetadataValue<Ascii>>,
}

impl Session {
    /// A call that carries the proof.
    pub(crate) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }
}

impl ControlPlane {
    /// The control plane of `trust_domain`.
    pub(crate) fn new(config: config::ControlPlane, trust_domain: &TrustDomain) -> Self {
        let identity = SpiffeId::workload(trust_domain, "tulle-system", "tulle-control-plane")
            .expect("both names are valid path segments");
        Self { config, identity, pace: PACE }
    }

    /// Asks more often than by default whether the connection lives.
    #[cfg(test)]
    pub(crate) fn with_keep_alive(self, interval: Duration, timeout: Duration) -> Self {
        Self { pace: Pace { interval, timeout }, ..self }
    }

    /// The address, for messages.
    pub(crate) fn address(&self) -> &config::ControlAddress {
        &self.config.address
    }

    /// Whether there is a token to prove oneself with.
    pub(crate) fn has_token(&self) -> bool {
        self.config.token_file.is_some()
    }

    /// The trust bundle of the configuration's file, as it is now.
    ///
    /// # Errors
    /// When the file is unreadable or holds no certificate.
    pub(crate) fn configured_bundle(&self) -> Result<TrustBundle, ControlPlaneError> {
        let path = &self.config.root_file;
        let file =
            |reason| ControlPlaneError::File { field: "controlPlane.rootFile", path: path.clone(), reason };
        let pem = std::fs::read(path).map_err(|e| file(e.to_string()))?;
        TrustBundle::from_pem(&pem).map_err(file)
    }

    /// Connects. Besides the roots of the configured file, those of `bundle` are trusted.
    ///
    /// # Errors
    /// When a file is missing, the control plane can't be reached, or it is someone else.
    pub(crate) async fn connect(
        &self,
        bundle: &TrustBundle,
        proof: Proof<'_>,
    ) -> Result<Session, ControlPlaneError> {
        let (material, token) = match proof {
            Proof::Certificate(material) => (Some(material), None),
            Proof::Token => (None, self.token()?),
        };
        let mut trusted = self.configured_bundle()?;
        trusted.roots.extend_from_slice(&bundle.roots);
        let roots = root_store(&trusted).map_err(ControlPlaneError::Trust)?;
        let verifier = ControlPlaneVerifier::new(roots, self.identity.clone());
        let tls = control_plane_config(verifier, material).map_err(ControlPlaneError::Trust)?;

        let dial = self.dial(TlsConnector::from(Arc::new(tls)));
        let stream = timeout(CONNECT_TIMEOUT, dial)
            .await
            .map_err(|_| ControlPlaneError::Timeout(self.config.address.clone()))??;
        let address = self.config.address.to_string();
        let authority = Authority::try_from(address).map_err(|e| ControlPlaneError::Http(with_causes(&e)))?;
        let watch = Watch { pace: self.pace, restrained: !self.is_tulle(&stream) };
        let channel = Channel::over(stream, authority, Some(watch))
            .await
            .map_err(|e| ControlPlaneError::Http(with_causes(&e)))?;
        Ok(Session { channel, token })
    }

    async fn dial(&self, tls: TlsConnector) -> Result<TlsStream<TcpStream>, ControlPlaneError> {
        let config::ControlPlane { address, server_name, .. } = &self.config;
        let unreachable = |error| ControlPlaneError::Unreachable { address: address.clone(), error };
        let socket = TcpStream::connect((address.host(), address.port())).await.map_err(unreachable)?;
        upstream::prepare(&socket).and_then(|()| dead_peer::watch(&socket)).map_err(unreachable)?;
        let peer: SocketAddr = socket.peer_addr().map_err(unreachable)?;
        let name = ServerName::try_from(server_name.clone())
            .unwrap_or_else(|_| ServerName::IpAddress(peer.ip().into()));
        let expected = || format!("{} or {server_name}", self.identity);
        tls.connect(name, socket)
            .await
            .map_err(|e| ControlPlaneError::Tls(Box::new(HandshakeError::from_io(peer, expected(), &e))))
    }

    /// Whether the other end has proved to be the control plane of this mesh, not only to have its name.
    fn is_tulle(&self, stream: &TlsStream<TcpStream>) -> bool {
        let (_, session) = stream.get_ref();
        let leaf = session.peer_certificates().and_then(<[_]>::first);
        leaf.and_then(|leaf| CertificateFacts::read(leaf).ok())
            .is_some_and(|facts| facts.spiffe_id().is_ok_and(|id| id == self.identity))
    }

    fn token(&self) -> Result<Option<MetadataValue<Ascii>>, ControlPlaneError> {
        let Some(path) = &self.config.token_file else { return Ok(None) };
        let file =
            |reason| ControlPlaneError::File { field: "controlPlane.tokenFile", path: path.clone(), reason };
        let text = std::fs::read_to_string(path).map_err(|e| file(e.to_string()))?;
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", text.trim())
            .parse()
            .map_err(|_| file("it holds characters that no token has".into()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// Why there is no connection to the control plane. Trying again may help with all of them, since files and servers
/// change.
#[derive(Debug)]
pub(crate) enum ControlPlaneError {
    /// A file of the configuration is missing or broken.
    File {
        /// The field that names it.
        field: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// What is trusted can't be used.
    Trust(MaterialError),
    /// Nothing answers at the address.
    Unreachable {
        /// The address.
        address: config::ControlAddress,
        /// The system's error.
        error: io::Error,
    },
    /// It took too long.
    Timeout(config::ControlAddress),
    /// The server is someone else, or does not speak TLS.
    Tls(Box<HandshakeError>),
    /// The server does not speak HTTP/2.
    Http(String),
}

impl fmt::Display for ControlPlaneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { field, path, reason } => write!(f, "{field}: {}: {reason}", path.display()),
            Self::Trust(error) => error.fmt(f),
            Self::Unreachable { address, error } => {
                write!(
                    f,
                    "the control plane at {address} can't be reached: {error}; check controlPlane.address"
                )
            }
            Self::Timeout(address) => {
                write!(
                    f,
                    "the control plane at {address} did not answer within {} s",
                    CONNECT_TIMEOUT.as_secs()
                )
            }
            Self::Tls(error) => {
                write!(f, "the control plane is not proved: expected {}", error.expected)?;
                if let Some(presented) = &error.presented {
                    write!(f, ", presented {presented}")?;
                }
                write!(f, ": {error}; check controlPlane.rootFile and controlPlane.serverName")
            }
            Self::Http(error) => write!(f, "the control plane does not speak HTTP/2: {error}"),
        }
    }
}

impl std::error::Error for ControlPlaneError {}

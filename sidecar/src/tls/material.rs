//! A workload's certificate, key and trust bundle, as ready configurations for both ends of a connection.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::server::ServerSessionMemoryCache;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tulle_mesh::identity::{SpiffeId, TrustDomain};
use tulle_mesh::model::DownstreamTls;

use super::certificate::{CertificateFacts, Leaf, TrustBundle};
use super::failures::Failures;
use super::verify::{ControlPlaneVerifier, PeerVerifier, provider};

/// How many sessions are kept for resumption, at each end.
const SESSIONS: usize = 256;

/// What is inside a mesh connection; none of them: bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Alpn {
    /// `h2`
    Http2,
    /// `http/1.1`
    Http1,
}

impl Alpn {
    /// Its protocol ID.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http2 => "h2",
            Self::Http1 => "http/1.1",
        }
    }

    /// Reads a protocol ID; `None` for any that is not HTTP.
    pub(crate) fn from_id(id: &[u8]) -> Option<Self> {
        [Self::Http2, Self::Http1].into_iter().find(|alpn| alpn.as_str().as_bytes() == id)
    }
}

/// A workload's certificate, key and trust bundle. Never changed: a renewed leaf or another bundle makes a new one, with
/// no sessions to resume, and connections of the old one live on.
pub(crate) struct Material {
    /// Who the workload is.
    pub(crate) identity: SpiffeId,
    /// The leaf.
    pub(crate) leaf: CertificateFacts,
    /// The trust bundle.
    pub(crate) roots: Vec<CertificateFacts>,
    /// Grows by one with each new leaf or bundle.
    pub(crate) generation: u64,
    /// Whose workloads may talk to this one.
    pub(super) trust_domain: TrustDomain,
    /// Where failed handshakes are counted.
    pub(super) failures: Arc<Failures>,
    key: Arc<SingleCertAndKey>,
    required: ServerConfigs,
    optional: ServerConfigs,
    http2: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    opaque: Arc<ClientConfig>,
}

/// The configurations of the server end, by what is offered in ALPN.
struct ServerConfigs {
    http: Arc<ServerConfig>,
    opaque: Arc<ServerConfig>,
}

impl Material {
    /// Prepares both ends.
    ///
    /// # Errors
    /// When the leaf is not a workload's, the key is not the leaf's, or a root is broken.
    pub(crate) fn new(
        leaf: &Leaf,
        bundle: &TrustBundle,
        generation: u64,
        failures: &Arc<Failures>,
    ) -> Result<Self, MaterialError> {
        let first = leaf.chain.first().ok_or_else(|| MaterialError::Leaf("the chain is empty".into()))?;
        let facts = CertificateFacts::read(first).map_err(|e| MaterialError::Leaf(e.to_string()))?;
        let identity = facts.spiffe_id().map_err(|e| MaterialError::Leaf(e.to_string()))?;
        let trust_domain: TrustDomain =
            identity.trust_domain().parse().map_err(|e| MaterialError::Leaf(format!("{e}")))?;
        let key =
            CertifiedKey::from_der(leaf.chain.clone(), leaf.key(), provider()).map_err(MaterialError::Key)?;
        let key = Arc::new(SingleCertAndKey::from(key));
        let roots = Arc::new(root_store(bundle)?);

        let server = |client_required| {
            let verifier = PeerVerifier::new(trust_domain.clone(), Arc::clone(&roots), client_required)
                .map_err(MaterialError::Tls)?;
            server_configs(Arc::new(verifier), Arc::clone(&key)).map_err(MaterialError::Tls)
        };
        let verifier =
            PeerVerifier::new(trust_domain.clone(), Arc::clone(&roots), true).map_err(MaterialError::Tls)?;
        let base = client_config(Arc::new(verifier), Arc::clone(&key)).map_err(MaterialError::Tls)?;
        // A session holds the protocol that was negotiated, so each offer has its own.
        let client = |alpn: &[Alpn]| {
            let mut config = base.clone();
            config.alpn_protocols = alpn.iter().map(|alpn| alpn.as_str().into()).collect();
            config.resumption = Resumption::in_memory_sessions(SESSIONS);
            Arc::new(config)
        };
        Ok(Self {
            required: server(true)?,
            optional: server(false)?,
            // A sidecar takes HTTP/2 out of these; another peer may have HTTP/1.1 alone, which is better than nothing.
            http2: client(&[Alpn::Http2, Alpn::Http1]),
            http1: client(&[Alpn::Http1]),
            opaque: client(&[]),
            roots: bundle
                .roots
                .iter()
                .map(CertificateFacts::read)
                .collect::<Result<_, _>>()
                .map_err(|e| MaterialError::Root(e.to_string()))?,
            failures: Arc::clone(failures),
            key,
            leaf: facts,
            identity,
            trust_domain,
            generation,
        })
    }

    /// Whether the leaf is valid at `now`.
    pub(crate) fn is_valid(&self, now: SystemTime) -> bool {
        self.leaf.valid_at(now).is_ok()
    }

    /// The configuration of the server end that a listener asks for.
    pub(super) fn server(&self, tls: &DownstreamTls) -> Arc<ServerConfig> {
        let configs = if tls.require_client_certificate { &self.required } else { &self.optional };
        if tls.alpn.is_empty() {
            return Arc::clone(&configs.opaque);
        }
        let offered = &configs.http.alpn_protocols;
        if offered.iter().map(Vec::as_slice).eq(tls.alpn.iter().map(String::as_bytes)) {
            return Arc::clone(&configs.http);
        }
        let mut config = ServerConfig::clone(&configs.http);
        config.alpn_protocols = tls.alpn.iter().map(|alpn| alpn.as_bytes().into()).collect();
        Arc::new(config)
    }

    /// The configuration of the client end that offers `alpn`.
    pub(super) fn client(&self, alpn: Option<Alpn>) -> Arc<ClientConfig> {
        Arc::clone(match alpn {
            Some(Alpn::Http2) => &self.http2,
            Some(Alpn::Http1) => &self.http1,
            None => &self.opaque,
        })
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material")
            .field("identity", &self.identity)
            .field("serial", &self.leaf.serial)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// The client end of a connection to the control plane: with the workload's certificate, where one is shown.
///
/// # Errors
/// When the TLS library refuses the configuration.
pub(super) fn control_plane_config(
    verifier: ControlPlaneVerifier,
    material: Option<&Material>,
) -> Result<ClientConfig, MaterialError> {
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(MaterialError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match material {
        Some(material) => builder.with_client_cert_resolver(Arc::clone(&material.key) as _),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![Alpn::Http2.as_str().into()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The trust bundle in the TLS library's form.
///
/// # Errors
/// When a certificate can't be a root.
pub(crate) fn root_store(bundle: &TrustBundle) -> Result<RootCertStore, MaterialError> {
    let mut store = RootCertStore::empty();
    for root in &bundle.roots {
        store.add(root.clone()).map_err(|e| MaterialError::Root(e.to_string()))?;
    }
    Ok(store)
}

fn server_configs(
    verifier: Arc<PeerVerifier>,
    key: Arc<SingleCertAndKey>,
) -> Result<ServerConfigs, rustls::Error> {
    let mut http = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(key);
    http.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    http.alpn_protocols = [Alpn::Http2, Alpn::Http1].iter().map(|alpn| alpn.as_str().into()).collect();
    let mut opaque = http.clone();
    opaque.alpn_protocols = Vec::new();
    opaque.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    Ok(ServerConfigs { http: Arc::new(http), opaque: Arc::new(opaque) })
}

fn client_config(
    verifier: Arc<PeerVerifier>,
    key: Arc<SingleCertAndKey>,
) -> Result<ClientConfig, rustls::Error> {
    Ok(ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(key))
}

/// Why a leaf and a bundle make no material. The fault is the issuer's or that of the files.
#[derive(Debug)]
pub(crate) enum MaterialError {
    /// The leaf is not a workload's certificate.
    Leaf(String),
    /// The key is unreadable or not the leaf's.
    Key(rustls::Error),
    /// A certificate of the trust bundle can't be a root.
    Root(String),
    /// The TLS library refuses the configuration.
    Tls(rustls::Error),
}

impl fmt::Display for MaterialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaf(why) => write!(f, "the workload's certificate is unusable: {why}"),
            Self::Key(why) => write!(f, "the private key does not go with the workload's certificate: {why}"),
            Self::Root(why) => write!(f, "a certificate of the trust bundle is unusable: {why}"),
            Self::Tls(why) => write!(f, "the TLS configuration is refused: {why}"),
        }
    }
}

impl std::error::Error for MaterialError {}

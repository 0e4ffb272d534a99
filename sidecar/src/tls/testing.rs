//! A certificate authority for tests.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::certificate::Leaf;
use super::verify::provider;
use super::{Material, TrustBundle};

/// Signs leaves, good and bad.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A leaf as it shall be; the default is a good one.
pub(crate) struct Request {
    /// The URIs of the subject alternative name.
    pub(crate) uris: Vec<String>,
    /// DNS names and addresses.
    pub(crate) names: Vec<String>,
    /// Seconds from now.
    pub(crate) from: i64,
    /// Seconds from now.
    pub(crate) until: i64,
    /// Whether it may sign others.
    pub(crate) ca: bool,
    /// What it is for.
    pub(crate) purposes: Vec<ExtendedKeyUsagePurpose>,
}

impl Request {
    /// A good one.
    pub(crate) fn workload(uri: &str) -> Self {
        Self {
            uris: vec![uri.into()],
            names: Vec::new(),
            from: -300,
            until: 3600,
            ca: false,
            purposes: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        }
    }
}

impl Authority {
    /// A new root.
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        Self { issuer: CertifiedIssuer::self_signed(params, key).expect("a root") }
    }

    /// The root.
    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle { roots: vec![self.issuer.der().clone()] }
    }

    /// The root in PEM.
    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A leaf with a key of its own.
    pub(crate) fn leaf(&self, request: &Request) -> Leaf {
        let key = KeyPair::generate().expect("a key");
        let certificate = params(request).signed_by(&key, &self.issuer).expect("a leaf");
        Leaf::new(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    /// A leaf with a key of its own, both in PEM.
    pub(crate) fn leaf_pem(&self, request: &Request) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let certificate = params(request).signed_by(&key, &self.issuer).expect("a leaf");
        (certificate.pem(), key.serialize_pem())
    }

    /// The server end of a control plane with this leaf, which takes clients with and without a certificate.
    pub(crate) fn control_plane(&self, request: &Request) -> Arc<rustls::ServerConfig> {
        let leaf = self.leaf(request);
        let roots = Arc::new(super::material::root_store(&self.bundle()).expect("roots"));
        let clients =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider()))
                .allow_unauthenticated()
                .build()
                .expect("a verifier");
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(clients)
            .with_single_cert(leaf.chain.clone(), leaf.key())
            .expect("a key");
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    /// Signs the key of a CSR, whatever else it asks for.
    pub(crate) fn sign(&self, csr_pem: &str, request: &Request) -> CertificateDer<'static> {
        let csr = rcgen::CertificateSigningRequestParams::from_pem(csr_pem).expect("a CSR");
        params(request).signed_by(&csr.public_key, &self.issuer).expect("a leaf").der().clone()
    }

    /// The material of a workload that trusts this root.
    pub(crate) fn material(&self, uri: &str) -> Arc<Material> {
        self.material_of(&Request::workload(uri))
    }

    /// The material of a leaf as it shall be.
    pub(crate) fn material_of(&self, request: &Request) -> Arc<Material> {
        Arc::new(Material::new(&self.leaf(request), &self.bundle(), 1, &Arc::default()).expect("material"))
    }
}

fn params(request: &Request) -> CertificateParams {
    let mut params = CertificateParams::new(request.names.clone()).expect("names");
    for uri in &request.uris {
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().expect("a URI")));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let at = |offset: i64| {
        date_time_ymd(1970, 1, 1) + Duration::from_secs(now.checked_add_signed(offset).expect("in range"))
    };
    params.not_before = at(request.from);
    params.not_after = at(request.until);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = request.purposes.clone();
    if request.ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    params
}

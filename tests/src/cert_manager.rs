//! A certificate authority of somebody else, which hands out intermediates, as cert-manager does.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// A root and its key.
#[derive(Debug)]
pub struct CertManager {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, in PEM.
    pub root: String,
}

/// The content of a Secret of type `kubernetes.io/tls`.
#[derive(Clone, Debug)]
pub struct TlsSecret {
    /// The certificate, in PEM.
    pub certificate: String,
    /// Its key, in PEM.
    pub key: String,
    /// The root, in PEM.
    pub root: String,
}

impl CertManager {
    /// With a new root.
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("the system gives random bytes");
        let params = params("somebody's root");
        let root = params.self_signed(&key).expect("the parameters are sound").pem();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// A new intermediate.
    pub fn intermediate(&self) -> TlsSecret {
        let key = KeyPair::generate().expect("the system gives random bytes");
        let certificate = params("tulle").signed_by(&key, &self.issuer).expect("the parameters are sound");
        TlsSecret { certificate: certificate.pem(), key: key.serialize_pem(), root: self.root.clone() }
    }
}

impl Default for CertManager {
    fn default() -> Self {
        Self::new()
    }
}

impl TlsSecret {
    /// Writes it as the files of a mounted Secret.
    pub fn put(&self, folder: &Path) {
        std::fs::create_dir_all(folder).expect("the folder can be made");
        for (name, text) in [("ca.crt", &self.root), ("tls.crt", &self.certificate), ("tls.key", &self.key)] {
            crate::write_whole(&folder.join(name), text);
        }
    }

    /// As a manifest.
    pub fn manifest(&self, namespace: &str, name: &str) -> String {
        let data =
            serde_json::json!({ "tls.crt": self.certificate, "tls.key": self.key, "ca.crt": self.root });
        let metadata = serde_json::json!({ "name": name, "namespace": namespace });
        serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "kubernetes.io/tls", "stringData": data,
        })
        .to_string()
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + Duration::from_secs(48 * 3600)).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}

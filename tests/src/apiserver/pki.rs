//! The certificates and keys of an API server.
//!
//! In: a folder. Out: files in it, as kube-apiserver's flags and kubeconfigs name them.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Where each is.
#[derive(Debug)]
pub(super) struct Pki {
    pub(super) ca: PathBuf,
    pub(super) server: PathBuf,
    pub(super) server_key: PathBuf,
    /// Of a user who may do everything.
    pub(super) admin: PathBuf,
    pub(super) admin_key: PathBuf,
    /// The public key of service accounts' tokens.
    pub(super) accounts: PathBuf,
    pub(super) accounts_key: PathBuf,
}

impl Pki {
    /// Makes all of them.
    pub(super) fn make(folder: &Path) -> Self {
        let put = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("the folder can be written");
            path
        };
        let key = || KeyPair::generate().expect("the system gives random bytes");

        let ca_key = key();
        let mut ca = params("test CA", &[]);
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = ca.self_signed(&ca_key).expect("the parameters are sound");
        let issuer = Issuer::new(ca, ca_key);

        let server_key = key();
        let names = ["127.0.0.1", "10.96.0.1", "localhost", "kubernetes", "kubernetes.default.svc"];
        let mut server = params("kube-apiserver", &names);
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let server = server.signed_by(&server_key, &issuer).expect("the parameters are sound");

        let admin_key = key();
        let mut admin = params("admin", &[]);
        admin.distinguished_name.push(DnType::OrganizationName, "system:masters");
        admin.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let admin = admin.signed_by(&admin_key, &issuer).expect("the parameters are sound");

        let accounts = key();
        Self {
            ca: put("ca.pem", certificate.pem()),
            server: put("server.pem", server.pem()),
            server_key: put("server.key", server_key.serialize_pem()),
            admin: put("admin.pem", admin.pem()),
            admin_key: put("admin.key", admin_key.serialize_pem()),
            accounts: put("accounts.pem", accounts.public_key_pem()),
            accounts_key: put("accounts.key", accounts.serialize_pem()),
        }
    }
}

fn params(name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts = hosts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut params = CertificateParams::new(hosts).expect("the names are ASCII");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

//! The certificate authority of the webhooks: who the API server trusts when it asks them.
//!
//! It has nothing to do with the mesh's identities. In: what is kept of it, the time. Out: the bundle that the API server
//! gets, and serving certificates. A new root is in the bundle for [`OVERLAP`] before it signs, so that no API server
//! meets a certificate whose root it was not told of. Pure but for new keys.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tulle_mesh::pem;

use crate::ca::issuer::validity;

/// How long a root lives. Each is followed by another when two thirds are over.
const ROOT_LIFETIME: Duration = Duration::from_secs(365 * DAY);
/// How long a root is known before it signs.
pub(super) const OVERLAP: Duration = Duration::from_secs(3600);
/// How long a serving certificate lives; it is renewed at half of that.
const LEAF_LIFETIME: Duration = Duration::from_secs(7 * DAY);
/// Clocks differ.
const BACKDATE: Duration = Duration::from_secs(300);
const DAY: u64 = 24 * 3600;

/// The roots that are trusted, the oldest first; never empty.
pub(super) struct Roots(Vec<Root>);

struct Root {
    pem: String,
    not_before: SystemTime,
    not_after: SystemTime,
    key: KeyPair,
}

impl Roots {
    /// A first root.
    pub(super) fn new(now: SystemTime) -> Result<Self, AuthorityError> {
        Ok(Self(vec![Root::new(now)?]))
    }

    /// Reads what [`Self::certificates`] and [`Self::keys`] wrote.
    pub(super) fn read(certificates: &[u8], keys: &[u8]) -> Result<Self, AuthorityError> {
        let wrong = |reason: &str| AuthorityError(reason.to_owned());
        let ders = CertificateDer::pem_slice_iter(certificates).collect::<Result<Vec<_>, _>>();
        let ders = ders.map_err(|_| wrong("ca.crt is not PEM of certificates"))?;
        let keys = PrivatePkcs8KeyDer::pem_slice_iter(keys).collect::<Result<Vec<_>, _>>();
        let keys = keys.map_err(|_| wrong("ca.key is not PEM of PKCS#8 keys"))?;
        if ders.is_empty() || ders.len() != keys.len() {
            return Err(wrong("ca.crt and ca.key have not as many entries, at least one each"));
        }
        let roots = ders.iter().zip(&keys).map(|(der, key)| {
            let (not_before, not_after) =
                validity(der).ok_or_else(|| wrong("ca.crt has a certificate that can't be read"))?;
            let key = KeyPair::try_from(key).map_err(|_| wrong("ca.key has a key that can't be used"))?;
            Ok(Root { pem: pem::encode("CERTIFICATE", der), not_before, not_after, key })
        });
        roots.collect::<Result<_, _>>().map(Self)
    }

    /// With another root where it is time for one, and without those that are over; `None` where nothing changes.
    pub(super) fn renewed(self, now: SystemTime) -> Result<(Self, bool), AuthorityError> {
        let before = self.0.len();
        let mut roots: Vec<Root> = self.0.into_iter().filter(|root| root.not_after > now).collect();
        let mut changed = roots.len() != before;
        if roots.last().is_none_or(|newest| newest.not_after < now + ROOT_LIFETIME / 3) {
            roots.push(Root::new(now)?);
            changed = true;
        }
        Ok((Self(roots), changed))
    }

    /// What the API server trusts.
    pub(super) fn certificates(&self) -> String {
        self.0.iter().map(|root| root.pem.as_str()).collect()
    }

    /// The secret part.
    pub(super) fn keys(&self) -> String {
        self.0.iter().map(|root| root.key.serialize_pem()).collect()
    }

    /// What the webhooks' server shows: a new key and a certificate for these names, and when it is to be renewed.
    pub(super) fn serve(
        &self,
        names: &[String],
        now: SystemTime,
    ) -> Result<(Arc<ServerConfig>, SystemTime), AuthorityError> {
        let known = |root: &&Root| root.not_before + BACKDATE + OVERLAP <= now;
        let root = self.0.iter().rev().find(known).or(self.0.first());
        let root = root.ok_or_else(|| AuthorityError("there is no root".into()))?;
        let not_after = (now + LEAF_LIFETIME).min(root.not_after);

        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATE).into();
        params.not_after = not_after.into();
        params.distinguished_name = DistinguishedName::new();
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let issuer = Issuer::from_ca_cert_pem(&root.pem, &root.key)?;
        let leaf = params.signed_by(&key, &issuer)?;

        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let half = not_after.duration_since(now).unwrap_or_default() / 2;
        Ok((Arc::new(tls), now + half))
    }
}

impl Root {
    fn new(now: SystemTime) -> Result<Self, AuthorityError> {
        let (not_before, not_after) = (now - BACKDATE, now + ROOT_LIFETIME);
        let mut params = CertificateParams::default();
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Tulle's webhooks");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self { pem: pem::encode("CERTIFICATE", certificate.der()), not_before, not_after, key })
    }
}

/// Why there is no certificate. Nothing of a key is in it.
#[derive(Debug)]
pub(super) struct AuthorityError(String);

impl From<rcgen::Error> for AuthorityError {
    fn from(error: rcgen::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<rustls::Error> for AuthorityError {
    fn from(error: rustls::Error) -> Self {
        Self(error.to_string())
    }
}

impl fmt::Display for AuthorityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for AuthorityError {}

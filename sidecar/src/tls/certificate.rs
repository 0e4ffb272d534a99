//! Certificates as they are read: a workload's own leaf, the trust bundle, and what a peer's leaf says.

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tulle_mesh::identity::SpiffeId;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::{Reason, Rejection};

/// What matters of a certificate. Reading it proves nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertificateFacts {
    /// The URIs of its subject alternative name.
    pub(crate) uris: Vec<String>,
    /// It may sign other certificates, by its basic constraints or its key usage.
    pub(crate) signs: bool,
    /// Hexadecimal, as `openssl x509 -serial` prints it but with colons.
    pub(crate) serial: String,
    /// Its subject, in text.
    pub(crate) subject: String,
    /// SHA-256 over its DER, in hexadecimal.
    pub(crate) fingerprint: String,
    /// Valid from, by the issuer's clock.
    pub(crate) not_before: SystemTime,
    /// Valid until.
    pub(crate) not_after: SystemTime,
}

impl CertificateFacts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// When it is not X.509 in DER.
    pub(crate) fn read(der: &CertificateDer<'_>) -> Result<Self, Rejection> {
        let broken = |detail: String| Rejection {
            reason: Reason::BadCertificate,
            detail,
            presented: None,
            validity: None,
        };
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|e| broken(format!("not an X.509 certificate: {e}")))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|e| broken(format!("its subject alternative name is unreadable: {e}")))?;
        let uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        });
        let usage =
            certificate.key_usage().map_err(|e| broken(format!("its key usage is unreadable: {e}")))?;
        let signs_by_usage = usage.is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign());
        let validity = certificate.validity();
        Ok(Self {
            uris: uris.collect(),
            signs: certificate.is_ca() || signs_by_usage,
            serial: certificate.raw_serial_as_string(),
            subject: certificate.subject().to_string(),
            fingerprint: hex(digest(&SHA256, der).as_ref()),
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
        })
    }

    /// The workload's SPIFFE ID, by the rules for leaves (X509-SVID sections 2 and 4).
    ///
    /// # Errors
    /// When the certificate signs others, or does not hold exactly one URI that is the SPIFFE ID of a workload.
    pub(crate) fn spiffe_id(&self) -> Result<SpiffeId, Rejection> {
        if self.signs {
            return Err(
                self.rejection(Reason::NotALeaf, "the certificate may sign others, so it is no workload's")
            );
        }
        let [uri] = self.uris.as_slice() else {
            let detail = format!("the certificate holds {} URIs, and must hold exactly one", self.uris.len());
            return Err(self.rejection(Reason::NoSpiffeId, detail));
        };
        let id: SpiffeId = uri.parse().map_err(|e| self.rejection(Reason::NoSpiffeId, format!("{e}")))?;
        if id.path().is_empty() {
            let detail = format!("{id} names a trust domain, not a workload");
            return Err(self.rejection(Reason::NoSpiffeId, detail));
        }
        Ok(id)
    }

    /// Whether the certificate is valid at `now`.
    ///
    /// # Errors
    /// When it is not; the message holds both clocks.
    pub(crate) fn valid_at(&self, now: SystemTime) -> Result<(), Rejection> {
        if now > self.not_after {
            let detail = format!(
                "the certificate expired at {}, and our clock says {}; the peer has not renewed it, or a clock is wrong",
                stamp(self.not_after),
                stamp(now)
            );
            return Err(self.rejection(Reason::Expired, detail));
        }
        if now < self.not_before {
            let detail = format!(
                "the certificate is valid from {} by its issuer's clock, and our clock says {}; one of them is wrong",
                stamp(self.not_before),
                stamp(now)
            );
            return Err(self.rejection(Reason::NotYetValid, detail));
        }
        Ok(())
    }

    /// A verdict on this certificate.
    pub(crate) fn rejection(&self, reason: Reason, detail: impl Into<String>) -> Rejection {
        Rejection {
            reason,
            detail: detail.into(),
            presented: Some(if self.uris.is_empty() { "no URI".into() } else { self.uris.join(", ") }),
            validity: Some(format!("{} to {}", stamp(self.not_before), stamp(self.not_after))),
        }
    }
}

/// A time as RFC 3339 text.
pub(crate) fn stamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "out of range".into(), |t| format!("{t:.0}"))
}

fn time(unix_seconds: i64) -> SystemTime {
    let offset = Duration::from_secs(unix_seconds.unsigned_abs());
    let time = match unix_seconds {
        0.. => SystemTime::UNIX_EPOCH.checked_add(offset),
        _ => SystemTime::UNIX_EPOCH.checked_sub(offset),
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// This workload's certificate and key.
pub(crate) struct Leaf {
    /// The leaf, and the certificates between it and a root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Leaf {
    /// Puts together what an issuer gave and the key that was made here.
    pub(crate) fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        Self { chain, key }
    }

    /// Reads both from PEM.
    ///
    /// # Errors
    /// A message for the user: which of the two is missing or broken.
    pub(crate) fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, String> {
        let chain = read_certificates(chain)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|e| format!("no private key in PEM (PKCS#8, SEC1 or PKCS#1): {e}"))?;
        Ok(Self { chain, key })
    }

    /// Whose it is; `None` where it is not the leaf of a workload.
    pub(crate) fn identity(&self) -> Option<SpiffeId> {
        CertificateFacts::read(self.chain.first()?).ok()?.spiffe_id().ok()
    }

    /// The private key in DER, for the file that holds it.
    pub(crate) fn key_der(&self) -> &[u8] {
        self.key.secret_der()
    }

    /// What PEM calls the form of the key.
    pub(crate) fn key_label(&self) -> &'static str {
        match &self.key {
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            _ => "PRIVATE KEY",
        }
    }

    /// The private key, for whoever builds a TLS configuration.
    pub(super) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").field("certificates", &self.chain.len()).finish_non_exhaustive()
    }
}

/// The certificates that the mesh trusts to sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrustBundle {
    /// Never empty.
    pub(crate) roots: Vec<CertificateDer<'static>>,
}

impl TrustBundle {
    /// Reads all certificates of a PEM text.
    ///
    /// # Errors
    /// A message for the user when there is none, or one is broken.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, String> {
        Ok(Self { roots: read_certificates(pem)? })
    }
}

fn read_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|e| format!("a certificate in PEM is broken: {e}"))?;
    if certificates.is_empty() {
        return Err("no certificate in PEM; it starts with -----BEGIN CERTIFICATE-----".into());
    }
    for certificate in &certificates {
        CertificateFacts::read(certificate).map_err(|e| e.to_string())?;
    }
    Ok(certificates)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

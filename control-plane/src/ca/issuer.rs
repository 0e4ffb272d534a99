//! Requests to certificates: a CSR is checked, a leaf is signed. Also the few things that are read from certificates.
//!
//! Pure but for the serial number, which is random; `now` is passed in. Nothing of a request but its public key gets
//! into the certificate.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use sha2::{Digest, Sha256};
use tulle_mesh::identity::SpiffeId;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::{BACKDATE, Bundle, Root, Roots};

/// The fewest bits that an RSA key may have.
pub const MIN_RSA_BITS: usize = 2048;

/// The longest CSR that is read, in bytes of PEM.
const MAX_CSR: usize = 64 * 1024;

/// A certificate that was signed.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// The certificates between it and a root, beginning with the one that signed it; none where a root did.
    pub intermediates: Vec<CertificateDer<'static>>,
    /// All of them in PEM, then every trusted root, the one that signed it last.
    pub chain: Vec<String>,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// Checks a request (PKCS#10, in PEM) and yields its public key.
///
/// # Errors
/// When it is malformed, was not signed with its own key, has a weak or unknown key, or asks for an identity other
/// than `identity`.
pub fn check_request(pem: &str, identity: &SpiffeId) -> Result<impl PublicKeyData + use<>, IssueError> {
    let malformed = |reason: &str| IssueError::Request(reason.into());
    if pem.len() > MAX_CSR {
        return Err(malformed("the CSR is longer than 64 KiB"));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| malformed("the CSR is not PEM of type CERTIFICATE REQUEST"))?;
    let (rest, csr) = X509CertificationRequest::from_der(&der)
        .map_err(|e| IssueError::Request(format!("the CSR is not PKCS#10: {e}")))?;
    if !rest.is_empty() {
        return Err(malformed("bytes follow the CSR"));
    }
    // The key comes first: the signature of a key that is too short can't be checked at all.
    let spki = &csr.certification_request_info.subject_pki;
    if let Ok(PublicKey::RSA(rsa)) = spki.parsed()
        && rsa.key_size() < MIN_RSA_BITS
    {
        let bits = rsa.key_size();
        return Err(IssueError::Request(format!(
            "the CSR's RSA key has {bits} bits, at least {MIN_RSA_BITS} are needed; ECDSA P-256 is better still"
        )));
    }
    let key = SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| {
        let algorithm = spki.algorithm.oid();
        IssueError::Request(format!(
            "the CSR's key type {algorithm} is not supported: use ECDSA P-256 or P-384, Ed25519 or RSA"
        ))
    })?;
    csr.verify_signature().map_err(|_| malformed("the CSR's signature does not match its key"))?;
    let names = csr.requested_extensions().into_iter().flatten().filter_map(|extension| match extension {
        ParsedExtension::SubjectAlternativeName(names) => Some(names),
        _ => None,
    });
    for name in names.flat_map(|names| &names.general_names) {
        // Host names are left out without a word, as Istio's CA does; another identity is an attack or a mistake.
        if let GeneralName::URI(asked) = name
            && *asked != identity.as_str()
        {
            return Err(IssueError::Identity { asked: (*asked).into(), proven: identity.clone() });
        }
    }
    Ok(key)
}

/// Signs a leaf for an identity, and for `hosts` where it is the control plane's own.
pub(super) fn sign(
    roots: &Roots,
    identity: &SpiffeId,
    hosts: &[String],
    key: &impl PublicKeyData,
    lifetime: Duration,
    now: SystemTime,
) -> Result<Leaf, IssueError> {
    let Roots { bundle, signing, intermediates, issuer } = roots;
    let signers = intermediates.iter().chain([signing]);
    let not_after = signers.map(|signer| signer.not_after).fold(now + lifetime, SystemTime::min);
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = not_after.into();
    params.serial_number = Some(serial().map_err(IssueError::Signing)?);
    // Without a subject the alternative names are critical, as RFC 5280 section 4.2.1.6 asks.
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().map_err(IssueError::signing)?)];
    for host in hosts {
        params.subject_alt_names.push(match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(host.as_str().try_into().map_err(IssueError::signing)?),
        });
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(key, issuer).map_err(IssueError::signing)?;
    let (last, others): (Vec<_>, Vec<_>) = bundle.roots.iter().partition(|root| root.id == signing.id);
    let above = intermediates.iter().chain(others).chain(last).map(|root| root.pem.clone());
    let chain = std::iter::once(leaf.pem()).chain(above).collect();
    let intermediates = intermediates.iter().map(|certificate| certificate.der.clone()).collect();
    Ok(Leaf { der: leaf.der().clone(), intermediates, chain, not_after })
}

/// The trust domain that a root certificate stands for: that of its only URI.
pub(super) fn trust_domain(root: &CertificateDer<'_>) -> Option<String> {
    spiffe_id(root).map(|id| id.trust_domain().to_owned())
}

/// The SPIFFE ID of a certificate, which must have exactly one URI (X509-SVID section 2).
pub fn spiffe_id(certificate: &CertificateDer<'_>) -> Option<SpiffeId> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris.next()?;
    if uris.next().is_some() {
        return None;
    }
    uri.parse().ok()
}

/// From when until when a certificate is valid.
pub fn validity(certificate: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let at = |time: x509_parser::time::ASN1Time| {
        let seconds = u64::try_from(time.timestamp()).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    };
    Some((at(certificate.validity().not_before)?, at(certificate.validity().not_after)?))
}

/// Whether a certificate may sign others.
pub(super) fn is_ca(certificate: &CertificateDer<'_>) -> bool {
    let parsed = x509_parser::parse_x509_certificate(certificate);
    parsed.is_ok_and(|(_, certificate)| certificate.is_ca())
}

/// The first 16 hex digits of the SHA-256 of a certificate.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    Sha256::digest(certificate).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The id of the root that signed a certificate, by its issuer's name, which is unique to each root.
pub fn root_of(certificate: &CertificateDer<'_>, bundle: &Bundle) -> Option<String> {
    let (_, leaf) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let signed = |root: &&Root| {
        x509_parser::parse_x509_certificate(&root.der)
            .is_ok_and(|(_, root)| root.subject().as_raw() == leaf.issuer().as_raw())
    };
    bundle.roots.iter().find(signed).map(|root| root.id.clone())
}

/// 16 random bytes that make a positive number.
pub(super) fn serial() -> Result<SerialNumber, String> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| "the system gives no random bytes".to_owned())?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Why a certificate was not issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IssueError {
    /// The request is bad; the fault is the caller's.
    Request(String),
    /// The request asks for an identity that its sender did not prove.
    Identity {
        /// The one in the request.
        asked: String,
        /// The one that was proven.
        proven: SpiffeId,
    },
    /// Signing failed; the fault is the control plane's.
    Signing(String),
}

impl IssueError {
    pub(super) fn signing(error: rcgen::Error) -> Self {
        Self::Signing(error.to_string())
    }
}

impl fmt::Display for IssueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(reason) => f.write_str(reason),
            Self::Identity { asked, proven } => write!(
                f,
                "the CSR asks for {asked:?}, but its sender proved to be {proven}; use a token for the identity asked for"
            ),
            Self::Signing(reason) => write!(f, "can't sign: {reason}"),
        }
    }
}

impl std::error::Error for IssueError {}

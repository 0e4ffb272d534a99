//! Verifies the certificates of peers and of the control plane.
//!
//! In: the chain that a peer presents, and the time. Out: yes, or a [`Rejection`] as the cause of the TLS library's
//! error. The library has proved by then that the peer holds the leaf's key.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible,
    RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tulle_mesh::identity::{SpiffeId, TrustDomain};

use super::certificate::CertificateFacts;
use super::error::{Reason, Rejection};

/// The cryptography of all connections: AES-128-GCM first, because it is the cheapest that is strong enough, and the
/// hybrid post-quantum key exchange before all others.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
            ..default_provider()
        })
    });
    &PROVIDER
}

/// The methods on signatures, which the library asks of verifiers of servers and of clients alike: TLS 1.3 by the means of
/// [`provider`], and nothing older.
macro_rules! signatures {
    ($older:expr) => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err($older.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

/// Verifies workloads, at either end of a connection between sidecars.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    trust_domain: TrustDomain,
    roots: Arc<RootCertStore>,
    /// Chain, validity and purpose of clients.
    clients: Arc<dyn ClientCertVerifier>,
    client_required: bool,
}

impl PeerVerifier {
    /// A verifier for workloads of `trust_domain` whose certificates chain to `roots`.
    ///
    /// # Errors
    /// When there is no root.
    pub(super) fn new(
        trust_domain: TrustDomain,
        roots: Arc<RootCertStore>,
        client_required: bool,
    ) -> Result<Self, Error> {
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider()))
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        Ok(Self { trust_domain, roots, clients, client_required })
    }

    fn verify_identity(&self, facts: &CertificateFacts, now: UnixTime) -> Result<(), Error> {
        identity(facts, &self.trust_domain, system_time(now)).map(|_| ()).map_err(rejected)
    }
}

/// The identity in a leaf whose chain is or will be verified; also asked of resumed sessions, whose chain was verified
/// when they began.
pub(super) fn identity(
    facts: &CertificateFacts,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<SpiffeId, Rejection> {
    let id = facts.spiffe_id()?;
    facts.valid_at(now)?;
    if id.trust_domain() != trust_domain.as_str() {
        let detail =
            format!("the peer is of the trust domain {:?}, and we are of {trust_domain}", id.trust_domain());
        return Err(facts.rejection(Reason::WrongTrustDomain, detail));
    }
    Ok(id)
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let facts = CertificateFacts::read(end_entity).map_err(rejected)?;
        verify_server_chain(end_entity, intermediates, &self.roots, now)
            .map_err(|e| explain(&facts, now, e))?;
        self.verify_identity(&facts, now)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!(PeerIncompatible::ServerDoesNotSupportTls12Or13);
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.client_required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let facts = CertificateFacts::read(end_entity).map_err(rejected)?;
        let verified = self.clients.verify_client_cert(end_entity, intermediates, now);
        let verified = verified.map_err(|e| explain(&facts, now, e))?;
        self.verify_identity(&facts, now)?;
        Ok(verified)
    }

    signatures!(PeerIncompatible::Tls12NotOffered);
}

/// Verifies the control plane: by its SPIFFE ID, or by the name or address at which it was dialled (a foreign one).
#[derive(Debug)]
pub(crate) struct ControlPlaneVerifier {
    roots: RootCertStore,
    identity: SpiffeId,
}

impl ControlPlaneVerifier {
    /// A verifier for the control plane `identity`, whose certificate chains to `roots`.
    pub(crate) fn new(roots: RootCertStore, identity: SpiffeId) -> Self {
        Self { roots, identity }
    }
}

impl ServerCertVerifier for ControlPlaneVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let facts = CertificateFacts::read(end_entity).map_err(rejected)?;
        verify_server_chain(end_entity, intermediates, &self.roots, now)
            .map_err(|e| explain(&facts, now, e))?;
        facts.valid_at(system_time(now)).map_err(rejected)?;
        if facts.spiffe_id().is_ok_and(|id| id == self.identity) {
            return Ok(ServerCertVerified::assertion());
        }
        // A workload of the mesh must not pass for the control plane, whatever names its certificate holds besides.
        if facts.uris.iter().any(|uri| uri.starts_with("spiffe://")) {
            let detail = format!("the server is not the control plane {}", self.identity);
            return Err(rejected(facts.rejection(Reason::WrongIdentity, detail)));
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name).map_err(|_| {
            let detail = format!("the certificate is neither for {} nor for {server_name:?}", self.identity);
            rejected(facts.rejection(Reason::WrongIdentity, detail))
        })?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!(PeerIncompatible::ServerDoesNotSupportTls12Or13);
}

fn verify_server_chain(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<(), Error> {
    let algorithms = provider().signature_verification_algorithms.all;
    let parsed = ParsedCertificate::try_from(end_entity)?;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)
}

/// Gives the library's verdict on a chain one of our reasons.
fn explain(facts: &CertificateFacts, now: UnixTime, error: Error) -> Error {
    // The library may find several faults; what the leaf itself says comes first, because it names the culprit.
    if let Err(rejection) = facts.spiffe_id().map(|_| ()).and_then(|()| facts.valid_at(system_time(now)))
        && matches!(rejection.reason, Reason::NotALeaf | Reason::Expired | Reason::NotYetValid)
    {
        return rejected(rejection);
    }
    let (reason, detail) = match &error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            (Reason::UnknownIssuer, "no certificate of the trust bundle signed the certificate".into())
        }
        Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        ) => (Reason::WrongPurpose, format!("the certificate is not for this side of a connection: {error}")),
        Error::InvalidCertificate(CertificateError::ExpiredContext { .. }) => {
            (Reason::Expired, format!("a certificate between the leaf and the root expired: {error}"))
        }
        Error::InvalidCertificate(CertificateError::NotValidYetContext { .. }) => (
            Reason::NotYetValid,
            format!("a certificate between the leaf and the root is not valid yet: {error}"),
        ),
        _ => (Reason::BadCertificate, error.to_string()),
    };
    rejected(facts.rejection(reason, detail))
}

fn rejected(rejection: Rejection) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(rejection))))
}

fn system_time(now: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs())
}

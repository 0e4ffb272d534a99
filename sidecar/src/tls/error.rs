//! Why a handshake failed: a closed set of reasons, and all that an operator needs to see in one line.

use std::fmt;
use std::net::SocketAddr;

use super::failures::{Failures, Side};

/// Why a handshake failed. The text of each is a label in metrics and logs, and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// The peer's certificate is no longer valid.
    Expired,
    /// The peer's certificate is not valid yet.
    NotYetValid,
    /// The peer's certificate does not chain to the trust bundle.
    UnknownIssuer,
    /// The peer is of another trust domain.
    WrongTrustDomain,
    /// The peer is someone else than the one that was to answer.
    WrongIdentity,
    /// The peer has no certificate and needs one.
    NoCertificate,
    /// The peer's certificate does not hold exactly one SPIFFE ID of a workload.
    NoSpiffeId,
    /// The peer showed a certificate that signs others, not a workload's.
    NotALeaf,
    /// The peer's certificate is not for this side of a connection.
    WrongPurpose,
    /// The peer's certificate is broken or its signature wrong.
    BadCertificate,
    /// The peer refused our certificate or our offer, by a TLS alert.
    RefusedByPeer,
    /// What came was no TLS at all.
    NotTls,
    /// What came was not the TLS that we speak.
    Protocol,
    /// The connection ended or failed before the handshake did.
    Closed,
}

impl Reason {
    /// Every reason, in the order of the variants.
    pub(super) const ALL: [Self; 14] = [
        Self::Expired,
        Self::NotYetValid,
        Self::UnknownIssuer,
        Self::WrongTrustDomain,
        Self::WrongIdentity,
        Self::NoCertificate,
        Self::NoSpiffeId,
        Self::NotALeaf,
        Self::WrongPurpose,
        Self::BadCertificate,
        Self::RefusedByPeer,
        Self::NotTls,
        Self::Protocol,
        Self::Closed,
    ];

    /// The label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::UnknownIssuer => "unknown_issuer",
            Self::WrongTrustDomain => "wrong_trust_domain",
            Self::WrongIdentity => "wrong_identity",
            Self::NoCertificate => "no_certificate",
            Self::NoSpiffeId => "no_spiffe_id",
            Self::NotALeaf => "not_a_leaf",
            Self::WrongPurpose => "wrong_purpose",
            Self::BadCertificate => "bad_certificate",
            Self::RefusedByPeer => "refused_by_peer",
            Self::NotTls => "not_tls",
            Self::Protocol => "protocol",
            Self::Closed => "closed",
        }
    }
}

/// What a verifier holds against a certificate. It travels through the TLS library as the cause of its error.
#[derive(Clone, Debug)]
pub(crate) struct Rejection {
    /// The verdict.
    pub(crate) reason: Reason,
    /// In words, with both clocks where time is the matter.
    pub(crate) detail: String,
    /// The URIs of the certificate.
    pub(crate) presented: Option<String>,
    /// From when until when the certificate is valid.
    pub(crate) validity: Option<String>,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.as_str(), self.detail)
    }
}

impl std::error::Error for Rejection {}

/// A failed handshake. Nothing of the application was sent, so it is always safe to try elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct HandshakeError {
    /// The verdict.
    pub(crate) reason: Reason,
    /// In words.
    pub(crate) detail: String,
    /// The other end.
    pub(crate) peer: SocketAddr,
    /// Who it had to be.
    pub(crate) expected: String,
    /// Who it says it is, as far as it said.
    pub(crate) presented: Option<String>,
    /// From when until when its certificate is valid.
    pub(crate) validity: Option<String>,
}

impl HandshakeError {
    /// Wraps a verdict on the certificate of `peer`.
    pub(super) fn new(peer: SocketAddr, expected: String, rejection: Rejection) -> Self {
        let Rejection { reason, detail, presented, validity } = rejection;
        Self { reason, detail, peer, expected, presented, validity }
    }

    /// Reads the cause of a failure of the TLS library.
    pub(super) fn from_io(peer: SocketAddr, expected: String, error: &std::io::Error) -> Self {
        Self::new(peer, expected, rejection(error))
    }

    /// Counts this failure, and writes the one line about it unless there are too many. `side` is ours.
    pub(super) fn report(&self, side: Side, failures: &Failures) {
        if !failures.count(side, self.reason) {
            return;
        }
        tracing::warn!(
            reason = self.reason.as_str(),
            side = side.as_str(),
            peer = %self.peer,
            expected = self.expected,
            presented = self.presented.as_deref().unwrap_or("nothing"),
            validity = self.validity.as_deref().unwrap_or("unknown"),
            "mesh TLS handshake failed: {}",
            self.detail
        );
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mesh TLS with {} failed ({}): {}", self.peer, self.reason.as_str(), self.detail)
    }
}

impl std::error::Error for HandshakeError {}

/// An error with all of its causes: what a library puts on top is often the least of it.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn rejection(error: &std::io::Error) -> Rejection {
    let plain = |reason, detail: String| Rejection { reason, detail, presented: None, validity: None };
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return plain(Reason::Closed, format!("the connection failed during the handshake: {error}"));
    };
    match tls {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => {
            match other.0.downcast_ref::<Rejection>() {
                Some(rejection) => rejection.clone(),
                None => plain(Reason::BadCertificate, tls.to_string()),
            }
        }
        rustls::Error::InvalidCertificate(_) => plain(Reason::BadCertificate, tls.to_string()),
        rustls::Error::NoCertificatesPresented => {
            plain(Reason::NoCertificate, "the peer presented no certificate, and one is required".into())
        }
        rustls::Error::AlertReceived(alert) => plain(
            Reason::RefusedByPeer,
            format!("the peer refused the handshake with the alert {alert:?}; its log says why"),
        ),
        rustls::Error::InvalidMessage(
            rustls::InvalidMessage::InvalidContentType | rustls::InvalidMessage::UnknownProtocolVersion,
        ) => plain(Reason::NotTls, format!("what the peer said is not TLS: {tls}")),
        _ => plain(Reason::Protocol, format!("the peer does not speak TLS 1.3 as the mesh does: {tls}")),
    }
}

//! Asks the control plane's CA for a certificate (`istio.v1.auth.IstioCertificateService`, as Istio's CA also speaks it).
//!
//! The key is made here and never leaves this process. What the CSR asks for is a wish: the CA goes by who the caller
//! has proved to be, and what comes back is checked against that.

use std::fmt;

use prost::Message;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tonic::Code;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;
use tulle_mesh::identity::SpiffeId;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::certificate::{CertificateFacts, Leaf};
use super::control_plane::Session;
use super::error::with_causes;

const METHOD: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// Istio's `IstioCertificateRequest`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CertificateRequest {
    /// PKCS#10 in PEM.
    #[prost(string, tag = "1")]
    pub(crate) csr: String,
    /// In seconds; 0 leaves it to the CA.
    #[prost(int64, tag = "3")]
    pub(crate) validity_duration: i64,
}

/// Istio's `IstioCertificateResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CertificateResponse {
    /// In PEM: the leaf, what is between, and roots.
    #[prost(string, repeated, tag = "1")]
    pub(crate) cert_chain: Vec<String>,
}

/// Makes a key and gets a certificate for `identity`.
///
/// # Errors
/// When the CA refuses, or gives something else.
pub(crate) async fn issue(session: &Session, identity: &SpiffeId) -> Result<Leaf, IssueError> {
    let key = KeyPair::generate().map_err(|e| IssueError::Key(e.to_string()))?;
    let csr = signing_request(&key, identity).map_err(|e| IssueError::Key(e.to_string()))?;
    let mut client = Grpc::new(session.channel.clone());
    client.ready().await.map_err(|e| IssueError::Refused(Code::Unavailable, with_causes(&e)))?;
    let request = session.request(CertificateRequest { csr, validity_duration: 0 });
    let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
    let response = client
        .unary(request, PathAndQuery::from_static(METHOD), codec)
        .await
        .map_err(|status| IssueError::Refused(status.code(), reason(&status)))?;
    let chain = chain(&response.into_inner().cert_chain, identity)?;
    Ok(Leaf::new(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
}

/// What the CA says; where it says nothing, what went wrong on the way.
fn reason(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(cause) => with_causes(cause),
        None => status.message().to_owned(),
    }
}

fn signing_request(key: &KeyPair, identity: &SpiffeId) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names.push(SanType::URI(identity.as_str().try_into()?));
    params.serialize_request(key)?.pem()
}

/// The leaf and what is between it and a root; roots are told from the trust bundle, never from here.
fn chain(pem: &[String], identity: &SpiffeId) -> Result<Vec<CertificateDer<'static>>, IssueError> {
    let unusable = |why: String| IssueError::Unusable(why);
    let mut chain = Vec::new();
    for certificate in pem.iter().flat_map(|text| CertificateDer::pem_slice_iter(text.as_bytes())) {
        let certificate = certificate.map_err(|e| unusable(format!("it is not PEM: {e}")))?;
        let (_, parsed) =
            X509Certificate::from_der(&certificate).map_err(|e| unusable(format!("it is not X.509: {e}")))?;
        let is_root = parsed.subject().as_raw() == parsed.issuer().as_raw();
        if chain.is_empty() || !is_root {
            chain.push(certificate);
        }
    }
    let leaf = chain.first().ok_or_else(|| unusable("it is empty".into()))?;
    let issued = CertificateFacts::read(leaf)
        .and_then(|facts| facts.spiffe_id())
        .map_err(|e| unusable(e.to_string()))?;
    if issued != *identity {
        let fix = "check workload.namespace, workload.serviceAccount, trustDomain and whose token controlPlane.tokenFile is";
        return Err(unusable(format!("it is for {issued}, and this workload is {identity}; {fix}")));
    }
    Ok(chain)
}

/// Why there is no certificate.
#[derive(Debug)]
pub(crate) enum IssueError {
    /// No key could be made.
    Key(String),
    /// The CA's answer.
    Refused(Code, String),
    /// What came is not this workload's certificate.
    Unusable(String),
}

impl fmt::Display for IssueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(why) => write!(f, "no key could be made: {why}"),
            Self::Refused(code, message) => {
                write!(f, "the certificate authority refused ({code:?}): {message}")
            }
            Self::Unusable(why) => write!(f, "the certificate that was issued is unusable: {why}"),
        }
    }
}

impl std::error::Error for IssueError {}

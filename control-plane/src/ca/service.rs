//! `istio.v1.auth.IstioCertificateService`: certificate requests come in over gRPC, chains go out.
//!
//! The messages are written by hand after Istio's `security/v1alpha1/ca.proto`, of which only these fields matter; the
//! request's `metadata` is left unread, because nothing in it is proven.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::Authority;
use super::issuer::IssueError;
use crate::caller::{Caller, Proof, authenticate};
use crate::metrics::Metrics;

/// The path of the only method.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// Asks for a certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateRequest {
    /// PKCS#10, in PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// The life asked for, in seconds; 0 takes the longest that is given.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
}

/// A certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateResponse {
    /// In PEM: the leaf, then every trusted root, the one that signed the leaf last.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// The service.
#[derive(Clone, Debug)]
pub struct CertificateService {
    authority: Arc<Authority>,
    metrics: Arc<Metrics>,
}

impl CertificateService {
    /// Issues certificates of `authority`.
    pub fn new(authority: Arc<Authority>, metrics: Arc<Metrics>) -> Self {
        Self { authority, metrics }
    }

    async fn create(&self, request: &Request<CertificateRequest>) -> Result<CertificateResponse, Status> {
        let now = SystemTime::now();
        let caller = authenticate(request.metadata(), request.extensions(), &self.authority, now)
            .await
            .inspect_err(|status| tracing::warn!(reason = status.message(), "refused a caller"))?;
        // In a cluster a pod's right to its identity ends with the pod, which its certificate outlives.
        if self.authority.reviewer().is_some() && matches!(caller.proof, Proof::Certificate(_)) {
            return Err(Status::unauthenticated(
                "in a cluster a certificate is given for a token only: send the pod's own as `authorization: Bearer \
                 <token>`, on a connection without a client certificate",
            ));
        }
        let issued = self.issue(&caller, request.get_ref(), now);
        match &issued {
            Ok(_) => tracing::info!(identity = %caller.identity, "issued a certificate"),
            Err(status) => {
                tracing::warn!(identity = %caller.identity, reason = status.message(), "refused a CSR")
            }
        }
        issued
    }

    fn issue(
        &self,
        caller: &Caller,
        request: &CertificateRequest,
        now: SystemTime,
    ) -> Result<CertificateResponse, Status> {
        let lifetime = u64::try_from(request.validity_duration)
            .ok()
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs);
        let leaf =
            self.authority.certify(&caller.identity, &request.csr, lifetime, now).map_err(|error| {
                let reason = error.to_string();
                match error {
                    IssueError::Request(_) => Status::invalid_argument(reason),
                    IssueError::Identity { .. } => Status::permission_denied(reason),
                    IssueError::Signing(_) => Status::internal(reason),
                }
            })?;
        Ok(CertificateResponse { cert_chain: leaf.chain })
    }
}

impl UnaryService<CertificateRequest> for CertificateService {
    type Response = CertificateResponse;
    type Future = BoxFuture<'static, Result<Response<CertificateResponse>, Status>>;

    fn call(&mut self, request: Request<CertificateRequest>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let created = service.create(&request).await;
            service.metrics.certificate(created.as_ref().err().map(Status::code));
            created.map(Response::new)
        })
    }
}

impl NamedService for CertificateService {
    const NAME: &'static str = "istio.v1.auth.IstioCertificateService";
}

impl tower::Service<http::Request<Body>> for CertificateService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != CREATE_CERTIFICATE {
                return Ok(Status::unimplemented("only CreateCertificate is served").into_http());
            }
            let codec = ProstCodec::<CertificateResponse, CertificateRequest>::default();
            Ok(Grpc::new(codec).unary(service, request).await)
        })
    }
}

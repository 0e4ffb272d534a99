//! `grpc.health.v1.Health/Check`, as a kubelet asks it: in plaintext.

use std::net::SocketAddr;

use http::uri::{Authority, PathAndQuery};
use prost::Message;
use tonic::client::Grpc;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use super::{Verdict, connect};
use crate::grpc::Channel;
use crate::tls::with_causes;

const METHOD: &str = "/grpc.health.v1.Health/Check";
/// The largest answer, in bytes; a true one has two.
const MAX_ANSWER: usize = 1024;

/// `grpc.health.v1.HealthCheckRequest`
#[derive(Clone, PartialEq, Message)]
pub(super) struct HealthCheckRequest {
    /// The service; all of the server where it is empty.
    #[prost(string, tag = "1")]
    pub(super) service: String,
}

/// `grpc.health.v1.HealthCheckResponse`
#[derive(Clone, PartialEq, Message)]
pub(super) struct HealthCheckResponse {
    /// A [`ServingStatus`].
    #[prost(enumeration = "ServingStatus", tag = "1")]
    pub(super) status: i32,
}

/// `grpc.health.v1.HealthCheckResponse.ServingStatus`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(super) enum ServingStatus {
    /// Not known.
    Unknown = 0,
    /// It serves.
    Serving = 1,
    /// It does not.
    NotServing = 2,
    /// There is no such service.
    ServiceUnknown = 3,
}

/// Asks the server at `address` about a service.
///
/// # Errors
/// Why there is no verdict of the application.
pub(super) async fn check(address: SocketAddr, service: &str) -> Result<Verdict, String> {
    let stream = connect(address).await?;
    let authority = Authority::try_from(address.to_string()).map_err(|error| error.to_string())?;
    let channel = Channel::over(stream, authority, None).await.map_err(|error| with_causes(&error))?;
    let mut client = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
    client.ready().await.map_err(|error| with_causes(&error))?;
    let request = Request::new(HealthCheckRequest { service: service.into() });
    let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let answer = client.unary(request, PathAndQuery::from_static(METHOD), codec).await;
    Ok(match answer {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Verdict::passed("the application says SERVING"),
            other => Verdict::failed(format!("the application says {}", name(other))),
        },
        // Its words are the application's, which are no one's business here.
        Err(status) => Verdict::failed(format!("the call ended with {}", code(status.code()))),
    })
}

fn name(status: ServingStatus) -> &'static str {
    match status {
        ServingStatus::Unknown => "UNKNOWN",
        ServingStatus::Serving => "SERVING",
        ServingStatus::NotServing => "NOT_SERVING",
        ServingStatus::ServiceUnknown => "SERVICE_UNKNOWN",
    }
}

fn code(code: Code) -> String {
    match code {
        Code::Unimplemented => "UNIMPLEMENTED: it does not serve grpc.health.v1.Health".into(),
        Code::NotFound => "NOT_FOUND: it does not know this service".into(),
        other => format!("{other:?}"),
    }
}

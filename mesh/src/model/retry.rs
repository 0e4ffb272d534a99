//! How long a request may take, and when it is tried again.

use std::time::Duration;

use http::HeaderName;
use serde::Serialize;

use super::HeaderMatch;

/// How long things may take; `None` takes the sidecar's default, zero means no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// From the end of the request to that of the response, with all attempts.
    pub request: Option<Duration>,
    /// Without a byte in either direction.
    pub idle: Option<Duration>,
    /// The whole life of the stream.
    pub max_stream: Option<Duration>,
    /// What holds of the time that a call of gRPC brings along; `None`: all of it, beside the other limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcTimeout>,
}

/// What holds of the time that a call of gRPC brings along (`grpc-timeout`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GrpcTimeout {
    /// At most so much of it; zero: all.
    pub max: Duration,
    /// So much is taken off, so that it is the sidecar that gives up first.
    pub offset: Duration,
    /// It stands for the limit on the whole request, also where a call brings none (Envoy's `max_grpc_timeout`); else for that
    /// on the life of the stream, where a call brings one.
    pub limits_request: bool,
}

impl GrpcTimeout {
    /// At most so much of it.
    pub fn at_most(max: Duration) -> Self {
        Self { max, offset: Duration::ZERO, limits_request: false }
    }
}

/// When a request is tried again.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryPolicy {
    /// On what.
    pub on: Vec<RetryOn>,
    /// On which statuses, with [`RetryOn::Status`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub statuses: Vec<u16>,
    /// On which headers of an answer, with [`RetryOn::Headers`]: one must match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// It is for requests that match one of these alone; empty: for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<HeaderMatch>,
    /// The most retries after the first attempt.
    pub attempts: u32,
    /// The limit on each attempt.
    pub per_try_timeout: Option<Duration>,
    /// How long, once the request is there, nothing may come of an attempt's answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_idle_timeout: Option<Duration>,
    /// The mean pause before the first retry; it doubles with each, with full jitter.
    pub backoff: Duration,
    /// The longest pause.
    pub max_backoff: Duration,
    /// By which headers an answer tells for how long to pause; `None`: by Retry-After, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limited: Option<RateLimitedBackoff>,
}

/// Pauses that an answer asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitedBackoff {
    /// The first that is there and can be read counts. Never empty.
    pub reset: Vec<ResetHeader>,
    /// What asks for longer than this is passed over.
    pub max: Duration,
}

/// A header that tells when to come back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResetHeader {
    /// Its name.
    #[serde(serialize_with = "super::route::header_name::serialize")]
    pub name: HeaderName,
    /// It holds a time, in seconds since 1970; else how many seconds to wait.
    pub is_time: bool,
}

/// What may be tried again, by Envoy's names (`retry_on`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// Any 5xx, or no response at all.
    #[serde(rename = "5xx")]
    ServerError,
    /// 502, 503 and 504, or no response at all.
    GatewayError,
    /// No response at all.
    Reset,
    /// The connection could not be made.
    ConnectFailure,
    /// The peer refused the stream unprocessed.
    RefusedStream,
    /// 409.
    #[serde(rename = "retriable-4xx")]
    Retriable4xx,
    /// A status of the policy's list.
    #[serde(rename = "retriable-status-codes")]
    Status,
    /// A header of the policy's list.
    #[serde(rename = "retriable-headers")]
    Headers,
    /// gRPC status 1.
    Cancelled,
    /// gRPC status 4.
    DeadlineExceeded,
    /// gRPC status 13.
    Internal,
    /// gRPC status 8.
    ResourceExhausted,
    /// gRPC status 14.
    Unavailable,
}

impl RetryOn {
    /// Every condition with its Envoy name.
    pub const ALL: [(Self, &'static str); 13] = [
        (Self::ServerError, "5xx"),
        (Self::GatewayError, "gateway-error"),
        (Self::Reset, "reset"),
        (Self::ConnectFailure, "connect-failure"),
        (Self::RefusedStream, "refused-stream"),
        (Self::Retriable4xx, "retriable-4xx"),
        (Self::Status, "retriable-status-codes"),
        (Self::Headers, "retriable-headers"),
        (Self::Cancelled, "cancelled"),
        (Self::DeadlineExceeded, "deadline-exceeded"),
        (Self::Internal, "internal"),
        (Self::ResourceExhausted, "resource-exhausted"),
        (Self::Unavailable, "unavailable"),
    ];
}

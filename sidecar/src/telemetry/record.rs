//! The facts of a request, an attempt and a connection, as their end reports them.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{AccessLog, CustomTag, TrafficDirection};

use super::metrics::{ClusterSeries, HttpSeries, TcpSeries};
use super::otlp::Spans;
use super::trace::TraceContext;
use crate::http::proxy::Downstream;

/// A request that has ended, whatever the number of attempts.
pub(crate) struct RequestRecord<'a> {
    /// Where it is counted.
    pub(crate) series: &'a HttpSeries,
    /// Which side of the application it was on.
    pub(crate) direction: TrafficDirection,
    /// Its own span: the server span inbound, the client span outbound. Exported where sampled.
    pub(crate) trace: Option<&'a TraceContext>,
    /// Where spans go.
    pub(crate) spans: Option<&'a Spans>,
    /// What stands on its span besides.
    pub(crate) tags: &'a [CustomTag],
    /// The log line that is asked for.
    pub(crate) access_log: Option<&'a AccessLog>,
    /// Uniform over `u32`, where the log is of a share of the requests.
    pub(crate) draw: u32,
    /// When its head had arrived.
    pub(crate) start: SystemTime,
    /// From then to the end of the response's body.
    pub(crate) duration: Duration,
    /// The head as it arrived, but for what the listener says of it.
    pub(crate) request: &'a http::request::Parts,
    /// The status that the client got; `None` when it went away before.
    pub(crate) status: Option<http::StatusCode>,
    /// The response's headers as sent; for the log.
    pub(crate) response_headers: Option<&'a http::HeaderMap>,
    /// The gRPC status, from headers or trailers.
    pub(crate) grpc_status: Option<u32>,
    /// Bytes of the request's body, and those from the client after an upgrade.
    pub(crate) request_bytes: u64,
    /// Bytes of the response's body, and those to the client after an upgrade.
    pub(crate) response_bytes: u64,
    /// Why the mesh answered itself or the response was cut short; `None` when the application's answer arrived whole.
    pub(crate) error: Option<Failure<'a>>,
    /// The route's name; empty where none matched.
    pub(crate) route: &'a str,
    /// The cluster's name; empty where none was chosen.
    pub(crate) cluster: &'a str,
    /// What the cluster is called in logs.
    pub(crate) cluster_alias: &'a str,
    /// The last endpoint that was tried.
    pub(crate) endpoint: Option<SocketAddr>,
    /// How many attempts were made.
    pub(crate) attempts: u32,
    /// Why there was no other attempt, where the rules had allowed one.
    pub(crate) retry_skipped: Option<RetrySkipped>,
    /// Whom the peer proved to be: the client inbound, the server outbound.
    pub(crate) peer: Option<&'a SpiffeId>,
    /// The client's address.
    pub(crate) client: SocketAddr,
    /// Who the client is, as far as proxies before it are believed.
    pub(crate) believed: SocketAddr,
    /// The client's connection.
    pub(crate) downstream: &'a Downstream,
}

/// Why a request that might have been tried again was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetrySkipped {
    /// Its body is longer than what is kept for another attempt.
    BodyTooLarge,
    /// The cluster's budget of retries is spent.
    Budget,
}

impl RetrySkipped {
    /// The value of the span's attribute.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::BodyTooLarge => "body_too_large",
            Self::Budget => "budget",
        }
    }
}

/// Why there is no (whole) answer of the application.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure<'a> {
    /// The RFC 9209 token, such as `connection_timeout`.
    pub(crate) token: &'static str,
    /// What Envoy calls it for short; `-` for what has no name there.
    pub(crate) flags: &'static str,
    /// What exactly, for people.
    pub(crate) details: &'a str,
}

/// One attempt of an outbound request.
pub(crate) struct AttemptRecord<'a> {
    /// Where it is counted.
    pub(crate) series: &'a ClusterSeries,
    /// The attempt's own span, a child of the request's.
    pub(crate) trace: Option<&'a TraceContext>,
    /// Where spans go.
    pub(crate) spans: Option<&'a Spans>,
    /// When it began.
    pub(crate) start: SystemTime,
    /// Until the end of the response's body, or until it failed.
    pub(crate) duration: Duration,
    /// What stands on its span besides.
    pub(crate) tags: &'a [CustomTag],
    /// The request's fields, as they came.
    pub(crate) headers: &'a http::HeaderMap,
    /// The request as it was sent.
    pub(crate) method: &'a http::Method,
    /// The authority that was asked.
    pub(crate) authority: &'a str,
    /// The path and query that were asked for.
    pub(crate) path: &'a str,
    /// 0 for the first, and one more with each retry.
    pub(crate) resend_count: u32,
    /// The answer's status.
    pub(crate) status: Option<http::StatusCode>,
    /// The answer's gRPC status.
    pub(crate) grpc_status: Option<u32>,
    /// Why there is no (whole) answer.
    pub(crate) error: Option<Failure<'a>>,
    /// The cluster's name.
    pub(crate) cluster: &'a str,
    /// The endpoint.
    pub(crate) endpoint: SocketAddr,
    /// Whom the endpoint proved to be.
    pub(crate) peer: Option<&'a SpiffeId>,
}

impl AttemptRecord<'_> {
    /// Whether the attempt failed as seen from the caller: no whole answer, 5xx, or a gRPC status that is the server's
    /// fault (OpenTelemetry's semantic conventions for RPC spans).
    pub(crate) fn failed(&self) -> bool {
        self.error.is_some()
            || self.status.is_none_or(|status| status.is_server_error())
            || self.grpc_status.is_some_and(grpc_server_fault)
    }
}

/// Whether a gRPC status is the server's fault: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and
/// DATA_LOSS.
pub(crate) fn grpc_server_fault(status: u32) -> bool {
    matches!(status, 2 | 4 | 12 | 13 | 14 | 15)
}

/// A TCP connection that has ended.
pub(crate) struct ConnectionRecord<'a> {
    /// Where it is counted.
    pub(crate) series: &'a TcpSeries,
    /// Which side of the application it was on.
    pub(crate) direction: TrafficDirection,
    /// The log line that is asked for.
    pub(crate) access_log: Option<&'a AccessLog>,
    /// Uniform over `u32`, where the log is of a share of the connections.
    pub(crate) draw: u32,
    /// When it was accepted.
    pub(crate) start: SystemTime,
    /// How long it lasted.
    pub(crate) duration: Duration,
    /// Bytes from the client.
    pub(crate) received: u64,
    /// Bytes to the client.
    pub(crate) sent: u64,
    /// How many of all these the kernel moved by itself.
    pub(crate) spliced: u64,
    /// Why it ended early.
    pub(crate) error: Option<Failure<'a>>,
    /// The cluster's name; empty where none was chosen.
    pub(crate) cluster: &'a str,
    /// The endpoint.
    pub(crate) endpoint: Option<SocketAddr>,
    /// Whom the peer proved to be.
    pub(crate) peer: Option<&'a SpiffeId>,
    /// The client's address.
    pub(crate) client: SocketAddr,
}

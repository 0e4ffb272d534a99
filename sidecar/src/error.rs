//! What can go wrong with a request, whose fault it is, and whether it is safe to try again.
//!
//! Every stage's own small error ends here, as a [`RequestError`]: the one thing that `http::respond` makes an answer of.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tulle_mesh::model::RateLimitAnswer;

use crate::balance::LimitReached;
use crate::http::body::BodyError;
use crate::upstream::{ConnectError, SendError};
use crate::worker::NoListener;

/// Why the mesh answers a request itself.
#[derive(Debug)]
pub(crate) enum RequestError {
    /// The request names no destination, or one that can't be parsed.
    Authority(String),
    /// The request's path can be read in two ways, and its listener refuses such.
    Path,
    /// The name of a header has an underscore, and its listener refuses such.
    Underscore,
    /// It asks to switch to a protocol of this name, which neither its route nor its listener allows.
    Upgrade(Box<str>),
    /// There is no configuration for the destination.
    NoListener(Box<str>, NoListener),
    /// The destination does not speak HTTP.
    NotHttp(Box<str>),
    /// The name of a destination outside the mesh does not resolve.
    Dns(Box<str>, String),
    /// The request came through this sidecar too often.
    Loop,
    /// No route is for the request.
    NoRoute,
    /// The route leads to a cluster that does not exist, or makes something that is no request.
    Configuration(StatusCode, String),
    /// The cluster has no endpoint.
    NoEndpoint(Box<str>),
    /// An authorization policy refuses it.
    Denied(String),
    /// A rate limit is reached.
    RateLimited(String, Duration, Arc<RateLimitAnswer>),
    /// The application has as much as it can do.
    Overload(String),
    /// A fault was injected.
    Fault(StatusCode, Option<u32>),
    /// A timeout: its name and value.
    Timeout(&'static str, Duration),
    /// A limit of the cluster is reached.
    Limit(LimitReached),
    /// The control plane has requests of the cluster refused.
    Dropped {
        /// What it calls that.
        category: Box<str>,
        /// All of them are.
        all: bool,
    },
    /// The last attempt failed.
    Attempt(SocketAddr, SendError),
    /// The client's own body failed.
    RequestBody(BodyError),
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The client's.
    Client,
    /// The mesh's configuration, or a policy.
    Mesh,
    /// The endpoint's, or that of the network to it.
    Endpoint,
}

impl RequestError {
    /// The HTTP status; Envoy's where it has the same error.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Authority(_) | Self::Path | Self::Underscore => StatusCode::BAD_REQUEST,
            Self::NoListener(_, NoListener::Unknown) | Self::NotHttp(_) | Self::Dns(..) | Self::Loop => {
                StatusCode::BAD_GATEWAY
            }
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Configuration(status, _) | Self::Fault(status, _) => *status,
            Self::Denied(_) | Self::Upgrade(_) => StatusCode::FORBIDDEN,
            Self::RateLimited(_, _, answer) => answer.status,
            Self::Timeout(..) => StatusCode::GATEWAY_TIMEOUT,
            Self::Attempt(_, SendError::Protocol(_) | SendError::Version(_)) => StatusCode::BAD_GATEWAY,
            Self::RequestBody(BodyError::Idle) => StatusCode::REQUEST_TIMEOUT,
            Self::RequestBody(_) | Self::Attempt(_, SendError::RequestBody(_) | SendError::Request(_)) => {
                StatusCode::BAD_REQUEST
            }
            Self::NoListener(_, NoListener::Unavailable)
            | Self::NoEndpoint(_)
            | Self::Overload(_)
            | Self::Limit(_)
            | Self::Dropped { .. }
            | Self::Attempt(..) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The error's token in RFC 9209's registry.
    pub(crate) fn token(&self) -> &'static str {
        match self {
            Self::Authority(_) | Self::Path | Self::Underscore | Self::RequestBody(_) => "http_request_error",
            Self::NoListener(_, NoListener::Unknown) | Self::NoRoute => "destination_not_found",
            Self::NoListener(_, NoListener::Unavailable) | Self::NoEndpoint(_) => "destination_unavailable",
            Self::NotHttp(_) | Self::Configuration(..) => "proxy_configuration_error",
            Self::Dns(..) => "dns_error",
            Self::Loop => "proxy_loop_detected",
            Self::Denied(_) | Self::RateLimited(..) => "http_request_denied",
            Self::Upgrade(_) => "http_upgrade_failed",
            Self::Overload(_) | Self::Limit(_) | Self::Dropped { .. } => "connection_limit_reached",
            Self::Fault(..) => "proxy_internal_response",
            Self::Timeout(..) => "http_response_timeout",
            Self::Attempt(_, error) => send_token(error),
        }
    }

    /// What Envoy's access logs call it for short (`RESPONSE_FLAGS`); `-` for what has no name there.
    pub(crate) fn flags(&self) -> &'static str {
        match self {
            Self::NoRoute => "NR",
            Self::NoListener(..) | Self::Configuration(..) => "NC",
            Self::NoEndpoint(_) => "UH",
            Self::RateLimited(..) => "RL",
            Self::Dropped { .. } => "DO",
            Self::Fault(..) => "FI",
            Self::Timeout(..) => "UT",
            Self::Overload(_) | Self::Limit(_) | Self::Attempt(_, SendError::Overflow(_)) => "UO",
            Self::RequestBody(_) | Self::Attempt(_, SendError::RequestBody(_)) => "DR",
            Self::Attempt(_, SendError::Connect(_)) => "UF",
            Self::Attempt(_, SendError::Protocol(_)) => "UPE",
            Self::Attempt(_, SendError::Reset(_) | SendError::NotProcessed(_)) => "UC",
            Self::Dns(..) => "DF",
            Self::Authority(_)
            | Self::Path
            | Self::Underscore
            | Self::Upgrade(_)
            | Self::NotHttp(_)
            | Self::Loop
            | Self::Denied(_)
            | Self::Attempt(_, SendError::Version(_) | SendError::Request(_)) => "-",
        }
    }

    /// What Envoy's access logs say of it (`RESPONSE_CODE_DETAILS`), without what follows in braces there; in other cases the token
    /// of RFC 9209.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::NoRoute => "route_not_found",
            Self::Upgrade(_) => "upgrade_failed",
            Self::Configuration(..) => "cluster_not_found",
            Self::NoEndpoint(_) => "no_healthy_upstream",
            Self::RateLimited(..) => "local_rate_limited",
            Self::Dropped { all: true, .. } => "unconditional_drop_overload",
            Self::Dropped { .. } => "drop_overload",
            Self::Fault(..) => "fault_filter_abort",
            Self::Timeout("perTry", _) => "upstream_per_try_timeout",
            Self::Timeout("perTryIdle", _) => "upstream_per_try_idle_timeout",
            Self::Timeout(..) => "response_timeout",
            Self::Attempt(
                _,
                SendError::Connect(_)
                | SendError::Protocol(_)
                | SendError::Reset(_)
                | SendError::NotProcessed(_)
                | SendError::Overflow(_),
            )
            | Self::Limit(_) => "upstream_reset_before_response_started",
            _ => self.token(),
        }
    }

    /// The gRPC status.
    pub(crate) fn grpc_status(&self) -> u32 {
        match self {
            Self::RateLimited(_, _, answer) if answer.resource_exhausted => GRPC_RESOURCE_EXHAUSTED,
            // Whatever the status is for others.
            Self::RateLimited(..) => GRPC_UNAVAILABLE,
            Self::Fault(status, grpc) => grpc.unwrap_or_else(|| grpc_of(*status)),
            // Not UNAVAILABLE, as in Envoy: clients take that for safe to try again, but the call may be under way.
            Self::Timeout(..) => GRPC_DEADLINE_EXCEEDED,
            Self::RequestBody(_) | Self::Attempt(_, SendError::RequestBody(_)) => GRPC_CANCELLED,
            Self::NoListener(..) | Self::Dns(..) | Self::NotHttp(_) | Self::Loop => GRPC_UNAVAILABLE,
            // To try again would change nothing.
            Self::Attempt(_, SendError::Version(_)) => GRPC_UNIMPLEMENTED,
            _ => grpc_of(self.status()),
        }
    }

    /// Whose fault it is.
    pub(crate) fn blame(&self) -> Blame {
        match self {
            Self::Authority(_)
            | Self::Underscore
            | Self::RequestBody(_)
            | Self::Attempt(_, SendError::RequestBody(_) | SendError::Request(_)) => Blame::Client,
            Self::Dns(..) | Self::NoEndpoint(_) | Self::Timeout(..) | Self::Attempt(..) => Blame::Endpoint,
            _ => Blame::Mesh,
        }
    }

    /// Whether the application has provably not seen the request, and another instance of it may take it: the calling
    /// sidecar may send it there, whatever its method.
    pub(crate) fn is_not_processed(&self) -> bool {
        match self {
            Self::Overload(_) | Self::NoEndpoint(_) | Self::Limit(_) => true,
            Self::Attempt(_, error) => is_not_processed(error),
            _ => false,
        }
    }
}

/// Whether the peer of a failed attempt has provably not seen the request.
pub(crate) fn is_not_processed(error: &SendError) -> bool {
    match error {
        SendError::Connect(_)
        | SendError::NotProcessed(_)
        | SendError::Version(_)
        | SendError::Overflow(_) => true,
        SendError::Reset(_) | SendError::Protocol(_) | SendError::Request(_) | SendError::RequestBody(_) => {
            false
        }
    }
}

/// gRPC's CANCELLED.
pub(crate) const GRPC_CANCELLED: u32 = 1;
/// gRPC's DEADLINE_EXCEEDED.
pub(crate) const GRPC_DEADLINE_EXCEEDED: u32 = 4;
/// gRPC's RESOURCE_EXHAUSTED.
pub(crate) const GRPC_RESOURCE_EXHAUSTED: u32 = 8;
/// gRPC's UNIMPLEMENTED.
pub(crate) const GRPC_UNIMPLEMENTED: u32 = 12;
/// gRPC's UNAVAILABLE.
pub(crate) const GRPC_UNAVAILABLE: u32 = 14;

/// gRPC's mapping of HTTP statuses (`http-grpc-status-mapping.md`).
pub(crate) fn grpc_of(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => GRPC_UNAVAILABLE,
        _ => 2,
    }
}

/// The RFC 9209 token of a failed attempt.
pub(crate) fn send_token(error: &SendError) -> &'static str {
    match error {
        SendError::Connect(error) => connect_token(error),
        SendError::NotProcessed(_) | SendError::Reset(_) => "connection_terminated",
        SendError::Protocol(_) => "http_protocol_error",
        SendError::Version(_) => "http_upgrade_failed",
        SendError::RequestBody(_) | SendError::Request(_) => "http_request_error",
        SendError::Overflow(_) => "connection_limit_reached",
    }
}

fn connect_token(error: &ConnectError) -> &'static str {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
    match error {
        ConnectError::Io(error) => match error.kind() {
            ConnectionRefused => "connection_refused",
            HostUnreachable | NetworkUnreachable => "destination_ip_unroutable",
            TimedOut => "connection_timeout",
            _ => "connection_terminated",
        },
        ConnectError::Timeout(_) => "connection_timeout",
        ConnectError::Tls(_) => "tls_protocol_error",
        ConnectError::Identity { .. } => "tls_certificate_error",
        ConnectError::NoCertificate => "proxy_internal_error",
        ConnectError::NotHttp2 { answered: true } => "http_protocol_error",
        ConnectError::NotHttp2 { answered: false } => "connection_terminated",
    }
}

/// The text is for the client too: it names the client's own destination and what is configured for it, and nothing of
/// other workloads.
impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authority(text) => write!(f, "{text:?} is not a host, or a host and a port"),
            Self::Path => f.write_str("the path holds an escaped slash"),
            Self::Underscore => f.write_str("the name of a header has an underscore"),
            Self::Upgrade(protocol) => write!(f, "a switch to {protocol:?} is not allowed here"),
            Self::NoListener(name, NoListener::Unknown) => write!(f, "the mesh knows no service {name:?}"),
            Self::NoListener(name, NoListener::Unavailable) => {
                write!(f, "the control plane has not yet said what {name:?} is")
            }
            Self::NotHttp(name) => write!(f, "{name:?} is configured as TCP; it can't be reached over HTTP"),
            Self::Dns(name, why) => write!(f, "{name:?} does not resolve: {why}"),
            Self::Loop => f.write_str("the request came through this sidecar before"),
            Self::NoRoute => f.write_str("no route matches"),
            Self::Configuration(_, what) | Self::Denied(what) | Self::RateLimited(what, ..) => {
                f.write_str(what)
            }
            Self::NoEndpoint(cluster) => write!(f, "{cluster} has no endpoint"),
            Self::Overload(what) => f.write_str(what),
            Self::Fault(..) => f.write_str("injected fault"),
            Self::Timeout(name, value) => write!(f, "the timeout {name}={value:?} is over"),
            Self::Limit(limit) => write!(f, "{limit}"),
            Self::Dropped { category, .. } => {
                write!(f, "the control plane has requests refused ({category})")
            }
            Self::Attempt(endpoint, error) => {
                write!(f, "{endpoint}: ")?;
                send_details(error, f)
            }
            Self::RequestBody(error) => write!(f, "the request's body: {}", body_details(error)),
        }
    }
}

fn send_details(error: &SendError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match error {
        SendError::Connect(ConnectError::Io(error)) => write!(f, "no connection: {error}"),
        SendError::Connect(ConnectError::Timeout(value)) => {
            write!(f, "the timeout connect={value:?} is over")
        }
        SendError::Connect(ConnectError::Tls(why)) => write!(f, "TLS handshake: {why}"),
        SendError::Connect(ConnectError::Identity { expected, presented }) => {
            write!(f, "the peer is {presented}, but {expected} was expected")
        }
        SendError::Connect(ConnectError::NoCertificate) => f.write_str("this sidecar has no certificate yet"),
        SendError::Connect(ConnectError::NotHttp2 { answered }) => {
            f.write_str(ConnectError::not_http2(*answered))
        }
        SendError::NotProcessed(why)
        | SendError::Reset(why)
        | SendError::Version(why)
        | SendError::Request(why) => f.write_str(why),
        SendError::Protocol(why) => write!(f, "not HTTP: {why}"),
        SendError::RequestBody(error) => write!(f, "the request's body: {}", body_details(error)),
        SendError::Overflow(limit) => write!(f, "{limit}"),
    }
}

/// What ended a body early.
pub(crate) fn body_details(error: &BodyError) -> &'static str {
    match error {
        BodyError::Truncated => "the connection ended in the middle",
        BodyError::Reset(_) => "the stream was reset",
        BodyError::Protocol(what) => what,
        BodyError::Idle => "nothing moved for too long",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(error: SendError) -> RequestError {
        RequestError::Attempt(SocketAddr::from(([127, 0, 0, 1], 80)), error)
    }

    #[test]
    fn statuses_and_tokens_are_those_of_envoy_and_the_standard() {
        let refused = ConnectError::Io(std::io::ErrorKind::ConnectionRefused.into());
        let table = [
            (RequestError::NoRoute, 404, 12, "destination_not_found"),
            (RequestError::NoListener("a".into(), NoListener::Unknown), 502, 14, "destination_not_found"),
            (
                RequestError::NoListener("a".into(), NoListener::Unavailable),
                503,
                14,
                "destination_unavailable",
            ),
            (RequestError::NoEndpoint("c".into()), 503, 14, "destination_unavailable"),
            (RequestError::Denied("no".into()), 403, 7, "http_request_denied"),
            (
                RequestError::RateLimited("l".into(), Duration::ZERO, Arc::default()),
                429,
                14,
                "http_request_denied",
            ),
            (RequestError::Overload("o".into()), 503, 14, "connection_limit_reached"),
            (RequestError::Timeout("request", Duration::from_secs(1)), 504, 4, "http_response_timeout"),
            (RequestError::Loop, 502, 14, "proxy_loop_detected"),
            (attempt(SendError::Connect(refused)), 503, 14, "connection_refused"),
            (attempt(SendError::Reset("closed")), 503, 14, "connection_terminated"),
            (attempt(SendError::Protocol("x".into())), 502, 14, "http_protocol_error"),
            (attempt(SendError::Version("x")), 502, 12, "http_upgrade_failed"),
            (attempt(SendError::Request("x")), 400, 13, "http_request_error"),
            (
                attempt(SendError::Connect(ConnectError::Timeout(Duration::ZERO))),
                503,
                14,
                "connection_timeout",
            ),
            (RequestError::Fault(StatusCode::IM_A_TEAPOT, Some(5)), 418, 5, "proxy_internal_response"),
            (RequestError::Fault(StatusCode::UNAUTHORIZED, None), 401, 16, "proxy_internal_response"),
        ];
        for (error, status, grpc, token) in table {
            let got = (error.status().as_u16(), error.grpc_status(), error.token());
            assert_eq!(got, (status, grpc, token), "{error:?}");
        }
    }

    #[test]
    fn only_what_provably_was_not_seen_is_marked_so() {
        assert!(attempt(SendError::NotProcessed("x")).is_not_processed());
        assert!(attempt(SendError::Connect(ConnectError::NoCertificate)).is_not_processed());
        assert!(attempt(SendError::Version("x")).is_not_processed());
        assert!(RequestError::Overload(String::new()).is_not_processed());
        for error in [SendError::Reset("x"), SendError::Protocol("x".into())] {
            assert!(!attempt(error).is_not_processed());
        }
        for error in [RequestError::Timeout("request", Duration::ZERO), RequestError::Denied("x".into())] {
            assert!(!error.is_not_processed());
        }
    }

    #[test]
    fn a_timeout_names_itself_and_its_value() {
        let error = RequestError::Timeout("request", Duration::from_millis(1500));
        assert_eq!(error.to_string(), "the timeout request=1.5s is over");
    }
}

//! What is recorded of requests: spans and log lines.

use http::HeaderName;
use serde::Serialize;

use super::{Format, HeaderMatch, PerMillion};

/// What of a listener's requests is traced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tracing {
    /// Which part of requests that arrive without a sampling decision is sampled.
    pub random_sampling: PerMillion,
    /// Which part of those is sampled in any case that ask for it by an `x-client-trace-id`.
    pub client_sampling: PerMillion,
    /// Which part of all these is left in the end.
    pub overall_sampling: PerMillion,
    /// The exporter's cluster, or `None` for the collector in the sidecar's own configuration.
    pub collector: Option<String>,
    /// What stands on spans besides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<CustomTag>,
}

/// An attribute of spans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CustomTag {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: TagValue,
}

/// What stands in an attribute of a span. Where that is nothing, the span has no such attribute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TagValue {
    /// This.
    Literal(String),
    /// A header of the request; never one that holds credentials.
    Header {
        /// Its name.
        #[serde(with = "super::route::header_name")]
        name: HeaderName,
        /// Where the request has none.
        default: String,
    },
}

/// A line per request, on standard output.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessLog {
    /// How a line is written.
    pub format: AccessLogFormat,
    /// Of which requests; `None`: of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<Box<LogFilter>>,
}

/// Of which requests there is a line.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LogFilter {
    /// Whose response's status is so; 0 where there is none.
    Status(Comparison),
    /// Which took so many milliseconds.
    Duration(Comparison),
    /// Which are no health checks: the sidecar takes none for one.
    NotHealthCheck,
    /// Which are traced.
    Traced,
    /// This part of them, drawn at random.
    Fraction(PerMillion),
    /// With such a header.
    Header(HeaderMatch),
    /// With one of these flags, or, where none is named, with any.
    Flags(Vec<String>),
    /// With one of these gRPC statuses, or, where `exclude` is set, with none of them.
    GrpcStatus {
        /// By number.
        statuses: Vec<u32>,
        /// All others are meant.
        exclude: bool,
    },
    /// For which all of these hold.
    All(Vec<LogFilter>),
    /// For which one of these holds.
    Any(Vec<LogFilter>),
}

/// How a number compares with another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Comparison {
    /// It is the same.
    Equal(u32),
    /// It is no less.
    AtLeast(u32),
    /// It is no more.
    AtMost(u32),
    /// It is another.
    Not(u32),
}

impl Comparison {
    /// Whether it holds for a number.
    pub fn holds(self, number: u64) -> bool {
        match self {
            Self::Equal(other) => number == u64::from(other),
            Self::AtLeast(other) => number >= u64::from(other),
            Self::AtMost(other) => number <= u64::from(other),
            Self::Not(other) => number != u64::from(other),
        }
    }
}

/// How an access log line is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum AccessLogFormat {
    /// One JSON object, with OpenTelemetry's attribute names.
    Json,
    /// Text, with Envoy's command operators (`%REQ(...)%`); empty: Envoy's default format.
    Text(Format),
}

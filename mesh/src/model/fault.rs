//! Injected failure, for tests of what depends on a service.

use std::time::Duration;

use http::StatusCode;
use serde::Serialize;

use super::{HeaderMatch, PerMillion};

/// What is done to requests on purpose. Each part has dice of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// A pause before the request goes on.
    pub delay: Option<FaultPart<Duration>>,
    /// An answer instead of the service's.
    pub abort: Option<FaultPart<FaultAbort>>,
    /// How fast the answer's body goes, in KiB a second, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<FaultPart<u64>>,
    /// Only for requests that meet all of these.
    pub applies_to: Vec<HeaderMatch>,
    /// Only for requests that go to this cluster; empty: to any, or to none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    /// Only for requests whose `x-envoy-downstream-service-node` is one of these; empty: for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// How many requests of the listener may suffer faults at once; those beyond go on unharmed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_active: Option<u32>,
}

/// How large a part of a fault is, and for which requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum FaultPart<T> {
    /// The same for all.
    Fixed {
        /// How long, what or how fast.
        value: T,
        /// For which part of the requests.
        fraction: PerMillion,
    },
    /// As a request asks for in its headers (`x-envoy-fault-...`).
    Asked(AskedShare),
}

impl<T> FaultPart<T> {
    /// The same for all requests of a part of them.
    pub fn fixed(value: T, fraction: PerMillion) -> Self {
        Self::Fixed { value, fraction }
    }
}

/// For which part of the requests that ask for a fault it is injected; they may ask for less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AskedShare {
    /// The most, and what holds where they say nothing.
    pub most: u32,
    /// What that, and what they say, are parts of.
    pub of: Whole,
}

impl AskedShare {
    /// What holds for a request that asks for so many parts of the whole.
    pub fn of(self, asked: Option<u32>) -> PerMillion {
        let parts = asked.map_or(self.most, |asked| asked.min(self.most));
        PerMillion(parts.saturating_mul(self.of.per_million()).min(PerMillion::ALL.0))
    }
}

/// How many parts make all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Whole {
    /// A hundred.
    Hundred,
    /// Ten thousand.
    TenThousand,
    /// A million.
    Million,
}

impl Whole {
    /// How many millionths a part is.
    pub fn per_million(self) -> u32 {
        match self {
            Self::Hundred => 10_000,
            Self::TenThousand => 100,
            Self::Million => 1,
        }
    }
}

/// An injected answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FaultAbort {
    /// The HTTP status.
    #[serde(serialize_with = "super::route::status::serialize")]
    pub status: StatusCode,
    /// The gRPC status for gRPC requests; `None`: mapped from the HTTP status.
    pub grpc_status: Option<u32>,
}

//! How a request is forwarded: to which of a route's backends, with what changes, and which copies of it are made.

use std::time::Duration;

use http::{HeaderName, StatusCode};
use serde::Serialize;

use super::route::{header_name, status};
use super::{
    FilterOverrides, HeaderMutations, PerMillion, RetryPolicy, RouteRateLimits, Session, Substitution,
    Timeouts, Upgrade,
};

/// How a request is forwarded.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Forward {
    /// One is chosen by weight for each request, and retries stay with it. Never empty.
    pub backends: Vec<Backend>,
    /// What it is chosen by.
    #[serde(skip_serializing_if = "Split::is_random")]
    pub split: Split,
    /// What a request to a cluster that does not exist gets: 503 (the default), 500 or 404.
    #[serde(with = "status")]
    pub unknown_cluster_status: StatusCode,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// When it is tried again beyond what is always safe; `None`: only that.
    pub retry: Option<RetryPolicy>,
    /// A new path.
    pub path_rewrite: Option<PathRewrite>,
    /// A new host.
    pub host_rewrite: Option<HostRewrite>,
    /// Where the host is a new one, the old one is told in X-Forwarded-Host.
    pub tell_original_host: bool,
    /// Copies, whose responses are thrown away.
    pub mirrors: Vec<Mirror>,
    /// What a hash goes by; the first that is terminal, once there is a value, ends the list.
    pub hash: Vec<HashPolicy>,
    /// What keeps the requests of a session together; it goes before weights and hashes.
    pub session: Option<Session>,
    /// What limits on the rate of requests see of them.
    #[serde(skip_serializing_if = "RouteRateLimits::is_empty")]
    pub rate_limits: RouteRateLimits,
    /// To what requests may switch, or may not; of what it does not name the listener says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub upgrades: Vec<Upgrade>,
}

impl Forward {
    /// To these, as the request is, and with the sidecar's defaults.
    pub fn new(backends: Vec<Backend>) -> Self {
        Self {
            backends,
            split: Split::Random,
            unknown_cluster_status: StatusCode::SERVICE_UNAVAILABLE,
            timeouts: Timeouts::default(),
            retry: None,
            path_rewrite: None,
            host_rewrite: None,
            tell_original_host: false,
            mirrors: Vec::new(),
            hash: Vec::new(),
            session: None,
            rate_limits: RouteRateLimits::default(),
            upgrades: Vec::new(),
        }
    }
}

/// What a backend is chosen by. Numbers below the first one's weight are for it, those from there on for the next, and so on, and
/// from the sum of all weights on from the start again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Split {
    /// Chance.
    #[default]
    Random,
    /// The number in this header; chance where there is none, or there are several.
    #[serde(serialize_with = "header_name::serialize")]
    Header(HeaderName),
    /// The request's hash; chance where it has none.
    Hash,
}

impl Split {
    fn is_random(&self) -> bool {
        *self == Self::Random
    }
}

/// A cluster and its share.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// The cluster's name.
    pub cluster: String,
    /// Its share of the sum of all weights.
    pub weight: u32,
    /// Changes to requests that go there.
    pub request_headers: HeaderMutations,
    /// Changes to responses from there.
    pub response_headers: HeaderMutations,
    /// A new host for its requests, unless the route has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_rewrite: Option<String>,
    /// What is said of the listener's filters, for requests that go there; it goes before what the route says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: FilterOverrides,
}

impl Backend {
    /// One that changes nothing.
    pub fn new(cluster: impl Into<String>, weight: u32) -> Self {
        Self {
            cluster: cluster.into(),
            weight,
            request_headers: HeaderMutations::default(),
            response_headers: HeaderMutations::default(),
            host_rewrite: None,
            filters: FilterOverrides::new(),
        }
    }
}

/// A new path for a forwarded or redirected request; the query stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathRewrite {
    /// In place of the whole path.
    Full(String),
    /// In place of the prefix that matched. `/` in place of a whole prefix leaves one slash (Gateway API
    /// `ReplacePrefixMatch`).
    Prefix(String),
    /// Each match of an expression is replaced, wherever it stands in the path.
    Regex(Substitution),
}

/// A new host for a forwarded request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HostRewrite {
    /// This one.
    Literal(String),
    /// The chosen endpoint's host name.
    Endpoint,
    /// The value of this header; without it, the host stays.
    #[serde(serialize_with = "header_name::serialize")]
    Header(HeaderName),
}

/// A copy of requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Where it goes.
    pub cluster: String,
    /// Of which part of the requests.
    pub fraction: PerMillion,
    /// What becomes of the host.
    pub host: MirrorHost,
    /// Changes to the copies, after those of the requests, one after the other.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<HeaderMutations>,
}

impl Mirror {
    /// Copies that are as their originals are.
    pub fn new(cluster: impl Into<String>, fraction: PerMillion) -> Self {
        Self { cluster: cluster.into(), fraction, host: MirrorHost::Kept, request_headers: Vec::new() }
    }
}

/// The host of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum MirrorHost {
    /// That of the original.
    Kept,
    /// The same with `-shadow` behind, in front of the port.
    Shadow,
    /// This one.
    Literal(String),
}

/// What a hash is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HashPolicy {
    /// A header's value.
    Header {
        /// Its name.
        #[serde(with = "header_name")]
        name: HeaderName,
        /// The value is rewritten before it counts.
        #[serde(skip_serializing_if = "Option::is_none")]
        rewrite: Option<Substitution>,
        /// Nothing after it counts once there is a value.
        terminal: bool,
    },
    /// A cookie's value; with `ttl` the mesh sets one where it is missing.
    Cookie {
        /// Its name.
        name: String,
        /// How long a cookie of the mesh lives; zero: for the session.
        ttl: Option<Duration>,
        /// Its path attribute.
        path: Option<String>,
        /// Its other attributes, each with its value, which may be empty.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        attributes: Vec<(String, String)>,
        /// Nothing after it counts once there is a value.
        terminal: bool,
    },
    /// The client's address.
    SourceIp {
        /// Nothing after it counts once there is a value.
        terminal: bool,
    },
    /// A query parameter's value.
    Query {
        /// Its name.
        name: String,
        /// Nothing after it counts once there is a value.
        terminal: bool,
    },
    /// What a filter has noted under a name. No filter of the sidecar notes anything: it yields no value.
    FilterState {
        /// The name.
        key: String,
        /// Nothing after it counts once there is a value.
        terminal: bool,
    },
}

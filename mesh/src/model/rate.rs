//! Limits on the rate of requests: token buckets, and what of a request tells which of them it takes from.

use std::time::Duration;

use http::StatusCode;
use serde::Serialize;

use super::{HeaderMatch, HeaderMutations, PerMillion, QueryMatch};

/// A token bucket, shared by all workers of the sidecar; a request that finds it empty gets 429 with `Retry-After`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalRateLimit {
    /// For metrics and for the answer's `Proxy-Status`.
    pub name: String,
    /// Only requests that match all of these take a token.
    pub applies_to: Vec<HeaderMatch>,
    /// Only requests of these clients (SPIFFE IDs; an ID ending in `*` is a prefix) take a token; empty: of all.
    pub clients: Vec<String>,
    /// Keep a bucket per client identity instead of one for all.
    pub per_client: bool,
    /// The bucket.
    pub bucket: TokenBucket,
    /// What a request gets that finds the bucket empty.
    pub answer: RateLimitAnswer,
    /// Which part of the requests takes a token at all.
    pub enabled: PerMillion,
    /// Which part of those that find the bucket empty is refused.
    pub enforced: PerMillion,
    /// Changes to the heads of those that are let through in spite of it.
    #[serde(skip_serializing_if = "HeaderMutations::is_empty")]
    pub not_enforced: HeaderMutations,
    /// Answers say how much is left, in `x-ratelimit-limit`, `-remaining` and `-reset` (draft-polli-ratelimit-headers-03).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tell: bool,
    /// Each downstream connection has buckets of its own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub per_connection: bool,
    /// More buckets, for requests that have descriptors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub descriptors: Option<Box<RateDescriptors>>,
}

impl LocalRateLimit {
    /// One that counts all requests.
    pub fn new(name: impl Into<String>, bucket: TokenBucket) -> Self {
        Self {
            name: name.into(),
            applies_to: Vec::new(),
            clients: Vec::new(),
            per_client: false,
            bucket,
            answer: RateLimitAnswer::default(),
            enabled: PerMillion::ALL,
            enforced: PerMillion::ALL,
            not_enforced: HeaderMutations::default(),
            tell: false,
            per_connection: false,
            descriptors: None,
        }
    }
}

/// How many requests may come at once, and how many from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenBucket {
    /// Its size, in requests, from 1.
    pub burst: u32,
    /// How many requests are put back every `fill_interval`, from 1.
    pub tokens_per_fill: u32,
    /// How often; never zero.
    pub fill_interval: Duration,
}

/// What a request gets that finds a bucket empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitAnswer {
    /// An HTTP status from 400.
    #[serde(serialize_with = "super::route::status::serialize")]
    pub status: StatusCode,
    /// A gRPC call ends with RESOURCE_EXHAUSTED instead of UNAVAILABLE.
    pub resource_exhausted: bool,
    /// Changes to the answer's head.
    pub headers: HeaderMutations,
}

impl Default for RateLimitAnswer {
    /// 429, and nothing besides.
    fn default() -> Self {
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            resource_exhausted: false,
            headers: HeaderMutations::default(),
        }
    }
}

/// Buckets for requests that have descriptors.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RateDescriptors {
    /// The buckets; no two have the same entries.
    pub buckets: Vec<DescriptorBucket>,
    /// What descriptors requests have; empty: what their routes say.
    pub rules: Vec<RateLimitRule>,
    /// Of what routes say, only this stage, from 0 to 10.
    pub stage: u32,
    /// What the virtual host says counts, too.
    pub of_host: HostRules,
    /// How many buckets there may be at once for the values of one that leaves some of them open; from 1.
    pub most_open: u32,
    /// A request that takes from one of these takes from the limit's own bucket as well.
    pub and_default: bool,
}

/// A bucket for the requests with one descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DescriptorBucket {
    /// Keys and values; an empty value stands for any, and each has a bucket of its own then. Never empty.
    pub entries: Vec<(String, String)>,
    /// The bucket.
    pub bucket: TokenBucket,
}

/// When the rules of a virtual host give descriptors to requests of a route that does not say so itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HostRules {
    /// Where the route has none.
    #[default]
    Override,
    /// Always.
    Include,
    /// Never.
    Ignore,
}

/// What a route says of its requests' descriptors.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteRateLimits {
    /// Each gives a request at most one descriptor.
    pub rules: Vec<RateLimitRule>,
    /// Those of the virtual host count, too.
    pub with_hosts: bool,
}

impl RouteRateLimits {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && !self.with_hosts
    }
}

/// How a descriptor is made: an entry for each action, or no descriptor where one of them has none.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitRule {
    /// Only limits of this stage see it, from 0 to 10.
    pub stage: u32,
    /// Never empty.
    pub actions: Vec<RateAction>,
}

/// What makes an entry of a descriptor.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RateAction {
    /// `source_cluster`: the sidecar's own cluster.
    SourceCluster,
    /// `destination_cluster`: the cluster that the request goes to.
    DestinationCluster,
    /// `remote_address`: the client's.
    RemoteAddress,
    /// `masked_remote_address`: the network of the client, as a prefix.
    MaskedRemoteAddress {
        /// The length of the prefix for IPv4.
        v4: u8,
        /// The same for IPv6.
        v6: u8,
    },
    /// A value of the configuration.
    GenericKey {
        /// The entry's key.
        key: String,
        /// Its value.
        value: String,
    },
    /// The value of a header.
    Header {
        /// Its name.
        name: String,
        /// The entry's key.
        key: String,
        /// Without the header there is just no entry.
        optional: bool,
    },
    /// The value of a query parameter.
    Query {
        /// Its name.
        name: String,
        /// The entry's key.
        key: String,
        /// Without the parameter there is just no entry.
        optional: bool,
    },
    /// A value of the configuration for requests with such headers.
    HeadersMatch {
        /// The entry's key.
        key: String,
        /// Its value.
        value: String,
        /// For requests that meet all of these; else for those that do not.
        expect: bool,
        /// The conditions.
        headers: Vec<HeaderMatch>,
    },
    /// The same for query parameters.
    QueryMatches {
        /// The entry's key.
        key: String,
        /// Its value.
        value: String,
        /// For requests that meet all of these; else for those that do not.
        expect: bool,
        /// The conditions.
        query: Vec<QueryMatch>,
    },
}

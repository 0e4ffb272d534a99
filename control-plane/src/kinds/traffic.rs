//! BackendTrafficPolicy: how clients talk to a Service.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, PolicyStatus, PolicyTarget, Rate};

/// How clients talk to a Service. What is not given keeps the mesh's default.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "tulle.dev", version = "v1alpha1", kind = "BackendTrafficPolicy", namespaced)]
#[kube(plural = "backendtrafficpolicies", status = "PolicyStatus", derive = "PartialEq")]
#[kube(doc = "How clients talk to a Service: load balancing, circuit breaking, retries, timeouts.")]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct BackendTrafficPolicySpec {
    /// The Services whose traffic this shapes; `sectionName` names a port.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<PolicyTarget>,
    /// How an endpoint is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancerSettings>,
    /// When an endpoint is left out for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierSettings>,
    /// How much may be in flight per client sidecar; what is above is answered with 503 at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// How much of the traffic may be retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_constraint: Option<RetryConstraint>,
    /// Requests of one client go to one endpoint, as long as it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<SessionPersistence>,
    /// Connections to endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<ConnectionSettings>,
    /// When a request is tried again; for routes to this Service that say nothing about it themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetrySettings>,
    /// How long a request may take; for routes to this Service that say nothing about it themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<TimeoutSettings>,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LoadBalancerSettings {
    /// By which rule; PeakEWMA where it is not given.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// What a request's hash is made of; for ConsistentHash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistent_hash: Option<ConsistentHash>,
}

/// By which rule an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// The less loaded of two drawn at random, by latency and requests in flight.
    #[default]
    #[serde(rename = "PeakEWMA")]
    PeakEwma,
    /// The one of two drawn at random with fewer requests in flight.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// At random.
    Random,
    /// By the request's hash, so that equal requests go to the same endpoint.
    ConsistentHash,
}

/// What a request's hash is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ConsistentHash {
    /// Of what.
    #[serde(rename = "type")]
    pub kind: HashType,
    /// The header; for `Header`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<NamedSource>,
    /// The cookie; for `Cookie`. The mesh does not set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<NamedSource>,
}

/// What a hash is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HashType {
    /// A header's value.
    Header,
    /// A cookie's value.
    Cookie,
    /// The client's address.
    #[serde(rename = "SourceIP")]
    SourceIp,
}

/// A header or a cookie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NamedSource {
    /// Its name.
    #[schemars(length(min = 1))]
    pub name: String,
}

/// When an endpoint is left out for a while. What is not given keeps the mesh's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OutlierSettings {
    /// After this many failures in a row; 0: never. 7 where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_errors: Option<u32>,
    /// How long at first; it doubles with each time. 1s where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_ejection_time: Option<Duration>,
    /// How long at most. 60s where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ejection_time: Option<Duration>,
    /// The most endpoints that are out at once, in percent; never the last one. 50 where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub max_ejection_percent: Option<u32>,
    /// By the share of requests that succeed; on, with the values below, where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRateSettings>,
}

/// Leaving out by success rate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SuccessRateSettings {
    /// Out below this, in percent; 0: never. 80 where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub minimum_percent: Option<u32>,
    /// Only with at least this many requests in the interval. 20 where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_requests: Option<u32>,
    /// The time over which requests count. 10s where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
}

/// How much may be in flight, per client sidecar. What is not given is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CircuitBreaker {
    /// Connections. A request that would need one more waits for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection; with `maxConnections`, 1024 where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pending_requests: Option<u32>,
    /// Requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrent_requests: Option<u32>,
}

/// How much of the traffic may be retries (the Gateway API's `XBackendTrafficPolicy`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RetryConstraint {
    /// The share of retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Retries that are allowed in any case; 10 in 1s where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_retry_rate: Option<Rate>,
}

/// The share of retries among requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Budget {
    /// Of the requests in the interval, in percent. 20 where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub percent: Option<u32>,
    /// The time over which requests count. 10s where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
}

/// Requests of a session stay at the endpoint that answered its first (GEP-1619). They leave it only when it is gone or ejected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SessionPersistence {
    /// The name of the cookie or header; `tulle-session` where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_name: Option<String>,
    /// Whether a cookie or a header carries the session; Cookie where it is not given.
    #[serde(default, rename = "type")]
    pub kind: PersistenceType,
    /// How long after its beginning a session ends; never where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub absolute_timeout: Option<Duration>,
    /// What is particular to cookies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie_config: Option<CookieConfig>,
}

/// What carries a session. The mesh puts it into an answer, and the client sends it back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PersistenceType {
    /// A cookie.
    #[default]
    Cookie,
    /// A header of the same name in answer and request.
    Header,
}

/// The cookie of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CookieConfig {
    /// How long the client keeps it; Session where it is not given.
    #[serde(default)]
    pub lifetime_type: CookieLifetime,
}

/// How long a client keeps the cookie of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CookieLifetime {
    /// As long as the client's own session.
    #[default]
    Session,
    /// For the time of absoluteTimeout.
    Permanent,
}

/// Connections to endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ConnectionSettings {
    /// The longest a connection may take to be ready, TLS included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<Duration>,
    /// Close a connection that is of no use for this long: one that is kept for the next request, or one of raw TCP on
    /// which nothing moves in either direction; 0s: never. 60s for HTTP/1, 5m for HTTP/2 and 1h for TCP where it is not
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// Give a request, a stream or a WebSocket up when nothing has moved in either direction for this long; 0s: never.
    /// 1h where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_idle_timeout: Option<Duration>,
}

/// When a request is tried again (the Gateway API's `HTTPRouteRetry`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RetrySettings {
    /// On these HTTP statuses, besides failures of the connection.
    #[serde(default)]
    pub codes: Vec<u16>,
    /// The most retries after the first attempt; 1 where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// The mean pause before the first retry; it doubles with each. 25ms where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Duration>,
}

/// How long a request may take (the Gateway API's `HTTPRouteTimeouts`); 0s means no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TimeoutSettings {
    /// With all attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Duration>,
    /// Each attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<Duration>,
}

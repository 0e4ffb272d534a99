//! Clusters: a set of endpoints, and how the sidecar talks to it.

use std::time::Duration;

use serde::Serialize;

use super::{Http2, LoadAssignment, StringMatch};

/// Where requests to one backend go, and under which limits. What is `None` takes the sidecar's default.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// `outbound|<port>|<subset>|<fqdn>`, `inbound|<port>||`, or any name under a foreign control plane.
    pub name: String,
    /// What it is called in logs and headers, where that is not its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Where the endpoints come from.
    pub discovery: Discovery,
    /// How one is chosen.
    pub load_balancer: LoadBalancer,
    /// The longest a connection may take to be ready, TLS included.
    pub connect_timeout: Option<Duration>,
    /// Close a pooled connection after this long without a request; zero: never.
    pub idle_timeout: Option<Duration>,
    /// Close a connection once it has carried so many requests; never 0.
    pub max_requests_per_connection: Option<u32>,
    /// How much may be in flight.
    pub limits: Limits,
    /// When an endpoint is left out for a while; `None`: never.
    pub outlier_detection: Option<OutlierDetection>,
    /// mTLS to endpoints that have an identity; `None`: plaintext to all.
    pub tls: Option<UpstreamTls>,
    /// Which HTTP the endpoints speak.
    pub protocol: UpstreamProtocol,
    /// Connections to endpoints that speak HTTP/2.
    #[serde(skip_serializing_if = "is_default")]
    pub http2: Http2,
    /// The endpoints of a priority are alike, wherever they are; else the weights of their localities hold.
    pub ignores_localities: bool,
    /// When health is not believed any more.
    pub panic: Panic,
    /// What the health of an endpoint may be that a session stays with.
    pub sessions: SessionHealth,
    /// How it is noticed that an endpoint is gone.
    #[serde(skip_serializing_if = "is_default")]
    pub keepalive: Keepalive,
    /// Which address of an endpoint with several is tried first.
    #[serde(skip_serializing_if = "is_default")]
    pub happy_eyeballs: HappyEyeballs,
}

/// For what is not worth a line in a dump.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Cluster {
    /// One in plaintext, with the sidecar's defaults for all that can be left to it, balanced by latency.
    pub fn new(name: impl Into<String>, discovery: Discovery) -> Self {
        Self {
            name: name.into(),
            alias: None,
            discovery,
            load_balancer: LoadBalancer::PeakEwma,
            connect_timeout: None,
            idle_timeout: None,
            max_requests_per_connection: None,
            limits: Limits::default(),
            outlier_detection: None,
            tls: None,
            protocol: UpstreamProtocol::Downstream,
            http2: Http2::default(),
            ignores_localities: false,
            panic: Panic::LAST_RESORT,
            sessions: SessionHealth::default(),
            keepalive: Keepalive::default(),
            happy_eyeballs: HappyEyeballs::default(),
        }
    }
}

/// Where a cluster's endpoints come from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Discovery {
    /// Fetched over EDS under this name.
    Eds(String),
    /// Written here.
    Static(LoadAssignment),
    /// All addresses that these names resolve to, looked up again as their TTL ends.
    StrictDns(Vec<HostPort>, DnsFamily),
    /// One endpoint, at an address that this name resolves to; old connections live on when it changes.
    LogicalDns(HostPort, DnsFamily),
    /// The address that the application dialled.
    OriginalDestination,
}

/// A host name and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    /// The name, or an address in text.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Which of a name's addresses count (Envoy's `dns_lookup_family`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum DnsFamily {
    /// Those of IPv6; where there is none, those of IPv4.
    #[default]
    Auto,
    /// Those of IPv4.
    V4Only,
    /// Those of IPv6.
    V6Only,
    /// Those of IPv4; where there is none, those of IPv6.
    V4Preferred,
    /// All.
    All,
}

/// How the kernel notices that the other end of a connection is gone without a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Keepalive {
    /// As the sidecar sees fit.
    #[default]
    Own,
    /// Not at all.
    Off,
    /// By probes. What is `None` is as the system has it.
    Probes {
        /// How many seconds nothing comes before the first.
        time: Option<u16>,
        /// How many seconds are between two.
        interval: Option<u16>,
        /// After how many without an answer the connection has failed.
        probes: Option<u8>,
    },
}

/// In which order the addresses of one endpoint are tried (RFC 8305, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HappyEyeballs {
    /// The family that is first; `None`: that of the first address.
    pub first: Option<IpFamily>,
    /// After so many of it comes one of the other; at least 1.
    pub count: u32,
}

impl Default for HappyEyeballs {
    /// By turns, beginning with the family of the first address.
    fn default() -> Self {
        Self { first: None, count: 1 }
    }
}

/// A version of the Internet protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// With which endpoints a session stays (Envoy's `override_host_status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionHealth {
    /// Healthy ones.
    pub healthy: bool,
    /// Those that take nothing else any more.
    pub draining: bool,
    /// Those that the control plane calls unhealthy, or that are left out for a while.
    pub unhealthy: bool,
}

impl Default for SessionHealth {
    /// Healthy ones alone.
    fn default() -> Self {
        Self { healthy: true, draining: false, unhealthy: false }
    }
}

/// When health is not believed any more, since too few endpoints would have to carry everything (Envoy's panic).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Panic {
    /// Where fewer endpoints of a priority than this are usable, in percent, and the priorities together can't take all
    /// requests, the others are used too. 0: never; 1: where nothing else is left, and then the better ones before the worse.
    pub threshold: u32,
    /// Where that is so, requests are refused instead.
    pub fails_requests: bool,
}

impl Panic {
    /// What is not usable is used where nothing else is left.
    pub const LAST_RESORT: Self = Self { threshold: 1, fails_requests: false };
}

/// How an endpoint is chosen among the healthy ones of the best priority.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LoadBalancer {
    /// The less loaded of two drawn at random, by latency (exponentially weighted, peak-sensitive) times requests in
    /// flight.
    PeakEwma,
    /// The one of `choices` drawn at random with the fewest requests in flight for its weight.
    LeastRequest {
        /// How many are drawn; at least 2.
        choices: u32,
        /// Where weights differ, an endpoint's share is its weight divided by one more than its requests in flight, to
        /// this power; at least 0.
        bias: f64,
    },
    /// One after the other, by weight.
    RoundRobin,
    /// At random, by weight.
    Random,
    /// By the request's hash, on a ring.
    RingHash {
        /// The least number of points on the ring.
        min_size: u64,
        /// The greatest.
        max_size: u64,
        /// What the points are placed by.
        function: HashFunction,
        /// What else it goes by.
        hashing: Hashing,
    },
    /// By the request's hash, in a table of which each endpoint has its share (Maglev).
    Maglev {
        /// How many entries the table has; a prime.
        table_size: u32,
        /// What else it goes by.
        hashing: Hashing,
    },
}

impl LoadBalancer {
    /// What it goes by besides a request's hash, where it goes by that.
    pub fn hashing(&self) -> Option<Hashing> {
        match self {
            Self::RingHash { hashing, .. } | Self::Maglev { hashing, .. } => Some(*hashing),
            Self::PeakEwma | Self::LeastRequest { .. } | Self::RoundRobin | Self::Random => None,
        }
    }
}

/// A function by which the points of a ring are placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HashFunction {
    /// XXH64.
    #[default]
    Xx,
    /// MurmurHash2, of 64 bits.
    Murmur2,
}

/// What a choice by hashes goes by besides those of the requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hashing {
    /// Endpoints are known by their host names, where they have them; else by their addresses.
    pub by_hostname: bool,
    /// The most requests that an endpoint may have in flight, in percent of its share of all; who has more is passed over. At
    /// least 100; `None`: there is no such bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balance_factor: Option<u32>,
}

/// How much may be in flight to a cluster, over all workers (Envoy's circuit breakers, default priority). What is
/// above is answered with 503 at once.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Connections.
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection.
    pub max_pending_requests: Option<u32>,
    /// Requests.
    pub max_requests: Option<u32>,
    /// Retries under way or in their pause. Set, it is in force beside the budget.
    pub max_retries: Option<u32>,
    /// The share of retries; `None`: the sidecar's default.
    pub retry_budget: Option<RetryBudget>,
}

/// The share of traffic that may be retries.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryBudget {
    /// Of the requests in the last `interval`, in percent.
    pub percent: f64,
    /// Allowed in any case, in retries per second.
    pub min_per_second: u32,
    /// The window over which requests count.
    pub interval: Duration,
}

/// When an endpoint is left out of the choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutlierDetection {
    /// After this many failures in a row (5xx, gRPC unavailable, no answer); 0: never.
    pub consecutive_failures: u32,
    /// With which probability it is left out then, in percent; else they are counted from 0 again.
    pub enforced_failures: u32,
    /// The same, where of answers only 502, 503 and 504 are failures.
    pub consecutive_gateway_failures: u32,
    /// With which probability it is left out then, in percent.
    pub enforced_gateway_failures: u32,
    /// By the share of failures; `None`: never.
    pub failure_percentage: Option<FailurePercentage>,
    /// By how far the share of successes is below that of the others; `None`: never.
    pub success_rate: Option<SuccessRate>,
    /// Over which time the two count; each such time in the choice also forgives one ejection.
    pub interval: Duration,
    /// How long at first; it doubles with each time.
    pub base_ejection_time: Duration,
    /// How long at most.
    pub max_ejection_time: Duration,
    /// Up to so much is added at random, so that those that failed together don't come back together.
    pub max_ejection_time_jitter: Duration,
    /// The most endpoints that are out at once, in percent, rounded down.
    pub max_ejection_percent: u32,
    /// One of several may be out whatever share that is.
    pub always_eject_one: bool,
    /// What is no answer counts apart from what is one, and by this; `None`: as an answer with a failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalOrigin>,
}

impl OutlierDetection {
    /// The mesh's own rule: 5 failures in a row, or more than half of at least 20 requests in 10 s; out for 1 s at first and 60 s at
    /// most; at most half of the endpoints.
    pub const MESH: Self = Self {
        consecutive_failures: 5,
        enforced_failures: 100,
        consecutive_gateway_failures: 0,
        enforced_gateway_failures: 0,
        failure_percentage: Some(FailurePercentage {
            threshold: 51,
            minimum_requests: 20,
            minimum_hosts: 1,
            enforced: 100,
        }),
        success_rate: None,
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(1),
        max_ejection_time: Duration::from_secs(60),
        max_ejection_time_jitter: Duration::from_millis(250),
        max_ejection_percent: 50,
        always_eject_one: true,
        local: None,
    };
}

/// Ejection by what is no answer: no connection, no whole answer, none in time. That there was a connection is a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalOrigin {
    /// After this many failures in a row; 0: never.
    pub consecutive_failures: u32,
    /// With which probability it is left out then, in percent.
    pub enforced_failures: u32,
    /// By the share of failures; `None`: never.
    pub failure_percentage: Option<FailurePercentage>,
    /// By how far the share of successes is below that of the others; `None`: never.
    pub success_rate: Option<SuccessRate>,
}

/// Ejection by the share of failures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailurePercentage {
    /// Out at this or above, in percent.
    pub threshold: u32,
    /// Only with at least this many requests in the interval.
    pub minimum_requests: u32,
    /// Only where so many endpoints have that many requests. With one, each is judged as soon as it has them, and not only at
    /// the interval's end.
    pub minimum_hosts: u32,
    /// With which probability it is left out then, in percent; else its requests are counted from 0 again.
    pub enforced: u32,
}

/// Ejection by comparison with the others, at the end of each interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SuccessRate {
    /// Out when further below the mean than this, in thousandths of the standard deviation.
    pub stdev_factor: u32,
    /// Only those with at least this many requests in the interval are compared.
    pub minimum_requests: u32,
    /// Only where so many can be compared.
    pub minimum_hosts: u32,
    /// With which probability it is left out then, in percent.
    pub enforced: u32,
}

/// The client end of a mesh connection. The certificate and the trust bundle are the workload's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamTls {
    /// The server name to ask for.
    pub sni: String,
    /// The peer's SPIFFE ID must match one of these, besides the ID pinned on its endpoint; empty: the pinned alone.
    pub subject_alt_names: Vec<StringMatch>,
    /// What is offered in ALPN; empty: by protocol.
    pub alpn: Vec<String>,
    /// Only endpoints marked as part of the mesh speak TLS (Envoy's `transport_socket_matches`); else all do.
    pub only_meshed_endpoints: bool,
}

/// Which HTTP the endpoints of a cluster speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum UpstreamProtocol {
    /// What the client spoke.
    Downstream,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, with prior knowledge in plaintext.
    Http2,
}

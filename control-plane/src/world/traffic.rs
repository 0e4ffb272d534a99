//! BackendTrafficPolicy, put into the model's terms.
//!
//! In: the policy of a Service's port. Out: what of it belongs to the cluster (load balancing, limits, outlier detection,
//! connections) and what to routes (retries, timeouts, hashing, sessions). What the policy leaves open stays open, so that
//! the sidecar's defaults hold, except where the model wants a whole: there the defaults are those of the design.

use std::time::Duration;

use http::HeaderName;
use tulle_mesh::model::{
    FailurePercentage, GrpcTimeout, HashFunction, HashPolicy, Hashing, HttpConnection, Limits, LoadBalancer,
    OutlierDetection, RetryBudget, RetryOn, RetryPolicy, Session, SessionCarrier, Timeouts,
};

use super::report::{Report, Subject};
use crate::kinds::{
    Algorithm, BackendTrafficPolicySpec, CookieLifetime, HashType, PersistenceType, RetrySettings,
    SessionPersistence, TimeoutSettings,
};

/// The size of a hash ring, in points (Envoy's defaults).
const RING: LoadBalancer = LoadBalancer::RingHash {
    min_size: 1024,
    max_size: 8 << 20,
    function: HashFunction::Xx,
    hashing: Hashing { by_hostname: false, balance_factor: None },
};

/// How an endpoint is chosen.
pub(super) fn load_balancer(policy: Option<&BackendTrafficPolicySpec>) -> LoadBalancer {
    match policy.and_then(|policy| policy.load_balancer.as_ref()).map(|settings| settings.algorithm) {
        Some(Algorithm::ConsistentHash) => RING,
        None | Some(Algorithm::PeakEwma) => LoadBalancer::PeakEwma,
        Some(Algorithm::LeastRequest) => LoadBalancer::LeastRequest { choices: 2, bias: 1.0 },
        Some(Algorithm::RoundRobin) => LoadBalancer::RoundRobin,
        Some(Algorithm::Random) => LoadBalancer::Random,
    }
}

/// How much may be in flight.
pub(super) fn limits(policy: Option<&BackendTrafficPolicySpec>) -> Limits {
    let breaker = policy.and_then(|policy| policy.circuit_breaker.clone()).unwrap_or_default();
    let retry_budget = policy.and_then(|policy| policy.retry_constraint.as_ref()).map(|constraint| {
        let budget = constraint.budget.clone().unwrap_or_default();
        let rate = constraint.min_retry_rate;
        let min_per_second =
            rate.map_or(10.0, |rate| f64::from(rate.count) / rate.interval.get().as_secs_f64().max(0.001));
        RetryBudget {
            percent: budget.percent.unwrap_or(20).into(),
            // At least one, where the rate is above none: the model counts in whole retries.
            min_per_second: min_per_second.ceil() as u32,
            interval: budget.interval.map_or(Duration::from_secs(10), |interval| interval.get()),
        }
    });
    Limits {
        max_connections: breaker.max_connections,
        max_pending_requests: breaker.max_pending_requests,
        max_requests: breaker.max_concurrent_requests,
        max_retries: None,
        retry_budget,
    }
}

/// When an endpoint is left out.
pub(super) fn outlier_detection(policy: Option<&BackendTrafficPolicySpec>) -> OutlierDetection {
    let Some(settings) = policy.and_then(|policy| policy.outlier_detection.as_ref()) else {
        return OutlierDetection::MESH;
    };
    let rate = settings.success_rate.clone().unwrap_or_default();
    let minimum_percent = rate.minimum_percent.unwrap_or(80);
    let time = |time: Option<crate::kinds::Duration>, default: u64| {
        time.map_or(Duration::from_secs(default), |time| time.get())
    };
    let base_ejection_time = time(settings.base_ejection_time, 1);
    let percent = settings.max_ejection_percent.unwrap_or(50);
    OutlierDetection {
        consecutive_failures: settings.consecutive_errors.unwrap_or(7),
        enforced_failures: 100,
        failure_percentage: (minimum_percent > 0).then(|| FailurePercentage {
            // Below 80 % succeed where 21 % fail: at 20 % they just suffice.
            threshold: 101 - minimum_percent.min(100),
            minimum_requests: rate.minimum_requests.unwrap_or(20),
            minimum_hosts: 1,
            enforced: 100,
        }),
        interval: time(rate.interval, 10),
        base_ejection_time,
        max_ejection_time: time(settings.max_ejection_time, 60),
        max_ejection_time_jitter: base_ejection_time / 4,
        // Of a hundred one stays, and so does the last of fewer.
        max_ejection_percent: percent.min(99),
        always_eject_one: percent > 0,
        ..OutlierDetection::MESH
    }
}

/// The most retries of a policy that does not say.
const ATTEMPTS: u32 = 1;
const BACKOFF: Duration = Duration::from_millis(25);

/// Retries and the limit on each attempt. What is always safe to repeat is repeated in any case; an author who writes
/// retries down also wants connections that broke to be tried again (GEP-1731).
pub(super) fn retry(
    settings: Option<&RetrySettings>,
    per_try_timeout: Option<Duration>,
) -> Option<RetryPolicy> {
    let per_try_timeout = per_try_timeout.filter(|limit| !limit.is_zero());
    if settings.is_none() && per_try_timeout.is_none() {
        return None;
    }
    let mut on = vec![RetryOn::ConnectFailure, RetryOn::RefusedStream];
    if settings.is_some() {
        on.push(RetryOn::Reset);
    }
    let statuses = settings.map(|settings| settings.codes.clone()).unwrap_or_default();
    if !statuses.is_empty() {
        on.push(RetryOn::Status);
    }
    let backoff = settings.and_then(|settings| settings.backoff).map_or(BACKOFF, |backoff| backoff.get());
    Some(RetryPolicy {
        headers: Vec::new(),
        request_headers: Vec::new(),
        rate_limited: None,
        on,
        statuses,
        attempts: settings.and_then(|settings| settings.attempts).unwrap_or(ATTEMPTS),
        per_try_timeout,
        per_try_idle_timeout: None,
        backoff,
        max_backoff: backoff.saturating_mul(10),
    })
}

/// Timeouts of a request: as the route says (`given`), else as the policy of the Service that was addressed.
pub(super) fn timeouts(
    given: Option<&TimeoutSettings>,
    policy: Option<&BackendTrafficPolicySpec>,
) -> Timeouts {
    let inherited = policy.and_then(|policy| policy.timeouts.as_ref());
    let request = given.into_iter().chain(inherited).find_map(|settings| settings.request);
    let request = request.map_or(Duration::ZERO, |request| request.get());
    Timeouts {
        // Envoy has a limit where nothing is said, and a proxyless client of gRPC knows no other limit than that on calls.
        request: Some(request),
        idle: stream_idle(policy),
        max_stream: None,
        grpc: (!request.is_zero()).then(|| GrpcTimeout::at_most(request)),
    }
}

/// How long a stream may be without movement.
pub(super) fn stream_idle(policy: Option<&BackendTrafficPolicySpec>) -> Option<Duration> {
    Some(policy?.connection.as_ref()?.stream_idle_timeout?.get())
}

/// What is said of it to a listener, which keeps a time of its own for all that no route does: it must not be the shorter
/// one of the two.
pub(super) fn longer_than_default(idle: Option<Duration>) -> Option<Duration> {
    idle.filter(|idle| idle.is_zero() || *idle > HttpConnection::MESH_STREAM_IDLE)
}

/// How long a connection may be of no use.
pub(super) fn idle(policy: Option<&BackendTrafficPolicySpec>) -> Option<Duration> {
    Some(policy?.connection.as_ref()?.idle_timeout?.get())
}

/// What a request's hash is made of, by the policy of the Service that it goes to.
pub(super) fn hash(
    policy: &BackendTrafficPolicySpec,
    subject: &Subject,
    report: &mut Report,
) -> Vec<HashPolicy> {
    let Some(balancer) = policy.load_balancer.as_ref() else { return Vec::new() };
    if balancer.algorithm != Algorithm::ConsistentHash {
        return Vec::new();
    }
    let field = "spec.loadBalancer.consistentHash";
    let Some(hash) = &balancer.consistent_hash else {
        let fix = "add consistentHash with a type";
        report.error(subject, field, "ConsistentHash needs to know what to hash", fix);
        return Vec::new();
    };
    let named = match hash.kind {
        HashType::SourceIp => return vec![HashPolicy::SourceIp { terminal: true }],
        HashType::Header => &hash.header,
        HashType::Cookie => &hash.cookie,
    };
    let Some(named) = named else {
        report.error(
            subject,
            field,
            "the name of what is hashed is missing",
            "add header or cookie, by the type",
        );
        return Vec::new();
    };
    match hash.kind {
        HashType::Header => header_hash(&named.name, subject, field, report).into_iter().collect(),
        _ => {
            vec![HashPolicy::Cookie {
                name: named.name.clone(),
                ttl: None,
                path: None,
                attributes: Vec::new(),
                terminal: true,
            }]
        }
    }
}

/// Why a session can't be kept: the part of the field, the reason, and what to do.
pub(super) type SessionFault = (&'static str, String, &'static str);

/// What keeps sessions at their endpoints.
pub(super) fn session(settings: &SessionPersistence) -> Result<Session, SessionFault> {
    let name = settings.session_name.clone().unwrap_or_else(|| "tulle-session".into());
    // The end of a session stands in its token in whole seconds.
    let lifetime = settings.absolute_timeout.map(|timeout| {
        Duration::from_secs(timeout.get().as_secs() + u64::from(timeout.get().subsec_nanos() > 0))
    });
    let lifetime = lifetime.filter(|lifetime| !lifetime.is_zero());
    let kept = settings.cookie_config.as_ref().map(|config| config.lifetime_type).unwrap_or_default();
    let carrier = match settings.kind {
        PersistenceType::Header => match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) => SessionCarrier::Header(name),
            Err(_) => {
                return Err((".sessionName", format!("{name:?} is not a header's name"), "correct the name"));
            }
        },
        // A cookie's name is a token, as a header's is.
        PersistenceType::Cookie if HeaderName::from_bytes(name.as_bytes()).is_err() => {
            return Err((".sessionName", format!("{name:?} is not a cookie's name"), "correct the name"));
        }
        PersistenceType::Cookie => {
            let permanent = kept == CookieLifetime::Permanent;
            if permanent && lifetime.is_none() {
                let reason = "a permanent cookie needs to know how long it lives".into();
                return Err(("", reason, "add absoluteTimeout"));
            }
            SessionCarrier::Cookie { name, path: "/".into(), permanent }
        }
    };
    Ok(Session { carrier, lifetime })
}

fn header_hash(name: &str, subject: &Subject, field: &str, report: &mut Report) -> Option<HashPolicy> {
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) => Some(HashPolicy::Header { name, rewrite: None, terminal: true }),
        Err(_) => {
            report.error(subject, field, format!("{name:?} is not a header's name"), "correct the name");
            None
        }
    }
}

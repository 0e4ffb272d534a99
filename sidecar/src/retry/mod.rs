//! Whether and when a request is tried again: pure rules over how an attempt ended.
//!
//! Without configuration only what is safe is tried again: a request that its peer provably has not seen, whatever its
//! method, and a request whose method or `Idempotency-Key` says that twice is as good as once, after a failure that the
//! mesh itself reports. An application's own answer is never tried again unless a policy says so. A hop that serves a
//! request which is itself a retry tries again only what was not seen, and counts it against its own budget, so that all
//! hops of a chain together add no more load than one may.

pub(crate) mod budget;
pub(crate) mod replay;

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use tulle_mesh::model::{RetryOn, RetryPolicy, TrafficDirection};
use tulle_mesh::route::RequestView;

/// The most retries of a request whose route has no policy.
const DEFAULT_RETRIES: u32 = 3;
/// The pause that the backoff of requests without a policy starts from, and where it ends (Envoy's defaults).
const DEFAULT_BACKOFF: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(250));

/// How an attempt ended, before anything of it was sent to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// There was no connection, or the peer's sidecar or protocol says that the request was not processed.
    NotProcessed {
        /// It was the connection that could not be made.
        connect: bool,
    },
    /// The connection ended, or what came was not HTTP; the peer may have processed the request.
    Reset,
    /// The attempt took longer than it may.
    TimedOut,
    /// There is an answer.
    Answer {
        /// Its status.
        status: StatusCode,
        /// Its gRPC status, where it is in the headers.
        grpc_status: Option<u32>,
        /// It is an answer of the mesh, not of the application.
        mesh_made: bool,
        /// A header of the answer is one of the policy's list.
        named: bool,
        /// How long the endpoint asks to wait.
        retry_after: Option<Duration>,
    },
}

/// What of a request and its route decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules<'a> {
    /// The route's policy.
    pub(crate) policy: Option<&'a RetryPolicy>,
    /// The policy is for this request, too.
    pub(crate) concerned: bool,
    /// Twice is as good as once.
    pub(crate) idempotent: bool,
    /// The request is itself a retry of the hop before.
    pub(crate) is_retry: bool,
    /// Which side of the application it is on.
    pub(crate) direction: TrafficDirection,
}

impl Rules<'_> {
    /// The pause before the next attempt, or `None` where there is none. `retries`: how many there were. `random` is
    /// uniform over `u64`.
    pub(crate) fn decide(&self, end: End, retries: u32, random: u64) -> Option<Duration> {
        let most = self.policy.map_or(DEFAULT_RETRIES, |policy| policy.attempts);
        let not_processed = matches!(end, End::NotProcessed { .. });
        let allowed = match self.direction {
            // Another instance can help where the connection to the application can't be made: the caller's sidecar
            // is told, and sends the request there.
            TrafficDirection::Inbound => matches!(end, End::NotProcessed { connect: false }),
            TrafficDirection::Outbound => {
                not_processed || (!self.is_retry && (self.is_safe_after(end) || self.policy_says(end)))
            }
        };
        if !allowed || retries >= most {
            return None;
        }
        let (base, max) = self.policy.map_or(DEFAULT_BACKOFF, |policy| (policy.backoff, policy.max_backoff));
        let pause = match not_processed && retries == 0 {
            // Elsewhere it may be well at once.
            true => Duration::ZERO,
            false => backoff(base, max, retries, random),
        };
        match end {
            End::Answer { retry_after: Some(asked), .. } => Some(pause.max(asked)),
            _ => Some(pause),
        }
    }

    fn is_safe_after(&self, end: End) -> bool {
        self.idempotent
            && match end {
                End::Reset => true,
                End::Answer { status, mesh_made, .. } => mesh_made && is_gateway_error(status),
                // An attempt only times out where a policy has a timeout for it.
                End::TimedOut => self.policy.is_some(),
                End::NotProcessed { .. } => true,
            }
    }

    fn policy_says(&self, end: End) -> bool {
        let Some(policy) = self.policy.filter(|_| self.concerned) else { return false };
        policy.on.iter().any(|on| match (on, end) {
            (RetryOn::ServerError, End::Answer { status, .. }) => status.is_server_error(),
            (RetryOn::GatewayError, End::Answer { status, .. }) => is_gateway_error(status),
            (RetryOn::Retriable4xx, End::Answer { status, .. }) => status == StatusCode::CONFLICT,
            (RetryOn::Status, End::Answer { status, .. }) => policy.statuses.contains(&status.as_u16()),
            (RetryOn::Headers, End::Answer { named, .. }) => named,
            (on, End::Answer { grpc_status: Some(grpc), .. }) => grpc_condition(*on) == Some(grpc),
            // Without an answer; Envoy makes a 504 or 503 of these, which the first two are for.
            (RetryOn::ServerError | RetryOn::GatewayError | RetryOn::Reset, End::Reset | End::TimedOut) => {
                true
            }
            _ => false,
        })
    }
}

/// Whether a request's method, or a key that its client gave it, says that twice is as good as once. PUT and DELETE are
/// idempotent by definition but often not in practice, and are left to policies.
pub(crate) fn is_idempotent(method: &Method, headers: &HeaderMap) -> bool {
    method.is_safe() || headers.contains_key("idempotency-key")
}

/// Whether a policy is for requests with such a head.
pub(crate) fn concerns(policy: Option<&RetryPolicy>, request: &RequestView<'_>) -> bool {
    policy.is_none_or(|policy| {
        let wanted = &policy.request_headers;
        wanted.is_empty() || wanted.iter().any(|wanted| wanted.matches(request.values(&wanted.name)))
    })
}

/// Whether an answer has one of the headers that a policy names.
pub(crate) fn is_named(policy: Option<&RetryPolicy>, headers: &HeaderMap) -> bool {
    policy.is_some_and(|policy| {
        policy.headers.iter().any(|wanted| {
            let values = headers.get_all(&wanted.name).iter();
            wanted.matches(values.map(|value| String::from_utf8_lossy(value.as_bytes())))
        })
    })
}

/// How long an answer asks to wait: by the headers that `policy` names, else by `Retry-After` in seconds; its dates are not
/// honoured, as the clocks may differ. `now` is the time since 1970.
pub(crate) fn retry_after(
    policy: Option<&RetryPolicy>,
    headers: &HeaderMap,
    now: impl FnOnce() -> Duration,
) -> Option<Duration> {
    let seconds =
        |name: &HeaderName| -> Option<u64> { headers.get(name)?.to_str().ok()?.trim().parse().ok() };
    let Some(limited) = policy.and_then(|policy| policy.rate_limited.as_ref()) else {
        return seconds(&RETRY_AFTER).map(Duration::from_secs);
    };
    let now = now();
    limited.reset.iter().find_map(|header| {
        let asked = Duration::from_secs(seconds(&header.name)?);
        let asked = if header.is_time { asked.checked_sub(now)? } else { asked };
        (asked <= limited.max).then_some(asked)
    })
}

fn is_gateway_error(status: StatusCode) -> bool {
    matches!(status.as_u16(), 502..=504)
}

/// The gRPC status that a condition is about.
fn grpc_condition(on: RetryOn) -> Option<u32> {
    match on {
        RetryOn::Cancelled => Some(1),
        RetryOn::DeadlineExceeded => Some(4),
        RetryOn::ResourceExhausted => Some(8),
        RetryOn::Internal => Some(13),
        RetryOn::Unavailable => Some(14),
        _ => None,
    }
}

/// Full jitter over an interval that about doubles with each retry: Envoy's `(2^n - 1) * base`, up to `max`.
fn backoff(base: Duration, max: Duration, retries: u32, random: u64) -> Duration {
    let doubled = base.saturating_mul((1u32 << (retries + 1).min(31)) - 1);
    doubled.min(max.max(base)).mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests;

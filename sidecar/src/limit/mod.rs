//! Limits on the rate and the number of requests that this workload takes.
//!
//! In: the head of each inbound request and who sent it. Out: whether it may pass, and if not, what to tell the client.
//! Health probes always pass. Nothing here waits, locks or reads a clock.

mod adaptive;
mod gradient;
mod rate;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::HttpFilter;
use tulle_mesh::route::RequestView;

pub(crate) use adaptive::Slot;

use adaptive::Adaptive;
use rate::RateLimit;

/// The rate and concurrency limits of an inbound listener.
#[derive(Default)]
pub(crate) struct RequestLimits {
    rates: Vec<Arc<RateLimit>>,
    adaptive: Option<Arc<Adaptive>>,
}

/// Why a request may not pass. It was not processed: to try it elsewhere is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal<'a> {
    /// Too many requests: 429.
    Rate {
        /// The limit's name.
        limit: &'a str,
        /// When to try again.
        retry_after: Duration,
    },
    /// The application has as much as it can do: 503.
    Concurrency {
        /// How many requests it works on.
        at_once: u32,
    },
}

impl RequestLimits {
    /// The limits among `filters`. Those that are as they were in `previous` keep their counts.
    pub(crate) fn build(filters: &[HttpFilter], previous: Option<&Self>) -> Self {
        Self::build_at(filters, previous, Instant::now(), fastrand::u64(..))
    }

    fn build_at(filters: &[HttpFilter], previous: Option<&Self>, now: Instant, seed: u64) -> Self {
        let mut limits = Self::default();
        for filter in filters {
            match filter {
                HttpFilter::LocalRateLimit(model) => {
                    let before =
                        previous.and_then(|limits| limits.rates.iter().find(|old| old.model == *model));
                    let new = || Arc::new(RateLimit::new(model.clone(), now, seed));
                    limits.rates.push(before.cloned().unwrap_or_else(new));
                }
                HttpFilter::AdaptiveConcurrency(model) => {
                    let before = previous.and_then(|limits| limits.adaptive.as_ref());
                    let before = before.filter(|old| old.model == *model);
                    let new = || Arc::new(Adaptive::new(model.clone(), now));
                    limits.adaptive = Some(before.cloned().unwrap_or_else(new));
                }
                HttpFilter::Authorization(_) | HttpFilter::Fault(_) => {}
            }
        }
        limits
    }

    /// Lets a request through: with a slot at the application where concurrency is limited.
    ///
    /// # Errors
    /// When a limit is reached. A token that an earlier limit gave is spent then.
    pub(crate) fn admit<'a>(
        &'a self,
        request: &RequestView<'_>,
        client: Option<&SpiffeId>,
        now: Instant,
    ) -> Result<Option<Slot>, Refusal<'a>> {
        if (self.rates.is_empty() && self.adaptive.is_none()) || is_probe(request) {
            return Ok(None);
        }
        for rate in self.rates.iter().filter(|rate| rate.concerns(request, client)) {
            rate.take(client, now)
                .map_err(|retry_after| Refusal::Rate { limit: &rate.model.name, retry_after })?;
        }
        let Some(adaptive) = &self.adaptive else { return Ok(None) };
        adaptive.admit(now).map(Some).map_err(|at_once| Refusal::Concurrency { at_once })
    }
}

/// Whether a request asks for the application's health: from the kubelet or a load balancer by its user agent, or by
/// gRPC's health protocol. To refuse it would have the application restarted for being busy.
fn is_probe(request: &RequestView<'_>) -> bool {
    let agent = request.headers.get(http::header::USER_AGENT).map(http::HeaderValue::as_bytes);
    let agents: [&[u8]; 3] = [b"kube-probe/", b"GoogleHC/", b"ELB-HealthChecker/"];
    agent.is_some_and(|agent| agents.iter().any(|known| agent.starts_with(known)))
        || request.path.starts_with("/grpc.health.v1.Health/")
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate { limit, .. } => write!(f, "the rate limit {limit:?} is reached"),
            Self::Concurrency { at_once } => {
                write!(f, "overload: {at_once} requests are at work, as many as the adaptive limit allows")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, HeaderValue, Method};
    use tulle_mesh::model::{AdaptiveConcurrency, LocalRateLimit};

    fn filters(burst: u32) -> Vec<HttpFilter> {
        vec![
            HttpFilter::LocalRateLimit(LocalRateLimit {
                name: "shop/cart".into(),
                applies_to: Vec::new(),
                clients: Vec::new(),
                per_client: false,
                burst,
                tokens_per_fill: 1,
                fill_interval: Duration::from_secs(1),
            }),
            HttpFilter::AdaptiveConcurrency(AdaptiveConcurrency {
                min_concurrency: 1,
                max_concurrency: 1,
                update_interval: Duration::from_millis(100),
            }),
        ]
    }

    #[test]
    fn refusals_name_their_limit_and_probes_always_pass() {
        let now = Instant::now();
        let limits = RequestLimits::build_at(&filters(2), None, now, 1);
        let mut headers = HeaderMap::new();
        let plain = headers.clone();
        let request = RequestView::new(&Method::GET, "a", "/", &plain);
        let slot = limits.admit(&request, None, now).expect("room").expect("limited");
        slot.arrived(now);
        let busy = limits.admit(&request, None, now).err();
        assert_eq!(busy, Some(Refusal::Concurrency { at_once: 1 }));
        let limited = limits.admit(&request, None, now).err().expect("no token left");
        assert!(matches!(limited, Refusal::Rate { limit: "shop/cart", .. }), "{limited:?}");
        assert!(limited.to_string().contains("shop/cart"));

        headers.insert("user-agent", HeaderValue::from_static("kube-probe/1.33"));
        let probe = RequestView::new(&Method::GET, "a", "/healthz", &headers);
        assert!(limits.admit(&probe, None, now).expect("exempt").is_none());
        let health = RequestView::new(&Method::POST, "a", "/grpc.health.v1.Health/Check", &plain);
        assert!(limits.admit(&health, None, now).expect("exempt").is_none());
    }

    #[test]
    fn counts_stay_while_the_limit_does() {
        let now = Instant::now();
        let first = RequestLimits::build_at(&filters(1)[..1], None, now, 1);
        let headers = HeaderMap::new();
        let request = RequestView::new(&Method::GET, "a", "/", &headers);
        assert!(first.admit(&request, None, now).is_ok());
        let same = RequestLimits::build_at(&filters(1)[..1], Some(&first), now, 1);
        assert!(same.admit(&request, None, now).is_err());
        let other = RequestLimits::build_at(&filters(5)[..1], Some(&first), now, 1);
        assert!(other.admit(&request, None, now).is_ok());
    }
}

//! Limits on the rate and the number of requests that this workload takes.
//!
//! In: the head of each inbound request and who sent it. Out: whether it may pass, and if not, what to tell the client.
//! Health probes pass however busy the application is; a rate holds for everybody. Nothing here waits, locks or reads a
//! clock.

mod adaptive;
mod gradient;
mod rate;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{FilterOverride, RateLimitAnswer};
use tulle_mesh::route::{RequestView, Step};

pub(crate) use adaptive::Slot;

use crate::http::Active;
use adaptive::Adaptive;
use rate::RateLimit;

/// The rate and concurrency limits that requests pass on one way through a listener.
#[derive(Default)]
pub(crate) struct RequestLimits {
    rates: Vec<Arc<RateLimit>>,
    adaptive: Option<Arc<Adaptive>>,
}

/// All limits of a listener. Those that stay as they were keep their counts, and what several routes share is counted for all.
#[derive(Default)]
pub(crate) struct Counts {
    rates: Vec<Arc<RateLimit>>,
    adaptive: Vec<Arc<Adaptive>>,
    /// How many requests have faults.
    pub(crate) faults: Active,
}

impl Counts {
    /// Those of a listener's next version, so far.
    pub(crate) fn after(before: Option<&Self>) -> Self {
        Self { faults: before.map(|before| before.faults.clone()).unwrap_or_default(), ..Self::default() }
    }
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
        /// What the client gets.
        answer: &'a Arc<RateLimitAnswer>,
    },
    /// The application has as much as it can do: 503.
    Concurrency {
        /// How many requests it works on.
        at_once: u32,
    },
}

impl RequestLimits {
    /// The limits among `steps`. `before` are those of the listener's last version, `counts` those of this one so far.
    pub(crate) fn build(
        steps: &[(Step<'_>, Option<&Arc<FilterOverride>>)],
        before: Option<&Counts>,
        counts: &mut Counts,
    ) -> Self {
        Self::build_at(steps, before, counts, Instant::now(), fastrand::u64(..))
    }

    fn build_at(
        steps: &[(Step<'_>, Option<&Arc<FilterOverride>>)],
        before: Option<&Counts>,
        counts: &mut Counts,
        now: Instant,
        seed: u64,
    ) -> Self {
        let mut limits = Self::default();
        for (step, by) in steps {
            match step {
                Step::LocalRateLimit(model) => {
                    let same = |known: &&Arc<RateLimit>| known.is(model, *by);
                    let known = counts.rates.iter().find(same).cloned();
                    let rate = known.unwrap_or_else(|| {
                        let before = before.and_then(|before| before.rates.iter().find(same));
                        let rate = before.cloned().unwrap_or_else(|| {
                            Arc::new(RateLimit::new((*model).clone(), by.map(Arc::clone), now, seed))
                        });
                        counts.rates.push(Arc::clone(&rate));
                        rate
                    });
                    limits.rates.push(rate);
                }
                Step::AdaptiveConcurrency(model) => {
                    let same = |known: &&Arc<Adaptive>| known.model == **model;
                    let known = counts.adaptive.iter().find(same).cloned();
                    let adaptive = known.unwrap_or_else(|| {
                        let before = before.and_then(|before| before.adaptive.iter().find(same));
                        let adaptive =
                            before.cloned().unwrap_or_else(|| Arc::new(Adaptive::new((*model).clone(), now)));
                        counts.adaptive.push(Arc::clone(&adaptive));
                        adaptive
                    });
                    limits.adaptive = Some(adaptive);
                }
                Step::Authorization(_) | Step::Fault(_) => {}
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
        for rate in self.rates.iter().filter(|rate| rate.concerns(request, client)) {
            rate.take(client, now).map_err(|retry_after| Refusal::Rate {
                limit: &rate.model.name,
                retry_after,
                answer: &rate.answer,
            })?;
        }
        let adaptive = self.adaptive.as_ref().filter(|_| !is_probe(request, client));
        let Some(adaptive) = adaptive else { return Ok(None) };
        adaptive.admit(now).map(Some).map_err(|at_once| Refusal::Concurrency { at_once })
    }
}

/// Whether a request asks for the application's health: from the kubelet or a load balancer by its user agent, or by
/// gRPC's health protocol. To refuse it would have the application restarted for being busy. A workload of the mesh is
/// neither kubelet nor load balancer, whatever it calls itself.
fn is_probe(request: &RequestView<'_>, client: Option<&SpiffeId>) -> bool {
    let agent = request.headers.get(http::header::USER_AGENT).filter(|_| client.is_none());
    let agent = agent.map(http::HeaderValue::as_bytes);
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
    use tulle_mesh::model::{AdaptiveConcurrency, HttpFilter, LocalRateLimit};
    use tulle_mesh::route::steps;

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
                answer: RateLimitAnswer::default(),
            }),
            HttpFilter::AdaptiveConcurrency(AdaptiveConcurrency {
                min_concurrency: 1,
                max_concurrency: 1,
                update_interval: Duration::from_millis(100),
            }),
        ]
    }

    fn limits(filters: &[HttpFilter], before: Option<&Counts>, now: Instant) -> (RequestLimits, Counts) {
        let mut counts = Counts::default();
        let limits = RequestLimits::build_at(&steps(filters, &[]), before, &mut counts, now, 1);
        (limits, counts)
    }

    #[test]
    fn refusals_name_their_limit_and_probes_pass_a_busy_application() {
        let now = Instant::now();
        let (limits, _) = limits(&filters(5), None, now);
        let mut headers = HeaderMap::new();
        let plain = headers.clone();
        let request = RequestView::new(&Method::GET, "a", "/", &plain);
        let slot = limits.admit(&request, None, now).expect("room").expect("limited");
        slot.arrived(now);
        let busy = limits.admit(&request, None, now).err();
        assert_eq!(busy, Some(Refusal::Concurrency { at_once: 1 }));

        headers.insert("user-agent", HeaderValue::from_static("kube-probe/1.33"));
        let probe = RequestView::new(&Method::GET, "a", "/healthz", &headers);
        assert!(limits.admit(&probe, None, now).expect("exempt").is_none());
        let health = RequestView::new(&Method::POST, "a", "/grpc.health.v1.Health/Check", &plain);
        assert!(limits.admit(&health, None, now).expect("exempt").is_none());
        let web = "spiffe://mesh.test/ns/shop/sa/web".parse().expect("valid");
        let busy = limits.admit(&probe, Some(&web), now).err();
        assert_eq!(
            busy,
            Some(Refusal::Concurrency { at_once: 1 }),
            "a workload that says that it is the kubelet"
        );
        let limited = limits.admit(&probe, None, now).err().expect("no token left, for probes neither");
        assert!(matches!(limited, Refusal::Rate { limit: "shop/cart", .. }), "{limited:?}");
        assert!(limited.to_string().contains("shop/cart"));
    }

    #[test]
    fn counts_stay_while_the_limit_does() {
        let now = Instant::now();
        let (first, counts) = limits(&filters(1)[..1], None, now);
        let headers = HeaderMap::new();
        let request = RequestView::new(&Method::GET, "a", "/", &headers);
        assert!(first.admit(&request, None, now).is_ok());
        let (same, counts) = limits(&filters(1)[..1], Some(&counts), now);
        assert!(same.admit(&request, None, now).is_err());
        let (other, _) = limits(&filters(5)[..1], Some(&counts), now);
        assert!(other.admit(&request, None, now).is_ok());
    }

    #[test]
    fn routes_share_what_is_said_once_and_not_what_is_said_twice() {
        use tulle_mesh::model::{FilterSettings, ReplaceableFilter};
        let now = Instant::now();
        let [HttpFilter::LocalRateLimit(limit), ..] = &filters(1)[..] else { panic!() };
        let settings = FilterSettings::LocalRateLimit(Some(limit.clone()));
        let replaceable =
            ReplaceableFilter { name: "limit".into(), disabled: false, settings: settings.clone() };
        let chain = [HttpFilter::Replaceable(replaceable)];
        let said = || Arc::new(FilterOverride { filter: "limit".into(), settings: Some(settings.clone()) });
        let (one, two) = ([said()], [said()]);
        let mut counts = Counts::default();
        let build = |said: &[&[Arc<FilterOverride>]], before: Option<&Counts>, counts: &mut Counts| {
            RequestLimits::build_at(&steps(&chain, said), before, counts, now, 1)
        };
        let headers = HeaderMap::new();
        let request = RequestView::new(&Method::GET, "a", "/", &headers);
        let passes = |limits: &RequestLimits| limits.admit(&request, None, now).is_ok();
        let own = build(&[], None, &mut counts);
        let first = build(&[&one], None, &mut counts);
        let beside = build(&[&one], None, &mut counts);
        let second = build(&[&two], None, &mut counts);
        assert!(passes(&own) && passes(&first) && !passes(&beside) && passes(&second));
        // What nobody has changed goes on counting.
        let mut later = Counts::default();
        assert!(!passes(&build(&[&two], Some(&counts), &mut later)));
        assert!(passes(&build(&[&[said()]], Some(&counts), &mut later)));
    }
}

//! Limits on the rate and the number of requests that this workload takes.
//!
//! In: the head of each inbound request and who sent it. Out: whether it may pass, and if not, what to tell the client.
//! Health probes pass however busy the application is; a rate holds for everybody. Nothing here waits, locks or reads a
//! clock.

mod adaptive;
mod bucket;
mod descriptors;
mod gradient;
mod rate;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{
    FilterOverride, HeaderMutations, PerMillion, RateAction, RateLimitAnswer, RateLimitRule,
};
use tulle_mesh::route::{RequestView, Step};

pub(crate) use adaptive::Slot;
pub(crate) use descriptors::Said;
pub(crate) use rate::{ConnectionBuckets, Tokens};

use crate::http::Active;
use adaptive::Adaptive;
use descriptors::Asked;
use rate::RateLimit;

/// The rate and concurrency limits that requests pass on one way through a listener.
#[derive(Default)]
pub(crate) struct RequestLimits {
    rates: Vec<Rate>,
    adaptive: Option<Arc<Adaptive>>,
}

/// A limit, and the rules that give descriptors to requests of one route.
struct Rate {
    limit: Arc<RateLimit>,
    rules: Vec<RateLimitRule>,
}

/// What limits see of a request.
pub(crate) struct Asking<'a, C, D> {
    /// Its head.
    pub(crate) view: RequestView<'a>,
    /// Whom its client proved to be.
    pub(crate) identity: Option<&'a SpiffeId>,
    /// The cluster that it goes to, where that is known.
    pub(crate) cluster: Option<&'a str>,
    /// Tells the client's address.
    pub(crate) client: C,
    /// The buckets of its connection.
    pub(crate) connection: &'a ConnectionBuckets,
    /// When it came.
    pub(crate) now: Instant,
    /// Numbers uniform over `u32`.
    pub(crate) draw: D,
}

/// What limits say besides whether a request may pass.
#[derive(Default)]
pub(crate) struct Told {
    /// Changes to its head, since it passes although a bucket is empty.
    pub(crate) passed: Vec<Arc<HeaderMutations>>,
    /// What its answer tells of buckets.
    pub(crate) tokens: Vec<Tokens>,
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
    /// `said` is what the route says of its requests' descriptors, `source` the sidecar's own cluster.
    pub(crate) fn build(
        steps: &[(Step<'_>, Option<&Arc<FilterOverride>>)],
        said: Said<'_>,
        source: &str,
        before: Option<&Counts>,
        counts: &mut Counts,
    ) -> Self {
        let mut limits = Self::build_at(steps, said, before, counts, Instant::now(), fastrand::u64(..));
        for action in
            limits.rates.iter_mut().flat_map(|rate| &mut rate.rules).flat_map(|rule| &mut rule.actions)
        {
            if *action == RateAction::SourceCluster {
                *action = RateAction::GenericKey { key: "source_cluster".into(), value: source.into() };
            }
        }
        limits
    }

    /// Whether any of them has to know where a request goes.
    pub(crate) fn names_cluster(&self) -> bool {
        let mut actions = self.rates.iter().flat_map(|rate| &rate.rules).flat_map(|rule| &rule.actions);
        actions.any(|action| *action == RateAction::DestinationCluster)
    }

    fn build_at(
        steps: &[(Step<'_>, Option<&Arc<FilterOverride>>)],
        said: Said<'_>,
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
                    let rules = model.descriptors.as_ref().map(|model| said.rules(model)).unwrap_or_default();
                    limits.rates.push(Rate { limit: rate, rules });
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
                Step::Authorization(_) | Step::Fault(_) | Step::Cors(_) => {}
            }
        }
        limits
    }

    /// Lets a request through: with a slot at the application where concurrency is limited.
    ///
    /// # Errors
    /// When a limit is reached. A token that an earlier limit gave is spent then.
    pub(crate) fn admit<'a, C: Fn() -> IpAddr, D: FnMut() -> u32>(
        &'a self,
        mut asking: Asking<'_, C, D>,
        told: &mut Told,
    ) -> Result<Option<Slot>, Refusal<'a>> {
        for Rate { limit, rules } in &self.rates {
            let model = &limit.model;
            let enabled = model.enabled == PerMillion::ALL || model.enabled.hit((asking.draw)());
            if !enabled || !limit.concerns(&asking.view, asking.identity) {
                continue;
            }
            let asked = || Asked { view: &asking.view, cluster: asking.cluster, client: (asking.client)() };
            let taken = limit.take(asking.identity, asking.connection, asking.now, rules, asked);
            if model.tell {
                told.tokens.push(taken.tokens);
            }
            let Some(retry_after) = taken.refused else { continue };
            if model.enforced == PerMillion::ALL || model.enforced.hit((asking.draw)()) {
                return Err(Refusal::Rate { limit: &model.name, retry_after, answer: &limit.answer });
            }
            if !limit.not_enforced.is_empty() {
                told.passed.push(Arc::clone(&limit.not_enforced));
            }
        }
        let exempt = || is_probe(&asking.view, asking.identity);
        let Some(adaptive) = self.adaptive.as_ref().filter(|_| !exempt()) else { return Ok(None) };
        adaptive.admit(asking.now).map(Some).map_err(|at_once| Refusal::Concurrency { at_once })
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
    use tulle_mesh::model::{AdaptiveConcurrency, HttpFilter, LocalRateLimit, TokenBucket};
    use tulle_mesh::route::steps;

    fn filters(burst: u32) -> Vec<HttpFilter> {
        vec![
            HttpFilter::LocalRateLimit(LocalRateLimit::new(
                "shop/cart",
                TokenBucket { burst, tokens_per_fill: 1, fill_interval: Duration::from_secs(1) },
            )),
            HttpFilter::AdaptiveConcurrency(AdaptiveConcurrency {
                min_concurrency: 1,
                max_concurrency: 1,
                update_interval: Duration::from_millis(100),
            }),
        ]
    }

    fn limits(filters: &[HttpFilter], before: Option<&Counts>, now: Instant) -> (RequestLimits, Counts) {
        let mut counts = Counts::default();
        let limits =
            RequestLimits::build_at(&steps(filters, &[]), Said::default(), before, &mut counts, now, 1);
        (limits, counts)
    }

    fn admit<'a>(
        limits: &'a RequestLimits,
        view: &RequestView<'_>,
        identity: Option<&SpiffeId>,
        now: Instant,
    ) -> Result<Option<Slot>, Refusal<'a>> {
        let connection = ConnectionBuckets::default();
        let client = || IpAddr::from([127, 0, 0, 1]);
        let asking = Asking {
            view: *view,
            identity,
            cluster: None,
            client,
            connection: &connection,
            now,
            draw: || u32::MAX / 2,
        };
        limits.admit(asking, &mut Told::default())
    }

    #[test]
    fn a_share_of_limits_counts_and_a_share_of_refusals_is_meant() {
        let now = Instant::now();
        let [HttpFilter::LocalRateLimit(whole), ..] = &filters(1)[..] else { panic!() };
        let with = |enabled: u32, enforced: u32| {
            let (enabled, enforced) = (PerMillion::percent(enabled), PerMillion::percent(enforced));
            let filter = HttpFilter::LocalRateLimit(LocalRateLimit { enabled, enforced, ..whole.clone() });
            limits(&[filter], None, now).0
        };
        let headers = HeaderMap::new();
        let request = RequestView::new(&Method::GET, "a", "/", &headers);
        for (enabled, enforced, refused) in
            [(100, 100, true), (60, 60, true), (40, 100, false), (100, 40, false)]
        {
            let limits = with(enabled, enforced);
            let _ = admit(&limits, &request, None, now);
            let second = admit(&limits, &request, None, now);
            assert_eq!(second.is_err(), refused, "{enabled} % of {enforced} %");
        }
    }

    #[test]
    fn refusals_name_their_limit_and_probes_pass_a_busy_application() {
        let now = Instant::now();
        let (limits, _) = limits(&filters(5), None, now);
        let mut headers = HeaderMap::new();
        let plain = headers.clone();
        let request = RequestView::new(&Method::GET, "a", "/", &plain);
        let slot = admit(&limits, &request, None, now).expect("room").expect("limited");
        slot.arrived(now);
        let busy = admit(&limits, &request, None, now).err();
        assert_eq!(busy, Some(Refusal::Concurrency { at_once: 1 }));

        headers.insert("user-agent", HeaderValue::from_static("kube-probe/1.33"));
        let probe = RequestView::new(&Method::GET, "a", "/healthz", &headers);
        assert!(admit(&limits, &probe, None, now).expect("exempt").is_none());
        let health = RequestView::new(&Method::POST, "a", "/grpc.health.v1.Health/Check", &plain);
        assert!(admit(&limits, &health, None, now).expect("exempt").is_none());
        let web = "spiffe://mesh.test/ns/shop/sa/web".parse().expect("valid");
        let busy = admit(&limits, &probe, Some(&web), now).err();
        assert_eq!(
            busy,
            Some(Refusal::Concurrency { at_once: 1 }),
            "a workload that says that it is the kubelet"
        );
        let limited = admit(&limits, &probe, None, now).err().expect("no token left, for probes neither");
        assert!(matches!(limited, Refusal::Rate { limit: "shop/cart", .. }), "{limited:?}");
        assert!(limited.to_string().contains("shop/cart"));
    }

    #[test]
    fn counts_stay_while_the_limit_does() {
        let now = Instant::now();
        let (first, counts) = limits(&filters(1)[..1], None, now);
        let headers = HeaderMap::new();
        let request = RequestView::new(&Method::GET, "a", "/", &headers);
        assert!(admit(&first, &request, None, now).is_ok());
        let (same, counts) = limits(&filters(1)[..1], Some(&counts), now);
        assert!(admit(&same, &request, None, now).is_err());
        let (other, _) = limits(&filters(5)[..1], Some(&counts), now);
        assert!(admit(&other, &request, None, now).is_ok());
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
            RequestLimits::build_at(&steps(&chain, said), Said::default(), before, counts, now, 1)
        };
        let headers = HeaderMap::new();
        let request = RequestView::new(&Method::GET, "a", "/", &headers);
        let passes = |limits: &RequestLimits| admit(limits, &request, None, now).is_ok();
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

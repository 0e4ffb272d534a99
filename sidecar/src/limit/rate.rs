//! Rate limits: which buckets a request takes from, and whether it may pass.
//!
//! In: a request and the time. Out: a token, or how long until there is one, and what is left. Nothing here waits or locks.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{FilterOverride, HeaderMutations, LocalRateLimit, RateLimitAnswer, RateLimitRule};
use tulle_mesh::route::RequestView;

use super::bucket::{Pace, Table};
use super::descriptors::{Asked, DescriptorBuckets, Found};

/// A rate limit and its buckets.
pub(super) struct RateLimit {
    pub(super) model: LocalRateLimit,
    /// What a request gets that finds no token.
    pub(super) answer: Arc<RateLimitAnswer>,
    /// What is changed in one that passes all the same.
    pub(super) not_enforced: Arc<HeaderMutations>,
    /// Which part of the routes has put it in the place of the listener's own.
    by: Option<Arc<FilterOverride>>,
    epoch: Instant,
    seed: u64,
    pace: Pace,
    buckets: Buckets,
}

enum Buckets {
    Shared(Own),
    PerClient(Table),
    /// With each connection.
    PerConnection,
}

/// A bucket for all, and those for requests with descriptors.
struct Own {
    bucket: AtomicU64,
    descriptors: Option<DescriptorBuckets>,
}

impl Own {
    fn new(model: &LocalRateLimit, seed: u64) -> Self {
        let descriptors = model.descriptors.as_ref().map(|model| DescriptorBuckets::new(model, seed));
        Self { bucket: AtomicU64::new(0), descriptors }
    }
}

/// The buckets of one downstream connection, for limits that have some for each.
#[derive(Default)]
pub(crate) struct ConnectionBuckets(RefCell<Vec<(Arc<RateLimit>, Rc<Own>)>>);

impl ConnectionBuckets {
    fn of(&self, limit: &Arc<RateLimit>) -> Rc<Own> {
        let mut all = self.0.borrow_mut();
        if let Some((_, own)) = all.iter().find(|(other, _)| Arc::ptr_eq(other, limit)) {
            return own.clone();
        }
        // Limits that nobody has any more are let go.
        all.retain(|(limit, _)| Arc::strong_count(limit) > 1);
        let own = Rc::new(Own::new(&limit.model, limit.seed));
        all.push((Arc::clone(limit), own.clone()));
        own
    }
}

/// What is left of the bucket that decided about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tokens {
    /// Its size.
    pub(crate) limit: u32,
    /// How many tokens it holds.
    pub(crate) remaining: u32,
    /// In how many seconds it holds one, rounded up (Envoy).
    pub(crate) reset: u64,
}

/// Whether a request may pass, and what is left.
pub(super) struct Taken {
    /// How long until it might.
    pub(super) refused: Option<Duration>,
    pub(super) tokens: Tokens,
}

impl RateLimit {
    /// Full buckets. `seed`: random, so that nobody can choose names that share a bucket.
    pub(super) fn new(
        model: LocalRateLimit,
        by: Option<Arc<FilterOverride>>,
        now: Instant,
        seed: u64,
    ) -> Self {
        let buckets = match (model.per_client, model.per_connection) {
            (true, _) => Buckets::PerClient(Table::new(seed, CLIENTS, PROBES)),
            (false, true) => Buckets::PerConnection,
            (false, false) => Buckets::Shared(Own::new(&model, seed)),
        };
        Self {
            answer: Arc::new(model.answer.clone()),
            not_enforced: Arc::new(model.not_enforced.clone()),
            by,
            epoch: now,
            seed,
            pace: Pace::of(model.bucket),
            buckets,
            model,
        }
    }

    /// Whether it is the limit of `model` that stands in the same place. Equal words of two routes are two limits.
    pub(super) fn is(&self, model: &LocalRateLimit, by: Option<&Arc<FilterOverride>>) -> bool {
        self.by.as_ref().map(Arc::as_ptr) == by.map(Arc::as_ptr) && self.model == *model
    }

    /// Whether the limit is about this request at all.
    pub(super) fn concerns(&self, request: &RequestView<'_>, client: Option<&SpiffeId>) -> bool {
        let named = |pattern: &String| match (client, pattern.strip_suffix('*')) {
            (Some(client), Some(prefix)) => client.as_str().starts_with(prefix),
            (Some(client), None) => client.as_str() == pattern,
            (None, _) => false,
        };
        (self.model.clients.is_empty() || self.model.clients.iter().any(named))
            && self.model.applies_to.iter().all(|rule| rule.matches(request.values(&rule.name)))
    }

    /// Takes a token of each bucket that the request is about, the slowest first, until one has none. `rules` are those that the
    /// request's route has for this limit; `asked` is what they look at.
    pub(super) fn take<'a>(
        self: &Arc<Self>,
        client: Option<&SpiffeId>,
        connection: &ConnectionBuckets,
        now: Instant,
        rules: &'a [RateLimitRule],
        asked: impl FnOnce() -> Asked<'a>,
    ) -> Taken {
        let now = now.saturating_duration_since(self.epoch).as_nanos() as u64;
        match &self.buckets {
            Buckets::Shared(own) => self.take_of(own, now, rules, asked),
            Buckets::PerConnection => self.take_of(&connection.of(self), now, rules, asked),
            // Whoever has no identity shares one bucket.
            Buckets::PerClient(clients) => {
                let name = client.map_or("", SpiffeId::as_str);
                self.spend(self.default(clients.bucket(std::iter::once(name), now)), now)
            }
        }
    }

    fn take_of<'a>(
        &self,
        own: &Own,
        now: u64,
        rules: &'a [RateLimitRule],
        asked: impl FnOnce() -> Asked<'a>,
    ) -> Taken {
        let default = self.default(&own.bucket);
        let Some(descriptors) = own.descriptors.as_ref().filter(|_| !rules.is_empty()) else {
            return self.spend(default, now);
        };
        let mut found: SmallVec<[Found<'_>; 4]> = descriptors.find(rules, &asked(), now);
        if found.is_empty() || descriptors.and_default {
            found.push(default);
        }
        let mut first = None;
        for found in found {
            let taken = self.spend(found, now);
            if taken.refused.is_some() {
                return taken;
            }
            first.get_or_insert(taken);
        }
        // There is one at least.
        first.unwrap_or_else(|| self.spend(default, now))
    }

    fn default<'a>(&self, bucket: &'a AtomicU64) -> Found<'a> {
        Found { burst: self.model.bucket.burst, pace: self.pace, bucket }
    }

    fn spend(&self, Found { burst, pace, bucket }: Found<'_>, now: u64) -> Taken {
        let refused = pace.take(bucket, now).err();
        let (remaining, wait) = if self.model.tell { pace.left(bucket, now) } else { Default::default() };
        let reset = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Taken { refused, tokens: Tokens { limit: burst, remaining, reset } }
    }
}

/// So many clients have buckets of their own at once.
const CLIENTS: usize = 1024;
const PROBES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, Method};
    use proptest::prelude::*;
    use tulle_mesh::model::{HeaderMatch, HeaderTest, StringMatch, TokenBucket};

    fn model(tokens: u32, burst: u32) -> LocalRateLimit {
        let fill_interval = Duration::from_secs(1);
        LocalRateLimit::new("limit", TokenBucket { burst, tokens_per_fill: tokens, fill_interval })
    }

    fn limit(model: LocalRateLimit, start: Instant) -> Arc<RateLimit> {
        Arc::new(RateLimit::new(model, None, start, 1))
    }

    fn take(limit: &Arc<RateLimit>, client: Option<&SpiffeId>, now: Instant) -> Result<(), Duration> {
        let asked = || unreachable!("it has no descriptors");
        let taken = limit.take(client, &ConnectionBuckets::default(), now, &[], asked);
        taken.refused.map_or(Ok(()), Err)
    }

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://td/ns/a/sa/{name}").parse().expect("valid")
    }

    #[test]
    fn a_burst_passes_and_then_the_pace_holds() {
        let start = Instant::now();
        let limit = limit(model(10, 5), start);
        assert_eq!((0..20).filter(|_| take(&limit, None, start).is_ok()).count(), 5);
        assert_eq!(take(&limit, None, start), Err(Duration::from_millis(100)));
        let later = start + Duration::from_millis(100);
        assert_eq!(take(&limit, None, later), Ok(()));
        assert!(take(&limit, None, later).is_err());
        let idle = start + Duration::from_secs(60);
        assert_eq!((0..20).filter(|_| take(&limit, None, idle).is_ok()).count(), 5, "no more than the burst");
    }

    #[test]
    fn clients_have_their_own_buckets_and_strangers_share_one() {
        let start = Instant::now();
        let limit = limit(LocalRateLimit { per_client: true, ..model(1, 2) }, start);
        let (a, b) = (id("a"), id("b"));
        for client in [Some(&a), Some(&b), None] {
            assert_eq!((0..9).filter(|_| take(&limit, client, start).is_ok()).count(), 2, "{client:?}");
        }
    }

    #[test]
    fn a_flood_of_clients_does_not_grow_the_table_nor_free_a_busy_client() {
        let start = Instant::now();
        let limit = limit(LocalRateLimit { per_client: true, ..model(1, 2) }, start);
        let busy = id("busy");
        let mut passed = 0;
        for n in 0..20_000 {
            if n % 100 == 0 {
                passed += usize::from(take(&limit, Some(&busy), start).is_ok());
            }
            let _ = take(&limit, Some(&id(&format!("c{n}"))), start);
        }
        let Buckets::PerClient(clients) = &limit.buckets else { panic!("per client") };
        assert_eq!(clients.len(), CLIENTS);
        assert!(passed < 60, "at times its bucket is given up, but not always: {passed}");
    }

    #[test]
    fn connections_have_buckets_of_their_own_and_what_is_left_is_told() {
        let start = Instant::now();
        let limit = limit(LocalRateLimit { per_connection: true, tell: true, ..model(1, 2) }, start);
        let (one, two) = (ConnectionBuckets::default(), ConnectionBuckets::default());
        let asked = || unreachable!("it has no descriptors");
        let at = |connection, now| limit.take(None, connection, now, &[], asked);
        let take = |connection| at(connection, start);
        let left = |remaining, reset| Tokens { limit: 2, remaining, reset };
        assert_eq!(take(&one).tokens, left(1, 0));
        assert_eq!(take(&one).tokens, left(0, 1));
        assert!(take(&one).refused.is_some() && take(&two).refused.is_none());
        assert_eq!(take(&two).tokens, left(0, 1));
        let later = at(&two, start + Duration::from_millis(400));
        assert!(later.refused.is_some() && later.tokens == left(0, 1), "the rest of a second counts as one");
    }

    #[test]
    fn it_concerns_whom_it_names_and_what_it_matches() {
        let mut rule = model(1, 1);
        rule.clients = vec!["spiffe://td/ns/a/*".into(), "spiffe://td/ns/b/sa/c".into()];
        let value = HeaderTest::Value(StringMatch::exact("POST"));
        rule.applies_to = vec![HeaderMatch::new(":method", value)];
        let limit = limit(rule, Instant::now());
        let headers = HeaderMap::new();
        let post = RequestView::new(&Method::POST, "a", "/", &headers);
        let get = RequestView::new(&Method::GET, "a", "/", &headers);
        let (named, exact) = (id("x"), "spiffe://td/ns/b/sa/c".parse().expect("valid"));
        let other = "spiffe://td/ns/b/sa/cc".parse().expect("valid");
        assert!(limit.concerns(&post, Some(&named)) && limit.concerns(&post, Some(&exact)));
        assert!(!limit.concerns(&post, Some(&other)) && !limit.concerns(&post, None));
        assert!(!limit.concerns(&get, Some(&named)));
    }

    proptest! {
        #[test]
        fn no_interval_sees_more_than_burst_plus_its_share(
            tokens in 1u32..50, burst in 1u32..20, steps in proptest::collection::vec(0u64..200, 1..300),
        ) {
            let start = Instant::now();
            let limit = limit(model(tokens, burst), start);
            let (mut now, mut passed) = (0u64, Vec::new());
            for step in steps {
                now += step;
                if take(&limit, None, start + Duration::from_millis(now)).is_ok() {
                    passed.push(now);
                }
            }
            for (i, from) in passed.iter().enumerate() {
                for (j, to) in passed.iter().enumerate().skip(i) {
                    let share = (to - from) as f64 * f64::from(tokens) / 1000.0;
                    prop_assert!((j - i + 1) as f64 <= f64::from(burst) + share + 1.0 / 1000.0);
                }
            }
        }
    }
}

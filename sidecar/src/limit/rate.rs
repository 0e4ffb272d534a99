//! Token buckets, shared by all workers.
//!
//! A bucket is one atomic word: the time at which it will be full again (the "theoretical arrival time" of GCRA). A
//! request moves it on by the time that one token takes to come back, unless that would be further ahead than the
//! whole bucket. So there is nothing to refill, and no lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{FilterOverride, LocalRateLimit, RateLimitAnswer};
use tulle_mesh::route::RequestView;
use twox_hash::XxHash64;

/// A rate limit and its buckets.
pub(super) struct RateLimit {
    pub(super) model: LocalRateLimit,
    /// What a request gets that finds no token.
    pub(super) answer: Arc<RateLimitAnswer>,
    /// Which part of the routes has put it in the place of the listener's own.
    by: Option<Arc<FilterOverride>>,
    epoch: Instant,
    pace: Pace,
    buckets: Buckets,
}

/// How fast a bucket fills and how much it holds.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Nanoseconds until one token is back.
    token: u64,
    /// Nanoseconds until an empty bucket is full.
    full: u64,
}

enum Buckets {
    Shared(AtomicU64),
    PerClient(Clients),
}

impl RateLimit {
    /// Full buckets. `seed`: random, so that nobody can choose names that share a bucket.
    pub(super) fn new(
        model: LocalRateLimit,
        by: Option<Arc<FilterOverride>>,
        now: Instant,
        seed: u64,
    ) -> Self {
        let pace = Pace::of(&model);
        let buckets = match model.per_client {
            true => Buckets::PerClient(Clients::new(seed)),
            false => Buckets::Shared(AtomicU64::new(0)),
        };
        let answer = Arc::new(model.answer.clone());
        Self { model, answer, by, epoch: now, pace, buckets }
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

    /// Takes a token.
    ///
    /// # Errors
    /// When there is none: how long until there is.
    pub(super) fn take(&self, client: Option<&SpiffeId>, now: Instant) -> Result<(), Duration> {
        let now = now.saturating_duration_since(self.epoch).as_nanos() as u64;
        let bucket = match &self.buckets {
            Buckets::Shared(bucket) => bucket,
            // Whoever has no identity shares one bucket.
            Buckets::PerClient(clients) => clients.bucket(client.map_or("", SpiffeId::as_str), now),
        };
        let mut full_at = bucket.load(Relaxed);
        loop {
            let next = self.pace.spend(full_at, now)?;
            match bucket.compare_exchange_weak(full_at, next, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => full_at = other,
            }
        }
    }
}

impl Pace {
    fn of(model: &LocalRateLimit) -> Self {
        let nanos = u64::try_from(model.fill_interval.as_nanos()).unwrap_or(u64::MAX);
        let token = nanos / u64::from(model.tokens_per_fill.max(1));
        Self { token, full: token.saturating_mul(model.burst.max(1).into()) }
    }

    /// When a bucket that would have been full at `full_at` will be, with one token less.
    fn spend(self, full_at: u64, now: u64) -> Result<u64, Duration> {
        let next = full_at.max(now).saturating_add(self.token);
        match (next - now).checked_sub(self.full) {
            None | Some(0) => Ok(next),
            Some(wait) => Err(Duration::from_nanos(wait)),
        }
    }
}

/// A bounded table of buckets: what a flood of names costs is fixed. A client has eight places where its bucket may
/// be; when all are other busy clients', the fullest bucket is given up, and its owner starts anew.
struct Clients {
    seed: u64,
    places: Box<[Place]>,
}

#[derive(Default)]
struct Place {
    /// The hash of the client's name; 0: free.
    client: AtomicU64,
    full_at: AtomicU64,
}

const PLACES: usize = 1024;
const PROBES: usize = 8;

impl Clients {
    fn new(seed: u64) -> Self {
        Self { seed, places: (0..PLACES).map(|_| Place::default()).collect() }
    }

    fn bucket(&self, client: &str, now: u64) -> &AtomicU64 {
        let hash = XxHash64::oneshot(self.seed, client.as_bytes()).max(1);
        let places = (0..PROBES).map(|i| &self.places[(hash as usize).wrapping_add(i) % PLACES]);
        if let Some(own) = places.clone().find(|place| place.client.load(Relaxed) == hash) {
            return &own.full_at;
        }
        let fullest = places.min_by_key(|place| place.full_at.load(Relaxed)).unwrap_or(&self.places[0]);
        let owner = fullest.client.load(Relaxed);
        // Of two workers that want the same place, one gets it; the other shares it until it asks again.
        if fullest.client.compare_exchange(owner, hash, Relaxed, Relaxed).is_ok() {
            fullest.full_at.store(now, Relaxed);
        }
        &fullest.full_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, Method};
    use proptest::prelude::*;
    use tulle_mesh::model::{HeaderMatch, HeaderTest, StringMatch};

    fn model(tokens: u32, burst: u32) -> LocalRateLimit {
        LocalRateLimit {
            name: "limit".into(),
            applies_to: Vec::new(),
            clients: Vec::new(),
            per_client: false,
            burst,
            tokens_per_fill: tokens,
            fill_interval: Duration::from_secs(1),
            answer: RateLimitAnswer::default(),
        }
    }

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://td/ns/a/sa/{name}").parse().expect("valid")
    }

    #[test]
    fn a_burst_passes_and_then_the_pace_holds() {
        let start = Instant::now();
        let limit = RateLimit::new(model(10, 5), None, start, 1);
        assert_eq!((0..20).filter(|_| limit.take(None, start).is_ok()).count(), 5);
        assert_eq!(limit.take(None, start), Err(Duration::from_millis(100)));
        let later = start + Duration::from_millis(100);
        assert_eq!(limit.take(None, later), Ok(()));
        assert!(limit.take(None, later).is_err());
        let idle = start + Duration::from_secs(60);
        assert_eq!((0..20).filter(|_| limit.take(None, idle).is_ok()).count(), 5, "no more than the burst");
    }

    #[test]
    fn clients_have_their_own_buckets_and_strangers_share_one() {
        let start = Instant::now();
        let limit = RateLimit::new(LocalRateLimit { per_client: true, ..model(1, 2) }, None, start, 1);
        let (a, b) = (id("a"), id("b"));
        for client in [Some(&a), Some(&b), None] {
            assert_eq!((0..9).filter(|_| limit.take(client, start).is_ok()).count(), 2, "{client:?}");
        }
    }

    #[test]
    fn a_flood_of_clients_does_not_grow_the_table_nor_free_a_busy_client() {
        let start = Instant::now();
        let limit = RateLimit::new(LocalRateLimit { per_client: true, ..model(1, 2) }, None, start, 1);
        let busy = id("busy");
        let mut passed = 0;
        for n in 0..20_000 {
            if n % 100 == 0 {
                passed += usize::from(limit.take(Some(&busy), start).is_ok());
            }
            let _ = limit.take(Some(&id(&format!("c{n}"))), start);
        }
        let Buckets::PerClient(clients) = &limit.buckets else { panic!("per client") };
        assert_eq!(clients.places.len(), PLACES);
        assert!(passed < 60, "at times its bucket is given up, but not always: {passed}");
    }

    #[test]
    fn it_concerns_whom_it_names_and_what_it_matches() {
        let mut rule = model(1, 1);
        rule.clients = vec!["spiffe://td/ns/a/*".into(), "spiffe://td/ns/b/sa/c".into()];
        let value = HeaderTest::Value(StringMatch::exact("POST"));
        rule.applies_to = vec![HeaderMatch::new(":method", value)];
        let limit = RateLimit::new(rule, None, Instant::now(), 1);
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
            let limit = RateLimit::new(model(tokens, burst), None, start, 1);
            let (mut now, mut passed) = (0u64, Vec::new());
            for step in steps {
                now += step;
                if limit.take(None, start + Duration::from_millis(now)).is_ok() {
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

//! An endpoint's load and health: relaxed atomics, written by all workers, in one cache line but for what few rules ask for.
//!
//! Each operation reads the line, lets a pure rule decide, and writes the result. A lost update between two workers
//! costs one sample; only the steps that must happen once (a failure in a row, a probe, an ejection) are compare-and-exchange.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tulle_mesh::model::{FailurePercentage, LocalOrigin, OutlierDetection};

use super::Outcome;
use super::breaker::{self, Cause, Row, Shares, Standing, State, Window};
use super::ewma::Ewma;

/// A new endpoint of a cluster that has others reaches its full share after this long.
pub(super) const RAMP: Duration = Duration::from_secs(30);

/// The latency that a failure counts as at first. Failing fast must not look like being fast, or the one broken endpoint
/// would draw all requests. It is forgotten with a time constant of 1 s, far faster than a latency that was measured: an
/// endpoint that fails once, or is started again at its address, has its share back within seconds. The breaker takes care
/// of those that go on failing.
const PENALTY: Duration = Duration::from_secs(1);

/// Load and health of an endpoint.
#[repr(C, align(64))]
pub(crate) struct EndpointStats {
    /// Where the clock of the other fields starts; for an endpoint without a ramp, [`RAMP`] before it was added.
    epoch: Instant,
    /// Requests and connections under way.
    in_flight: AtomicU32,
    /// A packed [`Row`].
    consecutive: AtomicU32,
    /// The latency's average, as the bits of an `f64`.
    ewma: AtomicU64,
    /// When that was true.
    ewma_at: AtomicU64,
    /// A packed [`State`].
    breaker: AtomicU64,
    /// How often it was ejected and is not yet forgiven.
    ejections: AtomicU32,
    /// When it last failed or refused, as [`tenths`] of a second and one more; 0: never.
    failed: AtomicU32,
    /// A packed [`Window`].
    window: AtomicU64,
    /// What was no answer, where that counts apart: another packed [`Window`].
    local_window: AtomicU64,
    /// The failures among that in a row.
    local_row: AtomicU32,
}

impl EndpointStats {
    /// Of a new endpoint. `ramp`: others carry the load while it warms up; `latency`: what to expect of it until it
    /// was measured.
    pub(super) fn new(now: Instant, ramp: bool, latency: Duration) -> Self {
        let epoch = if ramp { now } else { now.checked_sub(RAMP).unwrap_or(now) };
        let since_epoch = now.duration_since(epoch).as_nanos() as u64;
        Self {
            epoch,
            in_flight: AtomicU32::new(0),
            consecutive: AtomicU32::new(0),
            ewma: AtomicU64::new((latency.as_nanos() as f64).to_bits()),
            ewma_at: AtomicU64::new(since_epoch),
            breaker: AtomicU64::new(State::Closed { since: 0 }.pack()),
            ejections: AtomicU32::new(0),
            failed: AtomicU32::new(0),
            window: AtomicU64::new(Window::default().pack()),
            local_window: AtomicU64::new(Window::default().pack()),
            local_row: AtomicU32::new(0),
        }
    }

    /// Requests and connections under way.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// The average latency at `now`, for dumps and for new neighbours.
    pub(crate) fn latency(&self, now: Instant) -> Duration {
        Duration::from_nanos(self.ewma().at(self.clock(now)) as u64)
    }

    /// Whether the breaker keeps requests away at `now`.
    pub(crate) fn is_ejected(&self, now: Instant) -> bool {
        self.standing(now) == Standing::Out
    }

    pub(super) fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(super) fn end(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// What one more request would cost: the expected latency times those that would share it.
    pub(super) fn cost(&self, now: Instant) -> f64 {
        // Without the floor, idle endpoints would all cost nothing, however many requests wait for them.
        const FLOOR: f64 = 100_000.0;
        let clock = self.clock(now);
        (self.ewma().at(clock).max(FLOOR) + self.penalty(clock)) * (f64::from(self.in_flight()) + 1.0)
    }

    /// What is left, in nanoseconds, of the latency that the last failure counts as.
    fn penalty(&self, clock: u64) -> f64 {
        let failed = self.failed.load(Relaxed);
        if failed == 0 {
            return 0.0;
        }
        let age = tenths(clock).saturating_sub(failed - 1);
        // After so long nothing is left that could decide.
        if age > 200 { 0.0 } else { PENALTY.as_nanos() as f64 * (-f64::from(age) / 10.0).exp() }
    }

    /// The share of its traffic that the endpoint is ready for: from a tenth to all of it over [`RAMP`].
    pub(super) fn ramp(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.epoch);
        if age >= RAMP { 1.0 } else { (age.as_secs_f64() / RAMP.as_secs_f64()).max(0.1) }
    }

    /// Adds a latency to the average.
    pub(super) fn observe(&self, latency: Duration, now: Instant) {
        let next = self.ewma().observe(latency, self.clock(now));
        self.ewma.store(next.value.to_bits(), Relaxed);
        self.ewma_at.store(next.at, Relaxed);
    }

    /// Has the endpoint passed over for some seconds, where there are others: it failed, or refused.
    pub(super) fn penalize(&self, now: Instant) {
        self.failed.store(tenths(self.clock(now)).saturating_add(1), Relaxed);
    }

    pub(super) fn standing(&self, now: Instant) -> Standing {
        State::unpack(self.breaker.load(Relaxed)).standing(self.clock(now))
    }

    /// Whether the endpoint counts against the limit on ejections: out, or not yet proved well.
    pub(super) fn is_suspended(&self) -> bool {
        !matches!(State::unpack(self.breaker.load(Relaxed)), State::Closed { .. })
    }

    /// Takes the one probe of an endpoint whose ejection is over. Of all that ask during `lease`, one gets `true`.
    pub(super) fn claim_probe(&self, now: Instant, lease: Duration) -> bool {
        let now = self.clock(now);
        let word = self.breaker.load(Relaxed);
        if State::unpack(word).standing(now) != Standing::Due {
            return false;
        }
        let probing = State::Probing { until: now + (lease.as_nanos() as u64).max(1) };
        self.breaker.compare_exchange(word, probing.pack(), Relaxed, Relaxed).is_ok()
    }

    /// Notes a success: ends a run of failures and, if it was the probe, the ejection.
    pub(super) fn succeed(&self, rule: &OutlierDetection, now: Instant) {
        // Reading first keeps the line shared between workers in the usual case.
        if self.consecutive.load(Relaxed) != 0 {
            self.consecutive.store(0, Relaxed);
        }
        self.count(false, rule, now);
        if let Some(local) = &rule.local {
            self.connected(local, now);
        }
        let word = self.breaker.load(Relaxed);
        if let State::Probing { .. } = State::unpack(word) {
            let closed = State::Closed { since: self.clock(now) };
            if self.breaker.compare_exchange(word, closed.pack(), Relaxed, Relaxed).is_ok() {
                self.window.store(Window::default().pack(), Relaxed);
            }
        }
    }

    /// Notes a failure, and says for what the endpoint should be ejected, if it should.
    #[must_use]
    pub(super) fn fail(&self, outcome: Outcome, rule: &OutlierDetection, now: Instant) -> Option<Cause> {
        let cause = match &rule.local {
            Some(local) if outcome.is_local() => self.fail_locally(outcome, local, now),
            local => {
                if let Some(local) = local {
                    self.connected(local, now);
                }
                self.answer_badly(outcome != Outcome::ServerError, rule, now)
            }
        };
        match State::unpack(self.breaker.load(Relaxed)) {
            State::Probing { .. } => Some(Cause::Probe),
            // It failed requests from before; it is out already.
            State::Open { .. } => None,
            State::Closed { .. } => cause,
        }
    }

    fn answer_badly(&self, of_gateway: bool, rule: &OutlierDetection, now: Instant) -> Option<Cause> {
        let longer = |word| Some(Row::unpack(word).after(of_gateway).pack());
        let before = self.consecutive.fetch_update(Relaxed, Relaxed, longer);
        let row = Row::unpack(before.unwrap_or_default()).after(of_gateway);
        let window = self.count(true, rule, now);
        let failures = rule.failure_percentage.as_ref().filter(|_| !breaker::compares(rule));
        let fails = |rule: &FailurePercentage| window.suffices(rule.minimum_requests) && window.fails(rule);
        row.is_too_long(rule).or_else(|| failures.is_some_and(fails).then_some(Cause::Share))
    }

    fn fail_locally(&self, outcome: Outcome, rule: &LocalOrigin, now: Instant) -> Option<Cause> {
        if outcome == Outcome::Lost {
            self.connected(rule, now);
        }
        self.count_locally(true, rule, now);
        // It would take weeks of nothing but failures to come to its end.
        let row = self.local_row.fetch_add(1, Relaxed).saturating_add(1);
        breaker::reaches(row, rule.consecutive_failures).then_some(Cause::LocalFailures)
    }

    /// There was a connection.
    fn connected(&self, rule: &LocalOrigin, now: Instant) {
        if self.local_row.load(Relaxed) != 0 {
            self.local_row.store(0, Relaxed);
        }
        self.count_locally(false, rule, now);
    }

    fn count_locally(&self, failure: bool, rule: &LocalOrigin, now: Instant) {
        if Shares::of_the_rest(rule).are_some() {
            let next = self.local_window().record(failure, self.clock(now), None);
            self.local_window.store(next.pack(), Relaxed);
        }
    }

    /// Counts from 0 again what `cause` counts: it was not enforced.
    pub(super) fn forget(&self, cause: Cause) {
        let shorter = |word| Some(Row::unpack(word).without(cause).pack());
        let _ = self.consecutive.fetch_update(Relaxed, Relaxed, shorter);
        match cause {
            Cause::LocalFailures => self.local_row.store(0, Relaxed),
            Cause::Share => self.window.store(Window::default().pack(), Relaxed),
            Cause::Failures | Cause::GatewayFailures | Cause::Probe => {}
        }
    }

    /// Lets the endpoint serve whatever it was ejected for: there is no rule any more.
    pub(super) fn reopen(&self) {
        if self.is_suspended() {
            self.breaker.store(State::Closed { since: 0 }.pack(), Relaxed);
        }
    }

    /// Ejects the endpoint. The caller has made sure that the limit on ejections allows it.
    pub(super) fn eject(&self, rule: &OutlierDetection, now: Instant, random: u64) {
        let now = self.clock(now);
        let state = State::unpack(self.breaker.load(Relaxed));
        let earlier = match state {
            State::Closed { since } => breaker::remembered(rule, self.ejections.load(Relaxed), since, now),
            State::Open { .. } | State::Probing { .. } => self.ejections.load(Relaxed),
        };
        let time = breaker::ejection_time(rule, earlier, random);
        self.ejections.store(earlier.saturating_add(1), Relaxed);
        self.consecutive.store(0, Relaxed);
        self.local_row.store(0, Relaxed);
        self.begin_window();
        self.breaker.store(State::Open { until: now + time.as_nanos() as u64 }.pack(), Relaxed);
    }

    fn count(&self, failure: bool, rule: &OutlierDetection, now: Instant) -> Window {
        if rule.failure_percentage.is_none() && rule.success_rate.is_none() {
            return Window::default();
        }
        let interval = (!breaker::compares(rule)).then_some(rule.interval);
        let next = self.window().record(failure, self.clock(now), interval);
        self.window.store(next.pack(), Relaxed);
        next
    }

    /// What has become of the requests of the current interval.
    pub(super) fn window(&self) -> Window {
        Window::unpack(self.window.load(Relaxed))
    }

    /// The same of what was no answer, where that counts apart.
    pub(super) fn local_window(&self) -> Window {
        Window::unpack(self.local_window.load(Relaxed))
    }

    /// Begins the next interval.
    pub(super) fn begin_window(&self) {
        self.window.store(Window::default().pack(), Relaxed);
        self.local_window.store(Window::default().pack(), Relaxed);
    }

    fn ewma(&self) -> Ewma {
        Ewma { value: f64::from_bits(self.ewma.load(Relaxed)), at: self.ewma_at.load(Relaxed) }
    }

    fn clock(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_nanos() as u64
    }
}

/// Tenths of a second of an endpoint's clock: 13 years of them fit.
fn tenths(clock: u64) -> u32 {
    u32::try_from(clock / 100_000_000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_most_rules_need_is_one_line() {
        assert_eq!(std::mem::offset_of!(EndpointStats, local_window), 64);
        assert_eq!(size_of::<EndpointStats>(), 128);
    }

    #[test]
    fn what_is_no_answer_counts_apart_where_a_rule_says_so() {
        let now = Instant::now();
        let stats = EndpointStats::new(now, false, Duration::ZERO);
        let local = LocalOrigin {
            consecutive_failures: 3,
            enforced_failures: 100,
            failure_percentage: None,
            success_rate: None,
        };
        let rule = OutlierDetection {
            consecutive_failures: 2,
            failure_percentage: None,
            local: Some(local),
            ..OutlierDetection::MESH
        };
        let fail = |outcome| stats.fail(outcome, &rule, now);
        assert_eq!([Outcome::Unreachable; 3].map(fail), [None, None, Some(Cause::LocalFailures)]);
        assert_eq!(fail(Outcome::ServerError), None, "there was a connection, and an answer");
        assert_eq!([Outcome::Unreachable, Outcome::Lost, Outcome::Lost].map(fail), [None; 3]);
        assert_eq!(fail(Outcome::Failure), Some(Cause::Failures), "what came between was no answer");
        stats.forget(Cause::Failures);
        assert_eq!([Outcome::Failure; 2].map(fail), [None, Some(Cause::Failures)]);
    }

    #[test]
    fn of_many_that_ask_one_gets_the_probe_and_only_its_success_ends_the_ejection() {
        let start = Instant::now();
        let stats = EndpointStats::new(start, false, Duration::ZERO);
        let rule = &OutlierDetection::MESH;
        stats.eject(rule, start, 0);
        assert!(stats.is_ejected(start) && !stats.claim_probe(start, MS));
        stats.succeed(rule, start);
        assert!(stats.is_ejected(start), "a success of a request from before the ejection");
        assert!(
            stats.fail(Outcome::Failure, rule, start).is_none(),
            "a failure of a request from before the ejection"
        );

        let due = start + rule.base_ejection_time;
        let lease = Duration::from_secs(1);
        let claimed = (0..10).filter(|_| stats.claim_probe(due, lease)).count();
        assert_eq!(claimed, 1);
        assert!(stats.claim_probe(due + lease, lease), "a lost probe gives way when its lease ends");
        stats.succeed(rule, due + lease);
        assert_eq!(stats.standing(due + lease), Standing::In);
    }

    #[test]
    fn a_failed_probe_asks_for_a_longer_ejection() {
        let start = Instant::now();
        let stats = EndpointStats::new(start, false, Duration::ZERO);
        let rule = &OutlierDetection::MESH;
        stats.eject(rule, start, 0);
        let due = start + Duration::from_secs(1);
        assert!(stats.claim_probe(due, MS));
        assert!(stats.fail(Outcome::Failure, rule, due).is_some());
        stats.eject(rule, due, 0);
        assert!(stats.is_ejected(due + Duration::from_millis(1999)));
        assert!(!stats.is_ejected(due + Duration::from_secs(2)));
    }

    #[test]
    fn a_run_of_failures_asks_for_an_ejection_and_a_success_ends_the_run() {
        let now = Instant::now();
        let stats = EndpointStats::new(now, false, Duration::ZERO);
        let rule = &OutlierDetection::MESH;
        for _ in 0..4 {
            assert!(stats.fail(Outcome::Failure, rule, now).is_none());
        }
        stats.succeed(rule, now);
        for _ in 0..4 {
            assert!(stats.fail(Outcome::Failure, rule, now).is_none());
        }
        assert!(stats.fail(Outcome::Failure, rule, now).is_some());
    }

    #[test]
    fn a_new_endpoint_beside_others_warms_up() {
        let now = Instant::now();
        let new = EndpointStats::new(now, true, Duration::ZERO);
        assert_eq!(new.ramp(now), 0.1);
        assert!((new.ramp(now + RAMP / 2) - 0.5).abs() < 0.01);
        assert_eq!(new.ramp(now + RAMP), 1.0);
        assert_eq!(EndpointStats::new(now, false, Duration::ZERO).ramp(now), 1.0);
    }

    #[test]
    fn load_costs_latency_times_requests_in_flight() {
        let now = Instant::now();
        let stats = EndpointStats::new(now, false, 10 * MS);
        let idle = stats.cost(now);
        stats.begin();
        assert!((stats.cost(now) / idle - 2.0).abs() < 1e-9);
        stats.end();
        stats.observe(100 * MS, now);
        assert!((stats.cost(now) / idle - 10.0).abs() < 1e-9);
    }

    #[test]
    fn a_failure_weighs_more_than_any_usual_latency_and_is_forgotten_within_seconds() {
        let now = Instant::now();
        let [fast, failing] = [MS, Duration::ZERO].map(|usual| EndpointStats::new(now, false, usual));
        failing.penalize(now);
        assert!(failing.cost(now) > 500.0 * fast.cost(now), "it fails fast");
        let later = now + Duration::from_secs(3);
        assert!(failing.cost(later) > 10.0 * fast.cost(later), "one second is not enough");
        let later = now + Duration::from_secs(9);
        assert!(failing.cost(later) < fast.cost(later), "an idle endpoint comes back by itself");
        assert_eq!(failing.latency(now), Duration::ZERO, "a failure is no latency");
    }
}

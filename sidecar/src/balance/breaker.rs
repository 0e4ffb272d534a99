//! When an endpoint is left out of the choice: pure rules over (state, now).
//!
//! An endpoint is ejected after a run of failures, at a share of failures, or for succeeding far less than the others, for a
//! time that doubles with each ejection. When that time is over, one request goes there as a probe, under a lease; only its success lets the others back.

use std::time::Duration;

use tulle_mesh::model::{FailurePercentage, LocalOrigin, OutlierDetection, SuccessRate};

use super::Outcome;

/// Where an endpoint stands. Times are nanoseconds of the endpoint's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It takes requests, since then.
    Closed {
        /// When it came back, or 0.
        since: u64,
    },
    /// It takes none until then, and a single probe after.
    Open {
        /// When a probe may go.
        until: u64,
    },
    /// A probe is under way; when it has not answered by then, another may go.
    Probing {
        /// When the probe's lease ends.
        until: u64,
    },
}

impl State {
    /// Into a word that fits an atomic; 0 is closed since ever.
    pub(super) fn pack(self) -> u64 {
        match self {
            Self::Closed { since } => since << 2,
            Self::Open { until } => until << 2 | 1,
            Self::Probing { until } => until << 2 | 2,
        }
    }

    /// What [`State::pack`] made.
    pub(super) fn unpack(word: u64) -> Self {
        match word & 3 {
            0 => Self::Closed { since: word >> 2 },
            1 => Self::Open { until: word >> 2 },
            _ => Self::Probing { until: word >> 2 },
        }
    }

    /// What the state means for a choice at `now`.
    pub(super) fn standing(self, now: u64) -> Standing {
        match self {
            Self::Closed { .. } => Standing::In,
            Self::Open { until } | Self::Probing { until } if until <= now => Standing::Due,
            Self::Open { .. } | Self::Probing { .. } => Standing::Out,
        }
    }
}

/// What a state means for a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Takes requests.
    In,
    /// Waits for its probe.
    Due,
    /// Takes no requests.
    Out,
}

/// The failures since the last success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    /// All.
    all: u16,
    /// Those of a gateway, without others in between.
    of_gateway: u16,
}

impl Row {
    /// Into a word that fits an atomic.
    pub(super) fn pack(self) -> u32 {
        u32::from(self.all) << 16 | u32::from(self.of_gateway)
    }

    /// What [`Row::pack`] made.
    pub(super) fn unpack(word: u32) -> Self {
        Self { all: (word >> 16) as u16, of_gateway: word as u16 }
    }

    /// The row after one more failure.
    pub(super) fn after(self, of_gateway: bool) -> Self {
        let gateway = if of_gateway { self.of_gateway.saturating_add(1) } else { 0 };
        Self { all: self.all.saturating_add(1), of_gateway: gateway }
    }

    /// For what it is too long by `rule`, if it is.
    pub(super) fn is_too_long(self, rule: &OutlierDetection) -> Option<Cause> {
        if reaches(self.all.into(), rule.consecutive_failures) {
            return Some(Cause::Failures);
        }
        let gateways = reaches(self.of_gateway.into(), rule.consecutive_gateway_failures);
        gateways.then_some(Cause::GatewayFailures)
    }

    /// The row without what `cause` counts.
    pub(super) fn without(self, cause: Cause) -> Self {
        match cause {
            Cause::Failures => Self { all: 0, ..self },
            Cause::GatewayFailures => Self { of_gateway: 0, ..self },
            Cause::LocalFailures | Cause::Share | Cause::Probe => self,
        }
    }
}

/// Whether a row of failures is as long as one that is put up with no more; 0: any is. It counts no further than a row does.
pub(super) fn reaches(row: u32, most: u32) -> bool {
    most > 0 && row >= most.min(u16::MAX.into())
}

/// For what an endpoint is to be ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Failures in a row.
    Failures,
    /// The same of a gateway.
    GatewayFailures,
    /// The same of what was no answer, where that counts apart.
    LocalFailures,
    /// The share of failures.
    Share,
    /// It was out, and its probe failed.
    Probe,
}

impl Cause {
    /// With which probability it is enforced, in percent.
    pub(super) fn enforced(self, rule: &OutlierDetection) -> u32 {
        match self {
            Self::Failures => rule.enforced_failures,
            Self::GatewayFailures => rule.enforced_gateway_failures,
            Self::LocalFailures => rule.local.as_ref().map_or(0, |local| local.enforced_failures),
            Self::Share => rule.failure_percentage.as_ref().map_or(0, |rule| rule.enforced),
            Self::Probe => 100,
        }
    }
}

impl Outcome {
    /// It is no answer, but what the sidecar made out by itself.
    pub(super) fn is_local(self) -> bool {
        matches!(self, Self::Unreachable | Self::Lost)
    }
}

/// The requests of an endpoint in the current interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    /// When it began, in tenths of a second of the endpoint's clock.
    pub(super) start: u32,
    /// Requests.
    pub(super) total: u16,
    /// Those that failed.
    pub(super) failed: u16,
}

impl Window {
    /// Into a word that fits an atomic.
    pub(super) fn pack(self) -> u64 {
        u64::from(self.start) << 32 | u64::from(self.total) << 16 | u64::from(self.failed)
    }

    /// What [`Window::pack`] made.
    pub(super) fn unpack(word: u64) -> Self {
        Self { start: (word >> 32) as u32, total: (word >> 16) as u16, failed: word as u16 }
    }

    /// The window after one more request. `interval`: after what time another begins; `None`: somebody else sees to that.
    #[must_use]
    pub(super) fn record(mut self, failure: bool, now: u64, interval: Option<Duration>) -> Self {
        let now = (now / TENTH) as u32;
        let age = u128::from(now.wrapping_sub(self.start)) * u128::from(TENTH);
        if interval.is_some_and(|interval| age >= interval.as_nanos()) {
            self = Self { start: now, total: 0, failed: 0 };
        }
        if self.total == u16::MAX {
            // The rate stays as it is; only its weight against new requests halves.
            self.total /= 2;
            self.failed /= 2;
        }
        self.total += 1;
        self.failed += u16::from(failure);
        self
    }

    /// Whether there were so many requests that a share of them says something.
    pub(super) fn suffices(self, minimum: u32) -> bool {
        // What it holds is halved when it is full.
        u32::from(self.total) >= minimum.clamp(1, u32::from(u16::MAX / 2))
    }

    /// Whether as many failed as `rule` puts up with, or more.
    pub(super) fn fails(self, rule: &FailurePercentage) -> bool {
        u32::from(self.failed) * 100 >= rule.threshold * u32::from(self.total)
    }

    /// The share of successes, in percent; there must be requests.
    fn success_rate(self) -> f64 {
        100.0 * f64::from(self.total - self.failed) / f64::from(self.total)
    }
}

const TENTH: u64 = 100_000_000;

/// Whether endpoints are judged at the end of each interval, all at once, and not one by one as soon as it is possible.
pub(super) fn compares(rule: &OutlierDetection) -> bool {
    rule.success_rate.is_some()
        || rule.failure_percentage.as_ref().is_some_and(|rule| rule.minimum_hosts > 1)
        || rule.local.as_ref().is_some_and(|local| Shares::of_the_rest(local).are_some())
}

/// The rules by which endpoints are compared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares<'a> {
    failures: Option<&'a FailurePercentage>,
    successes: Option<&'a SuccessRate>,
}

impl<'a> Shares<'a> {
    pub(super) fn of_answers(rule: &'a OutlierDetection) -> Self {
        Self { failures: rule.failure_percentage.as_ref(), successes: rule.success_rate.as_ref() }
    }

    /// Of what is no answer.
    pub(super) fn of_the_rest(rule: &'a LocalOrigin) -> Self {
        Self { failures: rule.failure_percentage.as_ref(), successes: rule.success_rate.as_ref() }
    }

    /// Whether there is any.
    pub(super) fn are_some(&self) -> bool {
        self.failures.is_some() || self.successes.is_some()
    }
}

/// What the windows of a cluster's endpoints say together: whom to eject.
#[derive(Debug)]
pub(super) struct Comparison<'a> {
    rules: Shares<'a>,
    /// Out with a share of successes below this, in percent.
    lowest_success_rate: Option<f64>,
    /// The shares of failures say something.
    by_failures: bool,
}

impl<'a> Comparison<'a> {
    /// Compares the windows of the endpoints that are in.
    pub(super) fn new(rules: Shares<'a>, windows: impl Iterator<Item = Window> + Clone) -> Self {
        let hosts =
            |minimum_requests| windows.clone().filter(move |window| window.suffices(minimum_requests));
        let enough = |count: usize, minimum: u32| count >= minimum.max(1) as usize;
        Self {
            rules,
            lowest_success_rate: rules.successes.and_then(|rule| {
                let rates = hosts(rule.minimum_requests).map(Window::success_rate);
                enough(rates.clone().count(), rule.minimum_hosts).then(|| lowest(rates, rule))
            }),
            by_failures: rules
                .failures
                .is_some_and(|rule| enough(hosts(rule.minimum_requests).count(), rule.minimum_hosts)),
        }
    }

    /// Whether the endpoint of this window is to be ejected. `enforced` says whether a rule is, which is so in so many percent of
    /// all cases.
    pub(super) fn ejects(&self, window: Window, mut enforced: impl FnMut(u32) -> bool) -> bool {
        let rate = self.rules.successes.filter(|rule| window.suffices(rule.minimum_requests));
        let failures = self.rules.failures.filter(|rule| window.suffices(rule.minimum_requests));
        let stands_out = rate.zip(self.lowest_success_rate);
        stands_out.is_some_and(|(rule, lowest)| window.success_rate() < lowest && enforced(rule.enforced))
            || failures.is_some_and(|rule| self.by_failures && window.fails(rule) && enforced(rule.enforced))
    }
}

/// So many standard deviations below the mean.
fn lowest(rates: impl Iterator<Item = f64> + Clone, rule: &SuccessRate) -> f64 {
    let count = rates.clone().count() as f64;
    let mean = rates.clone().sum::<f64>() / count;
    let variance = rates.map(|rate| (rate - mean).powi(2)).sum::<f64>() / count;
    mean - f64::from(rule.stdev_factor) / 1000.0 * variance.sqrt()
}

/// How long the ejection after `earlier` others lasts: the base doubled for each, up to the maximum, and the jitter.
pub(super) fn ejection_time(rule: &OutlierDetection, earlier: u32, random: u64) -> Duration {
    let doubled = rule.base_ejection_time.saturating_mul(1u32 << earlier.min(31));
    let time = doubled.min(rule.max_ejection_time.max(rule.base_ejection_time));
    time + rule.max_ejection_time_jitter.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64)
}

/// How many earlier ejections still count: one is forgiven for each interval that the endpoint has been in.
pub(super) fn remembered(rule: &OutlierDetection, ejections: u32, since: u64, now: u64) -> u32 {
    let forgiven = u128::from(now.saturating_sub(since)) / rule.interval.as_nanos().max(1);
    ejections.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
}

/// The most of `endpoints` that may be out at once: the share rounded down, but one of several where that is always so.
pub(super) fn most_ejected(rule: &OutlierDetection, endpoints: usize) -> usize {
    let share = endpoints * rule.max_ejection_percent.min(100) as usize / 100;
    share.max(usize::from(rule.always_eject_one && endpoints > 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DEFAULT: OutlierDetection = OutlierDetection::MESH;

    #[test]
    fn as_many_as_the_share_says_or_one_of_several() {
        let most = |percent, always_eject_one, endpoints| {
            let rule = OutlierDetection { max_ejection_percent: percent, always_eject_one, ..DEFAULT };
            most_ejected(&rule, endpoints)
        };
        assert_eq!([0, 1, 2, 3, 4, 5, 10].map(|n| most(50, true, n)), [0, 0, 1, 1, 2, 2, 5]);
        assert_eq!([1, 2, 3, 9, 20].map(|n| most(10, true, n)), [0, 1, 1, 1, 2]);
        assert_eq!([1, 2, 3, 9, 20].map(|n| most(10, false, n)), [0, 0, 0, 0, 2]);
        assert_eq!([1, 2, 3, 100].map(|n| most(99, true, n)), [0, 1, 2, 99], "all but the last");
        assert_eq!([1, 2, 3].map(|n| most(100, false, n)), [1, 2, 3]);
        assert_eq!((most(0, false, 100), most(0, true, 100)), (0, 1));
    }

    #[test]
    fn who_succeeds_far_less_than_the_others_is_out() {
        let window = |total, failed| Window { start: 0, total, failed };
        let rule = OutlierDetection {
            failure_percentage: None,
            success_rate: Some(SuccessRate {
                stdev_factor: 1900,
                minimum_requests: 100,
                minimum_hosts: 5,
                enforced: 100,
            }),
            ..DEFAULT
        };
        let out = |rule: &OutlierDetection, windows: &[Window]| {
            let comparison = Comparison::new(Shares::of_answers(rule), windows.iter().copied());
            windows.iter().map(|window| comparison.ejects(*window, |_| true)).collect::<Vec<_>>()
        };
        let others = [window(100, 0), window(200, 2), window(100, 0), window(100, 1)];
        let with = |last| [&others[..], &[last]].concat();
        // A mean of 89.6 and a deviation of 19.8: 52 is the lowest. By less than that nobody stands out of five.
        assert_eq!(out(&rule, &with(window(100, 50))), [false, false, false, false, true]);
        assert_eq!(out(&rule, &with(window(99, 99))), [false; 5], "too few requests: so four are compared");
        assert_eq!(out(&rule, &others), [false; 4], "too few endpoints");
        assert_eq!(out(&rule, &[window(0, 0); 5]), [false; 5], "nobody was asked");
        let wider =
            SuccessRate { stdev_factor: 2100, minimum_requests: 100, minimum_hosts: 5, enforced: 100 };
        let wider = OutlierDetection { success_rate: Some(wider), ..rule };
        assert_eq!(out(&wider, &with(window(100, 50))), [false; 5]);
    }

    #[test]
    fn a_share_of_failures_needs_enough_endpoints_that_have_one() {
        let window = |total, failed| Window { start: 0, total, failed };
        let failures =
            FailurePercentage { threshold: 40, minimum_requests: 50, minimum_hosts: 3, enforced: 100 };
        let rule = OutlierDetection { failure_percentage: Some(failures), ..DEFAULT };
        let windows = [window(50, 20), window(100, 39), window(60, 60), window(49, 49)];
        let comparison = Comparison::new(Shares::of_answers(&rule), windows.into_iter());
        assert_eq!(windows.map(|window| comparison.ejects(window, |_| true)), [true, false, true, false]);
        let comparison = Comparison::new(Shares::of_answers(&rule), windows[2..].iter().copied());
        assert_eq!(windows.map(|window| comparison.ejects(window, |_| true)), [false; 4]);
        assert!(compares(&rule) && !compares(&DEFAULT));
    }

    #[test]
    fn ejections_double_up_to_the_maximum_and_then_comes_the_jitter() {
        let plain: Vec<_> = (0..8).map(|n| ejection_time(&DEFAULT, n, 0).as_secs()).collect();
        assert_eq!(plain, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(ejection_time(&DEFAULT, 0, u64::MAX) <= Duration::from_millis(1250));
        assert!(ejection_time(&DEFAULT, u32::MAX, u64::MAX) <= Duration::from_millis(60_250));
        let exact = OutlierDetection { max_ejection_time_jitter: Duration::ZERO, ..DEFAULT };
        assert_eq!(ejection_time(&exact, 0, u64::MAX), Duration::from_secs(1));
    }

    #[test]
    fn an_ejection_is_forgiven_in_each_interval() {
        assert_eq!(remembered(&DEFAULT, 3, 0, 9_999_999_999), 3);
        assert_eq!(remembered(&DEFAULT, 3, 0, 10_000_000_000), 2);
        assert_eq!(remembered(&DEFAULT, 3, 5_000_000_000, 1_000_000_000_000), 0);
        let rule = OutlierDetection { interval: Duration::from_secs(30), ..DEFAULT };
        assert_eq!(remembered(&rule, 3, 0, 60_000_000_000), 1);
    }

    #[test]
    fn failures_of_gateways_are_counted_apart_too() {
        let rule = OutlierDetection { consecutive_failures: 4, consecutive_gateway_failures: 2, ..DEFAULT };
        let long = |failures: &[bool]| {
            let row = failures.iter().fold(Row::default(), |row, gateway| row.after(*gateway));
            assert_eq!(Row::unpack(row.pack()), row);
            row.is_too_long(&rule).is_some()
        };
        assert!(long(&[true, true]) && long(&[false, true, true]));
        assert!(!long(&[true, false, true]), "one of another kind ends the row");
        assert!(long(&[true, false, true, false]));
        let none = Row::unpack(u32::MAX).is_too_long(&OutlierDetection {
            consecutive_failures: 0,
            consecutive_gateway_failures: 0,
            ..DEFAULT
        });
        assert_eq!(none, None);
        let row = Row { all: 4, of_gateway: 2 };
        assert_eq!(row.is_too_long(&rule), Some(Cause::Failures));
        assert_eq!(row.without(Cause::Failures).is_too_long(&rule), Some(Cause::GatewayFailures));
    }

    #[test]
    fn a_share_needs_enough_requests_of_one_window() {
        let rule = DEFAULT.failure_percentage.as_ref().expect("set");
        let mut window = Window::default();
        for n in 0..20u64 {
            assert!(!window.suffices(rule.minimum_requests), "after {n}");
            window = window.record(n % 3 != 0, n * TENTH, Some(DEFAULT.interval));
        }
        assert!(window.suffices(rule.minimum_requests) && window.fails(rule));
        let next = window.record(true, 100 * TENTH, Some(DEFAULT.interval));
        assert_eq!((next.total, next.failed), (1, 1));
        let same = window.record(true, 100 * TENTH, None);
        assert_eq!(same.total, 21, "until it is taken");
    }

    proptest! {
        #[test]
        fn words_hold_what_was_packed(time in 0u64..1 << 62, start: u32, total: u16, failed: u16) {
            for state in [State::Closed { since: time }, State::Open { until: time }, State::Probing { until: time }] {
                prop_assert_eq!(State::unpack(state.pack()), state);
            }
            let window = Window { start, total, failed };
            prop_assert_eq!(Window::unpack(window.pack()), window);
        }

        #[test]
        fn a_window_never_counts_more_failures_than_requests(
            steps in proptest::collection::vec((any::<bool>(), 0u64..30 * TENTH), 1..300),
        ) {
            let mut window = Window { start: 0, total: u16::MAX - 20, failed: 7 };
            let mut now = 0;
            for (failure, step) in steps {
                now += step;
                window = window.record(failure, now, Some(Duration::from_secs(10)));
                prop_assert!(window.failed <= window.total && window.total > 0);
            }
        }
    }
}

//! When an endpoint is left out of the choice: pure rules over (state, now).
//!
//! An endpoint is ejected after a run of failures or below a success rate, for a time that doubles with each ejection.
//! When that time is over, one request goes there as a probe, under a lease; only its success lets the others back.

use std::time::Duration;

use tulle_mesh::model::{OutlierDetection, SuccessRate};

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

/// The requests of an endpoint in the current window of its success rate.
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

    /// The window after one more request.
    #[must_use]
    pub(super) fn record(mut self, failure: bool, now: u64, interval: Duration) -> Self {
        let now = (now / TENTH) as u32;
        if u64::from(now.wrapping_sub(self.start)) * TENTH >= interval.as_nanos() as u64 {
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

    /// Whether the success rate is below what `rule` asks for.
    pub(super) fn is_too_low(self, rule: &SuccessRate) -> bool {
        let (total, ok) = (u64::from(self.total), u64::from(self.total - self.failed));
        total >= u64::from(rule.minimum_requests.max(1)) && ok * 100 < u64::from(rule.minimum_percent) * total
    }
}

const TENTH: u64 = 100_000_000;

/// The sidecar's rule for clusters that bring none: 5 failures in a row, or less than half of at least 20 requests in
/// 10 s; out for 1 s at first and 60 s at most; at most half of the endpoints.
pub(super) const DEFAULT: OutlierDetection = OutlierDetection {
    consecutive_failures: 5,
    only_gateway_errors: false,
    success_rate: Some(SuccessRate {
        minimum_percent: 50,
        minimum_requests: 20,
        interval: Duration::from_secs(10),
    }),
    base_ejection_time: Duration::from_secs(1),
    max_ejection_time: Duration::from_secs(60),
    max_ejection_percent: 50,
};

/// How long the ejection after `earlier` others lasts: the base doubled for each, up to the maximum, plus up to a
/// quarter of jitter so that endpoints that failed together don't come back together.
pub(super) fn ejection_time(rule: &OutlierDetection, earlier: u32, random: u64) -> Duration {
    let doubled = rule.base_ejection_time.saturating_mul(1u32 << earlier.min(31));
    let time = doubled.min(rule.max_ejection_time.max(rule.base_ejection_time));
    time + time.mul_f64((random >> 11) as f64 / (1u64 << 53) as f64 / 4.0)
}

/// How many earlier ejections still count: one is forgiven for each 10 s that the endpoint has been in (Envoy forgives
/// one per interval).
pub(super) fn remembered(ejections: u32, since: u64, now: u64) -> u32 {
    let forgiven = now.saturating_sub(since) / (100 * TENTH);
    ejections.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
}

/// The most of `endpoints` that may be out at once: the share rounded down, but one of at least two, and never all.
pub(super) fn most_ejected(endpoints: usize, percent: u32) -> usize {
    if percent == 0 {
        return 0;
    }
    (endpoints * percent.min(100) as usize / 100).max(1).min(endpoints.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn at_least_one_of_two_and_never_the_last() {
        assert_eq!([0, 1, 2, 3, 4, 5, 10].map(|n| most_ejected(n, 50)), [0, 0, 1, 1, 2, 2, 5]);
        assert_eq!([1, 2, 3, 9].map(|n| most_ejected(n, 10)), [0, 1, 1, 1]);
        assert_eq!([1, 2, 3].map(|n| most_ejected(n, 100)), [0, 1, 2]);
        assert_eq!(most_ejected(100, 0), 0);
    }

    #[test]
    fn ejections_double_up_to_the_maximum_with_a_quarter_of_jitter() {
        let plain: Vec<_> = (0..8).map(|n| ejection_time(&DEFAULT, n, 0).as_secs()).collect();
        assert_eq!(plain, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(ejection_time(&DEFAULT, 0, u64::MAX) <= Duration::from_millis(1250));
        assert!(ejection_time(&DEFAULT, u32::MAX, u64::MAX) <= Duration::from_secs(75));
    }

    #[test]
    fn an_ejection_is_forgiven_every_ten_seconds() {
        assert_eq!(remembered(3, 0, 9_999_999_999), 3);
        assert_eq!(remembered(3, 0, 10_000_000_000), 2);
        assert_eq!(remembered(3, 5_000_000_000, 1_000_000_000_000), 0);
    }

    #[test]
    fn the_success_rate_needs_enough_requests_of_one_window() {
        let rule = DEFAULT.success_rate.as_ref().expect("set");
        let mut window = Window::default();
        for n in 0..20u64 {
            assert!(!window.is_too_low(rule), "after {n}");
            window = window.record(n % 3 != 0, n * TENTH, rule.interval);
        }
        assert!(window.is_too_low(rule));
        let next = window.record(true, 100 * TENTH, rule.interval);
        assert_eq!((next.total, next.failed), (1, 1));
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
                window = window.record(failure, now, Duration::from_secs(10));
                prop_assert!(window.failed <= window.total && window.total > 0);
            }
        }
    }
}

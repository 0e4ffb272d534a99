//! Latency as a peak-sensitive, exponentially weighted moving average: pure arithmetic over (state, now).
//!
//! A sample above the average takes its place at once; samples below pull it down with time constant [`TAU`]. Without
//! samples it decays towards 0, so that an endpoint that was slow once is tried again (Finagle's peak EWMA).

use std::time::Duration;

/// The time constant of the decay.
pub(crate) const TAU: Duration = Duration::from_secs(10);

/// An average of latencies at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ewma {
    /// In nanoseconds.
    pub(super) value: f64,
    /// When it was true, in nanoseconds of the endpoint's clock.
    pub(super) at: u64,
}

impl Ewma {
    /// The average after one more sample.
    pub(super) fn observe(self, sample: Duration, now: u64) -> Self {
        let sample = sample.as_nanos() as f64;
        let value = if sample > self.value {
            sample
        } else {
            let kept = decay(self.at, now);
            self.value * kept + sample * (1.0 - kept)
        };
        Self { value, at: now.max(self.at) }
    }

    /// What is left of the average at `now`, in nanoseconds.
    pub(super) fn at(self, now: u64) -> f64 {
        self.value * decay(self.at, now)
    }
}

/// The weight that a value of `then` still has.
fn decay(then: u64, now: u64) -> f64 {
    (-(now.saturating_sub(then) as f64) / TAU.as_nanos() as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_peak_counts_at_once_and_is_forgotten_slowly() {
        let calm = Ewma { value: 1e6, at: 0 };
        let peak = calm.observe(Duration::from_millis(500), SECOND);
        assert_eq!(peak.value, 5e8);
        let after = peak.observe(Duration::from_millis(1), 2 * SECOND);
        assert!(after.value > 4.5e8 && after.value < 4.6e8, "{after:?}");
        let mut state = after;
        for second in 3..120 {
            state = state.observe(Duration::from_millis(1), second * SECOND);
        }
        assert!((state.value - 1e6).abs() < 1e4, "{state:?}");
    }

    #[test]
    fn without_samples_it_decays_to_nothing_and_a_clock_behind_changes_nothing() {
        let state = Ewma { value: 1e9, at: 10 * SECOND };
        assert!((state.at(20 * SECOND) - 1e9 / std::f64::consts::E).abs() < 1.0);
        assert!(state.at(1000 * SECOND) < 1.0);
        assert_eq!(state.at(5 * SECOND), 1e9);
        assert_eq!(state.observe(Duration::from_secs(2), 5 * SECOND).at, 10 * SECOND);
    }
}

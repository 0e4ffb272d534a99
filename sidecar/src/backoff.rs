//! Pauses between attempts that grow, with full jitter, so that many sidecars don't come back at the same moment.

use std::time::Duration;

/// The pauses of one thing that is tried again and again.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Pauses of `first` at the start, which double up to `longest`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// The next pause: between half of its length and all of it. `random` is uniform over 0..1.
    pub(crate) fn next(&mut self, random: f64) -> Duration {
        let doubled = self.first.saturating_mul(1 << self.failures.min(16)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        doubled.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
    }

    /// It worked: the next failure starts anew.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_anew_after_success() {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(1));
        let pauses: Vec<_> = (0..4).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(pauses, [250, 500, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next(0.0), Duration::from_millis(125));
        for _ in 0..100 {
            assert!(backoff.next(0.5) <= Duration::from_secs(1));
        }
    }
}

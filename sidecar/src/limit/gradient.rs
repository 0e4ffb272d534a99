//! How many requests the application can take at once, from how long they take: pure rules over (state, samples).
//!
//! The rule is that of Envoy's adaptive concurrency filter: `limit' = limit * gradient + sqrt(limit * gradient)`, where
//! `gradient` is the least latency (plus a quarter of buffer) over the present one, within 0.5 and 2. It differs in two
//! ways, so that a healthy application never sees a refusal. The limit only moves while at least half of it is in use.
//! And the least latency is learned from windows of low load, as they come; only an application that has been at its
//! limit for [`SATURATED`] is probed, and then by halving its limit, not by cutting it to the minimum.

use std::time::Duration;

/// After this long without a window of low load, the least latency is measured anew.
const SATURATED: Duration = Duration::from_secs(30);
/// How long that measurement takes.
const PROBE: Duration = Duration::from_millis(500);
/// How much slower than the least latency counts as not slower.
const BUFFER: f64 = 1.25;
/// Fewer samples than this say nothing.
const MIN_SAMPLES: u32 = 10;

/// What the rule remembers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Gradient {
    /// Requests at once.
    pub(super) limit: f64,
    /// The least latency, in nanoseconds; 0: not known.
    pub(super) least: f64,
    /// The end of the last window of low load, or of the last probe.
    pub(super) measured: Duration,
}

/// What was seen since the last update.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// When it ended.
    pub(super) end: Duration,
    /// How many requests were answered in it.
    pub(super) samples: u32,
    /// Their median latency, in nanoseconds.
    pub(super) median: f64,
    /// The most requests at once.
    pub(super) most: u32,
}

/// Between what the limit moves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) min: u32,
    pub(super) max: u32,
}

impl Gradient {
    /// Before anything was seen.
    pub(super) fn new(bounds: Bounds) -> Self {
        const START: f64 = 100.0;
        Self { limit: bounds.clamp(START), least: 0.0, measured: Duration::ZERO }
    }

    /// How many requests may be at the application at `now`.
    pub(super) fn allowed(&self, now: Duration, bounds: Bounds) -> u32 {
        let limit = if self.is_probing(now) { self.limit / 2.0 } else { self.limit };
        bounds.clamp(limit) as u32
    }

    /// The state after one more window.
    #[must_use]
    pub(super) fn update(self, window: &Window, bounds: Bounds) -> Self {
        if window.samples < MIN_SAMPLES {
            return self;
        }
        if self.least == 0.0 {
            return Self { least: window.median, measured: window.end, ..self };
        }
        if f64::from(window.most) * 4.0 <= self.limit {
            // Low load. Faster counts at once, slower only bit by bit: the mix of requests may have changed, or the
            // application itself.
            let least = window.median.min(self.least + (window.median - self.least) / 10.0);
            return Self { least, measured: window.end, ..self };
        }
        if self.is_probing(window.end) {
            return match window.end >= self.measured + SATURATED + PROBE / 2 {
                // The first half still holds requests from before the limit went down.
                true => Self { least: window.median, measured: window.end, ..self },
                false => self,
            };
        }
        let measured = match window.end >= self.measured + SATURATED + PROBE {
            // The probe saw too few requests; the next one follows in time.
            true => window.end,
            false => self.measured,
        };
        let least = self.least.min(window.median);
        let limit = match f64::from(window.most) * 2.0 >= self.limit {
            true => {
                let gradient = (least * BUFFER / window.median).clamp(0.5, 2.0);
                bounds.clamp(self.limit * gradient + (self.limit * gradient).sqrt())
            }
            false => self.limit,
        };
        Self { limit, least, measured }
    }

    fn is_probing(&self, now: Duration) -> bool {
        let start = self.measured + SATURATED;
        self.least > 0.0 && now >= start && now < start + PROBE
    }
}

impl Bounds {
    fn clamp(self, limit: f64) -> f64 {
        let min = f64::from(self.min.max(1));
        limit.clamp(min, f64::from(self.max).max(min))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds { min: 3, max: 1000 };
    const STEP: Duration = Duration::from_millis(100);

    /// An application that works on `servers` requests at once for 10 ms each; the others wait. `offered` requests
    /// would like to be there at once; as many as the limit allows are.
    fn run(mut state: Gradient, from: Duration, windows: u32, servers: f64, offered: u32) -> (Gradient, f64) {
        let mut slowest: f64 = 0.0;
        for n in 1..=windows {
            let end = from + STEP * n;
            let at_once = offered.min(state.allowed(end, BOUNDS));
            let median = 10e6 * (f64::from(at_once) / servers).max(1.0);
            slowest = if n > windows / 2 { slowest.max(median) } else { 0.0 };
            let samples = (100e6 / median * f64::from(at_once)) as u32;
            state = state.update(&Window { end, samples, median, most: at_once }, BOUNDS);
        }
        (state, slowest)
    }

    #[test]
    fn under_overload_the_limit_settles_near_what_the_application_can_do() {
        let (calm, _) = run(Gradient::new(BOUNDS), Duration::ZERO, 10, 20.0, 10);
        assert_eq!((calm.limit, calm.least), (100.0, 10e6));
        // Five minutes at many times of what it can do, probes included.
        let (state, slowest) = run(calm, STEP * 10, 3000, 20.0, 500);
        assert!((20.0..60.0).contains(&state.limit), "{state:?}");
        assert!(slowest <= 30e6, "at most three times the idle latency: {slowest}");
    }

    #[test]
    fn started_under_overload_it_finds_the_least_latency_by_probing() {
        let (state, slowest) = run(Gradient::new(BOUNDS), Duration::ZERO, 6000, 10.0, 500);
        assert!(state.limit < 40.0 && slowest < 40e6, "{state:?} {slowest}");
    }

    #[test]
    fn at_low_load_the_limit_stays_and_a_slower_application_is_believed_in_time() {
        let (state, _) = run(Gradient::new(BOUNDS), Duration::ZERO, 100, 50.0, 10);
        assert_eq!(state.limit, 100.0);
        let slow = Window { end: STEP * 101, samples: 50, median: 50e6, most: 10 };
        let once = state.update(&slow, BOUNDS);
        assert!(once.least < 15e6);
        let often = (0..50).fold(state, |state, _| state.update(&slow, BOUNDS));
        assert!(often.least > 49e6 && often.limit == 100.0, "{often:?}");
    }

    #[test]
    fn a_few_samples_change_nothing() {
        let state = Gradient { limit: 50.0, least: 1e6, measured: Duration::ZERO };
        let window = Window { end: STEP, samples: MIN_SAMPLES - 1, median: 1e9, most: 50 };
        assert_eq!(state.update(&window, BOUNDS), state);
    }

    proptest! {
        #[test]
        fn below_half_of_what_it_starts_with_no_request_is_ever_refused(
            windows in proptest::collection::vec((0u32..2000, 1e5f64..1e10, 0u32..50, 1u32..20_000), 1..200),
        ) {
            let mut state = Gradient::new(BOUNDS);
            let mut end = Duration::ZERO;
            for (samples, median, most, millis) in windows {
                end += Duration::from_millis(millis.into());
                prop_assert!(state.allowed(end, BOUNDS) >= 50, "{state:?}");
                state = state.update(&Window { end, samples, median, most }, BOUNDS);
            }
        }

        #[test]
        fn the_limit_stays_within_its_bounds(
            windows in proptest::collection::vec((0u32..2000, 1.0f64..1e11, 0u32..2000), 1..200),
            min in 0u32..50, max in 0u32..2000,
        ) {
            let bounds = Bounds { min, max };
            let mut state = Gradient::new(bounds);
            let mut end = Duration::ZERO;
            for (samples, median, most) in windows {
                end += STEP;
                state = state.update(&Window { end, samples, median, most }, bounds);
                let allowed = state.allowed(end, bounds);
                prop_assert!(allowed >= min.max(1) && allowed <= max.max(min.max(1)), "{state:?}");
            }
        }
    }
}

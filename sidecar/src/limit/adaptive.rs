//! The adaptive limit on concurrent requests: atomics for all workers around the pure rule of `gradient`.
//!
//! A request counts from when it has arrived whole until the head of its response: that is the time in which the
//! application works on it. Streams therefore don't count while they merely live.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

use tulle_mesh::model::AdaptiveConcurrency;

use super::gradient::{Bounds, Gradient, Window};

/// The limit of an inbound listener.
pub(super) struct Adaptive {
    pub(super) model: AdaptiveConcurrency,
    epoch: Instant,
    /// Requests at the application, and the most of them in this window.
    at_once: AtomicU32,
    most: AtomicU32,
    /// What is allowed now.
    allowed: AtomicU32,
    latencies: Latencies,
    /// When the next update is due, in nanoseconds since `epoch`.
    due: AtomicU64,
    /// Held by the one worker that updates.
    updating: AtomicBool,
    /// [`Gradient`], field by field; only whoever updates writes it.
    limit: AtomicU64,
    least: AtomicU64,
    measured: AtomicU64,
}

/// A request that may go to the application.
#[must_use]
pub(crate) struct Slot {
    adaptive: Arc<Adaptive>,
    /// When the request had arrived whole; `None` before, and when it no longer counts.
    since: Cell<Option<Instant>>,
}

impl Adaptive {
    pub(super) fn new(model: AdaptiveConcurrency, now: Instant) -> Self {
        let state = Gradient::new(bounds(&model));
        Self {
            epoch: now,
            at_once: AtomicU32::new(0),
            most: AtomicU32::new(0),
            allowed: AtomicU32::new(state.allowed(Duration::ZERO, bounds(&model))),
            latencies: Latencies::default(),
            due: AtomicU64::new(model.update_interval.as_nanos() as u64),
            updating: AtomicBool::new(false),
            limit: AtomicU64::new(state.limit.to_bits()),
            least: AtomicU64::new(state.least.to_bits()),
            measured: AtomicU64::new(0),
            model,
        }
    }

    /// Lets a request through, or says how many are there already.
    pub(super) fn admit(self: &Arc<Self>, now: Instant) -> Result<Slot, u32> {
        self.update(now);
        let at_once = self.at_once.load(Relaxed);
        if at_once >= self.allowed.load(Relaxed) {
            self.most.fetch_max(at_once, Relaxed);
            return Err(at_once);
        }
        Ok(Slot { adaptive: self.clone(), since: Cell::new(None) })
    }

    /// Applies the rule when a window has ended.
    fn update(&self, now: Instant) {
        let now = now.saturating_duration_since(self.epoch);
        let nanos = now.as_nanos() as u64;
        if nanos < self.due.load(Relaxed) || self.updating.swap(true, Acquire) {
            return;
        }
        self.due.store(nanos + self.model.update_interval.as_nanos() as u64, Relaxed);
        let (samples, median) = self.latencies.take();
        let window = Window { end: now, samples, median, most: self.most.swap(0, Relaxed) };
        let bounds = bounds(&self.model);
        let state = Gradient {
            limit: f64::from_bits(self.limit.load(Relaxed)),
            least: f64::from_bits(self.least.load(Relaxed)),
            measured: Duration::from_nanos(self.measured.load(Relaxed)),
        }
        .update(&window, bounds);
        self.limit.store(state.limit.to_bits(), Relaxed);
        self.least.store(state.least.to_bits(), Relaxed);
        self.measured.store(state.measured.as_nanos() as u64, Relaxed);
        self.allowed.store(state.allowed(now, bounds), Relaxed);
        self.updating.store(false, Release);
    }
}

fn bounds(model: &AdaptiveConcurrency) -> Bounds {
    Bounds { min: model.min_concurrency, max: model.max_concurrency }
}

impl Slot {
    /// The request has arrived whole; from now on it counts.
    pub(crate) fn arrived(&self, now: Instant) {
        if self.since.get().is_none() {
            self.since.set(Some(now));
            let at_once = self.adaptive.at_once.fetch_add(1, Relaxed) + 1;
            self.adaptive.most.fetch_max(at_once, Relaxed);
        }
    }

    /// The application has answered.
    pub(crate) fn answered(self, now: Instant) {
        if let Some(since) = self.since.get() {
            self.adaptive.latencies.add(now.saturating_duration_since(since));
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.since.get().is_some() {
            self.adaptive.at_once.fetch_sub(1, Relaxed);
        }
    }
}

/// A histogram of latencies with four steps to each power of two of a microsecond.
struct Latencies([AtomicU32; STEPS]);

const STEPS: usize = 128;

impl Default for Latencies {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU32::new(0)))
    }
}

impl Latencies {
    fn add(&self, latency: Duration) {
        self.0[step(latency.as_micros() as u64)].fetch_add(1, Relaxed);
    }

    /// Empties it: the number of samples and their median in nanoseconds.
    fn take(&self) -> (u32, f64) {
        let counts: [u32; STEPS] = std::array::from_fn(|i| self.0[i].swap(0, Relaxed));
        let total = counts.iter().fold(0u32, |sum, count| sum.saturating_add(*count));
        let mut below = 0u32;
        for (step, count) in counts.iter().enumerate() {
            below = below.saturating_add(*count);
            if total > 0 && below >= total.div_ceil(2) {
                return (total, middle(step));
            }
        }
        (0, 0.0)
    }
}

fn step(micros: u64) -> usize {
    let micros = micros.max(4);
    let power = micros.ilog2();
    let quarter = (micros >> (power - 2)) & 3;
    ((power as usize - 2) * 4 + quarter as usize).min(STEPS - 1)
}

/// The middle of a step, in nanoseconds.
fn middle(step: usize) -> f64 {
    let base = (1u64 << (step / 4)) as f64;
    (4.5 + (step % 4) as f64) * base * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: AdaptiveConcurrency = AdaptiveConcurrency {
        min_concurrency: 2,
        max_concurrency: 4,
        update_interval: Duration::from_millis(100),
    };

    #[test]
    fn a_request_counts_from_its_end_to_the_head_of_its_answer() {
        let now = Instant::now();
        let adaptive = Arc::new(Adaptive::new(MODEL, now));
        let streams: Vec<_> = (0..100).map(|_| adaptive.admit(now).expect("streams don't count")).collect();
        let working: Vec<_> = (0..4).map(|_| adaptive.admit(now).expect("room")).collect();
        working.iter().for_each(|slot| slot.arrived(now));
        assert_eq!(adaptive.admit(now).err(), Some(4));
        for slot in working {
            slot.answered(now + Duration::from_millis(5));
        }
        assert!(adaptive.admit(now).is_ok());
        drop(streams);
        assert_eq!(adaptive.at_once.load(Relaxed), 0);
    }

    #[test]
    fn a_request_that_is_given_up_leaves_no_trace() {
        let now = Instant::now();
        let adaptive = Arc::new(Adaptive::new(MODEL, now));
        let slot = adaptive.admit(now).expect("room");
        slot.arrived(now);
        drop(slot);
        assert_eq!(adaptive.at_once.load(Relaxed), 0);
        assert_eq!(adaptive.latencies.take(), (0, 0.0));
    }

    #[test]
    fn the_limit_falls_when_the_application_slows_down_under_load() {
        let start = Instant::now();
        let model = AdaptiveConcurrency { max_concurrency: 100, ..MODEL };
        let adaptive = Arc::new(Adaptive::new(model, start));
        let mut now = start;
        for window in 0..40u64 {
            let latency = Duration::from_millis(if window < 5 { 10 } else { 200 });
            let (count, mut slots) = (if window < 5 { 20 } else { 100 }, Vec::new());
            for _ in 0..count {
                if let Ok(slot) = adaptive.admit(now) {
                    slot.arrived(now);
                    slots.push(slot);
                }
            }
            slots.into_iter().for_each(|slot| slot.answered(now + latency));
            now += Duration::from_millis(100);
        }
        let allowed = adaptive.allowed.load(Relaxed);
        assert!(allowed < 20, "{allowed}");
    }

    #[test]
    fn medians_are_within_an_eighth() {
        for micros in [5u64, 10, 100, 1_000, 12_345, 1_000_000, 30_000_000] {
            let latencies = Latencies::default();
            latencies.add(Duration::from_micros(micros));
            let (count, median) = latencies.take();
            assert_eq!(count, 1);
            let error = (median / 1000.0 - micros as f64).abs() / micros as f64;
            assert!(error < 0.13, "{micros}: {median}");
        }
    }
}

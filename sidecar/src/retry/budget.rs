//! The share of a cluster's traffic that may be retries, over all workers.
//!
//! In: each request, each retry that a hop before has made of one, and each wish to retry. Out: yes or no. A retry counts
//! from the moment it is decided on, so the pause before it counts too. Requests and retries of the last `interval` are
//! kept in ten slots of relaxed atomics; the rule is arithmetic over them and `now`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tulle_mesh::model;

/// The sidecar's budget for clusters that bring none: retries may be 20 % of the requests of the last 10 s, or 10 a
/// second, whichever is more.
pub(crate) const DEFAULT: model::RetryBudget =
    model::RetryBudget { percent: 20.0, min_per_second: 10, interval: Duration::from_secs(10) };

/// Counts requests and retries of a sliding window.
#[derive(Default)]
pub(crate) struct Budget {
    slots: [Slot; SLOTS],
}

const SLOTS: usize = 10;

/// A tenth of the window.
#[derive(Default)]
struct Slot {
    /// Which tenth since the start of the clock (upper half), and the requests in it (lower half).
    requests: AtomicU64,
    /// The same for retries.
    retries: AtomicU64,
}

impl Budget {
    /// Counts a request, not its retries. `now`: since the start of the cluster's clock.
    pub(crate) fn request(&self, now: Duration, rule: &model::RetryBudget) {
        let tick = tick(now, rule);
        add(&self.slots[slot(tick)].requests, tick);
    }

    /// Counts a retry that another hop has decided on.
    pub(crate) fn retried(&self, now: Duration, rule: &model::RetryBudget) {
        let tick = tick(now, rule);
        add(&self.slots[slot(tick)].retries, tick);
    }

    /// Takes a retry from the budget; `false` when there is none left.
    #[must_use]
    pub(crate) fn retry(&self, now: Duration, rule: &model::RetryBudget) -> bool {
        let tick = tick(now, rule);
        let sum = |count: fn(&Slot) -> &AtomicU64| -> u64 {
            self.slots.iter().map(|slot| within(count(slot).load(Relaxed), tick)).sum()
        };
        let (requests, retries) = (sum(|slot| &slot.requests), sum(|slot| &slot.retries));
        if retries >= allowance(requests, rule) {
            return false;
        }
        add(&self.slots[slot(tick)].retries, tick);
        true
    }
}

/// How many retries a window with `requests` requests may have.
fn allowance(requests: u64, rule: &model::RetryBudget) -> u64 {
    let share = requests as f64 * rule.percent.clamp(0.0, 100.0) / 100.0;
    let least = f64::from(rule.min_per_second) * rule.interval.as_secs_f64();
    share.max(least) as u64
}

fn tick(now: Duration, rule: &model::RetryBudget) -> u32 {
    // Tick 0 would make slots that were never used look current.
    let width = (rule.interval.as_nanos() / SLOTS as u128).max(1);
    (now.as_nanos() / width) as u32 + SLOTS as u32
}

fn slot(tick: u32) -> usize {
    tick as usize % SLOTS
}

fn within(word: u64, tick: u32) -> u64 {
    let age = tick.wrapping_sub((word >> 32) as u32);
    if (age as usize) < SLOTS { word & 0xffff_ffff } else { 0 }
}

fn add(word: &AtomicU64, tick: u32) {
    let old = word.load(Relaxed);
    if (old >> 32) as u32 == tick {
        word.fetch_add(1, Relaxed);
    } else if word.compare_exchange(old, u64::from(tick) << 32 | 1, Relaxed, Relaxed).is_err() {
        // Another worker has opened the slot.
        word.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_quiet_cluster_may_retry_ten_times_a_second() {
        let budget = Budget::default();
        let taken = (0..1000).filter(|_| budget.retry(Duration::ZERO, &DEFAULT)).count();
        assert_eq!(taken, 100);
        assert!(!budget.retry(Duration::from_millis(9_999), &DEFAULT));
        assert!(budget.retry(Duration::from_secs(10), &DEFAULT));
    }

    #[test]
    fn when_all_fail_at_a_thousand_a_second_the_load_is_at_most_1_2_times() {
        let budget = Budget::default();
        let mut sent = 0;
        let requests = 60_000;
        for n in 0..requests {
            let now = Duration::from_millis(n);
            budget.request(now, &DEFAULT);
            sent += 1;
            // Each attempt fails and would be tried twice more.
            for _ in 0..2 {
                sent += u64::from(budget.retry(now, &DEFAULT));
            }
        }
        assert!(sent as f64 <= requests as f64 * 1.2, "{sent}");
        assert!(sent as f64 > requests as f64 * 1.19, "the budget is usable: {sent}");
    }

    #[test]
    fn retries_of_the_hop_before_come_out_of_the_same_budget() {
        let rule = model::RetryBudget { min_per_second: 0, ..DEFAULT };
        let budget = Budget::default();
        (0..100).for_each(|_| budget.request(Duration::ZERO, &rule));
        (0..15).for_each(|_| budget.retried(Duration::ZERO, &rule));
        let taken = (0..100).filter(|_| budget.retry(Duration::ZERO, &rule)).count();
        assert_eq!(taken, 5);
    }

    proptest! {
        #[test]
        fn no_window_has_more_retries_than_its_allowance(
            steps in proptest::collection::vec((0u64..400, any::<bool>()), 1..600),
            percent in 0.0f64..100.0,
            min_per_second in 0u32..20,
        ) {
            let rule = model::RetryBudget { percent, min_per_second, interval: Duration::from_secs(10) };
            let budget = Budget::default();
            let (mut now, mut requests, mut retries) = (0, Vec::new(), Vec::new());
            for (step, retry) in steps {
                now += step;
                if !retry {
                    budget.request(Duration::from_millis(now), &rule);
                    requests.push(now);
                } else if budget.retry(Duration::from_millis(now), &rule) {
                    retries.push(now);
                    // A window of nine slots is within every window that the budget looks at.
                    let since = |times: &[u64], back| times.iter().filter(|t| **t + back > now).count() as u64;
                    let allowed = allowance(since(&requests, 10_001), &rule);
                    prop_assert!(since(&retries, 9_000) <= allowed, "{} of {allowed}", retries.len());
                }
            }
        }
    }
}

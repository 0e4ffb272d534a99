//! Keeps a log readable under a flood: a few lines a second of one kind, and how many were left out.
//!
//! In: each wish to write a line. Out: whether to. What counts events is elsewhere and counts all of them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// The most lines of one kind in one second.
const PER_SECOND: u64 = 5;

/// Lets the first few lines of each second through. Shared by threads; between them a line more or less may pass.
pub(crate) struct LineLimit {
    epoch: Instant,
    /// Which second since `epoch`, from 1 (upper half), and the lines that were wanted in it (lower half).
    wanted: AtomicU64,
}

impl Default for LineLimit {
    fn default() -> Self {
        Self { epoch: Instant::now(), wanted: AtomicU64::new(0) }
    }
}

impl LineLimit {
    /// Whether a line may be written at `now`, after one that says how many `of` these were left out, if any were.
    pub(crate) fn admit(&self, now: Instant, of: &str) -> bool {
        match self.left_out(now) {
            Some(0) => true,
            Some(more) => {
                tracing::warn!("{more} more {of} were not logged one by one; the metrics have counted them");
                true
            }
            None => false,
        }
    }

    /// How many lines were left out before the one that may be written now; `None` where it may not be.
    fn left_out(&self, now: Instant) -> Option<u64> {
        let second = (now.saturating_duration_since(self.epoch).as_secs() + 1) << 32;
        let old = self.wanted.load(Relaxed);
        if old & !LINES == second {
            // Past four thousand million a second this would count into the next second; the log is the least of it.
            return (self.wanted.fetch_add(1, Relaxed) & LINES < PER_SECOND).then_some(0);
        }
        let opened = self.wanted.compare_exchange(old, second + 1, Relaxed, Relaxed).is_ok();
        // Otherwise another thread has opened the second, and says what was left out.
        Some(if opened { (old & LINES).saturating_sub(PER_SECOND) } else { 0 })
    }
}

/// The half of the word that counts lines.
const LINES: u64 = 0xffff_ffff;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn of_a_flood_five_a_second_are_written_and_the_next_second_says_how_many_were_not() {
        let limit = LineLimit::default();
        let at = |millis| limit.epoch + Duration::from_millis(millis);
        let written = |from: u64| (0..100).filter(|n| limit.left_out(at(from + n)) == Some(0)).count();
        assert_eq!(written(0), 5);
        assert_eq!(written(500), 0, "the same second");
        assert_eq!(limit.left_out(at(1000)), Some(195));
        assert_eq!(written(1001), 4);
        assert_eq!(limit.left_out(at(60_000)), Some(96), "however much later");
        assert_eq!(limit.left_out(at(61_000)), Some(0), "said once");
    }
}

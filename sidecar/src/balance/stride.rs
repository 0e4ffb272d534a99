//! Weighted round robin without a lock: stride scheduling over one shared counter.
//!
//! Position `n` of the counter stands for endpoint `n % len` in round `n / len`; a round skips an endpoint so often
//! that over any full cycle each is chosen exactly in proportion to its weight (the scheme of gRPC's
//! `StaticStrideScheduler`).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The order of a weighted round robin.
pub(super) struct Stride {
    /// Scaled so that the heaviest has [`FULL`].
    weights: Box<[u16]>,
    next: AtomicU64,
}

const FULL: u64 = u16::MAX as u64;

impl Stride {
    /// In proportion to `weights`. `start`: where to begin, so that many sidecars don't begin with the same endpoint.
    pub(super) fn new(weights: impl Iterator<Item = u32> + Clone, start: u32) -> Self {
        let heaviest = u64::from(weights.clone().max().unwrap_or(1).max(1));
        let scaled = weights.map(|weight| (u64::from(weight) * FULL).div_ceil(heaviest).max(1) as u16);
        Self { weights: scaled.collect(), next: AtomicU64::new(start.into()) }
    }

    /// The next endpoint; there must be one.
    pub(super) fn next(&self) -> usize {
        let len = self.weights.len() as u64;
        loop {
            let turn = self.next.fetch_add(1, Relaxed);
            let (round, index) = (turn / len, (turn % len) as usize);
            let weight = u64::from(self.weights[index]);
            // The endpoint is due when the multiples of its weight step over a multiple of FULL in this round. The
            // offset spreads endpoints of equal weight over the rounds.
            let offset = FULL / 2 * index as u64;
            if (weight * round + offset) % FULL >= FULL - weight {
                return index;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(weights: &[u32], picks: usize, start: u32) -> Vec<usize> {
        let stride = Stride::new(weights.iter().copied(), start);
        let mut counts = vec![0; weights.len()];
        for _ in 0..picks {
            counts[stride.next()] += 1;
        }
        counts
    }

    #[test]
    fn equal_weights_take_turns() {
        let stride = Stride::new([7, 7, 7].into_iter(), 1);
        assert_eq!([0; 6].map(|_| stride.next()), [1, 2, 0, 1, 2, 0]);
    }

    proptest! {
        #[test]
        fn shares_follow_weights(weights in proptest::collection::vec(1u32..100, 1..8), start: u32) {
            let sum: u32 = weights.iter().sum();
            let picks = 200 * sum as usize;
            for (weight, count) in weights.iter().zip(counts(&weights, picks, start)) {
                let expected = 200.0 * f64::from(*weight);
                // Scaling to 16 bits moves a share by less than one in a thousand.
                prop_assert!((count as f64 - expected).abs() <= 3.0 + expected / 500.0, "{weights:?}: {count} for {weight}");
            }
        }
    }
}

//! A bound on the load of endpoints that are chosen by hashes, as Envoy has it.
//!
//! An endpoint is full that has more requests in flight than its share of all, times a factor. The requests of its keys go to others
//! then, in an order that follows from the key alone: so one key always meets the same ones, and those of different keys don't all
//! fall on one neighbour (<https://arxiv.org/abs/1908.08762>). Only for that order, where somebody is full, memory is taken.

/// What an endpoint has room for.
pub(super) struct Bound {
    factor: u32,
    /// The share of each endpoint; they add up to 1.
    shares: Box<[f64]>,
}

impl Bound {
    /// `factor` is in percent.
    pub(super) fn new(factor: u32, weights: &[f64]) -> Self {
        let total: f64 = weights.iter().sum();
        Self { factor, shares: weights.iter().map(|weight| weight / total).collect() }
    }

    /// How much of its room an endpoint takes that has so many requests in flight of those that `all` have: more than 1 is too much.
    pub(super) fn load(&self, index: usize, in_flight: u32, all: u32) -> f64 {
        let room = ((u64::from(all) + 1) * u64::from(self.factor)).div_ceil(100);
        let slots = (room as f64 * self.shares[index]).ceil().max(1.0);
        f64::from(in_flight) / slots
    }

    /// The endpoints in the order in which they stand in for one that is full.
    pub(super) fn others(&self, hash: u64) -> impl Iterator<Item = usize> {
        let mut order: Vec<usize> = (0..self.shares.len()).collect();
        let mut random = MersenneTwister::new(hash as u32);
        (0..order.len()).map(move |turn| {
            let other = turn + random.below((order.len() - turn) as u32) as usize;
            order.swap(turn, other);
            order[turn]
        })
    }
}

/// MT19937: it is by this that Envoy shuffles.
struct MersenneTwister {
    state: Box<[u32; SIZE]>,
    next: usize,
}

const SIZE: usize = 624;

impl MersenneTwister {
    fn new(seed: u32) -> Self {
        let mut state = Box::new([seed; SIZE]);
        for index in 1..SIZE {
            let before = state[index - 1];
            state[index] = (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(index as u32);
        }
        Self { state, next: SIZE }
    }

    fn draw(&mut self) -> u32 {
        if self.next == SIZE {
            self.twist();
        }
        let mut value = self.state[self.next];
        self.next += 1;
        value ^= value >> 11;
        value ^= (value << 7) & 0x9d2c_5680;
        value ^= (value << 15) & 0xefc6_0000;
        value ^ (value >> 18)
    }

    fn twist(&mut self) {
        const SHIFT: usize = 397;
        for index in 0..SIZE {
            let joined = (self.state[index] & 0x8000_0000) | (self.state[(index + 1) % SIZE] & 0x7fff_ffff);
            let odd = if joined & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[index] = self.state[(index + SHIFT) % SIZE] ^ (joined >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// Uniform below `end`, which is not 0.
    fn below(&mut self, end: u32) -> u32 {
        loop {
            let value = (u64::from(self.draw()) / ((1 << 32) / u64::from(end))) as u32;
            if value < end {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_standard() {
        // C++, [rand.predef]: the 10000th of the default seed.
        let mut random = MersenneTwister::new(5489);
        assert_eq!((0..10_000).map(|_| random.draw()).last(), Some(4_123_659_995));
    }

    #[test]
    fn each_endpoint_comes_once_and_a_key_always_meets_the_same() {
        let bound = Bound::new(120, &[1.0; 7]);
        let order: Vec<_> = bound.others(42).collect();
        assert_eq!(order, bound.others(42).collect::<Vec<_>>());
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..7).collect::<Vec<_>>());
        assert!((0..50).any(|hash| bound.others(hash).next() != Some(order[0])));
    }

    #[test]
    fn who_has_more_than_a_share_of_all_is_full() {
        let bound = Bound::new(150, &[3.0, 1.0]);
        // Of 9 and the next one there is room for 15: 12 and 4.
        assert!(bound.load(0, 12, 9) <= 1.0 && bound.load(0, 13, 9) > 1.0);
        assert!(bound.load(1, 4, 9) <= 1.0 && bound.load(1, 5, 9) > 1.0);
        assert!(bound.load(1, 1, 0) <= 1.0, "there is always room for one");
    }
}

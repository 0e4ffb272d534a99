//! Token buckets.
//!
//! A bucket is one atomic word: the time at which it will be full again (the "theoretical arrival time" of GCRA). A
//! request moves it on by the time that one token takes to come back, unless that would be further ahead than the
//! whole bucket. So there is nothing to refill, and no lock. Times are nanoseconds from an epoch of who holds the bucket.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tulle_mesh::model::TokenBucket;
use twox_hash::XxHash64;

/// How fast a bucket fills and how much it holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Nanoseconds until one token is back.
    pub(super) token: u64,
    /// Nanoseconds until an empty bucket is full.
    full: u64,
}

impl Pace {
    pub(super) fn of(bucket: TokenBucket) -> Self {
        let nanos = u64::try_from(bucket.fill_interval.as_nanos()).unwrap_or(u64::MAX);
        let token = nanos / u64::from(bucket.tokens_per_fill.max(1));
        Self { token, full: token.saturating_mul(bucket.burst.max(1).into()) }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// When there is none: how long until there is.
    pub(super) fn take(self, bucket: &AtomicU64, now: u64) -> Result<(), Duration> {
        let mut full_at = bucket.load(Relaxed);
        loop {
            let next = self.spend(full_at, now)?;
            match bucket.compare_exchange_weak(full_at, next, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => full_at = other,
            }
        }
    }

    /// What is left in a bucket, and how long until it holds a whole token.
    pub(super) fn left(self, bucket: &AtomicU64, now: u64) -> (u32, Duration) {
        let missing = bucket.load(Relaxed).saturating_sub(now);
        let left = self.full.saturating_sub(missing) / self.token.max(1);
        let wait = missing.saturating_add(self.token).saturating_sub(self.full);
        (u32::try_from(left).unwrap_or(u32::MAX), Duration::from_nanos(wait))
    }

    /// When a bucket that would have been full at `full_at` will be, with one token less.
    fn spend(self, full_at: u64, now: u64) -> Result<u64, Duration> {
        let next = full_at.max(now).saturating_add(self.token);
        match (next - now).checked_sub(self.full) {
            None | Some(0) => Ok(next),
            Some(wait) => Err(Duration::from_nanos(wait)),
        }
    }
}

/// A bounded table of buckets: what a flood of names costs is fixed. A name has a few places where its bucket may
/// be; when all are other busy names', the fullest bucket is given up, and its owner starts anew.
pub(super) struct Table {
    seed: u64,
    probes: usize,
    places: Box<[Place]>,
}

#[derive(Default)]
struct Place {
    /// The hash of the name; 0: free.
    name: AtomicU64,
    full_at: AtomicU64,
}

impl Table {
    /// `places` for all names, `probes` for each. `seed`: random, so that nobody can choose names that share a bucket.
    pub(super) fn new(seed: u64, places: usize, probes: usize) -> Self {
        let places = places.max(1);
        Self { seed, probes: probes.min(places), places: (0..places).map(|_| Place::default()).collect() }
    }

    /// The bucket of a name, given in parts.
    pub(super) fn bucket<'p>(&self, name: impl Iterator<Item = &'p str>, now: u64) -> &AtomicU64 {
        let hash = hash(self.seed, name).max(1);
        let first = (hash as usize) % self.places.len();
        let places = (0..self.probes).map(|i| &self.places[(first + i) % self.places.len()]);
        if let Some(own) = places.clone().find(|place| place.name.load(Relaxed) == hash) {
            return &own.full_at;
        }
        let fullest = places.min_by_key(|place| place.full_at.load(Relaxed)).unwrap_or(&self.places[0]);
        let owner = fullest.name.load(Relaxed);
        // Of two workers that want the same place, one gets it; the other shares it until it asks again.
        if fullest.name.compare_exchange(owner, hash, Relaxed, Relaxed).is_ok() {
            fullest.full_at.store(now, Relaxed);
        }
        &fullest.full_at
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }
}

/// The hash of a name in parts, in which each part has its bounds.
pub(super) fn hash<'p>(seed: u64, parts: impl Iterator<Item = &'p str>) -> u64 {
    use std::hash::Hasher;
    let mut hasher = XxHash64::with_seed(seed);
    for part in parts {
        hasher.write(part.as_bytes());
        // No text of UTF-8 has it.
        hasher.write_u8(0xff);
    }
    hasher.finish()
}

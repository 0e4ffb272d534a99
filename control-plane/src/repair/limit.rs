//! How many pods may be deleted: 10 at once and one a second of all, and of one owner on one node, whose pods a deletion
//! does not seem to help, five at once and one in two minutes.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

const ALL: Rate = Rate { burst: 10, every: Duration::from_secs(1) };
const OWNER: Rate = Rate { burst: 5, every: Duration::from_secs(120) };

#[derive(Clone, Copy)]
struct Rate {
    burst: u32,
    /// The time after which one more is allowed.
    every: Duration,
}

/// What is allowed now.
pub(super) struct Limit {
    all: Bucket,
    owners: HashMap<(String, String), Bucket>,
}

impl Limit {
    pub(super) fn new(now: Instant) -> Self {
        Self { all: Bucket::full(now), owners: HashMap::new() }
    }

    /// Whether a pod of this owner (its UID) on this node may be deleted now; counts it if so.
    pub(super) fn allows(&mut self, owner: &str, node: &str, now: Instant) -> bool {
        self.owners.retain(|_, bucket| !bucket.is_full(now));
        if self.all.left(ALL, now) == 0 {
            return false;
        }
        let key = (owner.to_owned(), node.to_owned());
        let allowed = self.owners.entry(key).or_insert_with(|| Bucket::full(now)).take(OWNER, now);
        allowed && self.all.take(ALL, now)
    }

    /// Whether pods of this owner were deleted on this node so often that another deletion would not help either.
    pub(super) fn is_in_vain(&self, owner: &str, node: &str, now: Instant) -> bool {
        let key = (owner.to_owned(), node.to_owned());
        self.owners.get(&key).is_some_and(|bucket| bucket.left(OWNER, now) == 0)
    }
}

/// Counts by one instant: when it will be full again.
struct Bucket {
    full: Instant,
}

impl Bucket {
    fn full(now: Instant) -> Self {
        Self { full: now }
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full <= now
    }

    fn left(&self, rate: Rate, now: Instant) -> u32 {
        let missing = self.full.saturating_duration_since(now).as_nanos().div_ceil(rate.every.as_nanos());
        rate.burst.saturating_sub(u32::try_from(missing).unwrap_or(u32::MAX))
    }

    fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let allowed = self.left(rate, now) > 0;
        if allowed {
            self.full = self.full.max(now) + rate.every;
        }
        allowed
    }
}

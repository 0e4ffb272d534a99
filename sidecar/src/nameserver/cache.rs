//! Answers of other name servers, for as long as they hold.
//!
//! In: answers, and what they say of their own lifetime. Out: the same answers, with the time that has passed taken off
//! their TTLs (RFC 1035, section 3.2.1), and never after they have expired. The cache is bounded in answers and in octets;
//! what would expire first makes room.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::message::{Outline, Query, revive};

/// The most answers that are kept.
const MAX_ANSWERS: usize = 4096;
/// The most octets that are kept.
const MAX_OCTETS: usize = 4 << 20;
/// The longest time that an answer is kept.
const MAX_LIFETIME: Duration = Duration::from_secs(86_400);
/// The longest time that the absence of an answer is kept (RFC 2308, section 5).
const MAX_ABSENCE: Duration = Duration::from_secs(3600);

/// The answers that are kept.
#[derive(Debug, Default)]
pub(super) struct Cache {
    answers: HashMap<Vec<u8>, Kept>,
    octets: usize,
}

#[derive(Debug)]
struct Kept {
    bytes: Arc<[u8]>,
    ttls: Vec<usize>,
    since: Instant,
    until: Instant,
}

impl Cache {
    /// The answer to a query, where one is kept.
    pub(super) fn get(&self, key: &[u8], query: &Query, now: Instant) -> Option<Vec<u8>> {
        let kept = self.answers.get(key).filter(|kept| now < kept.until)?;
        let age = now.saturating_duration_since(kept.since).as_secs();
        let mut answer = kept.bytes.to_vec();
        revive(&mut answer, &kept.ttls, u32::try_from(age).unwrap_or(u32::MAX), query);
        Some(answer)
    }

    /// Keeps an answer, if it may be kept.
    pub(super) fn keep(&mut self, key: Vec<u8>, bytes: &Arc<[u8]>, outline: Outline, now: Instant) {
        let Some(lifetime) = outline.lifetime else { return };
        let longest = if outline.answers { MAX_LIFETIME } else { MAX_ABSENCE };
        self.forget(&key);
        while self.answers.len() >= MAX_ANSWERS || self.octets + bytes.len() > MAX_OCTETS {
            let first = self.answers.iter().min_by_key(|(_, kept)| kept.until).map(|(key, _)| key.clone());
            let Some(first) = first else { return };
            self.forget(&first);
        }
        self.octets += bytes.len();
        let until = now + lifetime.min(longest);
        self.answers.insert(key, Kept { bytes: Arc::clone(bytes), ttls: outline.ttls, since: now, until });
    }

    /// How many answers are kept.
    pub(super) fn len(&self) -> usize {
        self.answers.len()
    }

    fn forget(&mut self, key: &[u8]) {
        if let Some(kept) = self.answers.remove(key) {
            self.octets -= kept.bytes.len();
        }
    }
}

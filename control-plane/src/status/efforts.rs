//! How long to leave an object alone whose status did not stay, or could not be written.
//!
//! In: each write, and whether it came through. Out: whether the same may be written again by now. What is new is written at
//! once; the same again only after a pause, which doubles each time: another controller that takes our entry away, or an
//! API server that refuses it, will most likely do so again. Pure; the caller has the clock.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tokio::time::Instant;

use super::document::Wanted;
use crate::source::ObjectRef;

/// The first pause.
const FIRST: Duration = Duration::from_secs(1);

/// The longest. Who was left alone for this long beyond its pause is a new case.
const LONGEST: Duration = Duration::from_secs(300);

/// The last write to each object.
#[derive(Debug, Default)]
pub(super) struct Efforts {
    last: HashMap<ObjectRef, Effort>,
}

#[derive(Debug)]
struct Effort {
    /// A digest of what was to be written.
    wanted: u64,
    pause: Duration,
    /// When the same may be written again.
    next: Instant,
    /// It did not come through.
    failed: bool,
    /// Somebody asked for it before its time.
    held: bool,
}

impl Efforts {
    /// Whether an object may be written to by now.
    pub(super) fn may(&mut self, object: &ObjectRef, wanted: &Wanted, now: Instant) -> bool {
        let digest = digest(wanted);
        match self.last.get_mut(object) {
            Some(effort) if effort.wanted == digest && now < effort.next => {
                effort.held = true;
                false
            }
            _ => true,
        }
    }

    /// It was tried. Whether it has failed for the first time in a row.
    pub(super) fn made(&mut self, object: &ObjectRef, wanted: &Wanted, done: bool, now: Instant) -> bool {
        let digest = digest(wanted);
        let before = self.last.get(object);
        let again = before.filter(|effort| effort.wanted == digest && now < effort.next + LONGEST);
        let pause = again.map_or(FIRST, |effort| (effort.pause * 2).min(LONGEST));
        let first = !done && before.is_none_or(|effort| !effort.failed);
        let effort = Effort { wanted: digest, pause, next: now + pause, failed: !done, held: false };
        self.last.insert(object.clone(), effort);
        first
    }

    /// Whether the pause of something that has to be written is over.
    pub(super) fn due(&self, now: Instant) -> bool {
        self.last.values().any(|effort| (effort.held || effort.failed) && now >= effort.next)
    }

    /// Forgets objects.
    pub(super) fn retain(&mut self, stays: impl Fn(&ObjectRef) -> bool) {
        self.last.retain(|object, _| stays(object));
    }
}

fn digest(wanted: &Wanted) -> u64 {
    let mut hasher = DefaultHasher::new();
    wanted.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(generation: i64) -> Wanted {
        Wanted { policy: false, generation, entries: Vec::new() }
    }

    fn cart() -> ObjectRef {
        ObjectRef { kind: "HTTPRoute", namespace: "shop".into(), name: "cart".into() }
    }

    #[test]
    fn the_same_again_has_to_wait_ever_longer_and_news_do_not() {
        let (mut efforts, mut now) = (Efforts::default(), Instant::now());
        let begun = now;
        let mut writes = 0;
        // Somebody takes away what is written, at once, for an hour.
        while now < begun + Duration::from_secs(3600) {
            if efforts.may(&cart(), &wanted(1), now) {
                assert!(!efforts.made(&cart(), &wanted(1), true, now));
                writes += 1;
            } else {
                assert!(efforts.due(now + LONGEST));
            }
            now += Duration::from_secs(1);
        }
        assert!((15..25).contains(&writes), "{writes}");
        assert!(!efforts.may(&cart(), &wanted(1), now));
        assert!(efforts.may(&cart(), &wanted(2), now), "it is another");
        efforts.made(&cart(), &wanted(2), true, now);
        assert!(efforts.may(&cart(), &wanted(2), now + FIRST), "and begins anew");
        // After a long peace too.
        now += LONGEST * 3;
        efforts.made(&cart(), &wanted(2), true, now);
        assert!(efforts.may(&cart(), &wanted(2), now + FIRST));
        efforts.retain(|_| false);
        assert!(efforts.may(&cart(), &wanted(2), now) && !efforts.due(now + LONGEST));
    }

    #[test]
    fn a_failure_is_told_once_in_a_row_and_tried_again() {
        let (mut efforts, now) = (Efforts::default(), Instant::now());
        assert!(efforts.made(&cart(), &wanted(1), false, now));
        assert!(!efforts.due(now) && efforts.due(now + FIRST), "nobody has to ask for it");
        assert!(!efforts.made(&cart(), &wanted(1), false, now + FIRST));
        assert!(!efforts.due(now + FIRST * 2) && efforts.due(now + FIRST * 3));
        assert!(!efforts.made(&cart(), &wanted(1), true, now + FIRST * 3));
        assert!(!efforts.due(now + LONGEST), "it stayed");
        assert!(efforts.made(&cart(), &wanted(1), false, now + LONGEST));
    }
}

//! What each replica of the control plane tells the leader of the sidecars that are connected to it.
//!
//! In: what a replica knows of every route and policy, and what its sidecars say of them. Out: a [`Report`] of bounded size,
//! as JSON, and what follows from it for an object. Pure; [`super::exchange`] carries it.
//!
//! A replica may be later than the leader to hear of a change. So a report says which objects it is about: objects are
//! sorted into buckets, and of each bucket there is a digest of all that the replica knows of the objects in it. Where the
//! leader knows something else, nobody can say yet that the object is in force.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::programmed::Outcome;
use crate::source::ObjectRef;

/// How many buckets there are.
const BUCKETS: usize = 256;

/// The most objects that a report names. Of the buckets of all further ones it says nothing.
const MAX_OBJECTS: usize = 50;

/// The longest rejection in a report, in characters.
const MAX_REASON: usize = 256;

/// What a replica knows of all objects, by bucket. 0 stands for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digests(Vec<u32>);

impl Digests {
    /// Adds an object, with everything of it that matters.
    pub fn add(&mut self, object: &ObjectRef, state: &impl Hash) {
        self.0.resize(BUCKETS, 0);
        let mut hash = Stable(Sha256::new());
        (object.kind, &object.namespace, &object.name).hash(&mut hash);
        let bucket = bucket(hash.finish());
        state.hash(&mut hash);
        self.0[bucket] ^= hash.finish() as u32;
    }

    fn of(&self, object: &ObjectRef) -> Option<u32> {
        let digest = self.0.get(Self::bucket(object)).copied();
        digest.filter(|digest| *digest != 0)
    }

    fn bucket(object: &ObjectRef) -> usize {
        let mut hash = Stable(Sha256::new());
        (object.kind, &object.namespace, &object.name).hash(&mut hash);
        bucket(hash.finish())
    }
}

fn bucket(hash: u64) -> usize {
    (hash >> 32) as usize % BUCKETS
}

/// A hash that is the same in every process. Replicas of one cluster have one word size and byte order.
struct Stable(Sha256);

impl Hasher for Stable {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        digest.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }
}

/// What a replica says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// What it is about.
    known: Digests,
    /// How many sidecars have not been sent the last change yet.
    behind: usize,
    /// The objects that are not in force at all of its sidecars.
    objects: Vec<Lagging>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Lagging {
    kind: String,
    namespace: String,
    name: String,
    waiting: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected: Option<String>,
}

impl Report {
    /// One in which every object is in force.
    pub fn new(known: Digests, behind: usize) -> Self {
        Self { known, behind, objects: Vec::new() }
    }

    /// Adds an object that is not in force everywhere.
    pub fn add(&mut self, object: &ObjectRef, outcome: Outcome) {
        if self.objects.len() == MAX_OBJECTS {
            if let Some(digest) = self.known.0.get_mut(Digests::bucket(object)) {
                *digest = 0;
            }
            return;
        }
        self.objects.push(Lagging {
            kind: object.kind.into(),
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            waiting: outcome.waiting,
            rejected: outcome.rejected.map(|reason| reason.chars().take(MAX_REASON).collect()),
        });
    }

    /// What it says of an object to a leader who knows `known`.
    pub(super) fn outcome(&self, replica: &str, object: &ObjectRef, known: &Digests) -> Outcome {
        let lagging = self.objects.iter().find(|lagging| {
            (lagging.kind.as_str(), &lagging.namespace, &lagging.name)
                == (object.kind, &object.namespace, &object.name)
        });
        let same = self.known.of(object).is_some() && self.known.of(object) == known.of(object);
        Outcome {
            rejected: lagging.and_then(|lagging| lagging.rejected.clone()),
            waiting: self.behind.max(lagging.map_or(0, |lagging| lagging.waiting)),
            unknown_to: (!same).then(|| replica.to_owned()),
        }
    }
}

/// What all other replicas say, at the leader. Elsewhere it is empty.
#[derive(Debug, Default)]
pub struct Replicas {
    reports: Mutex<BTreeMap<String, Arc<Report>>>,
    turns: AtomicU64,
}

impl Replicas {
    /// Takes what a replica says now; `None` when it says nothing any more.
    pub fn set(&self, replica: &str, report: Option<Report>) {
        let mut reports = self.lock();
        let before = reports.get(replica).map(|report| &**report);
        if before == report.as_ref() {
            return;
        }
        match report {
            Some(report) => reports.insert(replica.into(), Arc::new(report)),
            None => reports.remove(replica),
        };
        self.turns.fetch_add(1, Ordering::AcqRel);
    }

    /// What each says, by name.
    pub fn reports(&self) -> Vec<(String, Arc<Report>)> {
        self.lock().iter().map(|(name, report)| (name.clone(), Arc::clone(report))).collect()
    }

    /// Another number after each change of [`Self::reports`].
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Report>>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str) -> ObjectRef {
        ObjectRef { kind: "HTTPRoute", namespace: "n".repeat(63), name: name.into() }
    }

    #[test]
    fn a_report_comes_back_as_it_was_and_is_never_large() {
        let mut known = Digests::default();
        let names: Vec<_> = (0..5000).map(|at| format!("{at:0253}")).collect();
        names.iter().for_each(|name| known.add(&object(name), &1));
        let mut report = Report::new(known.clone(), 3);
        let refused = || Outcome { rejected: Some("\u{1f6d1}".repeat(4096)), waiting: 1, unknown_to: None };
        names.iter().for_each(|name| report.add(&object(name), refused()));
        let text = serde_json::to_string(&report).expect("it has only strings for keys");
        assert!(text.len() < 96 * 1024, "{}", text.len());
        assert_eq!(serde_json::from_str::<Report>(&text).expect("it was just written"), report);
        // Of what found no place in it, it does not say that all is well.
        let last = report.outcome("b", &object(&names[4999]), &known);
        assert_eq!((last.rejected.is_some(), last.unknown_to.as_deref()), (false, Some("b")));
        assert!(report.outcome("b", &object(&names[0]), &known).rejected.is_some());
    }

    #[test]
    fn what_changes_of_one_object_is_not_said_of_others() {
        let known = |generation: i64| {
            let mut known = Digests::default();
            known.add(&object("a"), &1);
            known.add(&object("b"), &generation);
            known
        };
        assert_ne!(Digests::bucket(&object("a")), Digests::bucket(&object("b")));
        let report = Report::new(known(1), 0);
        assert_eq!(report.outcome("r", &object("a"), &known(2)), Outcome::default());
        assert!(report.outcome("r", &object("b"), &known(2)).unknown_to.is_some());
    }

    #[test]
    fn what_is_not_understood_vouches_for_nothing() {
        let mut known = Digests::default();
        known.add(&object("a"), &1);
        let report: Report = serde_json::from_str(r#"{"known": [1, 2], "later": true}"#).expect("no error");
        assert!(report.outcome("r", &object("a"), &known).unknown_to.is_some());
    }

    #[test]
    fn only_news_are_told() {
        let replicas = Replicas::default();
        replicas.set("a", None);
        replicas.set("a", Some(Report::default()));
        replicas.set("a", Some(Report::default()));
        assert_eq!(replicas.turns(), 1);
        replicas.set("a", None);
        assert_eq!((replicas.turns(), replicas.reports().len()), (2, 0));
    }
}

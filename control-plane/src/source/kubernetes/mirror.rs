//! What the API server has, as far as it is known.
//!
//! In: lists and single changes of each kind, read or broken, and the word that a kind is absent or can't be read. Out:
//! [`Loaded`], once every kind is known, and again whenever something in it has changed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::is_custom;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::source::{
    Key, Kind, KindVisitor, Loaded, Object, ObjectRef, Objects, Problem, Severity, Table, object_ref,
};

/// All objects. Shared by the tasks that read them.
pub(super) struct Mirror {
    state: Mutex<State>,
    notify: Notify,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

struct State {
    objects: Objects,
    problems: BTreeMap<ObjectRef, Vec<Problem>>,
    kinds: BTreeMap<&'static str, Standing>,
    dirty: bool,
}

/// What is known of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing yet.
    Unknown,
    /// All its objects.
    Listed,
    /// The cluster does not have it, for the reason given.
    Absent(Absence),
}

/// Why a kind is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absence {
    /// Its definition is not installed.
    NotInstalled,
    /// Its definition is there, but none of the versions that Tulle reads is served.
    OtherVersions,
}

/// An object as it was read.
pub(super) struct Reading<T> {
    pub(super) key: Key,
    /// `None` when it must not be used.
    pub(super) value: Option<T>,
    pub(super) problems: Vec<Problem>,
}

impl Mirror {
    pub(super) fn new(health: Arc<Health>, metrics: Arc<Metrics>) -> Self {
        struct Name(BTreeMap<&'static str, Standing>);
        impl KindVisitor for Name {
            fn visit<T: Kind>(&mut self) {
                self.0.insert(T::KIND, Standing::Unknown);
            }
        }
        let mut names = Name(BTreeMap::new());
        Objects::visit_kinds(&mut names);
        for kind in names.0.keys() {
            health.note(kind, Some("not read yet".into()));
        }
        let state =
            State { objects: Objects::default(), problems: BTreeMap::new(), kinds: names.0, dirty: true };
        Self { state: Mutex::new(state), notify: Notify::new(), health, metrics }
    }

    /// Returns after a change.
    pub(super) async fn changed(&self) {
        self.notify.notified().await;
    }

    /// Everything, where every kind is known and something has changed since the last time.
    pub(super) fn take(&self) -> Option<Loaded> {
        let mut state = self.lock();
        if !state.dirty || state.kinds.values().any(|standing| *standing == Standing::Unknown) {
            return None;
        }
        state.dirty = false;
        let mut problems: Vec<Problem> = state.problems.values().flatten().cloned().collect();
        problems.extend(missing(&state.kinds));
        problems.sort();
        Some(Loaded { objects: state.objects.clone(), problems })
    }

    /// All objects of a kind, of which no others exist.
    pub(super) fn replace<T: Kind>(&self, listed: Vec<Reading<T>>) {
        let mut state = self.lock();
        let before = std::mem::take(T::table_mut(&mut state.objects));
        let problems_before = state.problems.len();
        let mut changed = state.kinds.insert(T::KIND, Standing::Listed) != Some(Standing::Listed);
        let mut faults = BTreeMap::new();
        let mut table = Table::<T>::new();
        for Reading { key, value, problems } in listed {
            if !problems.is_empty() {
                faults.insert(object_ref::<T>(&key), problems);
            }
            let earlier = before.get(&key);
            let object = match (value, earlier) {
                (Some(value), Some(earlier)) if *earlier.value == value => earlier.clone(),
                (Some(value), _) => {
                    changed = true;
                    Object { value: Arc::new(value), place: None }
                }
                (None, Some(earlier)) => earlier.clone(),
                (None, None) => continue,
            };
            table.insert(key, object);
        }
        changed |= table.len() != before.len();
        *T::table_mut(&mut state.objects) = table;
        let (of_kind, others): (BTreeMap<_, _>, _) =
            std::mem::take(&mut state.problems).into_iter().partition(|(object, _)| object.kind == T::KIND);
        debug_assert_eq!(of_kind.len() + others.len(), problems_before, "each problem is of one kind");
        changed |= of_kind != faults;
        state.problems = others;
        state.problems.extend(faults);
        self.metrics.source_listed(T::KIND);
        self.done(state, changed);
    }

    /// An object that is new or was changed.
    pub(super) fn apply<T: Kind>(&self, Reading { key, value, problems }: Reading<T>) {
        let mut state = self.lock();
        let object = object_ref::<T>(&key);
        let mut changed = false;
        if let Some(value) = value {
            let table = T::table_mut(&mut state.objects);
            if table.get(&key).is_none_or(|earlier| *earlier.value != value) {
                table.insert(key, Object { value: Arc::new(value), place: None });
                changed = true;
            }
        }
        let before = state.problems.remove(&object).unwrap_or_default();
        changed |= before != problems;
        if !problems.is_empty() {
            state.problems.insert(object, problems);
        }
        self.done(state, changed);
    }

    /// An object that is gone.
    pub(super) fn delete<T: Kind>(&self, key: &Key) {
        let mut state = self.lock();
        let removed = T::table_mut(&mut state.objects).remove(key).is_some();
        let broken = state.problems.remove(&object_ref::<T>(key)).is_some();
        self.done(state, removed || broken);
    }

    /// A kind that the cluster does not have.
    pub(super) fn absent<T: Kind>(&self, absence: Absence) {
        let mut state = self.lock();
        let standing = Standing::Absent(absence);
        let known = state.kinds.insert(T::KIND, standing.clone()) == Some(standing);
        let had = !std::mem::take(T::table_mut(&mut state.objects)).is_empty();
        state.problems.retain(|object, _| object.kind != T::KIND);
        self.done(state, !known || had);
        self.fine::<T>();
    }

    /// A kind can't be read now: what is known of it stays.
    pub(super) fn failing<T: Kind>(&self, reason: String) {
        tracing::warn!(kind = T::KIND, reason, "can't follow objects; those that are known stay in force");
        self.health.note(T::KIND, Some(reason));
        self.metrics.source_failing(T::KIND, true);
    }

    /// A kind can be read.
    pub(super) fn fine<T: Kind>(&self) {
        self.health.note(T::KIND, None);
        self.metrics.source_failing(T::KIND, false);
    }

    fn done(&self, mut state: MutexGuard<'_, State>, changed: bool) {
        state.dirty |= changed;
        drop(state);
        if changed {
            self.notify.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A warning for each group of kinds that is not there, or not as a whole.
fn missing(kinds: &BTreeMap<&'static str, Standing>) -> Vec<Problem> {
    struct Groups<'a> {
        kinds: &'a BTreeMap<&'static str, Standing>,
        absent: BTreeMap<(&'static str, bool), Vec<&'static str>>,
    }
    impl KindVisitor for Groups<'_> {
        fn visit<T: Kind>(&mut self) {
            if let (true, Some(Standing::Absent(absence))) = (is_custom::<T>(), self.kinds.get(T::KIND)) {
                let other_versions = *absence == Absence::OtherVersions;
                self.absent.entry((T::GROUP, other_versions)).or_default().push(T::KIND);
            }
        }
    }
    let mut groups = Groups { kinds, absent: BTreeMap::new() };
    Objects::visit_kinds(&mut groups);
    groups
        .absent
        .into_iter()
        .map(|((group, other_versions), kinds)| {
            let what =
                if other_versions { "serves no version that is read here of" } else { "does not have" };
            let fix = match group {
                crate::kinds::GROUP => "apply manifests/crds".into(),
                _ => format!("install the CustomResourceDefinitions of {group}, version 1.5 or later"),
            };
            Problem {
                file: None,
                line: None,
                column: None,
                severity: Severity::Warning,
                object: None,
                field: String::new(),
                reason: format!("the cluster {what} {}", kinds.join(", ")),
                fix: format!("{fix}; they are taken up without a restart"),
            }
        })
        .collect()
}

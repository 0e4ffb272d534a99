//! What the API server has, as far as it is known.
//!
//! In: lists and single changes of each kind, read or broken, and the word that a kind is absent or can't be read. Out:
//! [`Loaded`], once every kind is known, and again whenever something in it has changed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::crds::Definitions;
use super::lacking::lacking;
use super::statuses::Statuses;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::source::{Key, Kind, KindVisitor, Loaded, Object, ObjectRef, Objects, Problem, Table, object_ref};

/// All objects. Shared by the tasks that read them.
pub(super) struct Mirror {
    state: Mutex<State>,
    notify: Notify,
    statuses: Arc<Statuses>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

struct State {
    objects: Objects,
    problems: BTreeMap<ObjectRef, Vec<Problem>>,
    kinds: Standings,
    /// The definitions of kinds, where they are followed.
    definitions: Option<Arc<Definitions>>,
    dirty: bool,
}

/// What is known of each kind.
pub(super) type Standings = BTreeMap<&'static str, Standing>;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    /// What is said of it, where that is not a part of it.
    pub(super) status: Option<serde_json::Value>,
}

impl Mirror {
    pub(super) fn new(health: Arc<Health>, metrics: Arc<Metrics>) -> Self {
        struct Name(Standings);
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
        let state = State {
            objects: Objects::default(),
            problems: BTreeMap::new(),
            kinds: names.0,
            definitions: None,
            dirty: true,
        };
        let statuses = Arc::default();
        Self { state: Mutex::new(state), notify: Notify::new(), statuses, health, metrics }
    }

    /// What is said of the objects.
    pub(super) fn statuses(&self) -> &Arc<Statuses> {
        &self.statuses
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
        problems.extend(lacking(&state.kinds, state.definitions.as_deref()));
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
        self.statuses.forget_all(T::KIND);
        for Reading { key, value, problems, status } in listed {
            if let Some(status) = status {
                self.statuses.note(object_ref::<T>(&key), status);
            }
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
    pub(super) fn apply<T: Kind>(&self, Reading { key, value, problems, status }: Reading<T>) {
        let mut state = self.lock();
        let object = object_ref::<T>(&key);
        if let Some(status) = status {
            self.statuses.note(object.clone(), status);
        }
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
        let object = object_ref::<T>(key);
        self.statuses.forget(&object);
        let broken = state.problems.remove(&object).is_some();
        self.done(state, removed || broken);
    }

    /// A kind that the cluster does not have.
    pub(super) fn absent<T: Kind>(&self, absence: Absence) {
        let mut state = self.lock();
        let standing = Standing::Absent(absence);
        let known = state.kinds.insert(T::KIND, standing.clone()) == Some(standing);
        let had = !std::mem::take(T::table_mut(&mut state.objects)).is_empty();
        state.problems.retain(|object, _| object.kind != T::KIND);
        self.statuses.forget_all(T::KIND);
        self.done(state, !known || had);
        self.fine::<T>();
    }

    /// The definitions of kinds that the cluster has.
    pub(super) fn defined(&self, definitions: Arc<Definitions>) {
        let mut state = self.lock();
        let changed = state.definitions.as_ref() != Some(&definitions);
        state.definitions = Some(definitions);
        self.done(state, changed);
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

//! What is different between two states of the world.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Resources;

/// What an update changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys of listeners.
    pub listeners: Changed,
    /// Names of route configurations.
    pub routes: Changed,
    /// Names of clusters.
    pub clusters: Changed,
    /// Names of load assignments.
    pub endpoints: Changed,
    /// Names for resolvers.
    pub dns: Changed,
    /// An alias may mean another listener than before.
    pub names: bool,
    /// Problems or conditions are different.
    pub findings: bool,
}

/// The resources of one type that an update changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// New ones, and those with another content.
    pub updated: BTreeSet<Arc<str>>,
    /// Those that are gone.
    pub removed: BTreeSet<Arc<str>>,
}

impl Changed {
    /// Nothing changed.
    pub fn is_empty(&self) -> bool {
        self.updated.is_empty() && self.removed.is_empty()
    }
}

impl Changes {
    /// No resource changed.
    pub fn is_empty(&self) -> bool {
        [&self.listeners, &self.routes, &self.clusters, &self.endpoints, &self.dns]
            .iter()
            .all(|changed| changed.is_empty())
    }
}

/// Compares two states of the resources of a type, and puts the old `Arc` in the place of an equal new one.
pub(super) fn carry_over<T: PartialEq>(old: &Resources<T>, new: &mut Resources<T>) -> Changed {
    let mut changed = Changed::default();
    for (key, resource) in new.iter_mut() {
        match old.get(key) {
            Some(earlier) if **earlier == **resource => *resource = earlier.clone(),
            _ => {
                changed.updated.insert(key.clone());
            }
        }
    }
    changed.removed = old.keys().filter(|key| !new.contains_key(*key)).cloned().collect();
    changed
}

//! What the API server has as the status of routes and policies: kept apart from what their authors ask for, so that what is
//! said of an object changes nothing in the mesh.
//!
//! In: each object that is listed or was changed. Out: the last status of each that came since somebody asked, for whoever
//! writes them and must hear when others change them. Nothing here decides anything.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::source::ObjectRef;

/// Statuses that nobody has looked at yet.
#[derive(Debug, Default)]
pub struct Statuses {
    /// The last of each object.
    news: Mutex<HashMap<ObjectRef, Value>>,
}

impl Statuses {
    /// The last status of every object that was listed or changed since the last call.
    pub fn take(&self) -> HashMap<ObjectRef, Value> {
        std::mem::take(&mut *self.lock())
    }

    pub(super) fn note(&self, object: ObjectRef, status: Value) {
        self.lock().insert(object, status);
    }

    /// Of an object that is gone nobody needs to know.
    pub(super) fn forget(&self, object: &ObjectRef) {
        self.lock().remove(object);
    }

    /// The same of all objects of a kind.
    pub(super) fn forget_all(&self, kind: &str) {
        self.lock().retain(|object, _| object.kind != kind);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectRef, Value>> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The fan-out: one change in, a note to every stream out.
//!
//! A stream that falls so far behind that notes are lost looks at all its subscriptions instead, so nothing is queued
//! without bound and nothing is missed. No note is held back to wait for more: endpoints must not be late.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::broadcast;

use super::{Catalog, Changed};

/// The most notes that wait for a stream before it looks at everything instead.
const MAX_NOTES: usize = 256;

/// The catalog, and the news of its changes.
#[derive(Clone)]
pub struct Hub {
    catalog: Arc<dyn Catalog>,
    notes: broadcast::Sender<Arc<Changed>>,
    published: Arc<AtomicU64>,
}

impl Hub {
    /// Serves a catalog.
    pub fn new(catalog: Arc<dyn Catalog>) -> Self {
        Self { catalog, notes: broadcast::Sender::new(MAX_NOTES), published: Arc::default() }
    }

    /// Tells every stream of a change that the catalog already shows.
    pub fn publish(&self, mut changed: Changed) {
        if changed.is_empty() {
            return;
        }
        changed.sequence = self.published.fetch_add(1, Ordering::AcqRel) + 1;
        // An error means that there is no stream.
        let _ = self.notes.send(Arc::new(changed));
    }

    /// The place of the last change in the order of all.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    pub(super) fn catalog(&self) -> &dyn Catalog {
        &*self.catalog
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Arc<Changed>> {
        self.notes.subscribe()
    }
}

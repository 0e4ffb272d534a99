//! How many connections each worker has, so that a new one goes where there are fewest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The number of one worker's open downstream connections, seen by all threads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Load(Arc<AtomicUsize>);

impl Load {
    /// Counts a connection until the value is dropped.
    pub(crate) fn open(&self) -> OpenConnection {
        self.0.fetch_add(1, Relaxed);
        OpenConnection(self.clone())
    }

    /// How many are open.
    pub(crate) fn connections(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// A connection that counts as a worker's load until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenConnection(Load);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

//! The open connections to one endpoint, and the requests that wait for one: for a connection of HTTP/1, or for room on one of
//! HTTP/2.
//!
//! In: connections that are made, come back or end, and streams that end. Out: one who waits looks again. Without a limit on
//! connections nobody ever waits, and all that this costs is a comparison with zero.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

use crate::balance::Permit;

/// How many connections a slot has, in use, idle or about to be made, where they are of HTTP/1; and who waits.
#[derive(Default)]
pub(super) struct Open {
    count: Cell<usize>,
    waiting: Cell<usize>,
    changed: Notify,
}

/// One of them, for as long as it is open, and its place among those of its cluster.
pub(crate) struct Opened {
    open: Rc<Open>,
    _permit: Permit,
}

impl Open {
    /// Whether there is none that could come back.
    pub(super) fn is_empty(&self) -> bool {
        self.count.get() == 0
    }

    /// A connection has become free, or has room.
    pub(super) fn freed(&self) {
        if self.waiting.get() > 0 {
            self.changed.notify_one();
        }
    }

    /// Waits until a connection may have become free, or may be made. Dropped before, it passes the word on.
    pub(super) async fn wait(&self) {
        let _waiter = Waiter::new(self);
        self.changed.notified().await;
    }
}

impl Opened {
    /// One more.
    pub(super) fn new(open: &Rc<Open>, permit: Permit) -> Self {
        open.count.set(open.count.get() + 1);
        Self { open: Rc::clone(open), _permit: permit }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.open.count.set(self.open.count.get() - 1);
        self.open.freed();
    }
}

struct Waiter<'a>(&'a Open);

impl<'a> Waiter<'a> {
    fn new(open: &'a Open) -> Self {
        open.waiting.set(open.waiting.get() + 1);
        Self(open)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

//! Who waits for configuration that was asked for.
//!
//! However many connections want the same listener, the control plane is asked once; and however many names an
//! application makes up, no more than [`MOST`] of its connections wait, and for no more than [`MOST_PORTS`] ports of one
//! host.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use crate::xds::Demand;

/// The most connections and requests of one worker that wait for configuration.
const MOST: usize = 1024;

/// The most ports of one host that are asked for at once: each may be a name of one and the same listener, whose names are
/// bounded too. So those that are waited for are never among the ones that are forgotten.
const MOST_PORTS: usize = 128;

/// The waiting connections and requests of one worker, by name.
pub(super) struct Waiting {
    names: RefCell<HashMap<Arc<str>, Rc<Notify>>>,
    count: Cell<usize>,
    demands: UnboundedSender<Demand>,
}

impl Waiting {
    pub(super) fn new(demands: UnboundedSender<Demand>) -> Self {
        Self { names: RefCell::default(), count: Cell::new(0), demands }
    }

    /// Asks for `name`, unless someone who still waits has, and returns what is ready when there is an answer. `None`
    /// when too many wait already.
    pub(super) fn answer(&self, name: &str) -> Option<impl Future<Output = ()>> {
        if self.count.get() >= MOST {
            return None;
        }
        let known =
            self.names.borrow().get_key_value(name).map(|(name, notify)| (name.clone(), notify.clone()));
        if known.is_none() {
            let names = self.names.borrow();
            let others = names.keys().filter(|other| host_of(other) == host_of(name));
            if others.take(MOST_PORTS).count() == MOST_PORTS {
                return None;
            }
        }
        self.count.set(self.count.get() + 1);
        let (name, notify) = known.unwrap_or_else(|| {
            let (name, notify) = (Arc::<str>::from(name), Rc::new(Notify::new()));
            self.names.borrow_mut().insert(name.clone(), notify.clone());
            // Without a receiver the sidecar is on its way out; the wait then ends with its deadline.
            let _ = self.demands.send(Demand { name: name.clone() });
            (name, notify)
        });
        let place = Place { waiting: self, name, notify };
        Some(async move { place.notify.notified().await })
    }

    /// Wakes those whose name is `answered`.
    pub(super) fn wake(&self, mut answered: impl FnMut(&str) -> bool) {
        self.names.borrow_mut().retain(|name, notify| {
            let answered = answered(name);
            if answered {
                notify.notify_waiters();
            }
            !answered
        });
    }
}

/// A name without its port.
fn host_of(name: &str) -> &str {
    name.rsplit_once(':').map_or(name, |(host, _)| host)
}

/// One waiting connection; the last of a name to give up leaves nothing behind, so that the next one asks again.
struct Place<'a> {
    waiting: &'a Waiting,
    name: Arc<str>,
    notify: Rc<Notify>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiting.count.set(self.waiting.count.get() - 1);
        let mut names = self.waiting.names.borrow_mut();
        // This place and the map hold one each; a newer question under the same name is not this place's.
        if Rc::strong_count(&self.notify) == 2
            && names.get(&self.name).is_some_and(|notify| Rc::ptr_eq(notify, &self.notify))
        {
            names.remove(&self.name);
        }
    }
}

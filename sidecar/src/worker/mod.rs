//! A worker: one OS thread, one current-thread runtime, one set of pools.

pub(crate) mod drain;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use self::drain::Drain;
use crate::snapshot::Current;
use crate::telemetry::Telemetry;
use crate::upstream::Pools;

/// What the connections of one worker share. Never leaves its thread.
pub(crate) struct Worker {
    /// From 0.
    pub(crate) id: usize,
    /// The configuration in force.
    current: RefCell<Current>,
    /// Connections to endpoints.
    pub(crate) pools: Rc<Pools>,
    /// Metrics, spans and logs, shared by all workers.
    pub(crate) telemetry: Arc<Telemetry>,
    /// Whether the sidecar goes away.
    pub(crate) drain: Rc<Drain>,
    /// The state of the worker's random numbers; not for secrets.
    rng: Cell<u64>,
}

impl Worker {
    /// The configuration in force; a request keeps what it got here until it ends.
    pub(crate) fn current(&self) -> Current {
        self.current.borrow().clone()
    }

    /// The configuration that holds outbound listener `name` (a canonical name or an alias), asking the control plane
    /// for it if need be.
    ///
    /// # Errors
    /// When the control plane says that there is none, or has not answered in time.
    pub(crate) async fn outbound(self: &Rc<Self>, _name: &str) -> Result<Current, NoListener> {
        unimplemented!("the worker founder's")
    }

    /// A random number, uniform over `u32`.
    pub(crate) fn draw(&self) -> u32 {
        (self.draw_u64() >> 32) as u32
    }

    /// A random number, uniform over `u64`.
    pub(crate) fn draw_u64(&self) -> u64 {
        let mut rng = fastrand::Rng::with_seed(self.rng.get());
        let value = rng.u64(..);
        self.rng.set(rng.get_seed());
        value
    }
}

/// Why there is no listener for a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoListener {
    /// The control plane knows no such service.
    Unknown,
    /// The control plane has not answered in time, and nothing is cached.
    Unavailable,
}

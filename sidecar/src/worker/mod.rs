//! A worker: one OS thread, one current-thread runtime, one set of pools.
//!
//! In: snapshots, and connections that were accepted for it. Out: demands for configuration that a connection needs and
//! the snapshot lacks. Nothing here ever leaves its thread, so that nothing needs a lock.

mod demand;
pub(crate) mod drain;
mod load;
mod thread;

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use self::demand::Waiting;
use self::drain::Drain;
pub(crate) use self::load::{Load, OpenConnection};
pub(crate) use self::thread::{Seat, Signals, all_serve, spawn};
use crate::balance::Originals;
use crate::config::OutboundPolicy;
use crate::dns::Lookups;
use crate::listener::{Races, Refusals};
use crate::snapshot::{Current, Snapshot};
use crate::telemetry::Telemetry;
use crate::telemetry::audits::Audits;
use crate::upstream::Pools;
use crate::xds::Demand;

/// What the connections of one worker share. Never leaves its thread.
pub(crate) struct Worker {
    /// From 0.
    pub(crate) id: usize,
    /// The configuration in force.
    current: RefCell<Current>,
    /// Who waits for configuration that was asked for.
    waiting: Waiting,
    /// Connections to endpoints.
    pub(crate) pools: Rc<Pools>,
    /// The clusters of addresses that clients have dialled.
    pub(crate) originals: Originals,
    /// Metrics, spans and logs, shared by all workers.
    pub(crate) telemetry: Arc<Telemetry>,
    /// Counts the connections that are not carried.
    pub(crate) refusals: Refusals,
    /// Counts who spoke first where it was not the client at once.
    pub(crate) races: Races,
    /// Counts what audit policies find.
    pub(crate) audits: Audits,
    /// Whether the sidecar goes away.
    pub(crate) drain: Rc<Drain>,
    /// Where addresses of hosts outside the mesh are asked for.
    pub(crate) lookups: Lookups,
    /// What happens to destinations that the mesh does not know.
    pub(crate) outbound_policy: OutboundPolicy,
    /// The workload's own addresses, with capture; else none.
    pub(crate) own: Arc<[IpAddr]>,
    /// How long configuration is waited for.
    demand_timeout: Duration,
    /// The state of the worker's random numbers; not for secrets.
    rng: Cell<u64>,
}

/// What all workers are made from.
#[derive(Clone)]
pub(crate) struct Shared {
    /// Metrics, spans and logs.
    pub(crate) telemetry: Arc<Telemetry>,
    /// Where demands for configuration go.
    pub(crate) demands: UnboundedSender<Demand>,
    /// Where addresses of hosts outside the mesh are asked for.
    pub(crate) lookups: Lookups,
    /// What happens to destinations that the mesh does not know.
    pub(crate) outbound_policy: OutboundPolicy,
    /// The workload's own addresses, with capture; else none.
    pub(crate) own: Arc<[IpAddr]>,
    /// How long configuration is waited for.
    pub(crate) demand_timeout: Duration,
}

impl Worker {
    /// A worker that serves from `snapshot`. To be called on its own thread.
    pub(crate) fn new(id: usize, shared: Shared, snapshot: Arc<Snapshot>) -> Rc<Self> {
        Rc::new(Self {
            id,
            current: RefCell::new(Current::new(snapshot)),
            waiting: Waiting::new(shared.demands),
            pools: Rc::new(Pools::default()),
            originals: Originals::new(shared.own.clone()),
            refusals: Refusals::new(&shared.telemetry.metrics),
            races: Races::new(&shared.telemetry.metrics),
            audits: Audits::new(&shared.telemetry.metrics),
            telemetry: shared.telemetry,
            drain: Rc::default(),
            lookups: shared.lookups,
            outbound_policy: shared.outbound_policy,
            own: shared.own,
            demand_timeout: shared.demand_timeout,
            rng: Cell::new(fastrand::u64(..)),
        })
    }

    /// The configuration in force; a request keeps what it got here until it ends.
    pub(crate) fn current(&self) -> Current {
        self.current.borrow().clone()
    }

    /// The configuration that holds outbound listener `name` (a canonical name or an alias), asking the control plane
    /// for it if need be.
    ///
    /// # Errors
    /// When the control plane says that there is none, or has not answered in time.
    pub(crate) async fn outbound(self: &Rc<Self>, name: &str) -> Result<Current, NoListener> {
        let current = self.current();
        match find(&current, name) {
            Some(found) => found.map(|()| current),
            None => self.outbound_on_demand(name).await,
        }
    }

    async fn outbound_on_demand(&self, name: &str) -> Result<Current, NoListener> {
        let deadline = tokio::time::Instant::now() + self.demand_timeout;
        loop {
            // One answer may have come and gone again while this waited its turn.
            let answered = self.waiting.answer(name).ok_or(NoListener::Unavailable)?;
            if tokio::time::timeout_at(deadline, answered).await.is_err() {
                return Err(NoListener::Unavailable);
            }
            let current = self.current();
            if let Some(found) = find(&current, name) {
                return found.map(|()| current);
            }
        }
    }

    /// Puts `snapshot` in force for what begins from now on.
    pub(crate) fn install(&self, snapshot: Arc<Snapshot>) {
        let current = Current::new(snapshot);
        self.current.replace(current.clone());
        self.waiting.wake(|name| find(&current, name).is_some());
        self.pools.retain(&current);
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

/// What `snapshot` says of a listener: that it is there, that there is none, or nothing yet.
fn find(snapshot: &Snapshot, name: &str) -> Option<Result<(), NoListener>> {
    if let Some(listener) = snapshot.outbound.get(name) {
        listener.last_use.touch(Instant::now());
        return Some(Ok(()));
    }
    snapshot.absent.contains(name).then_some(Err(NoListener::Unknown))
}

/// Why there is no listener for a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoListener {
    /// The control plane knows no such service.
    Unknown,
    /// The control plane has not answered in time, and nothing is cached.
    Unavailable,
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

//! The configuration in force, compiled for the data path.
//!
//! In: resources of the model, from xDS or from disk. Out: an immutable [`Snapshot`], built on the control thread and
//! handed to every worker. A request holds the snapshot that it started with. Nothing here is ever changed in place:
//! what lives longer than a snapshot (statistics, limits, breakers) hangs on it as shared atomics.

mod app;
mod build;
mod filters;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tulle_mesh::authorize::Authorizer;
use tulle_mesh::model;
use tulle_mesh::route::RouteTable;

use crate::balance::Cluster;
use crate::limit::{Counts, RequestLimits};
use crate::telemetry::Spans;
use crate::telemetry::metrics::{HttpSeries, TcpSeries};
use crate::tls::Material;

pub(crate) use build::{Builder, Sources, hosts_of};
#[cfg(test)]
pub(crate) use filters::Filters;

/// All that a worker needs to serve. The default is what a sidecar without any configuration has.
#[derive(Default)]
pub(crate) struct Snapshot {
    /// Grows by one with each snapshot.
    pub(crate) generation: u64,
    /// Outbound listeners, by canonical name and by every alias under which they were asked for.
    pub(crate) outbound: HashMap<Arc<str>, Arc<Listener>>,
    /// Names that the control plane says do not exist. It will say so when one appears.
    pub(crate) absent: HashSet<Arc<str>>,
    /// Inbound listeners, by the address that peers dial.
    pub(crate) inbound: HashMap<SocketAddr, Arc<Listener>>,
    /// Inbound listeners of whole addresses, for captured connections to any port.
    pub(crate) captured: HashMap<IpAddr, Arc<Listener>>,
    /// Clusters by name, for what is not reached through a route.
    pub(crate) clusters: HashMap<Arc<str>, Arc<Cluster>>,
    /// The workload's certificate and trust bundle; `None` until the first certificate was issued.
    pub(crate) tls: Option<Arc<Material>>,
}

impl Snapshot {
    /// All inbound listeners.
    pub(crate) fn inbound_listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        self.inbound.values().chain(self.captured.values())
    }

    /// The listener for connections of peers to `address`.
    pub(crate) fn inbound_at(&self, address: SocketAddr) -> Option<&Arc<Listener>> {
        self.inbound.get(&address).or_else(|| self.captured.get(&address.ip()))
    }
}

/// A worker's own handle on the snapshot in force: cloned for each request without touching memory that other
/// workers write.
#[derive(Clone)]
#[expect(
    clippy::redundant_allocation,
    reason = "the outer count is the worker's own, the inner one is shared by all"
)]
pub(crate) struct Current(Rc<Arc<Snapshot>>);

impl Current {
    /// Wraps a snapshot that has just arrived from the control thread.
    pub(crate) fn new(snapshot: Arc<Snapshot>) -> Self {
        Self(Rc::new(snapshot))
    }
}

impl Deref for Current {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.0
    }
}

/// What is done with the connections of one destination.
pub(crate) struct Listener {
    /// Its canonical name.
    pub(crate) name: Arc<str>,
    /// As it was received, for dumps and explanations.
    pub(crate) model: Arc<model::Listener>,
    /// In the order of the model's chains.
    pub(crate) chains: Vec<Chain>,
    /// When it was last used, shared by all versions of the listener and by all workers; what nobody uses any more need
    /// not be subscribed to.
    pub(crate) last_use: Arc<LastUse>,
}

/// When something was last used, to the second.
#[derive(Debug, Default)]
pub(crate) struct LastUse(AtomicU64);

impl LastUse {
    /// Notes a use at `now`. A second's second use writes nothing.
    pub(crate) fn touch(&self, now: Instant) {
        let second = since_start(now).as_secs();
        if self.0.load(Relaxed) != second {
            self.0.store(second, Relaxed);
        }
    }

    /// How long ago the last use was, seen from `now`; from the start of the process where there was none.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        since_start(now).saturating_sub(Duration::from_secs(self.0.load(Relaxed)))
    }
}

/// The time since this was first asked.
fn since_start(now: Instant) -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    now.saturating_duration_since(*START.get_or_init(|| now))
}

/// One way of treating a connection.
pub(crate) struct Chain {
    /// Of the connection as such.
    pub(crate) authorizer: Authorizer,
    /// What is inside.
    pub(crate) protocol: ChainProtocol,
}

/// What a chain carries.
pub(crate) enum ChainProtocol {
    /// HTTP of either version.
    Http(Arc<HttpRoutes>),
    /// Bytes.
    Tcp(TcpRoutes),
}

/// The compiled routes of a listener.
pub(crate) struct HttpRoutes {
    /// Timeouts, limits on heads, tracing and access log. What is compiled below stands here no more: the routes only by
    /// name, and no filters.
    pub(crate) settings: model::HttpConnection,
    /// What requests pass whose routes say nothing of it, in this order.
    pub(crate) stages: Vec<Stage>,
    /// The limits of all stages, for the next version.
    pub(crate) counts: Counts,
    /// The decision.
    pub(crate) table: Arc<RouteTable>,
    /// What goes with each route, by `RouteId`.
    pub(crate) runtime: Vec<RouteRuntime>,
    /// Where requests without a route are counted.
    pub(crate) unrouted: Arc<HttpSeries>,
    /// Where spans go; `None`: nobody takes them.
    pub(crate) spans: Option<Spans>,
    /// Logs or headers tell of the TLS of clients.
    pub(crate) tells_tls: bool,
}

/// A compiled filter that requests pass before they go on, or several of one kind that follow each other. What does nothing
/// to the requests of a route is not among those that they pass.
pub(crate) enum Stage {
    /// Who may ask for what.
    Authorization(Authorizer),
    /// Rate and concurrency limits.
    Limits(RequestLimits),
    /// Which pages of other origins may use what is asked for.
    Cors(Arc<model::Cors>),
    /// Injected delay and failure.
    Fault(model::Fault),
}

/// What a route needs at run time, in the order of the model's lists.
pub(crate) struct RouteRuntime {
    /// What its requests pass; `None`: what those of all others do.
    pub(crate) stages: Option<Vec<Stage>>,
    /// What keeps its sessions, where its listener has the filter for them.
    pub(crate) session: Option<model::Session>,
    /// What requests pass depends on their backend: it is drawn before.
    pub(crate) draws_first: bool,
    /// One for each backend.
    pub(crate) backends: Vec<BackendRuntime>,
    /// One for each mirror; `None` where the cluster does not exist.
    pub(crate) mirrors: Vec<Option<Arc<Cluster>>>,
    /// Where answers of the mesh itself are counted (redirects, faults, refusals).
    pub(crate) local: Arc<HttpSeries>,
}

/// A backend's cluster and where its requests are counted.
pub(crate) struct BackendRuntime {
    /// `None` where the cluster does not exist.
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// Counts each request once, whatever the number of attempts.
    pub(crate) series: Arc<HttpSeries>,
    /// What its requests pass; `None`: what those of its route do.
    pub(crate) stages: Option<Vec<Stage>>,
}

/// The compiled TCP side of a listener.
pub(crate) struct TcpRoutes {
    /// Timeouts and access log.
    pub(crate) settings: model::TcpProxy,
    /// The clusters and their weights; `None` where the cluster does not exist.
    pub(crate) backends: Vec<(Option<Arc<Cluster>>, u32, Arc<TcpSeries>)>,
}

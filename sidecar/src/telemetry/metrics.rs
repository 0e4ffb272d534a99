//! Metrics as slots of atomics, resolved when a snapshot is built.

use std::sync::Arc;

use tulle_mesh::model::TrafficDirection;

/// All series of the sidecar.
#[derive(Default)]
pub(crate) struct Registry {}

/// What tells one HTTP edge from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HttpLabels {
    /// Which side of the application.
    pub(crate) direction: TrafficDirection,
    /// The service's name, or the application's port inbound.
    pub(crate) service: Arc<str>,
    /// The route's name; empty where none matched.
    pub(crate) route: Arc<str>,
    /// The backend's cluster; empty for answers of the mesh itself.
    pub(crate) backend: Arc<str>,
}

impl Registry {
    /// The series of an edge: always the same one for the same labels.
    pub(crate) fn http(&self, _labels: HttpLabels) -> Arc<HttpSeries> {
        unimplemented!()
    }

    /// The series of a TCP edge.
    pub(crate) fn tcp(&self, _labels: HttpLabels) -> Arc<TcpSeries> {
        unimplemented!()
    }

    /// The counters of a cluster, by name.
    pub(crate) fn cluster(&self, _cluster: &Arc<str>) -> Arc<ClusterSeries> {
        unimplemented!()
    }
}

/// The requests of one edge.
pub(crate) struct HttpSeries {}

/// The connections of one edge.
pub(crate) struct TcpSeries {}

/// What is counted per cluster; whoever acts adds to the counter itself.
#[derive(Default)]
pub(crate) struct ClusterSeries {
    /// Attempts after the first.
    pub(crate) retries: Counter,
    /// Retries that the budget forbade.
    pub(crate) retries_refused: Counter,
    /// Requests refused by a limit.
    pub(crate) overflows: Counter,
    /// Endpoints taken out.
    pub(crate) ejections: Counter,
    /// Connections made.
    pub(crate) connections: Counter,
    /// Connections that could not be made.
    pub(crate) connect_failures: Counter,
    /// TLS handshakes that failed, the wrong identity included.
    pub(crate) tls_failures: Counter,
}

/// A number that only grows.
#[derive(Default)]
pub(crate) struct Counter(std::sync::atomic::AtomicU64);

impl Counter {
    /// Adds one.
    pub(crate) fn increment(&self) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// The number.
    pub(crate) fn value(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

//! Metrics as slots of atomics, resolved when a snapshot is built.
//!
//! In: the edges of a snapshot, and what happens on them. Out: series that the data path adds to without a lock or a
//! label lookup, and all of them as Prometheus text. The number of series is capped, so that no caller can make a
//! sidecar grow (OpenTelemetry's overflow rule).

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tulle_mesh::model::TrafficDirection;

pub(crate) use super::series::{HttpSeries, TcpSeries};
use super::{Workload, encode};

/// The most histograms that the sidecar keeps; what comes beyond is counted in each edge's overflow series.
pub(super) const MAX_HISTOGRAMS: usize = 4000;

/// All series of the sidecar.
pub(crate) struct Registry {
    pub(super) workload: Workload,
    histograms: Arc<AtomicUsize>,
    families: Mutex<Families>,
}

/// Every family by name; only whoever builds a snapshot or scrapes takes the lock around it.
#[derive(Default)]
pub(super) struct Families {
    pub(super) http: HashMap<HttpLabels, Arc<HttpSeries>>,
    pub(super) tcp: HashMap<HttpLabels, Arc<TcpSeries>>,
    pub(super) clusters: HashMap<Arc<str>, Arc<ClusterSeries>>,
    pub(super) counters: HashMap<&'static str, Family<Counter>>,
    pub(super) gauges: HashMap<&'static str, Family<Gauge>>,
}

/// The series of one name.
pub(super) struct Family<T> {
    pub(super) help: &'static str,
    pub(super) series: HashMap<Labels, Arc<T>>,
}

/// Label names and values.
pub(super) type Labels = Vec<(&'static str, String)>;

/// What tells one edge from another.
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
    /// No series yet.
    pub(crate) fn new(workload: &Workload) -> Self {
        Self {
            workload: workload.clone(),
            histograms: Arc::default(),
            families: Mutex::new(Families::default()),
        }
    }

    /// The series of an edge: always the same one for the same labels.
    pub(crate) fn http(&self, labels: HttpLabels) -> Arc<HttpSeries> {
        let mut families = self.families();
        let make = || Arc::new(HttpSeries::new(self.histograms.clone()));
        families.http.entry(labels).or_insert_with(make).clone()
    }

    /// The series of a TCP edge.
    pub(crate) fn tcp(&self, labels: HttpLabels) -> Arc<TcpSeries> {
        let mut families = self.families();
        let make = || Arc::new(TcpSeries::new(self.histograms.clone()));
        families.tcp.entry(labels).or_insert_with(make).clone()
    }

    /// The counters of a cluster, by name.
    pub(crate) fn cluster(&self, cluster: &Arc<str>) -> Arc<ClusterSeries> {
        self.families().clusters.entry(cluster.clone()).or_default().clone()
    }

    /// A counter of the mesh's own. `name` starts with `tulle_` and has no `_total`, which the encoding adds. Not for
    /// the data path: keep what it gives.
    pub(crate) fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Arc<Counter> {
        Family::series(&mut self.families().counters, name, help, labels)
    }

    /// A gauge of the mesh's own. Not for the data path: keep what it gives.
    pub(crate) fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Arc<Gauge> {
        Family::series(&mut self.families().gauges, name, help, labels)
    }

    /// Forgets the edges and clusters that no snapshot holds any more. Called when a snapshot has been replaced and
    /// its last requests have had time to end.
    pub(crate) fn sweep(&self) {
        let mut families = self.families();
        families.http.retain(|_, series| Arc::strong_count(series) > 1);
        families.tcp.retain(|_, series| Arc::strong_count(series) > 1);
        families.clusters.retain(|_, series| Arc::strong_count(series) > 1);
    }

    /// Everything as Prometheus (OpenMetrics) text.
    pub(crate) fn encode(&self) -> String {
        encode::text(&self.workload, &self.families())
    }

    fn families(&self) -> MutexGuard<'_, Families> {
        // A panic while the lock was held leaves at worst a series without its latest sibling.
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("workload", &self.workload).finish_non_exhaustive()
    }
}

impl<T: Default> Family<T> {
    fn series(
        families: &mut HashMap<&'static str, Self>,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
    ) -> Arc<T> {
        let family = families.entry(name).or_insert_with(|| Self { help, series: HashMap::new() });
        let labels = labels.iter().map(|&(name, value)| (name, value.to_owned())).collect();
        family.series.entry(labels).or_default().clone()
    }
}

/// What is counted per cluster; whoever acts adds to the counter itself.
#[derive(Debug, Default)]
pub(crate) struct ClusterSeries {
    /// Requests sent to an endpoint, retries included.
    pub(crate) attempts: Counter,
    /// Of these, how many failed (5xx, no whole answer, or a gRPC status that is the server's fault).
    pub(crate) attempt_failures: Counter,
    /// Attempts after the first.
    pub(crate) retries: Counter,
    /// Retries that the budget forbade.
    pub(crate) retries_refused: Counter,
    /// Requests refused by a limit.
    pub(crate) overflows: Counter,
    /// Endpoints taken out.
    pub(crate) ejections: Counter,
    /// Choices among ejected or unhealthy endpoints, because there were no others.
    pub(crate) panics: Counter,
    /// Connections made.
    pub(crate) connections: Counter,
    /// Connections that could not be made.
    pub(crate) connect_failures: Counter,
    /// TLS handshakes that failed, the wrong identity included.
    pub(crate) tls_failures: Counter,
    /// Endpoints, when somebody last looked, as for all that follows.
    pub(crate) endpoints: Gauge,
    /// Of these, how many are taken out.
    pub(crate) ejected_endpoints: Gauge,
    /// Requests under way.
    pub(crate) active_requests: Gauge,
    /// Connections to endpoints.
    pub(crate) open_connections: Gauge,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub(crate) fn increment(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The number.
    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicI64);

impl Gauge {
    /// Sets the number.
    pub(crate) fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The number.
    pub(crate) fn value(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

//! The control plane's own metrics, as Prometheus text.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tonic::Code;

use crate::xds::{Kind, abbreviation};

/// One label.
type Label = [(&'static str, &'static str); 1];

/// Everything that is counted.
pub struct Metrics {
    registry: Registry,
    streams: Family<Label, Gauge>,
    pushes: Family<Label, Counter>,
    resources: Family<Label, Counter>,
    removals: Family<Label, Counter>,
    nacks: Family<Label, Counter>,
    certificates: Family<Label, Counter>,
    admissions: Family<Label, Counter>,
    push_latency: Histogram,
    objects: Gauge,
    problems: Gauge,
    source_failing: Family<Label, Gauge>,
    source_lists: Family<Label, Counter>,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("tulle_control_plane");
        let mut metrics = Self {
            streams: Family::default(),
            pushes: Family::default(),
            resources: Family::default(),
            removals: Family::default(),
            nacks: Family::default(),
            certificates: Family::default(),
            admissions: Family::default(),
            push_latency: Histogram::new([0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]),
            objects: Gauge::default(),
            problems: Gauge::default(),
            source_failing: Family::default(),
            source_lists: Family::default(),
            registry: Registry::default(),
        };
        registry.register("xds_streams", "Open xDS streams, by protocol", metrics.streams.clone());
        registry.register("xds_pushes", "xDS responses sent, by type", metrics.pushes.clone());
        registry.register("xds_resources", "Resources in xDS responses, by type", metrics.resources.clone());
        registry.register("xds_removals", "Names said to be gone, by type", metrics.removals.clone());
        registry.register("xds_nacks", "xDS responses that a proxy rejected, by type", metrics.nacks.clone());
        registry.register(
            "xds_push_latency_seconds",
            "From a change in the configuration to the response that carries it, per response",
            metrics.push_latency.clone(),
        );
        registry.register(
            "certificates",
            "Certificate requests, by gRPC status of the answer",
            metrics.certificates.clone(),
        );
        registry.register(
            "admission_reviews",
            "What the webhooks answered, by result: Injected or the reason why not, Valid, Invalid, error",
            metrics.admissions.clone(),
        );
        registry.register("objects", "Configuration objects", metrics.objects.clone());
        registry.register("problems", "Problems in configuration objects", metrics.problems.clone());
        registry.register(
            "source_failing",
            "1 while objects of a kind can't be followed and may be out of date, by kind",
            metrics.source_failing.clone(),
        );
        registry.register(
            "source_lists",
            "How often all objects of a kind were listed, by kind",
            metrics.source_lists.clone(),
        );
        metrics.registry = registry;
        metrics
    }

    /// In the text format of Prometheus (OpenMetrics 1.0).
    ///
    /// # Errors
    /// When a metric can't be written as text.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// A certificate was issued, or refused with this code.
    pub(crate) fn certificate(&self, refused: Option<Code>) {
        let result = match refused {
            None => "ok",
            Some(Code::Unauthenticated) => "unauthenticated",
            Some(Code::PermissionDenied) => "permission_denied",
            Some(Code::InvalidArgument) => "invalid_argument",
            Some(Code::Unavailable) => "unavailable",
            Some(Code::ResourceExhausted) => "resource_exhausted",
            Some(_) => "internal",
        };
        self.certificates.get_or_create(&[("result", result)]).inc();
    }

    /// A webhook answered.
    pub(crate) fn admission(&self, result: &'static str) {
        self.admissions.get_or_create(&[("result", result)]).inc();
    }

    /// Counts a stream until the guard is dropped.
    pub(crate) fn stream(self: &Arc<Self>, protocol: &'static str) -> StreamGuard {
        self.streams.get_or_create(&[("protocol", protocol)]).inc();
        StreamGuard { metrics: Arc::clone(self), protocol }
    }

    /// A response was sent.
    pub(crate) fn pushed(&self, kind: Kind, resources: usize, removals: usize) {
        let label = [("type", abbreviation(kind))];
        self.pushes.get_or_create(&label).inc();
        self.resources.get_or_create(&label).inc_by(resources as u64);
        self.removals.get_or_create(&label).inc_by(removals as u64);
    }

    /// A response was rejected.
    pub(crate) fn nack(&self, kind: Kind) {
        self.nacks.get_or_create(&[("type", abbreviation(kind))]).inc();
    }

    /// A change took this long to get into a response.
    pub(crate) fn push_latency(&self, took: Duration) {
        self.push_latency.observe(took.as_secs_f64());
    }

    /// Whether objects of a kind can't be followed.
    pub(crate) fn source_failing(&self, kind: &'static str, failing: bool) {
        self.source_failing.get_or_create(&[("kind", kind)]).set(failing.into());
    }

    /// All objects of a kind were listed.
    pub(crate) fn source_listed(&self, kind: &'static str) {
        self.source_lists.get_or_create(&[("kind", kind)]).inc();
    }

    /// How many objects there are, and how many problems in them.
    pub fn objects(&self, objects: usize, problems: usize) {
        self.objects.set(i64::try_from(objects).unwrap_or(i64::MAX));
        self.problems.set(i64::try_from(problems).unwrap_or(i64::MAX));
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// Counts one open stream.
pub(crate) struct StreamGuard {
    metrics: Arc<Metrics>,
    protocol: &'static str,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.metrics.streams.get_or_create(&[("protocol", self.protocol)]).dec();
    }
}

//! The way of sampled spans to the collectors.
//!
//! In: finished spans from the workers, through a bounded queue for each collector that drops (and counts) when it is full:
//! the one of the sidecar's own configuration, and those that listeners name. Out: batches over OTLP/gRPC, sent by the
//! control thread over one connection to each, which is made when it is needed and not there. A collector that can't be
//! reached costs its own spans, never a request nor the spans of another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Uri;
use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Workload;
use super::collector::{Collector, Target};
use super::metrics::{Counter, Registry};
use crate::snapshot::Snapshot;

/// How many spans wait for a collector at most.
const QUEUE: usize = 4096;
/// How many spans go in one request.
const BATCH: usize = 512;
/// How long a batch is collected: short, so that a trace is there when a person looks for it.
const LINGER: Duration = Duration::from_millis(250);
/// How long a batch may take to be sent.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where spans for one collector are put.
#[derive(Clone)]
pub(crate) struct Spans {
    sender: mpsc::Sender<SpanData>,
    dropped: Arc<Counter>,
}

/// The queues of all collectors. One that a listener names is gone with the last snapshot that needs it.
pub(super) struct Queues {
    own: Option<Spans>,
    named: Mutex<HashMap<Arc<str>, mpsc::WeakSender<SpanData>>>,
    opened: mpsc::UnboundedSender<Opened>,
    dropped: Arc<Counter>,
}

/// Sends spans; runs on the control thread.
pub(crate) struct Exporter {
    opened: mpsc::UnboundedReceiver<Opened>,
    resource: Arc<ResourceAttributesWithSchema>,
    exported: Arc<Counter>,
    failed: Arc<Counter>,
}

/// The other end of a queue that is new.
struct Opened {
    receiver: mpsc::Receiver<SpanData>,
    to: To,
}

enum To {
    Own(Collector),
    Cluster(Arc<str>),
}

/// The queues, with one for the collector of the sidecar's own configuration where it has any, and the exporter at their
/// end.
pub(super) fn queues(
    workload: &Workload,
    own: Option<&Uri>,
    metrics: &Registry,
) -> Result<(Queues, Exporter), String> {
    let counter = |name, help, reason: &str| metrics.counter(name, help, &[("reason", reason)]);
    let dropped = counter("tulle_spans_dropped", "Sampled spans that were not exported.", "queue_full");
    let failed = counter("tulle_spans_dropped", "Sampled spans that were not exported.", "export_failed");
    let exported = metrics.counter("tulle_spans_exported", "Spans that a collector took.", &[]);
    let own = own.map(Collector::at).transpose()?;
    let (sender, opened) = mpsc::unbounded_channel();
    let mut queues = Queues { own: None, named: Mutex::default(), opened: sender, dropped };
    queues.own = own.and_then(|collector| queues.open(To::Own(collector)));
    let resource = Arc::new(ResourceAttributesWithSchema::from(&resource(workload)));
    Ok((queues, Exporter { opened, resource, exported, failed }))
}

impl Queues {
    /// Where spans go for the collector that is this cluster; for that of the sidecar's own configuration where none is
    /// named. `None` where nobody takes them: then they are not worth making.
    pub(super) fn to(&self, cluster: Option<&str>) -> Option<Spans> {
        let Some(cluster) = cluster else { return self.own.clone() };
        // A panic while the lock was held leaves at worst a queue that nobody has.
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.retain(|_, sender| sender.strong_count() > 0);
        if let Some(sender) = named.get(cluster).and_then(mpsc::WeakSender::upgrade) {
            return Some(Spans { sender, dropped: self.dropped.clone() });
        }
        let cluster: Arc<str> = cluster.into();
        let spans = self.open(To::Cluster(cluster.clone()))?;
        named.insert(cluster, spans.sender.downgrade());
        Some(spans)
    }

    /// `None` when nothing is exported any more.
    fn open(&self, to: To) -> Option<Spans> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.opened.send(Opened { receiver, to }).ok()?;
        Some(Spans { sender, dropped: self.dropped.clone() })
    }
}

impl Spans {
    /// Hands a span over, or drops it when the queue is full.
    pub(super) fn push(&self, span: SpanData) {
        if self.sender.try_send(span).is_err() {
            self.dropped.increment();
        }
    }
}

impl Exporter {
    /// Sends what is in the queues until every sender of each is gone, and then what is left. `snapshots` tell where
    /// clusters are.
    pub(crate) async fn run(mut self, snapshots: watch::Receiver<Arc<Snapshot>>) {
        let mut snapshots = Some(snapshots);
        let mut exports = JoinSet::new();
        let mut targets: Vec<(Arc<str>, watch::Sender<Option<Target>>)> = Vec::new();
        loop {
            tokio::select! {
                Some(Opened { receiver, to }) = self.opened.recv() => {
                    let collector = match to {
                        To::Own(collector) => collector,
                        To::Cluster(name) => {
                            let now = snapshots.as_ref().and_then(|all| Target::of(&all.borrow(), &name));
                            let (tell, target) = watch::channel(now);
                            targets.push((name, tell));
                            Collector::of_cluster(target)
                        }
                    };
                    let resource = self.resource.clone();
                    let (exported, failed) = (self.exported.clone(), self.failed.clone());
                    exports.spawn(Export { receiver, collector, resource, exported, failed }.run());
                }
                Some(snapshot) = next(&mut snapshots), if snapshots.is_some() => {
                    targets.retain(|(_, tell)| !tell.is_closed());
                    for (name, tell) in &targets {
                        tell.send_replace(Target::of(&snapshot, name));
                    }
                }
                Some(_) = exports.join_next() => {}
                else => return,
            }
        }
    }
}

/// The next snapshot. The last one is let go of when there will be no other: queues end with those that lead there.
async fn next(snapshots: &mut Option<watch::Receiver<Arc<Snapshot>>>) -> Option<Arc<Snapshot>> {
    let receiver = snapshots.as_mut()?;
    if receiver.changed().await.is_ok() {
        return Some(receiver.borrow_and_update().clone());
    }
    *snapshots = None;
    None
}

/// Sends what is in one queue.
struct Export {
    receiver: mpsc::Receiver<SpanData>,
    collector: Collector,
    resource: Arc<ResourceAttributesWithSchema>,
    exported: Arc<Counter>,
    failed: Arc<Counter>,
}

impl Export {
    async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut reachable = true;
        while self.receiver.recv_many(&mut batch, BATCH).await > 0 {
            if batch.len() < BATCH {
                sleep(LINGER).await;
                while batch.len() < BATCH
                    && let Ok(span) = self.receiver.try_recv()
                {
                    batch.push(span);
                }
            }
            let count = batch.len() as u64;
            let spans = group_spans_by_resource_and_scope(std::mem::take(&mut batch), &self.resource);
            let request = ExportTraceServiceRequest { resource_spans: spans };
            let error = match timeout(EXPORT_TIMEOUT, self.collector.export(request)).await {
                Ok(sent) => sent.err(),
                Err(_) => Some(format!("no answer within {EXPORT_TIMEOUT:?}")),
            };
            match error {
                None => {
                    self.exported.add(count);
                    reachable = true;
                }
                Some(error) => {
                    self.failed.add(count);
                    // Once for each outage: the counter tells the rest.
                    if std::mem::replace(&mut reachable, false) {
                        tracing::warn!(error, "the trace collector takes no spans");
                    }
                }
            }
        }
    }
}

/// Whose spans they are (OpenTelemetry's resource conventions).
fn resource(workload: &Workload) -> Resource {
    Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", workload.name.clone()),
            KeyValue::new("service.namespace", workload.namespace.clone()),
            KeyValue::new("service.instance.id", workload.instance.clone()),
            KeyValue::new("k8s.namespace.name", workload.namespace.clone()),
            KeyValue::new("telemetry.sdk.name", "tulle"),
            KeyValue::new("telemetry.sdk.language", "rust"),
            KeyValue::new("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
        ])
        .build()
}

//! The way of sampled spans to the collector.
//!
//! In: finished spans from the workers, through a bounded queue that drops (and counts) when it is full. Out: batches
//! over OTLP/gRPC, sent by the control thread over one connection, which is made when it is needed and not there. An
//! unreachable collector costs spans, never a request.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::Workload;
use super::collector::Collector;
use super::metrics::{Counter, Registry};

/// How many spans wait at most.
const QUEUE: usize = 4096;
/// How many spans go in one request.
const BATCH: usize = 512;
/// How long a batch is collected: short, so that a trace is there when a person looks for it.
const LINGER: Duration = Duration::from_millis(250);
/// How long a batch may take to be sent.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the workers put spans.
pub(super) struct Queue {
    sender: Option<mpsc::Sender<SpanData>>,
    dropped: Arc<Counter>,
}

/// Sends spans; runs on the control thread.
pub(crate) struct Exporter {
    receiver: mpsc::Receiver<SpanData>,
    collector: Collector,
    resource: ResourceAttributesWithSchema,
    exported: Arc<Counter>,
    failed: Arc<Counter>,
}

/// A queue, and the exporter at its end where there is a collector.
pub(super) fn queue(
    workload: &Workload,
    collector: Option<&Uri>,
    metrics: &Registry,
) -> Result<(Queue, Option<Exporter>), String> {
    let counter = |name, help, reason: &str| metrics.counter(name, help, &[("reason", reason)]);
    let dropped = counter("tulle_spans_dropped", "Sampled spans that were not exported.", "queue_full");
    let Some(collector) = collector else {
        return Ok((Queue { sender: None, dropped }, None));
    };
    let collector = Collector::new(collector)?;
    let resource = ResourceAttributesWithSchema::from(&resource(workload));
    let (sender, receiver) = mpsc::channel(QUEUE);
    let failed = counter("tulle_spans_dropped", "Sampled spans that were not exported.", "export_failed");
    let exported = metrics.counter("tulle_spans_exported", "Spans that the collector took.", &[]);
    let exporter = Exporter { receiver, collector, resource, exported, failed };
    Ok((Queue { sender: Some(sender), dropped }, Some(exporter)))
}

impl Queue {
    /// Whether anyone takes the spans: else they are not worth making.
    pub(super) fn is_open(&self) -> bool {
        self.sender.is_some()
    }

    /// Hands a span over, or drops it when the queue is full.
    pub(super) fn push(&self, span: SpanData) {
        if let Some(sender) = &self.sender
            && sender.try_send(span).is_err()
        {
            self.dropped.increment();
        }
    }
}

impl Exporter {
    /// Sends batches until every sender of the queue is gone, and then what is left.
    pub(crate) async fn run(mut self) {
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

//! What the sidecar tells about its traffic: metrics, spans and logs.
//!
//! In: one [`record::RequestRecord`] at the end of each request, one [`record::AttemptRecord`] at the end of each
//! attempt, one [`record::ConnectionRecord`] at the end of each TCP connection; all of them borrow, so that a request
//! that nobody looks at costs a few atomic additions. Out: Prometheus text, OTLP spans, access log lines. A full
//! exporter drops spans and counts them; it never holds up traffic.

mod access_log;
pub(crate) mod audits;
mod collector;
mod encode;
pub(crate) mod lines;
mod log_filter;
pub(crate) mod metrics;
pub(crate) mod operators;
mod otlp;
pub(crate) mod record;
mod series;
mod span;
pub(crate) mod trace;

use std::sync::Arc;

use log_filter::{Facts, admits};
pub(crate) use otlp::{Exporter, Spans};
use record::{AttemptRecord, ConnectionRecord, RequestRecord};

/// The sidecar's telemetry, shared by all threads.
pub(crate) struct Telemetry {
    /// Every metric.
    pub(crate) metrics: metrics::Registry,
    queues: otlp::Queues,
    log: access_log::Writer,
}

/// Whose sidecar this is, for labels and for the resource of spans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name: `service.name` in traces.
    pub(crate) name: String,
    /// Which instance of it: `service.instance.id` in traces.
    pub(crate) instance: String,
}

impl Telemetry {
    /// The telemetry of `workload`, and the exporter that the control thread runs. `collector` (an OTLP/gRPC endpoint such
    /// as `http://127.0.0.1:4317`) gets the spans of listeners that name no other.
    ///
    /// # Errors
    /// When `collector` is not a URL that can be dialled.
    pub(crate) fn new(
        workload: Workload,
        collector: Option<&http::Uri>,
    ) -> Result<(Arc<Self>, Exporter), String> {
        let metrics = metrics::Registry::new(&workload);
        let (queues, exporter) = otlp::queues(&workload, collector, &metrics)?;
        let log = access_log::Writer::new(&metrics);
        Ok((Arc::new(Self { metrics, queues, log }), exporter))
    }

    /// Where the spans of requests go whose listener names this cluster as its collector, or none; `None`: nowhere.
    pub(crate) fn spans(&self, collector: Option<&str>) -> Option<Spans> {
        self.queues.to(collector)
    }

    /// Counts a request that has ended and, where asked for, exports its span and writes its log line.
    pub(crate) fn request(&self, record: &RequestRecord<'_>) {
        record.series.record(record);
        if let Some(spans) = record.spans
            && record.trace.is_some_and(|trace| trace.sampled)
        {
            spans.push(span::of_request(record));
        }
        if let Some(settings) = record.access_log
            && settings.filter.as_ref().is_none_or(|filter| admits(filter, &of_request(record)))
        {
            self.log.write(access_log::request_line(&settings.format, record));
        }
    }

    /// Counts an attempt that has ended and, where sampled, exports its span.
    pub(crate) fn attempt(&self, record: &AttemptRecord<'_>) {
        record.series.attempts.increment();
        if record.failed() {
            record.series.attempt_failures.increment();
        }
        if let Some(spans) = record.spans
            && record.trace.is_some_and(|trace| trace.sampled)
        {
            spans.push(span::of_attempt(record));
        }
    }

    /// Counts a TCP connection that has ended and, where asked for, writes its log line.
    pub(crate) fn connection(&self, record: &ConnectionRecord<'_>) {
        record.series.record(record);
        if let Some(settings) = record.access_log
            && settings.filter.as_ref().is_none_or(|filter| admits(filter, &of_connection(record)))
        {
            self.log.write(access_log::connection_line(&settings.format, record));
        }
    }
}

fn of_request<'a>(record: &RequestRecord<'a>) -> Facts<'a> {
    Facts {
        status: record.status,
        duration: record.duration,
        request: Some(record.request),
        grpc_status: record.grpc_status,
        error: record.error,
        traced: record.trace.is_some_and(|trace| trace.sampled),
        draw: record.draw,
    }
}

fn of_connection<'a>(record: &ConnectionRecord<'a>) -> Facts<'a> {
    Facts {
        status: None,
        duration: record.duration,
        request: None,
        grpc_status: None,
        error: record.error,
        traced: false,
        draw: record.draw,
    }
}

#[cfg(test)]
mod tests;

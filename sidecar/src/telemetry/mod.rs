//! What the sidecar tells about its traffic: metrics, spans and logs.
//!
//! In: one [`record::RequestRecord`] at the end of each request, one [`record::AttemptRecord`] at the end of each
//! attempt, one [`record::ConnectionRecord`] at the end of each TCP connection; all of them borrow, so that a request
//! that nobody looks at costs a few atomic additions. Out: Prometheus text, OTLP spans, access log lines. A full
//! exporter drops spans and counts them; it never holds up traffic.

pub(crate) mod metrics;
pub(crate) mod record;
pub(crate) mod trace;

use record::{AttemptRecord, ConnectionRecord, RequestRecord};

/// The sidecar's telemetry, shared by all threads.
pub(crate) struct Telemetry {
    /// Every metric.
    pub(crate) metrics: metrics::Registry,
}

impl Telemetry {
    /// Counts a request that has ended and, where asked for, exports its span and writes its log line.
    pub(crate) fn request(&self, _record: &RequestRecord<'_>) {
        unimplemented!()
    }

    /// Counts an attempt that has ended and, where sampled, exports its span.
    pub(crate) fn attempt(&self, _record: &AttemptRecord<'_>) {
        unimplemented!()
    }

    /// Counts a TCP connection that has ended and, where asked for, writes its log line.
    pub(crate) fn connection(&self, _record: &ConnectionRecord<'_>) {
        unimplemented!()
    }
}

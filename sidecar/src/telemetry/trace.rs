//! Trace context: W3C `traceparent`/`tracestate`, and B3 accepted.

use http::HeaderMap;

/// A span's place in its trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TraceContext {
    /// Never 0.
    pub(crate) trace_id: u128,
    /// The span's own ID; never 0.
    pub(crate) span_id: u64,
    /// The span above it; 0 for a root.
    pub(crate) parent_id: u64,
    /// Whether the trace is recorded.
    pub(crate) sampled: bool,
    /// The vendors' parts, passed on as they came.
    pub(crate) state: Option<http::HeaderValue>,
}

impl TraceContext {
    /// The context of a new span under the one that a request's headers carry; `None` without one.
    pub(crate) fn extract(_headers: &HeaderMap, _span_id: u64) -> Option<Self> {
        unimplemented!()
    }

    /// The root of a new trace.
    pub(crate) fn root(trace_id: u128, span_id: u64, sampled: bool) -> Self {
        Self { trace_id: trace_id.max(1), span_id: span_id.max(1), parent_id: 0, sampled, state: None }
    }

    /// A span below this one.
    pub(crate) fn child(&self, span_id: u64) -> Self {
        Self { span_id: span_id.max(1), parent_id: self.span_id, ..self.clone() }
    }

    /// Writes the headers that make the receiver's span a child of this one.
    pub(crate) fn inject(&self, _headers: &mut HeaderMap) {
        unimplemented!()
    }
}

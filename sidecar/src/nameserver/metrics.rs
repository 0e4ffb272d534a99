//! What the resolver counts: `tulle_dns_*`.

use std::sync::Arc;

use super::message::{HEADER, rcode};
use crate::telemetry::metrics::{Counter, Gauge, Registry};

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The names of the mesh.
    Mesh,
    /// What was kept of other name servers' answers.
    Cache,
    /// Other name servers.
    Upstream,
}

/// The counters.
#[derive(Debug)]
pub(super) struct Metrics {
    /// By source, and then by result.
    answers: [[Arc<Counter>; RESULTS.len()]; 3],
    /// Messages that are no queries, or broken.
    pub(super) malformed: Arc<Counter>,
    /// Messages that are too long for a query.
    pub(super) oversized: Arc<Counter>,
    /// Queries beyond the most at a time.
    pub(super) overflows: Arc<Counter>,
    /// Connections beyond the most at a time.
    pub(super) connections: Arc<Counter>,
    /// Connections whose client was too slow.
    pub(super) slow: Arc<Counter>,
    /// Tries of name servers that brought no answer.
    pub(super) upstream_failures: Arc<Counter>,
    /// Answers that are kept.
    pub(super) kept: Arc<Gauge>,
}

const SOURCES: [&str; 3] = ["mesh", "cache", "upstream"];
const RESULTS: [&str; 5] = ["answer", "empty", "no_such_name", "failure", "other"];

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let refused = |reason| {
            let help = "Messages and connections to the resolver that got no answer but perhaps an error, by reason.";
            registry.counter("tulle_dns_refused", help, &[("reason", reason)])
        };
        Self {
            answers: SOURCES.map(|source| {
                RESULTS.map(|result| {
                    let help = "Answers of the resolver, by where they came from and how they were.";
                    registry.counter("tulle_dns_answers", help, &[("source", source), ("result", result)])
                })
            }),
            malformed: refused("malformed"),
            oversized: refused("oversized"),
            overflows: refused("overflow"),
            connections: refused("connections"),
            slow: refused("slow"),
            upstream_failures: registry.counter(
                "tulle_dns_upstream_failures",
                "Tries of the resolver to ask a name server that brought no answer.",
                &[],
            ),
            kept: registry.gauge("tulle_dns_cached_answers", "Answers of name servers that are kept.", &[]),
        }
    }

    /// Counts an answer.
    pub(super) fn count(&self, source: Source, answer: &[u8]) {
        let header = answer.get(..HEADER).unwrap_or(&[0; HEADER]);
        let result = match header[3] & 0x0f {
            rcode::NO_ERROR if header[6..8] == [0, 0] => 1,
            rcode::NO_ERROR => 0,
            rcode::NO_SUCH_NAME => 2,
            rcode::SERVER_FAILURE => 3,
            _ => 4,
        };
        let source = match source {
            Source::Mesh => 0,
            Source::Cache => 1,
            Source::Upstream => 2,
        };
        self.answers[source][result].increment();
    }
}

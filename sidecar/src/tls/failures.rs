//! Counts failed handshakes, by side and reason, and says which are worth a line in the log.

use std::sync::Arc;
use std::time::Instant;

use super::error::Reason;
use crate::telemetry::lines::LineLimit;
use crate::telemetry::metrics::{Counter, Registry};

/// Which end of a connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The one that connects.
    Client,
    /// The one that accepts.
    Server,
}

impl Side {
    /// The label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// A counter for each side and reason, resolved beforehand, and what keeps the log of each short.
#[derive(Default)]
pub(crate) struct Failures {
    client: [Failed; Reason::ALL.len()],
    server: [Failed; Reason::ALL.len()],
}

#[derive(Default)]
struct Failed {
    count: Arc<Counter>,
    lines: LineLimit,
}

impl Failures {
    /// The counters of `metrics`.
    pub(crate) fn new(metrics: &Registry) -> Self {
        let counters = |side: Side| {
            Reason::ALL.map(|reason| {
                let labels = [("side", side.as_str()), ("reason", reason.as_str())];
                let help = "Mesh TLS handshakes that failed.";
                let count = metrics.counter("tulle_tls_handshake_failures", help, &labels);
                Failed { count, lines: LineLimit::default() }
            })
        };
        Self { client: counters(Side::Client), server: counters(Side::Server) }
    }

    /// Counts one; `true` where it is to be logged.
    #[must_use]
    pub(super) fn count(&self, side: Side, reason: Reason) -> bool {
        let failed = self.of(side, reason);
        failed.count.increment();
        failed.lines.admit(Instant::now(), "failed handshakes")
    }

    /// How many there were.
    #[cfg(test)]
    pub(super) fn value(&self, side: Side, reason: Reason) -> u64 {
        self.of(side, reason).count.value()
    }

    fn of(&self, side: Side, reason: Reason) -> &Failed {
        let all = match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        };
        &all[reason as usize]
    }
}

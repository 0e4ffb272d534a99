//! Counts failed handshakes, by side and reason.

use std::sync::Arc;

use super::error::Reason;
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

/// A counter for each side and reason, resolved beforehand.
#[derive(Default)]
pub(crate) struct Failures {
    client: [Arc<Counter>; Reason::ALL.len()],
    server: [Arc<Counter>; Reason::ALL.len()],
}

impl Failures {
    /// The counters of `metrics`.
    pub(crate) fn new(metrics: &Registry) -> Self {
        let counters = |side: Side| {
            Reason::ALL.map(|reason| {
                let labels = [("side", side.as_str()), ("reason", reason.as_str())];
                metrics.counter("tulle_tls_handshake_failures", "Mesh TLS handshakes that failed.", &labels)
            })
        };
        Self { client: counters(Side::Client), server: counters(Side::Server) }
    }

    /// Counts one.
    pub(super) fn count(&self, side: Side, reason: Reason) {
        let counters = match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        };
        counters[reason as usize].increment();
    }

    /// How many there were.
    #[cfg(test)]
    pub(super) fn value(&self, side: Side, reason: Reason) -> u64 {
        let counters = match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        };
        counters[reason as usize].value()
    }
}

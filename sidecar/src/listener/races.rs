//! Who spoke first on connections whose client said nothing at once.

use std::sync::Arc;

use crate::telemetry::metrics::{Counter, Registry};

/// A counter for each outcome.
pub(crate) struct Races {
    /// The server spoke first.
    pub(super) server: Arc<Counter>,
    /// The client did, and went where its silence would have led.
    pub(super) client: Arc<Counter>,
    /// The client did, and went elsewhere: the connection that was opened for it meanwhile was of no use.
    pub(super) unused: Arc<Counter>,
}

impl Races {
    /// Registers the counters.
    pub(crate) fn new(metrics: &Registry) -> Self {
        let counter = |outcome| {
            let help =
                "Connections whose client said nothing at once, so that one was opened for it, by outcome.";
            metrics.counter("tulle_detection_races", help, &[("outcome", outcome)])
        };
        Self { server: counter("server"), client: counter("client"), unused: counter("unused") }
    }
}

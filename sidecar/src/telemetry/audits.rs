//! What audit policies found, counted by effect. Which policy it was, and what it saw, is in the log.

use std::sync::Arc;

use tulle_mesh::authorize::AuditEffect;

use super::metrics::{Counter, Registry};

/// The counters of both effects.
pub(crate) struct Audits {
    matched: Arc<Counter>,
    would_deny: Arc<Counter>,
}

impl Audits {
    /// Registers the counters.
    pub(crate) fn new(metrics: &Registry) -> Self {
        let counter = |effect| {
            let help =
                "Requests and connections that an audit policy matched, or would deny were it enforced.";
            metrics.counter("tulle_audited", help, &[("effect", effect)])
        };
        Self { matched: counter("matched"), would_deny: counter("would_deny") }
    }

    /// Counts a finding.
    pub(crate) fn count(&self, effect: AuditEffect) {
        match effect {
            AuditEffect::Matched => self.matched.increment(),
            AuditEffect::WouldDeny => self.would_deny.increment(),
        }
    }
}

//! Workers for tests, on the test's own thread.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{Shared, Worker};
use crate::config::OutboundPolicy;
use crate::dns::{self, Lookups, Resolver};
use crate::snapshot::Snapshot;
use crate::telemetry::{Telemetry, Workload};
use crate::xds::Demand;

/// A worker that serves from `snapshot`, and what it asks for.
pub(crate) fn worker(snapshot: Snapshot) -> (Rc<Worker>, UnboundedReceiver<Demand>) {
    worker_with(OutboundPolicy::AllowAny, snapshot)
}

/// The same under a policy for destinations that the mesh does not know.
pub(crate) fn worker_with(
    policy: OutboundPolicy,
    snapshot: Snapshot,
) -> (Rc<Worker>, UnboundedReceiver<Demand>) {
    let (shared, demands) = shared();
    let shared = Shared { outbound_policy: policy, ..shared };
    (Worker::new(0, shared, Arc::new(snapshot)), demands)
}

/// What workers are made from.
pub(crate) fn shared() -> (Shared, UnboundedReceiver<Demand>) {
    let workload = Workload { namespace: "shop".into(), name: "cart".into(), instance: "cart-1".into() };
    let (telemetry, _) = Telemetry::new(workload, None).expect("no collector, no error");
    let (demands, receiver) = unbounded_channel();
    let (lookups, questions) = Lookups::channel();
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        let resolver = Resolver::new(None).expect("a resolver of the system");
        runtime.spawn(dns::serve(resolver, questions));
    }
    let shared = Shared {
        telemetry,
        demands,
        lookups,
        outbound_policy: OutboundPolicy::AllowAny,
        own: Arc::default(),
        demand_timeout: Duration::from_secs(2),
    };
    (shared, receiver)
}

//! One of several control planes leads: it alone writes what all would write the same.
//!
//! In: a Lease in the control plane's namespace. Out: whether this one leads. Who holds the Lease renews it; who has seen it
//! unchanged for as long as it lasts, by its own clock, takes it. One that can't renew stops to lead before others may begin.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::PostParams;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::kubernetes::{Cluster, with_causes};

/// The Lease's name.
pub const LEASE: &str = "tulle-control-plane";

/// How long a Lease holds that nobody renews.
const DURATION: Duration = Duration::from_secs(15);
/// How long after the last renewal its holder stops to lead.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often it is renewed, and looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// Takes part in the election under a name of its own, until `stop`; then the Lease is given back.
pub fn elect(
    cluster: Cluster,
    name: String,
    stop: CancellationToken,
) -> (watch::Receiver<bool>, impl Future<Output = ()> + Send) {
    let (sender, receiver) = watch::channel(false);
    let candidate = Candidate {
        api: Api::namespaced(cluster.client.clone(), &cluster.namespace),
        namespace: cluster.namespace,
        name,
        leads: Arc::new(sender),
        seen: None,
        renewed: None,
    };
    (receiver, candidate.run(stop))
}

struct Candidate {
    api: Api<Lease>,
    namespace: String,
    name: String,
    leads: Arc<watch::Sender<bool>>,
    /// The Lease of somebody else, as it was first seen, and when.
    seen: Option<(LeaseSpec, Instant)>,
    /// When it was last taken or renewed.
    renewed: Option<Instant>,
}

impl Candidate {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let started = Instant::now();
            // An answer that comes too late is none: others count from what they have seen.
            let tried = tokio::select! {
                () = stop.cancelled() => break,
                tried = timeout(DEADLINE / 2, self.attempt()) => tried,
            };
            match tried {
                Ok(Ok(true)) => self.renewed = Some(started),
                Ok(Ok(false)) => self.renewed = None,
                Ok(Err(error)) => tracing::debug!(error = with_causes(&error), "can't renew the Lease"),
                Err(_) => tracing::debug!("the API server does not answer"),
            }
            self.tell();
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(PERIOD.mul_f64(0.9 + fastrand::f64() / 5.0)) => self.tell(),
            }
        }
        if *self.leads.borrow() {
            self.leads.send_replace(false);
            // Whoever waits need not wait for its end.
            let _ = timeout(PERIOD, self.release()).await;
        }
    }

    fn tell(&self) {
        let leads = self.renewed.is_some_and(|renewed| renewed.elapsed() < DEADLINE);
        if *self.leads.borrow() != leads {
            tracing::info!(leads, lease = LEASE, "the leader changed");
            self.leads.send_replace(leads);
        }
    }

    /// Whether it holds the Lease now.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(LEASE).await? else {
            let metadata = ObjectMeta {
                name: Some(LEASE.into()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            };
            let lease = Lease { metadata, spec: Some(self.spec(None)) };
            return taken(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder != self.name && !holder.is_empty() && !self.has_lapsed(&spec) {
            return Ok(false);
        }
        lease.spec = Some(self.spec(Some(&spec)));
        // Its version goes along: of two that take it one is refused.
        taken(self.api.replace(LEASE, &PostParams::default(), &lease).await)
    }

    /// Whether the Lease was seen unchanged for as long as it holds. The clocks of two machines are never compared.
    fn has_lapsed(&mut self, spec: &LeaseSpec) -> bool {
        match &self.seen {
            Some((seen, since)) if seen == spec => {
                let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
                since.elapsed() > seconds.map_or(DURATION, Duration::from_secs)
            }
            _ => {
                self.seen = Some((spec.clone(), Instant::now()));
                false
            }
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let renewal = before.filter(|before| before.holder_identity.as_deref() == Some(self.name.as_str()));
        let transitions = before.and_then(|before| before.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.name.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: renewal.map_or(Some(now.clone()), |before| before.acquire_time.clone()),
            renew_time: Some(now),
            lease_transitions: Some(
                transitions.saturating_add((before.is_some() && renewal.is_none()).into()),
            ),
            ..LeaseSpec::default()
        }
    }

    async fn release(&self) -> Result<(), kube::Error> {
        let Some(mut lease) = self.api.get_opt(LEASE).await? else { return Ok(()) };
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.name))
        else {
            return Ok(());
        };
        spec.holder_identity = None;
        taken(self.api.replace(LEASE, &PostParams::default(), &lease).await).map(drop)
    }
}

/// Whether a write came through; one that came second did not.
fn taken(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

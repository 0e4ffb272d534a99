//! Which endpoint gets a request.
//!
//! In: a cluster of the snapshot, the request's hash, the endpoints that were tried, the time and a random number. Out:
//! an endpoint. What is shared between workers are relaxed atomics on the endpoint and the cluster; nothing here
//! locks, allocates or reads a clock on the way of a request.

mod bounded;
mod breaker;
mod build;
mod ewma;
mod maglev;
mod original;
mod pick;
mod ring;
mod set;
mod state;
mod stats;
mod stride;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model;

use breaker::{Comparison, Shares};

pub(crate) use original::Originals;
pub(crate) use pick::Pick;
pub(crate) use ring::{hash, hash_after};
pub(crate) use set::EndpointSet;
pub(crate) use state::{ClusterState, Limit, LimitReached, Permit};
pub(crate) use stats::EndpointStats;

/// A cluster of a snapshot. A change of its configuration or endpoints makes a new one that shares `state` and the
/// endpoints that stayed.
pub(crate) struct Cluster {
    /// Its name.
    pub(crate) name: Arc<str>,
    /// As it was received.
    pub(crate) model: Arc<model::Cluster>,
    /// The endpoints by priority, with what the balancer prepared.
    pub(crate) endpoints: EndpointSet,
    /// Which part of the requests is refused; mostly none.
    pub(crate) drops: Box<[model::DropOverload]>,
    /// Limits, budgets and counters, shared by all versions of the cluster and by all workers.
    pub(crate) state: Arc<ClusterState>,
}

/// One address that serves. Shared by all versions of the cluster in which it stands unchanged, and by all workers.
pub(crate) struct Endpoint {
    /// Unique for the life of the process: a key for pools. It stays while address, TLS and identity stay.
    pub(crate) id: u64,
    /// Where to connect.
    pub(crate) address: SocketAddr,
    /// Where it has several addresses, all of them, in the order in which they are tried; empty else.
    pub(crate) addresses: Box<[SocketAddr]>,
    /// Mesh TLS, or `None` for plaintext.
    pub(crate) tls: Option<EndpointTls>,
    /// As it was received.
    pub(crate) model: model::Endpoint,
    /// Load and health, as atomics; they stay while address and identity stay.
    pub(crate) stats: Arc<EndpointStats>,
}

/// How a peer's sidecar is addressed and known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EndpointTls {
    /// The SNI.
    pub(crate) server_name: Arc<str>,
    /// The only identity that may answer. `None`: any of `subject_alt_names`.
    pub(crate) identity: Option<SpiffeId>,
    /// What else the identity must match; empty: nothing.
    pub(crate) subject_alt_names: Arc<[model::StringMatch]>,
}

/// How an endpoint did on one request or connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It answered; also with what is the client's fault (4xx, gRPC PERMISSION_DENIED).
    Success,
    /// There was no connection.
    Unreachable,
    /// There was a connection, but no whole answer, or none in time.
    Lost,
    /// It answered as a gateway that fails: with 502 to 504, or gRPC UNAVAILABLE.
    Failure,
    /// It answered with any other 5xx.
    ServerError,
    /// It said that it did not process the request: it is full or about to end. Not a failure, but others are better.
    Refused,
}

impl Outcome {
    /// How the endpoint did that answered with this status.
    pub(crate) fn of(status: http::StatusCode) -> Self {
        match status.as_u16() {
            502..=504 => Self::Failure,
            500.. => Self::ServerError,
            _ => Self::Success,
        }
    }
}

/// One request or connection on an endpoint; counts as its load until it is dropped.
#[must_use]
pub(crate) struct InFlight {
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
}

impl Cluster {
    /// Counts a request or connection as load of `endpoint`.
    pub(crate) fn begin(self: &Arc<Self>, endpoint: &Arc<Endpoint>) -> InFlight {
        endpoint.stats.begin();
        InFlight { cluster: self.clone(), endpoint: endpoint.clone() }
    }

    /// Takes `endpoint` out of the choice, unless too many are out already.
    fn eject(&self, endpoint: &Endpoint, rule: &model::OutlierDetection, now: Instant, random: u64) {
        let state = &self.state;
        // One worker at a time, so that two can't both see room for one more. Who comes second lets it be: the next
        // failure asks again.
        if state.ejecting.swap(true, Acquire) {
            return;
        }
        let suspended = self.endpoints.iter().filter(|e| e.stats.is_suspended()).count();
        let room = suspended < breaker::most_ejected(rule, self.endpoints.all.len());
        if room || endpoint.stats.is_suspended() {
            endpoint.stats.eject(rule, now, random);
            state.series.ejections.increment();
            state.changes.fetch_add(1, Relaxed);
        }
        state.ejecting.store(false, Release);
    }

    /// At the end of an interval, compares the endpoints and ejects who stands out. Of all that come then, one does it.
    fn compare(&self, now: Instant, random: u64) {
        let Some(rule) = &self.model.outlier_detection else { return };
        if !breaker::compares(rule) || !self.state.ends_interval(rule.interval, now) {
            return;
        }
        let standing = || self.endpoints.iter().filter(|e| !e.stats.is_suspended());
        let answers = Shares::of_answers(rule);
        let answers = Comparison::new(answers, standing().map(|e| e.stats.window()));
        let local = rule.local.as_ref().map(|local| {
            Comparison::new(Shares::of_the_rest(local), standing().map(|e| e.stats.local_window()))
        });
        for (turn, endpoint) in (0..).zip(self.endpoints.iter()) {
            let (window, local_window) = (endpoint.stats.window(), endpoint.stats.local_window());
            endpoint.stats.begin_window();
            let mut draws = set::Draws(random.wrapping_add(turn));
            let mut enforced = |percent: u32| draws.below(100) < u64::from(percent);
            let stands_out = answers.ejects(window, &mut enforced)
                || local.as_ref().is_some_and(|local| local.ejects(local_window, &mut enforced));
            if stands_out && !endpoint.stats.is_suspended() {
                self.eject(endpoint, rule, now, draws.next());
            }
        }
    }
}

impl InFlight {
    /// The endpoint.
    pub(crate) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The cluster.
    pub(crate) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// Notes how long the endpoint took to answer (to the head of a response, to the end of a handshake), or how long a
    /// client waited that has given up. [`InFlight::report`] prices what is neither.
    pub(crate) fn observe(&self, latency: Duration, now: Instant) {
        self.endpoint.stats.observe(latency, now);
    }

    /// Notes how the endpoint did, once it is known, and ejects it where that is due. `random` is uniform over `u64`.
    pub(crate) fn report(&self, outcome: Outcome, now: Instant, random: u64) {
        let stats = &self.endpoint.stats;
        if outcome != Outcome::Success {
            stats.penalize(now);
        }
        let Some(rule) = &self.cluster.model.outlier_detection else { return stats.reopen() };
        match outcome {
            Outcome::Success => stats.succeed(rule, now),
            Outcome::Refused => {}
            _ => {
                let Some(cause) = stats.fail(outcome, rule, now) else { return };
                let mut draws = set::Draws(random);
                match draws.below(100) < u64::from(cause.enforced(rule)) {
                    true => self.cluster.eject(&self.endpoint, rule, now, draws.next()),
                    false => stats.forget(cause),
                }
            }
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.stats.end();
    }
}

#[cfg(test)]
mod tests;

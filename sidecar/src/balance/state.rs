//! What outlives a cluster's versions: how much is in flight against its limits, and its retry budget.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tulle_mesh::model;

use super::Cluster;
use crate::retry::budget::{self, Budget};
use crate::telemetry::metrics::ClusterSeries;

/// Limits, budgets and counters of a cluster, shared by all of its versions and by all workers.
pub(crate) struct ClusterState {
    /// Its counters.
    pub(crate) series: Arc<ClusterSeries>,
    /// The start of the budget's clock.
    epoch: Instant,
    in_flight: [AtomicU32; 4],
    budget: Budget,
    /// Held by the one worker that is deciding on an ejection.
    pub(super) ejecting: AtomicBool,
    /// How many ejections there were.
    pub(super) changes: AtomicU64,
    /// When the current interval of outlier detection ends, in nanoseconds since `epoch`.
    interval_end: AtomicU64,
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Connections.
    Connections,
    /// Requests that wait for a connection.
    PendingRequests,
    /// Requests.
    Requests,
    /// Retries under way or in their pause.
    Retries,
}

/// A limit that is reached. Nothing was sent: trying elsewhere or later is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LimitReached {
    /// Which.
    pub(crate) limit: Limit,
    /// Its value, and how much was in flight.
    pub(crate) max: u32,
}

/// One unit under a limit, given back on drop.
#[must_use]
pub(crate) struct Permit {
    state: Arc<ClusterState>,
    limit: Limit,
}

impl ClusterState {
    pub(super) fn new(series: Arc<ClusterSeries>, now: Instant) -> Self {
        Self {
            series,
            epoch: now,
            in_flight: Default::default(),
            budget: Budget::default(),
            ejecting: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            interval_end: AtomicU64::new(0),
        }
    }

    /// Nanoseconds of the cluster's clock.
    pub(super) fn clock(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_nanos() as u64
    }

    /// Whether an interval of outlier detection has ended; the next begins then. Of all that ask, one gets `true`.
    pub(super) fn ends_interval(&self, interval: Duration, now: Instant) -> bool {
        let now = self.clock(now);
        let end = self.interval_end.load(Relaxed);
        let next = now.saturating_add(interval.as_nanos() as u64);
        end <= now && self.interval_end.compare_exchange(end, next, Relaxed, Relaxed).is_ok()
    }

    /// How much is in flight.
    pub(crate) fn in_flight(&self, limit: Limit) -> u32 {
        self.in_flight[limit as usize].load(Relaxed)
    }
}

/// Envoy's default, where there is a limit on connections.
const MAX_PENDING_REQUESTS: u32 = 1024;

impl Cluster {
    /// Counts one more of what `limit` limits.
    ///
    /// # Errors
    /// When the limit is reached; that is counted too.
    pub(crate) fn permit(&self, limit: Limit) -> Result<Permit, LimitReached> {
        self.room(limit).inspect_err(|_| self.state.series.overflows.increment())
    }

    /// As [`Cluster::permit`], for who waits where there is no room: that is no refusal.
    ///
    /// # Errors
    /// When the limit is reached.
    pub(crate) fn room(&self, limit: Limit) -> Result<Permit, LimitReached> {
        let limits = &self.model.limits;
        let max = match limit {
            Limit::Connections => limits.max_connections,
            // Only where connections are limited does a request wait for long.
            Limit::PendingRequests => {
                limits.max_pending_requests.or(limits.max_connections.map(|_| MAX_PENDING_REQUESTS))
            }
            Limit::Requests => limits.max_requests,
            Limit::Retries => limits.max_retries,
        }
        .unwrap_or(u32::MAX);
        let counter = &self.state.in_flight[limit as usize];
        if counter.fetch_add(1, Relaxed) >= max {
            counter.fetch_sub(1, Relaxed);
            return Err(LimitReached { limit, max });
        }
        Ok(Permit { state: self.state.clone(), limit })
    }

    /// Counts one more of what `limit` limits, whether it is reached or not.
    pub(crate) fn permit_anyway(&self, limit: Limit) -> Permit {
        self.state.in_flight[limit as usize].fetch_add(1, Relaxed);
        Permit { state: self.state.clone(), limit }
    }

    /// Counts a request (not its retries) towards what the budget allows.
    pub(crate) fn count_request(&self, now: Instant) {
        let since = now.saturating_duration_since(self.state.epoch);
        self.state.budget.request(since, self.retry_budget());
    }

    /// Counts a request that is itself a retry of a hop before: it takes from what the budget allows, and adds nothing.
    pub(crate) fn count_retry(&self, now: Instant) {
        let since = now.saturating_duration_since(self.state.epoch);
        self.state.budget.retried(since, self.retry_budget());
    }

    /// Takes a retry from the budget and from the limit on concurrent retries, for its pause and its attempt; `None`
    /// when one of them has nothing left. Counts it either way.
    pub(crate) fn retry_permit(&self, now: Instant) -> Option<Permit> {
        let since = now.saturating_duration_since(self.state.epoch);
        let permit = self.permit(Limit::Retries).ok();
        let permit = permit.filter(|_| self.state.budget.retry(since, self.retry_budget()));
        let series = &self.state.series;
        if permit.is_some() {
            series.retries.increment()
        } else {
            series.retries_refused.increment()
        }
        permit
    }

    /// Writes down, for a scrape, how full the cluster is at `now`.
    pub(crate) fn gauge(&self, now: Instant) {
        let (mut endpoints, mut ejected) = (0, 0);
        for endpoint in self.endpoints.iter() {
            endpoints += 1;
            ejected += i64::from(endpoint.stats.is_ejected(now));
        }
        let series = &self.state.series;
        series.endpoints.set(endpoints);
        series.ejected_endpoints.set(ejected);
        series.active_requests.set(self.state.in_flight(Limit::Requests).into());
        series.open_connections.set(self.state.in_flight(Limit::Connections).into());
    }

    fn retry_budget(&self) -> &model::RetryBudget {
        self.model.limits.retry_budget.as_ref().unwrap_or(&budget::DEFAULT)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.state.in_flight[self.limit as usize].fetch_sub(1, Relaxed);
    }
}

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.limit {
            Limit::Connections => "maxConnections",
            Limit::PendingRequests => "maxPendingRequests",
            Limit::Requests => "maxConcurrentRequests",
            Limit::Retries => "maxRetries",
        };
        write!(f, "the limit {name}={} is reached", self.max)
    }
}

//! HTTP filters: the steps of a request on its way to its route, and what parts of the routes say of them.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{Authorization, Fault, LocalRateLimit};

/// A step on a request's way to its route.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HttpFilter {
    /// Allow, deny or audit.
    Authorization(Authorization),
    /// A limit on the rate of requests.
    LocalRateLimit(LocalRateLimit),
    /// A limit on concurrent requests that follows the application's latency.
    AdaptiveConcurrency(AdaptiveConcurrency),
    /// Injected delay and failure for all routes that have none of their own.
    Fault(Fault),
    /// One that a part of the routes may replace under its name; Tulle's own control plane makes none.
    Replaceable(ReplaceableFilter),
}

/// A filter of which a part of the routes may say something else.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplaceableFilter {
    /// The name under which routes speak of it.
    pub name: String,
    /// Only requests of routes that speak of it pass it.
    pub disabled: bool,
    /// What it does where no route says otherwise.
    pub settings: FilterSettings,
}

/// What a filter does.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum FilterSettings {
    /// At most one set that is enforced, and then one that only reports; both have the filter's name.
    Authorization(Vec<Authorization>),
    /// A limit, or `None` for none.
    LocalRateLimit(Option<LocalRateLimit>),
    /// A limit on concurrent requests.
    AdaptiveConcurrency(AdaptiveConcurrency),
    /// Faults.
    Fault(Fault),
}

/// What a part of the routes says of a filter of the listener: each route or backend that it reaches holds the same object,
/// so that a limit counts the requests of all of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FilterOverride {
    /// The filter's name. Where the listener has none of this name, nothing is meant.
    pub filter: String,
    /// What the filter does here; `None`: requests pass it by.
    pub settings: Option<FilterSettings>,
}

/// What is said of the listener's filters, each named once.
pub type FilterOverrides = Vec<Arc<FilterOverride>>;

/// A gradient limit on concurrency, as Envoy's adaptive concurrency filter; a request above it gets 503 and is marked
/// as not processed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AdaptiveConcurrency {
    /// The least limit, in requests.
    pub min_concurrency: u32,
    /// The greatest limit, in requests.
    pub max_concurrency: u32,
    /// How often the limit is computed anew.
    pub update_interval: Duration,
}

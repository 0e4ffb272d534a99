//! HTTP filters: the steps of a request on its way to its route, and what parts of the routes say of them.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{Authorization, Cors, Fault, LocalRateLimit};

/// The name under which routes speak of faults, Envoy's.
pub const FAULT_FILTER: &str = "envoy.filters.http.fault";
/// The name under which routes speak of cross-origin rules, Envoy's.
pub const CORS_FILTER: &str = "envoy.filters.http.cors";

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
    /// Sessions, of which the routes say all. Without it no route has any.
    Sessions,
    /// One that a part of the routes may replace under its name. Of these Tulle's own control plane makes those for faults and
    /// for cross-origin rules, which do nothing where no route says so.
    Replaceable(ReplaceableFilter),
}

impl HttpFilter {
    /// What routes of Tulle's own control plane may speak of, in the order in which requests pass it: cross-origin rules come
    /// first, so that a page can read an injected failure, too.
    pub fn for_routes() -> Vec<Self> {
        let inert = |name: &str, settings| {
            Self::Replaceable(ReplaceableFilter { name: name.into(), disabled: false, settings })
        };
        vec![
            inert(CORS_FILTER, FilterSettings::Cors(None)),
            inert(FAULT_FILTER, FilterSettings::Fault(Fault::default())),
            Self::Sessions,
        ]
    }
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
    /// Faults; the default is none.
    Fault(Fault),
    /// Cross-origin rules. A listener has none: they are said by routes.
    Cors(Option<Cors>),
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

impl FilterOverride {
    /// A route's faults.
    pub fn fault(fault: Fault) -> Arc<Self> {
        Arc::new(Self { filter: FAULT_FILTER.into(), settings: Some(FilterSettings::Fault(fault)) })
    }

    /// A route's cross-origin rules.
    pub fn cors(rules: Cors) -> Arc<Self> {
        Arc::new(Self { filter: CORS_FILTER.into(), settings: Some(FilterSettings::Cors(Some(rules))) })
    }
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

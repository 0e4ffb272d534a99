//! Limits and retry budgets of a cluster.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::{Thresholds, thresholds};
use envoy_types::pb::envoy::config::core::v3::RoutingPriority;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::UInt32Value;

use crate::model::{Limits, RetryBudget};
use crate::xds::error::{At, Decoded, refuse};
use crate::xds::matching::decode_percent;
use crate::xds::proto;

/// Over how long requests count towards a budget where nothing is set.
const BUDGET_INTERVAL: Duration = Duration::from_secs(10);

/// Envoy's defaults, by its documentation of the fields.
const BUDGET_PERCENT: f64 = 20.0;
const MIN_RETRIES: u32 = 3;

pub(super) fn encode(limits: &Limits) -> Option<pb::CircuitBreakers> {
    let thresholds = Thresholds {
        priority: RoutingPriority::Default as i32,
        max_connections: proto::u32_value(limits.max_connections),
        max_pending_requests: proto::u32_value(limits.max_pending_requests),
        max_requests: proto::u32_value(limits.max_requests),
        max_retries: proto::u32_value(limits.max_retries),
        retry_budget: limits.retry_budget.as_ref().map(|budget| thresholds::RetryBudget {
            budget_percent: Some(Percent { value: budget.percent }),
            budget_interval: Some(proto::duration(budget.interval)),
            min_retry_concurrency: proto::u32_value(budget.min_per_second),
        }),
        ..Default::default()
    };
    (*limits != Limits::default())
        .then(|| pb::CircuitBreakers { thresholds: vec![thresholds], ..Default::default() })
}

/// Only the default priority is in use; what stands there for another is passed over.
pub(super) fn decode(breakers: Option<pb::CircuitBreakers>) -> Decoded<Limits> {
    let default = RoutingPriority::Default as i32;
    if let Some(breakers) = &breakers {
        refuse!(breakers; per_host_thresholds)?;
    }
    let thresholds = breakers.map(|breakers| breakers.thresholds).unwrap_or_default();
    let found = thresholds.into_iter().enumerate().find(|(_, thresholds)| thresholds.priority == default);
    let Some((index, thresholds)) = found else { return Ok(Limits::default()) };
    let limit = |limit: Option<UInt32Value>| limit.map(|limit| limit.value);
    Ok(Limits {
        max_connections: limit(thresholds.max_connections),
        max_pending_requests: limit(thresholds.max_pending_requests),
        max_requests: limit(thresholds.max_requests),
        max_retries: limit(thresholds.max_retries),
        retry_budget: thresholds
            .retry_budget
            .map(|budget| decode_budget(budget).at("retry_budget").at_item("thresholds", index))
            .transpose()?,
    })
}

fn decode_budget(budget: thresholds::RetryBudget) -> Decoded<RetryBudget> {
    let percent = decode_percent(budget.budget_percent, BUDGET_PERCENT).at("budget_percent")?;
    let interval = proto::decode_duration(budget.budget_interval, "budget_interval")?;
    Ok(RetryBudget {
        percent,
        min_per_second: value(budget.min_retry_concurrency, MIN_RETRIES),
        // Zero is Envoy's "only what is in flight now".
        interval: interval.filter(|interval| !interval.is_zero()).unwrap_or(BUDGET_INTERVAL),
    })
}

fn value(value: Option<UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}

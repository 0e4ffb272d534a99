//! Limits, retry budgets and outlier detection of a cluster.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::{Thresholds, thresholds};
use envoy_types::pb::envoy::config::core::v3::RoutingPriority;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::UInt32Value;

use crate::model::{Limits, OutlierDetection, RetryBudget, SuccessRate};
use crate::xds::error::{At, Decoded, FieldError, refuse};
use crate::xds::proto;

/// Over how long requests count towards a budget where nothing is set.
const BUDGET_INTERVAL: Duration = Duration::from_secs(10);

/// Envoy's defaults, by its documentation of the fields.
const BUDGET_PERCENT: f64 = 20.0;
const MIN_RETRIES: u32 = 3;
const CONSECUTIVE_5XX: u32 = 5;
const INTERVAL: Duration = Duration::from_secs(10);
const BASE_EJECTION_TIME: Duration = Duration::from_secs(30);
const MAX_EJECTION_TIME: Duration = Duration::from_secs(300);
const MAX_EJECTION_PERCENT: u32 = 10;
const FAILURE_PERCENTAGE: u32 = 85;
const REQUEST_VOLUME: u32 = 50;

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
    let percent = budget.budget_percent.map_or(BUDGET_PERCENT, |percent| percent.value);
    if !(0.0..=100.0).contains(&percent) {
        return Err(FieldError::new(format!("{percent} is not a percentage: use 0 to 100")))
            .at("budget_percent");
    }
    let interval = proto::decode_duration(budget.budget_interval, "budget_interval")?;
    Ok(RetryBudget {
        percent,
        min_per_second: value(budget.min_retry_concurrency, MIN_RETRIES),
        // Zero is Envoy's "only what is in flight now".
        interval: interval.filter(|interval| !interval.is_zero()).unwrap_or(BUDGET_INTERVAL),
    })
}

/// Envoy's own statistics over all hosts are off, since the model has none.
pub(super) fn encode_outliers(detection: &OutlierDetection) -> pb::OutlierDetection {
    let enforced = |on: bool| proto::u32_value(if on { 100 } else { 0 });
    let consecutive = detection.consecutive_failures;
    let [all, gateway] = [false, true].map(|only| consecutive > 0 && detection.only_gateway_errors == only);
    let success = detection.success_rate.as_ref();
    pb::OutlierDetection {
        consecutive_5xx: proto::u32_value(all.then_some(consecutive)),
        enforcing_consecutive_5xx: enforced(all),
        consecutive_gateway_failure: proto::u32_value(gateway.then_some(consecutive)),
        enforcing_consecutive_gateway_failure: enforced(gateway),
        enforcing_success_rate: enforced(false),
        interval: success.map(|success| proto::duration(success.interval)),
        failure_percentage_threshold: success
            .and_then(|success| proto::u32_value(100_u32.saturating_sub(success.minimum_percent))),
        enforcing_failure_percentage: enforced(success.is_some()),
        failure_percentage_minimum_hosts: success.and_then(|_| proto::u32_value(1)),
        failure_percentage_request_volume: success
            .and_then(|success| proto::u32_value(success.minimum_requests)),
        base_ejection_time: Some(proto::duration(detection.base_ejection_time)),
        max_ejection_time: Some(proto::duration(detection.max_ejection_time)),
        max_ejection_percent: proto::u32_value(detection.max_ejection_percent),
        always_eject_one_host: proto::bool_value(true),
        ..Default::default()
    }
}

pub(super) fn decode_outliers(detection: pb::OutlierDetection) -> Decoded<OutlierDetection> {
    refuse!(detection; monitors, split_external_local_origin_errors)?;
    let base = proto::decode_positive(detection.base_ejection_time, "base_ejection_time")?;
    let base = base.unwrap_or(BASE_EJECTION_TIME);
    let longest = proto::decode_positive(detection.max_ejection_time, "max_ejection_time")?;
    let interval = proto::decode_positive(detection.interval, "interval")?.unwrap_or(INTERVAL);
    let by_percentage = value(detection.enforcing_failure_percentage, 0) > 0;
    let threshold =
        percent(detection.failure_percentage_threshold, FAILURE_PERCENTAGE, "failure_percentage_threshold")?;
    let by_5xx = value(detection.enforcing_consecutive_5xx, 100) > 0;
    // There is one count of failures in a row: where both are counted, gateway errors are among the others.
    let by_gateway = value(detection.enforcing_consecutive_gateway_failure, 0) > 0;
    let consecutive_failures = match (by_5xx, by_gateway) {
        (true, _) => value(detection.consecutive_5xx, CONSECUTIVE_5XX),
        (false, true) => value(detection.consecutive_gateway_failure, CONSECUTIVE_5XX),
        (false, false) => 0,
    };
    Ok(OutlierDetection {
        consecutive_failures,
        only_gateway_errors: !by_5xx && by_gateway && consecutive_failures > 0,
        success_rate: by_percentage.then(|| SuccessRate {
            minimum_percent: 100 - threshold,
            minimum_requests: value(detection.failure_percentage_request_volume, REQUEST_VOLUME),
            interval,
        }),
        base_ejection_time: base,
        max_ejection_time: longest.unwrap_or_else(|| base.max(MAX_EJECTION_TIME)),
        max_ejection_percent: percent(
            detection.max_ejection_percent,
            MAX_EJECTION_PERCENT,
            "max_ejection_percent",
        )?,
    })
}

fn value(value: Option<UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}

fn percent(percent: Option<UInt32Value>, default: u32, field: &str) -> Decoded<u32> {
    match value(percent, default) {
        percent @ 0..=100 => Ok(percent),
        percent => Err(FieldError::new(format!("{percent} is not a percentage: use 0 to 100"))).at(field),
    }
}

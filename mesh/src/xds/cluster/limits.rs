//! Limits, retry budgets and outlier detection of a cluster.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::{Thresholds, thresholds};
use envoy_types::pb::envoy::config::core::v3::RoutingPriority;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::UInt32Value;

use crate::model::{FailurePercentage, Limits, OutlierDetection, RetryBudget, SuccessRate};
use crate::xds::error::{At, Decoded, FieldError, refuse};
use crate::xds::matching::decode_percent;
use crate::xds::proto;

/// Over how long requests count towards a budget where nothing is set.
const BUDGET_INTERVAL: Duration = Duration::from_secs(10);

/// Envoy's defaults, by its documentation of the fields.
const BUDGET_PERCENT: f64 = 20.0;
const MIN_RETRIES: u32 = 3;
const CONSECUTIVE: u32 = 5;
const INTERVAL: Duration = Duration::from_secs(10);
const BASE_EJECTION_TIME: Duration = Duration::from_secs(30);
const MAX_EJECTION_TIME: Duration = Duration::from_secs(300);
const MAX_EJECTION_PERCENT: u32 = 10;
const FAILURE_PERCENTAGE: u32 = 85;
const FAILURE_VOLUME: u32 = 50;
const SUCCESS_VOLUME: u32 = 100;
const STDEV_FACTOR: u32 = 1900;
const MINIMUM_HOSTS: u32 = 5;

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

pub(super) fn encode_outliers(detection: &OutlierDetection) -> pb::OutlierDetection {
    let enforced = |on: bool| proto::u32_value(if on { 100 } else { 0 });
    let row = |count: u32| proto::u32_value((count > 0).then_some(count));
    let (all, gateway) = (detection.consecutive_failures, detection.consecutive_gateway_failures);
    let failures = detection.failure_percentage.as_ref();
    let success = detection.success_rate.as_ref();
    pb::OutlierDetection {
        consecutive_5xx: row(all),
        enforcing_consecutive_5xx: enforced(all > 0),
        consecutive_gateway_failure: row(gateway),
        enforcing_consecutive_gateway_failure: enforced(gateway > 0),
        enforcing_success_rate: enforced(success.is_some()),
        success_rate_minimum_hosts: success.and_then(|rule| proto::u32_value(rule.minimum_hosts)),
        success_rate_request_volume: success.and_then(|rule| proto::u32_value(rule.minimum_requests)),
        success_rate_stdev_factor: success.and_then(|rule| proto::u32_value(rule.stdev_factor)),
        interval: Some(proto::duration(detection.interval)),
        failure_percentage_threshold: failures.and_then(|rule| proto::u32_value(rule.threshold)),
        enforcing_failure_percentage: enforced(failures.is_some()),
        failure_percentage_minimum_hosts: failures.and_then(|rule| proto::u32_value(rule.minimum_hosts)),
        failure_percentage_request_volume: failures.and_then(|rule| proto::u32_value(rule.minimum_requests)),
        base_ejection_time: Some(proto::duration(detection.base_ejection_time)),
        max_ejection_time: Some(proto::duration(detection.max_ejection_time)),
        max_ejection_time_jitter: Some(proto::duration(detection.max_ejection_time_jitter)),
        max_ejection_percent: proto::u32_value(detection.max_ejection_percent),
        always_eject_one_host: proto::bool_value(detection.always_eject_one),
        ..Default::default()
    }
}

pub(super) fn decode_outliers(detection: pb::OutlierDetection) -> Decoded<OutlierDetection> {
    refuse!(detection; monitors, split_external_local_origin_errors)?;
    let base = proto::decode_positive(detection.base_ejection_time, "base_ejection_time")?;
    let base = base.unwrap_or(BASE_EJECTION_TIME);
    let longest = proto::decode_positive(detection.max_ejection_time, "max_ejection_time")?;
    let threshold =
        percent(detection.failure_percentage_threshold, FAILURE_PERCENTAGE, "failure_percentage_threshold")?;
    let row =
        |count: Option<UInt32Value>, enforced: bool| if enforced { value(count, CONSECUTIVE) } else { 0 };
    let by_5xx = value(detection.enforcing_consecutive_5xx, 100) > 0;
    let by_gateway = value(detection.enforcing_consecutive_gateway_failure, 0) > 0;
    let by_percentage = value(detection.enforcing_failure_percentage, 0) > 0;
    let by_rate = value(detection.enforcing_success_rate, 100) > 0;
    Ok(OutlierDetection {
        consecutive_failures: row(detection.consecutive_5xx, by_5xx),
        consecutive_gateway_failures: row(detection.consecutive_gateway_failure, by_gateway),
        failure_percentage: by_percentage.then(|| FailurePercentage {
            threshold,
            minimum_requests: value(detection.failure_percentage_request_volume, FAILURE_VOLUME),
            minimum_hosts: value(detection.failure_percentage_minimum_hosts, MINIMUM_HOSTS),
        }),
        success_rate: by_rate.then(|| SuccessRate {
            stdev_factor: value(detection.success_rate_stdev_factor, STDEV_FACTOR),
            minimum_requests: value(detection.success_rate_request_volume, SUCCESS_VOLUME),
            minimum_hosts: value(detection.success_rate_minimum_hosts, MINIMUM_HOSTS),
        }),
        interval: proto::decode_positive(detection.interval, "interval")?.unwrap_or(INTERVAL),
        base_ejection_time: base,
        max_ejection_time: longest.unwrap_or_else(|| base.max(MAX_EJECTION_TIME)),
        max_ejection_time_jitter: proto::decode_duration(
            detection.max_ejection_time_jitter,
            "max_ejection_time_jitter",
        )?
        .unwrap_or_default(),
        max_ejection_percent: percent(
            detection.max_ejection_percent,
            MAX_EJECTION_PERCENT,
            "max_ejection_percent",
        )?,
        always_eject_one: detection.always_eject_one_host.is_some_and(|always| always.value),
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

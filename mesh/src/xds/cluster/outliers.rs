//! Outlier detection of a cluster.
//!
//! A rule that is never enforced is none. The thresholds by which shares are judged are the same for answers and for what is none;
//! how often either is enforced is said apart.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::google::protobuf::UInt32Value;

use crate::model::{FailurePercentage, LocalOrigin, OutlierDetection, SuccessRate};
use crate::xds::error::{At, Decoded, FieldError, refuse};
use crate::xds::proto;

/// Envoy's defaults, by its documentation of the fields.
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

pub(super) fn encode(detection: &OutlierDetection) -> pb::OutlierDetection {
    let row = |count: u32| proto::u32_value((count > 0).then_some(count));
    let enforced = |count: u32, percent: u32| proto::u32_value(Some(if count > 0 { percent } else { 0 }));
    let share =
        |rule: Option<&FailurePercentage>| proto::u32_value(Some(rule.map_or(0, |rule| rule.enforced)));
    let rate = |rule: Option<&SuccessRate>| proto::u32_value(Some(rule.map_or(0, |rule| rule.enforced)));
    let (all, gateway) = (detection.consecutive_failures, detection.consecutive_gateway_failures);
    let local = detection.local.as_ref();
    let (failures, success) = (detection.failure_percentage.as_ref(), detection.success_rate.as_ref());
    let local_failures = local.and_then(|local| local.failure_percentage.as_ref());
    let local_success = local.and_then(|local| local.success_rate.as_ref());
    let by_failures = failures.or(local_failures);
    let by_success = success.or(local_success);
    pb::OutlierDetection {
        consecutive_5xx: row(all),
        enforcing_consecutive_5xx: enforced(all, detection.enforced_failures),
        consecutive_gateway_failure: row(gateway),
        enforcing_consecutive_gateway_failure: enforced(gateway, detection.enforced_gateway_failures),
        split_external_local_origin_errors: local.is_some(),
        consecutive_local_origin_failure: local.and_then(|local| row(local.consecutive_failures)),
        enforcing_consecutive_local_origin_failure: local
            .and_then(|local| enforced(local.consecutive_failures, local.enforced_failures)),
        enforcing_success_rate: rate(success),
        enforcing_local_origin_success_rate: local.and_then(|_| rate(local_success)),
        success_rate_minimum_hosts: by_success.and_then(|rule| proto::u32_value(rule.minimum_hosts)),
        success_rate_request_volume: by_success.and_then(|rule| proto::u32_value(rule.minimum_requests)),
        success_rate_stdev_factor: by_success.and_then(|rule| proto::u32_value(rule.stdev_factor)),
        interval: Some(proto::duration(detection.interval)),
        failure_percentage_threshold: by_failures.and_then(|rule| proto::u32_value(rule.threshold)),
        enforcing_failure_percentage: share(failures),
        enforcing_failure_percentage_local_origin: local.and_then(|_| share(local_failures)),
        failure_percentage_minimum_hosts: by_failures.and_then(|rule| proto::u32_value(rule.minimum_hosts)),
        failure_percentage_request_volume: by_failures
            .and_then(|rule| proto::u32_value(rule.minimum_requests)),
        base_ejection_time: Some(proto::duration(detection.base_ejection_time)),
        max_ejection_time: Some(proto::duration(detection.max_ejection_time)),
        max_ejection_time_jitter: Some(proto::duration(detection.max_ejection_time_jitter)),
        max_ejection_percent: proto::u32_value(detection.max_ejection_percent),
        always_eject_one_host: proto::bool_value(detection.always_eject_one),
        ..Default::default()
    }
}

pub(super) fn decode(detection: pb::OutlierDetection) -> Decoded<OutlierDetection> {
    refuse!(detection; monitors)?;
    let base = proto::decode_positive(detection.base_ejection_time, "base_ejection_time")?;
    let base = base.unwrap_or(BASE_EJECTION_TIME);
    let longest = proto::decode_positive(detection.max_ejection_time, "max_ejection_time")?;
    let threshold =
        percent(detection.failure_percentage_threshold, FAILURE_PERCENTAGE, "failure_percentage_threshold")?;
    let row = |count: Option<UInt32Value>, enforced: u32| match enforced {
        0 => 0,
        _ => value(count, CONSECUTIVE),
    };
    let share = |enforced: u32| {
        (enforced > 0).then(|| FailurePercentage {
            threshold,
            minimum_requests: value(detection.failure_percentage_request_volume, FAILURE_VOLUME),
            minimum_hosts: value(detection.failure_percentage_minimum_hosts, MINIMUM_HOSTS),
            enforced,
        })
    };
    let rate = |enforced: u32| {
        (enforced > 0).then(|| SuccessRate {
            stdev_factor: value(detection.success_rate_stdev_factor, STDEV_FACTOR),
            minimum_requests: value(detection.success_rate_request_volume, SUCCESS_VOLUME),
            minimum_hosts: value(detection.success_rate_minimum_hosts, MINIMUM_HOSTS),
            enforced,
        })
    };
    let enforced_failures = percent(detection.enforcing_consecutive_5xx, 100, "enforcing_consecutive_5xx")?;
    let enforced_gateway_failures =
        percent(detection.enforcing_consecutive_gateway_failure, 0, "enforcing_consecutive_gateway_failure")?;
    let enforced_local_failures = percent(
        detection.enforcing_consecutive_local_origin_failure,
        100,
        "enforcing_consecutive_local_origin_failure",
    )?;
    let local_share = percent(
        detection.enforcing_failure_percentage_local_origin,
        0,
        "enforcing_failure_percentage_local_origin",
    )?;
    let local_rate =
        percent(detection.enforcing_local_origin_success_rate, 100, "enforcing_local_origin_success_rate")?;
    Ok(OutlierDetection {
        consecutive_failures: row(detection.consecutive_5xx, enforced_failures),
        enforced_failures,
        consecutive_gateway_failures: row(detection.consecutive_gateway_failure, enforced_gateway_failures),
        enforced_gateway_failures,
        failure_percentage: share(percent(
            detection.enforcing_failure_percentage,
            0,
            "enforcing_failure_percentage",
        )?),
        success_rate: rate(percent(detection.enforcing_success_rate, 100, "enforcing_success_rate")?),
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
        local: detection.split_external_local_origin_errors.then(|| LocalOrigin {
            consecutive_failures: row(detection.consecutive_local_origin_failure, enforced_local_failures),
            enforced_failures: enforced_local_failures,
            failure_percentage: share(local_share),
            success_rate: rate(local_rate),
        }),
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

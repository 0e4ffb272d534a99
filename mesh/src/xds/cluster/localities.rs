//! Whether it matters where endpoints are, when their health does not any more, and with which of them sessions stay.
//!
//! Envoy prefers its own zone where it knows how many of its own kind are in each, from a cluster of its own that its start
//! names. A sidecar has none, and does what Envoy does without: no zone is preferred, and no locality has a weight.

use envoy_types::pb::envoy::config::cluster::v3::cluster::CommonLbConfig;
use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::{
    LocalityConfigSpecifier, ZoneAwareLbConfig,
};
use envoy_types::pb::envoy::config::core::v3::{HealthStatus, HealthStatusSet};
use envoy_types::pb::envoy::r#type::v3::Percent;

use crate::model::{Cluster, SessionHealth};
use crate::xds::error::{At, Decoded, FieldError, refuse};
use crate::xds::matching::decode_percent;

/// Envoy's, where nothing is said.
const PANIC_THRESHOLD: f64 = 50.0;

/// What a cluster says of places, of health and of sessions.
pub(super) struct Localities {
    pub(super) places: Places,
    pub(super) panic_threshold: u32,
    pub(super) sessions: SessionHealth,
}

/// What is said of places.
#[derive(Clone, Copy, Default)]
pub(super) struct Places {
    /// Whether their weights hold, where that is said.
    pub(super) weighted: Option<bool>,
    /// In a panic, requests are refused.
    pub(super) fails_requests: bool,
}

pub(super) fn encode(cluster: &Cluster) -> CommonLbConfig {
    let Cluster { ignores_localities, panic, sessions, .. } = *cluster;
    let zones = ZoneAwareLbConfig { fail_traffic_on_panic: panic.fails_requests, ..Default::default() };
    CommonLbConfig {
        healthy_panic_threshold: Some(Percent { value: panic.threshold.into() }),
        override_host_status: (sessions != SessionHealth::default()).then(|| encode_health(sessions)),
        // That they go by weight is said by the policies, beside which Envoy takes none of it here.
        locality_config_specifier: ignores_localities
            .then_some(LocalityConfigSpecifier::ZoneAwareLbConfig(zones)),
        ..Default::default()
    }
}

pub(super) fn decode(config: Option<&CommonLbConfig>) -> Decoded<Localities> {
    let empty = CommonLbConfig::default();
    let config = config.unwrap_or(&empty);
    let at = "common_lb_config";
    refuse!(config; close_connections_on_host_set_change).at(at)?;
    let places = match &config.locality_config_specifier {
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zones)) => {
            Places { weighted: Some(false), fails_requests: zones.fail_traffic_on_panic }
        }
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => {
            Places { weighted: Some(true), fails_requests: false }
        }
        None => Places::default(),
    };
    let threshold = decode_threshold(config.healthy_panic_threshold).at("healthy_panic_threshold").at(at)?;
    let sessions = config.override_host_status.as_ref();
    let sessions = sessions.map_or(Ok(SessionHealth::default()), decode_health);
    Ok(Localities {
        places,
        panic_threshold: threshold,
        sessions: sessions.at("override_host_status").at(at)?,
    })
}

/// To the nearest whole percent, as in Envoy.
fn decode_threshold(threshold: Option<Percent>) -> Decoded<u32> {
    let percent = decode_percent(threshold, PANIC_THRESHOLD)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is a percentage")]
    Ok(percent.round() as u32)
}

fn encode_health(sessions: SessionHealth) -> HealthStatusSet {
    let statuses = [
        (sessions.healthy, HealthStatus::Healthy),
        (sessions.draining, HealthStatus::Draining),
        (sessions.unhealthy, HealthStatus::Unhealthy),
    ];
    let statuses = statuses.into_iter().filter(|(set, _)| *set).map(|(_, status)| status as i32);
    HealthStatusSet { statuses: statuses.collect() }
}

/// Of none at all, no session stays.
fn decode_health(set: &HealthStatusSet) -> Decoded<SessionHealth> {
    let mut sessions = SessionHealth { healthy: false, draining: false, unhealthy: false };
    for (index, status) in set.statuses.iter().enumerate() {
        match HealthStatus::try_from(*status) {
            Ok(HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded) => {
                sessions.healthy = true
            }
            Ok(HealthStatus::Draining) => sessions.draining = true,
            Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) => sessions.unhealthy = true,
            Err(_) => {
                return Err(FieldError::new(format!("{status} is not a status"))).at_item("statuses", index);
            }
        }
    }
    Ok(sessions)
}

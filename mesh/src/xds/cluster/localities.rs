//! Whether it matters where endpoints are, and with which of them sessions stay.
//!
//! Envoy prefers its own zone where it knows how many of its own kind are in each, from a cluster of its own that its start
//! names. A sidecar has none, and does what Envoy does without: no zone is preferred, and no locality has a weight.

use envoy_types::pb::envoy::config::cluster::v3::cluster::CommonLbConfig;
use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::{
    LocalityConfigSpecifier, ZoneAwareLbConfig,
};
use envoy_types::pb::envoy::config::core::v3::{HealthStatus, HealthStatusSet};

use crate::model::{Cluster, SessionHealth};
use crate::xds::error::{At, Decoded, FieldError, refuse, unsupported};

/// What a cluster says of places and of sessions.
#[derive(Default)]
pub(super) struct Localities {
    pub(super) ignored: bool,
    pub(super) sessions: SessionHealth,
}

pub(super) fn encode(cluster: &Cluster) -> Option<CommonLbConfig> {
    let Cluster { ignores_localities, sessions, .. } = *cluster;
    let config = CommonLbConfig {
        override_host_status: (sessions != SessionHealth::default()).then(|| encode_health(sessions)),
        locality_config_specifier: ignores_localities
            .then(|| LocalityConfigSpecifier::ZoneAwareLbConfig(ZoneAwareLbConfig::default())),
        ..Default::default()
    };
    (config != CommonLbConfig::default()).then_some(config)
}

pub(super) fn decode(config: Option<&CommonLbConfig>) -> Decoded<Localities> {
    let Some(config) = config else { return Ok(Localities::default()) };
    let at = "common_lb_config";
    refuse!(config; close_connections_on_host_set_change, consistent_hashing_lb_config).at(at)?;
    let zones = match &config.locality_config_specifier {
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zones)) => Some(zones),
        _ => None,
    };
    let fails = zones.is_some_and(|zones| zones.fail_traffic_on_panic);
    unsupported(fails, "zone_aware_lb_config.fail_traffic_on_panic", "leave it out").at(at)?;
    let sessions = config.override_host_status.as_ref();
    let sessions = sessions.map_or(Ok(SessionHealth::default()), decode_health);
    Ok(Localities { ignored: zones.is_some(), sessions: sessions.at("override_host_status").at(at)? })
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

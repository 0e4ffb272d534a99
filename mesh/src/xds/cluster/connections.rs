//! How TCP connections to endpoints are made and kept.

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::upstream_connection_options::{
    FirstAddressFamilyVersion, HappyEyeballsConfig,
};
use envoy_types::pb::envoy::config::core::v3::TcpKeepalive;
use envoy_types::pb::google::protobuf::UInt32Value;

use crate::model::{Cluster, HappyEyeballs, IpFamily, Keepalive};
use crate::xds::error::{At, Decoded, FieldError};
use crate::xds::proto;

pub(super) fn encode(cluster: &Cluster) -> Option<pb::UpstreamConnectionOptions> {
    let value = |value: Option<u16>| proto::u32_value(value.map(u32::from));
    let tcp_keepalive = match cluster.keepalive {
        Keepalive::Own => None,
        Keepalive::Off => Some(TcpKeepalive { keepalive_time: value(Some(0)), ..Default::default() }),
        Keepalive::Probes { time, interval, probes } => Some(TcpKeepalive {
            keepalive_probes: value(probes.map(u16::from)),
            keepalive_time: value(time),
            keepalive_interval: value(interval),
        }),
    };
    let HappyEyeballs { first, count } = cluster.happy_eyeballs;
    let first = match first {
        None => FirstAddressFamilyVersion::Default,
        Some(IpFamily::V4) => FirstAddressFamilyVersion::V4,
        Some(IpFamily::V6) => FirstAddressFamilyVersion::V6,
    };
    let happy_eyeballs_config =
        (cluster.happy_eyeballs != HappyEyeballs::default()).then(|| HappyEyeballsConfig {
            first_address_family_version: first as i32,
            first_address_family_count: proto::u32_value(count),
        });
    (tcp_keepalive.is_some() || happy_eyeballs_config.is_some()).then(|| pb::UpstreamConnectionOptions {
        tcp_keepalive,
        happy_eyeballs_config,
        ..Default::default()
    })
}

pub(super) fn decode(options: Option<&pb::UpstreamConnectionOptions>) -> Decoded<(Keepalive, HappyEyeballs)> {
    let Some(options) = options else { return Ok((Keepalive::Own, HappyEyeballs::default())) };
    let keepalive = options.tcp_keepalive.as_ref().map(decode_keepalive).transpose();
    let eyeballs = options.happy_eyeballs_config.as_ref().map(decode_eyeballs).transpose();
    let keepalive = keepalive.at("tcp_keepalive")?.unwrap_or_default();
    Ok((keepalive, eyeballs.at("happy_eyeballs_config")?.unwrap_or_default()))
}

/// One value of 0 turns all off. More than the kernel takes would let every connection fail.
fn decode_keepalive(keepalive: &TcpKeepalive) -> Decoded<Keepalive> {
    let TcpKeepalive { keepalive_probes, keepalive_time, keepalive_interval } = *keepalive;
    let time = decode_most(keepalive_time, 32_767).at("keepalive_time")?;
    let interval = decode_most(keepalive_interval, 32_767).at("keepalive_interval")?;
    let probes = decode_most(keepalive_probes, 127).at("keepalive_probes")?;
    if time == Some(0) || interval == Some(0) || probes == Some(0) {
        return Ok(Keepalive::Off);
    }
    let probes = probes.map(|probes| u8::try_from(probes).unwrap_or(u8::MAX));
    Ok(Keepalive::Probes { time, interval, probes })
}

fn decode_most(value: Option<UInt32Value>, most: u16) -> Decoded<Option<u16>> {
    let Some(UInt32Value { value }) = value else { return Ok(None) };
    let valid = u16::try_from(value).ok().filter(|value| *value <= most);
    let problem = || FieldError::new(format!("{value} is more than the kernel takes: use {most} at most"));
    valid.map(Some).ok_or_else(problem)
}

fn decode_eyeballs(config: &HappyEyeballsConfig) -> Decoded<HappyEyeballs> {
    let first = match FirstAddressFamilyVersion::try_from(config.first_address_family_version) {
        Ok(FirstAddressFamilyVersion::Default) => None,
        Ok(FirstAddressFamilyVersion::V4) => Some(IpFamily::V4),
        Ok(FirstAddressFamilyVersion::V6) => Some(IpFamily::V6),
        _ => {
            return Err(FieldError::new("is no version of IP: use V4 or V6"))
                .at("first_address_family_version");
        }
    };
    match config.first_address_family_count.map_or(1, |count| count.value) {
        0 => Err(FieldError::new("is 0: use at least 1")).at("first_address_family_count"),
        count => Ok(HappyEyeballs { first, count }),
    }
}

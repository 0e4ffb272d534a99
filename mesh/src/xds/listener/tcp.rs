//! Forwarding of bytes.

use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::weighted_cluster::ClusterWeight;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, WeightedCluster,
};
use envoy_types::pb::envoy::r#type::v3::HashPolicy;
use envoy_types::pb::envoy::r#type::v3::hash_policy::{PolicySpecifier, SourceIp};

use super::access_log;
use crate::model::{MaxDuration, PerMillion, TcpProxy};
use crate::xds::error::{At, Decoded, FieldError, each, non_empty, refuse, required, unsupported};
use crate::xds::{matching, proto};

/// A backend of weight 0 is left out: Envoy refuses it here.
pub(super) fn encode(proxy: &TcpProxy, stat_prefix: &str) -> pb::TcpProxy {
    let weighted: Vec<_> = proxy.backends.iter().filter(|(_, weight)| *weight > 0).collect();
    let specifier = match weighted.as_slice() {
        [(cluster, 1)] => ClusterSpecifier::Cluster(cluster.clone()),
        backends => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: backends
                .iter()
                .map(|(name, weight)| ClusterWeight {
                    name: name.clone(),
                    weight: *weight,
                    metadata_match: None,
                })
                .collect(),
        }),
    };
    pb::TcpProxy {
        stat_prefix: stat_prefix.into(),
        idle_timeout: proxy.idle_timeout.map(proto::duration),
        max_downstream_connection_duration: proxy.max_duration.map(|max| proto::duration(max.least)),
        max_downstream_connection_duration_jitter_percentage: proxy
            .max_duration
            .filter(|max| max.jitter.0 > 0)
            .map(|max| matching::share(max.jitter)),
        max_connect_attempts: proto::u32_value(Some(proxy.max_connect_attempts).filter(|most| *most > 1)),
        hash_policy: proxy.hashes_source_ip.then(by_source_ip).into_iter().collect(),
        access_log: proxy.access_log.iter().map(access_log::encode).collect(),
        cluster_specifier: Some(specifier),
        ..Default::default()
    }
}

pub(super) fn decode(proxy: pb::TcpProxy) -> Decoded<TcpProxy> {
    unsupported(
        proxy.metadata_match.is_some(),
        "metadata_match",
        "make a cluster of its own for the subset",
    )?;
    refuse!(proxy;
        tunneling_config, on_demand, proxy_protocol_tlvs, upstream_connect_mode, downstream_idle_timeout,
        upstream_idle_timeout)?;
    let max_duration = decode_max_duration(&proxy)?;
    let max_connect_attempts = match proxy.max_connect_attempts.map_or(1, |most| most.value) {
        0 => return Err(FieldError::new("is 0: use at least 1")).at("max_connect_attempts"),
        most => most,
    };
    let hashes_source_ip = match each("hash_policy", proxy.hash_policy, decode_hash_policy)?.len() {
        0 => false,
        1 => true,
        _ => return Err(FieldError::new("holds several: use one")).at("hash_policy"),
    };
    let backends = match required(proxy.cluster_specifier, "cluster")? {
        ClusterSpecifier::Cluster(cluster) => vec![(non_empty(cluster, "cluster")?, 1)],
        ClusterSpecifier::WeightedClusters(weighted) => {
            let backends = each("clusters", weighted.clusters, decode_backend).at("weighted_clusters")?;
            let sum: u64 = backends.iter().map(|(_, weight)| u64::from(*weight)).sum();
            if backends.is_empty() || sum > u32::MAX.into() {
                let problem = format!("the sum of all weights is {sum}: it must be from 1 to 4294967295");
                return Err(FieldError::new(problem)).at("weighted_clusters.clusters");
            }
            backends
        }
    };
    Ok(TcpProxy {
        backends,
        idle_timeout: proto::decode_duration(proxy.idle_timeout, "idle_timeout")?,
        max_duration,
        max_connect_attempts,
        hashes_source_ip,
        access_log: access_log::decode(proxy.access_log)?,
    })
}

fn decode_backend(cluster: ClusterWeight) -> Decoded<(String, u32)> {
    unsupported(
        cluster.metadata_match.is_some(),
        "metadata_match",
        "make a cluster of its own for the subset",
    )?;
    if cluster.weight == 0 {
        return Err(FieldError::new("is 0: use at least 1, or leave the cluster out")).at("weight");
    }
    Ok((non_empty(cluster.name, "name")?, cluster.weight))
}

fn decode_max_duration(proxy: &pb::TcpProxy) -> Decoded<Option<MaxDuration>> {
    let field = "max_downstream_connection_duration";
    let least = proto::decode_positive(proxy.max_downstream_connection_duration, field)?;
    let Some(least) = least else { return Ok(None) };
    let jitter = proxy.max_downstream_connection_duration_jitter_percentage;
    let jitter = matching::decode_share(jitter, PerMillion(0))
        .at("max_downstream_connection_duration_jitter_percentage")?;
    Ok(Some(MaxDuration { least, jitter }))
}

fn by_source_ip() -> HashPolicy {
    HashPolicy { policy_specifier: Some(PolicySpecifier::SourceIp(SourceIp {})) }
}

fn decode_hash_policy(policy: HashPolicy) -> Decoded<()> {
    match policy.policy_specifier {
        Some(PolicySpecifier::SourceIp(_)) => Ok(()),
        Some(PolicySpecifier::FilterState(_)) => {
            Err(FieldError::new("is not supported: use source_ip")).at("filter_state")
        }
        None => required(None, "source_ip"),
    }
}

//! Load assignments.
//!
//! Every group of endpoints is written with its locality and its weight: gRPC drops a group that lacks one. An
//! endpoint's identity and workload are Tulle's own metadata; that it speaks mesh TLS is metadata by which Envoy picks a
//! transport socket.

use std::collections::HashSet;
use std::net::SocketAddr;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;
use envoy_types::pb::envoy::config::endpoint::v3::cluster_load_assignment::Policy;
use envoy_types::pb::envoy::config::endpoint::v3::cluster_load_assignment::policy::DropOverload as DropOverloadPb;
use envoy_types::pb::google::protobuf::Struct;
use envoy_types::pb::google::protobuf::value::Kind as ValueKind;

use super::error::{At, Decoded, FieldError, each, is_set, non_empty, refuse, required, unsupported};
use super::matching;
use super::proto::{self, Fields, Read};
use super::{Kind, XdsError};
use crate::model::{
    DropOverload, Endpoint, EndpointAddress, Health, LoadAssignment, Locality, LocalityEndpoints,
};

/// The namespace of the metadata by which Envoy picks a transport socket for an endpoint.
const TRANSPORT_SOCKET_MATCH: &str = "envoy.transport_socket_match";

/// The key there, as Istio names it, and what stands under it for an endpoint that ends mesh TLS.
pub(super) const TLS_MODE: &str = "tlsMode";
pub(super) const MESH_TLS_MODE: &str = "tulle";
/// What Istio's control plane writes for the same.
pub(super) const ISTIO_TLS_MODE: &str = "istio";

/// Writes a load assignment. The same model always gives the same bytes.
pub fn encode(assignment: &LoadAssignment) -> pb::ClusterLoadAssignment {
    pb::ClusterLoadAssignment {
        cluster_name: assignment.name.clone(),
        endpoints: assignment.localities.iter().map(encode_locality).collect(),
        policy: encode_policy(assignment),
        ..Default::default()
    }
}

/// Reads a load assignment.
///
/// # Errors
/// When a field is not valid, priorities leave a gap, or it relies on something that Tulle does not do.
pub fn decode(message: pb::ClusterLoadAssignment) -> Result<LoadAssignment, XdsError> {
    let name = message.cluster_name.clone();
    decode_assignment(message).map_err(|error| error.of(Kind::Endpoint, &name))
}

/// Reads a load assignment within another resource.
pub(super) fn decode_assignment(message: pb::ClusterLoadAssignment) -> Decoded<LoadAssignment> {
    unsupported(!message.named_endpoints.is_empty(), "named_endpoints", "list endpoints in lb_endpoints")?;
    let policy = message.policy.unwrap_or_default();
    let (overprovisioning, drops) = decode_policy(policy).at("policy")?;
    let name = non_empty(message.cluster_name, "cluster_name")?;
    let localities = each("endpoints", message.endpoints, decode_locality)?;
    let priorities: HashSet<u32> = localities.iter().map(|locality| locality.priority).collect();
    let count = u32::try_from(priorities.len()).expect("no priority is above 128");
    if let Some(gap) = (0..count).find(|priority| !priorities.contains(priority)) {
        return Err(FieldError::new(format!(
            "no locality has priority {gap}: number them from 0 without a gap"
        )))
        .at("endpoints");
    }
    Ok(LoadAssignment { name, localities, overprovisioning, drops })
}

fn encode_locality(group: &LocalityEndpoints) -> pb::LocalityLbEndpoints {
    pb::LocalityLbEndpoints {
        locality: Some(core::Locality {
            region: group.locality.region.clone(),
            zone: group.locality.zone.clone(),
            sub_zone: group.locality.sub_zone.clone(),
        }),
        lb_endpoints: group.endpoints.iter().map(encode_endpoint).collect(),
        load_balancing_weight: proto::u32_value(Some(group.weight).filter(|weight| *weight > 0)),
        priority: group.priority,
        ..Default::default()
    }
}

fn encode_policy(assignment: &LoadAssignment) -> Option<Policy> {
    let policy = Policy {
        overprovisioning_factor: assignment.overprovisioning.and_then(proto::u32_value),
        drop_overloads: assignment.drops.iter().map(encode_drop).collect(),
        ..Default::default()
    };
    is_set(&policy).then_some(policy)
}

fn decode_policy(policy: Policy) -> Decoded<(Option<u32>, Vec<DropOverload>)> {
    refuse!(policy; endpoint_stale_after, weighted_priority_health)?;
    let drops = each("drop_overloads", policy.drop_overloads, decode_drop)?;
    match policy.overprovisioning_factor.map(|factor| factor.value) {
        Some(0) => Err(FieldError::new("is 0: use at least 1")).at("overprovisioning_factor"),
        factor => Ok((factor, drops)),
    }
}

fn encode_drop(drop: &DropOverload) -> DropOverloadPb {
    DropOverloadPb {
        category: drop.category.clone(),
        drop_percentage: matching::runtime_fraction(drop.fraction).default_value,
    }
}

fn decode_drop(drop: DropOverloadPb) -> Decoded<DropOverload> {
    let fraction = required(drop.drop_percentage, "drop_percentage")?;
    Ok(DropOverload {
        category: non_empty(drop.category, "category")?,
        fraction: matching::decode_fraction(fraction).at("drop_percentage")?,
    })
}

fn decode_locality(group: pb::LocalityLbEndpoints) -> Decoded<LocalityEndpoints> {
    unsupported(group.lb_config.is_some(), "lb_config", "list endpoints in lb_endpoints")?;
    if group.priority > 128 {
        return Err(FieldError::new(format!("{} is above 128", group.priority))).at("priority");
    }
    let locality = group.locality.unwrap_or_default();
    Ok(LocalityEndpoints {
        locality: Locality { region: locality.region, zone: locality.zone, sub_zone: locality.sub_zone },
        priority: group.priority,
        weight: decode_weight(group.load_balancing_weight)?.unwrap_or(0),
        endpoints: each("lb_endpoints", group.lb_endpoints, decode_endpoint)?,
    })
}

fn decode_weight(weight: Option<envoy_types::pb::google::protobuf::UInt32Value>) -> Decoded<Option<u32>> {
    match weight.map(|weight| weight.value) {
        Some(0) => Err(FieldError::new("is 0: use at least 1, or leave the endpoints out"))
            .at("load_balancing_weight"),
        weight => Ok(weight),
    }
}

fn encode_endpoint(endpoint: &Endpoint) -> pb::LbEndpoint {
    let address = match &endpoint.address {
        EndpointAddress::Socket(address) => proto::socket_address(address.ip().to_string(), address.port()),
        EndpointAddress::Pipe(path) => core::Address {
            address: Some(core::address::Address::Pipe(core::Pipe { path: path.clone(), mode: 0 })),
        },
    };
    let health = match endpoint.health {
        Health::Healthy => core::HealthStatus::Healthy,
        Health::Unhealthy => core::HealthStatus::Unhealthy,
        Health::Draining => core::HealthStatus::Draining,
    };
    pb::LbEndpoint {
        health_status: health as i32,
        metadata: encode_metadata(endpoint),
        load_balancing_weight: proto::u32_value(endpoint.weight),
        host_identifier: Some(pb::lb_endpoint::HostIdentifier::Endpoint(pb::Endpoint {
            address: Some(address),
            hostname: endpoint.hostname.clone(),
            additional_addresses: endpoint
                .additional_addresses
                .iter()
                .map(|address| pb::endpoint::AdditionalAddress {
                    address: Some(proto::socket_address(address.ip().to_string(), address.port())),
                })
                .collect(),
            ..Default::default()
        })),
    }
}

fn encode_metadata(endpoint: &Endpoint) -> Option<core::Metadata> {
    let mut fields = Fields::new();
    if let Some(identity) = &endpoint.identity {
        fields.insert("identity".into(), proto::text(identity.as_str()));
    }
    if !endpoint.workload.is_empty() {
        fields.insert("workload".into(), proto::text(&endpoint.workload));
    }
    let mut metadata = proto::metadata(fields);
    if endpoint.meshed {
        let mode = Struct { fields: [(TLS_MODE.to_owned(), proto::text(MESH_TLS_MODE))].into() };
        metadata.get_or_insert_default().filter_metadata.insert(TRANSPORT_SOCKET_MATCH.into(), mode);
    }
    metadata
}

fn decode_endpoint(endpoint: pb::LbEndpoint) -> Decoded<Endpoint> {
    let weight = decode_weight(endpoint.load_balancing_weight)?.unwrap_or(1);
    let own = proto::decode_metadata(endpoint.metadata.as_ref())?;
    let identity = own.text("identity").at("metadata")?;
    let identity = match identity.as_str() {
        "" => None,
        uri => Some(uri.parse().map_err(|e| FieldError::new(format!("{e}"))).at("metadata.identity")?),
    };
    let meshed = is_meshed(endpoint.metadata.as_ref());
    let target = match required(endpoint.host_identifier, "endpoint")? {
        pb::lb_endpoint::HostIdentifier::Endpoint(target) => target,
        pb::lb_endpoint::HostIdentifier::EndpointName(_) => {
            return Err(FieldError::new("is not supported: use endpoint")).at("endpoint_name");
        }
    };
    let address = decode_address(target.address).at("address").at("endpoint")?;
    let additional_addresses =
        each("additional_addresses", target.additional_addresses, decode_additional).at("endpoint")?;
    if matches!(address, EndpointAddress::Pipe(_)) && !additional_addresses.is_empty() {
        return Err(FieldError::new("stand beside a pipe: use IP addresses alone"))
            .at("additional_addresses")
            .at("endpoint");
    }
    Ok(Endpoint {
        address,
        additional_addresses,
        health: decode_health(endpoint.health_status),
        weight,
        hostname: target.hostname,
        meshed,
        identity,
        workload: own.text("workload").at("metadata")?,
    })
}

fn is_meshed(metadata: Option<&core::Metadata>) -> bool {
    let mode = metadata
        .and_then(|metadata| metadata.filter_metadata.get(TRANSPORT_SOCKET_MATCH))
        .and_then(|fields| fields.fields.get(TLS_MODE))
        .and_then(|mode| mode.kind.as_ref());
    matches!(mode, Some(ValueKind::StringValue(mode)) if mode == MESH_TLS_MODE || mode == ISTIO_TLS_MODE)
}

fn decode_additional(additional: pb::endpoint::AdditionalAddress) -> Decoded<SocketAddr> {
    match decode_address(additional.address).at("address")? {
        EndpointAddress::Socket(address) => Ok(address),
        EndpointAddress::Pipe(_) => Err(FieldError::new("is a pipe: use socket_address")).at("address"),
    }
}

fn decode_address(address: Option<core::Address>) -> Decoded<EndpointAddress> {
    match address.and_then(|address| address.address) {
        Some(core::address::Address::SocketAddress(socket)) => {
            Ok(EndpointAddress::Socket(proto::decode_socket_address(socket).at("socket_address")?))
        }
        Some(core::address::Address::Pipe(pipe)) => {
            Ok(EndpointAddress::Pipe(non_empty(pipe.path, "path").at("pipe")?))
        }
        Some(core::address::Address::EnvoyInternalAddress(_)) => {
            Err(FieldError::new("is not supported: use socket_address or pipe")).at("envoy_internal_address")
        }
        None => Err(FieldError::new("is missing: use socket_address or pipe")),
    }
}

/// A status that is not known here counts as unhealthy: better one endpoint too few than failed requests.
fn decode_health(status: i32) -> Health {
    use core::HealthStatus;
    match HealthStatus::try_from(status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded) => Health::Healthy,
        Ok(HealthStatus::Draining) => Health::Draining,
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout) | Err(_) => Health::Unhealthy,
    }
}

//! Names of the mesh, one to a resource.
//!
//! A resource is a `DnsTable` of one virtual domain, and its name is that domain's; for a service's port, it is the name
//! that Envoy makes of the parts, `_<service>._<protocol>.<domain>`. The message has no field for a name that stands for
//! another one: that is written as a service `*`, which no name in a query can mean, with the other name as its target.

use std::time::Duration;

use envoy_types::pb::envoy::data::dns::v3 as pb;
use pb::dns_table::dns_endpoint::EndpointConfig;
use pb::dns_table::dns_service_protocol::ProtocolConfig;
use pb::dns_table::dns_service_target::EndpointType;
use pb::dns_table::{
    AddressList, DnsEndpoint, DnsService, DnsServiceList, DnsServiceProtocol, DnsServiceTarget,
    DnsVirtualDomain,
};

use super::error::{At, Decoded, FieldError, each, non_empty, required};
use super::proto;
use super::{Kind, XdsError};
use crate::model::{DnsName, DnsRecords, DnsTarget, is_domain_name};

/// The service of a name that stands for another one.
const ALIAS: &str = "*";

/// How long an answer holds where the table does not say: as in Envoy.
const DEFAULT_TTL: Duration = Duration::from_secs(300);

/// Writes a name.
pub fn encode(name: &DnsName) -> pb::DnsTable {
    let (domain, config) = match &name.records {
        DnsRecords::Addresses(addresses) => {
            let address = addresses.iter().map(ToString::to_string).collect();
            (name.name.as_str(), EndpointConfig::AddressList(AddressList { address }))
        }
        DnsRecords::Services(targets) => {
            let (service, protocol, domain) = split_service(&name.name).unwrap_or(("", "", &name.name));
            (domain, service_list(service, protocol, name.ttl, targets))
        }
        DnsRecords::Alias(host) => {
            let target = DnsTarget { host: host.clone(), port: 0, priority: 0, weight: 0 };
            (name.name.as_str(), service_list(ALIAS, "tcp", name.ttl, &[target]))
        }
    };
    let domain = DnsVirtualDomain {
        name: domain.into(),
        endpoint: Some(DnsEndpoint { endpoint_config: Some(config) }),
        answer_ttl: Some(proto::duration(name.ttl)),
    };
    pb::DnsTable { virtual_domains: vec![domain], ..Default::default() }
}

/// Reads a name.
///
/// # Errors
/// When it is not a table of one domain, the domain is no name, or it is answered from a cluster.
pub fn decode(message: pb::DnsTable) -> Result<DnsName, XdsError> {
    let name = message.virtual_domains.first().map(|domain| domain.name.clone()).unwrap_or_default();
    decode_table(message).map_err(|error| error.of(Kind::Dns, &name))
}

fn decode_table(message: pb::DnsTable) -> Decoded<DnsName> {
    let count = message.virtual_domains.len();
    let [domain] = <[DnsVirtualDomain; 1]>::try_from(message.virtual_domains)
        .map_err(|_| FieldError::new(format!("holds {count} domains: send each as a resource of its own")))
        .at("virtual_domains")?;
    decode_domain(domain).at_item("virtual_domains", 0)
}

fn decode_domain(domain: DnsVirtualDomain) -> Decoded<DnsName> {
    let name = decode_name(domain.name, "name")?;
    let ttl = whole_seconds(domain.answer_ttl, "answer_ttl")?;
    let config = required(domain.endpoint.and_then(|endpoint| endpoint.endpoint_config), "endpoint")?;
    let answer = match config {
        EndpointConfig::AddressList(list) => {
            let addresses = decode_addresses(list).at("address_list").at("endpoint")?;
            DnsName { name, ttl: ttl.unwrap_or(DEFAULT_TTL), records: DnsRecords::Addresses(addresses) }
        }
        EndpointConfig::ServiceList(list) => {
            decode_services(name, ttl, list).at("service_list").at("endpoint")?
        }
        EndpointConfig::ClusterName(_) => {
            return Err(FieldError::new("is not supported: use address_list or service_list"))
                .at("cluster_name")
                .at("endpoint");
        }
    };
    Ok(answer)
}

fn decode_addresses(list: AddressList) -> Decoded<Vec<std::net::IpAddr>> {
    if list.address.is_empty() {
        return Err(FieldError::new("is empty: a name without addresses is none")).at("address");
    }
    each("address", list.address, |text| {
        text.parse().map_err(|_| FieldError::new(format!("{text:?} is not an IP address")))
    })
}

fn decode_services(domain: String, ttl: Option<Duration>, list: DnsServiceList) -> Decoded<DnsName> {
    let count = list.services.len();
    let [service] = <[DnsService; 1]>::try_from(list.services)
        .map_err(|_| FieldError::new(format!("holds {count} services: send each as a resource of its own")))
        .at("services")?;
    decode_service(domain, ttl, service).at_item("services", 0)
}

fn decode_service(domain: String, ttl: Option<Duration>, service: DnsService) -> Decoded<DnsName> {
    let ttl = whole_seconds(service.ttl, "ttl")?.or(ttl).unwrap_or(DEFAULT_TTL);
    if service.targets.is_empty() {
        return Err(FieldError::new("is empty: a service without targets is none")).at("targets");
    }
    let targets = each("targets", service.targets, decode_target)?;
    let label = non_empty(service.service_name, "service_name")?;
    if label == ALIAS {
        let [target] = <[DnsTarget; 1]>::try_from(targets)
            .map_err(|_| FieldError::new("a name stands for one other name"))
            .at("targets")?;
        return Ok(DnsName { name: domain, ttl, records: DnsRecords::Alias(target.host) });
    }
    let protocol = decode_protocol(service.protocol).at("protocol")?;
    let name = format!("_{}._{protocol}.{domain}", label.trim_start_matches('_'));
    let name = decode_name(name, "service_name")?;
    if split_service(&name).is_none() {
        return Err(FieldError::new(format!("{label:?} is not one label"))).at("service_name");
    }
    Ok(DnsName { name, ttl, records: DnsRecords::Services(targets) })
}

fn decode_protocol(protocol: Option<DnsServiceProtocol>) -> Decoded<String> {
    match required(protocol.and_then(|protocol| protocol.protocol_config), "name")? {
        ProtocolConfig::Name(name) => Ok(name.trim_start_matches('_').to_owned()),
        ProtocolConfig::Number(6) => Ok("tcp".into()),
        ProtocolConfig::Number(17) => Ok("udp".into()),
        ProtocolConfig::Number(other) => {
            Err(FieldError::new(format!("{other} is not supported: use 6 or 17, or a name"))).at("number")
        }
    }
}

fn decode_target(target: DnsServiceTarget) -> Decoded<DnsTarget> {
    let host = match required(target.endpoint_type, "host_name")? {
        EndpointType::HostName(host) => decode_name(host, "host_name")?,
        EndpointType::ClusterName(_) => {
            return Err(FieldError::new("is not supported: use host_name")).at("cluster_name");
        }
    };
    let number = |value: u32, field| {
        u16::try_from(value).map_err(|_| FieldError::new(format!("{value} is above 65535"))).at(field)
    };
    Ok(DnsTarget {
        host,
        port: number(target.port, "port")?,
        priority: number(target.priority, "priority")?,
        weight: number(target.weight, "weight")?,
    })
}

fn decode_name(name: String, field: &str) -> Decoded<String> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if is_domain_name(&name) {
        Ok(name)
    } else {
        Err(FieldError::new(format!("{name:?} is not a domain name"))).at(field)
    }
}

fn whole_seconds(
    value: Option<envoy_types::pb::google::protobuf::Duration>,
    field: &str,
) -> Decoded<Option<Duration>> {
    Ok(proto::decode_duration(value, field)?.map(|ttl| Duration::from_secs(ttl.as_secs())))
}

fn service_list(service: &str, protocol: &str, ttl: Duration, targets: &[DnsTarget]) -> EndpointConfig {
    let targets = targets.iter().map(|target| DnsServiceTarget {
        endpoint_type: Some(EndpointType::HostName(target.host.clone())),
        priority: target.priority.into(),
        weight: target.weight.into(),
        port: target.port.into(),
    });
    let service = DnsService {
        service_name: service.into(),
        protocol: Some(DnsServiceProtocol { protocol_config: Some(ProtocolConfig::Name(protocol.into())) }),
        ttl: Some(proto::duration(ttl)),
        targets: targets.collect(),
    };
    EndpointConfig::ServiceList(DnsServiceList { services: vec![service] })
}

/// The port's name, the protocol and the domain of `_<port>._<protocol>.<domain>`.
fn split_service(name: &str) -> Option<(&str, &str, &str)> {
    let (service, rest) = name.strip_prefix('_')?.split_once("._")?;
    let (protocol, domain) = rest.split_once('.')?;
    (!service.contains('.')).then_some((service, protocol, domain))
}

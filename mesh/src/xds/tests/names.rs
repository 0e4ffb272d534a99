//! Names of the mesh: what Envoy would make of them, and what is refused.

use envoy_types::pb::envoy::data::dns::v3 as pb;
use pb::dns_table::dns_endpoint::EndpointConfig;
use pb::dns_table::dns_service_protocol::ProtocolConfig;
use pb::dns_table::dns_service_target::EndpointType;
use pb::dns_table::{
    AddressList, DnsEndpoint, DnsService, DnsServiceList, DnsServiceProtocol, DnsServiceTarget,
    DnsVirtualDomain,
};

use super::*;
use crate::model::{DnsName, DnsRecords, DnsTarget};

#[test]
fn the_name_of_a_services_port_is_made_as_envoy_makes_it() {
    let target = DnsTarget { host: "db-0.db".into(), port: 5432, priority: 0, weight: 1 };
    let name = DnsName {
        name: "_pg._tcp.db.shop".into(),
        ttl: std::time::Duration::from_secs(5),
        records: DnsRecords::Services(vec![target]),
    };
    let table = dns::encode(&name);
    let domain = &table.virtual_domains[0];
    assert_eq!(domain.name, "db.shop");
    let Some(EndpointConfig::ServiceList(list)) = &domain.endpoint.as_ref().unwrap().endpoint_config else {
        panic!("a list of services");
    };
    assert_eq!(list.services[0].service_name, "pg");
    let protocol = list.services[0].protocol.as_ref().unwrap().protocol_config.as_ref();
    assert_eq!(protocol, Some(&ProtocolConfig::Name("tcp".into())));
}

#[test]
fn what_others_may_send_is_read() {
    let mut table = domain("Cart.Shop.", addresses(&["10.0.0.1", "fd00::1"]));
    table.virtual_domains[0].answer_ttl = None;
    let name = dns::decode(table).unwrap();
    assert_eq!((name.name.as_str(), name.ttl.as_secs()), ("cart.shop", 300));

    let mut service = service("_http", vec![host("a.b")]);
    service.protocol = Some(DnsServiceProtocol { protocol_config: Some(ProtocolConfig::Number(6)) });
    service.ttl = Some(duration(7));
    let name = dns::decode(domain("cart.shop", services(vec![service]))).unwrap();
    assert_eq!((name.name.as_str(), name.ttl.as_secs()), ("_http._tcp.cart.shop", 7));
}

#[test]
fn what_is_refused_is_named() {
    for (table, expected) in [
        (pb::DnsTable::default(), "DNS name: virtual_domains: holds 0 domains"),
        (domain("a b", addresses(&["10.0.0.1"])), "virtual_domains[0].name: \"a b\" is not a domain name"),
        (domain("a..b", addresses(&["10.0.0.1"])), "virtual_domains[0].name: \"a..b\""),
        (domain("", addresses(&["10.0.0.1"])), "virtual_domains[0].name: \"\""),
        (domain("a", addresses(&[])), "virtual_domains[0].endpoint.address_list.address: is empty"),
        (domain("a", addresses(&["b"])), "endpoint.address_list.address[0]: \"b\" is not an IP address"),
        (domain("a", EndpointConfig::ClusterName("c".into())), "endpoint.cluster_name: is not supported"),
        (domain("a", services(Vec::new())), "endpoint.service_list.services: holds 0 services"),
        (domain("a", services(vec![service("http", Vec::new())])), "services[0].targets: is empty"),
        (domain("a", services(vec![service("", vec![host("b")])])), "services[0].service_name: is empty"),
        (domain("a", services(vec![service("x.y", vec![host("b")])])), "services[0].service_name: \"x.y\""),
        (domain("a", services(vec![service("x", vec![host("b c")])])), "targets[0].host_name: \"b c\""),
        (
            domain("a", services(vec![service("*", vec![host("b"), host("c")])])),
            "services[0].targets: a name",
        ),
        (
            domain("a", services(vec![service("x", vec![DnsServiceTarget { port: 65536, ..host("b") }])])),
            "targets[0].port: 65536 is above 65535",
        ),
    ] {
        let error = dns::decode(table).unwrap_err().to_string();
        assert!(error.starts_with("DNS name"), "{error}");
        assert!(error.contains(expected), "{expected:?} in {error:?}");
    }
    let mut negative = domain("a", addresses(&["10.0.0.1"]));
    negative.virtual_domains[0].answer_ttl = Some(duration(-1));
    let error = dns::decode(negative).unwrap_err().to_string();
    assert!(error.contains("DNS name a: virtual_domains[0].answer_ttl: -1 s"), "{error}");
}

fn domain(name: &str, config: EndpointConfig) -> pb::DnsTable {
    let domain = DnsVirtualDomain {
        name: name.into(),
        endpoint: Some(DnsEndpoint { endpoint_config: Some(config) }),
        answer_ttl: Some(duration(30)),
    };
    pb::DnsTable { virtual_domains: vec![domain], ..Default::default() }
}

fn addresses(all: &[&str]) -> EndpointConfig {
    EndpointConfig::AddressList(AddressList { address: all.iter().map(ToString::to_string).collect() })
}

fn services(services: Vec<DnsService>) -> EndpointConfig {
    EndpointConfig::ServiceList(DnsServiceList { services })
}

fn service(name: &str, targets: Vec<DnsServiceTarget>) -> DnsService {
    let tcp = ProtocolConfig::Name("tcp".into());
    DnsService {
        service_name: name.into(),
        protocol: Some(DnsServiceProtocol { protocol_config: Some(tcp) }),
        ttl: None,
        targets,
    }
}

fn host(name: &str) -> DnsServiceTarget {
    DnsServiceTarget { endpoint_type: Some(EndpointType::HostName(name.into())), ..Default::default() }
}

fn duration(seconds: i64) -> envoy_types::pb::google::protobuf::Duration {
    envoy_types::pb::google::protobuf::Duration { seconds, nanos: 0 }
}

//! What is refused, and how the error says where and why.

use envoy_types::pb::envoy::config::cluster::v3 as cluster_pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint_pb;
use envoy_types::pb::envoy::config::listener::v3 as listener_pb;
use envoy_types::pb::envoy::config::rbac::v3 as rbac_pb;
use envoy_types::pb::envoy::config::route::v3 as route_pb;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::StatefulSession;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as http_pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls_pb;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatcher;
use envoy_types::pb::google::protobuf::{Duration, UInt32Value, UInt64Value};

use super::*;
use crate::xds::proto;

#[test]
fn a_route_that_is_not_valid_is_named_with_its_place() {
    let action = |change: fn(&mut route_pb::RouteAction)| {
        let mut action = forward("a");
        change(&mut action);
        refused_route(route(PathSpecifier::Prefix("/".into()), action))
    };
    let at = "route configuration outbound|80||cart: virtual_hosts[0].routes[0].";
    assert_eq!(
        action(|action| action.timeout = Some(Duration { seconds: -1, nanos: 0 })),
        format!("{at}route.timeout: -1 s and 0 ns is not a duration from 0 to 315360000 s")
    );
    assert!(action(|a| a.timeout = Some(Duration { seconds: i64::MAX, nanos: 0 })).contains("route.timeout"));
    assert!(action(|a| a.timeout = Some(Duration { seconds: 1, nanos: -1 })).contains("route.timeout"));
    assert_eq!(
        action(|action| action.cluster_specifier = Some(weighted(&[0, 0]))),
        format!("{at}route.weighted_clusters.clusters: the sum of all weights is 0: give one a weight")
    );
    assert!(action(|a| a.cluster_specifier = Some(weighted(&[u32::MAX, 1]))).contains("4294967296"));
    assert_eq!(
        action(|a| a.cluster_specifier = Some(ClusterSpecifier::ClusterHeader("x".into()))),
        format!("{at}route.cluster_header: is not supported: use cluster or weighted_clusters")
    );
    assert_eq!(
        action(|a| a.cluster_specifier = None),
        format!("{at}route.cluster_specifier: is missing: set it")
    );
    assert!(action(|a| a.metadata_match = Some(core::Metadata::default())).contains("route.metadata_match"));
    let bad_regex = RegexMatcher { regex: "a(".into(), engine_type: None };
    let error = refused_route(route(PathSpecifier::SafeRegex(bad_regex), forward("a")));
    assert!(
        error.starts_with(&format!("{at}match.safe_regex.regex: \"a(\" is not a valid regular")),
        "{error}"
    );
    let error = refused_route(route(PathSpecifier::PathSeparatedPrefix("/a/".into()), forward("a")));
    assert!(
        error.contains("match.path_separated_prefix: \"/a/\" must start with '/', not end with it"),
        "{error}"
    );
}

#[test]
fn headers_that_are_not_valid_are_refused() {
    let change = |key: &str, value: &str| {
        let mut route = route(PathSpecifier::Prefix("/".into()), forward("a"));
        let header = core::HeaderValue { key: key.into(), value: value.into(), ..Default::default() };
        route.request_headers_to_add =
            vec![core::HeaderValueOption { header: Some(header), ..Default::default() }];
        refused_route(route)
    };
    assert!(
        change("a b", "x")
            .contains("request_headers_to_add[0].header.key: \"a b\" is not a valid header name")
    );
    assert!(change(":path", "x").contains("is not a valid header name"));
    assert!(change("Host", "x").contains("use host_rewrite_literal"));
    assert!(change("x", "%NO_SUCH(x)%").contains("header.value: %NO_SUCH% is not supported: use REQ, RESP"));
    assert!(change("x", "%ENVIRONMENT(HOME)%").contains("write the value itself"));
    assert!(change("x", "50% off").contains("the % at byte 2 begins no command operator"));
    assert!(change("x", "%REQ(a)%\n").contains("holds a character that no header value may have"));
    assert!(change("x", "a\nb").contains("holds a character that no header value may have"));
    let mut matched = route(PathSpecifier::Prefix("/".into()), forward("a"));
    matched.r#match.as_mut().unwrap().headers =
        vec![route_pb::HeaderMatcher { name: "é".into(), ..Default::default() }];
    assert!(refused_route(matched).contains("match.headers[0].name: \"é\" is not a valid header name"));
}

#[test]
fn a_filter_of_a_route_that_is_not_known_is_refused_unless_it_is_optional() {
    let mut message = route(PathSpecifier::Prefix("/".into()), forward("a"));
    let config = proto::any(&http_rbac::Rbac::default());
    message.typed_per_filter_config.insert("auth".into(), config.clone());
    let error = refused_route(message.clone());
    let expected =
        "routes[0].typed_per_filter_config[\"auth\"]: \"envoy.extensions.filters.http.rbac.v3.RBAC\"";
    assert!(error.contains(expected), "{error}");
    let optional = route_pb::FilterConfig { config: Some(config), is_optional: true, disabled: false };
    message.typed_per_filter_config.insert("auth".into(), proto::any(&optional));
    assert!(route::decode(configuration(vec![host(&["*"], vec![message])])).is_ok());
}

#[test]
fn domains_are_named_once_and_never_empty() {
    let refused = |hosts| route::decode(configuration(hosts)).unwrap_err().to_string();
    let error = refused(vec![host(&["a", "b"], vec![]), host(&["c", "B"], vec![])]);
    assert_eq!(
        error,
        "route configuration outbound|80||cart: virtual_hosts[1].domains: \"b\" stands in another place already: name \
         each once"
    );
    assert!(refused(vec![host(&[], vec![])]).contains("virtual_hosts[0].domains: is empty"));
    assert!(refused(vec![host(&["a", ""], vec![])]).contains("virtual_hosts[0].domains[1]: is empty"));
    assert!(refused(vec![host(&["a.*.b"], vec![])]).contains("has a * in the middle"));
    assert!(refused(vec![host(&["*a*"], vec![])]).contains("has a * in the middle"));
}

#[test]
fn a_chain_of_filters_ends_with_the_one_router() {
    let router = || http_filter("router", proto::any(&Router::default()), false);
    assert!(
        refused_filters(vec![]).ends_with("http_filters: must end with envoy.filters.http.router: add it")
    );
    let fault = http_filter("f", proto::any(&fault::encode(&crate::model::Fault::default())), false);
    assert!(
        refused_filters(vec![router(), fault.clone()])
            .contains("http_filters[0]: the router must be the last")
    );
    assert!(refused_filters(vec![fault]).contains("must end with"));
    let unknown = |optional| {
        let config = Any { type_url: "type.googleapis.com/envoy.Secret".into(), value: Vec::new() };
        http_filter("s", config, optional)
    };
    let error = refused_filters(vec![unknown(false), router()]);
    assert!(
        error.contains("http_filters[0].typed_config: \"envoy.Secret\" is not a known filter"),
        "{error}"
    );
    assert!(listener::decode(api_listener(vec![unknown(true), router()])).is_ok());
    let fault = |name| http_filter(name, proto::any(&fault::encode(&crate::model::Fault::default())), false);
    let error = refused_filters(vec![fault("a"), fault("b"), router()]);
    assert!(
        error.ends_with("http_filters[1]: is a second filter for faults: join it with the first"),
        "{error}"
    );
    let sessions = http_filter("s", proto::any(&StatefulSession::default()), false);
    let error = refused_filters(vec![sessions, router()]);
    assert!(error.ends_with("call it envoy.filters.http.stateful_session"), "{error}");
}

#[test]
fn a_policy_that_would_not_be_followed_is_refused() {
    let refused = |permissions: Vec<rbac_pb::Permission>, principals: Vec<rbac_pb::Principal>| {
        let policy = rbac_pb::Policy { permissions, principals, ..Default::default() };
        let rules = rbac_pb::Rbac { policies: [("p".to_owned(), policy)].into(), ..Default::default() };
        let config = proto::any(&http_rbac::Rbac { rules: Some(rules), ..Default::default() });
        refused_filters(vec![http_filter("a", config, true)])
    };
    let permission = |rule| rbac_pb::Permission { rule: Some(rule) };
    let any = || vec![permission(rbac_pb::permission::Rule::Any(true))];
    let at = "listener a.b:80: api_listener.api_listener.http_filters[0].typed_config.rules.policies[\"p\"].";
    assert_eq!(refused(vec![], vec![]), format!("{at}permissions: is empty: add a condition, or any: true"));
    assert!(refused(any(), vec![]).starts_with(&format!("{at}principals: is empty")));
    let never = permission(rbac_pb::permission::Rule::Any(false));
    assert!(refused(vec![never], vec![]).contains("permissions[0]: any must be true"));
    let port = permission(rbac_pb::permission::Rule::DestinationPort(70_000));
    assert!(refused(vec![port], vec![]).contains("permissions[0].destination_port: 70000 is not a port"));
    let remote = rbac_pb::principal::Identifier::RemoteIp(core::CidrRange::default());
    let remote = rbac_pb::Principal { identifier: Some(remote) };
    assert!(refused(any(), vec![remote]).contains("principals[0].remote_ip: \"\" with this prefix_len"));
    let range =
        core::CidrRange { address_prefix: "10.0.0.0".into(), prefix_len: Some(UInt32Value { value: 33 }) };
    let direct = rbac_pb::principal::Identifier::DirectRemoteIp(range);
    let direct = rbac_pb::Principal { identifier: Some(direct) };
    assert!(refused(any(), vec![direct]).contains("is not a range of IP addresses"));
}

#[test]
fn a_condition_on_a_request_is_refused_for_a_connection() {
    use crate::model::*;
    let header = HeaderMatch::new("x", HeaderTest::Present(true));
    let policy = Policy {
        name: "p".into(),
        permissions: vec![Permission::Any],
        principals: vec![Principal::Not(Box::new(Principal::Header(header)))],
    };
    let set =
        Authorization { name: "a".into(), action: Action::Deny, policies: vec![policy], audit_only: false };
    let proxy = TcpProxy::new(vec![("c".into(), 1)]);
    let chain = FilterChain {
        name: "tcp".into(),
        matches: ChainMatch::default(),
        tls: None,
        authorization: vec![set],
        protocol: Protocol::Tcp(proxy),
    };
    let listener = Listener::new("l", TrafficDirection::Inbound, vec![chain]);
    let error = listener::decode(listener::encode(&listener)).unwrap_err().to_string();
    let expected = "filter_chains[0].filters[0].typed_config.policies[\"p\"]: a connection has neither headers nor a path";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_listener_without_a_way_for_its_connections_is_refused() {
    let refused = |message| listener::decode(message).unwrap_err().to_string();
    let named = || listener_pb::Listener { name: "l".into(), ..Default::default() };
    assert_eq!(refused(named()), "listener l: filter_chains: is empty: add a chain, or an api_listener");
    let empty = listener_pb::Listener { filter_chains: vec![listener_pb::FilterChain::default()], ..named() };
    assert!(refused(empty).contains("filter_chains[0].filters: must end with an http_connection_manager"));
    assert_eq!(refused(listener_pb::Listener::default()), "listener: name: is empty: set it");
}

#[test]
fn endpoints_that_could_not_be_used_are_refused() {
    let refused = |endpoint: endpoint_pb::LbEndpoint, weight: Option<u32>, priority| {
        let group = endpoint_pb::LocalityLbEndpoints {
            lb_endpoints: vec![endpoint],
            load_balancing_weight: proto::u32_value(weight),
            priority,
            ..Default::default()
        };
        let message = endpoint_pb::ClusterLoadAssignment {
            cluster_name: "c".into(),
            endpoints: vec![group],
            ..Default::default()
        };
        endpoint::decode(message).map(|assignment| assignment.localities[0].weight).map_err(|e| e.to_string())
    };
    // A group without a weight has no share beside others that have one.
    assert_eq!(refused(endpoint("10.0.0.1", 80), None, 0), Ok(0));
    let error = |endpoint, weight, priority| refused(endpoint, weight, priority).unwrap_err();
    let at = "load assignment c: endpoints[0].";
    assert!(
        error(endpoint("10.0.0.1", 80), Some(0), 0).starts_with(&format!("{at}load_balancing_weight: is 0"))
    );
    assert!(error(endpoint("10.0.0.1", 80), None, 1).contains("endpoints: no locality has priority 0"));
    assert_eq!(
        error(endpoint("10.0.0.1", 65_536), None, 0),
        format!(
            "{at}lb_endpoints[0].endpoint.address.socket_address.port_value: 65536 is not a port: use 1 to 65535"
        )
    );
    assert!(error(endpoint("cart", 80), None, 0).contains("\"cart\" is not an IP address: use STRICT_DNS"));
    let weightless =
        endpoint_pb::LbEndpoint { load_balancing_weight: proto::u32_value(0), ..endpoint("10.0.0.1", 80) };
    assert!(error(weightless, None, 0).contains("lb_endpoints[0].load_balancing_weight: is 0"));
    let identity = ("identity".to_owned(), proto::text("https://not/spiffe"));
    let stranger =
        endpoint_pb::LbEndpoint { metadata: proto::metadata([identity].into()), ..endpoint("10.0.0.1", 80) };
    let message = error(stranger, None, 0);
    assert!(message.contains("metadata.identity: \"https://not/spiffe\" is not a SPIFFE ID"), "{message}");
}

#[test]
fn a_cluster_that_would_choose_otherwise_is_refused() {
    use cluster_pb::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
    let refused = |change: fn(&mut cluster_pb::Cluster)| {
        let mut message = cluster_pb::Cluster {
            name: "c".into(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::StrictDns as i32)),
            load_assignment: Some(endpoint_pb::ClusterLoadAssignment::default()),
            ..Default::default()
        };
        change(&mut message);
        cluster::decode(message).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(refused(|_| {}), Ok(()));
    let error = |change| refused(change).unwrap_err();
    for size in [0, 1, 4, 65_536, 5_000_021, u64::MAX] {
        let mut message = cluster_pb::Cluster { name: "c".into(), ..Default::default() };
        message.load_assignment = Some(endpoint_pb::ClusterLoadAssignment::default());
        message.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::StrictDns as i32));
        message.lb_policy = LbPolicy::Maglev as i32;
        message.lb_config =
            Some(cluster_pb::cluster::LbConfig::MaglevLbConfig(cluster_pb::cluster::MaglevLbConfig {
                table_size: Some(UInt64Value { value: size }),
            }));
        assert_eq!(
            cluster::decode(message).unwrap_err().to_string(),
            format!(
                "cluster c: maglev_lb_config.table_size: {size} is not a size: use a prime up to 5000011"
            )
        );
    }
    assert!(error(|c| c.connect_timeout = Some(Duration::default())).contains("connect_timeout: is zero"));
    assert!(error(|c| c.load_assignment = None).contains("load_assignment: is missing"));
    let eds = |c: &mut cluster_pb::Cluster| {
        c.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32));
        c.eds_cluster_config = Some(cluster_pb::cluster::EdsClusterConfig::default());
    };
    assert!(error(eds).contains("eds_cluster_config.eds_config: only resources of the same server"));
    let policies = |c: &mut cluster_pb::Cluster| {
        c.load_balancing_policy = Some(cluster_pb::LoadBalancingPolicy::default());
    };
    assert!(error(policies).contains("load_balancing_policy.policies: holds no policy that is known"));
    let tls = |c: &mut cluster_pb::Cluster| {
        let certificates = vec![tls_pb::TlsCertificate::default()];
        let common = tls_pb::CommonTlsContext { tls_certificates: certificates, ..Default::default() };
        let context = tls_pb::UpstreamTlsContext { common_tls_context: Some(common), ..Default::default() };
        c.transport_socket = Some(core::TransportSocket {
            name: "tls".into(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(proto::any(&context))),
        });
    };
    let message = error(tls);
    assert!(
        message.contains("transport_socket.typed_config.common_tls_context.tls_certificates"),
        "{message}"
    );
    assert!(message.contains("a workload has one certificate"), "{message}");
}

#[test]
fn a_secret_that_is_no_pem_is_refused_without_being_repeated() {
    let refused = |key: core::DataSource| {
        let certificate = tls_pb::TlsCertificate {
            certificate_chain: Some(inline("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n")),
            private_key: Some(key),
            ..Default::default()
        };
        let secret = tls_pb::Secret {
            name: "default".into(),
            r#type: Some(tls_pb::secret::Type::TlsCertificate(certificate)),
        };
        secret::decode(secret).unwrap_err().to_string()
    };
    let error = refused(inline("hush, this is not PEM"));
    assert_eq!(error, "secret default: tls_certificate.private_key: holds no PEM block of a PRIVATE KEY");
    let file = core::data_source::Specifier::Filename("/key.pem".into());
    let error = refused(core::DataSource { specifier: Some(file), ..Default::default() });
    assert!(error.contains("files and variables are not read"), "{error}");
}

#[test]
fn lists_within_lists_of_balancers_end() {
    use envoy_types::pb::envoy::extensions::load_balancing_policies::wrr_locality::v3::WrrLocality;
    let mut list = cluster_pb::LoadBalancingPolicy::default();
    for _ in 0..3_000 {
        let nested = proto::any(&WrrLocality { endpoint_picking_policy: Some(list) });
        let policy = cluster_pb::load_balancing_policy::Policy {
            typed_extension_config: Some(proto::extension("wrr", nested)),
        };
        list = cluster_pb::LoadBalancingPolicy { policies: vec![policy] };
    }
    let message =
        cluster_pb::Cluster { name: "c".into(), load_balancing_policy: Some(list), ..Default::default() };
    let with_hosts = cluster_pb::Cluster {
        load_assignment: Some(endpoint_pb::ClusterLoadAssignment::default()),
        ..message
    };
    assert!(cluster::decode(with_hosts).unwrap_err().to_string().contains("holds no policy that is known"));
}

fn refused_route(route: route_pb::Route) -> String {
    route::decode(configuration(vec![host(&["*"], vec![route])])).unwrap_err().to_string()
}

fn configuration(virtual_hosts: Vec<route_pb::VirtualHost>) -> route_pb::RouteConfiguration {
    route_pb::RouteConfiguration { name: "outbound|80||cart".into(), virtual_hosts, ..Default::default() }
}

fn host(domains: &[&str], routes: Vec<route_pb::Route>) -> route_pb::VirtualHost {
    let domains = domains.iter().map(|domain| (*domain).to_owned()).collect();
    route_pb::VirtualHost { name: "h".into(), domains, routes, ..Default::default() }
}

fn route(path: PathSpecifier, action: route_pb::RouteAction) -> route_pb::Route {
    route_pb::Route {
        r#match: Some(route_pb::RouteMatch { path_specifier: Some(path), ..Default::default() }),
        action: Some(route_pb::route::Action::Route(action)),
        ..Default::default()
    }
}

fn forward(cluster: &str) -> route_pb::RouteAction {
    let cluster = ClusterSpecifier::Cluster(cluster.into());
    route_pb::RouteAction { cluster_specifier: Some(cluster), ..Default::default() }
}

fn weighted(weights: &[u32]) -> ClusterSpecifier {
    let cluster = |weight: &u32| route_pb::weighted_cluster::ClusterWeight {
        name: "c".into(),
        weight: proto::u32_value(*weight),
        ..Default::default()
    };
    let clusters = weights.iter().map(cluster).collect();
    ClusterSpecifier::WeightedClusters(route_pb::WeightedCluster { clusters, ..Default::default() })
}

fn http_filter(name: &str, config: Any, is_optional: bool) -> http_pb::HttpFilter {
    let config_type = Some(http_pb::http_filter::ConfigType::TypedConfig(config));
    http_pb::HttpFilter { name: name.into(), is_optional, disabled: false, config_type }
}

fn refused_filters(filters: Vec<http_pb::HttpFilter>) -> String {
    listener::decode(api_listener(filters)).unwrap_err().to_string()
}

fn api_listener(http_filters: Vec<http_pb::HttpFilter>) -> listener_pb::Listener {
    let rds = http_pb::Rds { config_source: proto::ads(), route_config_name: "r".into() };
    let manager = http_pb::HttpConnectionManager {
        http_filters,
        route_specifier: Some(http_pb::http_connection_manager::RouteSpecifier::Rds(rds)),
        ..Default::default()
    };
    let api_listener = Some(listener_pb::ApiListener { api_listener: Some(proto::any(&manager)) });
    listener_pb::Listener { name: "a.b:80".into(), api_listener, ..Default::default() }
}

fn endpoint(host: &str, port: u32) -> endpoint_pb::LbEndpoint {
    let socket = core::SocketAddress {
        address: host.into(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    let address = core::Address { address: Some(core::address::Address::SocketAddress(socket)) };
    let endpoint = endpoint_pb::Endpoint { address: Some(address), ..Default::default() };
    let host_identifier = Some(endpoint_pb::lb_endpoint::HostIdentifier::Endpoint(endpoint));
    endpoint_pb::LbEndpoint { host_identifier, ..Default::default() }
}

fn inline(text: &str) -> core::DataSource {
    let specifier = Some(core::data_source::Specifier::InlineString(text.into()));
    core::DataSource { specifier, ..Default::default() }
}

//! What other control planes send, and what becomes of it.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as cluster_pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint_pb;
use envoy_types::pb::envoy::config::listener::v3 as listener_pb;
use envoy_types::pb::envoy::config::rbac::v3 as rbac_pb;
use envoy_types::pb::envoy::config::route::v3 as route_pb;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3 as rate_limit_pb;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as http_pb;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_pb;
use envoy_types::pb::google::protobuf;

use super::*;
use crate::model::*;
use crate::route::RouteTable;
use crate::xds::proto;

#[test]
fn a_separated_prefix_is_a_condition_on_segments() {
    let decoded = decode_one(route(PathSpecifier::PathSeparatedPrefix("/v2".into())));
    assert_eq!(decoded.matches.path, PathMatch::Segments("/v2".into()));
    assert_eq!(decoded.name, "#0");
}

#[test]
fn two_routes_of_another_control_plane_stay_two() {
    let routes = vec![route(PathSpecifier::Path("/v2".into())), route(PathSpecifier::Prefix("/v2/".into()))];
    let decoded = decode_routes(route_pb::VirtualHost { routes, ..host() }, |_| {});
    let paths: Vec<_> = decoded.into_iter().map(|route| route.matches.path).collect();
    assert_eq!(paths, [PathMatch::Exact("/v2".into()), PathMatch::Prefix("/v2/".into())]);
}

#[test]
fn a_half_without_its_other_is_a_route_of_its_own() {
    let own = Route {
        matches: RouteMatch {
            path: PathMatch::Segments("/v2".into()),
            ..decode_one(route(PathSpecifier::Path("/".into()))).matches
        },
        ..decode_one(route(PathSpecifier::Path("/".into())))
    };
    let hosts = vec![VirtualHost::new("h", vec![Domain::Any], vec![own])];
    let mut message = route::encode(&RouteConfiguration::new("r", hosts));
    message.virtual_hosts[0].routes.remove(0);
    let decoded = route::decode(message).unwrap();
    assert_eq!(decoded.virtual_hosts[0].routes[0].matches.path, PathMatch::Prefix("/v2/".into()));
}

#[test]
fn old_forms_of_header_conditions_are_read() {
    use route_pb::header_matcher::HeaderMatchSpecifier;
    let mut message = route(PathSpecifier::Prefix("/".into()));
    #[expect(deprecated)]
    let exact = HeaderMatchSpecifier::ExactMatch("GET".into());
    message.r#match.as_mut().unwrap().headers = vec![
        route_pb::HeaderMatcher {
            name: ":method".into(),
            header_match_specifier: Some(exact),
            ..Default::default()
        },
        route_pb::HeaderMatcher { name: "Host".into(), ..Default::default() },
    ];
    let headers = decode_one(message).matches.headers;
    assert_eq!(headers[0].test, HeaderTest::Value(StringMatch::exact("GET")));
    // Envoy matches the authority under both names.
    assert_eq!((headers[1].name.as_str(), &headers[1].test), (":authority", &HeaderTest::Present(true)));
}

#[test]
fn what_stands_on_the_virtual_host_reaches_its_routes() {
    let retry = |attempts: Option<u32>| route_pb::RetryPolicy {
        retry_on: "5xx, gateway-error,envoy-ratelimited".into(),
        num_retries: proto::u32_value(attempts),
        ..Default::default()
    };
    let with_own = |own| {
        let mut message = route(PathSpecifier::Prefix("/".into()));
        let Some(route_pb::route::Action::Route(action)) = &mut message.action else { panic!() };
        action.retry_policy = own;
        message
    };
    let routes = vec![with_own(None), with_own(Some(retry(Some(0)))), with_own(Some(retry(Some(5))))];
    let host = route_pb::VirtualHost { routes, retry_policy: Some(retry(None)), ..host() };
    let attempts = decode_routes(host, |_| {}).into_iter().map(|route| match route.action {
        RouteAction::Forward(forward) => forward.retry.map(|retry| (retry.attempts, retry.on)),
        other => panic!("{other:?}"),
    });
    let on = || vec![RetryOn::ServerError, RetryOn::GatewayError];
    // One attempt is the default; a route that says none gets none.
    assert_eq!(attempts.collect::<Vec<_>>(), [Some((1, on())), None, Some((5, on()))]);
}

#[test]
fn header_changes_add_up_from_the_backend_outwards() {
    let names = |most_specific_wins: bool| {
        let mut message = route(PathSpecifier::Prefix("/".into()));
        message.request_headers_to_add = vec![set("x", "route"), set("gone", "route")];
        let Some(route_pb::route::Action::Route(action)) = &mut message.action else { panic!() };
        let cluster = route_pb::weighted_cluster::ClusterWeight {
            name: "c".into(),
            weight: proto::u32_value(1),
            request_headers_to_add: vec![set("x", "backend")],
            ..Default::default()
        };
        let weighted = route_pb::WeightedCluster { clusters: vec![cluster], ..Default::default() };
        action.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(weighted));
        let host = route_pb::VirtualHost {
            routes: vec![message],
            request_headers_to_add: vec![set("x", "host")],
            request_headers_to_remove: vec!["gone".into()],
            ..host()
        };
        let routes = route::decode(route_pb::RouteConfiguration {
            name: "r".into(),
            virtual_hosts: vec![host],
            request_headers_to_add: vec![set("x", "configuration")],
            most_specific_header_mutations_wins: most_specific_wins,
            ..Default::default()
        });
        let table = RouteTable::compile(&routes.unwrap()).unwrap();
        let (id, route) = table.routes().next().unwrap();
        let RouteAction::Forward(forward) = &route.action else { panic!() };
        let changes = table.request_headers(id, forward.backends.first());
        let sets = changes.flat_map(|changes| &changes.change);
        sets.map(|change| change.value.to_string()).collect::<Vec<_>>()
    };
    // The last to set a header wins.
    assert_eq!(names(false), ["backend", "route", "route", "host", "configuration"]);
    assert_eq!(names(true), ["backend", "configuration", "host", "route", "route"]);
}

#[test]
fn a_rate_limit_is_off_unless_it_is_enabled_and_enforced() {
    let filter = |enabled: Option<PerMillion>, enforced: Option<PerMillion>| {
        let config = rate_limit_pb::LocalRateLimit {
            stat_prefix: "x".into(),
            token_bucket: Some(envoy_types::pb::envoy::r#type::v3::TokenBucket {
                max_tokens: 10,
                tokens_per_fill: None,
                fill_interval: Some(proto::duration(Duration::from_secs(1))),
            }),
            filter_enabled: enabled.map(matching::runtime_fraction),
            filter_enforced: enforced.map(matching::runtime_fraction),
            ..Default::default()
        };
        match decode_filters(vec![("limit", proto::any(&config))]).remove(0) {
            HttpFilter::Replaceable(filter) => filter.settings,
            other => panic!("{other:?}"),
        }
    };
    let all = Some(PerMillion::ALL);
    assert_eq!(filter(None, all), FilterSettings::LocalRateLimit(None));
    let FilterSettings::LocalRateLimit(Some(limit)) = filter(all, None) else { panic!("it is enabled") };
    assert_eq!((limit.enabled, limit.enforced), (PerMillion::ALL, PerMillion(0)));
    let settings = filter(all, all);
    let FilterSettings::LocalRateLimit(Some(limit)) = settings else { panic!("{settings:?}") };
    assert_eq!((limit.bucket.burst, limit.bucket.tokens_per_fill), (10, 1));
}

#[test]
fn rules_and_shadow_rules_are_two_sets() {
    let rules =
        |action: rbac_pb::rbac::Action| Some(rbac_pb::Rbac { action: action as i32, ..Default::default() });
    let config = http_rbac::Rbac {
        rules: rules(rbac_pb::rbac::Action::Deny),
        shadow_rules: rules(rbac_pb::rbac::Action::Allow),
        ..Default::default()
    };
    let filters = decode_filters(vec![
        ("envoy.filters.http.rbac", proto::any(&config)),
        // Without rules, the filter lets all pass.
        ("nothing", proto::any(&http_rbac::Rbac::default())),
    ]);
    let sets: Vec<_> = crate::route::steps(&filters, &[])
        .into_iter()
        .map(|(step, _)| match step {
            crate::route::Step::Authorization(set) => (set.name.as_str(), set.action, set.audit_only),
            other => panic!("{other:?}"),
        })
        .collect();
    let name = "envoy.filters.http.rbac";
    assert_eq!(sets, [(name, Action::Deny, false), (name, Action::Allow, true)]);
}

#[test]
fn a_default_chain_takes_what_is_left() {
    let chain = |name: &str, port: Option<u32>| listener_pb::FilterChain {
        name: name.into(),
        filter_chain_match: port.map(|port| listener_pb::FilterChainMatch {
            destination_port: proto::u32_value(port),
            ..Default::default()
        }),
        filters: vec![tcp_proxy("c")],
        ..Default::default()
    };
    let names = |first: listener_pb::FilterChain| {
        let message = listener_pb::Listener {
            name: "virtualInbound".into(),
            filter_chains: vec![first],
            default_filter_chain: Some(chain("default", None)),
            ..Default::default()
        };
        let listener = listener::decode(message).unwrap();
        assert_eq!((listener.direction, listener.has_default), (TrafficDirection::Inbound, true));
        listener.chains.into_iter().map(|chain| chain.name).collect::<Vec<_>>()
    };
    assert_eq!(names(chain("http", Some(80))), ["http", "default"]);
    // What has lost its way among the others comes to it, even where one has no condition.
    assert_eq!(names(chain("all", None)), ["all", "default"]);
}

#[test]
fn old_balancers_and_envoys_defaults_are_read() {
    let decode = |change: fn(&mut cluster_pb::Cluster)| {
        let mut message = cluster_pb::Cluster {
            name: "c".into(),
            load_assignment: Some(endpoint_pb::ClusterLoadAssignment::default()),
            ..Default::default()
        };
        change(&mut message);
        cluster::decode(message).unwrap()
    };
    let plain = decode(|_| {});
    assert_eq!(plain.load_balancer, LoadBalancer::RoundRobin);
    assert_eq!(plain.protocol, UpstreamProtocol::Http1);
    assert_eq!((plain.limits, plain.outlier_detection), (Limits::default(), None));
    assert_eq!(plain.panic, Panic { threshold: 50, fails_requests: false });
    assert!(plain.ignores_localities, "Envoy wants to be told that they have weights");
    let least = decode(|c| c.lb_policy = cluster_pb::cluster::LbPolicy::LeastRequest as i32);
    assert_eq!(least.load_balancer, LoadBalancer::LeastRequest { choices: 2, bias: 1.0 });
    let ring = decode(|c| c.lb_policy = cluster_pb::cluster::LbPolicy::RingHash as i32);
    assert_eq!(
        ring.load_balancer,
        LoadBalancer::RingHash {
            min_size: 1024,
            max_size: 8 << 20,
            function: HashFunction::Xx,
            hashing: Hashing::default(),
        }
    );
    let detection = decode(|c| c.outlier_detection = Some(cluster_pb::OutlierDetection::default()));
    let expected = OutlierDetection {
        consecutive_failures: 5,
        enforced_failures: 100,
        consecutive_gateway_failures: 0,
        enforced_gateway_failures: 0,
        failure_percentage: None,
        success_rate: Some(SuccessRate {
            stdev_factor: 1900,
            minimum_requests: 100,
            minimum_hosts: 5,
            enforced: 100,
        }),
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_time: Duration::from_secs(300),
        max_ejection_time_jitter: Duration::ZERO,
        max_ejection_percent: 10,
        always_eject_one: false,
        local: None,
    };
    assert_eq!(detection.outlier_detection, Some(expected));
}

#[test]
fn istios_endpoints_of_the_mesh_are_known() {
    let mode = protobuf::Struct { fields: [("tlsMode".to_owned(), proto::text("istio"))].into() };
    let metadata = core::Metadata {
        filter_metadata: [("envoy.transport_socket_match".to_owned(), mode)].into(),
        ..Default::default()
    };
    let target = endpoint_pb::Endpoint {
        address: Some(proto::socket_address("10.0.0.1".into(), 80)),
        ..Default::default()
    };
    let endpoint = endpoint_pb::LbEndpoint {
        metadata: Some(metadata),
        host_identifier: Some(endpoint_pb::lb_endpoint::HostIdentifier::Endpoint(target)),
        ..Default::default()
    };
    let group = endpoint_pb::LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() };
    let message = endpoint_pb::ClusterLoadAssignment {
        cluster_name: "c".into(),
        endpoints: vec![group],
        ..Default::default()
    };
    let assignment = endpoint::decode(message).unwrap();
    let endpoint = assignment.endpoints().next().unwrap();
    assert!(endpoint.meshed);
    assert_eq!((endpoint.weight, endpoint.health, &endpoint.identity), (1, Health::Healthy, &None));
}

fn decode_routes(
    host: route_pb::VirtualHost,
    change: impl Fn(&mut route_pb::RouteConfiguration),
) -> Vec<Route> {
    let mut message =
        route_pb::RouteConfiguration { name: "r".into(), virtual_hosts: vec![host], ..Default::default() };
    change(&mut message);
    route::decode(message).unwrap().virtual_hosts.remove(0).routes
}

fn decode_one(route: route_pb::Route) -> Route {
    decode_routes(route_pb::VirtualHost { routes: vec![route], ..host() }, |_| {}).remove(0)
}

fn host() -> route_pb::VirtualHost {
    route_pb::VirtualHost { name: "h".into(), domains: vec!["*".into()], ..Default::default() }
}

fn route(path: PathSpecifier) -> route_pb::Route {
    let action = route_pb::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster("c".into())),
        ..Default::default()
    };
    route_pb::Route {
        r#match: Some(route_pb::RouteMatch { path_specifier: Some(path), ..Default::default() }),
        action: Some(route_pb::route::Action::Route(action)),
        ..Default::default()
    }
}

fn set(name: &str, value: &str) -> core::HeaderValueOption {
    let header = core::HeaderValue { key: name.into(), value: value.into(), ..Default::default() };
    core::HeaderValueOption {
        header: Some(header),
        append_action: core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
        ..Default::default()
    }
}

pub(super) fn decode_filters(filters: Vec<(&str, Any)>) -> Vec<HttpFilter> {
    decode_http_filters(filters.into_iter().map(|(name, config)| http_filter(name, config)).collect())
}

fn http_filter(name: &str, config: Any) -> http_pb::HttpFilter {
    http_pb::HttpFilter {
        name: name.into(),
        config_type: Some(http_pb::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

pub(super) fn decode_http_filters(filters: Vec<http_pb::HttpFilter>) -> Vec<HttpFilter> {
    let router = http_filter("router", proto::any(&Router::default()));
    let rds = http_pb::Rds { config_source: proto::ads(), route_config_name: "r".into() };
    let manager = http_pb::HttpConnectionManager {
        http_filters: filters.into_iter().chain([router]).collect(),
        route_specifier: Some(http_pb::http_connection_manager::RouteSpecifier::Rds(rds)),
        ..Default::default()
    };
    let api_listener = Some(listener_pb::ApiListener { api_listener: Some(proto::any(&manager)) });
    let message = listener_pb::Listener { name: "l".into(), api_listener, ..Default::default() };
    match listener::decode(message).unwrap().chains.remove(0).protocol {
        Protocol::Http(http) => http.filters,
        other @ Protocol::Tcp(_) => panic!("{other:?}"),
    }
}

fn tcp_proxy(cluster: &str) -> listener_pb::Filter {
    let proxy = tcp_pb::TcpProxy {
        cluster_specifier: Some(tcp_pb::tcp_proxy::ClusterSpecifier::Cluster(cluster.into())),
        ..Default::default()
    };
    listener_pb::Filter {
        name: "tcp".into(),
        config_type: Some(listener_pb::filter::ConfigType::TypedConfig(proto::any(&proxy))),
    }
}

/// A listener whose only chain carries bytes.
pub(super) fn any_listener() -> Listener {
    let chain = listener_pb::FilterChain { filters: vec![tcp_proxy("c")], ..Default::default() };
    let message =
        listener_pb::Listener { name: "l".into(), filter_chains: vec![chain], ..Default::default() };
    listener::decode(message).unwrap()
}

/// The route with an action, or why there is none.
pub(super) fn route_to(action: route_pb::RouteAction) -> Result<Route, String> {
    let mut message = route(PathSpecifier::Prefix("/".into()));
    message.action = Some(route_pb::route::Action::Route(action));
    let configuration = route_pb::RouteConfiguration {
        name: "r".into(),
        virtual_hosts: vec![route_pb::VirtualHost { routes: vec![message], ..host() }],
        ..Default::default()
    };
    let decoded = route::decode(configuration).map_err(|error| error.to_string())?;
    Ok(decoded.virtual_hosts.into_iter().flat_map(|host| host.routes).next().expect("there is one"))
}

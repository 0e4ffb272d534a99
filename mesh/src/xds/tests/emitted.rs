//! What is on the wire, where Envoy or gRPC would refuse or misread something else.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as cluster_pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::listener::v3 as listener_pb;
use envoy_types::pb::envoy::config::route::v3 as route_pb;
use envoy_types::pb::envoy::config::route::v3::route::Action as ActionPb;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3 as rate_limit_pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as http_pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls_pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;

use super::*;
use crate::model::*;
use crate::xds::proto;

#[test]
fn a_route_on_segments_is_a_pair_that_every_client_takes() {
    let mut forward = forward("a");
    forward.path_rewrite = Some(PathRewrite::Prefix("/new".into()));
    let routes = route::encode(&configuration(route(PathMatch::Segments("/v2".into()), forward)));
    let [exact, below] = routes.virtual_hosts[0].routes.as_slice() else { panic!("a pair: {routes:?}") };
    assert_eq!(path_of(exact), &PathSpecifier::Path("/v2".into()));
    assert_eq!(action_of(exact).prefix_rewrite, "/new");
    assert_eq!(path_of(below), &PathSpecifier::Prefix("/v2/".into()));
    // Envoy puts the text in place of "/v2/", slash and all.
    assert_eq!(action_of(below).prefix_rewrite, "/new/");
    assert_eq!(exact.name, below.name);
}

#[test]
fn a_prefix_replaced_by_the_root_leaves_one_slash() {
    for replacement in ["/", ""] {
        let mut forward = forward("a");
        forward.path_rewrite = Some(PathRewrite::Prefix(replacement.into()));
        let routes = route::encode(&configuration(route(PathMatch::Segments("/v2".into()), forward)));
        for half in &routes.virtual_hosts[0].routes {
            assert_eq!(action_of(half).prefix_rewrite, "/", "{replacement:?}");
        }
    }
}

#[test]
fn a_timeout_reaches_grpc_as_the_cap_of_a_calls_deadline() {
    let cases = [
        // request, max_stream, cap -> timeout, max_stream_duration, grpc_timeout_header_max
        (None, None, None, None, None, None),
        (Some(0), None, None, Some(0), None, None),
        (Some(5), None, Some(5), Some(5), None, Some(5)),
        (Some(5), Some(3), Some(3), Some(5), Some(3), Some(3)),
    ];
    for (request, max_stream, cap, timeout, duration, header_max) in cases {
        let mut forward = forward("a");
        let seconds = |seconds: Option<u64>| seconds.map(Duration::from_secs);
        forward.timeouts = Timeouts {
            request: seconds(request),
            idle: None,
            max_stream: seconds(max_stream),
            grpc: seconds(cap).map(GrpcTimeout::at_most),
        };
        let action = encoded(forward);
        let max = action.max_stream_duration.unwrap_or_default();
        let read =
            |duration: Option<envoy_types::pb::google::protobuf::Duration>| duration.map(|d| d.seconds);
        assert_eq!(read(action.timeout), timeout);
        assert_eq!(read(max.max_stream_duration), duration);
        assert_eq!(read(max.grpc_timeout_header_max), header_max);
    }
}

#[test]
fn a_retry_policy_without_attempts_is_left_out() {
    let mut forward = forward("a");
    let policy = RetryPolicy {
        headers: Vec::new(),
        request_headers: Vec::new(),
        rate_limited: None,
        on: vec![RetryOn::ServerError, RetryOn::Status, RetryOn::Unavailable],
        statuses: vec![429],
        attempts: 2,
        per_try_timeout: None,
        per_try_idle_timeout: None,
        backoff: Duration::from_millis(25),
        max_backoff: Duration::from_millis(250),
    };
    forward.retry = Some(policy.clone());
    let retry = encoded(forward.clone()).retry_policy.unwrap();
    assert_eq!(retry.retry_on, "5xx,retriable-status-codes,unavailable");
    assert_eq!(retry.num_retries.unwrap().value, 2);
    forward.retry = Some(RetryPolicy { attempts: 0, ..policy });
    assert_eq!(encoded(forward).retry_policy, None);
}

#[test]
fn a_percent_sign_in_a_header_is_literal() {
    let mut route = route(PathMatch::Prefix("/".into()), forward("a"));
    route.response_headers.change.push(HeaderMutation {
        name: "x-share".parse().unwrap(),
        value: http::HeaderValue::from_static("100%REQ(cookie)%").into(),
        op: HeaderOp::Set,
    });
    let routes = route::encode(&configuration(route));
    let header = routes.virtual_hosts[0].routes[0].response_headers_to_add[0].header.as_ref().unwrap();
    assert_eq!(header.value, "100%%REQ(cookie)%%");
}

#[test]
fn both_ends_of_tls_name_secrets_and_provider_instances() {
    let tls = UpstreamTls {
        sni: "outbound_.80_._.a.b".into(),
        subject_alt_names: vec![StringMatch::exact("spiffe://td/ns/a/sa/b")],
        alpn: vec!["h2".into()],
        only_meshed_endpoints: false,
    };
    let message = cluster::encode(&Cluster { tls: Some(tls), ..cluster(LoadBalancer::PeakEwma) });
    let socket = message.transport_socket.unwrap();
    assert_eq!(socket.name, "envoy.transport_sockets.tls");
    let Some(core::transport_socket::ConfigType::TypedConfig(config)) = socket.config_type else { panic!() };
    let context: tls_pb::UpstreamTlsContext = proto::unpack(&config).unwrap();
    let common = context.common_tls_context.unwrap();
    // gRPC refuses `tls_params`, takes certificates from the instance alone, and Envoy from the secret alone.
    assert_eq!(common.tls_params, None);
    assert_eq!(common.tls_certificate_sds_secret_configs[0].name, "default");
    assert_eq!(common.tls_certificate_provider_instance.as_ref().unwrap().instance_name, "default");
    let Some(ValidationContextType::CombinedValidationContext(combined)) = common.validation_context_type
    else {
        panic!()
    };
    assert_eq!(combined.validation_context_sds_secret_config.unwrap().name, "ROOTCA");
    let validation = combined.default_validation_context.unwrap();
    assert_eq!(validation.ca_certificate_provider_instance.unwrap().instance_name, "default");
    // With the typed names alone, gRPC would check no name at all.
    assert_eq!(validation.match_typed_subject_alt_names.len(), 1);
    #[expect(deprecated)]
    let untyped = validation.match_subject_alt_names.len();
    assert_eq!(untyped, 1);
}

#[test]
fn only_a_mixed_cluster_uses_transport_socket_matches() {
    let tls = |only_meshed_endpoints| UpstreamTls {
        sni: String::new(),
        subject_alt_names: Vec::new(),
        alpn: Vec::new(),
        only_meshed_endpoints,
    };
    let plain = cluster(LoadBalancer::RoundRobin);
    let all = cluster::encode(&Cluster { tls: Some(tls(false)), ..plain.clone() });
    assert!(all.transport_socket.is_some() && all.transport_socket_matches.is_empty());
    let mixed = cluster::encode(&Cluster { tls: Some(tls(true)), ..plain });
    assert!(mixed.transport_socket.is_none());
    // The first condition that holds is taken: the one without conditions stands last.
    let conditions: Vec<_> =
        mixed.transport_socket_matches.iter().map(|m| m.r#match.as_ref().unwrap().fields.len()).collect();
    assert_eq!(conditions, [1, 0]);
}

#[test]
fn every_list_of_balancers_has_one_for_envoy_and_one_for_grpc() {
    let names = |balancer| -> Vec<String> {
        let list = cluster::encode(&cluster(balancer)).load_balancing_policy.unwrap();
        list.policies.into_iter().map(|policy| policy.typed_extension_config.unwrap().name).collect()
    };
    let by_locality = "envoy.load_balancing_policies.wrr_locality";
    let least = "envoy.load_balancing_policies.least_request";
    assert_eq!(names(LoadBalancer::PeakEwma), ["tulle.peak_ewma", least, by_locality]);
    assert_eq!(names(LoadBalancer::LeastRequest { choices: 3, bias: 1.0 }), [least, by_locality]);
    assert_eq!(names(LoadBalancer::RoundRobin), ["envoy.load_balancing_policies.round_robin", by_locality]);
    let ring = LoadBalancer::RingHash {
        min_size: 1,
        max_size: 2,
        function: HashFunction::Xx,
        hashing: Hashing::default(),
    };
    assert_eq!(names(ring), ["envoy.load_balancing_policies.ring_hash"]);
}

#[test]
fn a_cluster_says_which_http_it_speaks() {
    // Envoy speaks HTTP/1.1 unless told otherwise, which breaks gRPC backends.
    let message =
        cluster::encode(&Cluster { protocol: UpstreamProtocol::Http2, ..cluster(LoadBalancer::PeakEwma) });
    assert!(
        message
            .typed_extension_protocol_options
            .contains_key("envoy.extensions.upstreams.http.v3.HttpProtocolOptions")
    );
    assert_eq!(message.lb_policy, cluster_pb::cluster::LbPolicy::RoundRobin as i32);
}

#[test]
fn a_group_of_endpoints_always_has_its_place_and_weight() {
    let endpoint = Endpoint {
        address: EndpointAddress::Socket("10.0.0.1:80".parse().unwrap()),
        additional_addresses: Vec::new(),
        health: Health::Healthy,
        weight: 1,
        hostname: String::new(),
        meshed: true,
        identity: Some("spiffe://td/ns/a/sa/b".parse().unwrap()),
        workload: "a/b".into(),
    };
    let message = endpoint::encode(&LoadAssignment {
        drops: Vec::new(),
        overprovisioning: None,
        name: "x".into(),
        localities: vec![LocalityEndpoints {
            locality: Locality::default(),
            priority: 0,
            weight: 1,
            endpoints: vec![endpoint],
        }],
    });
    assert!(message.endpoints[0].locality.is_some());
    assert_eq!(message.endpoints[0].load_balancing_weight.unwrap().value, 1);
    let metadata = message.endpoints[0].lb_endpoints[0].metadata.as_ref().unwrap();
    let mode = &metadata.filter_metadata["envoy.transport_socket_match"].fields["tlsMode"];
    assert_eq!(mode, &proto::text("tulle"));
}

#[test]
fn an_outbound_http_listener_is_an_api_listener_and_others_are_not() {
    let http = listener(TrafficDirection::Outbound, vec![chain(http(Vec::new()))]);
    let message = listener::encode(&http);
    assert!(message.api_listener.is_some() && message.filter_chains.is_empty());
    let tcp = TcpProxy::new(vec![("a".into(), 1)]);
    let tcp = listener(TrafficDirection::Outbound, vec![chain(Protocol::Tcp(tcp))]);
    let message = listener::encode(&tcp);
    assert!(message.api_listener.is_none() && message.filter_chains.len() == 1);
    let inbound = Listener { direction: TrafficDirection::Inbound, ..http };
    let message = listener::encode(&inbound);
    assert!(message.api_listener.is_none());
    // A gRPC server takes a listener without listener filters only.
    assert!(message.listener_filters.is_empty());
}

#[test]
fn chains_that_are_told_apart_by_tls_or_protocol_get_inspectors() {
    let tls = FilterChain {
        matches: ChainMatch { transport: Some(Transport::Tls), ..ChainMatch::default() },
        ..chain(http(Vec::new()))
    };
    let detected = FilterChain {
        matches: ChainMatch {
            application_protocols: vec!["http/1.1".into(), "h2c".into()],
            ..ChainMatch::default()
        },
        ..chain(http(Vec::new()))
    };
    let message =
        listener::encode(&listener(TrafficDirection::Inbound, vec![tls, detected, chain(http(Vec::new()))]));
    let names: Vec<_> = message.listener_filters.iter().map(|filter| filter.name.as_str()).collect();
    assert_eq!(names, ["envoy.filters.listener.tls_inspector", "envoy.filters.listener.http_inspector"]);
    // Otherwise a protocol in which the server speaks first is closed after 15 s.
    assert!(message.continue_on_listener_filters_timeout);
}

#[test]
fn authorization_is_never_optional_and_names_of_filters_differ() {
    let set =
        Authorization { name: "shop".into(), action: Action::Allow, policies: Vec::new(), audit_only: false };
    let bucket = TokenBucket { burst: 1, tokens_per_fill: 1, fill_interval: Duration::from_secs(1) };
    let limit = LocalRateLimit::new("all", bucket);
    let mut filters = HttpFilter::for_routes();
    filters.extend([
        HttpFilter::Authorization(set),
        HttpFilter::LocalRateLimit(limit.clone()),
        HttpFilter::LocalRateLimit(limit),
    ]);
    let filters = manager(&listener(TrafficDirection::Outbound, vec![chain(http(filters))])).http_filters;
    let seen: Vec<_> = filters.iter().map(|filter| (filter.name.as_str(), filter.is_optional)).collect();
    assert_eq!(
        seen,
        [
            ("envoy.filters.http.cors", true),
            ("envoy.filters.http.fault", true),
            ("envoy.filters.http.stateful_session", true),
            ("tulle.authorization.shop", false),
            ("tulle.local_rate_limit.all", true),
            ("tulle.local_rate_limit.all#2", true),
            ("envoy.filters.http.router", false),
        ]
    );
    let Some(http_pb::http_filter::ConfigType::TypedConfig(config)) = &filters[4].config_type else {
        panic!()
    };
    let limit: rate_limit_pb::LocalRateLimit = proto::unpack(config).unwrap();
    // Both are 0 % by default, and the filter would do nothing.
    for fraction in [limit.filter_enabled, limit.filter_enforced] {
        assert_eq!(fraction.unwrap().default_value.unwrap().numerator, 1_000_000);
    }
}

#[test]
fn what_is_done_to_paths_is_said() {
    let said = |paths: PathHandling| {
        let connection = HttpConnection { paths, ..HttpConnection::new(RouteSource::Named("r".into())) };
        let chain = chain(Protocol::Http(connection));
        let manager = manager(&listener(TrafficDirection::Outbound, vec![chain]));
        (manager.normalize_path.unwrap().value, manager.merge_slashes)
    };
    assert_eq!(said(PathHandling::NORMAL), (true, true));
    assert_eq!(said(PathHandling::default()), (false, false));
}

#[test]
fn a_private_key_is_never_printed() {
    let secret = Secret {
        name: "default".into(),
        value: SecretValue::Certificate { chain: "chain".into(), key: Some(PrivateKey::new("hush")) },
    };
    assert!(!format!("{secret:?}").contains("hush"));
    assert!(!serde_json::to_string(&secret).unwrap().contains("hush"));
}

fn configuration(route: Route) -> RouteConfiguration {
    let host = VirtualHost::new("h", vec![Domain::Any], vec![route]);
    RouteConfiguration::new("r", vec![host])
}

fn route(path: PathMatch, forward: Forward) -> Route {
    Route::new("first", RouteMatch::new(path), RouteAction::Forward(forward))
}

fn forward(cluster: &str) -> Forward {
    let backend = Backend::new(cluster, 1);
    Forward::new(vec![backend])
}

fn encoded(forward: Forward) -> route_pb::RouteAction {
    let routes = route::encode(&configuration(route(PathMatch::Prefix("/".into()), forward)));
    action_of(&routes.virtual_hosts[0].routes[0]).clone()
}

fn path_of(route: &route_pb::Route) -> &PathSpecifier {
    route.r#match.as_ref().unwrap().path_specifier.as_ref().unwrap()
}

fn action_of(route: &route_pb::Route) -> &route_pb::RouteAction {
    match &route.action {
        Some(ActionPb::Route(action)) => action,
        other => panic!("not forwarded: {other:?}"),
    }
}

fn cluster(load_balancer: LoadBalancer) -> Cluster {
    Cluster { load_balancer, ..Cluster::new("outbound|80||a.b", Discovery::Eds("outbound|80||a.b".into())) }
}

fn listener(direction: TrafficDirection, chains: Vec<FilterChain>) -> Listener {
    Listener::new("a.b:80", direction, chains)
}

fn chain(protocol: Protocol) -> FilterChain {
    FilterChain {
        name: "all".into(),
        matches: ChainMatch::default(),
        tls: None,
        authorization: Vec::new(),
        protocol,
    }
}

fn http(filters: Vec<HttpFilter>) -> Protocol {
    Protocol::Http(HttpConnection {
        filters,
        ..HttpConnection::new(RouteSource::Named("outbound|80||a.b".into()))
    })
}

fn manager(listener: &Listener) -> http_pb::HttpConnectionManager {
    let message: listener_pb::Listener = listener::encode(listener);
    proto::unpack(&message.api_listener.unwrap().api_listener.unwrap()).unwrap()
}

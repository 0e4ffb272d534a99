use std::time::Duration;

use http::StatusCode;
use tulle_mesh::model::{
    Fault, FaultAbort, FaultPart, HeaderOp, HostRewrite, PathMatch, PathRewrite, PerMillion, Protocol,
    RetryOn, Route, RouteAction, Transport,
};

use super::support::{listener, problems, routes, service, world};
use crate::world::World;

pub(super) const CART: &str = "cart.shop.svc.cluster.local:80";

/// A route on Service `cart` of namespace `shop`, with these rules in flow style.
pub(super) fn route(kind: &str, namespace: &str, name: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  parentRefs: [{{group: '', kind: Service, name: cart, namespace: shop}}]\n  rules: {rules}\n"
    )
}

/// `cart`, `v1` and `v2` with port 80, whose protocol is not told.
pub(super) fn services() -> String {
    ["cart", "v1", "v2"].map(|name| service("shop", name, "ports: [{port: 80}]")).concat()
}

pub(super) fn with(routes: &[String]) -> World {
    world(&format!("{}{}", services(), routes.concat()))
}

pub(super) fn clean(routes: &[String]) -> World {
    let world = with(routes);
    assert_eq!(problems(&world), Vec::<String>::new());
    world
}

pub(super) fn backends(route: &Route) -> Vec<(String, u32)> {
    let RouteAction::Forward(forward) = &route.action else { panic!("{:?}", route.action) };
    forward
        .backends
        .iter()
        .map(|backend| (backend.cluster.replace(".svc.cluster.local", ""), backend.weight))
        .collect()
}

#[test]
fn without_routes_a_port_leads_to_its_service() {
    let world = clean(&[]);
    let routes = routes(&world, CART, "shop");
    assert_eq!(routes.len(), 1);
    assert_eq!(backends(&routes[0]), [("outbound|80||cart.shop".into(), 1)]);
    let listener = listener(&world, CART, "shop");
    let kinds: Vec<_> = listener.chains.iter().map(|chain| chain.name.as_str()).collect();
    assert_eq!(kinds, ["http", "tcp", "tls"], "the protocol is not told, so it is found out");
}

#[test]
fn the_protocol_is_told_by_app_protocol_then_by_the_port_s_name_then_by_its_number() {
    let cases = [
        ("{port: 80, appProtocol: http}", "http"),
        ("{port: 80, appProtocol: kubernetes.io/h2c}", "http"),
        ("{port: 80, appProtocol: mysql, name: http}", "tcp"),
        ("{port: 80, name: http-api}", "http"),
        ("{port: 80, name: grpc}", "http"),
        ("{port: 80, name: tcp-raw}", "tcp"),
        ("{port: 80, name: https}", "tcp"),
        ("{port: 3306, name: db}", "tcp"),
        ("{port: 80, name: api}", "http tcp tls"),
    ];
    for (port, expected) in cases {
        let world = world(&service("shop", "cart", &format!("ports: [{port}]")));
        let listener = world.listeners().values().next().expect("one");
        let kinds: Vec<_> = listener
            .chains
            .iter()
            .map(|chain| match chain.protocol {
                Protocol::Http(_) => "http",
                Protocol::Tcp(_) if chain.matches.transport == Some(Transport::Tls) => "tls",
                Protocol::Tcp(_) => "tcp",
            })
            .collect();
        assert_eq!(kinds.join(" "), expected, "{port}");
    }
}

#[test]
fn rules_stand_in_the_order_of_the_gateway_api() {
    let world = clean(&[
        route(
            "HTTPRoute",
            "shop",
            "b",
            "[{matches: [{path: {value: /}}, {path: {value: /a/b/}}], backendRefs: [{name: v1, port: 80}]}]",
        ),
        route(
            "HTTPRoute",
            "shop",
            "a",
            "[{name: named, matches: [{path: {type: Exact, value: /a}}], backendRefs: [{name: v2, port: 80}]},\
              {matches: [{path: {value: /a/b}, method: GET}, {path: {value: /a/b}, headers: [{name: X-A, value: '1'}]}], backendRefs: [{name: v2, port: 80}]},\
              {matches: [{path: {type: RegularExpression, value: '/r[0-9]'}, queryParams: [{name: q, value: x}]}], backendRefs: [{name: v2, port: 80}]}]",
        ),
    ]);
    let routes = routes(&world, CART, "shop");
    let names: Vec<_> = routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["shop/a#0:named", "shop/a#2", "shop/a#1.0", "shop/a#1.1", "shop/b#0.1", "shop/b#0.0"]);
    assert_eq!(routes[4].matches.path, PathMatch::Segments("/a/b".into()));
    assert_eq!(routes[5].matches.path, PathMatch::Prefix("/".into()));
    assert_eq!(routes[2].matches.headers[0].name, ":method");
    assert_eq!(routes[3].matches.headers[0].name, "x-a");
    let origin = routes[4].origin.as_ref().expect("known");
    assert_eq!(
        (origin.kind.as_str(), origin.name.as_str(), origin.rule, origin.matched),
        ("HTTPRoute", "b", 0, 1)
    );
}

#[test]
fn an_older_route_goes_before_one_with_the_same_conditions() {
    let aged = |name: &str, year: u32| {
        let created = format!(", creationTimestamp: '{year}-01-01T00:00:00Z', namespace");
        route("HTTPRoute", "shop", name, "[{backendRefs: [{name: v1, port: 80}]}]").replacen(
            ", namespace",
            &created,
            1,
        )
    };
    let world = with(&[aged("a", 2025), aged("b", 2024)]);
    let names: Vec<_> = routes(&world, CART, "shop").into_iter().map(|route| route.name).collect();
    assert_eq!(names, ["shop/b#0", "shop/a#0"]);
    assert!(problems(&world)[0].contains("HTTPRoute shop/a: spec.rules[0].matches[0]: never matches: rule 0 of HTTPRoute shop/b has the same conditions"));
}

#[test]
fn weights_and_backends_that_do_not_exist() {
    let world = with(&[route(
        "HTTPRoute",
        "shop",
        "r",
        "[{matches: [{path: {value: /split}}], backendRefs: [{name: v1, port: 80, weight: 90}, {name: v2, port: 80, weight: 10}, {name: v3, port: 80, weight: 0}]},\
          {matches: [{path: {value: /lost}}], backendRefs: [{name: v1, port: 80}, {name: v3, port: 80}]},\
          {matches: [{path: {value: /none}}]}]",
    )]);
    let routes = routes(&world, CART, "shop");
    let by_path = |path: &str| {
        routes.iter().find(|route| route.matches.path == PathMatch::Segments(path.into())).expect("made")
    };
    assert_eq!(
        backends(by_path("/split")),
        [("outbound|80||v1.shop".into(), 90), ("outbound|80||v2.shop".into(), 10)]
    );
    let RouteAction::Forward(forward) = &by_path("/lost").action else { panic!("forwards") };
    assert_eq!(forward.unknown_cluster_status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(world.cluster(&forward.backends[0].cluster).is_some());
    assert!(world.cluster(&forward.backends[1].cluster).is_none());
    let RouteAction::Respond(response) = &by_path("/none").action else { panic!("responds") };
    assert_eq!(response.status, StatusCode::INTERNAL_SERVER_ERROR);
    let resolved = &world.statuses().values().next().expect("of the route")[0].conditions[1];
    assert_eq!((resolved.kind, resolved.status, resolved.reason), ("ResolvedRefs", false, "BackendNotFound"));
}

#[test]
fn a_consumer_route_is_for_its_own_namespace_and_replaces_producer_routes_there() {
    let world = clean(&[
        route("HTTPRoute", "shop", "producer", "[{backendRefs: [{name: v1, port: 80}]}]"),
        route(
            "HTTPRoute",
            "readers",
            "consumer",
            "[{matches: [{path: {value: /x}}], backendRefs: [{name: v2, namespace: shop, port: 80}]}]",
        ),
    ]);
    let names =
        |namespace| routes(&world, CART, namespace).into_iter().map(|route| route.name).collect::<Vec<_>>();
    assert_eq!(names("shop"), ["shop/producer#0"]);
    assert_eq!(names("others"), ["shop/producer#0"]);
    assert_eq!(names("readers"), ["readers/consumer#0"]);
    assert_eq!(world.resolve(CART, "readers").as_deref(), Some("cart.shop.svc.cluster.local:80~readers"));
    assert!(world.route("outbound|80|~readers|cart.shop.svc.cluster.local").is_some());
    assert_eq!(listener(&world, CART, "readers").name, CART, "on the wire it has the port's name");
}

#[test]
fn parents_select_ports_by_number_and_name() {
    let on = |parent: &str| {
        route("HTTPRoute", "shop", "r", "[{backendRefs: [{name: v1, port: 80}]}]")
            .replace("namespace: shop}]", &format!("namespace: shop, {parent}}}]"))
    };
    for (parent, ports) in
        [("port: 81", vec![81]), ("sectionName: b", vec![81]), ("sectionName: a", vec![80])]
    {
        let two = service("shop", "cart", "ports: [{name: a, port: 80}, {name: b, port: 81}]");
        let world = world(&format!("{two}{}{}", service("shop", "v1", "ports: [{port: 80}]"), on(parent)));
        let routed: Vec<u16> = [80, 81]
            .into_iter()
            .filter(|port| routes(&world, &format!("cart.shop:{port}"), "shop")[0].name == "shop/r#0")
            .collect();
        assert_eq!(routed, ports, "{parent}");
    }
}

#[test]
fn filters_become_changes_of_requests_and_responses() {
    let world = clean(&[
        "---\napiVersion: tulle.dev/v1alpha1\nkind: HTTPFaultFilter\nmetadata: {name: slow, namespace: shop}\n\
         spec: {delay: {duration: 2s, fraction: {numerator: 10}}, abort: {grpcStatus: UNAVAILABLE, fraction: {numerator: 1, denominator: 1000}}}\n".into(),
        route(
            "HTTPRoute",
            "shop",
            "r",
            "\n  - filters:\n\
             \x20   - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: a}], add: [{name: X-B, value: b}], remove: [X-C]}}\n\
             \x20   - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-D, value: d}]}}\n\
             \x20   - {type: URLRewrite, urlRewrite: {hostname: other, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}\n\
             \x20   - {type: RequestMirror, requestMirror: {percent: 42, backendRef: {name: v2, port: 80}}}\n\
             \x20   - {type: RequestMirror, requestMirror: {fraction: {numerator: 1, denominator: 3}, backendRef: {name: v2, port: 80}}}\n\
             \x20   - {type: ExtensionRef, extensionRef: {group: tulle.dev, kind: HTTPFaultFilter, name: slow}}\n\
             \x20   backendRefs:\n\
             \x20   - {name: v1, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-E, value: e}]}}]}\n\
             \x20 - matches: [{path: {value: /gone}}]\n\
             \x20   filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: new, statusCode: 308, path: {type: ReplaceFullPath, replaceFullPath: /here}}}]\n",
        ),
    ]);
    let routes = routes(&world, CART, "shop");
    let [redirect, forward] = &routes[..] else { panic!("{routes:?}") };
    assert_eq!(forward.request_headers.remove, ["x-c"]);
    let changes: Vec<_> =
        forward.request_headers.change.iter().map(|change| (change.name.as_str(), change.op)).collect();
    assert_eq!(changes, [("x-a", HeaderOp::Set), ("x-b", HeaderOp::Append)]);
    assert_eq!(forward.response_headers.change[0].name, "x-d");
    let abort = FaultAbort { status: StatusCode::SERVICE_UNAVAILABLE, grpc_status: Some(14) };
    let fault = Fault {
        delay: Some(FaultPart::fixed(Duration::from_secs(2), PerMillion::percent(10))),
        abort: Some(FaultPart::fixed(abort, PerMillion(1000))),
        ..Fault::default()
    };
    assert_eq!(forward.fault(), Some(&fault));
    let RouteAction::Forward(action) = &forward.action else { panic!("{:?}", forward.action) };
    assert_eq!(action.path_rewrite, Some(PathRewrite::Prefix("/new".into())));
    assert_eq!(action.host_rewrite, Some(HostRewrite::Literal("other".into())));
    let mirrors: Vec<_> = action.mirrors.iter().map(|mirror| mirror.fraction.0).collect();
    assert_eq!(mirrors, [420_000, 333_333]);
    assert_eq!(action.backends[0].request_headers.change[0].name, "x-e");
    let RouteAction::Redirect(redirect) = &redirect.action else { panic!("{:?}", redirect.action) };
    assert_eq!(
        (redirect.scheme.as_deref(), redirect.host.as_deref(), redirect.port),
        (Some("https"), Some("new"), Some(443))
    );
    assert_eq!((redirect.status.as_u16(), &redirect.path), (308, &Some(PathRewrite::Full("/here".into()))));
}

#[test]
fn a_rule_with_a_filter_that_can_not_be_done_answers_with_500() {
    for filter in [
        "{type: CORS, cors: {allowOrigins: ['ftp://files.example']}}",
        "{type: CORS, cors: {allowOrigins: ['https://a.example/path']}}",
        "{type: ExternalAuth}",
        "{type: ExtensionRef, extensionRef: {group: tulle.dev, kind: HTTPFaultFilter, name: missing}}",
        "{type: ExtensionRef, extensionRef: {group: example.com, kind: Magic, name: x}}",
        "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: 'no name', value: a}]}}",
    ] {
        let world = with(&[route(
            "HTTPRoute",
            "shop",
            "r",
            &format!("[{{filters: [{filter}], backendRefs: [{{name: v1, port: 80}}]}}]"),
        )]);
        let RouteAction::Respond(response) = &routes(&world, CART, "shop")[0].action else {
            panic!("{filter}")
        };
        assert_eq!(response.status, StatusCode::INTERNAL_SERVER_ERROR, "{filter}");
        assert_eq!(world.problems().len(), 1, "{filter}: {:?}", world.problems());
    }
}

#[test]
fn timeouts_and_retries_are_the_route_s_own_or_those_of_the_service_s_policy() {
    let policy = "---\napiVersion: tulle.dev/v1alpha1\nkind: BackendTrafficPolicy\nmetadata: {name: p, namespace: shop}\n\
        spec: {targetRefs: [{kind: Service, name: cart}], timeouts: {request: 9s, backendRequest: 3s}, retry: {codes: [503]}}\n";
    let world = clean(&[
        policy.into(),
        route(
            "HTTPRoute",
            "shop",
            "r",
            "[{matches: [{path: {value: /own}}], timeouts: {request: 2s, backendRequest: 500ms}, retry: {codes: [500, 502], attempts: 4, backoff: 10ms}, backendRefs: [{name: v1, port: 80}]},\
              {matches: [{path: {value: /inherited}}], backendRefs: [{name: v1, port: 80}]},\
              {matches: [{path: {value: /endless}}], timeouts: {request: 0s}, backendRefs: [{name: v1, port: 80}]}]",
        ),
    ]);
    let routes = routes(&world, CART, "shop");
    let forward = |path: &str| {
        let found =
            routes.iter().find(|route| route.matches.path == PathMatch::Segments(path.into())).expect("made");
        let RouteAction::Forward(forward) = &found.action else { panic!("{found:?}") };
        forward.clone()
    };
    let own = forward("/own");
    let retry = own.retry.expect("its own");
    assert_eq!(own.timeouts.request, Some(Duration::from_secs(2)));
    assert_eq!(
        (retry.attempts, retry.backoff, retry.statuses),
        (4, Duration::from_millis(10), vec![500, 502])
    );
    assert_eq!(retry.per_try_timeout, Some(Duration::from_millis(500)));
    assert_eq!(retry.on, [RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::Reset, RetryOn::Status]);
    let inherited = forward("/inherited");
    let retry = inherited.retry.expect("of the policy");
    assert_eq!(inherited.timeouts.request, Some(Duration::from_secs(9)));
    assert_eq!(
        (retry.attempts, retry.statuses, retry.per_try_timeout),
        (1, vec![503], Some(Duration::from_secs(3)))
    );
    assert_eq!(forward("/endless").timeouts.request, Some(Duration::ZERO), "no limit");
}

#[test]
fn grpc_routes_match_services_and_methods() {
    let world = clean(&[route(
        "GRPCRoute",
        "shop",
        "r",
        "[{matches: [{}, {method: {method: Get}}, {method: {service: a.B}}, {method: {service: a.B, method: Get}}, {method: {type: RegularExpression, service: 'a[.].*'}}], backendRefs: [{name: v1, port: 80}]}]",
    )]);
    let routes = routes(&world, CART, "shop");
    let text = |path: &PathMatch| match path {
        PathMatch::Regex(regex) => format!("/{}/", regex.as_str()),
        other => other.to_string(),
    };
    assert!(routes.iter().all(|route| route.matches.grpc));
    let mut paths: Vec<_> = routes.iter().map(|route| text(&route.matches.path)).collect();
    assert_eq!(paths.pop().as_deref(), Some("starts with \"/\""), "what matches all comes last");
    paths.sort();
    assert_eq!(
        paths,
        [
            "\"/a.B\" or below",
            "/\\/[^/]+/Get/".replace('\\', "").as_str(),
            "//a[.].*/[^/]+/",
            "= \"/a.B/Get\""
        ]
    );
}

#[test]
fn of_several_kinds_on_a_port_one_holds() {
    let rules = "[{backendRefs: [{name: v1, port: 80}]}]";
    let world = with(&[
        route("HTTPRoute", "shop", "h", rules),
        route("GRPCRoute", "shop", "g", rules),
        route("TCPRoute", "shop", "t", rules),
    ]);
    let names: Vec<_> = routes(&world, CART, "shop").into_iter().map(|route| route.name).collect();
    assert_eq!(names, ["shop/g#0"]);
    for (object, statuses) in world.statuses() {
        let accepted = &statuses[0].conditions[0];
        let expected = if object.kind == "GRPCRoute" { (true, "Accepted") } else { (false, "Conflicted") };
        assert_eq!((accepted.status, accepted.reason), expected, "{object}");
    }
    assert_eq!(problems(&world).len(), 2);
}

#[test]
fn tcp_and_tls_routes_split_connections() {
    let split = "[{backendRefs: [{name: v1, port: 80, weight: 3}, {name: v2, port: 80, weight: 1}]}]";
    let world = clean(&[route("TCPRoute", "shop", "t", split)]);
    let chains = &listener(&world, CART, "shop").chains;
    let Protocol::Tcp(proxy) = &chains[0].protocol else { panic!("{chains:?}") };
    assert_eq!(chains.len(), 1);
    assert_eq!(proxy.backends.iter().map(|(_, weight)| *weight).collect::<Vec<_>>(), [3, 1]);

    let tls =
        route("TLSRoute", "shop", "t", split).replace("  rules", "  hostnames: ['*.example.com']\n  rules");
    let world = clean(&[tls]);
    let chain = &listener(&world, CART, "shop").chains[0];
    assert_eq!(
        (chain.matches.transport, &chain.matches.server_names[..]),
        (Some(Transport::Tls), &["*.example.com".to_owned()][..])
    );
}

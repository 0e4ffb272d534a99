//! What the Gateway API asks of a mesh (GEP-1294, GEP-1619, GEP-1767), demand by demand.

use std::time::Duration;

use http::StatusCode;
use tulle_mesh::model::{
    Domain, FilterSettings, Forward, LoadBalancer, PathRewrite, Protocol, Redirect, Route, RouteAction,
    Session, SessionCarrier,
};

use super::routes::{CART, backends, clean, route, services, with};
use super::support::{listener, problems, routes, service, workload, world};
use crate::world::{Condition, World};

const TO_V1: &str = "[{backendRefs: [{name: v1, port: 80}]}]";

fn forward(route: &Route) -> &Forward {
    match &route.action {
        RouteAction::Forward(forward) => forward,
        other => panic!("not forwarded: {other:?}"),
    }
}

fn names(world: &World, name: &str, namespace: &str) -> Vec<String> {
    routes(world, name, namespace).into_iter().map(|route| route.name).collect()
}

/// The conditions of a route at its first parent.
fn conditions<'a>(world: &'a World, name: &str) -> &'a [Condition] {
    let found = world.statuses().iter().find(|(object, _)| object.name == name);
    &found.unwrap_or_else(|| panic!("{name} has no status")).1[0].conditions
}

fn accepted(world: &World, name: &str) -> (bool, &'static str) {
    let condition = &conditions(world, name)[0];
    assert_eq!(condition.kind, "Accepted");
    (condition.status, condition.reason)
}

#[test]
fn a_parent_without_a_port_is_all_of_its_ports() {
    let two = service("shop", "two", "ports: [{name: a, port: 80}, {name: b, port: 81}]");
    let on = |parent: &str| {
        let route = route("HTTPRoute", "shop", "r", TO_V1);
        let route = route.replace("name: cart, namespace: shop", &format!("name: two{parent}"));
        world(&format!("{two}{}{route}", services()))
    };
    for (parent, first, second) in [
        ("", "shop/r#0", "shop/r#0"),
        (", port: 80", "shop/r#0", "default"),
        (", port: 81", "default", "shop/r#0"),
    ] {
        let world = on(parent);
        let found = [80, 81].map(|port| names(&world, &format!("two.shop:{port}"), "shop")[0].clone());
        assert_eq!(found, [first, second], "{parent:?}");
        assert_eq!(accepted(&world, "r"), (true, "Accepted"));
    }
}

#[test]
fn of_two_kinds_on_a_port_the_more_specific_holds_and_the_other_is_told() {
    let kinds = ["GRPCRoute", "HTTPRoute", "TLSRoute", "TCPRoute"];
    for (at, winner) in kinds.iter().enumerate() {
        for loser in &kinds[at + 1..] {
            // The winner's name comes last and it is the younger one: neither counts.
            let aged = |route: String, year: u32| {
                let created = format!(", creationTimestamp: '{year}-01-01T00:00:00Z', namespace");
                route.replacen(", namespace", &created, 1)
            };
            let of = |kind: &str, name: &str| {
                let hostnames =
                    if kind == "TLSRoute" { "  hostnames: [a.example]\n  rules:" } else { "  rules:" };
                route(kind, "shop", name, TO_V1).replace("  rules:", hostnames)
            };
            let world = with(&[aged(of(loser, "a"), 2020), aged(of(winner, "z"), 2021)]);
            assert_eq!(accepted(&world, "z"), (true, "Accepted"), "{winner} over {loser}");
            assert_eq!(accepted(&world, "a"), (false, "Conflicted"), "{winner} over {loser}");
        }
    }
}

#[test]
fn a_route_that_loses_one_of_its_ports_is_in_force_on_the_others() {
    let two = service("shop", "cart", "ports: [{name: a, port: 80}, {name: b, port: 81}]");
    let grpc =
        route("GRPCRoute", "shop", "g", TO_V1).replace("namespace: shop}]", "namespace: shop, port: 81}]");
    let http = route("HTTPRoute", "shop", "h", TO_V1);
    let world = world(&format!("{two}{}{grpc}{http}", service("shop", "v1", "ports: [{port: 80}]")));
    assert_eq!(names(&world, "cart.shop:80", "shop"), ["shop/h#0"]);
    assert_eq!(names(&world, "cart.shop:81", "shop"), ["shop/g#0"]);
    assert_eq!(accepted(&world, "h"), (true, "Accepted"));
    assert!(conditions(&world, "h")[0].message.starts_with("on port 81, GRPCRoute shop/g"));
    assert!(problems(&world)[0].contains("on port 81"), "{:?}", problems(&world));
}

#[test]
fn consumer_routes_are_merged_among_themselves_and_seen_by_nobody_else() {
    let on_path = |path: &str| {
        format!(
            "[{{matches: [{{path: {{value: {path}}}}}], backendRefs: [{{name: v1, namespace: shop, port: 80}}]}}]"
        )
    };
    let world = clean(&[
        route("HTTPRoute", "shop", "producer", TO_V1),
        route("HTTPRoute", "readers", "one", &on_path("/one")),
        route("HTTPRoute", "readers", "two", &on_path("/two")),
        route("HTTPRoute", "writers", "three", &on_path("/three")),
    ]);
    assert_eq!(names(&world, CART, "readers"), ["readers/one#0", "readers/two#0"]);
    assert_eq!(names(&world, CART, "writers"), ["writers/three#0"]);
    assert_eq!(names(&world, CART, "shop"), ["shop/producer#0"]);
    assert_eq!(names(&world, CART, "others"), ["shop/producer#0"]);
}

#[test]
fn a_consumer_route_of_another_kind_does_not_conflict_with_the_producer_s() {
    let world = with(&[
        route("GRPCRoute", "shop", "producer", TO_V1),
        route("HTTPRoute", "readers", "consumer", "[{backendRefs: [{name: v1, namespace: shop, port: 80}]}]"),
    ]);
    assert_eq!(problems(&world), Vec::<String>::new());
    assert_eq!(names(&world, CART, "readers"), ["readers/consumer#0"]);
    assert_eq!(names(&world, CART, "shop"), ["shop/producer#0"]);
}

#[test]
fn requests_are_told_by_the_address_and_never_by_their_host() {
    let cart =
        service("shop", "cart", "clusterIP: 10.96.0.7, ports: [{name: http, port: 80, targetPort: http}]");
    let named =
        route("HTTPRoute", "shop", "r", TO_V1).replace("  rules:", "  hostnames: [other.example]\n  rules:");
    let pod = workload("shop", "cart-1", "cart", "10.1.0.9", 8080, 15006);
    let world = world(&format!("{cart}{}{named}{pod}", service("shop", "v1", "ports: [{port: 80}]")));
    assert_eq!(problems(&world), Vec::<String>::new());
    for name in ["10.96.0.7:80", "cart.shop:80", "cart.shop.svc.cluster.local:80"] {
        assert_eq!(names(&world, name, "anywhere"), ["shop/r#0"], "{name}");
    }
    let configuration = world.route("outbound|80||cart.shop.svc.cluster.local").expect("made");
    assert_eq!(configuration.virtual_hosts.len(), 1);
    assert_eq!(configuration.virtual_hosts[0].domains, [Domain::Any], "hostnames mean nothing in a mesh");
    // A pod that is dialled directly has no routes (GEP-1294, "Service backend").
    let direct = listener(&world, "10.1.0.9:15006", "shop");
    let Some(Protocol::Http(http)) =
        direct.chains.iter().map(|chain| &chain.protocol).find(|chain| matches!(chain, Protocol::Http(_)))
    else {
        panic!("{direct:?}")
    };
    let tulle_mesh::model::RouteSource::Inline(routes) = &http.routes else { panic!("{http:?}") };
    assert_eq!(routes.virtual_hosts[0].routes[0].name, "default");
}

#[test]
fn routes_are_not_chained() {
    // A backend that has a route of its own is reached without it.
    let onward = route("HTTPRoute", "shop", "onward", "[{backendRefs: [{name: v2, port: 80}]}]")
        .replace("name: cart, namespace: shop", "name: v1");
    let world = clean(&[route("HTTPRoute", "shop", "first", TO_V1), onward]);
    assert_eq!(backends(&routes(&world, CART, "shop")[0]), [("outbound|80||v1.shop".into(), 1)]);
}

#[test]
fn what_no_rule_matches_has_no_route() {
    let world = clean(&[route(
        "HTTPRoute",
        "shop",
        "r",
        "[{matches: [{path: {value: /only}}], backendRefs: [{name: v1, port: 80}]}]",
    )]);
    assert_eq!(names(&world, CART, "shop"), ["shop/r#0"], "nothing leads to the Service any more: 404");
}

#[test]
fn a_missing_backend_takes_its_share_and_with_weight_0_none() {
    for (kind, status) in [("HTTPRoute", 500), ("GRPCRoute", 503)] {
        let world = with(&[route(
            kind,
            "shop",
            "r",
            "[{backendRefs: [{name: v1, port: 80, weight: 70}, {name: v2, port: 80, weight: 30}, {name: v3, port: 80, weight: 0}]}]",
        )]);
        let made = &routes(&world, CART, "shop")[0];
        assert_eq!(
            backends(made),
            [("outbound|80||v1.shop".into(), 70), ("outbound|80||v2.shop".into(), 30)]
        );
        assert_eq!(forward(made).unknown_cluster_status.as_u16(), status, "503 is UNAVAILABLE to gRPC");
        assert_eq!(accepted(&world, "r"), (true, "Accepted"));
        let resolved = &conditions(&world, "r")[1];
        assert_eq!(
            (resolved.kind, resolved.status, resolved.reason),
            ("ResolvedRefs", false, "BackendNotFound")
        );

        for rules in ["[{}]", "[{backendRefs: [{name: v1, port: 80, weight: 0}]}]"] {
            let world = with(&[route(kind, "shop", "r", rules)]);
            let RouteAction::Respond(response) = &routes(&world, CART, "shop")[0].action else {
                panic!("{rules}")
            };
            assert_eq!(response.status.as_u16(), status, "{kind} {rules}");
        }
    }
}

#[test]
fn backends_of_other_namespaces_need_no_grant() {
    let away = service("stores", "far", "ports: [{port: 80}]");
    let rules = "[{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: far, namespace: stores, port: 80}}}], backendRefs: [{name: far, namespace: stores, port: 80}]}]";
    for kind in ["HTTPRoute", "GRPCRoute"] {
        let world = clean(&[away.clone(), route(kind, "shop", "r", rules)]);
        let made = &routes(&world, CART, "shop")[0];
        assert_eq!(backends(made), [("outbound|80||far.stores".into(), 1)]);
        assert_eq!(forward(made).mirrors.len(), 1);
        assert_eq!(conditions(&world, "r")[1].reason, "ResolvedRefs");
    }
}

#[test]
fn a_backend_is_a_service_with_endpoints_of_its_own() {
    let alias = "---\napiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: shop}\nspec: {type: ExternalName, externalName: example.com, ports: [{port: 80}]}\n";
    for (backend, reason) in [
        ("{name: alias, port: 80}", "InvalidKind"),
        ("{name: bucket, kind: Bucket, group: example.com, port: 80}", "InvalidKind"),
        ("{name: nobody, port: 80}", "BackendNotFound"),
        ("{name: v1, port: 81}", "BackendNotFound"),
        ("{name: v1}", "BackendNotFound"),
    ] {
        let world = with(&[
            alias.into(),
            route("HTTPRoute", "shop", "r", &format!("[{{backendRefs: [{backend}]}}]")),
        ]);
        let resolved = &conditions(&world, "r")[1];
        assert_eq!((resolved.status, resolved.reason), (false, reason), "{backend}");
        let made = &routes(&world, CART, "shop")[0];
        assert!(world.cluster(&forward(made).backends[0].cluster).is_none(), "{backend}: its share gets 500");
        assert_eq!(forward(made).unknown_cluster_status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}

#[test]
fn a_parent_is_a_service_with_an_address() {
    for (spec, reason) in [
        ("clusterIP: None, ports: [{port: 80}]", "NotAllowedByParent"),
        ("type: ExternalName, externalName: example.com, ports: [{port: 80}]", "NotAllowedByParent"),
        ("ports: [{port: 80, appProtocol: mysql}]", "NotAllowedByParent"),
        ("ports: [{port: 80, protocol: UDP}]", "NoMatchingParent"),
    ] {
        let parent = service("shop", "cart", spec);
        let v1 = service("shop", "v1", "ports: [{port: 80}]");
        let world = world(&format!("{parent}{v1}{}", route("HTTPRoute", "shop", "r", TO_V1)));
        assert_eq!(accepted(&world, "r"), (false, reason), "{spec}");
    }
    // One without a selector is a fine front for others' endpoints.
    let front = "---\napiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {ports: [{port: 80}]}\n";
    let v1 = service("shop", "v1", "ports: [{port: 80}]");
    let world = world(&format!("{front}{v1}{}", route("HTTPRoute", "shop", "r", TO_V1)));
    assert_eq!(names(&world, CART, "shop"), ["shop/r#0"]);
}

#[test]
fn parents_of_others_have_no_status_of_ours() {
    let gateway = route("HTTPRoute", "shop", "r", TO_V1)
        .replace("parentRefs: [", "parentRefs: [{name: gateway}, {group: '', kind: Gateway, name: g}, ");
    let world = clean(&[gateway]);
    let statuses: Vec<_> =
        world.statuses().values().flatten().map(|status| status.parent.to_string()).collect();
    assert_eq!(statuses, ["Service shop/cart"]);
}

#[test]
fn redirects_keep_what_they_do_not_name() {
    let redirect = |filter: &str| -> Redirect {
        let rules = format!("[{{filters: [{{type: RequestRedirect, requestRedirect: {{{filter}}}}}]}}]");
        match routes(&clean(&[route("HTTPRoute", "shop", "r", &rules)]), CART, "shop")[0].action.clone() {
            RouteAction::Redirect(redirect) => redirect,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(redirect("hostname: a").status, 302);
    for status in [301, 302, 303, 307, 308] {
        assert_eq!(redirect(&format!("statusCode: {status}")).status.as_u16(), status);
    }
    assert_eq!(redirect("scheme: https").port, Some(443));
    assert_eq!(redirect("scheme: http").port, Some(80));
    assert_eq!(redirect("scheme: https, port: 8443").port, Some(8443));
    let only_port = redirect("port: 8080");
    assert_eq!(
        (only_port.port, only_port.scheme, only_port.host, only_port.path),
        (Some(8080), None, None, None)
    );
    assert_eq!(
        redirect("path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}").path,
        Some(PathRewrite::Prefix("/new".into()))
    );
}

#[test]
fn named_rules_keep_their_names() {
    for kind in ["HTTPRoute", "GRPCRoute"] {
        let rules = "[{name: first-rule, backendRefs: [{name: v1, port: 80}]}]";
        let world = clean(&[route(kind, "shop", "r", rules)]);
        assert_eq!(names(&world, CART, "shop"), ["shop/r#0:first-rule"], "{kind}");
    }
}

#[test]
fn cross_origin_rules_reach_the_route() {
    let cors = |settings: &str| {
        let rules = format!(
            "[{{filters: [{{type: CORS, cors: {{{settings}}}}}], backendRefs: [{{name: v1, port: 80}}]}}]"
        );
        let route = &routes(&clean(&[route("HTTPRoute", "shop", "r", &rules)]), CART, "shop")[0];
        match route.filters[0].settings.clone() {
            Some(FilterSettings::Cors(Some(rules))) => rules,
            other => panic!("{other:?}"),
        }
    };
    let all = cors(
        "allowOrigins: ['*'], allowCredentials: true, allowMethods: ['*'], allowHeaders: [X-A], exposeHeaders: [X-B, X-C], maxAge: 60",
    );
    assert!(all.allows("https://anything.example") && all.allow_credentials);
    assert_eq!(
        [&all.allow_methods, &all.allow_headers, &all.expose_headers, &all.max_age],
        ["*", "X-A", "X-B, X-C", "60"]
    );

    let some =
        cors("allowOrigins: ['https://shop.example:443', 'http://*.shop.example', 'https://local:8443']");
    assert_eq!(some.max_age, "5");
    for (origin, allowed) in [
        ("https://shop.example", true),
        ("http://shop.example", false),
        ("https://shop.example:8443", false),
        ("https://local:8443", true),
        ("https://local", false),
        ("http://a.b.shop.example", true),
        ("http://shop.example.evil", false),
        ("http://evil/a.shop.example", false),
        ("http://ashopxexample", false),
        ("null", false),
    ] {
        assert_eq!(some.allows(origin), allowed, "{origin}");
    }
}

#[test]
fn sessions_go_before_weights() {
    let session = |settings: &str| {
        let rules = format!(
            "[{{sessionPersistence: {{{settings}}}, backendRefs: [{{name: v1, port: 80, weight: 1}}, {{name: v2, port: 80, weight: 0}}, {{name: gone, port: 80, weight: 0}}]}}]"
        );
        let world = with(&[route("HTTPRoute", "shop", "r", &rules)]);
        let made = forward(&routes(&world, CART, "shop")[0]).clone();
        let v1 = world.cluster(&made.backends[0].cluster).expect("made");
        assert_eq!(v1.load_balancer, LoadBalancer::PeakEwma, "a session needs no ring");
        made
    };
    let cookie =
        |name: &str, permanent| SessionCarrier::Cookie { name: name.into(), path: "/".into(), permanent };
    let plain = session("");
    assert_eq!(plain.session, Some(Session { carrier: cookie("tulle-session", false), lifetime: None }));
    let weights: Vec<_> = plain.backends.iter().map(|backend| backend.weight).collect();
    assert_eq!(weights, [1, 0], "what drains keeps its sessions");
    let watched = session("sessionName: who, absoluteTimeout: 1h30m500ms");
    assert_eq!(
        watched.session,
        Some(Session { carrier: cookie("who", false), lifetime: Some(Duration::from_secs(5401)) })
    );
    let permanent = session("sessionName: who, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}");
    assert_eq!(
        permanent.session,
        Some(Session { carrier: cookie("who", true), lifetime: Some(Duration::from_secs(3600)) })
    );
    let header = session("sessionName: X-Who, type: Header").session.expect("given");
    assert_eq!(header.carrier, SessionCarrier::Header(http::HeaderName::from_static("x-who")));
}

#[test]
fn sessions_that_can_not_be_kept_are_reported() {
    for (settings, said) in [
        ("cookieConfig: {lifetimeType: Permanent}", "add absoluteTimeout"),
        ("sessionName: 'a b'", "is not a cookie's name"),
        ("sessionName: 'a b', type: Header", "is not a header's name"),
        ("idleTimeout: 1m", "an idle timeout of sessions is not supported"),
    ] {
        let rules =
            format!("[{{sessionPersistence: {{{settings}}}, backendRefs: [{{name: v1, port: 80}}]}}]");
        let world = with(&[route("HTTPRoute", "shop", "r", &rules)]);
        assert!(
            problems(&world).iter().any(|problem| problem.contains(said)),
            "{settings}: {:?}",
            problems(&world)
        );
        assert_eq!(accepted(&world, "r"), (false, "UnsupportedValue"), "{settings}");
    }
    // Both at once contradict each other (GEP-1619).
    let sticky = service("shop", "cart", "sessionAffinity: ClientIP, ports: [{port: 80}]");
    let rules = "[{sessionPersistence: {}, backendRefs: [{name: v1, port: 80}]}]";
    let v1 = service("shop", "v1", "ports: [{port: 80}]");
    let world = world(&format!("{sticky}{v1}{}", route("HTTPRoute", "shop", "r", rules)));
    assert_eq!(accepted(&world, "r"), (false, "NotAllowedByParent"));
}

#[test]
fn a_policy_s_sessions_hold_with_and_without_routes() {
    let policy = |service: &str| {
        format!(
            "---\napiVersion: tulle.dev/v1alpha1\nkind: BackendTrafficPolicy\nmetadata: {{name: p, namespace: shop}}\n\
            spec: {{targetRefs: [{{kind: Service, name: {service}}}], sessionPersistence: {{sessionName: basket}}}}\n"
        )
    };
    for objects in [vec![policy("cart")], vec![policy("v1"), route("HTTPRoute", "shop", "r", TO_V1)]] {
        let world = clean(&objects);
        let session = forward(&routes(&world, CART, "shop")[0]).session.clone().expect("of the policy");
        assert!(
            matches!(&session.carrier, SessionCarrier::Cookie { name, .. } if name == "basket"),
            "{session:?}"
        );
    }
}

use std::net::{IpAddr, Ipv4Addr};

use http::Method;
use tulle_mesh::authorize::{Authorizer, Facts, Verdict};
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{Authorization, FilterChain, HttpFilter, Protocol};

use super::policies::{CART, chains, policy, with};

/// Whether a peer may do something, as the sidecar's engine decides.
fn allowed(chain: &FilterChain, peer: &str, method: &Method, path: &str) -> bool {
    let peer: Option<SpiffeId> =
        (!peer.is_empty()).then(|| format!("spiffe://mesh.test/ns/{peer}").parse().expect("valid"));
    let headers = http::HeaderMap::new();
    let view = tulle_mesh::route::RequestView::new(method, "cart", path, &headers);
    let facts = |request| Facts {
        peer: peer.as_ref(),
        source_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        connection_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        tls: peer.is_some(),
        remote_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        destination: "127.0.0.1:25001".parse().expect("an address"),
        server_name: None,
        request,
    };
    let passes = |sets: Vec<Authorization>, request| {
        !matches!(Authorizer::compile(sets).check(&facts(request)), Verdict::Denied { .. })
    };
    let on_requests = match &chain.protocol {
        Protocol::Tcp(_) => Vec::new(),
        Protocol::Http(http) => http
            .filters
            .iter()
            .filter_map(|filter| match filter {
                HttpFilter::Authorization(set) => Some(set.clone()),
                _ => None,
            })
            .collect(),
    };
    passes(chain.authorization.clone(), None) && passes(on_requests, Some(&view))
}

#[test]
fn authorization_is_by_identity_port_method_and_path() {
    let allow = |name: &str, rest: &str| {
        policy(
            "AuthorizationPolicy",
            name,
            &format!("targetRefs: [{{kind: Pod, selector: {{matchLabels: {{app: cart}}}}}}], {rest}"),
        )
    };
    let web = "sources: [{type: ServiceAccount, serviceAccount: {name: web}}]";
    let get = "http: {methods: [GET], paths: [{value: /api}]}";
    let policies = [
        ("anyone, without a policy", vec![], "", "POST", "/", true),
        (
            "by account",
            vec![allow("a", &format!("action: ALLOW, rules: [{{{web}}}]"))],
            "shop/sa/web",
            "GET",
            "/",
            true,
        ),
        (
            "another account",
            vec![allow("a", &format!("action: ALLOW, rules: [{{{web}}}]"))],
            "shop/sa/other",
            "GET",
            "/",
            false,
        ),
        (
            "no identity",
            vec![allow("a", &format!("action: ALLOW, rules: [{{{web}}}]"))],
            "",
            "GET",
            "/",
            false,
        ),
        (
            "an account of that name elsewhere",
            vec![allow("a", &format!("action: ALLOW, rules: [{{{web}}}]"))],
            "x/sa/web",
            "GET",
            "/",
            false,
        ),
        (
            "any account of a namespace",
            vec![allow(
                "a",
                "action: ALLOW, rules: [{sources: [{type: ServiceAccount, serviceAccount: {namespace: x, name: '*'}}]}]",
            )],
            "x/sa/web",
            "GET",
            "/",
            true,
        ),
        (
            "a namespace whose name only starts so",
            vec![allow(
                "a",
                "action: ALLOW, rules: [{sources: [{type: ServiceAccount, serviceAccount: {namespace: x, name: '*'}}]}]",
            )],
            "xy/sa/web",
            "GET",
            "/",
            false,
        ),
        (
            "a port of the application",
            vec![allow(
                "a",
                &format!("action: ALLOW, rules: [{{{web}, networkAttributes: {{ports: [8080]}}}}]"),
            )],
            "shop/sa/web",
            "GET",
            "/",
            true,
        ),
        (
            "another port",
            vec![allow(
                "a",
                &format!("action: ALLOW, rules: [{{{web}, networkAttributes: {{ports: [9090]}}}}]"),
            )],
            "shop/sa/web",
            "GET",
            "/",
            false,
        ),
        (
            "a method and path",
            vec![allow(
                "a",
                &format!("action: ALLOW, enforcementLevel: Application, rules: [{{{web}, {get}}}]"),
            )],
            "shop/sa/web",
            "GET",
            "/api/x",
            true,
        ),
        (
            "another method",
            vec![allow(
                "a",
                &format!("action: ALLOW, enforcementLevel: Application, rules: [{{{web}, {get}}}]"),
            )],
            "shop/sa/web",
            "POST",
            "/api/x",
            false,
        ),
        (
            "a path that only starts so",
            vec![allow(
                "a",
                &format!("action: ALLOW, enforcementLevel: Application, rules: [{{{web}, {get}}}]"),
            )],
            "shop/sa/web",
            "GET",
            "/apix",
            false,
        ),
        (
            "allowed by either of two policies, whatever they judge",
            vec![
                allow(
                    "a",
                    &format!("action: ALLOW, enforcementLevel: Application, rules: [{{{web}, {get}}}]"),
                ),
                allow(
                    "b",
                    "action: ALLOW, rules: [{sources: [{type: ServiceAccount, serviceAccount: {name: admin}}]}]",
                ),
            ],
            "shop/sa/web",
            "GET",
            "/api",
            true,
        ),
        (
            "denied although allowed",
            vec![
                allow("a", &format!("action: ALLOW, rules: [{{{web}}}]")),
                allow(
                    "b",
                    "action: DENY, enforcementLevel: Application, rules: [{http: {paths: [{type: Exact, value: /admin}]}}]",
                ),
            ],
            "shop/sa/web",
            "GET",
            "/admin",
            false,
        ),
        ("an ALLOW without rules", vec![allow("a", "action: ALLOW")], "shop/sa/web", "GET", "/", false),
        ("an AUDIT", vec![allow("a", "action: AUDIT, rules: [{}]")], "", "GET", "/", true),
        (
            "a policy for other pods",
            vec![policy(
                "AuthorizationPolicy",
                "a",
                "targetRefs: [{kind: Pod, selector: {matchLabels: {app: stock}}}], action: ALLOW",
            )],
            "",
            "GET",
            "/",
            true,
        ),
        (
            "a policy for the Service",
            vec![policy("AuthorizationPolicy", "a", &format!("{CART}, action: ALLOW"))],
            "",
            "GET",
            "/",
            false,
        ),
        (
            "a policy for all pods",
            vec![policy(
                "AuthorizationPolicy",
                "a",
                "targetRefs: [{kind: Pod, selector: {}}], action: ALLOW",
            )],
            "",
            "GET",
            "/",
            false,
        ),
    ];
    for (what, policies, peer, method, path, expected) in policies {
        let world = with("http", &policies);
        let method = method.parse().expect("a method");
        for chain in chains(&world) {
            assert_eq!(allowed(chain, peer, &method, path), expected, "{what} ({})", chain.name);
        }
    }
}

#[test]
fn what_judges_requests_judges_connections_where_there_are_none() {
    let spec = format!(
        "{CART}, action: ALLOW, enforcementLevel: Application, rules: [{{sources: [{{type: ServiceAccount, serviceAccount: {{name: web}}}}]}}]"
    );
    let world = with("tcp", &[policy("AuthorizationPolicy", "a", &spec)]);
    for chain in chains(&world) {
        assert!(allowed(chain, "shop/sa/web", &Method::GET, "/"));
        assert!(!allowed(chain, "shop/sa/other", &Method::GET, "/"));
    }
}

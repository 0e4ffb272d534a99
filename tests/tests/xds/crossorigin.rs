//! Cross-origin requests: preflight requests, marks on answers, and which of several levels of rules holds.

use serde_json::{Value, json};
use tulle_tests::oracle::{Oracle, all_clusters, merged, route_configuration, typed};

use crate::compare::Tally;
use crate::shares::check;

fn cors(config: Value) -> Value {
    typed("envoy.extensions.filters.http.cors.v3.CorsPolicy", config)
}

fn said(config: Value) -> Value {
    json!({ "envoy.filters.http.cors": cors(config) })
}

/// The filter and the router.
fn filters() -> Value {
    json!({ "http_filters": [
        {
            "name": "envoy.filters.http.cors",
            "typed_config": typed("envoy.extensions.filters.http.cors.v3.Cors", json!({})),
        },
        {
            "name": "envoy.filters.http.router",
            "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
        },
    ] })
}

const ASKED: &str = "access-control-request-method: PUT\r\n";

/// Requests of pages, and of others.
fn requests() -> Vec<(&'static str, String)> {
    let mut requests = vec![("GET", String::new()), ("OPTIONS", String::new()), ("OPTIONS", ASKED.into())];
    for origin in ["http://a.test", "http://b.test", ""] {
        let origin = format!("origin: {origin}\r\n");
        let network = "access-control-request-private-network: true\r\n";
        requests.push(("GET", origin.clone()));
        requests.push(("PUT", origin.clone() + ASKED));
        requests.push(("OPTIONS", origin.clone()));
        requests.push(("OPTIONS", origin.clone() + "access-control-request-method:\r\n"));
        requests.push(("OPTIONS", origin.clone() + ASKED));
        requests.push((
            "OPTIONS",
            origin.clone() + ASKED + "access-control-request-headers: x-a, x-b\r\n" + network,
        ));
        requests.push(("OPTIONS", origin + ASKED + "access-control-request-private-network: false\r\n"));
    }
    requests
}

fn rules() -> Vec<Value> {
    let origins = json!([{ "exact": "http://a.test" }]);
    let with = |more: Value| merged(json!({ "allow_origin_string_match": origins }), more);
    let share = |numerator: u32| json!({ "default_value": { "numerator": numerator } });
    vec![
        json!({}),
        with(json!({})),
        with(json!({ "forward_not_matching_preflights": false })),
        with(json!({ "forward_not_matching_preflights": true, "max_age": "60" })),
        with(
            json!({ "allow_methods": "GET,PUT", "allow_headers": "x-a,  x-b", "expose_headers": "x-c, x-d", "max_age": "soon" }),
        ),
        with(
            json!({ "allow_methods": "*", "allow_headers": "*", "expose_headers": "*", "forward_not_matching_preflights": false }),
        ),
        with(json!({ "allow_methods": "GET, *", "allow_credentials": true })),
        with(json!({ "expose_headers": "*", "allow_credentials": true })),
        with(json!({ "allow_private_network_access": true })),
        with(json!({ "allow_private_network_access": false, "allow_credentials": false })),
        json!({ "allow_origin_string_match": [{ "exact": "*" }] }),
        json!({ "allow_origin_string_match": [{ "safe_regex": { "regex": "http://.*" } }] }),
        with(json!({ "filter_enabled": share(100) })),
        with(json!({ "filter_enabled": share(0) })),
        with(json!({ "filter_enabled": share(0), "shadow_enabled": share(100) })),
    ]
}

/// To a weighted cluster with rules.
fn weighted(settings: Value) -> Value {
    let cluster = json!({ "name": "a", "weight": 1, "typed_per_filter_config": settings });
    json!({ "weighted_clusters": { "clusters": [cluster] } })
}

#[tokio::test]
async fn pages_of_other_origins_hear_what_they_may() {
    let mut oracle = Oracle::start().await;
    oracle.manager(filters()).await;
    let rules = rules();
    let route = |(index, rules): (usize, &Value)| json!({ "match": { "path": format!("/{index}") }, "route": { "cluster": "a" }, "typed_per_filter_config": said(rules.clone()) });
    let of_cluster = |(index, rules): (usize, &Value)| json!({ "match": { "path": format!("/weighted/{index}") }, "route": weighted(said(rules.clone())) });
    let routes: Vec<_> =
        rules.iter().enumerate().map(route).chain(rules.iter().enumerate().map(of_cluster)).collect();
    oracle.routes(&[json!({ "name": "h", "domains": ["h.test"], "routes": routes })]).await;
    let mut tally = Tally::default();
    for (index, rules) in rules.iter().enumerate() {
        for prefix in ["", "weighted/"] {
            for (method, fields) in requests() {
                let request = format!("{method} /{prefix}{index} HTTP/1.1\r\nhost: h.test\r\n{fields}\r\n");
                let outcomes = oracle.both(request.as_bytes(), "ok").await;
                tally.compare(&format!("{rules} {request:?}"), outcomes);
            }
        }
    }
    tally.end(&["caches", "preflights", "exposed headers"]);
}

#[tokio::test]
async fn rules_of_several_levels_hold_field_by_field() {
    let mut oracle = Oracle::start().await;
    oracle.manager(filters()).await;
    let off = || json!({ "envoy.filters.http.cors": typed("envoy.config.route.v3.FilterConfig", json!({ "disabled": true })) });
    let origin = |name: &str| json!([{ "exact": format!("http://{name}.test") }]);
    let route = |path: &str, settings: Value, action: Value| json!({ "match": { "path": path }, "route": action, "typed_per_filter_config": settings });
    let to = || json!({ "cluster": "a" });
    let routes = || {
        vec![
            route("/silent", json!({}), to()),
            route("/methods", said(json!({ "allow_methods": "PUT", "max_age": "7" })), to()),
            route(
                "/origin",
                said(json!({ "allow_origin_string_match": origin("b"), "allow_credentials": false })),
                to(),
            ),
            route("/none", off(), to()),
            route(
                "/disabled",
                said(json!({ "filter_enabled": { "default_value": { "numerator": 0 } } })),
                to(),
            ),
            route(
                "/cluster",
                said(json!({ "max_age": "8" })),
                weighted(said(json!({ "expose_headers": "x-e" }))),
            ),
            route("/off", said(json!({ "max_age": "8" })), weighted(off())),
        ]
    };
    let host = |name: &str, settings: Value| json!({ "name": name, "domains": [name], "routes": routes(), "typed_per_filter_config": settings });
    let all = said(json!({
        "allow_origin_string_match": origin("a"), "allow_methods": "GET", "allow_credentials": true,
        "expose_headers": "x-all", "forward_not_matching_preflights": false,
    }));
    let hosts = [
        host("plain.test", json!({})),
        host(
            "own.test",
            said(json!({ "allow_headers": "x-host", "allow_origin_string_match": origin("b") })),
        ),
        all_clusters(),
    ];
    let mut tally = Tally::default();
    for settings in [json!({}), all] {
        let mut configuration = route_configuration("routes", &hosts);
        configuration["typed_per_filter_config"] = settings.clone();
        oracle.push(vec![configuration]).await;
        for host in ["plain.test", "own.test"] {
            for path in ["silent", "methods", "origin", "none", "disabled", "cluster", "off"] {
                for (method, fields) in requests() {
                    let request = format!("{method} /{path} HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n");
                    let outcomes = oracle.both(request.as_bytes(), "ok").await;
                    tally.compare(&format!("{settings} {request:?}"), outcomes);
                }
            }
        }
    }
    tally.end(&["caches", "preflights"]);
}

#[tokio::test]
async fn a_share_of_requests_has_rules() {
    let mut oracle = Oracle::start().await;
    oracle.manager(filters()).await;
    let rules = said(json!({
        "allow_origin_string_match": [{ "exact": "http://a.test" }],
        "filter_enabled": { "default_value": { "numerator": 30 } },
    }));
    let route =
        json!({ "match": { "prefix": "/" }, "route": { "cluster": "a" }, "typed_per_filter_config": rules });
    oracle.routes(&[json!({ "name": "h", "domains": ["h.test"], "routes": [route] })]).await;
    let request = "GET / HTTP/1.1\r\nhost: h.test\r\norigin: http://a.test\r\n\r\n";
    let mut got = [std::collections::BTreeMap::new(), std::collections::BTreeMap::new()];
    for _ in 0..300 {
        for (outcome, got) in oracle.both(request.as_bytes(), "ok").await.iter().zip(&mut got) {
            let marked =
                outcome.received.headers.iter().any(|(name, _)| name == "access-control-allow-origin");
            *got.entry(marked.to_string()).or_insert(0) += 1;
        }
    }
    for (who, got) in ["envoy", "tulle"].into_iter().zip(&got) {
        check(who, &[("true", 0.3), ("false", 0.7)], got);
    }
}

//! Filters of which parts of the routes say something else: authorization, rate limits and faults by route, by host, by
//! configuration and by weighted cluster.

use serde_json::{Value, json};
use tulle_tests::oracle::{Oracle, all_clusters, merged, route_configuration, typed};

use crate::compare::Tally;

#[tokio::test]
async fn rules_are_those_of_the_nearest_that_says_any() {
    let mut oracle = Oracle::start().await;
    let denied = rbac(Some(json!({ "action": "ALLOW", "policies": {} })));
    let mut chain = vec![filter("auth", denied.clone()), filter("idle", rbac(None))];
    chain.push(json!({ "name": "sleeping", "disabled": true, "typed_config": denied }));
    oracle.manager(chain_of(chain)).await;
    let host = |name: &str, settings: Value, routes: Vec<Value>| json!({ "name": name, "domains": [name], "routes": routes, "typed_per_filter_config": settings });
    let all = || {
        vec![
            route("/plain", json!({}), "a".into()),
            route("/none", json!({ "auth": per_route(None) }), "a".into()),
            route("/off", json!({ "auth": off() }), "a".into()),
            route("/own", json!({ "auth": per_route(Some(deny_header("x-bad"))) }), "a".into()),
            route("/wrapped", json!({ "auth": wrapped(per_route(Some(deny_header("x-bad")))) }), "a".into()),
            route(
                "/both",
                json!({ "auth": off(), "idle": per_route(Some(deny_header("x-bad"))) }),
                "a".into(),
            ),
            route(
                "/awake",
                json!({ "auth": off(), "sleeping": per_route(Some(deny_header("x-bad"))) }),
                "a".into(),
            ),
            route("/stranger", json!({ "auth": off(), "nobody": per_route(None) }), "a".into()),
            route("/cluster", json!({}), weighted(json!({ "auth": off() }))),
            route(
                "/nearest",
                json!({ "auth": off() }),
                weighted(json!({ "auth": per_route(Some(deny_header("x-bad"))) })),
            ),
        ]
    };
    let hosts = [
        host("plain.test", json!({}), all()),
        host("off.test", json!({ "auth": off() }), all()),
        host(
            "own.test",
            json!({ "auth": per_route(Some(deny_header("x-worse"))), "idle": per_route(Some(deny_header("x-bad"))) }),
            all(),
        ),
    ];
    let mut tally = Tally::default();
    for (of_all, settings) in [("", json!({})), ("a rule for all, ", json!({ "auth": off(), "idle": off() }))]
    {
        let hosts = [&hosts[..], &[all_clusters()]].concat();
        let mut routes = route_configuration("routes", &hosts);
        routes["typed_per_filter_config"] = settings;
        oracle.push(vec![routes]).await;
        for host in ["plain.test", "off.test", "own.test"] {
            for path in [
                "plain", "none", "off", "own", "wrapped", "both", "awake", "stranger", "cluster", "nearest",
                "unrouted",
            ] {
                for field in ["", "x-bad: 1\r\n", "x-worse: 1\r\n"] {
                    let request = format!("GET /{path} HTTP/1.1\r\nhost: {host}\r\n{field}\r\n");
                    let outcomes = oracle.both(request.as_bytes(), "ok").await;
                    tally.compare(&format!("{of_all}{request:?}"), outcomes);
                }
            }
        }
    }
    tally.end(&["local replies"]);
}

#[tokio::test]
async fn a_bucket_counts_for_all_that_share_it() {
    let mut oracle = Oracle::start().await;
    let unlimited = limit(json!({ "stat_prefix": "none" }));
    oracle.manager(chain_of(vec![filter("limit", unlimited)])).await;
    let shared = bucket("shared", 3, json!({}));
    let hosts = [
        json!({
            "name": "h", "domains": ["h.test"],
            "typed_per_filter_config": { "limit": shared },
            "routes": [
                route("/one", json!({}), "a".into()),
                route("/two", json!({}), "a".into()),
                route("/own", json!({ "limit": bucket("own", 1, json!({})) }), "a".into()),
                // In the same words, but another bucket.
                route("/again", json!({ "limit": bucket("own", 1, json!({})) }), "a".into()),
                route("/free", json!({ "limit": off() }), "a".into()),
                route("/cluster", json!({}), weighted(json!({ "limit": bucket("cluster", 1, json!({})) }))),
            ],
        }),
        json!({
            "name": "i", "domains": ["i.test"],
            "routes": [
                route("/unlimited", json!({}), "a".into()),
                route("/status", json!({ "limit": bucket("status", 1, json!({ "status": { "code": 503 } })) }), "a".into()),
                route("/odd", json!({ "limit": bucket("odd", 1, json!({ "status": { "code": 200 } })) }), "a".into()),
                route(
                    "/told",
                    json!({ "limit": bucket("told", 1, json!({ "response_headers_to_add": [
                        { "header": { "key": "x-limited", "value": "yes" } },
                        { "header": { "key": "x-limited", "value": "so" } },
                    ] })) }),
                    "a".into(),
                ),
                route(
                    "/exhausted",
                    json!({ "limit": bucket("exhausted", 1, json!({ "rate_limited_as_resource_exhausted": true })) }),
                    "a".into(),
                ),
            ],
        }),
    ];
    oracle.routes(&hosts).await;
    let order = [
        "h/one",
        "h/two",
        "h/own",
        "h/own",
        "h/again",
        "h/again",
        "h/two",
        "h/one",
        "h/two",
        "h/free",
        "h/free",
        "h/cluster",
        "h/cluster",
        "i/unlimited",
        "i/unlimited",
        "i/status",
        "i/status",
        "i/odd",
        "i/odd",
        "i/told",
        "i/told",
        "i/exhausted",
        "i/exhausted",
    ];
    let mut tally = Tally::default();
    for (number, place) in order.into_iter().enumerate() {
        let (host, path) = place.split_once('/').expect("a host and a path");
        // What is let through would go on over HTTP/1.1, which gRPC does not know.
        let grpc = if place == "i/exhausted" && order[number - 1] == place {
            "application/grpc"
        } else {
            "text/plain"
        };
        let head = format!("host: {host}.test\r\ncontent-type: {grpc}\r\ncontent-length: 2\r\n\r\nhi");
        let request = format!("POST /{path} HTTP/1.1\r\n{head}");
        let outcomes = oracle.both(request.as_bytes(), "ok").await;
        tally.compare(&format!("{number}: {place}"), outcomes);
    }
    tally.end(&["local replies", "when to come back"]);
}

#[tokio::test]
async fn faults_are_those_of_the_nearest_that_says_any() {
    let mut oracle = Oracle::start().await;
    let abort = |status: u32| {
        let abort = json!({ "abort": { "http_status": status, "percentage": { "numerator": 100 } } });
        typed("envoy.extensions.filters.http.fault.v3.HTTPFault", abort)
    };
    oracle.manager(chain_of(vec![filter("envoy.filters.http.fault", abort(418))])).await;
    let said = |settings: Value| json!({ "envoy.filters.http.fault": settings });
    let routes = [
        route("/plain", json!({}), "a".into()),
        route("/off", said(off()), "a".into()),
        route("/own", said(abort(500)), "a".into()),
        route("/cluster", json!({}), weighted(said(abort(501)))),
        route("/nearest", said(abort(502)), weighted(said(off()))),
    ];
    oracle.routes(&[json!({ "name": "h", "domains": ["h.test"], "routes": routes })]).await;
    let mut tally = Tally::default();
    for path in ["plain", "off", "own", "cluster", "nearest"] {
        let request = format!("GET /{path} HTTP/1.1\r\nhost: h.test\r\n\r\n");
        tally.compare(&path, oracle.both(request.as_bytes(), "ok").await);
    }
    tally.end(&["local replies"]);
}

/// A connection manager's filters, and the router.
pub(crate) fn chain_of(mut filters: Vec<Value>) -> Value {
    filters.push(filter(
        "envoy.filters.http.router",
        typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
    ));
    json!({ "http_filters": filters })
}

pub(crate) fn filter(name: &str, config: Value) -> Value {
    json!({ "name": name, "typed_config": config })
}

fn route(path: &str, settings: Value, target: Target) -> Value {
    let told = json!([{ "header": { "key": "x-route", "value": "yes" } }]);
    json!({ "match": { "path": path }, "route": target.0, "typed_per_filter_config": settings, "response_headers_to_add": told })
}

/// Where a route leads.
struct Target(Value);

impl From<&str> for Target {
    fn from(cluster: &str) -> Self {
        Self(json!({ "cluster": cluster }))
    }
}

/// To a weighted cluster with settings.
fn weighted(settings: Value) -> Target {
    let cluster = json!({ "name": "a", "weight": 1, "typed_per_filter_config": settings });
    Target(json!({ "weighted_clusters": { "clusters": [cluster] } }))
}

pub(crate) fn rbac(rules: Option<Value>) -> Value {
    let fields = rules.map_or_else(|| json!({}), |rules| json!({ "rules": rules }));
    typed("envoy.extensions.filters.http.rbac.v3.RBAC", fields)
}

pub(crate) fn per_route(rules: Option<Value>) -> Value {
    let fields = rules.map_or_else(|| json!({}), |rules| json!({ "rbac": { "rules": rules } }));
    typed("envoy.extensions.filters.http.rbac.v3.RBACPerRoute", fields)
}

pub(crate) fn deny_header(name: &str) -> Value {
    let permission = json!({ "header": { "name": name, "present_match": true } });
    let policy = json!({ "permissions": [permission], "principals": [{ "any": true }] });
    json!({ "action": "DENY", "policies": { "p": policy } })
}

pub(crate) fn off() -> Value {
    typed("envoy.config.route.v3.FilterConfig", json!({ "disabled": true }))
}

fn wrapped(config: Value) -> Value {
    typed("envoy.config.route.v3.FilterConfig", json!({ "config": config }))
}

pub(crate) fn bucket(name: &str, tokens: u32, more: Value) -> Value {
    let always = json!({ "default_value": { "numerator": 100 } });
    let fields = merged(
        json!({
            "stat_prefix": name,
            "token_bucket": { "max_tokens": tokens, "tokens_per_fill": 1, "fill_interval": "60s" },
            "filter_enabled": always,
            "filter_enforced": always,
        }),
        more,
    );
    limit(fields)
}

fn limit(fields: Value) -> Value {
    typed("envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit", fields)
}

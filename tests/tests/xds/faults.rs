//! What the proxies answer by themselves, to plain clients and to gRPC's; injected faults; what becomes of upgrades.

use std::time::Instant;

use serde_json::{Value, json};
use tulle_tests::oracle::{Oracle, Outcome, cluster, endpoints, route_configuration, typed};

use crate::compare::Tally;

fn fault(config: Value) -> Value {
    typed("envoy.extensions.filters.http.fault.v3.HTTPFault", config)
}

/// The filters for faults and the router: without the former, what a route says of it has no effect in Envoy.
fn filters() -> Value {
    json!({ "http_filters": [
        { "name": "envoy.filters.http.fault", "typed_config": fault(json!({})) },
        {
            "name": "envoy.filters.http.router",
            "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
        },
    ] })
}

#[tokio::test]
async fn faults_meet_whom_envoys_meet() {
    let mut oracle = Oracle::start().await;
    let all = json!({ "numerator": 100 });
    let none = json!({ "numerator": 0 });
    let when = |name: &str, value: &str| json!([{ "name": name, "string_match": { "exact": value } }]);
    let faults = [
        json!({}),
        json!({ "abort": { "http_status": 503, "percentage": all } }),
        json!({ "abort": { "http_status": 418, "percentage": none } }),
        json!({ "abort": { "http_status": 418 } }),
        json!({ "abort": { "http_status": 429, "percentage": { "numerator": 1_000_000, "denominator": "MILLION" } } }),
        json!({ "abort": { "grpc_status": 7, "percentage": all } }),
        json!({ "delay": { "fixed_delay": "0.15s", "percentage": all } }),
        json!({ "delay": { "fixed_delay": "5s", "percentage": none } }),
        json!({
            "delay": { "fixed_delay": "0.15s", "percentage": all },
            "abort": { "http_status": 502, "percentage": all },
        }),
        json!({ "abort": { "http_status": 500, "percentage": all }, "headers": when("x-k", "v") }),
        json!({ "delay": { "fixed_delay": "0.15s", "percentage": all }, "headers": when(":method", "POST") }),
    ];
    let route = |(index, config): (usize, &Value)| {
        json!({
            "match": { "path": format!("/{index}") },
            "route": { "cluster": "a" },
            "typed_per_filter_config": { "envoy.filters.http.fault": fault(config.clone()) },
        })
    };
    let routes: Vec<_> = faults.iter().enumerate().map(route).collect();
    oracle.manager(filters()).await;
    oracle.routes(&[json!({ "name": "h", "domains": ["h.test"], "routes": routes })]).await;
    let mut tally = Tally::default();
    for (index, config) in faults.iter().enumerate() {
        for (method, fields, body) in [
            ("GET", "", ""),
            ("GET", "x-k: v\r\n", ""),
            ("POST", "content-length: 2\r\n", "hi"),
            ("POST", "content-type: application/grpc\r\ncontent-length: 2\r\n", "hi"),
        ] {
            if fields.contains("grpc") && config["abort"].is_null() {
                // It would go on over HTTP/1.1, which gRPC does not know.
                continue;
            }
            let request = format!("{method} /{index} HTTP/1.1\r\nhost: h.test\r\n{fields}\r\n{body}");
            let begun = Instant::now();
            let outcomes = oracle.both(request.as_bytes(), "ok").await;
            let delayed = begun.elapsed().as_millis() >= 300;
            let delay = config["delay"]["percentage"]["numerator"] == 100;
            let delay = delay && (config["headers"].is_null() || method == "POST");
            assert_eq!(delayed, delay, "both are delayed or none: {config} {request:?}");
            tally.compare(&format!("{config} {request:?}"), outcomes);
        }
    }
    tally.end(&["local replies"]);
}

#[tokio::test]
async fn a_share_of_faults_is_the_same_share() {
    const TIMES: u32 = 400;
    let mut oracle = Oracle::start().await;
    let shares = [
        (1, "HUNDRED", 0.01),
        (50, "HUNDRED", 0.5),
        (900_000, "MILLION", 0.9),
        (2_500, "TEN_THOUSAND", 0.25),
    ];
    let route = |(index, (numerator, denominator, _)): (usize, &(u32, &str, f64))| {
        let percentage = json!({ "numerator": numerator, "denominator": denominator });
        let config = fault(json!({ "abort": { "http_status": 503, "percentage": percentage } }));
        json!({
            "match": { "path": format!("/{index}") },
            "route": { "cluster": "a" },
            "typed_per_filter_config": { "envoy.filters.http.fault": config },
        })
    };
    let routes: Vec<_> = shares.iter().enumerate().map(route).collect();
    oracle.manager(filters()).await;
    oracle.routes(&[json!({ "name": "h", "domains": ["h.test"], "routes": routes })]).await;
    for (index, (.., share)) in shares.iter().enumerate() {
        let request = format!("GET /{index} HTTP/1.1\r\nhost: h.test\r\n\r\n");
        let mut failed = [0_u32; 2];
        for _ in 0..TIMES {
            let outcomes = oracle.both(request.as_bytes(), "ok").await;
            for (outcome, failed) in outcomes.iter().zip(&mut failed) {
                *failed += u32::from(outcome.received.status == 503);
            }
        }
        // Five standard deviations: once in a million runs.
        let (mean, off) = (f64::from(TIMES) * share, (f64::from(TIMES) * share * (1.0 - share)).sqrt() * 5.0);
        for (who, failed) in ["envoy", "tulle"].into_iter().zip(failed) {
            assert!((f64::from(failed) - mean).abs() <= off, "{who}: {failed} of {TIMES} failed, of {share}");
        }
    }
}

/// What a gRPC client is told.
fn grpc_status(outcome: &Outcome) -> (u16, String) {
    let headers = &outcome.received.headers;
    let found = headers.iter().find(|(name, _)| name == "grpc-status");
    (outcome.received.status, found.map_or_else(String::new, |(_, value)| value.clone()))
}

#[tokio::test]
async fn answers_to_grpc_have_the_same_status() {
    let mut oracle = Oracle::start().await;
    let nobody = endpoints("empty", &[]);
    let gone = endpoints("gone", &["127.0.0.1:1".parse().expect("an address")]);
    let resources = vec![cluster("empty", json!({})), nobody, cluster("gone", json!({})), gone];
    let answers = [200, 301, 400, 401, 403, 404, 408, 418, 429, 500, 501, 502, 503, 504];
    let mut routes: Vec<_> = answers
        .iter()
        .map(|status| json!({ "match": { "path": format!("/{status}") }, "direct_response": { "status": status } }))
        .collect();
    for cluster in ["empty", "gone"] {
        routes.push(json!({ "match": { "path": format!("/{cluster}") }, "route": { "cluster": cluster } }));
    }
    for code in ["NOT_FOUND", "SERVICE_UNAVAILABLE", "INTERNAL_SERVER_ERROR"] {
        routes.push(json!({
            "match": { "path": format!("/{code}") },
            "route": { "cluster": "unknown", "cluster_not_found_response_code": code },
        }));
    }
    let hosts = [json!({ "name": "h", "domains": ["h.test"], "routes": routes })];
    oracle.push([resources, vec![route_configuration("routes", &hosts)]].concat()).await;
    let paths = answers.iter().map(ToString::to_string).chain(
        ["empty", "gone", "NOT_FOUND", "SERVICE_UNAVAILABLE", "INTERNAL_SERVER_ERROR", "no-route"]
            .map(Into::into),
    );
    for path in paths {
        for kind in ["application/grpc", "application/grpc+proto", "application/grpc-web", "application/json"]
        {
            let request = format!(
                "POST /{path} HTTP/1.1\r\nhost: h.test\r\ncontent-type: {kind}\r\nte: trailers\r\ncontent-length: 2\r\n\r\nhi"
            );
            let outcomes = oracle.both(request.as_bytes(), "ok").await;
            let [envoy, tulle] = outcomes.each_ref().map(grpc_status);
            assert_eq!(envoy, tulle, "{request:?}\n{}{}", outcomes[0], outcomes[1]);
        }
    }
}

#[tokio::test]
async fn upgrades_are_carried_or_refused_alike() {
    let mut oracle = Oracle::start().await;
    let action = json!({ "cluster": "a", "timeout": "2s" });
    let host = json!({ "name": "h", "domains": ["h.test"], "routes": [
        { "match": { "path": "/redirect" }, "redirect": { "path_redirect": "/x" } },
        { "match": { "path": "/said" }, "direct_response": { "status": 418 } },
        { "match": { "prefix": "/" }, "route": action },
    ] });
    oracle.routes(&[host]).await;
    let socket = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                  sec-websocket-version: 13\r\n";
    let mut tally = Tally::default();
    for (path, fields, script) in [
        ("/", socket, "101"),
        ("/", "connection: upgrade\r\nupgrade: WebSocket\r\n", "101"),
        ("/", "connection: keep-alive, Upgrade\r\nupgrade: websocket\r\n", "101"),
        ("/", socket, "ok"),
        ("/", socket, "403"),
        ("/", socket, "503"),
        ("/", socket, "fin"),
        ("/", socket, "rst"),
        ("/", socket, "garbage"),
        ("/", "upgrade: websocket\r\n", "ok"),
        ("/", "connection: upgrade\r\n", "ok"),
        ("/redirect", socket, "ok"),
        ("/said", socket, "ok"),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: h.test\r\n{fields}\r\n");
        let outcomes = oracle.both(request.as_bytes(), script).await;
        tally.compare(&format!("{script}: {request:?}"), outcomes);
    }
    tally.end(&["refused upgrades", "connection options"]);
}

#[tokio::test]
async fn a_stream_that_lasts_too_long_is_given_up() {
    let mut oracle = Oracle::start().await;
    let longest = |limit: &str| json!({ "max_stream_duration": limit });
    let action = |limit: Value| {
        let mut action = json!({ "cluster": "a", "timeout": "0s" });
        if !limit.is_null() {
            action["max_stream_duration"] = limit;
        }
        action
    };
    let host = json!({ "name": "h", "domains": ["h.test"], "routes": [
        { "match": { "path": "/route" }, "route": action(longest("0.2s")) },
        { "match": { "path": "/zero" }, "route": action(longest("0s")) },
        { "match": { "prefix": "/" }, "route": action(Value::Null) },
    ] });
    oracle.routes(&[host]).await;
    oracle.manager(json!({ "common_http_protocol_options": { "max_stream_duration": "0.3s" } })).await;
    let mut tally = Tally::default();
    for (path, script) in
        [("route", "hang"), ("route", "ok"), ("zero", "slow"), ("manager", "hang"), ("manager", "ok")]
    {
        let request = format!("POST /{path} HTTP/1.1\r\nhost: h.test\r\ncontent-length: 2\r\n\r\nhi");
        let outcomes = oracle.both(request.as_bytes(), script).await;
        tally.compare(&format!("{script}: {request:?}"), outcomes);
    }
    tally.end(&["local replies"]);
}

#[tokio::test]
async fn header_names_with_underscores_pass_or_go_or_are_refused() {
    let mut oracle = Oracle::start().await;
    let host = json!({ "name": "h", "domains": ["h.test"], "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "a" } }] });
    oracle.routes(&[host]).await;
    let mut tally = Tally::default();
    for action in ["ALLOW", "REJECT_REQUEST", "DROP_HEADER"] {
        oracle
            .manager(json!({ "common_http_protocol_options": { "headers_with_underscores_action": action } }))
            .await;
        for fields in ["", "x_a: 1\r\n", "x-a: 1\r\nx_a: 2\r\nx_b: 3\r\n"] {
            let request = format!("GET / HTTP/1.1\r\nhost: h.test\r\n{fields}\r\n");
            let outcomes = oracle.both(request.as_bytes(), "ok").await;
            tally.compare(&format!("{action} {request:?}"), outcomes);
        }
    }
    tally.end(&["local replies"]);
}

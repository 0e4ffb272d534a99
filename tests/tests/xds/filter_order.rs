//! In which order requests pass their listener's filters, and what becomes of what routes say of filters that a listener lacks.

use serde_json::{Value, json};
use tulle_tests::oracle::{Oracle, all_clusters, route_configuration, typed};

use crate::compare::Tally;
use crate::per_route::{bucket, chain_of, deny_header, filter, off, per_route, rbac};
use crate::rates::compare;

const CORS: &str = "envoy.filters.http.cors";
const FAULT: &str = "envoy.filters.http.fault";
const SESSION: &str = "envoy.filters.http.stateful_session";

#[tokio::test]
async fn requests_pass_filters_in_the_order_of_the_listener() {
    let mut oracle = Oracle::start().await;
    let routes = [
        json!({ "match": { "path": "/" }, "route": { "cluster": "a" }, "typed_per_filter_config": { CORS: rules() } }),
        json!({ "match": { "path": "/redirect" }, "redirect": { "host_redirect": "other.test" }, "typed_per_filter_config": { CORS: rules() } }),
        json!({ "match": { "path": "/direct" }, "direct_response": { "status": 203 }, "typed_per_filter_config": { CORS: rules() } }),
        json!({ "match": { "path": "/elsewhere" }, "route": { "cluster": "nobody" }, "typed_per_filter_config": { CORS: rules() } }),
    ];
    oracle.routes(&[json!({ "name": "h", "domains": ["h.test"], "routes": routes })]).await;
    let mut tally = Tally::default();
    let mut number = 0;
    for order in permutations(4) {
        number += 1;
        // Of another name each time, so that no limit goes on counting.
        let tell = json!({ "enable_x_ratelimit_headers": "DRAFT_VERSION_03" });
        let filters = [
            filter("auth", rbac(Some(deny_header("x-deny")))),
            filter("limit", bucket(&format!("limit{number}"), 14, tell)),
            filter(CORS, typed("envoy.extensions.filters.http.cors.v3.Cors", json!({}))),
            filter(FAULT, abort(418)),
        ];
        let names = ["rbac", "limit", "cors", "fault"];
        let named: Vec<_> = order.iter().map(|at| names[*at]).collect();
        oracle.manager(chain_of(order.iter().map(|at| filters[*at].clone()).collect())).await;
        for (path, method, fields) in requests() {
            let request = format!("{method} {path} HTTP/1.1\r\nhost: h.test\r\n{fields}\r\n");
            let outcomes = oracle.both(request.as_bytes(), "ok").await;
            compare(&mut tally, &format!("{}: {request:?}", named.join(", ")), outcomes);
        }
    }
    tally.end(&["local replies", "when to come back"]);
}

/// The last ones find the bucket empty, or not, by what the others have taken from it.
fn requests() -> Vec<(&'static str, &'static str, String)> {
    let origin = "origin: http://a.test\r\n";
    let preflight = format!("{origin}access-control-request-method: PUT\r\n");
    let mut requests = Vec::new();
    for marks in ["", "x-deny: 1\r\n", "x-fault: 1\r\n", "x-deny: 1\r\nx-fault: 1\r\n"] {
        requests.push(("/", "GET", format!("{origin}{marks}")));
        requests.push(("/", "OPTIONS", format!("{preflight}{marks}")));
        requests.push(("/nowhere", "GET", format!("{origin}{marks}")));
    }
    for path in ["/redirect", "/direct", "/elsewhere"] {
        requests.push((path, "GET", origin.into()));
        requests.push((path, "OPTIONS", preflight.clone()));
        requests.push((path, "GET", format!("{origin}x-fault: 1\r\n")));
    }
    for _ in 0..6 {
        requests.push(("/", "GET", origin.into()));
        requests.push(("/", "GET", format!("{origin}x-fault: 1\r\n")));
        requests.push(("/", "GET", format!("{origin}x-deny: 1\r\n")));
        requests.push(("/", "OPTIONS", preflight.clone()));
    }
    requests
}

#[tokio::test]
async fn routes_speak_of_filters_that_their_listener_has() {
    let mut oracle = Oracle::start().await;
    let route = |path: &str, settings: Value| json!({ "match": { "path": path }, "route": { "cluster": "a" }, "typed_per_filter_config": settings });
    let weighted = |path: &str, settings: Value| {
        let cluster = json!({ "name": "a", "weight": 1, "typed_per_filter_config": settings });
        json!({ "match": { "path": path }, "route": { "weighted_clusters": { "clusters": [cluster] } } })
    };
    let routes = [
        route("/fault", json!({ FAULT: abort(501) })),
        route("/other", json!({ "other": abort(502) })),
        route("/both", json!({ FAULT: abort(501), "other": abort(502) })),
        route("/cors", json!({ CORS: rules() })),
        route("/other-cors", json!({ "other-cors": rules() })),
        route("/off", json!({ FAULT: off(), "other": off(), CORS: off() })),
        // What bears the name of one kind of filter and is for another.
        route("/mistaken", json!({ FAULT: per_route(Some(deny_header("origin"))), "auth": abort(503) })),
        weighted("/cluster", json!({ FAULT: abort(501), CORS: rules() })),
        weighted("/other-cluster", json!({ "other": abort(502), "other-cors": rules() })),
    ];
    let paths: Vec<String> = routes
        .iter()
        .map(|route| route["match"]["path"].as_str().expect("it is one").to_owned())
        .chain(["/nowhere".into()])
        .collect();
    let plain = json!({ "name": "h", "domains": ["h.test"], "routes": routes });
    let mut said = plain.clone();
    said["name"] = "i".into();
    said["domains"] = json!(["i.test"]);
    said["typed_per_filter_config"] = json!({ FAULT: abort(500), CORS: rules() });
    let mut silent = said.clone();
    silent["name"] = "j".into();
    silent["domains"] = json!(["j.test"]);
    silent["typed_per_filter_config"] = json!({ FAULT: off(), CORS: off() });
    oracle.push(vec![route_configuration("routes", &[plain, said, silent, all_clusters()])]).await;
    let inert = || typed("envoy.extensions.filters.http.fault.v3.HTTPFault", json!({}));
    let cors = || typed("envoy.extensions.filters.http.cors.v3.Cors", json!({}));
    let disabled =
        |name: &str, config: Value| json!({ "name": name, "disabled": true, "typed_config": config });
    let auth = || filter("auth", rbac(Some(deny_header("x-deny"))));
    let mut tally = Tally::default();
    for (listener, filters) in [
        ("both, inert", vec![filter(CORS, cors()), filter(FAULT, inert())]),
        ("a fault", vec![auth(), filter(FAULT, abort(418))]),
        ("a fault that is off", vec![auth(), disabled(FAULT, abort(418))]),
        ("rules that are off", vec![disabled(CORS, cors()), filter(FAULT, inert())]),
        ("other names", vec![filter("other", inert()), filter("other-cors", cors())]),
        ("another name for the fault", vec![filter(CORS, cors()), filter("other", abort(418))]),
        ("none", vec![]),
    ] {
        oracle.manager(chain_of(filters)).await;
        for host in ["h.test", "i.test", "j.test"] {
            for path in &paths {
                for fields in
                    ["", "origin: http://a.test\r\nx-fault: 1\r\n", "origin: http://a.test\r\nx-deny: 1\r\n"]
                {
                    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n");
                    let outcomes = oracle.both(request.as_bytes(), "ok").await;
                    tally.compare(&format!("{listener}: {request:?}"), outcomes);
                }
            }
        }
    }
    tally.end(&["local replies"]);
}

#[tokio::test]
async fn sessions_are_kept_where_the_listener_has_the_filter() {
    let mut oracle = Oracle::start().await;
    let session = |name: &str| {
        let cookie = json!({ "cookie": { "name": name, "path": "/", "ttl": "120s" } });
        let state = "envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState";
        let state =
            json!({ "name": "envoy.http.stateful_session.cookie", "typed_config": typed(state, cookie) });
        let settings = json!({ "stateful_session": { "session_state": state } });
        typed("envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute", settings)
    };
    let route = |path: &str, settings: Value| json!({ "match": { "path": path }, "route": { "cluster": "a" }, "typed_per_filter_config": settings });
    let routes = [
        route("/session", json!({ SESSION: session("kept") })),
        route("/off", json!({ SESSION: off() })),
        route("/plain", json!({})),
    ];
    let plain = json!({ "name": "h", "domains": ["h.test"], "routes": routes });
    let mut said = plain.clone();
    said["name"] = "i".into();
    said["domains"] = json!(["i.test"]);
    said["typed_per_filter_config"] = json!({ SESSION: session("of-host") });
    oracle.push(vec![route_configuration("routes", &[plain, said, all_clusters()])]).await;
    let empty = || typed("envoy.extensions.filters.http.stateful_session.v3.StatefulSession", json!({}));
    let mut given = 0;
    for (listener, filters) in [
        ("the filter", vec![filter(SESSION, empty())]),
        ("the filter, off", vec![json!({ "name": SESSION, "disabled": true, "typed_config": empty() })]),
        ("none", vec![]),
    ] {
        oracle.manager(chain_of(filters)).await;
        for host in ["h.test", "i.test"] {
            for path in ["/session", "/off", "/plain"] {
                let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
                let outcomes = oracle.both(request.as_bytes(), "ok").await;
                // The endpoint's address in it is written as each likes.
                let [envoy, tulle] = outcomes.map(|outcome| {
                    assert_eq!(outcome.received.status, 200, "{listener}: {request:?}");
                    let mut headers = outcome.received.headers.into_iter();
                    let cookie = headers.find(|(name, _)| name == "set-cookie").map(|(_, value)| value);
                    let named = cookie.as_deref().and_then(|cookie| cookie.split_once('='));
                    named.map(|(name, _)| name.to_owned()).unwrap_or_default()
                });
                assert_eq!(envoy, tulle, "{listener}: {request:?}");
                given += usize::from(!envoy.is_empty());
            }
        }
    }
    assert!(given > 4, "{given} sessions began");
}

/// Which pages may read answers, and send preflight requests.
fn rules() -> Value {
    let rules =
        json!({ "allow_origin_string_match": [{ "exact": "http://a.test" }], "allow_methods": "PUT" });
    typed("envoy.extensions.filters.http.cors.v3.CorsPolicy", rules)
}

/// Answers requests that ask for it.
fn abort(status: u32) -> Value {
    let abort = json!({
        "abort": { "http_status": status, "percentage": { "numerator": 100 } },
        "headers": [{ "name": "x-fault", "present_match": true }],
    });
    typed("envoy.extensions.filters.http.fault.v3.HTTPFault", abort)
}

/// All orders of `count` things.
fn permutations(count: usize) -> Vec<Vec<usize>> {
    let mut orders = vec![Vec::new()];
    for _ in 0..count {
        let longer = orders.into_iter().flat_map(|order: Vec<usize>| {
            let rest: Vec<_> = (0..count).filter(|at| !order.contains(at)).collect();
            rest.into_iter().map(move |at| [&order[..], &[at]].concat())
        });
        orders = longer.collect();
    }
    orders
}

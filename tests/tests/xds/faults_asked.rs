//! Injected faults beyond the fixed ones: those that a request asks for, those of some clusters and nodes, answers that are slowed
//! down, and how many there may be at once.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tulle_tests::oracle::{Oracle, typed};

use crate::compare::Tally;
use crate::upgrades::extended_connect;

fn fault(config: &Value) -> Value {
    typed("envoy.extensions.filters.http.fault.v3.HTTPFault", config.clone())
}

/// The filter for faults, and the router.
fn filters(config: &Value) -> Value {
    json!({ "http_filters": [
        { "name": "envoy.filters.http.fault", "typed_config": fault(config) },
        {
            "name": "envoy.filters.http.router",
            "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
        },
    ] })
}

/// A host with a route for each fault, to a cluster or as said.
fn host(faults: &[Value], action: &Value) -> Value {
    let route = |(index, config): (usize, &Value)| {
        json!({
            "match": { "path": format!("/{index}") },
            "route": action,
            "response_headers_to_add": [{ "header": { "key": "x-route", "value": "%RESPONSE_CODE_DETAILS%" } }],
            "typed_per_filter_config": { "envoy.filters.http.fault": fault(config) },
        })
    };
    let routes: Vec<_> = faults.iter().enumerate().map(route).collect();
    json!({ "name": "h", "domains": ["h.test"], "routes": routes })
}

#[tokio::test]
async fn a_request_gets_the_faults_that_it_asks_for() {
    let mut oracle = Oracle::start().await;
    let abort = |percentage: Value| json!({ "abort": { "header_abort": {}, "percentage": percentage } });
    let delay = |percentage: Value| json!({ "delay": { "header_delay": {}, "percentage": percentage } });
    let faults = [
        abort(json!({ "numerator": 100 })),
        abort(json!({ "numerator": 0 })),
        json!({ "abort": { "header_abort": {} } }),
        abort(json!({ "numerator": 1_000_000, "denominator": "MILLION" })),
        delay(json!({ "numerator": 100 })),
        delay(json!({ "numerator": 0 })),
        json!({
            "abort": { "header_abort": {}, "percentage": { "numerator": 100 } },
            "delay": { "header_delay": {}, "percentage": { "numerator": 100 } },
            "headers": [{ "name": "x-k", "string_match": { "exact": "v" } }],
        }),
    ];
    oracle.manager(filters(&json!({}))).await;
    oracle.routes(&[host(&faults, &json!({ "cluster": "a" }))]).await;
    let asked = |name: &str, value: &str| format!("x-envoy-fault-{name}: {value}\r\n");
    let mut requests = vec![String::new()];
    for status in ["503", " 418 ", "+429", "200", "199", "600", "-1", "x", "", "5.0", "99999999999999999999"]
    {
        requests.push(asked("abort-request", status));
    }
    for status in ["5", "0", "99", "x"] {
        requests.push(asked("abort-grpc-request", status));
        requests.push(asked("abort-grpc-request", status) + "content-type: application/grpc\r\n");
        requests.push(asked("abort-grpc-request", status) + &asked("abort-request", "503"));
    }
    requests.push(asked("abort-request", "503") + "content-type: application/grpc\r\n");
    for share in ["0", "100", "200", "x", "-1"] {
        requests.push(asked("abort-request", "503") + &asked("abort-request-percentage", share));
        requests.push(asked("delay-request", "150") + &asked("delay-request-percentage", share));
    }
    for delay in ["150", "0", "x", "-150"] {
        requests.push(asked("delay-request", delay));
    }
    let both = asked("delay-request", "150") + &asked("abort-request", "503");
    requests.push(both.clone());
    requests.push(both + "x-k: v\r\n");
    let mut tally = Tally::default();
    for (index, config) in faults.iter().enumerate() {
        for fields in &requests {
            let request =
                format!("POST /{index} HTTP/1.1\r\nhost: h.test\r\n{fields}content-length: 2\r\n\r\nhi");
            let begun = Instant::now();
            let envoy = oracle.one_of(true, request.as_bytes(), "ok").await;
            let theirs = begun.elapsed() >= Duration::from_millis(150);
            let begun = Instant::now();
            let tulle = oracle.one_of(false, request.as_bytes(), "ok").await;
            let ours = begun.elapsed() >= Duration::from_millis(150);
            let case = format!("{config} {request:?}");
            // On a busy machine one may take as long without.
            assert!(ours || !theirs || !fields.contains("delay"), "{case}: only Envoy waits");
            tally.compare(&case, [envoy, tulle]);
        }
    }
    tally.end(&["local replies"]);
}

#[tokio::test]
async fn a_fault_is_for_the_clusters_and_nodes_that_it_names() {
    let mut oracle = Oracle::start().await;
    let with = |field: &str, value: Value| {
        let mut fault = json!({ "abort": { "http_status": 418, "percentage": { "numerator": 100 } } });
        fault[field] = value;
        fault
    };
    let faults = [
        with("upstream_cluster", json!("a")),
        with("upstream_cluster", json!("b")),
        with("downstream_nodes", json!(["n", "m"])),
        with("downstream_nodes", json!(["o"])),
        json!({}),
    ];
    let weighted = |weights: [u32; 2]| {
        let cluster = |(name, weight)| json!({ "name": name, "weight": weight });
        let clusters: Vec<_> = ["a", "b"].into_iter().zip(weights).map(cluster).collect();
        json!({ "weighted_clusters": { "clusters": clusters } })
    };
    let actions =
        [json!({ "cluster": "a" }), weighted([1, 0]), weighted([0, 1]), json!({ "cluster": "unknown" })];
    let mut tally = Tally::default();
    // Of the listener, where no route says anything.
    for of_all in [json!({}), faults[0].clone(), faults[1].clone(), faults[2].clone()] {
        oracle.manager(filters(&of_all)).await;
        for action in &actions {
            let mut host = host(&faults, action);
            let routes = host["routes"].as_array_mut().expect("it is one");
            routes.push(json!({ "match": { "path": "/silent" }, "route": action }));
            routes.push(json!({ "match": { "path": "/said" }, "direct_response": { "status": 202 } }));
            routes.push(json!({ "match": { "path": "/away" }, "redirect": { "path_redirect": "/x" } }));
            oracle.routes(&[host]).await;
            for path in ["0", "1", "2", "3", "4", "silent", "said", "away", "nowhere"] {
                for node in ["", "x-envoy-downstream-service-node: m\r\n"] {
                    let request = format!("GET /{path} HTTP/1.1\r\nhost: h.test\r\n{node}\r\n");
                    let outcomes = oracle.both(request.as_bytes(), "ok").await;
                    tally.compare(&format!("{of_all} {action} {request:?}"), outcomes);
                }
            }
        }
    }
    tally.end(&["local replies"]);
}

#[tokio::test]
async fn answers_come_as_slowly_as_they_are_to() {
    let mut oracle = Oracle::start().await;
    let all = json!({ "numerator": 100 });
    let fixed = |kib: u32, percentage: &Value| json!({ "response_rate_limit": { "fixed_limit": { "limit_kbps": kib }, "percentage": percentage } });
    let asked = json!({ "response_rate_limit": { "header_limit": {}, "percentage": all } });
    // A body of 80 KiB: at one KiB a second it would take longer than a test may.
    let faults = [fixed(160, &all), fixed(1, &json!({ "numerator": 0 })), asked, fixed(100_000, &all)];
    oracle.manager(filters(&json!({}))).await;
    oracle.routes(&[host(&faults, &json!({ "cluster": "a" }))]).await;
    let mut tally = Tally::default();
    for (path, field, slow) in [
        (0, "", true),
        (1, "", false),
        (2, "", false),
        (2, "x-envoy-fault-throughput-response: 160\r\n", true),
        (2, "x-envoy-fault-throughput-response: 0\r\n", false),
        (2, "x-envoy-fault-throughput-response: fast\r\n", false),
        (
            2,
            "x-envoy-fault-throughput-response: 1\r\nx-envoy-fault-throughput-response-percentage: 0\r\n",
            false,
        ),
        (3, "", false),
    ] {
        for script in ["long", "long-chunked"] {
            let request = format!("GET /{path} HTTP/1.1\r\nhost: h.test\r\n{field}\r\n");
            let case = format!("{script} {request:?}");
            let (oracle, request) = (&oracle, &request);
            let timed = |envoy: bool| async move {
                let begun = Instant::now();
                (oracle.one_of(envoy, request.as_bytes(), script).await, begun.elapsed())
            };
            let [(envoy, theirs), (tulle, ours)] = [timed(true).await, timed(false).await];
            let least = if slow { Duration::from_millis(350) } else { Duration::ZERO };
            assert!(theirs >= least && ours >= least, "{case}: {theirs:?}, {ours:?}");
            tally.compare(&case, [envoy, tulle]);
        }
    }
    tally.end(&[]);
}

/// A WebSocket is an answer, too.
#[tokio::test]
async fn what_has_switched_comes_as_slowly() {
    let mut oracle = Oracle::start().await;
    let limit = json!({ "fixed_limit": { "limit_kbps": 160 }, "percentage": { "numerator": 100 } });
    let faults = [json!({ "response_rate_limit": limit })];
    let mut settings = filters(&json!({}));
    settings["upgrade_configs"] = json!([{ "upgrade_type": "websocket" }]);
    settings["http2_protocol_options"] = json!({ "allow_connect": true });
    oracle.manager(settings).await;
    oracle.routes(&[host(&faults, &json!({ "cluster": "a" }))]).await;
    let request = extended_connect("http://h.test/0", Bytes::from(vec![b'x'; 80 << 10]));
    let (oracle, request) = (&oracle, &request);
    let timed = |envoy: bool| async move {
        let begun = Instant::now();
        (oracle.one_over_http2(envoy, request, "101").await, begun.elapsed())
    };
    let [(envoy, theirs), (tulle, ours)] = [timed(true).await, timed(false).await];
    let least = Duration::from_millis(350);
    assert!(theirs >= least && ours >= least, "{theirs:?}, {ours:?}");
    let mut tally = Tally::default();
    tally.compare(&"a WebSocket", [envoy, tulle]);
    tally.end(&["keys of WebSockets"]);
}

#[tokio::test]
async fn no_more_requests_suffer_than_may() {
    let mut oracle = Oracle::start().await;
    let limited = |most: u32| {
        json!({
            "delay": { "fixed_delay": "2s", "percentage": { "numerator": 100 } },
            "abort": { "http_status": 503, "percentage": { "numerator": 100 } },
            "max_active_faults": most,
        })
    };
    oracle.manager(filters(&json!({}))).await;
    oracle.routes(&[host(&[limited(0), limited(1), limited(3)], &json!({ "cluster": "a" }))]).await;
    let mut tally = Tally::default();
    for (path, failing) in [(0, 0), (1, 1), (2, 3)] {
        let request = format!("GET /{path} HTTP/1.1\r\nhost: h.test\r\n\r\n");
        let [envoys, tulles] = oracle.both_at_once((0, 4), request.as_bytes(), "ok").await;
        let failed = tulles.iter().filter(|outcome| outcome.received.status == 503).count();
        assert_eq!(failed, failing, "of {path}");
        for (envoy, tulle) in envoys.into_iter().zip(tulles) {
            tally.compare(&path, [envoy, tulle]);
        }
    }
    tally.end(&["local replies"]);
}

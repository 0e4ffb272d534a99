//! Retries that a policy narrows or widens by headers, pauses that an answer asks for, and new hosts by header and by backend.

use serde_json::{Value, json};
use tulle_tests::oracle::Oracle;

use crate::compare::Tally;

fn hosts(routes: Vec<Value>) -> Vec<Value> {
    vec![json!({ "name": "h", "domains": ["h.test"], "routes": routes })]
}

#[tokio::test]
async fn headers_decide_what_is_tried_again() {
    let present = |name: &str| json!([{ "name": name, "present_match": true }]);
    let exact = |name: &str, value: &str| json!([{ "name": name, "string_match": { "exact": value } }]);
    let policies = [
        json!({ "retry_on": "retriable-headers", "retriable_headers": present("x-again") }),
        json!({ "retry_on": "retriable-headers", "retriable_headers": exact("x-again", "yes") }),
        json!({ "retry_on": "retriable-headers" }),
        json!({ "retry_on": "5xx", "retriable_headers": present("x-again") }),
        json!({ "retry_on": "5xx,retriable-headers", "retriable_headers": exact("x-again", "yes") }),
        json!({ "retry_on": "5xx", "retriable_request_headers": present("x-mine") }),
        json!({ "retry_on": "5xx", "retriable_request_headers": exact("x-mine", "yes") }),
        json!({ "retry_on": "5xx", "retriable_request_headers": [present("x-other")[0], exact("x-mine", "yes")[0]] }),
        json!({ "retry_on": "5xx", "retriable_request_headers": exact(":method", "POST") }),
    ];
    let mut oracle = Oracle::start().await;
    let routes = policies.iter().enumerate().map(|(index, policy)| {
        let mut policy = policy.clone();
        policy["num_retries"] = json!(2);
        policy["retry_back_off"] = json!({ "base_interval": "0.001s" });
        let action = json!({ "cluster": "a", "retry_policy": policy });
        json!({ "match": { "path": format!("/{index}") }, "route": action })
    });
    oracle.routes(&hosts(routes.collect())).await;
    let mut tally = Tally::default();
    for (index, policy) in policies.iter().enumerate() {
        for script in ["200+x-again+yes,ok", "200+x-again+no,ok", "503+x-again+yes,503,ok", "503,503,503,ok"]
        {
            for field in ["", "x-mine: yes\r\n", "x-mine: no\r\n"] {
                let head = format!("host: h.test\r\n{field}content-length: 2\r\n\r\nhi");
                let request = format!("POST /{index} HTTP/1.1\r\n{head}");
                let outcomes = oracle.both(request.as_bytes(), script).await;
                tally.compare(&format!("{policy} {script} {field:?}"), outcomes);
            }
        }
    }
    tally.end(&["count of attempts"]);
}

#[tokio::test]
async fn an_answer_says_for_how_long_to_pause() {
    let limited = |header: &str, format: &str, max: &str| {
        json!({
            "reset_headers": [{ "name": "x-first", "format": format }, { "name": header, "format": format }],
            "max_interval": max,
        })
    };
    // Which header, in which form, for how long at most, and whether the answer's pause of three seconds is taken.
    let cases = [
        (limited("x-reset", "SECONDS", "5s"), "503+x-reset+3,ok", true),
        (limited("x-reset", "SECONDS", "0.5s"), "503+x-reset+3,ok", false),
        (limited("x-reset", "SECONDS", "5s"), "503+x-reset+soon,ok", false),
        (limited("x-reset", "SECONDS", "5s"), "503+retry-after+3,ok", false),
        (limited("x-reset", "UNIX_TIMESTAMP", "5s"), "503+x-reset+3,ok", false),
        (limited("x-reset", "SECONDS", "5s"), "503+x-first+3,ok", true),
    ];
    let mut oracle = Oracle::start().await;
    let routes = cases.iter().enumerate().map(|(index, (limited, ..))| {
        let policy = json!({
            "retry_on": "5xx",
            "retry_back_off": { "base_interval": "0.001s" },
            "rate_limited_retry_back_off": limited,
        });
        let action = json!({ "cluster": "a", "retry_policy": policy });
        json!({ "match": { "path": format!("/{index}") }, "route": action })
    });
    oracle.routes(&hosts(routes.collect())).await;
    let mut tally = Tally::default();
    for (index, (limited, script, waits)) in cases.iter().enumerate() {
        let request = format!("POST /{index} HTTP/1.1\r\nhost: h.test\r\ncontent-length: 2\r\n\r\nhi");
        for is_envoy in [true, false] {
            let begun = std::time::Instant::now();
            let outcomes = oracle.one_of(is_envoy, request.as_bytes(), script).await;
            let waited = begun.elapsed() >= std::time::Duration::from_secs(3);
            assert_eq!(waited, *waits, "{limited} {script}, Envoy: {is_envoy}");
            assert_eq!((outcomes.received.status, outcomes.upstream.len()), (200, 2), "{outcomes}");
        }
        tally.compare(&script, oracle.both(request.as_bytes(), script).await);
    }
    tally.end(&["count of attempts"]);
}

#[tokio::test]
async fn the_host_comes_from_a_header_or_from_a_backend() {
    let weighted = |host: &str| {
        let cluster = json!({ "name": "a", "weight": 1, "host_rewrite_literal": host });
        json!({ "clusters": [cluster] })
    };
    let actions = [
        json!({ "cluster": "a", "host_rewrite_header": "x-host" }),
        json!({ "cluster": "a", "host_rewrite_header": "x-host", "append_x_forwarded_host": true }),
        json!({ "weighted_clusters": weighted("backend.test") }),
        json!({ "weighted_clusters": weighted("backend.test"), "host_rewrite_literal": "route.test" }),
        json!({ "weighted_clusters": weighted("backend.test"), "host_rewrite_header": "x-host" }),
        json!({ "weighted_clusters": weighted("backend.test"), "append_x_forwarded_host": true }),
    ];
    let mut oracle = Oracle::start().await;
    let routes = actions
        .iter()
        .enumerate()
        .map(|(index, action)| json!({ "match": { "path": format!("/{index}") }, "route": action }));
    oracle.routes(&hosts(routes.collect())).await;
    let mut tally = Tally::default();
    for (index, action) in actions.iter().enumerate() {
        for field in
            ["", "x-host: new.test:81\r\n", "x-host:\r\n", "x-host: one.test\r\nx-host: two.test\r\n"]
        {
            let request = format!("GET /{index} HTTP/1.1\r\nhost: h.test\r\n{field}\r\n");
            tally.compare(&format!("{action} {field:?}"), oracle.both(request.as_bytes(), "ok").await);
        }
    }
    tally.end(&[]);
}

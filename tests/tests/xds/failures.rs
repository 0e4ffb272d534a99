//! What becomes of requests whose upstream fails: retries, timeouts, local replies.

use serde_json::{Value, json};
use tulle_tests::oracle::Oracle;

use crate::compare::Tally;

const GET: &str = "GET /x HTTP/1.1\r\n";
const POST: &str = "POST /x HTTP/1.1\r\ncontent-length: 4\r\n";

/// What the upstream does, attempt for attempt.
const SCRIPTS: [&str; 24] = [
    "ok",
    "echo",
    "chunked",
    "cookies",
    "hops",
    "hint",
    "204",
    "304",
    "late",
    "goodbye",
    "half",
    "cut",
    "garbage",
    "both",
    "404",
    "503,ok",
    "500",
    "502,ok",
    "504,503,ok",
    "409,ok",
    "418,ok",
    "fin,ok",
    "rst,ok",
    "fin",
];

#[tokio::test]
async fn retries_are_made_where_envoy_makes_them() {
    let retries = |on: &str, count: u32| json!({ "retry_on": on, "num_retries": count });
    let mut listed = retries("retriable-status-codes", 2);
    listed["retriable_status_codes"] = json!([418, 503]);
    let policies = [
        retries("5xx", 2),
        retries("gateway-error", 1),
        retries("reset", 1),
        retries("connect-failure,refused-stream", 1),
        retries("retriable-4xx", 1),
        retries("5xx,reset", 0),
        listed,
    ];
    let policies = policies.map(|mut policy| {
        policy["retry_back_off"] = json!({ "base_interval": "0.001s" });
        json!({ "timeout": "0s", "retry_policy": policy })
    });
    compare(
        &policies,
        &SCRIPTS,
        &[
            "local replies",
            "interim responses",
            "headers named by Connection",
            "count of attempts",
            "safe retries",
        ],
    )
    .await;
}

#[tokio::test]
async fn timeouts_end_what_envoys_end() {
    let each = json!({
        "retry_on": "5xx,gateway-error,reset",
        "num_retries": 2,
        "per_try_timeout": "0.2s",
        "retry_back_off": { "base_interval": "0.001s" },
    });
    let none = json!({ "retry_on": "5xx", "num_retries": 0 });
    let timeouts = [
        json!({ "timeout": "0.3s", "retry_policy": none }),
        json!({ "timeout": "5s", "retry_policy": each }),
    ];
    compare(
        &timeouts,
        &["hang", "hang,ok", "503,hang,ok", "ok", "stall-head", "stall-head,ok"],
        &["local replies"],
    )
    .await;
    // A head that has been passed on can't be taken back: what is missing never comes.
    let whole = [json!({ "timeout": "0.3s" }), json!({ "timeout": "0.3s", "retry_policy": each_again() })];
    compare(&whole, &["stall", "stall-chunk"], &[]).await;
}

/// Tries again whatever fails, but no attempt is given up before the whole request is.
fn each_again() -> Value {
    json!({ "retry_on": "5xx,reset", "num_retries": 2, "retry_back_off": { "base_interval": "0.001s" } })
}

/// Each script under each action, with a method that is safe and one that is not.
async fn compare(actions: &[Value], scripts: &[&str], expected: &[&str]) {
    let mut oracle = Oracle::start().await;
    let host = |(index, action): (usize, &Value)| {
        let mut action = action.clone();
        action["cluster"] = json!("a");
        let domain = format!("h{index}.test");
        json!({ "name": domain, "domains": [domain], "routes": [{ "match": { "prefix": "/" }, "route": action }] })
    };
    let hosts: Vec<_> = actions.iter().enumerate().map(host).collect();
    oracle.routes(&hosts).await;
    let mut tally = Tally::default();
    for (index, action) in actions.iter().enumerate() {
        for script in scripts {
            for (head, body) in [(GET, ""), (POST, "body")] {
                let request = format!("{head}host: h{index}.test\r\n\r\n{body}");
                let outcomes = oracle.both(request.as_bytes(), script).await;
                tally.compare(&format!("{action}\n{script}: {request:?}"), outcomes);
            }
        }
    }
    tally.end(expected);
}

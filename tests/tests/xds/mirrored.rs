//! Copies of requests: where they go, and what their heads become.

use serde_json::{Value, json};
use tulle_tests::oracle::{Oracle, merged};

use crate::compare::Tally;

/// What is said of copies for `b`, and of the request itself.
fn actions() -> Vec<Value> {
    let copied = |more: Value| {
        let policy = merged(json!({ "cluster": "b" }), more);
        json!({ "cluster": "a", "request_mirror_policies": [policy] })
    };
    let header = |key: &str, value: &str, how: &str| json!({ "append": { "header": { "key": key, "value": value }, "append_action": how } });
    let mut renamed = copied(json!({}));
    renamed["host_rewrite_literal"] = json!("new.test:8080");
    let mut rewritten = copied(json!({}));
    rewritten["prefix_rewrite"] = json!("/rewritten");
    vec![
        copied(json!({})),
        copied(json!({ "disable_shadow_host_suffix_append": true })),
        copied(json!({ "host_rewrite_literal": "other.test:82" })),
        copied(json!({ "host_rewrite_literal": "other.test", "disable_shadow_host_suffix_append": true })),
        copied(json!({ "request_headers_mutations": [
            { "remove": "x-gone" },
            header("x-copy", "1", "APPEND_IF_EXISTS_OR_ADD"),
            header("x-copy", "%REQ(x-kept)%-2", "APPEND_IF_EXISTS_OR_ADD"),
            header("x-kept", "3", "OVERWRITE_IF_EXISTS_OR_ADD"),
            { "remove": "x-copy" },
            header("x-copy", "%REQ(x-kept)%", "ADD_IF_ABSENT"),
        ] })),
        renamed,
        rewritten,
        json!({ "cluster": "a", "request_mirror_policies": [
            { "cluster": "b" },
            { "cluster": "c", "disable_shadow_host_suffix_append": true },
        ] }),
    ]
}

#[tokio::test]
async fn copies_have_the_heads_that_envoys_have() {
    let mut oracle = Oracle::start().await;
    let actions = actions();
    let routes: Vec<_> = actions
        .iter()
        .enumerate()
        .map(|(index, action)| json!({ "match": { "prefix": format!("/{index}") }, "route": action }))
        .collect();
    oracle.routes(&[json!({ "name": "h", "domains": ["*"], "routes": routes })]).await;
    let mut tally = Tally::default();
    for (index, action) in actions.iter().enumerate() {
        let arrivals = 1 + action["request_mirror_policies"].as_array().expect("a list").len();
        for (method, end) in [("GET", "\r\n"), ("POST", "content-length: 2\r\n\r\nhi")] {
            for host in ["h.test", "h.test:81", "10.0.0.1", "[::1]", "[::1]:81"] {
                let head = format!("host: {host}\r\nx-gone: 1\r\nx-kept: 2\r\n{end}");
                let request = format!("{method} /{index}/x HTTP/1.1\r\n{head}");
                let outcomes = oracle.both_with_copies(request.as_bytes(), "ok", arrivals).await;
                tally.compare(&format!("{action} {method} {host}"), outcomes);
            }
        }
    }
    tally.end(&["marks of copies"]);
}

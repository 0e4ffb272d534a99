//! `x-forwarded-client-cert`: what an application is told of who its client has proved to be.

use serde_json::{Value, json};
use tulle_tests::oracle::{CALLERS, Oracle, Outcome, chain, manager_of, typed};

const HEADER: &str = "x-forwarded-client-cert";
const FORGED: &str = "By=spiffe://evil/x;Hash=00;URI=spiffe://evil/root";

fn told(outcome: &Outcome) -> &str {
    outcome.upstream.first().map_or("nothing came", |(_, seen)| seen.header(HEADER))
}

/// A connection manager with a route of its own.
fn all(more: Value) -> Value {
    let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": "a" } });
    manager_of(&[json!({ "name": "all", "domains": ["*"], "routes": [route] })], more)
}

fn request(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nhost: h.test\r\n{fields}\r\n")
}

#[tokio::test]
async fn the_application_is_told_of_certificates_as_the_listener_wants() {
    let mut oracle = Oracle::start().await;
    let ways = ["SANITIZE", "FORWARD_ONLY", "APPEND_FORWARD", "SANITIZE_SET", "ALWAYS_FORWARD_ONLY"];
    let details = [
        json!({}),
        json!({ "uri": true }),
        json!({ "subject": true, "dns": true }),
        json!({ "cert": true, "chain": true, "subject": true, "dns": true, "uri": true }),
    ];
    let (mut nothing, mut something) = (0, 0);
    for way in ways {
        for details in &details {
            let settings =
                json!({ "forward_client_cert_details": way, "set_current_client_cert_details": details });
            oracle.peers(&[chain("all", json!({}), Some(false), &all(settings.clone()))]).await;
            for caller in [None, Some(CALLERS[0]), Some(CALLERS[2])] {
                for fields in [
                    String::new(),
                    format!("{HEADER}: {FORGED}\r\n"),
                    format!("{HEADER}: {FORGED}\r\n").repeat(2),
                ] {
                    let outcomes = oracle.both_as(caller, "a.test", request(&fields).as_bytes(), "ok").await;
                    let [theirs, ours] = outcomes.each_ref().map(told);
                    assert_eq!(theirs, ours, "{settings} {caller:?} {fields:?}");
                    if way != "ALWAYS_FORWARD_ONLY" && caller.is_none() {
                        assert_eq!(ours, "", "who proved nothing is believed: {settings} {fields:?}");
                    }
                    match ours {
                        "" => nothing += 1,
                        _ => something += 1,
                    }
                }
            }
        }
    }
    assert!(nothing > 50 && something > 50, "{nothing} {something}");
}

/// Rules see what is left of the header, not what came.
#[tokio::test]
async fn a_rule_does_not_believe_a_forged_certificate() {
    let mut oracle = Oracle::start().await;
    let evil = json!({ "name": HEADER, "string_match": { "contains": "evil" } });
    let policy = json!({ "permissions": [{ "header": evil }], "principals": [{ "any": true }] });
    let rules = json!({ "rules": { "action": "ALLOW", "policies": { "p": policy } } });
    let filters = json!([
        { "name": "rbac", "typed_config": typed("envoy.extensions.filters.http.rbac.v3.RBAC", rules) },
        {
            "name": "envoy.filters.http.router",
            "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
        },
    ]);
    for (way, status) in [("SANITIZE", 403), ("SANITIZE_SET", 403), ("FORWARD_ONLY", 200)] {
        let settings = json!({ "forward_client_cert_details": way, "http_filters": filters });
        oracle.peers(&[chain("all", json!({}), Some(false), &all(settings))]).await;
        let request = request(&format!("{HEADER}: {FORGED}\r\n"));
        let outcomes = oracle.both_as(Some("web"), "a.test", request.as_bytes(), "ok").await;
        assert_eq!(outcomes.map(|outcome| outcome.received.status), [status; 2], "{way}");
    }
}

/// Plaintext proves nothing.
#[tokio::test]
async fn without_tls_the_header_ends_unless_it_is_always_to_pass() {
    let mut oracle = Oracle::start().await;
    let request = format!("GET /a HTTP/1.1\r\nhost: all.test\r\n{HEADER}: {FORGED}\r\n\r\n");
    for (way, expected) in
        [("SANITIZE", ""), ("FORWARD_ONLY", ""), ("SANITIZE_SET", ""), ("ALWAYS_FORWARD_ONLY", FORGED)]
    {
        oracle.manager(json!({ "forward_client_cert_details": way })).await;
        let outcomes = oracle.both(request.as_bytes(), "ok").await;
        assert_eq!(outcomes.each_ref().map(told), [expected; 2], "{way}");
    }
}

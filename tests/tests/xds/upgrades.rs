//! To what requests may switch, and which old clients are served.

use bytes::Bytes;
use http::Request;
use serde_json::{Value, json};
use tulle_tests::oracle::{Oracle, speaking_http2};

use crate::compare::Tally;
use crate::http2::behind;

/// Routes that say nothing of upgrades, enable or disable them, and one that answers by itself.
fn host() -> Value {
    let route = |path: &str, upgrades: Value| json!({ "match": { "path": path }, "route": { "cluster": "a", "upgrade_configs": upgrades } });
    let websocket = |enabled: bool| json!([{ "upgrade_type": "websocket", "enabled": enabled }]);
    json!({ "name": "h", "domains": ["h.test"], "routes": [
        route("/plain", json!([])),
        route("/on", websocket(true)),
        route("/off", websocket(false)),
        route("/other", json!([{ "upgrade_type": "Other" }])),
        { "match": { "path": "/said" }, "direct_response": { "status": 200 } },
    ] })
}

#[tokio::test]
async fn requests_switch_to_what_is_enabled() {
    let mut oracle = Oracle::start().await;
    oracle.routes(&[host()]).await;
    let mut tally = Tally::default();
    let mut refused = 0;
    for upgrades in [
        json!([]),
        json!([{ "upgrade_type": "WebSocket" }]),
        json!([{ "upgrade_type": "websocket", "enabled": false }, { "upgrade_type": "other" }]),
        json!([{ "upgrade_type": "CONNECT" }]),
    ] {
        oracle.manager(json!({ "upgrade_configs": upgrades })).await;
        for path in ["/plain", "/on", "/off", "/other", "/said", "/none"] {
            for protocol in ["websocket", "WEBSOCKET", "other", "websocket, other", "h2c"] {
                let request = format!(
                    "GET {path} HTTP/1.1\r\nhost: h.test\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n"
                );
                // Nobody switches to it: nothing is asked for.
                let script = if protocol == "h2c" { "ok" } else { "101" };
                let outcomes = oracle.both(request.as_bytes(), script).await;
                refused += usize::from(outcomes[0].received.status == 403);
                tally.compare(&format!("{upgrades} {request:?}"), outcomes);
            }
        }
        for target in ["h.test:80", "nobody.test:80"] {
            let request = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n");
            let outcomes = oracle.both(request.as_bytes(), "ok").await;
            tally.compare(&format!("{upgrades} {request:?}"), outcomes);
        }
    }
    assert!(refused > 20, "{refused} were refused");
    tally.end(&["local replies"]);
}

/// RFC 8441: a WebSocket is a stream beside others, and a connection of its own behind the proxy.
#[tokio::test]
async fn websockets_come_over_http2() {
    let mut oracle = Oracle::start().await;
    oracle.routes(&[host()]).await;
    let mut tally = Tally::default();
    let mut switched = 0;
    for upgrades in [json!([]), json!([{ "upgrade_type": "websocket" }])] {
        let settings =
            json!({ "upgrade_configs": upgrades, "http2_protocol_options": { "allow_connect": true } });
        oracle.manager(settings).await;
        for path in ["/plain", "/on", "/off", "/other", "/none"] {
            for script in ["101", "403"] {
                let uri = format!("http://h.test{path}");
                let request = extended_connect(&uri, Bytes::from_static(b"hi"));
                let outcomes = oracle.both_over_http2(&request, script).await;
                let upstream = outcomes[0].upstream.first();
                let came = upstream.is_some_and(|(_, seen)| seen.header("upgrade") == "websocket");
                switched += usize::from(came && outcomes[0].received.status == 200);
                tally.compare(&format!("{upgrades} {path} {script}"), outcomes);
            }
        }
    }
    assert_eq!(switched, 4, "on the one route, and where the listener says so on three more");
    tally.end(&["local replies", "keys of WebSockets"]);
}

/// What an upstream of HTTP/2 alone is asked is an extended CONNECT, whatever its client speaks.
#[tokio::test]
async fn websockets_go_over_http2() {
    let mut oracle = Oracle::start().await;
    let off = json!([{ "upgrade_type": "websocket", "enabled": false }]);
    let actions = [json!({}), json!({ "upgrade_configs": off })];
    let options = json!({ "allow_connect": true });
    let _two = behind(&mut oracle, &actions, &speaking_http2(options.clone())).await;
    oracle.manager(json!({ "http2_protocol_options": options })).await;
    let mut tally = Tally::default();
    let mut switched = 0;
    for host in 0..actions.len() {
        for script in ["101", "403", "503", "reset:8", "reset:7", "fin", "unseen:0"] {
            let request = format!(
                "GET /x HTTP/1.1\r\nhost: h{host}.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            );
            let outcomes = oracle.both(request.as_bytes(), script).await;
            switched += usize::from(outcomes[0].received.body == "after the upgrade");
            tally.compare(&format!("{request:?} {script}"), outcomes);
            let request = extended_connect(&format!("http://h{host}.test/x"), Bytes::from_static(b"hi"));
            let outcomes = oracle.both_over_http2(&request, script).await;
            switched += usize::from(outcomes[0].received.body == "hi");
            tally.compare(&format!("{host} over HTTP/2 {script}"), outcomes);
        }
    }
    assert_eq!(switched, 2, "on the one route, by either version");
    tally.end(&["local replies", "keys of WebSockets"]);
}

/// A WebSocket that is asked for over HTTP/2 (RFC 8441), and what is said on it.
pub(crate) fn extended_connect(uri: &str, says: Bytes) -> Request<Bytes> {
    let mut request = Request::connect(uri).header("sec-websocket-version", "13");
    let extensions = request.extensions_mut().expect("it is valid");
    extensions.insert(h2::ext::Protocol::from_static("websocket"));
    request.body(says).expect("a valid request")
}

/// A difference that is meant so: clients that ask for TLS in passing (as some do of every server) are served, as RFC 9110, section
/// 7.8 says of who does not switch; Envoy refuses them.
#[tokio::test]
async fn who_asks_for_tls_in_passing_is_served() {
    let mut oracle = Oracle::start().await;
    oracle.routes(&[host()]).await;
    let request = "GET /plain HTTP/1.1\r\nhost: h.test\r\nconnection: upgrade\r\nupgrade: TLS/1.2\r\n\r\n";
    let [envoy, tulle] = oracle.both(request.as_bytes(), "ok").await;
    assert_eq!((envoy.received.status, tulle.received.status), (403, 200));
    assert_eq!(tulle.upstream[0].1.header("upgrade"), "");
}

#[tokio::test]
async fn old_clients_are_served_where_the_listener_takes_them() {
    let mut oracle = Oracle::start().await;
    let routes = json!([{ "match": { "prefix": "/" }, "route": { "cluster": "a" } }]);
    let hosts = [
        json!({ "name": "h", "domains": ["h.test"], "routes": routes }),
        json!({ "name": "old", "domains": ["old.test"], "routes": routes }),
    ];
    oracle.routes(&hosts).await;
    let mut tally = Tally::default();
    for (options, accepts) in [
        (json!({}), false),
        (json!({ "default_host_for_http_10": "old.test" }), false),
        (json!({ "accept_http_10": true }), true),
        (json!({ "accept_http_10": true, "default_host_for_http_10": "old.test" }), true),
    ] {
        oracle.manager(json!({ "http_protocol_options": options })).await;
        let defaults = options["default_host_for_http_10"].is_string();
        for fields in ["host: h.test\r\n", "host: h.test\r\nconnection: keep-alive\r\n", ""] {
            for version in ["1.0", "1.1"] {
                // Without any host there is a rule of its own, below.
                if fields.is_empty() && version == "1.0" && accepts && !defaults {
                    continue;
                }
                let request = format!("GET /x HTTP/{version}\r\n{fields}\r\n");
                let outcomes = oracle.both(request.as_bytes(), "ok").await;
                let expected = match (version, accepts, fields) {
                    ("1.0", false, _) => 426,
                    ("1.1", _, "") => 400,
                    _ => 200,
                };
                assert_eq!(outcomes[0].received.status, expected, "{options} {request:?}");
                tally.compare(&format!("{options} {request:?}"), outcomes);
            }
        }
    }
    tally.end(&["local replies"]);
}

/// A difference that is meant so: nobody has said what HTTP/1.2 would be, so that it is refused as RFC 9110, section 15.6.6, says;
/// to Envoy it is one more that is too old.
#[tokio::test]
async fn versions_that_nobody_knows_are_refused() {
    let mut oracle = Oracle::start().await;
    oracle.routes(&[host()]).await;
    for (version, expected) in [
        ("0.9", [426, 505]),
        ("1.2", [426, 505]),
        ("1.9", [426, 505]),
        ("2.0", [426, 505]),
        ("3.0", [426, 505]),
        ("1", [400, 505]),
        ("1.11", [400; 2]),
    ] {
        let request = format!("GET /plain HTTP/{version}\r\nhost: h.test\r\n\r\n");
        let outcomes = oracle.both(request.as_bytes(), "ok").await;
        assert_eq!(outcomes.map(|outcome| outcome.received.status), expected, "{version}");
    }
}

/// A difference that is meant so: HTTP/1.0 knows no Host, and a request of it may name none (RFC 1945). It takes a route of whatever
/// host. Envoy refuses it, unless a host is made up for it.
#[tokio::test]
async fn old_clients_need_no_host() {
    let mut oracle = Oracle::start().await;
    let routes = json!([{ "match": { "prefix": "/" }, "route": { "cluster": "a" } }]);
    oracle
        .push(vec![tulle_tests::oracle::route_configuration(
            "routes",
            &[
                tulle_tests::oracle::all_clusters(),
                json!({ "name": "any", "domains": ["*"], "routes": routes }),
            ],
        )])
        .await;
    oracle.manager(json!({ "http_protocol_options": { "accept_http_10": true } })).await;
    let [envoy, tulle] = oracle.both(b"GET / HTTP/1.0\r\n\r\n", "ok").await;
    assert_eq!((envoy.received.status, tulle.received.status), (400, 200));
}

//! Proxies in front: the PROXY protocol, whom X-Forwarded-For is believed from, and what the next hop is told.

use serde_json::{Value, json};
use tulle_tests::oracle::{Oracle, Outcome, cluster, endpoints, typed};

use crate::compare::Tally;

/// Whose connection a proxy in front says that it is.
const TOLD: &str = "PROXY TCP4 10.9.8.7 10.0.0.1 4321 80\r\n";

#[tokio::test]
async fn the_client_is_whom_trusted_proxies_name() {
    let mut oracle = Oracle::start().await;
    oracle.routes(&[host()]).await;
    let mut tally = Tally::default();
    for (remote, hops, skip) in settings() {
        let mut settings = only(&json!({ "remote_ip": range("1.2.3.4", 32) }));
        settings["use_remote_address"] = json!(remote);
        settings["xff_num_trusted_hops"] = json!(hops);
        settings["skip_xff_append"] = json!(skip);
        oracle.listening(settings.clone(), proxy_protocol(json!({}))).await;
        for field in [
            "",
            "x-forwarded-for: 1.2.3.4\r\n",
            "x-forwarded-for: 9.9.9.9, 1.2.3.4\r\n",
            "x-forwarded-for: 1.2.3.4, 9.9.9.9\r\n",
            "x-forwarded-for: 1.2.3.4\r\nx-forwarded-for: 9.9.9.9\r\n",
            "x-forwarded-for: 1.2.3.4,9.9.9.9,fd00::1\r\n",
            "x-forwarded-for: 1.2.3.4,nobody\r\n",
            "x-forwarded-for: nobody\r\n",
            "x-forwarded-for:\r\n",
        ] {
            let request = format!("{TOLD}GET / HTTP/1.1\r\nhost: h.test\r\n{field}\r\n");
            let outcomes = oracle.both(request.as_bytes(), "ok").await;
            tally.compare(&format!("{settings}\n{request:?}"), outcomes);
        }
    }
    tally.end(&["local replies"]);
}

#[tokio::test]
async fn headers_of_the_proxy_protocol_are_read_alike() {
    let mut oracle = Oracle::start().await;
    oracle.routes(&[host()]).await;
    let request = "GET / HTTP/1.1\r\nhost: h.test\r\n\r\n";
    let mut tally = Tally::default();
    for how in [
        json!({}),
        json!({ "allow_requests_without_proxy_protocol": true }),
        json!({ "disallowed_versions": ["V1"] }),
        json!({ "disallowed_versions": ["V2"], "allow_requests_without_proxy_protocol": true }),
    ] {
        for rule in ["remote_ip", "direct_remote_ip"] {
            oracle
                .listening(only(&json!({ rule: range("10.9.8.0", 24) })), proxy_protocol(how.clone()))
                .await;
            for header in headers() {
                let bytes = [&header, request.as_bytes()].concat();
                let outcomes = oracle.both(&bytes, "ok").await;
                tally.compare(&format!("{how} {rule} {}", header.escape_ascii()), outcomes);
            }
        }
    }
    tally.end(&["local replies"]);
}

/// Text and binary, whole, odd and broken.
fn headers() -> Vec<Vec<u8>> {
    let text = [
        TOLD,
        "PROXY TCP4 10.1.1.1 10.0.0.1 4321 80\r\n",
        "PROXY TCP6 fd00::7 fd00::1 4321 80\r\n",
        "PROXY UNKNOWN\r\n",
        "PROXY UNKNOWN fd00::7 fd00::1 4321 80\r\n",
        "PROXY TCP4 10.9.8.7 10.0.0.1 4321\r\n",
        "PROXY TCP4 fd00::7 fd00::1 4321 80\r\n",
        "PROXY TCP4 10.9.8.7 10.0.0.1 70000 80\r\n",
        "",
    ];
    let binary = |command: u8, family: u8, body: &[u8]| {
        let len = u16::try_from(body.len()).expect("short").to_be_bytes();
        [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &len, body].concat()
    };
    let v4 = [10, 9, 8, 7, 10, 0, 0, 1, 0x10, 0xe1, 0, 80];
    // A value of a type that nobody knows.
    let with_more = [&v4[..], &[0xe0, 0, 1, 7]].concat();
    let mut v6 = [0; 36];
    (v6[0], v6[15], v6[31]) = (0xfd, 7, 1);
    let binaries = [
        binary(0x21, 0x11, &v4),
        binary(0x21, 0x11, &with_more),
        binary(0x21, 0x21, &v6),
        binary(0x20, 0x00, &[]),
        binary(0x20, 0x11, &v4),
        binary(0x21, 0x11, &v4[..8]),
        binary(0x31, 0x11, &v4),
    ];
    text.iter().map(|text| text.as_bytes().to_vec()).chain(binaries).collect()
}

fn host() -> Value {
    json!({ "name": "h", "domains": ["h.test"], "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "a" } }] })
}

/// `use_remote_address`, `xff_num_trusted_hops` and `skip_xff_append`.
fn settings() -> impl Iterator<Item = (bool, u32, bool)> {
    (0..12_u32).map(|number| (number & 1 > 0, number >> 2, number & 2 > 0))
}

/// A connection manager that lets pass nobody but these.
fn only(principal: &Value) -> Value {
    let policy = json!({ "permissions": [{ "any": true }], "principals": [principal] });
    let rules = json!({ "rules": { "action": "ALLOW", "policies": { "p": policy } } });
    json!({ "http_filters": [
        { "name": "rbac", "typed_config": typed("envoy.extensions.filters.http.rbac.v3.RBAC", rules) },
        {
            "name": "envoy.filters.http.router",
            "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
        },
    ] })
}

fn range(prefix: &str, len: u32) -> Value {
    json!({ "address_prefix": prefix, "prefix_len": len })
}

fn proxy_protocol(config: Value) -> Value {
    json!([{
        "name": "envoy.filters.listener.proxy_protocol",
        "typed_config": typed("envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol", config),
    }])
}

/// Without anything in front: connections of the host itself, as those of an application to its sidecar are.
#[tokio::test]
async fn a_client_of_the_same_host_is_told_alike() {
    let mut oracle = Oracle::start().await;
    oracle.routes(&[host()]).await;
    let mut tally = Tally::default();
    for (remote, hops, skip) in settings() {
        let mut settings = json!({});
        settings["use_remote_address"] = json!(remote);
        settings["xff_num_trusted_hops"] = json!(hops);
        settings["skip_xff_append"] = json!(skip);
        oracle.manager(settings.clone()).await;
        for field in ["", "x-forwarded-for: 1.2.3.4\r\n", "x-envoy-external-address: 6.6.6.6\r\n"] {
            let request = format!("GET / HTTP/1.1\r\nhost: h.test\r\n{field}\r\n");
            let outcomes = oracle.both(request.as_bytes(), "ok").await;
            tally.compare(&format!("{settings}\n{request:?}"), outcomes);
        }
    }
    tally.end(&[]);
}

/// Whom a proxy in front names is who is balanced by.
#[tokio::test]
async fn a_hash_of_the_source_is_of_whom_trusted_proxies_name() {
    let mut oracle = Oracle::start().await;
    let addresses: Vec<_> = oracle.upstreams.iter().map(|upstream| upstream.address).collect();
    oracle
        .ads
        .set(vec![cluster("ring", json!({ "lb_policy": "RING_HASH" })), endpoints("ring", &addresses)])
        .await;
    let hash = json!([{ "connection_properties": { "source_ip": true } }]);
    let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": "ring", "hash_policy": hash } });
    oracle.routes_to(&json!({ "name": "h", "domains": ["h.test"], "routes": [route] })).await;
    let mut reached = std::collections::BTreeSet::new();
    for (remote, hops) in [(false, 0), (false, 1), (true, 0), (true, 1)] {
        let settings = json!({ "use_remote_address": remote, "xff_num_trusted_hops": hops });
        oracle.listening(settings.clone(), proxy_protocol(json!({}))).await;
        for last in 1..20 {
            let request = format!(
                "PROXY TCP4 10.9.8.{last} 10.0.0.1 4321 80\r\n\
                 GET / HTTP/1.1\r\nhost: h.test\r\nx-forwarded-for: 1.2.{last}.4, 9.9.9.{last}\r\n\r\n"
            );
            let [envoy, tulle] = oracle.both(request.as_bytes(), "ok").await;
            let at = |outcome: &Outcome| outcome.upstream.first().map(|(at, _)| at.clone());
            assert_eq!(at(&envoy), at(&tulle), "{settings} {request:?}");
            reached.extend(at(&tulle));
        }
    }
    assert_eq!(reached.len(), 3, "{reached:?}");
}

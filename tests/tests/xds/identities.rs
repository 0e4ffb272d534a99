//! Who a peer proves to be, and by what name it asks: which rules hold for it and which chain takes it.

use serde_json::{Value, json};
use tulle_tests::oracle::{Hello, Oracle, Outcome, Way, chain, manager_of, typed};

use crate::generate::{self, Generator};

/// Whether the proxy answered, how, and what reached an upstream. Towards the application the sidecar tells in headers of its
/// own who called.
fn verdict(outcome: &Outcome) -> (u16, Vec<(&str, &str)>) {
    let upstream = outcome.upstream.iter().map(|(cluster, seen)| (cluster.as_str(), seen.line.as_str()));
    (outcome.received.status, upstream.collect())
}

/// A connection manager whose only route leads to a cluster.
fn to(cluster: &str, more: Value) -> Value {
    let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": cluster } });
    manager_of(&[json!({ "name": "all", "domains": ["*"], "routes": [route] })], more)
}

/// Chains for TLS and for plaintext, which both begin with these filters.
fn chains(manager: &Value, before: &[Value]) -> [Value; 2] {
    [("tls", Some(false)), ("raw_buffer", None)].map(|(transport, tls)| {
        let mut chain = chain(transport, json!({ "transport_protocol": transport }), tls, manager);
        let filters = chain["filters"].as_array_mut().expect("a list");
        filters.splice(0..0, before.iter().cloned());
        chain
    })
}

/// A proxy in front may tell whose connection it is.
fn told_by_proxies() -> Value {
    let filter = |name: &str, kind: &str, config: Value| {
        let kind = format!("envoy.extensions.filters.listener.{name}.v3.{kind}");
        json!({ "name": format!("envoy.filters.listener.{name}"), "typed_config": typed(&kind, config) })
    };
    json!({ "listener_filters": [
        filter("proxy_protocol", "ProxyProtocol", json!({ "allow_requests_without_proxy_protocol": true })),
        filter("tls_inspector", "TlsInspector", json!({})),
    ] })
}

#[tokio::test]
async fn generated_rules_know_callers_as_envoys_do() {
    for requests in [true, false] {
        let (seed, sets) = generate::seed(40);
        let mut generator = Generator::new(seed);
        let mut oracle = Oracle::start().await;
        let (mut passed, mut denied, mut differ) = (0, 0, Vec::new());
        for _ in 0..sets {
            let (mut settings, mut before) = (json!({}), Vec::new());
            match requests {
                true => settings = generator.authorization(),
                false => before = vec![generator.connection_rules()],
            }
            let errors =
                oracle.offer_peers(&chains(&to("a", settings.clone()), &before), told_by_proxies()).await;
            assert_eq!(errors, ["", ""], "seed {seed}: {before:?}");
            for _ in 0..12 {
                let way = generator.caller();
                let request = generator.plain_request("h.test");
                let [envoy, tulle] = oracle.both_by(&way, request.as_bytes(), "ok").await;
                match envoy.received.status {
                    0 | 403 => denied += 1,
                    _ => passed += 1,
                }
                if verdict(&envoy) != verdict(&tulle) {
                    differ.push(format!("{way:?}: {settings} {before:?}\n{request:?}\n{envoy}\n{tulle}"));
                }
            }
        }
        println!("{passed} passed, {denied} denied");
        let all = differ.len();
        differ.truncate(5);
        assert!(all == 0, "seed {seed}: {all} differ:\n{}", differ.join("\n\n"));
        // A few may all be of one kind.
        assert!(sets < 20 || (passed > 0 && denied > 0), "{passed} passed, {denied} denied");
    }
}

/// Whoever speaks TLS, though it may have proved nothing: as Envoy says, any user that the listener's TLS lets in.
#[tokio::test]
async fn without_a_name_whoever_speaks_tls_is_authenticated() {
    let mut oracle = Oracle::start().await;
    for (action, [in_plaintext, over_tls]) in [("ALLOW", [403, 200]), ("DENY", [200, 403])] {
        let policy = json!({ "permissions": [{ "any": true }], "principals": [{ "authenticated": {} }] });
        let rules = json!({ "rules": { "action": action, "policies": { "authenticated": policy } } });
        let filters = json!([
            { "name": "rbac", "typed_config": typed("envoy.extensions.filters.http.rbac.v3.RBAC", rules) },
            {
                "name": "envoy.filters.http.router",
                "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
            },
        ]);
        oracle.peers(&chains(&to("a", json!({ "http_filters": filters })), &[])).await;
        let tls = |caller| Some(Hello::to("a.test", caller));
        for (tls, expected) in [(None, in_plaintext), (tls(None), over_tls), (tls(Some("web")), over_tls)] {
            let way = Way { tls, ..Way::default() };
            let request = b"GET / HTTP/1.1\r\nhost: h.test\r\n\r\n";
            let outcomes = oracle.both_by(&way, request, "ok").await;
            assert_eq!(outcomes.map(|outcome| outcome.received.status), [expected; 2], "{action} {way:?}");
        }
    }
}

#[tokio::test]
async fn a_chain_is_chosen_by_server_name_and_protocol_and_takes_whom_it_wants() {
    let mut oracle = Oracle::start().await;
    let chains = [
        chain("strict", json!({ "server_names": ["a.test"] }), Some(true), &to("a", json!({}))),
        chain("wild", json!({ "server_names": ["*.b.test"] }), Some(false), &to("b", json!({}))),
        chain("wilder", json!({ "server_names": ["*.x.b.test"] }), Some(false), &to("c", json!({}))),
        chain(
            "none of ours",
            json!({ "server_names": ["c.test"], "application_protocols": ["h2"] }),
            Some(false),
            &to("c", json!({})),
        ),
        chain(
            "ours",
            json!({ "server_names": ["c.test"], "application_protocols": ["http/1.1"] }),
            Some(false),
            &to("b", json!({})),
        ),
    ];
    oracle.peers(&chains).await;
    let request = b"GET / HTTP/1.1\r\nhost: h.test\r\n\r\n";
    let mut taken = Vec::new();
    for server in ["a.test", "A.test", "b.test", "y.b.test", "x.b.test", "y.x.b.test", "c.test", "d.test"] {
        for caller in [None, Some("web")] {
            let [envoy, tulle] = oracle.both_as(caller, server, request, "ok").await;
            assert_eq!(verdict(&envoy), verdict(&tulle), "{caller:?} at {server}");
            taken.extend(envoy.upstream.iter().map(|(cluster, _)| format!("{server} {cluster}")));
        }
    }
    // Without a certificate nobody is at `a`, and at `d` nobody is at all.
    let expected = [
        "a.test a",
        "A.test a",
        "y.b.test b",
        "y.b.test b",
        "x.b.test b",
        "x.b.test b",
        "y.x.b.test c",
        "y.x.b.test c",
        "c.test b",
        "c.test b",
    ];
    assert_eq!(taken, expected);
}

//! Who a peer proves to be, and by what name it asks: which rules hold for it and which chain takes it.

use serde_json::{Value, json};
use tulle_tests::oracle::{CALLERS, Oracle, Outcome, chain, manager, typed};

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
    let hosts = json!([{ "name": "all", "domains": ["*"], "routes": [route] }]);
    let mut manager = manager("routes", more);
    manager.as_object_mut().expect("a message").remove("rds");
    manager["route_config"] = json!({ "name": cluster, "virtual_hosts": hosts });
    manager
}

#[tokio::test]
async fn generated_rules_know_callers_as_envoys_do() {
    let (seed, sets) = generate::seed(40);
    let mut generator = Generator::new(seed);
    let mut oracle = Oracle::start().await;
    let (mut passed, mut denied, mut differ) = (0, 0, Vec::new());
    for index in 0..sets {
        let mut settings = generator.authorization();
        settings["stat_prefix"] = json!(format!("set{index}"));
        oracle.peers(&[chain("all", json!({}), Some(false), &to("a", settings.clone()))]).await;
        // Of who has no certificate they think differently, see below.
        let nobody = (!settings.to_string().contains(r#""authenticated":{}"#)).then_some(None);
        for caller in CALLERS.map(Some).into_iter().chain(nobody) {
            for server in ["a.test", "b.test"] {
                let request = generator.plain_request("h.test");
                let [envoy, tulle] = oracle.both_as(caller, server, request.as_bytes(), "ok").await;
                match envoy.received.status {
                    403 => denied += 1,
                    _ => passed += 1,
                }
                if verdict(&envoy) != verdict(&tulle) {
                    differ.push(format!("{caller:?} at {server}: {settings}\n{request:?}\n{envoy}\n{tulle}"));
                }
            }
        }
    }
    println!("{passed} passed, {denied} denied");
    assert!(differ.is_empty(), "seed {seed}: {} differ:\n{}", differ.len(), differ.join("\n\n"));
    // A few may all be of one kind.
    assert!(sets < 20 || (passed > 0 && denied > 0), "{passed} passed, {denied} denied");
}

/// A difference that is meant so: to Envoy, whoever speaks TLS is authenticated, though it may have proved nothing. Here it is
/// who has a certificate, in what is allowed as in what is denied.
#[tokio::test]
async fn without_a_certificate_nobody_is_authenticated() {
    let mut oracle = Oracle::start().await;
    for (action, expected) in [("ALLOW", [(200, 403), (200, 200)]), ("DENY", [(403, 200), (403, 403)])] {
        let policy = json!({ "permissions": [{ "any": true }], "principals": [{ "authenticated": {} }] });
        let rules = json!({ "rules": { "action": action, "policies": { "authenticated": policy } } });
        let filters = json!([
            { "name": "rbac", "typed_config": typed("envoy.extensions.filters.http.rbac.v3.RBAC", rules) },
            {
                "name": "envoy.filters.http.router",
                "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
            },
        ]);
        let manager = to("a", json!({ "http_filters": filters }));
        oracle.peers(&[chain("all", json!({}), Some(false), &manager)]).await;
        for (caller, expected) in [None, Some("web")].into_iter().zip(expected) {
            let request = b"GET / HTTP/1.1\r\nhost: h.test\r\n\r\n";
            let [envoy, tulle] = oracle.both_as(caller, "a.test", request, "ok").await;
            assert_eq!((envoy.received.status, tulle.received.status), expected, "{action} {caller:?}");
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

//! Connections of bytes: which endpoint they go to, how often one is tried for, and how long they last.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};
use tulle_tests::oracle::{Oracle, Way, chain, cluster, endpoints, merged, typed};

use crate::shares::upstream;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: h.test\r\n\r\n";

/// Has peers' connections carried as bytes to a cluster; `more` is what else is said of it.
async fn carry(oracle: &mut Oracle, cluster: &str, more: Value) {
    let proxy = merged(json!({ "stat_prefix": "bytes", "cluster": cluster }), more);
    let proxy = typed("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", proxy);
    let mut bytes = chain("bytes", json!({ "transport_protocol": "raw_buffer" }), None, &proxy);
    bytes["filters"][0]["name"] = json!("envoy.filters.network.tcp_proxy");
    oracle.peers(&[bytes]).await;
}

#[tokio::test]
async fn a_connection_goes_where_its_client_s_address_leads() {
    let mut oracle = Oracle::start().await;
    let addresses: Vec<_> = oracle.upstreams.iter().map(|upstream| upstream.address).collect();
    for balancer in ["RING_HASH", "MAGLEV"] {
        let name = balancer.to_lowercase();
        oracle
            .ads
            .set(vec![cluster(&name, json!({ "lb_policy": balancer })), endpoints(&name, &addresses)])
            .await;
        carry(&mut oracle, &name, json!({ "hash_policy": [{ "source_ip": {} }] })).await;
        let mut met = BTreeSet::new();
        for last in 1..20 {
            let way = Way { from: SocketAddr::from(([127, 0, 0, last], 0)), ..Way::default() };
            let [envoy, tulle] = oracle.both_by(&way, REQUEST, "ok").await.map(|outcome| upstream(&outcome));
            assert_eq!(envoy, tulle, "{balancer} {way:?}");
            met.insert(envoy);
        }
        assert_eq!(met.len(), 3, "{balancer}: all endpoints are led to");
    }
}

#[tokio::test]
async fn as_many_endpoints_are_tried_as_are_asked_for() {
    let mut oracle = Oracle::start().await;
    let good = oracle.upstreams[0].address;
    let [one, other] = oracle.source_ports().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    for (attempts, expected) in
        [(json!({}), ["0", "a"].as_slice()), (json!({ "max_connect_attempts": 3 }), &["a"])]
    {
        // A cluster of its own, so that it has no memory of failures.
        let name = format!("attempts{}", attempts["max_connect_attempts"]);
        let turns = json!({ "lb_policy": "ROUND_ROBIN" });
        oracle.ads.set(vec![cluster(&name, turns), endpoints(&name, &[one, good, other])]).await;
        carry(&mut oracle, &name, attempts.clone()).await;
        let mut met = [BTreeSet::new(), BTreeSet::new()];
        for _ in 0..6 {
            let outcomes = oracle.both_by(&Way::default(), REQUEST, "ok").await;
            for (outcome, met) in outcomes.iter().zip(&mut met) {
                met.insert(upstream(outcome));
            }
        }
        let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(met, [expected.clone(), expected], "{attempts}");
    }
}

#[tokio::test]
async fn a_connection_ends_when_its_time_is_over() {
    let mut oracle = Oracle::start().await;
    for limit in [
        json!({ "max_downstream_connection_duration": "0.3s" }),
        json!({
            "max_downstream_connection_duration": "0.2s",
            "max_downstream_connection_duration_jitter_percentage": { "value": 50.0 },
            "idle_timeout": "0s",
        }),
        json!({ "idle_timeout": "0.3s" }),
    ] {
        carry(&mut oracle, "a", limit.clone()).await;
        let quick = oracle.both_by(&Way::default(), REQUEST, "ok").await;
        assert_eq!(quick.map(|outcome| upstream(&outcome)), ["a", "a"], "{limit}");
        // The upstream never answers.
        let outcomes = oracle.both_by(&Way::default(), REQUEST, "hang").await;
        for outcome in outcomes {
            assert_eq!((outcome.received.status, outcome.upstream.len()), (0, 1), "{limit}: {outcome}");
        }
    }
}

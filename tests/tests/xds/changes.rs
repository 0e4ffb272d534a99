//! Configuration that changes under both: what moves, what is refused, what goes away.

use serde_json::json;
use tulle_tests::oracle::{Oracle, Outcome, cluster, endpoints};
use tulle_tests::{LIMIT, wait_for};

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// A request to a path of the domain whose paths are clusters.
fn to(path: &str) -> String {
    format!("GET /{path} HTTP/1.1\r\nhost: all.test\r\n\r\n")
}

/// The cluster whose upstream answered, for either; or the status of an answer that no upstream gave.
fn served(outcomes: &[Outcome; 2]) -> [String; 2] {
    outcomes.each_ref().map(|outcome| {
        let headers = &outcome.received.headers;
        let cluster = headers.iter().find(|(name, _)| name == "x-cluster").map(|(_, value)| value.clone());
        cluster.unwrap_or_else(|| outcome.received.status.to_string())
    })
}

/// Waits until both answer requests to `path` so.
async fn both_come_to(oracle: &Oracle, path: &str, expected: [&str; 2]) {
    let arrived = || async {
        let now = served(&oracle.both(to(path).as_bytes(), "ok").await);
        if now == expected { Ok(()) } else { Err(format!("{now:?}, not {expected:?}")) }
    };
    wait_for(LIMIT, arrived).await.unwrap_or_else(|error| panic!("/{path}: {error}"));
}

#[tokio::test]
async fn endpoints_move_come_and_go() {
    let mut oracle = Oracle::start().await;
    let [a, b] = [0, 1].map(|at: usize| oracle.upstreams[at].address);
    both_come_to(&oracle, "a", ["a", "a"]).await;
    oracle.push(vec![endpoints("a", &[b])]).await;
    both_come_to(&oracle, "a", ["b", "b"]).await;
    oracle.push(vec![endpoints("a", &[])]).await;
    both_come_to(&oracle, "a", ["503", "503"]).await;
    oracle.push(vec![endpoints("a", &[a])]).await;
    both_come_to(&oracle, "a", ["a", "a"]).await;
    // The same cluster with another setting, and its endpoints again.
    oracle.push(vec![cluster("a", json!({ "connect_timeout": "1s" }))]).await;
    both_come_to(&oracle, "a", ["a", "a"]).await;
}

#[tokio::test]
async fn of_a_response_with_one_bad_resource_the_good_ones_are_taken() {
    let mut oracle = Oracle::start().await;
    let [b, c] = [1, 2].map(|at: usize| oracle.upstreams[at].address);
    let bad = cluster("b", json!({ "connect_timeout": "-1s" }));
    let good = cluster("a", json!({ "connect_timeout": "2s" }));
    let [envoy, tulle] = oracle.offer(vec![bad, good]).await.try_into().expect("each answers once");
    assert!(envoy.error.contains("duration"), "{envoy:?}");
    assert!(tulle.error.contains("cluster b: connect_timeout"), "{tulle:?}");
    both_come_to(&oracle, "b", ["b", "b"]).await;
    let config = oracle.sidecar_config().await;
    let of = |name: &str| {
        let clusters = config["clusters"].as_array().expect("a list").iter();
        clusters.map(|entry| &entry["cluster"]).find(|cluster| cluster["name"] == name).cloned()
    };
    assert_eq!(of("a").expect("it is in force")["connectTimeout"]["secs"], 2, "{config}");
    assert_eq!(of("b").expect("it is in force")["connectTimeout"]["secs"], 5, "{config}");
    // What comes after is taken as ever.
    oracle.push(vec![endpoints("b", &[c])]).await;
    both_come_to(&oracle, "b", ["c", "c"]).await;
    oracle.push(vec![endpoints("b", &[b]), cluster("b", json!({ "connect_timeout": "3s" }))]).await;
    both_come_to(&oracle, "b", ["b", "b"]).await;
}

#[tokio::test]
async fn a_cluster_that_is_deleted_in_use_is_kept_here() {
    let mut oracle = Oracle::start().await;
    oracle.ads.remove(CLUSTER, "c").await;
    // Envoy drops it at once and answers 503. A sidecar keeps what live routes refer to: a deletion that comes before the
    // change of the routes must not fail requests.
    both_come_to(&oracle, "c", ["503", "c"]).await;
    oracle.push(vec![cluster("c", json!({}))]).await;
    both_come_to(&oracle, "c", ["c", "c"]).await;
}

#[tokio::test]
async fn without_a_control_plane_both_serve_on() {
    let mut oracle = Oracle::start().await;
    oracle.ads.kill().await;
    for path in ["a", "b", "c"] {
        both_come_to(&oracle, path, [path, path]).await;
    }
}

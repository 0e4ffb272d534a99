//! Configuration that changes under both: what moves, what is refused, what goes away.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;
use tulle_tests::oracle::{Oracle, Outcome, all_clusters, cluster, endpoints, route_configuration};
use tulle_tests::{LIMIT, python, wait_for};

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
    both_answer(oracle, to(path).as_bytes(), expected).await;
}

/// The same for any request.
async fn both_answer(oracle: &Oracle, request: &[u8], expected: [&str; 2]) {
    let arrived = || async {
        let now = served(&oracle.both(request, "ok").await);
        if now == expected { Ok(()) } else { Err(format!("{now:?}, not {expected:?}")) }
    };
    let request = String::from_utf8_lossy(request);
    wait_for(LIMIT, arrived).await.unwrap_or_else(|error| panic!("{request:?}: {error}"));
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
    let told = csds(&oracle).await;
    let status = |name: &str| {
        let all = told["config"][0]["genericXdsConfigs"].as_array().expect("a list").iter();
        let found = all.filter(|one| one["typeUrl"] == CLUSTER).find(|one| one["name"] == name);
        found.unwrap_or_else(|| panic!("no cluster {name} in {told}")).clone()
    };
    let (good, bad) = (status("a"), status("b"));
    assert_eq!(
        (&good["clientStatus"], &good["xdsConfig"]["connectTimeout"]),
        (&json!("ACKED"), &json!("2s"))
    );
    assert_eq!((&bad["clientStatus"], &bad["xdsConfig"]["connectTimeout"]), (&json!("NACKED"), &json!("5s")));
    assert_eq!(bad["errorState"]["details"], json!(tulle.error), "{bad}");
    // What is in force of the bad one is as old as ever; of the good one it has just come.
    let since = |one: &Value| one["lastUpdated"].as_str().expect("it is told").to_owned();
    assert!(since(&bad) < since(&good), "{bad} {good}");
    // What comes after is taken as ever.
    oracle.push(vec![endpoints("b", &[c])]).await;
    both_come_to(&oracle, "b", ["c", "c"]).await;
    oracle.push(vec![endpoints("b", &[b]), cluster("b", json!({ "connect_timeout": "3s" }))]).await;
    both_come_to(&oracle, "b", ["b", "b"]).await;
}

/// What a client of CSDS, of others' making, is told by the sidecar.
async fn csds(oracle: &Oracle) -> Value {
    let mut command = python("csds.py");
    command.arg(oracle.sidecar.admin.to_string()).stderr(Stdio::inherit()).kill_on_drop(true);
    let output = timeout(LIMIT, command.output()).await.expect("it ends").expect("python runs");
    assert!(output.status.success(), "csds.py failed");
    serde_json::from_slice(&output.stdout).expect("JSON")
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
async fn without_a_control_plane_both_serve_on_and_follow_it_when_it_is_back() {
    let mut oracle = Oracle::start().await;
    let b = oracle.upstreams[1].address;
    oracle.ads.kill().await;
    for path in ["a", "b", "c"] {
        both_come_to(&oracle, path, [path, path]).await;
    }
    oracle.ads.restart(vec![endpoints("a", &[b])]).await;
    both_come_to(&oracle, "a", ["b", "b"]).await;
    both_come_to(&oracle, "c", ["c", "c"]).await;
}

#[tokio::test]
async fn endpoints_that_come_and_go_cost_no_request() {
    let mut oracle = Oracle::start().await;
    let [a, b, c] = [0, 1, 2].map(|at: usize| oracle.upstreams[at].address);
    for round in 0..8 {
        for addresses in [&[a, b][..], &[b], &[b, c], &[c], &[c, a], &[a]] {
            oracle.push(vec![endpoints("a", addresses)]).await;
            for outcomes in oracle.both_at_once((0, 4), to("a").as_bytes(), "ok").await {
                let failed: Vec<_> =
                    outcomes.iter().filter(|outcome| outcome.received.status != 200).collect();
                assert!(failed.is_empty(), "round {round}, {addresses:?}: {}", failed[0]);
            }
        }
    }
}

#[tokio::test]
async fn a_cluster_is_warm_once_its_endpoints_have_come() {
    let mut oracle = Oracle::start().await;
    let c = oracle.upstreams[2].address;
    let host = |cluster: &str| {
        let action = json!({ "cluster": cluster });
        json!({ "name": "h", "domains": ["h.test"], "routes": [{ "match": { "prefix": "/" }, "route": action }] })
    };
    let request = b"GET / HTTP/1.1\r\nhost: h.test\r\n\r\n";
    oracle.routes(&[host("a")]).await;
    let routes = route_configuration("routes", &[host("new"), all_clusters()]);
    oracle.ads.set(vec![cluster("new", json!({})), routes]).await;
    // The control plane says that there are none.
    both_answer(&oracle, request, ["503", "503"]).await;
    oracle.ads.set(vec![endpoints("new", &[c])]).await;
    both_answer(&oracle, request, ["c", "c"]).await;
}

/// A server of gRPC's C core ends the connection of who pings it three times in five minutes while nothing is said; a control
/// plane of Tulle is asked each ten seconds.
#[tokio::test]
async fn a_stream_on_which_nothing_is_said_lasts() {
    let oracle = Oracle::start().await;
    both_come_to(&oracle, "a", ["a", "a"]).await;
    let streams = || ["envoy", "tulle-sidecar"].map(|agent| oracle.ads.streams(agent));
    assert_eq!(streams(), [1, 1]);
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(streams(), [1, 1]);
}

//! Several control planes on one API server: any sidecar on any of them, and none that matters more than another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use tulle_control_plane::ca::tokens::AUDIENCE;
use tulle_control_plane::xds::Kind;
use tulle_tests::TRUST_DOMAIN;
use tulle_tests::apiserver::{ApiServer, Channel};

use crate::client::{Stream, connect, create};
use crate::plane::{Plane, SYSTEM, metrics, trust_bundle, until};
use crate::pods::{Cluster, Pod, SHOP};
use crate::source;

/// Sidecars on two replicas have certificates of one root. What those of the follower say stands in the status that the
/// leader writes. When either dies, its sidecars go to another, which sends them nothing that they have, no request fails,
/// and status is written on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_dies_is_not_missed() {
    let api = ApiServer::start().await;
    api.install_gateway_api(Channel::Experimental).await;
    api.install_tulle().await;
    let mut cluster = Cluster::start(api).await;
    leads(&cluster.plane).await;
    let mut follower = Plane::start(&cluster.api).await;

    let client = cluster.pod("client", "client").await;
    cluster.serve_with(&[&follower, &cluster.plane]);
    let (v1, v2) = tokio::join!(cluster.pod("v1", "stock"), cluster.pod("v2", "stock"));
    let url = cluster.service("stock").await;
    cluster.endpoints("stock", &[(&v1, json!({ "ready": true })), (&v2, json!({ "ready": true }))]).await;
    until(async || client.get(&url).await.map(drop)).await;
    serves(&cluster.plane, 1).await;
    serves(&follower, 2).await;
    let one = issued_by(&cluster, &cluster.plane).await;
    assert_eq!(one, issued_by(&cluster, &follower).await, "one root");

    let scenario = async {
        cluster.api.apply(&route(1)).await;
        programmed(&cluster, "Programmed", "").await;
        let log = cluster.plane.process.log();
        assert!(!log.contains("sidecars are not waited for"), "the follower lives: {log}");
        what_the_follower_hears_is_told(&cluster, &follower).await;

        let before = sent(&cluster.plane).await;
        follower.process.kill().await;
        serves(&cluster.plane, 3).await;
        assert_eq!(sent(&cluster.plane).await, before, "they have it all");
        // Nobody waits for one that is dead.
        until(async || match entries(&cluster).await {
            entries if entries.as_object().is_none_or(serde_json::Map::is_empty) => Ok(()),
            entries => Err(format!("it is not forgotten: {entries}")),
        })
        .await;
        let third = Plane::start(&cluster.api).await;
        cluster.serve_with(&[&third]);
        cluster.plane.process.kill().await;
        serves(&third, 3).await;
        assert_eq!(sent(&third).await, BTreeMap::new(), "they have it all");
        leads(&third).await;
        cluster.api.apply(&route(2)).await;
        programmed(&cluster, "Programmed", "").await;
        third
    };
    let third = under_load(&client, &url, scenario).await;
    assert_eq!(issued_by(&cluster, &third).await, one, "one root");
}

/// A sidecar of the follower that rejects what a route became, and one that says nothing.
async fn what_the_follower_hears_is_told(cluster: &Cluster, follower: &Plane) {
    let token = cluster.api.token(SHOP, "stock", AUDIENCE, Some("v2")).await;
    let channel = connect(follower, &trust_bundle(&cluster.api, SHOP).await).await;
    let open = || Stream::open(channel.clone(), &token, "odd-one", Kind::Listener, &["stock.shop:80"]);

    let mut stream = open().await;
    let response = stream.next().await;
    stream.reject(&response, "this is not for me").await;
    programmed(
        cluster,
        "PartiallyProgrammed",
        "odd-one rejects listener \"stock.shop.svc.cluster.local:80\": this is not",
    )
    .await;
    drop(stream);
    programmed(cluster, "Programmed", "").await;

    let mut stream = open().await;
    stream.next().await;
    programmed(cluster, "Reconciling", "1 connected sidecar has not acknowledged it yet").await;
    drop(stream);
    programmed(cluster, "Programmed", "").await;
    // What has not changed is not written again, but for a sign of life every ten seconds.
    let version = async || {
        let map = cluster.api.get(SYSTEM, "configmap", "tulle-control-plane-replicas").await;
        map["metadata"]["resourceVersion"].to_string()
    };
    let before = version().await;
    let mut versions = BTreeSet::from([before]);
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        versions.insert(version().await);
    }
    assert!(versions.len() <= 3, "{versions:?}");
}

/// Waits until what the API server has of the route's last generation is of this reason and begins with these words.
async fn programmed(cluster: &Cluster, reason: &str, message: &str) {
    until(async || {
        let route = cluster.api.get(SHOP, "httproute", "stock").await;
        let conditions = route["status"]["parents"][0]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|condition| condition["type"] == "tulle.dev/Programmed");
        match found {
            Some(found)
                if found["reason"] == reason
                    && found["observedGeneration"] == route["metadata"]["generation"]
                    && found["message"].as_str().is_some_and(|text| text.starts_with(message)) =>
            {
                Ok(())
            }
            _ => Err(format!("not {reason}: {route}")),
        }
    })
    .await;
}

/// A route that splits between one Service and itself.
fn route(weight: u32) -> String {
    source::route(&json!({ "name": "stock", "port": 80, "weight": weight }))
}

/// Waits until a control plane leads.
async fn leads(plane: &Plane) {
    until(async || {
        let log = plane.process.log();
        if log.contains("leads=true") { Ok(()) } else { Err(format!("it does not lead: {log}")) }
    })
    .await;
}

/// Waits until so many sidecars are connected to a control plane.
async fn serves(plane: &Plane, sidecars: u32) {
    until(async || match metrics(plane.http()).await.sum("tulle_control_plane_xds_streams", &[]) {
        streams if streams == f64::from(sidecars) => Ok(()),
        streams => Err(format!("{streams} sidecars are connected, not {sidecars}")),
    })
    .await;
}

/// How many resources a control plane has sent, by type. That a name is still nobody's it says again.
async fn sent(plane: &Plane) -> BTreeMap<&'static str, f64> {
    let metrics = metrics(plane.http()).await;
    let sum = |kind| metrics.sum("tulle_control_plane_xds_resources_total", &[("type", kind)]);
    let kinds = ["CDS", "EDS", "LDS", "RDS", "SDS", "DNS"];
    kinds.into_iter().map(|kind| (kind, sum(kind))).filter(|(_, sum)| *sum > 0.0).collect()
}

/// The root under which a control plane certifies.
async fn issued_by(cluster: &Cluster, plane: &Plane) -> String {
    let channel = connect(plane, &trust_bundle(&cluster.api, SHOP).await).await;
    let token = cluster.api.token(SHOP, "client", AUDIENCE, Some("client")).await;
    let identity = format!("spiffe://{TRUST_DOMAIN}/ns/{SHOP}/sa/client");
    let chain = create(channel, Some(&token), &identity).await.expect("it is a pod's token");
    chain.last().expect("a root").clone()
}

/// What replicas say, by replica.
async fn entries(cluster: &Cluster) -> Value {
    cluster.api.get(SYSTEM, "configmap", "tulle-control-plane-replicas").await["data"].clone()
}

/// Does something while a page is asked for again and again, which never fails.
async fn under_load<T>(client: &Pod, url: &str, work: impl Future<Output = T>) -> T {
    let load = async {
        let mut requests = 0;
        loop {
            let answer = client.get(url).await;
            assert!(answer.is_ok(), "after {requests} requests: {answer:?}");
            requests += 1;
        }
    };
    tokio::select! {
        done = work => done,
        () = load => unreachable!("it has no end"),
    }
}

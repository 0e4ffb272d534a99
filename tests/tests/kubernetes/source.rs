//! `kubectl apply` changes traffic; nothing that goes wrong at the API server does.

use serde_json::{Value, json};
use tulle_tests::apiserver::{ApiServer, Channel};

use crate::plane::{knows, metrics, objects, readiness, until};
use crate::pods::{Cluster, SHOP};

fn ready() -> Value {
    json!({ "ready": true })
}

/// A route of all requests to the Service `stock`.
pub(crate) fn route(backend: &Value) -> String {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": { "name": "stock", "namespace": SHOP },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": "stock", "port": 80 }],
            "rules": [{ "backendRefs": [backend] }],
        },
    })
    .to_string()
}

/// Endpoints, routes and their loss change where a request goes; a broken route changes nothing and is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_applied_changes_traffic() {
    let api = ApiServer::start().await;
    api.install_gateway_api(Channel::Experimental).await;
    api.install_tulle().await;
    let cluster = Cluster::start(api).await;
    let (client, v1, v2) =
        tokio::join!(cluster.pod("client", "client"), cluster.pod("v1", "stock"), cluster.pod("v2", "stock"));
    let url = cluster.service("stock").await;
    let other = cluster.service("stock-v2").await;
    cluster.endpoints("stock", &[(&v1, ready())]).await;
    cluster.endpoints("stock-v2", &[(&v2, ready())]).await;
    client.reaches(&url, "v1").await;
    client.reaches(&other, "v2").await;

    // Of two endpoints one is no longer ready.
    cluster.endpoints("stock", &[(&v1, json!({ "ready": false })), (&v2, ready())]).await;
    client.reaches(&url, "v2").await;
    cluster.endpoints("stock", &[(&v1, ready())]).await;
    client.reaches(&url, "v1").await;

    cluster.api.apply(&route(&json!({ "name": "stock-v2", "port": 80 }))).await;
    client.reaches(&url, "v2").await;
    until(async || {
        match cluster.api.get(SHOP, "httproute", "stock").await["status"]["parents"].to_string() {
            parents if parents.contains(r#""type":"Accepted""#) && parents.contains(r#""status":"True""#) => {
                Ok(())
            }
            parents => Err(format!("the route does not say that it is accepted: {parents}")),
        }
    })
    .await;

    // A cluster whose definitions are older, or looser, than what they should be: it lets through what no type allows.
    let schema = json!([{
        "op": "replace",
        "path": "/spec/versions/0/schema/openAPIV3Schema",
        "value": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
    }]);
    let schema = schema.to_string();
    let definition = ["patch", "crd", "httproutes.gateway.networking.k8s.io", "--type=json", "-p", &schema];
    cluster.api.kubectl(&definition).await;
    // Until it is in force, the API server refuses the value. A field that only the old schema drops would not do: watches
    // that are still served by it would show a route that is whole.
    let heavy = r#"[{"op":"add","path":"/spec/rules/0/backendRefs/0/weight","value":"heavy"}]"#;
    let patch = ["patch", "httproute", "stock", "--type=json", "--dry-run=server", "-p", heavy];
    let trial = [&["-n", SHOP][..], &patch].concat();
    until(async || cluster.api.try_kubectl(&trial).await.map(drop)).await;
    let broken = route(&json!({ "name": "stock", "port": 80, "weight": "heavy" }));
    cluster.api.apply(&broken).await;
    until(async || {
        let objects = objects(cluster.http).await.to_string();
        if objects.contains("spec.rules[0].backendRefs[0].weight") { Ok(()) } else { Err(objects) }
    })
    .await;
    assert_eq!(client.get(&url).await.as_deref(), Ok("v2"), "the last good route stays in force");
    cluster.api.apply(&route(&json!({ "name": "stock", "port": 80 }))).await;
    client.reaches(&url, "v1").await;

    cluster.api.kubectl(&["-n", SHOP, "delete", "endpointslice", "stock-1"]).await;
    until(async || match client.get(&url).await {
        Err(refused) if refused.contains("503") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

/// Without the Gateway API's kinds the mesh works and says what is missing; when they come they are taken up, and when
/// they go what they said is forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_that_come_later_are_taken_up() {
    let cluster = Cluster::start(ApiServer::start().await).await;
    let (client, v1, v2) =
        tokio::join!(cluster.pod("client", "client"), cluster.pod("v1", "stock"), cluster.pod("v2", "stock"));
    let url = cluster.service("stock").await;
    cluster.service("stock-v2").await;
    cluster.endpoints("stock", &[(&v1, ready())]).await;
    cluster.endpoints("stock-v2", &[(&v2, ready())]).await;
    client.reaches(&url, "v1").await;
    let problems = objects(cluster.http).await["problems"].to_string();
    assert!(problems.contains("the cluster does not have HTTPRoute, GRPCRoute"), "{problems}");
    assert!(problems.contains("apply manifests/crds"), "{problems}");

    cluster.api.install_gateway_api(Channel::Standard).await;
    cluster.api.apply(&route(&json!({ "name": "stock-v2", "port": 80 }))).await;
    client.reaches(&url, "v2").await;
    knows(cluster.http, "HTTPRoute", "stock").await;
    until(async || match objects(cluster.http).await["problems"].to_string() {
        problems if problems.contains("HTTPRoute") => Err(problems),
        _ => Ok(()),
    })
    .await;

    cluster.api.kubectl(&["delete", "crd", "httproutes.gateway.networking.k8s.io"]).await;
    client.reaches(&url, "v1").await;
}

/// While the API server is away every request succeeds and the control plane says what it lacks; what changed meanwhile
/// is known when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_restarts_is_not_noticed() {
    let mut cluster = Cluster::start(ApiServer::start().await).await;
    let (client, v1) = tokio::join!(cluster.pod("client", "client"), cluster.pod("v1", "stock"));
    let url = cluster.service("stock").await;
    cluster.endpoints("stock", &[(&v1, ready())]).await;
    client.reaches(&url, "v1").await;

    cluster.api.kill();
    let failing = async |value: f64| {
        let series = metrics(cluster.http).await;
        let found = series.sum("tulle_control_plane_source_failing", &[("kind", "Service")]);
        if found == value { Ok(()) } else { Err(format!("source_failing is {found}")) }
    };
    until(async || {
        assert_eq!(client.get(&url).await.as_deref(), Ok("v1"));
        failing(1.0).await
    })
    .await;
    let (status, text) = readiness(cluster.http).await;
    assert!(status == 200 && text.contains("Service: "), "{status} {text}");

    cluster.api.restart().await;
    let v2 = cluster.pod("v2", "stock").await;
    cluster.endpoints("stock", &[(&v2, ready())]).await;
    client.reaches(&url, "v2").await;
    until(async || failing(0.0).await).await;
    assert_eq!(readiness(cluster.http).await.0, 200);
    assert!(!cluster.plane.process.log().contains("panicked"));
}

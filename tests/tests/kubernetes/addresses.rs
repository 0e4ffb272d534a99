//! Services without an address of their own, in a cluster: what an application gets that dials what the cluster's DNS says.

use std::collections::BTreeSet;

use serde_json::json;
use tulle_tests::apiserver::ApiServer;
use tulle_tests::{TRUST_DOMAIN, output_of};

use crate::plane::until;
use crate::pods::{Cluster, Pod, SHOP};

/// The endpoints of a headless Service are dialled one by one, each over mTLS and pinned to who it is; where an ExternalName
/// leads is outside, and reached as if there were no mesh.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_dialled_one_by_one_and_external_names_lead_outside() {
    let cluster = Cluster::start(ApiServer::start().await).await;
    let (client, v1, v2) = tokio::join!(
        cluster.pod("client", "client"),
        cluster.pod("v1", "first"),
        cluster.pod("v2", "second")
    );
    let (outside, _server) = cluster.outside("elsewhere").await;
    let service = |name: &str, spec: serde_json::Value| {
        let metadata = json!({ "name": name, "namespace": SHOP });
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec }).to_string()
    };
    let ports = json!([{ "name": "http", "port": 8080, "targetPort": "http" }]);
    cluster.api.apply(&service("all", json!({ "clusterIP": "None", "ports": ports }))).await;
    let ready = json!({ "ready": true });
    cluster.endpoints("all", &[(&v1, ready.clone()), (&v2, ready)]).await;
    let name = json!({ "type": "ExternalName", "externalName": "elsewhere.example", "ports": ports });
    cluster.api.apply(&service("elsewhere", name)).await;

    for (pod, name, account) in [(&v1, "v1", "first"), (&v2, "v2", "second")] {
        let url = format!("http://{}:8080/", pod.host.v4);
        let principal = format!("destination_principal=\"spiffe://{TRUST_DOMAIN}/ns/{SHOP}/sa/{account}\"");
        until(async || {
            client.reaches(&url, name).await;
            let metrics = metrics(&client).await;
            if metrics.contains(&principal) { Ok(()) } else { Err(format!("no {principal} in {metrics}")) }
        })
        .await;
    }
    let before = principals(&metrics(&client).await);
    client.reaches(&format!("http://{}:8080/", outside.v4), "elsewhere").await;
    assert_eq!(principals(&metrics(&client).await), before, "nobody has proven anything there");
}

/// What the sidecar of a pod counts.
async fn metrics(pod: &Pod) -> String {
    let mut command = pod.host.curl();
    command.arg("http://127.0.0.1:15020/metrics");
    String::from_utf8_lossy(&output_of(command).await.stdout).into_owned()
}

/// Who has proven to be somebody.
fn principals(metrics: &str) -> BTreeSet<String> {
    let values = metrics.split("destination_principal=\"").skip(1);
    let found = values.filter_map(|rest| rest.split('"').next());
    found.filter(|principal| !principal.is_empty()).map(str::to_owned).collect()
}

//! What operators put beside a mesh, on a real API server: Jaeger and Prometheus.

use serde_json::json;
use tulle_tests::apiserver::ApiServer;

use crate::installed::manifests;
use crate::plane::SYSTEM;

#[tokio::test]
async fn what_watches_the_mesh_is_accepted_and_needs_no_rights_that_it_does_not_use() {
    let api = ApiServer::start().await;
    api.install_tulle().await;
    api.make_namespace(SYSTEM).await;
    for name in ["jaeger", "prometheus"] {
        api.kubectl(&["apply", "-k", &manifests(name)]).await;
        // What a controller makes of a new namespace and of a Deployment; the level `restricted` is enforced for pods.
        if name == "jaeger" {
            api.kubectl(&["-n", name, "create", "serviceaccount", "default"]).await;
        }
        let deployment = api.get(name, "deployment", name).await;
        let mut pod = deployment["spec"]["template"].clone();
        (pod["apiVersion"], pod["kind"]) = (json!("v1"), json!("Pod"));
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["namespace"] = json!(name);
        api.apply(&pod.to_string()).await;
    }
    let may = async |verb: &str, what: &str| {
        let who = "--as=system:serviceaccount:prometheus:prometheus";
        api.try_kubectl(&["auth", "can-i", verb, what, "--all-namespaces", who]).await.is_ok()
    };
    assert!(may("list", "pods").await && may("watch", "pods").await);
    assert!(!may("list", "secrets").await && !may("delete", "pods").await);
    // Its kinds are the Operator's.
    let monitors = api.kubectl(&["kustomize", &manifests("prometheus-operator")]).await;
    assert_eq!(monitors.matches("kind: PodMonitor").count(), 2, "{monitors}");
}

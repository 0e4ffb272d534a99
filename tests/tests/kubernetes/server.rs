//! The harness itself: what the tests take for granted of their API server.

use serde_json::json;
use tulle_tests::apiserver::{ApiServer, Channel};

/// Objects survive a restart, tokens are bound to pods, RBAC is on, and the Gateway API is served once it is installed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_is_what_it_should_be() {
    let mut api = ApiServer::start().await;
    let version = api.kubectl(&["version", "-o", "json"]).await;
    assert!(version.contains("\"gitVersion\": \"v1.34."), "{version}");

    let namespace = api.namespace("shop").await;
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "cart", "namespace": namespace },
        "spec": { "nodeName": "n1", "containers": [{ "name": "cart", "image": "cart" }] },
    });
    api.apply(&pod.to_string()).await;
    api.patch_status(&namespace, "pod", "cart", &json!({ "phase": "Running", "podIP": "10.77.0.9" })).await;
    assert_eq!(api.get(&namespace, "pod", "cart").await["status"]["podIP"], "10.77.0.9");
    let token = api.token(&namespace, "default", "tulle", Some("cart")).await;
    assert_eq!(token.split('.').count(), 3, "a JWT");

    let kubeconfig = api.kubeconfig_of(&namespace, "default").await;
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    let refused = api.try_kubectl(&[&kubeconfig, "get", "pods", "-A"]).await.unwrap_err();
    assert!(refused.contains("Forbidden"), "{refused}");

    assert!(api.try_kubectl(&["get", "httproutes", "-A"]).await.is_err());
    api.install_gateway_api(Channel::Experimental).await;
    assert_eq!(api.kubectl(&["get", "httproutes", "-A", "-o", "name"]).await, "");

    api.kill();
    assert!(api.try_kubectl(&["get", "--raw", "/readyz"]).await.is_err());
    api.restart().await;
    assert_eq!(api.get(&namespace, "pod", "cart").await["status"]["podIP"], "10.77.0.9");
}

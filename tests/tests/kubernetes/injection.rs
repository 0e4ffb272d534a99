//! The webhooks of the control plane that `manifests/base` describes, asked by a real API server.

use std::time::Duration;

use serde_json::{Value, json};
use tulle_tests::apiserver::ApiServer;

use crate::installed::{Installed, manifests};
use crate::plane::until;

/// Makes a pod again and again until it is as it should be: webhooks and namespaces are known after a while.
async fn make(
    cluster: &Installed,
    namespace: &str,
    name: &str,
    manifest: &str,
    is: impl Fn(&Value) -> bool,
) -> Value {
    until(async || {
        let _ = cluster
            .api
            .try_kubectl(&["-n", namespace, "delete", "pod", name, "--force", "--ignore-not-found"])
            .await;
        cluster.api.try_apply(manifest).await?;
        let pod = cluster.api.get(namespace, "pod", name).await;
        if is(&pod) { Ok(pod) } else { Err(format!("it is {pod}")) }
    })
    .await
}

fn containers(pod: &Value) -> Vec<&str> {
    let all = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    all.filter_map(|container| container["name"].as_str()).collect()
}

fn pod(namespace: &str, name: &str, extra: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{extra}containers: [{{name: \
         app, image: app:1}}]}}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_a_labelled_namespace_is_made_with_a_sidecar() {
    let cluster = Installed::shared().await;
    let namespace = cluster.api.namespace("injected").await;
    cluster.api.kubectl(&["label", "namespace", &namespace, "tulle.dev/inject=enabled"]).await;
    let made = make(cluster, &namespace, "web", &pod(&namespace, "web", ""), |pod| {
        containers(pod) == ["tulle-init", "tulle-sidecar"]
    })
    .await;
    assert_eq!(made["spec"]["initContainers"][1]["image"], "sidecar:test");
    assert_eq!(made["spec"]["initContainers"][1]["restartPolicy"], "Always");
    assert_eq!(made["metadata"]["labels"]["tulle.dev/tls"], "mesh");

    // One that can't have a sidecar is made without, and its owner is told.
    let plain = pod(&namespace, "node", "hostNetwork: true, ");
    let made = make(cluster, &namespace, "node", &plain, |_| true).await;
    assert!(containers(&made).is_empty());
    until(async || {
        let events = cluster.api.kubectl(&["-n", &namespace, "get", "events", "-o", "json"]).await;
        let told = events.contains("InjectionSkipped") && events.contains("hostNetwork");
        if told { Ok(()) } else { Err(format!("nothing is told: {events}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_changes_the_bundle_changes_it_for_a_moment() {
    let cluster = Installed::shared().await;
    let bundles = [
        "get",
        "validatingwebhookconfiguration",
        "tulle",
        "-o",
        "jsonpath={.webhooks[0].clientConfig.caBundle}",
    ];
    let good = until(async || match cluster.api.kubectl(&bundles).await {
        none if none.is_empty() => Err("there is no bundle".into()),
        bundle => Ok(bundle),
    })
    .await;
    let patch = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]).to_string();
    cluster
        .api
        .kubectl(&["patch", "validatingwebhookconfiguration", "tulle", "--type=json", "-p", &patch])
        .await;
    until(async || {
        let bundle = cluster.api.kubectl(&bundles).await;
        if bundle == good { Ok(()) } else { Err(format!("the bundle is {bundle:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_in_force_is_not_stored() {
    let cluster = Installed::shared().await;
    let namespace = cluster.api.namespace("refused").await;
    let filter = format!(
        "apiVersion: tulle.dev/v1alpha1\nkind: HTTPFaultFilter\nmetadata: {{name: slow, namespace: {namespace}}}\nspec: \
         {{abort: {{fraction: {{numerator: 101}}}}}}\n"
    );
    let refused = cluster.api.try_apply(&filter).await.expect_err("CEL refuses it");
    assert!(refused.contains("the rate is more than the whole"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_applies_and_is_shown() {
    let cluster = Installed::shared().await;
    cluster.api.make_namespace("shop").await;
    cluster.api.kubectl(&["apply", "-f", &manifests("demo"), "--dry-run=server"]).await;
    cluster.api.kubectl(&["apply", "-f", &manifests("demo")]).await;
    // With the rights of its service account the control plane reads all of it, and writes what became of it.
    let shown = until(async || {
        let shown = cluster.api.kubectl(&["get", "tulle", "-n", "shop"]).await;
        if shown.matches("True").count() >= 4 {
            Ok(shown)
        } else {
            Err(format!("not all is accepted: {shown}"))
        }
    })
    .await;
    for word in ["ALGORITHM", "PeakEWMA", "MTLS", "Strict", "ACCEPTED", "ACTION", "ALLOW"] {
        assert!(shown.contains(word), "{word} is not in {shown}");
    }
    let log = cluster.plane.log();
    assert!(!log.contains("orbidden"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_cni_an_injected_pod_is_restricted() {
    let cluster = Installed::shared().await;
    let namespace = cluster.api.namespace("restricted").await;
    let level = "pod-security.kubernetes.io/enforce=restricted";
    cluster.api.kubectl(&["label", "namespace", &namespace, level]).await;
    let settings = tulle_control_plane::inject::Settings {
        redirection: tulle_control_plane::inject::Redirection::Cni,
        ..Default::default()
    };
    let bare = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": namespace},
        "spec": {
            "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "app", "image": "app:1",
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    });
    let inject = |settings: &_| {
        let namespace = tulle_control_plane::inject::Namespace::enabled("x");
        tulle_control_plane::inject::inject(&bare, &namespace, settings).expect("it gets a sidecar").template
    };
    cluster.api.apply(&inject(&settings).to_string()).await;
    // And where an init container redirects, the level says what it lacks.
    let mut privileged = inject(&tulle_control_plane::inject::Settings::default());
    privileged["metadata"]["name"] = "other".into();
    let refused = cluster.api.try_apply(&privileged.to_string()).await.expect_err("NET_ADMIN is forbidden");
    assert!(refused.contains("NET_ADMIN"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_are_put_to_the_sidecar_and_come_back_as_the_api_server_completed_them() {
    let cluster = Installed::shared().await;
    let namespace = cluster.api.namespace("probed").await;
    cluster.api.kubectl(&["label", "namespace", &namespace, "tulle.dev/inject=enabled"]).await;
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: {namespace}}}\nspec:\n  containers:\n  - name: app\n    \
         image: app:1\n    ports: [{{name: web, containerPort: 8080}}]\n    startupProbe: {{tcpSocket: {{port: web}}}}\n    \
         livenessProbe: {{grpc: {{port: 9000, service: shop.Cart}}, timeoutSeconds: 3}}\n    readinessProbe: {{httpGet: \
         {{port: web, path: /ready}}, periodSeconds: 3}}\n"
    );
    let made =
        make(cluster, &namespace, "web", &manifest, |pod| containers(pod).contains(&"tulle-sidecar")).await;
    let app = &made["spec"]["containers"][0];
    for (field, kind) in
        [("startupProbe", "startup"), ("livenessProbe", "liveness"), ("readinessProbe", "readiness")]
    {
        let asked = json!({"path": format!("/probe/app/{kind}"), "port": 15020, "scheme": "HTTP"});
        assert_eq!(app[field]["httpGet"], asked, "{field}: {}", app[field]);
        assert!(app[field].get("tcpSocket").is_none() && app[field].get("grpc").is_none());
    }
    assert_eq!(app["livenessProbe"]["timeoutSeconds"], 3);
    // The very pod that the API server has: another round changes nothing, and out of the mesh it is as it was.
    let own = tulle_control_plane::inject::uninject(&made);
    let own = &own["spec"]["containers"][0];
    assert_eq!(own["startupProbe"]["tcpSocket"], json!({"port": "web"}));
    assert_eq!(own["livenessProbe"]["grpc"], json!({"port": 9000, "service": "shop.Cart"}));
    assert_eq!(own["readinessProbe"]["httpGet"], json!({"path": "/ready", "port": "web", "scheme": "HTTP"}));
    let again = cluster.api.kubectl(&["-n", &namespace, "get", "pod", "web", "-o", "json"]).await;
    let mut again: Value = serde_json::from_str(&again).expect("JSON");
    again["metadata"] = json!({
        "name": "again",
        "namespace": namespace,
        "labels": made["metadata"]["labels"],
        "annotations": made["metadata"]["annotations"],
    });
    again["spec"].as_object_mut().expect("a map").shift_remove("nodeName");
    cluster.api.apply(&again.to_string()).await;
    let again = cluster.api.get(&namespace, "pod", "again").await;
    assert_eq!(again["spec"]["containers"], made["spec"]["containers"]);
    assert_eq!(again["spec"]["initContainers"], made["spec"]["initContainers"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_is_dead_does_what_its_policy_says() {
    // An own one: the policy of the shared one must not change.
    let api = ApiServer::start().await;
    api.install_tulle().await;
    api.kubectl(&["apply", "-k", &manifests("base")]).await;
    let namespace = api.namespace("dead").await;
    api.kubectl(&["label", "namespace", &namespace, "tulle.dev/inject=enabled"]).await;
    let made = api.try_apply(&pod(&namespace, "web", "")).await;
    assert!(made.is_ok(), "Ignore: {made:?}");
    api.kubectl(&["apply", "-k", &manifests("ha"), "--dry-run=server"]).await;
    api.kubectl(&["apply", "-k", &manifests("ha")]).await;
    let wait = Duration::from_millis(200);
    until(async || {
        tokio::time::sleep(wait).await;
        match api.try_apply(&pod(&namespace, "other", "")).await {
            Err(error) if error.contains("namespace.inject.tulle.dev") => Ok(()),
            other => {
                let _ = api.try_kubectl(&["-n", &namespace, "delete", "pod", "other", "--force"]).await;
                Err(format!("Fail: {other:?}"))
            }
        }
    })
    .await;
}

//! The trust bundle as one object of the cluster, where the API server has such.

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio::process::Command;
use tulle_tests::apiserver::{ApiServer, CLUSTER_TRUST_BUNDLES};
use tulle_tests::{binaries, binary, output_of};

use crate::check::{says, tulle};
use crate::plane::{Plane, SYSTEM, trust_bundle, until};

/// What the object says, once it says something else than `before`.
async fn published(api: &ApiServer, before: &str) -> String {
    let arguments = ["get", "clustertrustbundle", "tulle-trust-bundle", "-o", "jsonpath={.spec.trustBundle}"];
    until(async || match api.try_kubectl(&arguments).await? {
        pem if pem.trim() != before.trim() => Ok(pem),
        pem => Err(format!("it still says {pem}")),
    })
    .await
}

/// A root of somebody else.
fn root() -> String {
    let key = KeyPair::generate().expect("the system gives random bytes");
    let mut params = CertificateParams::new(Vec::new()).expect("there are no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.self_signed(&key).expect("the parameters are sound").pem()
}

/// The leader publishes what the ConfigMaps say, puts right what others change or delete, and follows a rotation. A pod that
/// is injected to mount it is taken by the API server as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roots_are_published_for_the_whole_cluster() {
    let api = ApiServer::start_with(&CLUSTER_TRUST_BUNDLES).await;
    for namespace in [SYSTEM, "shop"] {
        api.make_namespace(namespace).await;
    }
    let _plane = Plane::start(&api).await;
    let first = published(&api, "").await;
    assert_eq!(first.trim(), trust_bundle(&api, "shop").await.trim());

    api.kubectl(&["delete", "clustertrustbundle", "tulle-trust-bundle"]).await;
    assert_eq!(published(&api, "").await, first);
    // Another root in it would be trusted by all pods.
    let foreign = root();
    let patch = json!({ "spec": { "trustBundle": &foreign } }).to_string();
    api.kubectl(&["patch", "clustertrustbundle", "tulle-trust-bundle", "--type=merge", "-p", &patch]).await;
    assert_eq!(published(&api, &foreign).await, first);

    let mut command = Command::new(&binaries().control_plane);
    command.args(["rotate-root", "prepare", "--kubernetes", "--kubeconfig"]).arg(&api.kubeconfig);
    let output = output_of(command).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let both = published(&api, &first).await;
    assert_eq!(both.matches("BEGIN CERTIFICATE").count(), 2, "{both}");
    until(async || match trust_bundle(&api, "shop").await {
        found if found.trim() == both.trim() => Ok(()),
        found => Err(found),
    })
    .await;

    mount(&api).await;
    let volumes = api.get("shop", "pod", "web").await["spec"]["volumes"].clone();
    let trust =
        volumes.as_array().into_iter().flatten().find(|volume| volume["name"] == "tulle-trust-bundle");
    let source = &trust.unwrap_or(&Value::Null)["projected"]["sources"][0]["clusterTrustBundle"];
    assert_eq!(*source, json!({ "name": "tulle-trust-bundle", "path": "root.pem" }), "{volumes}");
    let report = tulle(&api.kubeconfig, &["check"]).await.1;
    assert!(says(&report, "pass", &["the ClusterTrustBundle that pods mount is there"]), "{report:#}");
}

/// Makes a pod, in a namespace of the mesh, that is told to mount it.
async fn mount(api: &ApiServer) {
    api.kubectl(&["label", "namespace", "shop", "tulle.dev/inject=enabled"]).await;
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\n\
               spec: {containers: [{name: app, image: app}]}\n";
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("pod.yaml");
    std::fs::write(&file, pod).expect("it can be written");
    let mut command = Command::new(binary("tulle"));
    command.args(["inject", "--trust-bundle", "cluster-trust-bundle", "-f"]).arg(&file);
    let output = output_of(command).await;
    api.apply(&String::from_utf8_lossy(&output.stdout)).await;
}

/// Where the API server has no such objects there is the ConfigMap, and that is said once; a pod that is told to mount one can't
/// start, which `tulle check` says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_such_objects_there_are_config_maps() {
    let api = ApiServer::start().await;
    for namespace in [SYSTEM, "shop"] {
        api.make_namespace(namespace).await;
    }
    let plane = Plane::start(&api).await;
    trust_bundle(&api, "shop").await;
    let said = || plane.process.log().matches("no ClusterTrustBundle is published").count();
    until(async || if said() == 1 { Ok(()) } else { Err(plane.process.log()) }).await;

    mount(&api).await;
    let (code, report) = tulle(&api.kubeconfig, &["check"]).await;
    assert!(says(&report, "fail", &["ClusterTrustBundle", "can't start: shop/web"]), "{report:#}");
    assert_eq!(code, 1);
}

//! The CA of a cluster: one Secret, whoever is first; its bundle in every namespace; rotation; who leads.

use serde_json::json;
use tokio::process::Command;
use tulle_tests::apiserver::ApiServer;
use tulle_tests::{binaries, output_of};

use crate::plane::{Plane, SYSTEM, trust_bundle, until};

/// Two control planes that start at once have one root. Every namespace gets the bundle, also one that comes later; what
/// somebody changes is put right; a rotation reaches both; and when the leader dies the other writes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_planes_share_a_root_and_tell_it_to_every_namespace() {
    let api = ApiServer::start().await;
    api.make_namespace(SYSTEM).await;
    let (first, second) = tokio::join!(Plane::start(&api), Plane::start(&api));
    let bundle = trust_bundle(&api, "kube-system").await;
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 1, "{bundle}");

    let secret = api.get(SYSTEM, "secret", "tulle-ca").await;
    assert_eq!(
        secret["data"].as_object().expect("data").len(),
        5,
        "a root, its key, a choice, a bundle, a token key"
    );
    for (name, plane) in [("first", &first), ("second", &second)] {
        let log = plane.process.log();
        assert!(!log.contains("PRIVATE KEY"), "{name}: {log}");
    }

    let later = api.namespace("later").await;
    assert_eq!(trust_bundle(&api, &later).await, bundle);
    let broken = json!({ "data": { "root.pem": "mine" } }).to_string();
    api.kubectl(&["-n", &later, "patch", "configmap", "tulle-trust-bundle", "--type=merge", "-p", &broken])
        .await;
    until(async || match trust_bundle(&api, &later).await {
        text if text == bundle => Ok(()),
        text => Err(text),
    })
    .await;
    api.kubectl(&["-n", &later, "delete", "configmap", "tulle-trust-bundle"]).await;
    assert_eq!(trust_bundle(&api, &later).await, bundle);

    let holder = api.get(SYSTEM, "lease", "tulle-control-plane").await["spec"]["holderIdentity"].clone();
    let mut planes = [first, second];
    let leads = |plane: &Plane| plane.process.log().contains("leads=true");
    assert_eq!(planes.iter().filter(|plane| leads(plane)).count(), 1, "one leads");
    let leader = planes.iter().position(leads).expect("it was just counted");
    planes[leader].process.kill().await;

    rotate(&api, "prepare").await;
    until(async || match trust_bundle(&api, &later).await {
        text if text.matches("BEGIN CERTIFICATE").count() == 2 && text.contains(bundle.trim()) => Ok(()),
        text => Err(format!("one root in {text}")),
    })
    .await;
    let lease = api.get(SYSTEM, "lease", "tulle-control-plane").await;
    assert_ne!(lease["spec"]["holderIdentity"], holder);
    rotate(&api, "switch").await;
    rotate(&api, "retire").await;
    until(async || match trust_bundle(&api, &later).await {
        text if text.matches("BEGIN CERTIFICATE").count() == 1 && !text.contains(bundle.trim()) => Ok(()),
        text => Err(format!("the old root is in {text}")),
    })
    .await;
}

/// Does a step of a rotation.
pub(crate) async fn rotate(api: &ApiServer, step: &str) {
    let mut command = Command::new(&binaries().control_plane);
    command.args(["rotate-root", step, "--kubernetes", "--kubeconfig"]).arg(&api.kubeconfig);
    let output = output_of(command).await;
    assert!(output.status.success(), "{step}: {}", String::from_utf8_lossy(&output.stderr));
}

//! The chart in `manifests/helm`, rendered by helm: it says what `manifests/base`, `ha` and `cni` say, and its values are the
//! settings of `tulle install`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tokio::process::Command;
use tulle_tests::apiserver::{ApiServer, Channel, programs};
use tulle_tests::{binary, output_of};

use crate::installed::manifests;

/// Objects by kind, namespace and name.
type Objects = BTreeMap<(String, String, String), Value>;

/// What a command prints.
///
/// # Panics
/// When it fails.
async fn run(program: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = output_of(command).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The objects of a YAML text, read by kubectl, which needs no server for it.
async fn objects(yaml: &str) -> Objects {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("all.yaml"), yaml).expect("the folder can be written");
    std::fs::write(folder.path().join("kustomization.yaml"), "resources: [all.yaml]").expect("it can");
    kustomized(folder.path().to_str().expect("UTF-8")).await
}

async fn kustomized(folder: &str) -> Objects {
    let yaml = run(&programs().join("kubectl"), &["kustomize", folder]).await;
    let documents = yaml.split("\n---\n").map(|document| {
        let object: Value = serde_saphyr::from_str(document).expect("YAML");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        ((text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"])), object)
    });
    documents.collect()
}

async fn rendered(settings: &[&str]) -> Objects {
    let chart = manifests("helm");
    let sets: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let arguments = [&["template", "tulle", chart.as_str(), "--include-crds"][..], &sets].concat();
    objects(&run(&programs().join("helm"), &arguments).await).await
}

async fn installed(settings: &[&str]) -> Objects {
    let sets: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    objects(&run(&binary("tulle"), &[&["install"][..], &sets].concat()).await).await
}

fn same(left: &Objects, right: &Objects) {
    assert!(left.keys().eq(right.keys()), "{:?} and {:?}", left.keys(), right.keys());
    for (name, object) in left {
        assert_eq!(object, &right[name], "{name:?}");
    }
}

/// With the flags of the control plane in an order that does not depend on who gave them.
fn sorted(mut objects: Objects) -> Objects {
    for ((kind, ..), object) in &mut objects {
        let args = object.pointer_mut("/spec/template/spec/containers/0/args").and_then(Value::as_array_mut);
        if let ("Deployment", Some(args)) = (kind.as_str(), args) {
            args.sort_by_key(ToString::to_string);
        }
    }
    objects
}

#[tokio::test]
async fn the_chart_says_what_the_manifests_say() {
    let linted = run(&programs().join("helm"), &["lint", "--strict", &manifests("helm")]).await;
    assert!(linted.contains("1 chart(s) linted, 0 chart(s) failed"), "{linted}");
    same(&rendered(&[]).await, &kustomized(&manifests("base")).await);
    same(&rendered(&["ha=true"]).await, &kustomized(&manifests("ha")).await);
    let mut with_plugin = rendered(&["redirection=cni"]).await;
    for (name, object) in kustomized(&manifests("cni")).await {
        assert_eq!(with_plugin.remove(&name), Some(object), "{name:?}");
    }
    assert!(with_plugin.keys().eq(kustomized(&manifests("base")).await.keys()));
}

#[tokio::test]
async fn a_value_of_the_chart_is_a_setting_of_the_command() {
    let settings = [
        "ha=true",
        "createNamespace=false",
        "image=registry.example/cp:9",
        "sidecarImage=registry.example/sc:9",
        "cniImage=registry.example/cni:9",
        "imagePullPolicy=Always",
        "replicas=5",
        "cpuRequest=250m",
        "memoryRequest=128Mi",
        "memoryLimit=2Gi",
        "trustDomain=example.com",
        "clusterDomain=example.internal",
        "failurePolicy=Ignore",
        "redirection=cni",
        "trustBundle=cluster-trust-bundle",
        "sidecarLogLevel=debug",
        "sidecarOtlp=http://collector.tracing:4317",
    ];
    let none = installed(&[]).await;
    for setting in settings {
        // The plugin's image needs the plugin.
        let together = ["redirection=cni", setting];
        let settings = if setting.starts_with("cni") { &together[..] } else { &together[1..] };
        let (rendered, installed) = (rendered(settings).await, installed(settings).await);
        same(&sorted(rendered), &sorted(installed.clone()));
        assert!(setting == "failurePolicy=Ignore" || installed != none, "{setting} changes nothing");
    }
    same(&sorted(rendered(&settings).await), &sorted(installed(&settings).await));

    // The settings are all that there are, and those that mean nothing are refused.
    let schema =
        std::fs::read_to_string(format!("{}/values.schema.json", manifests("helm"))).expect("a file");
    let schema: Value = serde_json::from_str(&schema).expect("JSON");
    let known: Vec<&str> =
        schema["properties"].as_object().expect("an object").keys().map(String::as_str).collect();
    let tried: Vec<&str> = settings.iter().filter_map(|setting| setting.split('=').next()).collect();
    let untried: Vec<_> = known.iter().filter(|key| !tried.contains(key) && **key != "global").collect();
    assert!(untried.is_empty(), "{untried:?}");
    for wrong in ["colour=red", "replicas=0", "failurePolicy=Maybe", "memoryLimit=much", "trustDomain=A_B!"] {
        let mut command = Command::new(programs().join("helm"));
        command.args(["template", "tulle", &manifests("helm"), "--set", wrong]);
        assert!(!output_of(command).await.status.success(), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn helm_installs_upgrades_and_takes_down() {
    let api = ApiServer::start().await;
    api.install_gateway_api(Channel::Standard).await;
    let (helm, chart) = (programs().join("helm"), manifests("helm"));
    let kubeconfig = format!("--kubeconfig={}", api.kubeconfig.display());
    let helm = async |arguments: &[&str]| run(&helm, &[arguments, &[kubeconfig.as_str()]].concat()).await;

    // All that could be rendered is taken by the API server.
    for settings in ["ha=false", "ha=true,redirection=cni"] {
        let yaml = helm(&["template", "tulle", &chart, "--include-crds", "--set", settings]).await;
        // Nothing can be in a namespace that a dry run makes.
        for namespace in ["tulle-system", "tulle-cni"] {
            if api.try_kubectl(&["get", "namespace", namespace]).await.is_err() {
                api.make_namespace(namespace).await;
            }
        }
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("all.yaml");
        std::fs::write(&file, yaml).expect("the folder can be written");
        let file = file.to_str().expect("UTF-8");
        api.kubectl(&["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", file]).await;
    }
    api.kubectl(&["delete", "namespace", "tulle-cni", "--wait=false"]).await;

    helm(&["install", "tulle", &chart, "--namespace", "tulle-system", "--set", "createNamespace=false"])
        .await;
    let deployment = api.get("tulle-system", "deployment", "tulle-control-plane").await;
    assert_eq!(deployment["spec"]["replicas"], 1);
    api.kubectl(&["get", "crd", "authorizationpolicies.tulle.dev"]).await;
    let upgrade =
        ["upgrade", "tulle", &chart, "--namespace", "tulle-system", "--reuse-values", "--set", "ha=true"];
    helm(&upgrade).await;
    let deployment = api.get("tulle-system", "deployment", "tulle-control-plane").await;
    assert_eq!(deployment["spec"]["replicas"], 3);
    helm(&["uninstall", "tulle", "--namespace", "tulle-system"]).await;
    assert!(
        api.try_kubectl(&["-n", "tulle-system", "get", "deployment", "tulle-control-plane"]).await.is_err()
    );
    // Policies are the user's own.
    api.kubectl(&["get", "crd", "authorizationpolicies.tulle.dev"]).await;
}

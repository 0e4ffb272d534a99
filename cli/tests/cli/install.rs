//! `tulle install` and `tulle uninstall`, beside what kubectl makes of the same folders.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::tulle::{folder, tulle};

type Objects = BTreeMap<(String, String), Value>;

fn objects(text: &str) -> Objects {
    let mut all: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML");
    all.iter_mut().for_each(whole_numbers);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.into_iter()
        .map(|object| ((text(&object["kind"]), text(&object["metadata"]["name"])), object))
        .collect()
}

/// kustomize writes `65535.0` as `65535`.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|float| float.fract() == 0.0) {
                *value = json!(float as i64);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(whole_numbers),
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

fn installed(args: &[&str]) -> Objects {
    let folder = folder(&[]);
    let run = tulle(folder.path(), &[&["install"], args].concat());
    assert_eq!(run.code, 0, "{}", run.err);
    objects(&run.out)
}

/// As `kubectl apply -k` sees a folder.
fn kustomized(name: &str) -> Objects {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut kubectl = Command::new(root.join("target/kubernetes/kubectl"));
    let output = kubectl.arg("kustomize").arg(root.join("manifests").join(name)).output();
    let output = output.expect("tests/setup has built kubectl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    objects(&String::from_utf8(output.stdout).expect("UTF-8"))
}

#[test]
fn what_is_installed_is_what_the_folders_say() {
    assert_eq!(installed(&[]), kustomized("base"));
    assert_eq!(installed(&["--ha"]), kustomized("ha"));
    assert_ne!(installed(&["--ha"]), installed(&[]));
    assert_eq!(installed(&["--set", "ha=true"]), installed(&["--ha"]));
    // Who has the plugin redirect gets it, and the control plane is told.
    let mut with_plugin = installed(&["--set", "redirection=cni"]);
    let own: Vec<_> = kustomized("cni").into_iter().collect();
    for (name, object) in own {
        assert_eq!(with_plugin.remove(&name), Some(object), "{name:?}");
    }
    assert!(with_plugin.keys().eq(kustomized("base").keys()));
}

#[test]
fn settings_reach_what_they_name() {
    let objects = installed(&[
        "--set",
        "image=registry.example/cp:9",
        "--set",
        "sidecarImage=registry.example/sc:9",
        "--set",
        "replicas=2",
        "--set",
        "trustDomain=example.com",
        "--set",
        "failurePolicy=Fail",
        "--set",
        "redirection=cni",
        "--set",
        "memoryLimit=2Gi",
        "--set",
        "imagePullPolicy=Never",
    ]);
    let get = |kind: &str, name: &str| &objects[&(kind.to_owned(), name.to_owned())];
    let deployment = get("Deployment", "tulle-control-plane");
    assert_eq!(deployment["spec"]["replicas"], 2);
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "registry.example/cp:9");
    assert_eq!(container["imagePullPolicy"], "Never");
    assert_eq!(container["resources"]["limits"]["memory"], "2Gi");
    let args = container["args"].as_array().expect("a list");
    for (flag, value) in [
        ("--trust-domain", "example.com"),
        ("--sidecar-image", "registry.example/sc:9"),
        ("--redirection", "cni"),
        ("--sidecar-pull-policy", "Never"),
    ] {
        let of_this: Vec<&Value> = args
            .iter()
            .filter(|arg| arg.as_str().is_some_and(|arg| arg.starts_with(&format!("{flag}="))))
            .collect();
        assert_eq!(of_this, [&json!(format!("{flag}={value}"))]);
    }
    for webhook in get("MutatingWebhookConfiguration", "tulle")["webhooks"].as_array().expect("a list") {
        assert_eq!(webhook["failurePolicy"], "Fail");
    }
}

#[test]
fn settings_that_mean_nothing_are_refused() {
    let folder = folder(&[]);
    for (setting, word) in [
        ("colour=red", "there is no such key"),
        ("replicas", "KEY=VALUE"),
        ("replicas=0", "a number from 1"),
        ("failurePolicy=Maybe", "one of Ignore, Fail"),
        ("memoryLimit=much", "an amount"),
        ("trustDomain=A_B!", "trust domain"),
        ("image=", "a value"),
    ] {
        let run = tulle(folder.path(), &["install", "--set", setting]);
        assert_eq!((run.code, run.out.as_str()), (2, ""), "{setting}");
        assert!(run.err.contains(word), "{setting}: {}", run.err);
    }
}

#[test]
fn what_is_taken_down_leaves_the_users_objects_unless_told_otherwise() {
    let folder = folder(&[]);
    let run = tulle(folder.path(), &["uninstall"]);
    let left: Objects =
        kustomized("base").into_iter().filter(|((kind, _), _)| kind != "CustomResourceDefinition").collect();
    assert_eq!(objects(&run.out), left);
    assert_eq!(objects(&tulle(folder.path(), &["uninstall", "--crds"]).out), kustomized("base"));
    let all = objects(&tulle(folder.path(), &["uninstall", "--cni"]).out);
    assert!(kustomized("cni").iter().all(|(name, object)| all.get(name) == Some(object)));
}

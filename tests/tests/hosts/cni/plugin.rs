//! The plugin, called as a runtime calls it.

use serde_json::{Value, json};
use tulle_control_plane::inject::Redirection;
use tulle_tests::binary;
use tulle_tests::hosts::{APP_UID, Host};

use super::{Node, injected, netns};
use crate::redirect::{Finished, sh, sidecar};

/// A list with the plugin at its end, and the plugin in its place.
fn chained(node: &Node, version: &str) -> Value {
    let mut list = node.network_of(version);
    let entry = json!({ "type": "tulle-cni", "capabilities": { "io.kubernetes.cri.pod-annotations": true } });
    list["plugins"].as_array_mut().expect("a list").push(entry);
    let path = node.path("bin").join("tulle-cni");
    if !path.exists() {
        std::os::unix::fs::symlink(binary("tulle-cni"), path).expect("the folder is ours");
    }
    list
}

/// What `tulle-sidecar validate` says in a pod, as a user without any right.
async fn validate(pod: &Host) -> Finished {
    sidecar(pod, APP_UID, &["validate"]).await
}

async fn rules(pod: &Host) -> String {
    let mut command = pod.command(0, "nft");
    command.args(["list", "ruleset"]);
    Finished::from(tulle_tests::output_of(command).await).stdout
}

#[tokio::test]
async fn a_pod_that_waits_for_rules_gets_them_in_every_version() {
    let node = Node::new();
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        let list = chained(&node, version);
        let pod = node.pod(&format!("pod{}", version.replace('.', ""))).await;
        let annotations = injected(Redirection::Cni, json!({ "tulle.dev/skip-inbound-ports": "8085" }));
        let result = node.call("ADD", &list, &pod, &annotations).await.expect("it has a network");
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"].as_array().map(Vec::len), Some(2), "{result}");
        let finished = validate(&pod).await;
        assert_eq!(finished.status.code(), Some(0), "{finished:?}");
        assert!(rules(&pod).await.contains("8085"));

        let mut with_result = list.clone();
        with_result["prevResult"] = result;
        if version != "0.3.1" {
            let checked = node.call("CHECK", &with_result, &pod, &annotations).await;
            checked.unwrap_or_else(|error| panic!("{version}: {error}"));
            sh(&pod, "nft flush chain inet tulle output").await;
            let error =
                node.call("CHECK", &with_result, &pod, &annotations).await.expect_err("they are gone");
            assert_eq!(error["code"], 103, "{error}");
        }
        node.call("DEL", &with_result, &pod, &annotations).await.expect("it may go");
        // What outlives the call must not get past the sidecar.
        assert!(rules(&pod).await.contains("table inet tulle"));
    }
}

#[tokio::test]
async fn a_result_is_passed_on_to_the_byte() {
    let node = Node::new();
    let list = chained(&node, "1.0.0");
    let pod = node.pod("pod").await;
    let mut before = list.clone();
    before["plugins"].as_array_mut().expect("a list").pop();
    let result = node.call("ADD", &before, &pod, &Value::Null).await.expect("it has a network");
    let mut ours = list.clone();
    ours["plugins"] = json!([list["plugins"][2]]);
    ours["prevResult"] = result.clone();
    let passed = node.call("ADD", &ours, &pod, &injected(Redirection::Cni, json!({}))).await;
    assert_eq!(passed.expect("it gets rules").to_string(), result.to_string());
}

#[tokio::test]
async fn other_pods_stay_as_they_are() {
    let node = Node::new();
    let list = chained(&node, "1.0.0");
    for (name, annotations) in [
        ("none", Value::Null),
        ("plain", json!({ "a": "b" })),
        ("init", injected(Redirection::Init, json!({}))),
    ] {
        let pod = node.pod(name).await;
        node.call("ADD", &list, &pod, &annotations).await.expect("it has a network");
        assert_eq!(rules(&pod).await, "", "{name}");
        assert_eq!(validate(&pod).await.status.code(), Some(95), "{name}");
    }
}

#[tokio::test]
async fn a_second_add_replaces_the_rules_of_the_first() {
    let node = Node::new();
    let pod = node.pod("pod").await;
    let mut list = chained(&node, "1.0.0");
    let plugins = list["plugins"].as_array().expect("a list").clone();
    list["plugins"] = json!([plugins[2]]);
    list["prevResult"] = json!({ "cniVersion": "1.0.0" });
    for port in ["8085", "8086"] {
        let annotations = injected(Redirection::Cni, json!({ "tulle.dev/skip-inbound-ports": port }));
        node.call("ADD", &list, &pod, &annotations).await.expect("it gets rules");
        let rules = rules(&pod).await;
        assert_eq!(rules.matches("table ").count(), 1, "{rules}");
        assert_eq!((rules.contains("8085"), rules.contains("8086")), (port == "8085", port == "8086"));
    }
    assert_eq!(validate(&pod).await.status.code(), Some(0));
}

#[tokio::test]
async fn what_goes_wrong_is_an_error_object_and_leaves_no_rules() {
    let node = Node::new();
    let pod = node.pod("pod").await;
    let configuration = |annotations: Value| {
        json!({
            "cniVersion": "1.0.0", "name": "n", "type": "tulle-cni", "prevResult": { "cniVersion": "1.0.0" },
            "runtimeConfig": { "io.kubernetes.cri.pod-annotations": annotations },
        })
        .to_string()
    };
    let annotations = injected(Redirection::Cni, json!({}));
    let waits = configuration(annotations.clone());
    let mut wrong = annotations;
    wrong["tulle.dev/skip-subnets"] = "all".into();
    let wrong = configuration(wrong);
    let program = binary("tulle-cni");
    let (here, own) = (netns(&pod), netns(&node.host));
    for (verb, input, netns, code) in [
        ("ADD", "", here.as_str(), 6),
        ("ADD", r#"{"cniVersion":"0.2.0"}"#, &here, 1),
        ("ADD", r#"{"cniVersion":"1.0.0"}"#, &here, 7),
        ("STATUS", &waits, &here, 1),
        ("SHUT", &waits, &here, 4),
        ("ADD", &waits, "", 4),
        ("ADD", &waits, "/run/netns/nowhere", 101),
        ("ADD", &waits, "/etc/passwd", 101),
        // The node's own: a runtime would not, and no rule belongs there.
        ("ADD", &waits, &own, 101),
        ("ADD", &wrong, &here, 100),
    ] {
        let error = node.run(verb, &program, input, netns).await.expect_err(input);
        assert_eq!(error["code"], code, "{verb} {netns} {error}");
        assert!(error["msg"].as_str().is_some_and(|text| text.starts_with("tulle-cni: ")), "{error}");
    }
    assert_eq!((rules(&pod).await, rules(&node.host).await), (String::new(), String::new()));
    // Whatever became of the pod, it can be removed.
    for netns in ["", "/run/netns/nowhere", &here] {
        node.run("DEL", &program, &wrong, netns).await.expect("it may go");
    }
    let newest = r#"{"cniVersion":"1.1.0","name":"n","type":"tulle-cni"}"#;
    for verb in ["STATUS", "GC", "VERSION"] {
        node.run(verb, &program, newest, "").await.unwrap_or_else(|error| panic!("{verb}: {error}"));
    }
}

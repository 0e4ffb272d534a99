//! The installer, while others write in the same folders.

use std::os::unix::fs::PermissionsExt;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::Child;
use tokio::time::timeout;
use tulle_control_plane::inject::Redirection;
use tulle_tests::hosts::APP_UID;
use tulle_tests::{LIMIT, binary, wait_for};

use super::{Node, injected, types};
use crate::redirect::{Finished, sidecar};

const CHAINED: [&str; 3] = ["bridge", "portmap", "tulle-cni"];
const ALONE: [&str; 2] = ["bridge", "portmap"];

/// What `tulle-cni installed` says.
async fn installed(node: &Node) -> Finished {
    let mut command = node.host.command(0, node.path("bin").join("tulle-cni"));
    command.arg("installed").args(node.folders());
    tulle_tests::output_of(command).await.into()
}

async fn stop(mut installer: Child) -> ExitStatus {
    let id = installer.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    kill_process(id.expect("it runs"), Signal::TERM).expect("it is ours");
    timeout(LIMIT, installer.wait()).await.expect("it stops in time").expect("it ends")
}

#[tokio::test]
async fn pods_get_their_rules_by_the_list_that_it_made() {
    let node = Node::new();
    let before = node.network_of("1.0.0");
    node.configure("10-cluster.conflist", &before.to_string());
    let installer = node.install();
    node.lists("10-cluster.conflist", &CHAINED).await;
    let program = node.path("bin").join("tulle-cni");
    assert_eq!(
        std::fs::read(&program).expect("it is there"),
        std::fs::read(binary("tulle-cni")).expect("built")
    );
    assert_eq!(std::fs::metadata(&program).expect("it is there").permissions().mode() & 0o777, 0o755);
    let ready = installed(&node).await;
    assert!(ready.status.success(), "{ready:?}");

    let list = node.configuration("10-cluster.conflist");
    let pod = node.pod("pod").await;
    let annotations = injected(Redirection::Cni, json!({}));
    node.call("ADD", &list, &pod, &annotations).await.expect("it has a network");
    let proof = sidecar(&pod, APP_UID, &["validate"]).await;
    assert_eq!(proof.status.code(), Some(0), "{proof:?}");

    assert!(stop(installer).await.success());
    assert_eq!(node.configuration("10-cluster.conflist"), before);
    let gone = installed(&node).await;
    assert!(!gone.status.success() && gone.stderr.contains("the plugin is not in it"), "{gone:?}");
    // The runtime has the old list still, and removes the pod by it.
    node.call("DEL", &list, &pod, &annotations).await.expect("it may go");
}

#[tokio::test]
async fn what_others_write_is_followed() {
    let node = Node::new();
    let list = node.network_of("0.4.0");
    // There may be no network yet.
    let installer = node.install();
    node.configure("20-late.conflist", &list.to_string());
    node.lists("20-late.conflist", &CHAINED).await;
    // Rewritten as it was, in place and by renaming, and with other content.
    node.configure("20-late.conflist", &list.to_string());
    node.lists("20-late.conflist", &CHAINED).await;
    let mut other = list.clone();
    other["plugins"][1] = json!({ "type": "firewall" });
    node.configure("20-late.new", &other.to_string());
    std::fs::rename(node.path("net.d/20-late.new"), node.path("net.d/20-late.conflist")).expect("ours");
    node.lists("20-late.conflist", &["bridge", "firewall", "tulle-cni"]).await;
    // A writer that is half done is waited for.
    node.configure("20-late.conflist", &list.to_string()[..40]);
    node.configure("20-late.conflist", &list.to_string());
    node.lists("20-late.conflist", &CHAINED).await;
    // A list that comes before it is in force from now on.
    node.configure("10-early.conflist", &list.to_string());
    node.lists("10-early.conflist", &CHAINED).await;
    node.lists("20-late.conflist", &ALONE).await;
    std::fs::remove_file(node.path("net.d/10-early.conflist")).expect("it is there");
    node.lists("20-late.conflist", &CHAINED).await;
    // What another appends behind it stays, and is still there when the entry has gone.
    let mut appended = node.configuration("20-late.conflist");
    appended["plugins"].as_array_mut().expect("a list").push(json!({ "type": "other" }));
    node.configure("20-late.conflist", &appended.to_string());
    assert!(stop(installer).await.success());
    assert_eq!(types(&node.configuration("20-late.conflist")), ["bridge", "portmap", "other"]);
    let left: Vec<_> = std::fs::read_dir(node.path("net.d")).expect("a folder").flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[tokio::test]
async fn it_says_why_it_can_not_be_chained() {
    let node = Node::new();
    let installer = node.install();
    node.configure("10-single.conf", r#"{"cniVersion":"1.0.0","name":"n","type":"bridge"}"#);
    let program = node.path("bin").join("tulle-cni");
    let placed = || async { if program.exists() { Ok(()) } else { Err("it is not there".to_owned()) } };
    wait_for(LIMIT, placed).await.expect("the program is put in place");
    let why = installed(&node).await;
    assert!(why.stderr.contains("10-single.conf: no list of plugins"), "{why:?}");
    let untouched: Value = node.configuration("10-single.conf");
    assert_eq!(untouched["type"], "bridge");
    assert!(stop(installer).await.success());
}

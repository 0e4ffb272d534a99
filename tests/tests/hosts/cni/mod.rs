//! `tulle-cni` on a node: real plugins before it in the chain, called as a container runtime calls them, and its installer.

mod installer;
mod plugin;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Child;
use tulle_control_plane::inject::{Namespace, Redirection, Settings, inject};
use tulle_tests::hosts::{Host, Network};
use tulle_tests::{LIMIT, binary, wait_for};

use crate::redirect::sh;

/// The reference plugins (Debian: containernetworking-plugins).
const PLUGINS: &str = "/usr/lib/cni";

/// A node: its network, the folders in which runtimes look, and pods that have no network yet.
struct Node {
    network: Network,
    host: Host,
    folder: TempDir,
}

impl Node {
    fn new() -> Self {
        let network = Network::new();
        let host = network.host("node");
        let folder = TempDir::new().expect("a folder");
        for name in ["bin", "net.d"] {
            std::fs::create_dir(folder.path().join(name)).expect("the folder is ours");
        }
        Self { network, host, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A pod's network namespace, with nothing but loopback in it.
    async fn pod(&self, name: &str) -> Host {
        let pod = self.network.host(name);
        sh(&pod, "ip link delete eth0").await;
        pod
    }

    /// Writes a file of network configuration.
    fn configure(&self, name: &str, text: &str) {
        std::fs::write(self.path("net.d").join(name), text).expect("the folder is ours");
    }

    /// The network configuration in a file.
    fn configuration(&self, name: &str) -> Value {
        let text = std::fs::read(self.path("net.d").join(name)).expect(name);
        serde_json::from_slice(&text).unwrap_or(Value::Null)
    }

    /// The network of this cluster: what a runtime would find before Tulle comes.
    fn network_of(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "name": "cluster",
            "x-kept": [1.5, { "b": 1, "a": 2 }],
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": true,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.path("ipam"),
                        "ranges": [[{ "subnet": "10.88.0.0/16" }], [{ "subnet": "fd88::/64" }]],
                        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        })
    }

    /// Starts the installer.
    fn install(&self) -> Child {
        let mut command = self.host.command(0, binary("tulle-cni"));
        command.arg("install").args(self.folders()).kill_on_drop(true);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("it can be started")
    }

    fn folders(&self) -> [String; 2] {
        let folder = |flag, name| format!("--{flag}={}", self.path(name).display());
        [folder("bin-dir", "bin"), folder("conf-dir", "net.d")]
    }

    /// Waits until a file's plugins are these.
    async fn lists(&self, name: &str, plugins: &[&str]) {
        let listed = || async {
            let list = self.configuration(name);
            let types = types(&list);
            if types == plugins { Ok(()) } else { Err(format!("{name}: {types:?}")) }
        };
        wait_for(LIMIT, listed).await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Calls all plugins of a list in turn, as a runtime does, DEL in reverse. The last result, or the first error.
    async fn call(&self, verb: &str, list: &Value, pod: &Host, annotations: &Value) -> Result<Value, Value> {
        let mut plugins = list["plugins"].as_array().expect("a list").clone();
        let mut result = list.get("prevResult").cloned().unwrap_or_default();
        if verb == "DEL" {
            plugins.reverse();
        }
        for mut plugin in plugins {
            let capable = plugin["capabilities"]["io.kubernetes.cri.pod-annotations"] == true;
            if capable {
                plugin["runtimeConfig"] = json!({ "io.kubernetes.cri.pod-annotations": annotations });
            }
            for name in ["cniVersion", "name"] {
                plugin[name] = list[name].clone();
            }
            if !result.is_null() {
                plugin["prevResult"] = result.clone();
            }
            let kind = plugin["type"].as_str().expect("a type");
            let program = [self.path("bin").join(kind), Path::new(PLUGINS).join(kind)];
            let program = program.iter().find(|program| program.exists());
            let program = program.unwrap_or_else(|| panic!("no plugin {kind}; run tests/setup"));
            let said = self.run(verb, program, &plugin.to_string(), &netns(pod)).await?;
            if verb == "ADD" {
                result = said;
            }
        }
        Ok(result)
    }

    /// Runs one plugin; what it says, or its error object.
    async fn run(&self, verb: &str, program: &Path, input: &str, netns: &str) -> Result<Value, Value> {
        let mut command = self.host.command(0, program);
        command.env("CNI_COMMAND", verb).env("CNI_NETNS", netns).env("CNI_PATH", PLUGINS);
        // As long as a runtime's: the names of its IPAM come from it.
        let id = format!("{:0>64}", netns.rsplit('/').next().unwrap_or_default().replace('-', "_"));
        command.env("CNI_CONTAINERID", id).env("CNI_IFNAME", "eth0");
        command.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it can be started");
        let mut stdin = child.stdin.take().expect("it is piped");
        // Who refuses it unread says why.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = child.wait_with_output().await.expect("it ends");
        let said = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || said["code"].is_u64(), "{verb} {program:?}: {output:?} {words}");
        if output.status.success() { Ok(said) } else { Err(said) }
    }
}

/// The annotations of a pod that has been injected, and had these before.
fn injected(redirection: Redirection, annotations: Value) -> Value {
    let containers = json!([{ "name": "app", "image": "app" }]);
    let pod = json!({ "metadata": { "annotations": annotations }, "spec": { "containers": containers } });
    let settings = Settings { redirection, ..Settings::default() };
    let injected = inject(&pod, &Namespace::enabled("shop"), &settings);
    injected.unwrap_or_else(|reason| panic!("{reason}")).template["metadata"]["annotations"].clone()
}

/// Where a pod's network namespace is.
fn netns(pod: &Host) -> String {
    format!("/run/netns/{}", pod.namespace())
}

/// The plugins of a list, in their order.
fn types(list: &Value) -> Vec<&str> {
    let plugins = list["plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
    plugins.iter().filter_map(|plugin| plugin["type"].as_str()).collect()
}

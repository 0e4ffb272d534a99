//! The commands of the README's sections on hosts without Kubernetes, run as they stand there.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;
use tulle_tests::hosts::{Host, Network};
use tulle_tests::{LIMIT, binary, python};

/// The blocks of a section of the README: the host that each is for, and its commands.
fn blocks(section: &str) -> Vec<(String, String)> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(readme).expect("it is there");
    let (_, section) = readme.split_once(&format!("\n## {section}\n")).expect("it has the section");
    let section = section.split("\n## ").next().expect("the first part is always there");
    let blocks = section.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap_or_default());
    let host = |block: &str| block.strip_prefix("# on ")?.split(':').next().map(str::to_owned);
    blocks.map(|block| (host(block).expect("each block names its host"), block.to_owned())).collect()
}

/// Runs commands on a host, in a folder, until the last has ended; what they left running in the background goes on.
async fn run(host: &Host, commands: &str, folder: &Path, path: &str) -> String {
    // Its output goes to a file: a pipe would stay open for as long as those in the background.
    let out = folder.join("out");
    let file = std::fs::File::create(&out).expect("the folder can be written");
    let mut command: Command = host.command(0, "bash");
    command.args(["-e", "-o", "pipefail", "-c", commands]).current_dir(folder).env("PATH", path);
    command.stdin(Stdio::null()).stdout(file.try_clone().expect("a file")).stderr(file).kill_on_drop(true);
    let status = timeout(LIMIT * 2, command.status()).await;
    let text = std::fs::read_to_string(&out).expect("it was written");
    let logs = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let status = status.unwrap_or_else(|_| panic!("it does not end: {text}{}", logs("sidecar.log")));
    assert!(status.expect("bash").success(), "{commands}{text}{}", logs("sidecar.log"));
    text
}

/// Hosts as the README numbers them, each with a folder of its own.
struct Scene {
    hosts: Vec<Host>,
    /// With a folder for each host, by its name.
    all: TempDir,
    path: String,
    _network: Network,
}

const TWO_HOSTS: &str = "Without Kubernetes: two Linux hosts";

impl Scene {
    fn new(names: &[&str]) -> Self {
        let network = Network::new();
        let hosts: Vec<_> = names.iter().map(|name| network.host(name)).collect();
        let all = tempfile::tempdir().expect("a folder");
        open(all.path());
        for (host, number) in hosts.iter().zip(2..) {
            assert_eq!(host.v4.to_string(), format!("10.77.0.{number}"));
            let folder = all.path().join(&host.name);
            std::fs::create_dir(&folder).expect("it is new");
            open(&folder);
            // The hosts share this machine's files: copying from one to the other is copying from folder to folder.
            let link = all.path().join(format!("{}:", host.v4));
            std::os::unix::fs::symlink(&folder, link).expect("it is new");
        }
        let bin = all.path().join("bin");
        std::fs::create_dir(&bin).expect("it is new");
        open(&bin);
        let root = all.path().display().to_string();
        program(
            &bin,
            "scp",
            &format!("[ $# = 4 ] && [ \"$1\" = -p ]\nexec cp -p \"$2\" \"$3\" \"{root}/$4/\""),
        );
        let programs = binary("tulle");
        let programs = programs.parent().expect("it is in a folder").display();
        let path = format!("{}:{programs}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display());
        Self { hosts, all, path, _network: network }
    }

    fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).expect("it is one of them")
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.all.path().join(name)
    }

    /// Runs a section's commands: what each block prints.
    async fn run(&self, section: &str, on: &[&str]) -> Vec<String> {
        let blocks = blocks(section);
        let hosts: Vec<&str> = blocks.iter().map(|(host, _)| host.as_str()).collect();
        assert_eq!(hosts, on);
        let mut said = Vec::new();
        for (name, commands) in &blocks {
            said.push(run(self.host(name), commands, &self.folder(name), &self.path).await);
        }
        said
    }
}

fn open(path: &Path) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("it is ours");
}

fn program(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\nset -e\n{script}\n")).expect("it can be written");
    open(&path);
}

#[tokio::test]
async fn two_hosts_are_set_up_as_the_readme_says() {
    let scene = Scene::new(&["one", "two"]);
    std::fs::write(scene.folder("two").join("a-page-of-two"), "").expect("it can be written");
    let link = scene.host("two").capture("eth0").await;
    let said = scene.run(TWO_HOSTS, &["one", "two", "one"]).await;
    let last = said.last().expect("three blocks");
    assert!(last.contains("a-page-of-two"), "{last}");
    assert!(last.ends_with("destination_principal=\"spiffe://cluster.local/ns/shop/sa/pages\"\n"), "{last}");
    let link = link.end().await;
    assert!(!link.contain("a-page-of-two"), "and nothing of it can be read between the hosts");
}

#[tokio::test]
async fn envoy_and_grpc_join_them_as_the_readme_says() {
    let scene = Scene::new(&["one", "two", "three", "four"]);
    for name in ["two", "three"] {
        let page = scene.folder(name).join(format!("a-page-of-{name}"));
        std::fs::write(page, "").expect("it can be written");
    }
    // Any program of gRPC: `test.Echo` turns around what it gets.
    let [client, server] = ["xds_client.py", "xds_server.py"].map(|script| {
        let script = python(script);
        let parts = script.as_std().get_args().map(|part| part.to_string_lossy().into_owned());
        let all: Vec<_> =
            [script.as_std().get_program().to_string_lossy().into_owned()].into_iter().chain(parts).collect();
        all.join(" ")
    });
    program(&scene.folder("four"), "greeter", &format!("exec {server} \"$@\""));
    for name in ["one", "four"] {
        program(
            &scene.folder(name),
            "client",
            &format!("echo '{{}}' | {client} \"$1\" | tee said >&2\ngrep -q cba said"),
        );
    }
    let envoy = Path::new(python("xds_client.py").as_std().get_program()).with_file_name("envoy");
    std::os::unix::fs::symlink(envoy, scene.folder("bin").join("envoy")).expect("it is new");
    scene.run(TWO_HOSTS, &["one", "two", "one"]).await;
    let link = scene.host("three").capture("eth0").await;
    let said = scene.run("Envoy and gRPC in the same mesh", &["one", "three", "four", "one"]).await;
    assert!(said[1].contains("a-page-of-two"), "{}", said[1]);
    assert!(said[2].contains("\"reply\": \"cba\""), "{}", said[2]);
    assert!(said[3].contains("a-page-of-three") && said[3].contains("\"reply\": \"cba\""), "{}", said[3]);
    let all = ["greeter", "pages", "stock"]
        .map(|account| format!("destination_principal=\"spiffe://cluster.local/ns/shop/sa/{account}\"\n"));
    assert!(said[3].ends_with(&all.concat()), "{}", said[3]);
    let link = link.end().await;
    assert!(
        !link.contain("a-page-of-two") && !link.contain("a-page-of-three"),
        "nothing can be read between the hosts"
    );
}

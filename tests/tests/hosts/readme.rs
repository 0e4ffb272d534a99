//! The commands of the README's section on two hosts, run as they stand there.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;
use tokio::time::timeout;
use tulle_tests::hosts::{Host, Network};
use tulle_tests::{LIMIT, binary};

/// A block of the README: the host that it is for, and its commands.
fn blocks() -> Vec<(String, String)> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(readme).expect("it is there");
    let (_, section) =
        readme.split_once("\n## Without Kubernetes: two Linux hosts\n").expect("it has the section");
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

#[tokio::test]
async fn two_hosts_are_set_up_as_the_readme_says() {
    let network = Network::new();
    let (one, two) = (network.host("one"), network.host("two"));
    assert_eq!((one.v4.to_string(), two.v4.to_string()), ("10.77.0.2".into(), "10.77.0.3".into()));
    let all = tempfile::tempdir().expect("a folder");
    let open = |path: &Path| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("it is ours");
    };
    open(all.path());
    let folders = ["one", "two", "bin"].map(|name| all.path().join(name));
    for folder in &folders {
        std::fs::create_dir(folder).expect("it is new");
        open(folder);
    }
    let [first, second, bin] = &folders;
    // The hosts share this machine's files: copying from one to the other is copying from folder to folder.
    let scp = format!(
        "#!/bin/sh\nset -e\n[ $# = 4 ] && [ \"$4\" = 10.77.0.3: ]\nexec cp -p \"$2\" \"$3\" {}\n",
        second.display()
    );
    std::fs::write(bin.join("scp"), scp).expect("it can be written");
    open(&bin.join("scp"));
    let programs = binary("tulle");
    let programs = programs.parent().expect("it is in a folder").display();
    let path = format!("{}:{programs}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display());
    std::fs::write(second.join("a-page-of-two"), "").expect("it can be written");

    let blocks = blocks();
    let hosts: Vec<&str> = blocks.iter().map(|(host, _)| host.as_str()).collect();
    assert_eq!(hosts, ["one", "two", "one"]);
    let link = two.capture("eth0").await;
    let mut last = String::new();
    for (name, commands) in &blocks {
        let (host, folder) = if name == "one" { (&one, first) } else { (&two, second) };
        last = run(host, commands, folder, &path).await;
    }
    assert!(last.contains("a-page-of-two"), "{last}");
    assert!(last.ends_with("destination_principal=\"spiffe://cluster.local/ns/shop/sa/pages\"\n"), "{last}");
    let link = link.end().await;
    assert!(!link.contain("a-page-of-two"), "and nothing of it can be read between the hosts");
}

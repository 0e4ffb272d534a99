//! The commands of the README's section on Kubernetes, run as they stand there: what they print must be what it shows.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tulle_tests::apiserver::{ApiServer, Channel, programs};
use tulle_tests::{binary, output_of};

use crate::installed::Installed;
use crate::plane::until;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The commands of the section, each with the lines that it shows.
fn commands(readme: &str) -> Vec<(String, String)> {
    let (_, section) = readme.split_once("\n## Install it in Kubernetes\n").expect("it has the section");
    let block = section.split("```console\n").nth(1).and_then(|rest| rest.split("```").next());
    let block = format!("\n{}", block.expect("it has a block"));
    let commands = block.split("\n$ ").skip(1).map(|part| {
        let (command, shown) = part.split_once('\n').unwrap_or((part, ""));
        (command.to_owned(), shown.to_owned())
    });
    commands.collect()
}

/// Lines without what is different each time: ages, and the width of columns.
fn told(text: &str) -> Vec<String> {
    let is_age = |word: &str| word.ends_with('s') && word[..word.len() - 1].parse::<u32>().is_ok();
    let word = |word: &str| if is_age(word) { "AGE".to_owned() } else { word.to_owned() };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    text.trim().lines().map(line).collect()
}

/// Whether lines are those that are shown, where `...` stands for any.
fn is(lines: &[String], shown: &[String]) -> bool {
    match shown.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if first == "..." => (0..=lines.len()).any(|skipped| is(&lines[skipped..], rest)),
        Some((first, rest)) => lines.first() == Some(first) && is(&lines[1..], rest),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_the_readme_print_what_it_shows() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("it is there");
    let api = ApiServer::start().await;
    api.install_gateway_api(Channel::Experimental).await;
    let programs = [programs(), binary("tulle").parent().expect("a folder").to_owned()];
    let path = format!("{}:{}:/usr/bin:/bin", programs[0].display(), programs[1].display());
    let kubeconfig = api.kubeconfig.clone();
    let run = async |line: &str| {
        let mut command = Command::new("bash");
        command.args(["-c", line]).current_dir(root()).env("PATH", &path).env("KUBECONFIG", &kubeconfig);
        command.stdin(Stdio::null());
        let output = output_of(command).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        // Whoever finds something says so by its status too.
        if output.status.success() || line.starts_with("tulle ") {
            Ok(out)
        } else {
            Err(format!("{out}{err}"))
        }
    };

    let mut server = Some(api);
    let mut cluster: Option<Installed> = None;
    for (command, shown) in commands(&readme) {
        // What comes of the command before comes after a while.
        let shown = told(&shown);
        let once =
            !command.starts_with("tulle ") && !command.contains(" get ") && !command.contains("--dry-run");
        until(async || match run(&command).await {
            Ok(out) if is(&told(&out), &shown) => Ok(()),
            Ok(out) if once => panic!("$ {command}\n{out}"),
            Ok(out) => Err(format!("$ {command}\n{out}")),
            Err(out) => Err(format!("$ {command}\nfails:\n{out}")),
        })
        .await;
        // There is no kubelet, and there are no controllers: what they would do is done here.
        if command.starts_with("kubectl apply -k") {
            let api = server.take().expect("it is applied once");
            let installed = Installed::on(api).await;
            installed.settle().await;
            cluster = Some(installed);
        }
        if let (true, Some(cluster)) = (command.contains("manifests/demo"), &cluster) {
            cluster.api.make_namespace("shop").await;
        }
    }
}

//! The sidecar as a container beside the application's, as Kubernetes before 1.29 has it: the application waits for it to
//! start, both are told to end at once, and a Job ends it.

use std::process::Stdio;

use serde_json::json;
use tokio::io::AsyncReadExt;
use tulle_tests::hosts::{Host, Member, Meshed, Server, redirect};
use tulle_tests::{LIMIT, TestMesh, binaries, output_of, wait_for};

use crate::{ECHO, ECHO_URL, get, replica};

/// The sidecar's postStart hook.
fn hook(host: &Host, arguments: &[&str]) -> tokio::process::Command {
    let mut command = host.command(2102, &binaries().sidecar);
    command.arg("await").args(arguments);
    command
}

#[tokio::test]
async fn the_application_waits_until_its_sidecar_is_ready_and_no_longer_than_it_may() {
    let mesh = TestMesh::on_hosts().await;
    let host = mesh.host("web");
    let output = output_of(hook(&host, &["--timeout", "300ms"])).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("not ready after 300ms") && text.contains("refused"), "{text}");

    let mut waiting = hook(&host, &[]);
    waiting.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut waiting = waiting.spawn().expect("the program starts");
    // One whose traffic would go around it is not ready.
    let meshed = mesh.sidecar_on(&host, Member::of("web")).await;
    let output = output_of(hook(&host, &["--timeout", "2s"])).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("connections are not redirected yet"), "{text}");
    assert!(waiting.try_wait().expect("a child").is_none(), "it waits on");

    redirect(&host).await;
    meshed.ready().await;
    let ended = tokio::time::timeout(LIMIT, waiting.wait()).await.expect("it ends").expect("a child");
    let mut text = String::new();
    waiting.stderr.take().expect("piped").read_to_string(&mut text).await.expect("text");
    assert!(ended.success() && text.is_empty(), "{ended}: {text}");
    assert!(output_of(hook(&host, &[])).await.status.success(), "and again at once");
}

/// `echo.shop`, and a client whose sidecar serves on for a while when it is told to end.
async fn client(mesh: &TestMesh, lame_duck: &str) -> (Meshed, Meshed, Server) {
    mesh.service("echo", &ECHO, &[("http", 80, "http")]);
    let (peer, app) = replica(mesh, "echo").await;
    let member = Member::of("client").config("drain", json!({ "lameDuck": lame_duck }));
    let client = mesh.join_as(&mesh.host("client"), member).await;
    let works = wait_for(LIMIT, || get(&client.host, ECHO_URL)).await;
    works.unwrap_or_else(|error| panic!("{error}"));
    (client, peer, app)
}

#[tokio::test]
async fn an_application_that_ends_beside_it_still_reaches_its_peers() {
    let mesh = TestMesh::on_hosts().await;
    let (mut client, _peer, _app) = client(&mesh, "3s").await;
    client.process.terminate();
    let told = || async {
        if client.process.log().contains("draining because of SIGTERM") {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    };
    wait_for(LIMIT, told).await.unwrap_or_else(|error| panic!("{error}"));
    // A new connection each, as of an application that says goodbye to its peers.
    for _ in 0..3 {
        let answer = get(&client.host, ECHO_URL).await;
        assert!(answer.is_ok(), "{answer:?}");
    }
    let status = client.process.wait(LIMIT).await.expect("it ends");
    assert!(status.success(), "{status}: {}", client.process.log());
}

#[tokio::test]
async fn the_last_command_of_a_job_ends_its_sidecar() {
    let mesh = TestMesh::on_hosts().await;
    let (mut client, _peer, _app) = client(&mesh, "0s").await;
    let mut drain = client.host.curl();
    drain.args(["--fail", "-X", "POST", "127.0.0.1:15000/drain"]);
    assert!(output_of(drain).await.status.success());
    let status = client.process.wait(LIMIT).await.expect("it ends");
    assert!(status.success(), "{status}: {}", client.process.log());
}

//! More connections than a sidecar can have.

use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::Command;
use tulle_tests::hosts::on_hosts;
use tulle_tests::{App, LIMIT, exchange, output_of, read_head, wait_for};

use crate::Pair;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: echo.shop\r\n\r\n";
const LAST: &[u8] = b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";

/// File descriptors that the sidecar may have.
const FEW: usize = 80;

#[tokio::test]
async fn a_sidecar_out_of_file_descriptors_serves_those_it_has_and_recovers() {
    let app = App::fixed(200, "").await;
    let mut pair = Pair::start(app.address, "http").await;
    let mut held = TcpStream::connect(pair.port()).await.expect("it listens");
    let mut ask = async || {
        held.write_all(GET).await.expect("it is open");
        let head = read_head(&mut held).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    };
    ask().await;
    let id = pair.client.process.id().expect("it runs").to_string();
    let owner = std::fs::metadata(format!("/proc/{id}")).expect("it runs");
    // A process's own user may limit it; others, root too, need a capability.
    let mut limit = Command::new("setpriv");
    limit.args([
        format!("--reuid={}", owner.uid()),
        format!("--regid={}", owner.gid()),
        "--keep-groups".into(),
    ]);
    limit.args(["prlimit", "--pid", &id, &format!("--nofile={FEW}:{FEW}")]);
    let output = output_of(limit).await;
    assert!(output.status.success(), "{output:?}");

    let mut flood = Vec::new();
    for _ in 0..2 * FEW {
        flood.push(TcpStream::connect(pair.port()).await.expect("the system takes it"));
    }
    let listeners = if on_hosts() {
        let redirected = &pair.client.process.started["listening"]["capture"]["outbound"];
        redirected.as_array().into_iter().flatten().filter_map(|at| at.as_str().map(str::to_owned)).collect()
    } else {
        vec![pair.port().to_string()]
    };
    let said = || async {
        let log = pair.client.process.log();
        let named = listeners.iter().any(|listener| log.contains(listener));
        let says = log.contains("can't accept connections") && named;
        says.then_some(()).ok_or_else(|| format!("the log does not say why: {log}"))
    };
    wait_for(LIMIT, said).await.unwrap_or_else(|error| panic!("{error}"));
    for _ in 0..20 {
        ask().await;
    }
    // It tries again and again, but not so often that the log or a processor is full of it.
    let lines = pair.client.process.log().matches("can't accept connections").count();
    assert!(lines < 40, "{lines} lines");

    drop(flood);
    let freed = Instant::now();
    assert_eq!(exchange(pair.port(), LAST).await.status(), 200, "after {:?}", freed.elapsed());
    ask().await;
    assert!(pair.client.process.is_running());
    let (status, _) =
        tulle_tests::fetch(&format!("http://{}/ready", pair.client.health)).await.expect("it answers");
    assert_eq!(status, 200);
}

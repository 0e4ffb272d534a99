//! More connections than a sidecar can have.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
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
    limit_files(&id, &format!("{FEW}:{FEW}")).await;

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

#[tokio::test]
async fn bulk_is_copied_where_there_is_no_descriptor_for_a_pipe_and_spliced_again_afterwards() {
    const BULK: usize = 8 << 20;
    let pair = Pair::start_untold(sink().await).await;
    let (address, id) = (pair.server.inbound[0], pair.server.process.id().expect("it runs").to_string());
    let spliced = async || {
        let metrics = pair.server.metrics().await.expect("it answers");
        metrics.sum("tulle_tcp_spliced_bytes_total", &[])
    };
    let carry = async |stream: &mut TcpStream| {
        stream.write_all(&vec![7; BULK - 1]).await.expect("it reads");
        stream.shutdown().await.expect("it is open");
        assert_eq!(tulle_tests::read_to_end(stream).await, BULK.to_string());
    };

    let mut stream = opened(address).await;
    let open: Vec<_> = std::fs::read_dir(format!("/proc/{id}/fd"))
        .expect("it runs")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .collect();
    // None below the first that is free, and none above.
    let free = (0..).find(|number| !open.contains(number)).expect("it has a limit");
    limit_files(&id, &format!("{free}:")).await;
    let flood = TcpStream::connect(address).await.expect("the system takes it");
    let full = || async {
        let full = pair.server.process.log().contains("can't accept connections");
        full.then_some(()).ok_or("there are descriptors left".to_owned())
    };
    wait_for(LIMIT, full).await.unwrap_or_else(|error| panic!("{error}"));
    carry(&mut stream).await;
    limit_files(&id, "1000:").await;
    drop(flood);
    assert_eq!(spliced().await, 0.0);

    carry(&mut opened(address).await).await;
    let counted = || async {
        let bytes = spliced().await;
        if bytes > 0.0 { Ok(()) } else { Err("nothing went through a pipe".to_owned()) }
    };
    wait_for(LIMIT, counted).await.unwrap_or_else(|error| panic!("{error}"));
}

/// Limits a process's file descriptors, to `soft:hard`.
async fn limit_files(id: &str, files: &str) {
    let owner = std::fs::metadata(format!("/proc/{id}")).expect("it runs");
    // A process's own user may limit it; others, root too, need a capability.
    let mut limit = Command::new("setpriv");
    limit.args([
        format!("--reuid={}", owner.uid()),
        format!("--regid={}", owner.gid()),
        "--keep-groups".into(),
    ]);
    limit.args(["prlimit", "--pid", id, &format!("--nofile={files}")]);
    let output = output_of(limit).await;
    assert!(output.status.success(), "{output:?}");
}

/// A connection to where `sink` is the application, which has had its first byte.
async fn opened(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(b"\0").await.expect("it reads");
    let mut ready = [0; 1];
    stream.read_exact(&mut ready).await.expect("it answers");
    stream
}

/// A server that answers the first byte with one of its own, and the end of all bytes with how many they were.
async fn sink() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut first = [0; 1];
                let begun =
                    stream.read_exact(&mut first).await.is_ok() && stream.write_all(b"\0").await.is_ok();
                if !begun {
                    return;
                }
                let (mut part, mut count) = (vec![0; 1 << 16], 1);
                while let Ok(len @ 1..) = stream.read(&mut part).await {
                    count += len;
                }
                let _ = stream.write_all(count.to_string().as_bytes()).await;
            });
        }
    });
    address
}

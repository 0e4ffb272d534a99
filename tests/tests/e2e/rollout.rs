//! Instances that come and go under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tulle_tests::{App, LIMIT, TestMesh, Workload, read_head, wait_for};

#[tokio::test]
async fn a_rolling_restart_under_load_fails_no_request() {
    let apps = [App::fixed(200, "ok").await, App::fixed(200, "ok").await];
    let mesh = TestMesh::start().await;
    let workloads = [
        Workload::new("echo").app(apps[0].address).protocol("http"),
        Workload::new("echo-2").service("echo").app(apps[1].address),
    ];
    let mut instances = Vec::new();
    for workload in &workloads {
        instances.push(mesh.workload(workload.clone()).await);
    }
    let client = mesh.workload(Workload::new("client").port("echo.shop:80")).await;
    let port = client.ports["echo.shop:80"];
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = ["GET", "POST", "POST"]
        .map(|method| {
            let (stop, done) = (stop.clone(), done.clone());
            tokio::spawn(async move {
                let request =
                    format!("{method} / HTTP/1.1\r\nhost: echo.shop\r\ncontent-length: 2\r\n\r\nhi");
                let mut stream = TcpStream::connect(port).await.expect("it listens");
                while !stop.load(Ordering::Relaxed) {
                    stream.write_all(request.as_bytes()).await.expect("the client's sidecar stays");
                    let head = read_head(&mut stream).await;
                    assert!(head.starts_with("HTTP/1.1 200"), "{method}: {head}");
                    let mut body = [0; 2];
                    stream.read_exact(&mut body).await.expect("a body");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .into();

    for (index, workload) in workloads.iter().enumerate() {
        progress(&done).await;
        instances[index].process.terminate();
        let status = instances[index].process.wait(LIMIT * 2).await.expect("it ends");
        assert!(status.success(), "{status}");
        progress(&done).await;
        let before = apps[index].seen().len();
        instances[index] = mesh.workload(workload.clone()).await;
        let used = || async {
            if apps[index].seen().len() > before { Ok(()) } else { Err("it gets no traffic".to_owned()) }
        };
        wait_for(LIMIT, used).await.unwrap_or_else(|error| panic!("{error}"));
    }
    progress(&done).await;
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.expect("no request failed");
    }
    let reached: usize = apps.iter().map(|app| app.seen().len()).sum();
    assert_eq!(reached, done.load(Ordering::Relaxed), "each request was processed exactly once");
}

/// Waits until some more requests are done.
async fn progress(done: &AtomicUsize) {
    let enough = done.load(Ordering::Relaxed) + 50;
    let check = || async {
        let now = done.load(Ordering::Relaxed);
        if now >= enough { Ok(()) } else { Err(format!("the load stands still at {now}")) }
    };
    wait_for(LIMIT, check).await.unwrap_or_else(|error| panic!("{error}"));
}

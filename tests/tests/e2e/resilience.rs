//! Failure: what is tried again, what never is, and what a caller sees.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tulle_tests::{App, LIMIT, NAMESPACE, TestMesh, Workload, exchange, read_head, script, wait_for};

use crate::Pair;

fn request(method: &str, path: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nhost: echo.shop\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi")
        .into_bytes()
}

#[tokio::test]
async fn a_post_reaches_the_application_at_most_once() {
    // Closes without a word after each request.
    let app = App::start(|_| Vec::new()).await;
    let pair = Pair::start(app.address, "http").await;
    for _ in 0..5 {
        let answer = exchange(pair.port(), &request("POST", "/pay")).await;
        assert!((502..=504).contains(&answer.status()), "{}", answer.text);
        assert!(answer.header("proxy-status").contains("connection_terminated"), "{}", answer.text);
    }
    assert_eq!(app.seen().len(), 5);
}

#[tokio::test]
async fn an_answer_of_the_application_is_passed_on_as_it_is() {
    let app = App::fixed(503, "the app's own").await;
    let pair = Pair::start(app.address, "http").await;
    let answer = exchange(pair.port(), &request("GET", "/")).await;
    assert_eq!(answer.status(), 503);
    assert!(answer.text.ends_with("the app's own"), "{}", answer.text);
    assert_eq!(answer.header("proxy-status"), "", "the mesh has no part in it");
    assert_eq!(app.seen().len(), 1, "and does not try again unasked");
}

#[tokio::test]
async fn a_route_may_ask_for_retries() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let app = App::start(move |_| {
        if counter.fetch_add(1, Ordering::Relaxed) % 3 < 2 { script(503, "no") } else { script(200, "yes") }
    })
    .await;
    let pair = Pair::start(app.address, "http").await;
    pair.mesh.manifest(
        "retry.yaml",
        &format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: BackendTrafficPolicy\nmetadata: {{name: echo, namespace: {NAMESPACE}}}\n\
             spec:\n  targetRefs: [{{kind: Service, name: echo}}]\n  \
             retry: {{codes: [503], attempts: 3, backoff: 1ms}}\n"
        ),
    );
    let retried = || async {
        count.store(0, Ordering::Relaxed);
        match exchange(pair.port(), &request("GET", "/")).await.status() {
            200 => Ok(()),
            status => Err(format!("no retries yet: {status}")),
        }
    };
    wait_for(LIMIT, retried).await.unwrap_or_else(|error| panic!("{error}"));
    count.store(0, Ordering::Relaxed);
    assert_eq!(exchange(pair.port(), &request("GET", "/")).await.status(), 200);
    assert_eq!(count.load(Ordering::Relaxed), 3, "two failures and a success");
}

#[tokio::test]
async fn an_endpoint_that_is_gone_costs_nothing_while_another_lives() {
    let app = App::fixed(200, "").await;
    let mesh = TestMesh::start().await;
    let live = mesh.workload(Workload::new("echo").app(app.address).protocol("http")).await;
    let dead = mesh.workload(Workload::new("echo-2").service("echo").app(app.address)).await;
    let client = mesh.workload(Workload::new("client").port("echo.shop:80")).await;
    let port = client.ports["echo.shop:80"];
    assert_eq!(exchange(port, &request("GET", "/")).await.status(), 200);
    drop(dead);
    for _ in 0..40 {
        // A refused connection is proof that nothing was processed: also a POST goes elsewhere.
        let answer = exchange(port, &request("POST", "/")).await;
        assert_eq!(answer.status(), 200, "{}", answer.text);
    }
    drop(live);
}

#[tokio::test]
async fn a_timeout_names_itself() {
    let app = App::start(|seen| {
        if seen.line.contains("/slow") {
            std::thread::sleep(Duration::from_secs(2));
            script(200, "")
        } else {
            script(200, "")
        }
    })
    .await;
    let pair = Pair::start(app.address, "http").await;
    pair.mesh.manifest(
        "timeout.yaml",
        &format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: echo, namespace: {NAMESPACE}}}\n\
             spec:\n  parentRefs: [{{group: \"\", kind: Service, name: echo}}]\n  \
             rules: [{{timeouts: {{request: 200ms}}, backendRefs: [{{name: echo, port: 80}}]}}]\n"
        ),
    );
    let timed_out = || async {
        let answer = exchange(pair.port(), &request("POST", "/slow")).await;
        if answer.status() != 504 {
            return Err(format!("no timeout yet: {}", answer.text));
        }
        Ok(answer)
    };
    let answer = wait_for(LIMIT, timed_out).await.unwrap_or_else(|error| panic!("{error}"));
    let status = answer.header("proxy-status");
    assert!(status.contains("error=http_response_timeout") && status.contains("200ms"), "{status}");
}

#[tokio::test]
async fn a_failing_service_is_not_stormed() {
    let app =
        App::start(|seen| if seen.line.contains("/ok") { script(200, "") } else { script(503, "no") }).await;
    let pair = Pair::start(app.address, "http").await;
    pair.mesh.manifest(
        "retry.yaml",
        &format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: BackendTrafficPolicy\nmetadata: {{name: echo, namespace: {NAMESPACE}}}\n\
             spec:\n  targetRefs: [{{kind: Service, name: echo}}]\n  \
             retry: {{codes: [503], attempts: 5, backoff: 1ms}}\n  \
             retryConstraint: {{budget: {{percent: 20, interval: 10s}}, minRetryRate: {{count: 1, interval: 1s}}}}\n"
        ),
    );
    let in_force = || async {
        let before = app.seen().len();
        exchange(pair.port(), &request("GET", "/")).await;
        if app.seen().len() - before > 1 { Ok(()) } else { Err("no retries yet".to_owned()) }
    };
    wait_for(LIMIT, in_force).await.unwrap_or_else(|error| panic!("{error}"));
    let before = app.seen().len();
    let started = std::time::Instant::now();
    let one = "GET / HTTP/1.1\r\nhost: echo.shop\r\n\r\n";
    let last = "GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
    let answer = exchange(pair.port(), (one.repeat(999) + last).as_bytes()).await;
    assert_eq!(answer.statuses().len(), 1000);
    let reached = app.seen().len() - before;
    // A fifth more, and one for each second that it took, and what the budget held at its start.
    let allowed = 1000 + 200 + started.elapsed().as_secs() as usize + 12;
    assert!(reached <= allowed, "{reached} of 1000 requests reached a service that always fails");
}

#[tokio::test]
async fn a_sidecar_that_ends_lets_its_requests_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mut pair = Pair::start(listener.local_addr().expect("it is bound"), "http").await;
    let mut client = TcpStream::connect(pair.port()).await.expect("it listens");
    client.write_all(b"GET / HTTP/1.1\r\nhost: echo.shop\r\n\r\n").await.expect("it reads");
    let (mut app, _) =
        tokio::time::timeout(LIMIT, listener.accept()).await.expect("in time").expect("a request");
    read_head(&mut app).await;

    pair.server.process.terminate();
    let health = format!("http://{}/ready", pair.server.health);
    let unready = || async {
        match tulle_tests::fetch(&health).await {
            Ok((503, _)) => Ok(()),
            other => Err(format!("still ready: {other:?}")),
        }
    };
    wait_for(LIMIT, unready).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(pair.server.process.is_running(), "a request is in flight");
    app.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone").await.expect("it reads");
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut body = [0; 4];
    client.read_exact(&mut body).await.expect("the body");
    assert_eq!(&body, b"done");
    let status = pair.server.process.wait(LIMIT).await.expect("it ends");
    assert!(status.success(), "{status}");
}

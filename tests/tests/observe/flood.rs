//! Many requests that end in every way there is: each has its spans, and none is an orphan.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tulle_tests::{App, LIMIT, NAMESPACE, TestMesh, Workload, exchange, read_head, script};

use crate::jaeger::{Caller, Shown};

const REQUESTS: usize = 648;
const WORKERS: usize = 12;

#[tokio::test]
#[ignore = "needs Jaeger: tests/observe"]
async fn no_span_is_an_orphan_however_requests_end() {
    let shown = Shown::start().await;
    let mut turn = 0u32;
    let turns = std::sync::Mutex::new(move || {
        turn += 1;
        turn
    });
    let app = App::start(move |request| match request.line.split(' ').nth(1) {
        Some("/flaky") if turns.lock().expect("no panic in it")() % 3 != 0 => script(503, "not now"),
        Some("/broken") => script(500, "broken"),
        Some("/torn") => Vec::new(),
        // It begins, and says no more.
        Some("/silent") => b"HTTP/1.1 2".to_vec(),
        _ => script(200, "ok"),
    });
    let app = app.await;
    let mesh = TestMesh::start().await;
    mesh.manifest(
        "route.yaml",
        &format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: echo, namespace: {NAMESPACE}}}\n\
             spec:\n  parentRefs: [{{group: '', kind: Service, name: echo}}]\n  rules:\n  \
             - matches: [{{path: {{value: /elsewhere}}}}]\n    filters: [{{type: RequestRedirect, requestRedirect: {{statusCode: 302}}}}]\n  \
             - matches: [{{path: {{value: /silent}}}}]\n    backendRefs: [{{name: echo, port: 80}}]\n    timeouts: {{request: 200ms}}\n  \
             - backendRefs: [{{name: echo, port: 80}}]\n    retry: {{codes: [503], attempts: 4, backoff: 1ms}}\n\
             ---\napiVersion: tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {NAMESPACE}}}\n\
             spec:\n  targetRefs: [{{kind: Service, name: echo}}]\n  action: DENY\n  enforcementLevel: Application\n  \
             rules: [{{http: {{paths: [{{type: PathPrefix, value: /forbidden}}]}}}}]\n"
        ),
    );
    mesh.knows("HTTPRoute", "echo").await;
    mesh.knows("AuthorizationPolicy", "p").await;
    // They begin with all of that: on a route that is not there yet, what is silent is waited for without an end.
    let mut server =
        mesh.workload(Workload::new("echo").app(app.address).protocol("http").otlp(shown.otlp())).await;
    let mut client = mesh.workload(Workload::new("client").port("echo.shop:80").otlp(shown.otlp())).await;
    let port = client.ports["echo.shop:80"];

    let paths = ["/", "/flaky", "/broken", "/torn", "/silent", "/forbidden", "/elsewhere", "/gone"];
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        workers.spawn(async move {
            let mut asked = Vec::new();
            for index in 0..REQUESTS / WORKERS {
                let path = paths[(worker + index) % paths.len()];
                asked.push((path, ask(port, path).await));
            }
            asked
        });
    }
    let asked = workers.join_all().await.concat();
    // Who ends sends all that it has.
    for sidecar in [&mut client, &mut server] {
        sidecar.process.terminate();
        sidecar.process.wait(LIMIT).await.expect("it ends");
    }
    let mut reached = BTreeSet::new();
    for (path, caller) in asked {
        shown.report(&caller).await;
        let least = match path {
            // Whether it came as far as to the server's side, nobody knows.
            "/gone" => 1,
            // Time may be over before there is a connection.
            "/elsewhere" | "/silent" => 2,
            _ => 4,
        };
        let trace = shown.whole(&caller, least).await;
        assert!(trace.all("client", "client").len() <= 1, "{path}: {trace:#?}");
        reached.extend(trace.all("echo", "server").first().map(|_| path));
    }
    assert_eq!(reached, paths.into_iter().filter(|path| *path != "/elsewhere").collect());
}

/// Asks as a caller with a trace.
async fn ask(port: SocketAddr, path: &str) -> Caller {
    let caller = Caller::new();
    let target = if path == "/gone" { "/silent" } else { path };
    let headers = caller.traceparent();
    let request = format!("GET {target} HTTP/1.1\r\nhost: echo.shop\r\n{headers}connection: close\r\n\r\n");
    if path == "/gone" {
        // Who asks goes away, at some time or other.
        let mut stream = TcpStream::connect(port).await.expect("it listens");
        stream.write_all(request.as_bytes()).await.expect("it is open");
        let _ = timeout(Duration::from_micros(fastrand::u64(0..40_000)), read_head(&mut stream)).await;
    } else {
        exchange(port, request.as_bytes()).await;
    }
    caller
}

//! What a user reads: metrics, traces, access log.

use std::net::SocketAddr;
use std::time::Duration;

use tulle_cli::demo::traces::{Span, Traces};
use tulle_tests::{App, LIMIT, NAMESPACE, TestMesh, Workload, exchange, identity, wait_for};

struct Traced {
    mesh: TestMesh,
    app: App,
    traces: Traces,
    client: tulle_cli::local::Sidecar,
    server: tulle_cli::local::Sidecar,
}

impl Traced {
    async fn start() -> Self {
        let app = App::fixed(200, "ok").await;
        let (traces, url) = Traces::collect(None).await.expect("a collector");
        let mesh = TestMesh::start().await;
        let server = mesh.workload(Workload::new("echo").app(app.address).protocol("http").otlp(&url)).await;
        let client = mesh.workload(Workload::new("client").port("echo.shop:80").otlp(&url)).await;
        Self { mesh, app, traces, client, server }
    }

    async fn get(&self, headers: &str) -> tulle_tests::Answer {
        let request =
            format!("GET /a?token=secret HTTP/1.1\r\nhost: echo.shop\r\n{headers}connection: close\r\n\r\n");
        exchange(self.client.ports["echo.shop:80"], request.as_bytes()).await
    }

    async fn spans(&self, count: usize) -> Vec<Span> {
        let joined = || async {
            let spans = self.traces.joined(&["client", "echo"]).unwrap_or_default();
            if spans.len() >= count { Ok(spans) } else { Err(format!("only {} spans", spans.len())) }
        };
        wait_for(LIMIT, joined).await.unwrap_or_else(|error| panic!("{error}"))
    }
}

#[tokio::test]
async fn a_sampled_request_is_one_trace_from_client_to_application() {
    let traced = Traced::start().await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let state = "vendor=1";
    assert_eq!(traced.get(&format!("traceparent: {parent}\r\ntracestate: {state}\r\n")).await.status(), 200);
    let spans = traced.spans(3).await;
    let find = |service: &str, kind: i32, attempt: bool| {
        let found = spans.iter().find(|span| {
            span.service == service && span.kind == kind && span.name.contains("attempt") == attempt
        });
        found.unwrap_or_else(|| panic!("no such span of {service}: {spans:?}"))
    };
    let (request, attempt, server) =
        (find("client", 3, false), find("client", 3, true), find("echo", 2, false));
    assert_eq!(request.parent, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    assert_eq!(attempt.parent, request.id);
    assert_eq!(server.parent, attempt.id);
    assert_eq!(server.attributes["tulle.peer.principal"], identity("client"));
    assert_eq!(attempt.attributes["tulle.peer.principal"], identity("echo"));
    assert_eq!(server.attributes["http.response.status_code"], "200");
    assert_eq!(server.attributes["url.path"], "/a");
    assert!(!format!("{spans:?}").contains("secret"), "queries stay out of spans");
    let seen = &traced.app.seen()[0];
    let server_id: String = server.id.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(seen.header("traceparent"), format!("00-0af7651916cd43dd8448eb211c80319c-{server_id}-01"));
    assert_eq!(seen.header("tracestate"), state);
}

#[tokio::test]
async fn a_trace_in_b3_joins_too() {
    let traced = Traced::start().await;
    let b3 = "b3: 80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1\r\n";
    assert_eq!(traced.get(b3).await.status(), 200);
    let spans = traced.spans(3).await;
    assert!(spans.iter().any(|span| span.parent == 0xe457_b5a2_e4d8_6bd1_u64.to_be_bytes()), "{spans:?}");
    let seen = &traced.app.seen()[0];
    assert!(seen.header("traceparent").starts_with("00-80f198ee56343ba864fe8b2a57d3eff7-"));
    assert!(seen.header("b3").starts_with("80f198ee56343ba864fe8b2a57d3eff7-"), "{seen:?}");
}

#[tokio::test]
async fn spans_go_where_the_policy_of_the_mesh_says() {
    let app = App::fixed(200, "ok").await;
    let (traces, url) = Traces::collect(None).await.expect("a collector");
    let mesh = TestMesh::start().await;
    let mut server = mesh.workload(Workload::new("echo").app(app.address).protocol("http")).await;
    let mut client = mesh.workload(Workload::new("client").port("echo.shop:80")).await;
    let collector: SocketAddr = url.trim_start_matches("http://").parse().expect("an address");
    mesh.outside("collector", collector, None).await;
    mesh.manifest(
        "mesh.yaml",
        &format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: TelemetryPolicy\nmetadata: {{name: mesh, namespace: tulle-system}}\n\
             spec:\n  targetRefs: [{{kind: Namespace, name: tulle-system}}]\n  tracing:\n    \
             samplingRate: {{numerator: 100}}\n    \
             provider: {{backendRef: {{name: collector, namespace: {NAMESPACE}, port: {}}}}}\n",
            collector.port()
        ),
    );
    let port = client.ports["echo.shop:80"];
    let get = async |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n");
        assert_eq!(exchange(port, request.as_bytes()).await.status(), 200);
    };
    let traced = || async {
        get("/first").await;
        traces.joined(&["client", "echo"]).ok_or_else(|| "no span came".to_owned())
    };
    wait_for(LIMIT, traced).await.unwrap_or_else(|error| panic!("{error}"));

    // Who ends sends what it has first, and does not wait for anything else.
    get("/last").await;
    for sidecar in [&mut client, &mut server] {
        sidecar.process.terminate();
        let status = sidecar.process.wait(LIMIT).await.expect("it ends");
        assert!(status.success(), "{status}");
    }
    let newest = traces.joined(&["client", "echo"]).expect("as before");
    assert!(
        newest.len() == 3 && newest.iter().all(|span| span.attributes["url.path"] == "/last"),
        "{newest:?}"
    );
}

#[tokio::test]
async fn both_ends_count_a_request_with_their_names_and_identities() {
    let traced = Traced::start().await;
    for _ in 0..3 {
        assert_eq!(traced.get("").await.status(), 200);
    }
    let client = || async {
        let metrics = traced.client.metrics().await?;
        let labels = [
            ("source_workload", "shop/client"),
            ("destination_workload", "shop/echo"),
            ("destination_principal", &identity("echo")),
            ("http_request_method", "GET"),
            ("http_response_status_code", "200"),
        ];
        match metrics.sum("http_client_request_duration_seconds_count", &labels) {
            3.0 => Ok(()),
            count => Err(format!("{count} requests: {metrics:?}")),
        }
    };
    wait_for(LIMIT, client).await.unwrap_or_else(|error| panic!("{error}"));
    let server = || async {
        let metrics = traced.server.metrics().await?;
        let labels = [
            ("source_workload", "shop/client"),
            ("source_principal", &identity("client")),
            ("destination_workload", "shop/echo"),
        ];
        match metrics.sum("http_server_request_duration_seconds_count", &labels) {
            3.0 => Ok(()),
            count => Err(format!("{count} requests: {metrics:?}")),
        }
    };
    wait_for(LIMIT, server).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn an_access_log_is_written_where_a_policy_asks_for_it() {
    let traced = Traced::start().await;
    assert_eq!(traced.get("").await.status(), 200);
    let log = traced.mesh.mesh.logs.join("sidecar-echo.out");
    let lines = || std::fs::read_to_string(&log).unwrap_or_default();
    assert_eq!(lines(), "", "off by default");
    traced.mesh.manifest(
        "log.yaml",
        &format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: TelemetryPolicy\nmetadata: {{name: log, namespace: {NAMESPACE}}}\nspec:\n  \
             targetRefs: [{{kind: Service, name: echo}}]\n  accessLog: {{mode: JSON}}\n"
        ),
    );
    let logged = || async {
        traced.get("authorization: Bearer secret\r\n").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        lines().lines().next().map(str::to_owned).ok_or_else(|| "no line yet".to_owned())
    };
    let line = wait_for(LIMIT, logged).await.unwrap_or_else(|error| panic!("{error}"));
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(line["http.response.status_code"], 200, "{line}");
    assert_eq!(line["tulle.peer.principal"], identity("client"), "{line}");
    assert!(!lines().contains("secret"));
}

//! What failed, and what the mesh refused, is an error in Jaeger, and tells why.

use tulle_cli::local::Sidecar;
use tulle_tests::{App, LIMIT, NAMESPACE, TestMesh, Workload, exchange, identity, script, wait_for};

use crate::jaeger::{Caller, Shown, Trace};

struct Asked {
    mesh: TestMesh,
    shown: Shown,
    client: Sidecar,
    _server: Sidecar,
    _app: App,
}

impl Asked {
    /// A client of an application that answers 500 to /broken, closes the connection on /torn, and has no /missing.
    async fn start() -> Self {
        let app = App::start(|request| match request.line.split(' ').nth(1) {
            Some("/broken") => script(500, "broken"),
            Some("/missing") => script(404, "missing"),
            Some("/torn") => Vec::new(),
            _ => script(200, "ok"),
        });
        let app = app.await;
        let shown = Shown::start().await;
        let mesh = TestMesh::start().await;
        let server = Workload::new("echo").app(app.address).protocol("http").otlp(shown.otlp());
        let server = mesh.workload(server).await;
        let client = Workload::new("client").port("echo.shop:80").port("empty.shop:80").otlp(shown.otlp());
        mesh.manifest(
            "empty.yaml",
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: empty, namespace: {NAMESPACE}}}\n\
                 spec: {{selector: {{app: nobody}}, ports: [{{name: http, port: 80}}]}}\n"
            ),
        );
        mesh.knows("Service", "empty").await;
        let client = mesh.workload(client).await;
        Self { mesh, shown, client, _server: server, _app: app }
    }

    fn policy(&self, kind: &str, spec: &str) {
        self.mesh.manifest(
            "policy.yaml",
            &format!(
                "apiVersion: tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p, namespace: {NAMESPACE}}}\n\
                 spec: {{targetRefs: [{{kind: Service, name: echo}}], {spec}}}\n"
            ),
        );
    }

    async fn ask(&self, service: &str, path: &str) -> (u16, Caller) {
        let caller = Caller::new();
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {service}\r\n{}connection: close\r\n\r\n",
            caller.traceparent()
        );
        let answer = exchange(self.client.ports[&format!("{service}:80")], request.as_bytes()).await;
        (answer.status(), caller)
    }

    /// The trace of a request that is answered with this status, tried until it is.
    async fn answered(&self, service: &str, path: &str, status: u16, spans: usize) -> Trace {
        let found = || async {
            match self.ask(service, path).await {
                (found, caller) if found == status => Ok(caller),
                (found, _) => Err(format!("{path} of {service} is answered with {found}, not with {status}")),
            }
        };
        let caller = wait_for(LIMIT, found).await.unwrap_or_else(|error| panic!("{error}"));
        self.shown.report(&caller).await;
        self.shown.whole(&caller, spans).await
    }
}

#[tokio::test]
#[ignore = "needs Jaeger: tests/observe"]
async fn what_fails_is_an_error_at_each_hop_that_is_at_fault() {
    let asked = Asked::start().await;
    for (path, status, at_client, at_server, why) in [
        ("/", 200, false, false, ""),
        // The fault of who asks, as OpenTelemetry has it.
        ("/missing", 404, true, false, ""),
        ("/broken", 500, true, true, "500"),
    ] {
        let trace = asked.answered("echo.shop", path, status, 4).await;
        let hops = ["client", "attempt"].map(|kind| trace.one("client", kind));
        let server = trace.one("echo", "server");
        for hop in hops.into_iter().chain([server]) {
            assert_eq!(hop.tag("http.response.status_code"), status.to_string(), "{trace:#?}");
            assert_eq!(hop.tag("url.path"), path, "{trace:#?}");
        }
        assert_eq!(hops.map(|hop| hop.failed()), [at_client; 2], "{trace:#?}");
        assert_eq!(server.failed(), at_server, "{trace:#?}");
        assert_eq!(hops.map(|hop| hop.tag("error.type")), [why; 2], "{trace:#?}");
    }
    // Whose connection broke says so, each time that it is tried again; who is behind it sees an answer.
    let torn = asked.answered("echo.shop", "/torn", 503, 4).await;
    let (attempts, servers) = (torn.all("client", "attempt"), torn.all("echo", "server"));
    assert!(attempts.len() > 1 && attempts.len() == servers.len(), "{torn:#?}");
    for (attempt, server) in attempts.into_iter().zip(servers) {
        assert!(attempt.failed() && server.failed(), "{torn:#?}");
        assert_eq!(server.tag("error.type"), "connection_terminated", "{torn:#?}");
        assert!(server.tag("otel.status_description").contains("closed before the response"), "{torn:#?}");
    }
    let request = torn.one("client", "client");
    assert!(request.failed(), "{torn:#?}");
    assert!(request.tag("otel.status_description").contains("error=connection_terminated"), "{torn:#?}");
}

#[tokio::test]
#[ignore = "needs Jaeger: tests/observe"]
async fn what_the_mesh_refuses_is_an_error_that_tells_why() {
    let asked = Asked::start().await;

    // Nobody is there: only the client's side has anything to tell.
    let trace = asked.answered("empty.shop", "/", 503, 2).await;
    let request = trace.one("client", "client");
    assert!(request.failed() && trace.spans.len() == 2, "{trace:#?}");
    assert_eq!(request.tag("error.type"), "destination_unavailable", "{trace:#?}");
    assert_ne!(request.tag("otel.status_description"), "", "{trace:#?}");
    assert_eq!(request.tag("tulle.attempts"), "0");

    for (kind, spec, status, why) in [
        (
            "AuthorizationPolicy",
            "action: DENY, enforcementLevel: Application, rules: [{}]",
            403,
            "http_request_denied",
        ),
        ("InboundPolicy", "rateLimit: {total: {count: 1, interval: 1h}}", 429, "http_request_denied"),
    ] {
        asked.policy(kind, spec);
        let trace = asked.answered("echo.shop", "/", status, 4).await;
        let (request, attempt) = (trace.one("client", "client"), trace.one("client", "attempt"));
        let server = trace.one("echo", "server");
        for hop in [request, attempt, server] {
            assert!(hop.failed(), "{status}: {trace:#?}");
            assert_eq!(hop.tag("http.response.status_code"), status.to_string(), "{trace:#?}");
        }
        assert_eq!(server.tag("error.type"), why, "{trace:#?}");
        assert_ne!(server.tag("otel.status_description"), "", "{trace:#?}");
        assert_eq!(server.tag("tulle.peer.principal"), identity("client"));
        assert_eq!(attempt.tag("tulle.peer.principal"), identity("echo"));
    }
}

//! What an operator sees and does: the admin interface, health, logs and metrics of both programs.

use serde_json::{Value, json};
use tulle_cli::local::{Samples, request};
use tulle_tests::{App, LIMIT, NAMESPACE, TestMesh, Workload, exchange, fetch, wait_for};

use crate::Pair;

const GET: &[u8] = b"GET /a HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";

async fn post(url: &str) -> (u16, String) {
    request("POST".parse().expect("a method"), url).await.expect("it answers")
}

#[tokio::test]
async fn a_sidecar_explains_where_a_request_goes() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    pair.mesh.manifest(
        "route.yaml",
        &format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: split, namespace: {NAMESPACE}}}\n\
             spec:\n  parentRefs: [{{group: \"\", kind: Service, name: echo}}]\n  rules:\n  \
             - matches: [{{path: {{type: PathPrefix, value: /new}}, headers: [{{name: x-beta, value: \"1\"}}]}}]\n    \
             backendRefs: [{{name: echo, port: 80}}]\n  - backendRefs: [{{name: echo, port: 80}}]\n"
        ),
    );
    let url = format!("http://{}/explain?host=echo.shop:80&path=/new", pair.client.admin);
    let explained = || async {
        let (status, text) = fetch(&url).await?;
        assert_eq!(status, 200, "{text}");
        if text.contains("split") { Ok(text) } else { Err(format!("not the route: {text}")) }
    };
    let text = wait_for(LIMIT, explained).await.unwrap_or_else(|error| panic!("{error}"));
    // The rule that was passed over, by its first failing condition; and where the request goes.
    assert!(text.contains("x-beta"), "{text}");
    assert!(text.contains(&pair.mesh.endpoint(&pair.server).to_string()), "{text}");
    assert_eq!(app.seen().len(), 0, "nothing is sent to explain it");
    let (status, text) =
        fetch(&format!("http://{}/explain?path=x", pair.client.admin)).await.expect("an answer");
    assert_eq!(status, 400, "{text}");
    let (_, text) =
        fetch(&format!("http://{}/explain?host=no-such.shop", pair.client.admin)).await.expect("an answer");
    assert!(text.contains("the control plane knows no such service"), "{text}");
}

#[tokio::test]
async fn the_log_level_changes_while_traffic_goes_on() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    assert_eq!(exchange(pair.port(), GET).await.status(), 200);
    assert!(!pair.client.process.log().contains("DEBUG"), "{}", pair.client.process.log());
    let url = format!("http://{}/log", pair.client.admin);
    let (status, text) = post(&format!("{url}?level=verbose")).await;
    assert_eq!(status, 400, "{text}");
    let (status, text) = post(&format!("{url}?level=debug")).await;
    assert_eq!(status, 200, "{text}");
    let (_, text) = fetch(&url).await.expect("it answers");
    assert!(text.contains("debug"), "{text}");
    let louder = || async {
        assert_eq!(exchange(pair.port(), GET).await.status(), 200);
        let log = pair.client.process.log();
        if log.contains("DEBUG") { Ok(()) } else { Err(format!("no more is said: {log}")) }
    };
    wait_for(LIMIT, louder).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn a_log_for_programs_is_json_in_every_line() {
    let app = App::fixed(200, "").await;
    let mesh = TestMesh::start_with(&["--log-format", "json"]).await;
    let log = json!({ "format": "json", "level": "debug" });
    let _server = mesh.workload(Workload::new("echo").app(app.address).protocol("http")).await;
    let client = mesh.workload(Workload::new("client").port("echo.shop:80").config("log", log)).await;
    assert_eq!(exchange(client.ports["echo.shop:80"], GET).await.status(), 200);
    for text in [client.process.log(), mesh.mesh.control_plane.log()] {
        assert!(text.lines().count() > 0, "it says something");
        // The last line may be half written.
        let end = text.rfind('\n').map_or(0, |at| at + 1);
        for line in text[..end].lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert!(line.get("level").is_some() && line.get("timestamp").is_some(), "{line}");
        }
    }
}

#[tokio::test]
async fn a_drain_sends_traffic_to_the_other_instance_and_ends_the_sidecar() {
    let (first, second) = (App::fixed(200, "first").await, App::fixed(200, "second").await);
    let mesh = TestMesh::start().await;
    let mut draining = mesh.workload(Workload::new("echo").app(first.address).protocol("http")).await;
    let _other = mesh.workload(Workload::new("echo-2").service("echo").app(second.address)).await;
    let client = mesh.workload(Workload::new("client").port("echo.shop:80")).await;
    let port = client.ports["echo.shop:80"];
    let both = || async {
        assert_eq!(exchange(port, GET).await.status(), 200);
        let known = !first.seen().is_empty() && !second.seen().is_empty();
        known.then_some(()).ok_or_else(|| "only one instance is known".to_owned())
    };
    wait_for(LIMIT, both).await.unwrap_or_else(|error| panic!("{error}"));

    assert_eq!(fetch(&format!("http://{}/live", draining.health)).await.expect("it answers").0, 200);
    let (status, text) = post(&format!("http://{}/drain", draining.admin)).await;
    assert_eq!(status, 202, "{text}");
    // A POST too: what a draining sidecar refuses, it has not passed on.
    let pay = b"POST /pay HTTP/1.1\r\nhost: echo.shop\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi";
    for _ in 0..30 {
        let answer = exchange(port, pay).await;
        assert_eq!(answer.status(), 200, "{}", answer.text);
    }
    let status = draining.process.wait(LIMIT).await.expect("it ends");
    assert!(status.success(), "{status}");
    for _ in 0..10 {
        assert_eq!(exchange(port, pay).await.status(), 200);
    }
}

#[tokio::test]
async fn the_control_plane_counts_streams_certificates_objects_and_problems() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    pair.mesh.manifest("broken.yaml", "kind: [\n");
    let url = format!("http://{}/metrics", pair.mesh.mesh.http());
    let counted = || async {
        let (_, text) = fetch(&url).await?;
        let samples = Samples::parse(&text);
        let is = |name, labels: &[(&str, &str)], least: f64| {
            let value = samples.sum(&format!("tulle_control_plane_{name}"), labels);
            if value >= least { Ok(()) } else { Err(format!("{name} is {value}: {text}")) }
        };
        is("xds_streams", &[("protocol", "delta")], 2.0)?;
        is("certificates_total", &[("result", "ok")], 2.0)?;
        is("xds_pushes_total", &[("type", "LDS")], 1.0)?;
        is("objects", &[], 2.0)?;
        is("problems", &[], 1.0)
    };
    wait_for(LIMIT, counted).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(exchange(pair.port(), GET).await.status(), 200);
}

#[tokio::test]
async fn an_access_log_is_text_where_that_is_asked_for() {
    let app = App::fixed(200, "hello").await;
    let pair = Pair::start(app.address, "http").await;
    pair.mesh.manifest(
        "log.yaml",
        &format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: TelemetryPolicy\nmetadata: {{name: log, namespace: {NAMESPACE}}}\nspec:\n  \
             targetRefs: [{{kind: Service, name: echo}}]\n  accessLog:\n    mode: Text\n    \
             format: '%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %BYTES_SENT% %REQ(AUTHORIZATION)%'\n"
        ),
    );
    let log = pair.mesh.mesh.logs.join("sidecar-echo.out");
    let secret =
        b"GET /a HTTP/1.1\r\nhost: echo.shop\r\nauthorization: Bearer s3cret\r\nconnection: close\r\n\r\n";
    let logged = || async {
        assert_eq!(exchange(pair.port(), secret).await.status(), 200);
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().next().map(str::to_owned).ok_or_else(|| "no line yet".to_owned())
    };
    let line = wait_for(LIMIT, logged).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(line.starts_with("GET /a 200 5 "), "{line}");
    assert!(!line.contains("s3cret"), "{line}");
}

#[tokio::test]
async fn an_audit_counts_and_logs_and_lets_pass() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    pair.mesh.manifest(
        "audit.yaml",
        &format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: watch, namespace: {NAMESPACE}}}\n\
             spec:\n  targetRefs: [{{kind: Service, name: echo}}]\n  action: AUDIT\n  enforcementLevel: Application\n  \
             rules:\n  - http: {{paths: [{{type: PathPrefix, value: /a}}]}}\n"
        ),
    );
    let audited = || async {
        assert_eq!(exchange(pair.port(), GET).await.status(), 200);
        let metrics = pair.server.metrics().await?;
        match metrics.sum("tulle_audited_total", &[("effect", "matched")]) {
            0.0 => Err("nothing is audited".to_owned()),
            count => Ok(count),
        }
    };
    let before = wait_for(LIMIT, audited).await.unwrap_or_else(|error| panic!("{error}"));
    let other = b"GET /b HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
    assert_eq!(exchange(pair.port(), other).await.status(), 200);
    assert_eq!(exchange(pair.port(), GET).await.status(), 200);
    let after = pair.server.metrics().await.expect("it answers");
    assert_eq!(after.sum("tulle_audited_total", &[("effect", "matched")]), before + 1.0);
    assert!(pair.server.process.log().contains("watch"), "{}", pair.server.process.log());
}

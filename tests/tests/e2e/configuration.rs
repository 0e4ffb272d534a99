//! Where configuration comes from, goes to, and what happens when it is bad or the control plane is away.

use serde_json::json;
use tokio::process::Command;
use tulle_tests::{
    App, LIMIT, NAMESPACE, TestMesh, Workload, binaries, exchange, fetch, only_on_loopback, output_of,
    wait_for,
};

use crate::Pair;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn a_sidecar_holds_only_what_its_workload_uses() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    let services: String = (0..50)
        .map(|i| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: other-{i}, namespace: {NAMESPACE}}}\nspec:\n  \
                 selector: {{app: other}}\n  ports: [{{name: http, port: 80}}]\n"
            )
        })
        .collect();
    pair.mesh.manifest("others.yaml", &services);
    let other = pair.mesh.way("client", &pair.client, "other-49.shop:80").await;
    let known = || async {
        let answer =
            exchange(other, b"GET / HTTP/1.1\r\nhost: other-49.shop\r\nconnection: close\r\n\r\n").await;
        // 503: the service is known, and has no endpoints.
        if answer.status() == 503 { Ok(()) } else { Err(format!("other-49 is not known: {}", answer.text)) }
    };
    wait_for(LIMIT, known).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(exchange(pair.port(), GET).await.status(), 200);
    let (_, config) = fetch(&format!("http://{}/config", pair.client.admin)).await.expect("it answers");
    assert!(config.contains("echo.shop") && config.contains("other-49.shop"), "{config}");
    assert!(!config.contains("other-7.shop"), "nobody asked for it");
}

#[tokio::test]
async fn traffic_goes_on_while_the_control_plane_is_away_and_changes_follow_when_it_is_back() {
    let app = App::fixed(200, "").await;
    let mut pair = Pair::start(app.address, "http").await;
    assert_eq!(exchange(pair.port(), GET).await.status(), 200);
    pair.mesh.mesh.control_plane.kill().await;
    for _ in 0..20 {
        assert_eq!(exchange(pair.port(), GET).await.status(), 200);
    }
    pair.mesh.manifest(
        "route.yaml",
        &format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: echo, namespace: {NAMESPACE}}}\n\
             spec:\n  parentRefs: [{{group: \"\", kind: Service, name: echo}}]\n  rules:\n  \
             - filters: [{{type: RequestRedirect, requestRedirect: {{hostname: elsewhere, statusCode: 302}}}}]\n"
        ),
    );
    // The same root and the same token key, from the state folder: nobody needs a new proof.
    pair.mesh.restart_control_plane().await;
    let followed = || async {
        match exchange(pair.port(), GET).await.status() {
            302 => Ok(()),
            200 => Err("the old route is still in force".to_owned()),
            status => panic!("{status}"),
        }
    };
    wait_for(LIMIT, followed).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn a_restarted_sidecar_serves_from_its_snapshot_while_the_control_plane_is_away() {
    let app = App::fixed(200, "").await;
    let mesh = TestMesh::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let state = serde_json::json!(folder.path());
    let _server = mesh.workload(Workload::new("echo").app(app.address).protocol("http")).await;
    let plain = Workload::new("client").port("echo.shop:80").config("stateDir", state);
    let mut client = mesh.workload(plain.clone()).await;
    assert_eq!(exchange(client.ports["echo.shop:80"], GET).await.status(), 200);
    let saved = || async {
        let files = std::fs::read_dir(folder.path()).map_err(|error| error.to_string())?;
        let mut texts = files.filter_map(|file| std::fs::read(file.ok()?.path()).ok());
        let whole = texts.any(|text| String::from_utf8_lossy(&text).contains("outbound|80||echo.shop"));
        whole.then_some(()).ok_or_else(|| "it is not saved yet".to_owned())
    };
    wait_for(LIMIT, saved).await.unwrap_or_else(|error| panic!("{error}"));
    let mut mesh = mesh;
    mesh.mesh.control_plane.signal("STOP");
    client.process.kill().await;
    let client = mesh.start_sidecar(&plain).await;
    let served = || async {
        let answer = exchange(client.ports["echo.shop:80"], GET).await;
        // Without a certificate of its own it can't speak mTLS; what it knows is there all the same.
        let (_, config) = fetch(&format!("http://{}/config", client.admin)).await?;
        if config.contains("outbound|80||echo.shop") {
            Ok(answer)
        } else {
            Err(format!("nothing from before the restart: {}", answer.text))
        }
    };
    wait_for(LIMIT, served).await.unwrap_or_else(|error| panic!("{error}"));
    for entry in std::fs::read_dir(folder.path()).expect("it is there") {
        let bytes = std::fs::read(entry.expect("an entry").path()).unwrap_or_default();
        assert!(
            !String::from_utf8_lossy(&bytes).contains("PRIVATE KEY"),
            "no secret is part of the snapshot"
        );
    }
    mesh.mesh.control_plane.signal("CONT");
    mesh.mesh.control_plane.kill().await;
}

#[tokio::test]
async fn a_bad_manifest_is_reported_and_the_last_good_one_stays() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    assert_eq!(exchange(pair.port(), GET).await.status(), 200);
    for (what, text, expected) in [
        ("yaml", "kind: Service\n  broken: [", "broken.yaml\",\"line\":2"),
        (
            "field",
            "apiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: shop}\nspec:\n  prots: []\n",
            "prots",
        ),
        (
            "type",
            "apiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: shop}\nspec:\n  ports: [{port: eighty}]\n",
            "port",
        ),
    ] {
        pair.mesh.manifest("broken.yaml", text);
        let reported = || async {
            let objects = pair.mesh.api("/api/v1/objects").await.to_string();
            if objects.contains(expected) {
                Ok(())
            } else {
                Err(format!("{what} is not reported: {objects}"))
            }
        };
        wait_for(LIMIT, reported).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(exchange(pair.port(), GET).await.status(), 200);
    }
    // A good manifest that turns bad keeps its last good version in force.
    let path = pair.mesh.mesh.manifests.join("echo.yaml");
    let good = std::fs::read_to_string(&path).expect("it is there");
    pair.mesh.manifest("echo.yaml", &format!("{good}---\nkind: [\n"));
    let reported = || async {
        let objects = pair.mesh.api("/api/v1/objects").await.to_string();
        if objects.contains("echo.yaml") { Ok(()) } else { Err("not reported".to_owned()) }
    };
    wait_for(LIMIT, reported).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(exchange(pair.port(), GET).await.status(), 200);
}

#[tokio::test]
async fn the_control_plane_knows_what_each_sidecar_has_taken() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    assert_eq!(exchange(pair.port(), GET).await.status(), 200);
    let synced = || async {
        let proxies = pair.mesh.api("/api/v1/proxies").await.to_string();
        let both = ["client", "echo"].iter().all(|name| proxies.contains(&tulle_tests::identity(name)));
        if both && proxies.contains("acked") { Ok(()) } else { Err(proxies) }
    };
    wait_for(LIMIT, synced).await.unwrap_or_else(|error| panic!("{error}"));
    let (status, metrics) =
        fetch(&format!("http://{}/metrics", pair.mesh.mesh.http())).await.expect("it answers");
    assert_eq!(status, 200);
    assert!(metrics.contains("tulle_"), "{metrics}");
}

#[tokio::test]
async fn a_port_in_use_is_named_and_whoever_has_it_is_not_disturbed() {
    only_on_loopback!("its ports are configured one by one");
    let app = App::fixed(200, "").await;
    let mut pair = Pair::start(app.address, "http").await;
    assert_eq!(exchange(pair.port(), GET).await.status(), 200);
    let (xds, http) = (pair.mesh.mesh.xds().to_string(), pair.mesh.mesh.http().to_string());
    let folder = tempfile::tempdir().expect("a folder");
    for (flag, address, other) in [("--listen", &xds, "--http"), ("--http", &http, "--listen")] {
        let mut command = Command::new(binaries().control_plane);
        command.arg("--manifests").arg(folder.path()).arg("--state").arg(folder.path().join("state"));
        command.args([flag, address, other, "127.0.0.1:0"]);
        let output = output_of(command).await;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(address) && message.contains(flag), "{message}");
        assert!(!folder.path().join("state").exists(), "what can't serve leaves no CA behind");
    }
    let (port, inbound) = (pair.port().to_string(), pair.server.inbound[0].to_string());
    for (field, address, value) in [
        ("admin", &port, json!(port)),
        ("outbound.proxy", &port, json!({ "proxy": port })),
        (
            "outbound.ports",
            &port,
            json!({ "proxy": "127.0.0.1:0", "ports": [{ "listen": port, "service": "echo.shop:80" }] }),
        ),
        ("inbound", &inbound, json!([{ "listen": inbound, "app": "127.0.0.1:9" }])),
    ] {
        let top = field.split('.').next().expect("it is not empty").to_owned();
        let spec = tulle_cli::local::SidecarSpec {
            namespace: NAMESPACE.into(),
            service_account: "client".into(),
            name: "second".into(),
            config: [(top, value)].into_iter().collect(),
            ..Default::default()
        };
        let error = pair.mesh.mesh.sidecar(&spec).await.expect_err("the port is taken").to_string();
        assert!(error.contains(address) && error.contains(&format!("{field}: ")), "{error}");
        assert!(error.contains("in use") && error.contains("exit status: 1"), "{error}");
    }
    assert!(pair.client.process.is_running() && pair.server.process.is_running());
    assert!(pair.mesh.mesh.control_plane.is_running());
    assert_eq!(exchange(pair.port(), GET).await.status(), 200);
    let late = pair.mesh.workload(Workload::new("late").port("echo.shop:80")).await;
    assert_eq!(exchange(late.ports["echo.shop:80"], GET).await.status(), 200);
}

#[tokio::test]
async fn a_state_folder_that_cant_be_written_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("the folder can be written");
    let mut command = Command::new(binaries().control_plane);
    command.arg("--manifests").arg(folder.path()).arg("--state").arg(file.join("state"));
    command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let output = output_of(command).await;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("file/state") && message.contains("--state"), "{message}");
}

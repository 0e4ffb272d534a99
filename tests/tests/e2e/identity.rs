//! mTLS: who may speak to whom, and what is seen when a proof fails.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tulle_cli::local::Sidecar;
use tulle_tests::cert_manager::CertManager;
use tulle_tests::{
    App, LIMIT, NAMESPACE, TestMesh, Workload, exchange, fetch, identity, only_on_loopback, wait_for,
};

use crate::Pair;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";

fn strict(service: &str) -> String {
    format!(
        "apiVersion: tulle.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {{name: {service}, namespace: {NAMESPACE}}}\n\
         spec:\n  targetRefs: [{{kind: Service, name: {service}}}]\n  mtls: {{mode: Strict}}\n"
    )
}

#[tokio::test]
async fn plaintext_reaches_a_permissive_port_and_not_a_strict_one() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    let mesh_port = pair.server.inbound[0];
    assert_eq!(exchange(mesh_port, GET).await.status(), 200, "permissive is the default");
    assert_eq!(app.seen()[0].header("x-forwarded-client-cert"), "", "nobody is proven in plaintext");

    pair.mesh.manifest("strict.yaml", &strict("echo"));
    let refused = || async {
        match plaintext(mesh_port).await.as_str() {
            "" => Ok(()),
            text => Err(format!("plaintext still gets {text:?}")),
        }
    };
    wait_for(LIMIT, refused).await.unwrap_or_else(|error| panic!("{error}"));
    let before = app.seen().len();
    assert_eq!(plaintext(mesh_port).await, "");
    assert_eq!(exchange(pair.port(), GET).await.status(), 200, "mTLS still passes");
    assert_eq!(app.seen().len(), before + 1);
}

/// What a plaintext request gets; a refusal may be a reset, also one that overtakes the connection.
async fn plaintext(address: std::net::SocketAddr) -> String {
    let mut text = String::new();
    let mut stream = match TcpStream::connect(address).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return text,
        Err(error) => panic!("it listens: {error}"),
    };
    if stream.write_all(GET).await.is_ok() {
        let _ = tokio::time::timeout(LIMIT, stream.read_to_string(&mut text)).await.expect("it ends");
    }
    text
}

#[tokio::test]
async fn a_recycled_address_never_gets_anothers_requests() {
    only_on_loopback!("it configures a mesh port");
    let app = App::fixed(200, "echo").await;
    let newcomer = App::fixed(200, "newcomer").await;
    let mesh = TestMesh::start().await;
    let mut echo = mesh.workload(Workload::new("echo").app(app.address).protocol("http")).await;
    // The client hears of changes through a relay, so that it can be made to miss them.
    let (relay, cut) = relay(mesh.mesh.xds()).await;
    let control_plane = serde_json::json!({
        "address": relay.to_string(),
        "rootFile": mesh.mesh.state.join("root.pem"),
        "tokenFile": mesh.mesh.token(NAMESPACE, "client").expect("a token"),
    });
    let client = mesh
        .workload(Workload::new("client").port("echo.shop:80").config("controlPlane", control_plane))
        .await;
    let port = client.ports["echo.shop:80"];
    assert_eq!(exchange(port, GET).await.status(), 200);
    cut.abort();

    // Another workload comes to stand at echo's address, and the client does not know.
    let address = echo.inbound[0];
    mesh.remove_manifest("echo.yaml");
    echo.process.kill().await;
    let inbound = serde_json::json!([{ "listen": address.to_string(), "app": newcomer.address.to_string() }]);
    let spec = Workload::new("newcomer").config("inbound", inbound);
    let _sidecar: Sidecar = mesh.start_sidecar(&spec).await;
    mesh.manifest("newcomer.yaml", &workload_at("newcomer", address, newcomer.address.port()));
    let serves = || async {
        match plaintext(address).await.as_str() {
            "" => Err("the newcomer does not serve".to_owned()),
            _ => Ok(()),
        }
    };
    wait_for(LIMIT, serves).await.unwrap_or_else(|error| panic!("{error}"));
    let before = newcomer.seen().len();

    for _ in 0..5 {
        let answer = exchange(port, GET).await;
        assert_eq!(answer.status(), 503, "{}", answer.text);
        let status = answer.header("proxy-status");
        assert!(status.contains("tls_certificate_error"), "{status}");
    }
    assert_eq!(newcomer.seen().len(), before, "{:?}", newcomer.seen());
    let log = client.process.log();
    assert!(log.contains(&identity("echo")) && log.contains(&identity("newcomer")), "{log}");
}

/// Passes connections on to an address, until the task is aborted.
async fn relay(to: std::net::SocketAddr) -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            connections.spawn(async move {
                if let Ok(mut far) = TcpStream::connect(to).await {
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    (address, task)
}

fn workload_at(name: &str, address: std::net::SocketAddr, app_port: u16) -> String {
    format!(
        "apiVersion: tulle.dev/v1alpha1\nkind: Workload\n\
         metadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{app: {name}}}}}\nspec:\n  \
         address: {}\n  serviceAccount: {name}\n  ports: [{{name: main, port: {app_port}, meshPort: {}}}]\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n  \
         selector: {{app: {name}}}\n  ports: [{{port: 80, targetPort: main, appProtocol: http}}]\n",
        address.ip(),
        address.port()
    )
}

#[tokio::test]
async fn a_certificate_is_renewed_without_dropping_a_connection() {
    let app = App::fixed(200, "").await;
    let mesh = TestMesh::start_with(&["--leaf-lifetime", "12s"]).await;
    let server = mesh.workload(Workload::new("echo").app(app.address).protocol("http")).await;
    let client = mesh.workload(Workload::new("client").port("echo.shop:80")).await;
    let mut stream = TcpStream::connect(client.ports["echo.shop:80"]).await.expect("it listens");
    let request = b"GET / HTTP/1.1\r\nhost: echo.shop\r\n\r\n";
    let mut ask = async || {
        stream.write_all(request).await.expect("the connection is open");
        let head = tulle_tests::read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    };
    ask().await;
    let first = serial(&server).await;
    let renewed = || async {
        match serial(&server).await {
            serial if serial == first => Err("the certificate is not renewed".to_owned()),
            _ => Ok(()),
        }
    };
    wait_for(LIMIT, renewed).await.unwrap_or_else(|error| panic!("{error}"));
    // Past the end of the first certificate, over connections old and new.
    tokio::time::sleep(Duration::from_secs(12)).await;
    ask().await;
    assert_eq!(exchange(client.ports["echo.shop:80"], GET).await.status(), 200);
}

async fn serial(sidecar: &Sidecar) -> String {
    let (status, text) = fetch(&format!("http://{}/certs", sidecar.admin)).await.expect("it answers");
    assert_eq!(status, 200, "{text}");
    assert!(!text.contains("PRIVATE KEY"), "keys stay inside");
    let certs: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    certs["leaf"]["serial"].as_str().unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[tokio::test]
async fn the_root_is_replaced_under_load_without_a_failure() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    let port = pair.port();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let load = tokio::spawn(async move {
        let mut count = 0;
        while !*stopped.borrow() {
            let answer = exchange(port, GET).await;
            assert_eq!(answer.status(), 200, "{}", answer.text);
            count += 1;
        }
        count
    });
    for step in ["prepare", "switch"] {
        let mut command = tokio::process::Command::new(&tulle_tests::binaries().control_plane);
        command.args(["rotate-root", step, "--state"]).arg(&pair.mesh.mesh.state);
        let output = tulle_tests::output_of(command).await;
        assert!(output.status.success(), "{output:?}");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    stop.send(true).expect("the load still runs");
    assert!(load.await.expect("no request failed") > 10);
}

#[tokio::test]
async fn a_forged_or_foreign_token_gets_no_certificate() {
    let mesh = TestMesh::start().await;
    let foreign = TestMesh::start().await;
    let token = mesh.mesh.token(NAMESPACE, "client").expect("a token");
    let text = std::fs::read_to_string(&token).expect("it was written");
    let (head, signature) = text.trim().rsplit_once('.').expect("a JWT");
    let forged = mesh.folder.path().join("forged");
    let flipped: String = signature.chars().rev().collect();
    std::fs::write(&forged, format!("{head}.{flipped}")).expect("the folder can be written");
    let others = foreign.mesh.token(NAMESPACE, "client").expect("a token");

    for (what, path) in [("forged", &forged), ("foreign", &others)] {
        let spec = tulle_cli::local::SidecarSpec {
            namespace: NAMESPACE.into(),
            service_account: "client".into(),
            name: what.into(),
            ..Default::default()
        };
        let sidecar =
            mesh.mesh.sidecar_with_token(&spec, path).await.unwrap_or_else(|error| panic!("{error}"));
        let refused = || async {
            let log = sidecar.process.log();
            let (status, body) = fetch(&format!("http://{}/ready", sidecar.health)).await?;
            assert_eq!(status, 503, "a sidecar without an identity is not ready: {body}");
            log.contains("token").then_some(()).ok_or_else(|| format!("the log does not say why: {log}"))
        };
        wait_for(LIMIT, refused).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(!sidecar.process.log().contains(signature), "a token is a secret");
        assert!(!mesh.mesh.control_plane.log().contains(signature), "a token is a secret");
    }
    let ready = mesh.workload(Workload::new("client")).await;
    drop(ready);
}

/// Certificates of an intermediate that somebody else has made are believed, and those of the next beside them.
#[tokio::test]
async fn an_intermediate_of_somebody_else_signs() {
    let authority = CertManager::new();
    let folder = tempfile::tempdir().expect("a folder");
    authority.intermediate().put(folder.path());
    let flag = folder.path().display().to_string();
    let mesh = TestMesh::start_with(&["--ca-folder", &flag]).await;
    let app = App::fixed(200, "").await;
    let _echo = mesh.workload(Workload::new("echo").app(app.address).protocol("http")).await;
    mesh.manifest("strict.yaml", &strict("echo"));
    let first = mesh.workload(Workload::new("first").port("echo.shop:80")).await;
    let answer = exchange(first.ports["echo.shop:80"], GET).await;
    assert_eq!(answer.status(), 200, "{answer:?}\n{}", first.process.log());

    authority.intermediate().put(folder.path());
    let changed = || async {
        let log = mesh.mesh.control_plane.log();
        if log.contains("the certificate authority changed") { Ok(()) } else { Err(log) }
    };
    wait_for(LIMIT, changed).await.unwrap_or_else(|error| panic!("{error}"));
    let second = mesh.workload(Workload::new("second").port("echo.shop:80")).await;
    assert_eq!(exchange(second.ports["echo.shop:80"], GET).await.status(), 200);
    let seen = app.seen();
    for (request, name) in seen.iter().zip(["first", "second"]) {
        let proof = request.header("x-forwarded-client-cert");
        assert!(proof.contains(&identity(name)), "{proof}");
    }
}

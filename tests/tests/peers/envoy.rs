//! Envoy as a client and as a server of the mesh, on virtual addresses of loopback.

use serde_json::json;
use tulle_tests::{App, LIMIT, TestMesh, Workload, exchange, free_port, wait_for};

use crate::support::{
    Envoy, GrpcServer, call, certificates, only, range, service, until_called, virtual_address,
};

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n").into_bytes()
}

/// Sends a request until it is answered with a status.
async fn until(address: std::net::SocketAddr, path: &str, status: u16) -> String {
    let answered = || async {
        let answer = exchange(address, &get(path)).await;
        match answer.status() {
            now if now == status => Ok(answer.text),
            now => Err(format!("{path}: {now} in place of {status}: {}", answer.text)),
        }
    };
    wait_for(LIMIT, answered).await.unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test]
async fn as_a_client_it_routes_over_mtls() {
    let mesh = TestMesh::start_with(&["--virtual-addresses", &range()]).await;
    let app = App::fixed(200, "echo").await;
    let other = App::fixed(201, "other").await;
    let _echo = mesh.workload(Workload::new("echo").app(app.address).protocol("http")).await;
    let _other = mesh.workload(Workload::new("other").app(other.address).protocol("http")).await;
    let at = virtual_address(&mesh, "echo").await;
    let envoy = Envoy::start(&mesh, "web", None, &[]).await;
    envoy.listens(at).await;
    until(at, "/", 200).await;
    assert!(envoy.count("echo.shop.svc.cluster.local.ssl.handshake").await > 0, "in plaintext");

    mesh.manifest(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: echo, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: echo, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /other}}]
    backendRefs: [{name: other, port: 80}]
  - backendRefs: [{name: echo, port: 80}]
",
    );
    until(at, "/other/a", 201).await;
    until(at, "/a", 200).await;

    assert_eq!(envoy.count("update_rejected").await, 0, "{}", envoy.log());
}

#[tokio::test]
async fn as_a_client_it_refuses_who_proves_to_be_someone_else() {
    let mesh = TestMesh::start_with(&["--virtual-addresses", &range()]).await;
    let port = free_port();
    mesh.manifest("echo.yaml", &service("echo", "echo", port, port, "grpc"));
    mesh.knows("Service", "echo").await;
    let [other, own] = [certificates(&mesh, "someone-else").await, certificates(&mesh, "echo").await];
    let listen = format!("127.0.0.1:{port}");
    let imposter = GrpcServer::start(&mesh, "echo", &other, &listen).await;
    let envoy = Envoy::start(&mesh, "web", None, &[]).await;
    let at = virtual_address(&mesh, "echo").await;
    envoy.listens(at).await;
    let refused = || async {
        let said = call(at).await;
        let times = envoy.count("echo.shop.svc.cluster.local.ssl.fail_verify_san").await;
        if said.starts_with("UNAVAILABLE") && times > 0 { Ok(()) } else { Err(format!("{times}: {said}")) }
    };
    wait_for(LIMIT, refused).await.unwrap_or_else(|error| panic!("{error}\n{}", envoy.log()));
    imposter.stop().await;
    let _true = GrpcServer::start(&mesh, "echo", &own, &listen).await;
    until_called(at, "OK").await;
}

#[tokio::test]
async fn as_a_server_it_takes_sidecars_over_mtls_and_refuses_whom_a_policy_does_not_name() {
    let mesh = TestMesh::start_with(&["--virtual-addresses", &range()]).await;
    let app = App::fixed(200, "echo").await;
    let port = free_port();
    mesh.manifest("echo.yaml", &service("echo", "echo", port, app.address.port(), "http"));
    mesh.knows("Service", "echo").await;
    let envoy = Envoy::start(&mesh, "echo", None, &["--address", "127.0.0.1"]).await;
    envoy.listens(([127, 0, 0, 1], port).into()).await;
    let web = mesh.workload(Workload::new("web").port("echo.shop:80")).await;
    let cart = mesh.workload(Workload::new("cart").port("echo.shop:80")).await;
    let (web, cart) = (web.ports["echo.shop:80"], cart.ports["echo.shop:80"]);
    until(web, "/", 200).await;
    assert!(envoy.count(&format!("127.0.0.1_{port}.ssl.handshake")).await > 0, "in plaintext");

    mesh.manifest("only.yaml", &only("echo", "cart"));
    until(web, "/", 403).await;
    until(cart, "/", 200).await;

    assert_eq!(envoy.count("update_rejected").await, 0, "{}", envoy.log());
    assert_eq!(mesh.api("/api/v1/objects").await["problems"], json!([]));
}

#[tokio::test]
async fn as_a_server_that_proves_to_be_someone_else_it_is_refused() {
    let mesh = TestMesh::start_with(&["--virtual-addresses", &range()]).await;
    let app = App::fixed(200, "echo").await;
    let port = free_port();
    mesh.manifest("echo.yaml", &service("echo", "echo", port, app.address.port(), "http"));
    mesh.knows("Service", "echo").await;
    let other = certificates(&mesh, "someone-else").await;
    let envoy = Envoy::start(&mesh, "echo", Some(&other), &["--address", "127.0.0.1"]).await;
    envoy.listens(([127, 0, 0, 1], port).into()).await;
    let web = mesh.workload(Workload::new("web").port("echo.shop:80")).await;
    let refused = || async {
        let answer = exchange(web.ports["echo.shop:80"], &get("/")).await;
        if answer.text.contains("someone-else") { Ok(answer) } else { Err(answer.text) }
    };
    let answer = wait_for(LIMIT, refused).await.unwrap_or_else(|error| panic!("{error}\n{}", envoy.log()));
    assert_eq!(answer.status(), 503, "{}", answer.text);
    assert!(app.seen().is_empty(), "nothing reached the application");
}

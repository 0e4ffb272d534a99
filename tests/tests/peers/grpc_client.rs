//! A proxyless gRPC client calls services of the mesh: `xds:///echo.shop.svc.cluster.local:80`.

use serde_json::json;
use tulle_tests::{LIMIT, Program, TestMesh, Workload, free_port, wait_for};

use crate::support::{GrpcClient, GrpcServer, call, certificates, only, service};

const TARGET: &str = "xds:///echo.shop.svc.cluster.local:80";

async fn mesh_with_echo() -> (TestMesh, Program, tulle_cli::local::Sidecar) {
    let app = Program::python("grpc_server.py", &[]).await;
    let mesh = TestMesh::start().await;
    let echo = mesh.workload(Workload::new("echo").app(app.address).protocol("grpc")).await;
    (mesh, app, echo)
}

#[tokio::test]
async fn it_calls_a_sidecar_over_mtls_by_any_name_and_routes_as_manifests_say() {
    let (mesh, _app, _echo) = mesh_with_echo().await;
    for target in [TARGET, "xds:///echo.shop:80"] {
        let mut web = GrpcClient::start(&mesh, "web", target).await;
        assert_eq!(web.until("OK").await, "cba", "{target}");
    }

    // Calls with this header go nowhere: the Service of the route has no endpoints.
    let mut web = GrpcClient::start(&mesh, "web", TARGET).await;
    assert_eq!(web.until("OK").await, "cba");
    mesh.manifest(
        "nobody.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: nobody, namespace: shop}\nspec:\n  selector: {app: nobody}\n  \
         ports: [{name: grpc, port: 80, appProtocol: grpc}]\n",
    );
    mesh.manifest(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: echo, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: echo, port: 80}]
  rules:
  - matches: [{headers: [{name: x-to, value: nobody}]}]
    backendRefs: [{name: nobody, port: 80}]
  - backendRefs: [{name: echo, port: 80}]
",
    );
    let deadline = tokio::time::Instant::now() + tulle_tests::LIMIT;
    while web.call(&json!({ "x-to": "nobody" })).await.0 != "UNAVAILABLE" {
        assert!(tokio::time::Instant::now() < deadline, "the route is not obeyed");
    }
    assert_eq!(web.call(&json!({})).await, ("OK".into(), "cba".into()));
}

#[tokio::test]
async fn it_refuses_who_proves_to_be_someone_else() {
    let mesh = TestMesh::start().await;
    let port = free_port();
    mesh.manifest("echo.yaml", &service("echo", "echo", port, port, "grpc"));
    mesh.knows("Service", "echo").await;
    let [other, own] = [certificates(&mesh, "someone-else").await, certificates(&mesh, "echo").await];
    let listen = format!("127.0.0.1:{port}");
    let imposter = GrpcServer::start(&mesh, "echo", &other, &listen).await;
    let mut web = GrpcClient::start(&mesh, "web", TARGET).await;
    // Once a sidecar sees who serves there, it is no closed port that the client meets.
    let sidecar = mesh.workload(Workload::new("cart").port("echo.shop:80")).await;
    let serves = || async {
        let said = call(sidecar.ports["echo.shop:80"]).await;
        if said.contains("someone-else") { Ok(()) } else { Err(said) }
    };
    wait_for(LIMIT, serves).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(web.call(&json!({})).await.0, "UNAVAILABLE");
    imposter.stop().await;
    let _true = GrpcServer::start(&mesh, "echo", &own, &listen).await;
    assert_eq!(web.until("OK").await, "cba");
}

#[tokio::test]
async fn the_sidecar_knows_who_calls_and_refuses_whom_its_policy_does_not_name() {
    let (mesh, _app, _echo) = mesh_with_echo().await;
    let mut web = GrpcClient::start(&mesh, "web", TARGET).await;
    let mut cart = GrpcClient::start(&mesh, "cart", TARGET).await;
    assert_eq!(web.until("OK").await, "cba");
    mesh.manifest("only.yaml", &only("echo", "cart"));
    web.until("PERMISSION_DENIED").await;
    assert_eq!(cart.until("OK").await, "cba");
    assert_eq!(mesh.api("/api/v1/objects").await["problems"], json!([]));
}

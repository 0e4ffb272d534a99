//! A proxyless gRPC server behind our sidecars' mTLS: its listener comes from the control plane.

use serde_json::json;
use tulle_tests::{LIMIT, TestMesh, Workload, free_port, output_of, python, wait_for};

use crate::support::{GrpcClient, GrpcServer, call, certificates, only, service, until_called};

#[tokio::test]
async fn sidecars_and_grpc_clients_call_it_and_its_policy_holds() {
    // Its listener is asked for by the address that it is bound to, which here is all of them.
    let (mesh, _server, port) = served("echo", "0.0.0.0").await;
    let web = mesh.workload(Workload::new("web").port("echo.shop:80")).await;
    let cart = mesh.workload(Workload::new("cart").port("echo.shop:80")).await;
    let (web, cart) = (web.ports["echo.shop:80"], cart.ports["echo.shop:80"]);
    assert!(until_called(web, "OK").await.contains("cba"));
    let mut proxyless = GrpcClient::start(&mesh, "web", "xds:///echo.shop.svc.cluster.local:80").await;
    assert_eq!(proxyless.until("OK").await, "cba");

    // Plaintext is no way in.
    assert!(call(([127, 0, 0, 1], port).into()).await.starts_with("UNAVAILABLE"));
    mesh.manifest("only.yaml", &only("echo", "cart"));
    until_called(web, "PERMISSION_DENIED").await;
    proxyless.until("PERMISSION_DENIED").await;
    assert!(until_called(cart, "OK").await.contains("cba"));
}

/// A server ends the connection of who pings it while nothing is said, and every call on it. This one bears it once, where
/// gRPC's default is twice; what it still had to say of its window makes up for the first. So four pings half a minute apart
/// would be too many.
#[tokio::test]
async fn a_call_on_which_nothing_is_said_goes_on() {
    let (mesh, _server, _) = served("echo", "0.0.0.0").await;
    let web = mesh.workload(Workload::new("web").port("echo.shop:80")).await;
    let web = web.ports["echo.shop:80"];
    until_called(web, "OK").await;
    let mut silent = python("grpc_silent.py");
    silent.args([&web.to_string(), "125"]);
    let output = output_of(silent).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{output:?}");
}

#[tokio::test]
async fn a_sidecar_refuses_one_that_proves_to_be_someone_else() {
    let (mesh, _server, _) = served("someone-else", "127.0.0.1").await;
    let web = mesh.workload(Workload::new("web").port("echo.shop:80")).await;
    let refused = || async {
        let said = call(web.ports["echo.shop:80"]).await;
        match said.contains("someone-else") {
            true => Ok(said),
            false => Err(said),
        }
    };
    let said = wait_for(LIMIT, refused).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(said.starts_with("UNAVAILABLE"), "{said}");
    assert_eq!(mesh.api("/api/v1/objects").await["problems"], json!([]));
}

/// A mesh with the service `echo`, a server of it that listens at `ip` and proves to be `identity`, and its port.
async fn served(identity: &str, ip: &str) -> (TestMesh, GrpcServer, u16) {
    let mesh = TestMesh::start().await;
    let port = free_port();
    mesh.manifest("echo.yaml", &service("echo", "echo", port, port, "grpc"));
    mesh.knows("Service", "echo").await;
    let proof = certificates(&mesh, identity).await;
    let server = GrpcServer::start(&mesh, "echo", &proof, &format!("{ip}:{port}")).await;
    (mesh, server, port)
}

//! HTTP/2 and gRPC, with independent clients and servers.

use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;
use tulle_tests::{Program, output_of, python};

use crate::Pair;

#[tokio::test]
async fn grpc_of_all_kinds_passes() {
    let app = Program::python("grpc_server.py", &[]).await;
    let pair = Pair::start(app.address, "grpc").await;
    let mut command = python("grpc_client.py");
    command.arg(pair.port().to_string());
    let output = output_of(command).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{output:?}");
}

/// A server ends the connection of who pings it while nothing is said (gRFC A8), and every call on it.
#[tokio::test]
async fn a_silent_call_goes_on() {
    let app = Program::python("grpc_server.py", &[]).await;
    let pair = Pair::start(app.address, "grpc").await;
    let mut command = python("grpc_silent.py");
    // As long as the server bears three pings that are half a minute apart.
    command.args([&pair.port().to_string(), "95"]).kill_on_drop(true);
    let output =
        timeout(Duration::from_secs(120), command.output()).await.expect("it ends").expect("it runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{output:?}");
}

#[tokio::test]
async fn grpc_is_told_apart_without_a_word_from_its_service() {
    let app = Program::python("grpc_server.py", &[]).await;
    let mesh = tulle_tests::TestMesh::start().await;
    let _server = mesh.workload(tulle_tests::Workload::new("echo").app(app.address)).await;
    let client = mesh.workload(tulle_tests::Workload::new("client").port("echo.shop:80")).await;
    let mut command = python("grpc_client.py");
    command.arg(client.ports["echo.shop:80"].to_string());
    let output = output_of(command).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{output:?}");
}

#[tokio::test]
async fn many_streams_share_a_connection() {
    let app = Program::python("grpc_server.py", &[]).await;
    let pair = Pair::start(app.address, "kubernetes.io/h2c").await;
    let mut command = Command::new("h2load");
    command.args(["-n", "2000", "-c", "4", "-m", "50", "-H", "te: trailers"]);
    command.args(["-H", "content-type: application/grpc", "-H", ":method: POST"]);
    command.arg(format!("http://{}/test.Echo/None", pair.port()));
    let output = output_of(command).await;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout"),
        "{text}"
    );
}

#[tokio::test]
async fn a_refused_grpc_call_gets_a_grpc_status() {
    let mesh = tulle_tests::TestMesh::start().await;
    let client = mesh.workload(tulle_tests::Workload::new("client").port("echo.shop:80")).await;
    mesh.manifest(
        "nobody.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: echo, namespace: shop}\nspec:\n  selector: {app: nobody}\n  \
         ports: [{name: grpc, port: 80, appProtocol: grpc}]\n",
    );
    mesh.knows("Service", "echo").await;
    let script = "import grpc, sys\nc = grpc.insecure_channel(sys.argv[1])\ntry:\n    \
                  c.unary_unary('/test.Echo/Unary')(b'', timeout=15)\nexcept grpc.RpcError as e:\n    \
                  print(e.code().name)\n";
    let mut command = Command::new(python("x").as_std().get_program());
    command.args(["-c", script, &client.ports["echo.shop:80"].to_string()]);
    let output = output_of(command).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "UNAVAILABLE\n", "{output:?}");
}

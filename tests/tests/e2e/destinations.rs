//! Destinations of all kinds: inside the mesh, by another name, outside of it, and split below HTTP.

use std::net::SocketAddr;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tulle_tests::{
    App, LIMIT, NAMESPACE, TestMesh, Workload, exchange, only_on_loopback, read_head, read_to_end, wait_for,
};

use crate::Pair;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";

fn get(authority: impl std::fmt::Display) -> Vec<u8> {
    format!("GET http://{authority}/ HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn what_is_outside_the_mesh_is_reached_unless_that_is_forbidden() {
    only_on_loopback!("it asks the forward proxy");
    let (app, outside) = (App::fixed(200, "inside").await, App::fixed(200, "outside").await);
    let mesh = TestMesh::start().await;
    let _server = mesh.workload(Workload::new("echo").app(app.address).protocol("http")).await;
    let open = mesh.workload(Workload::new("open")).await;
    let only = json!({ "proxy": "127.0.0.1:0", "policy": "RegistryOnly" });
    let closed = mesh.workload(Workload::new("closed").config("outbound", only)).await;

    for authority in [outside.address.to_string(), format!("localhost:{}", outside.address.port())] {
        let answer = exchange(open.proxy, &get(&authority)).await;
        assert!(answer.status() == 200 && answer.text.ends_with("outside"), "{authority}: {}", answer.text);
        let answer = exchange(closed.proxy, &get(&authority)).await;
        assert_eq!(answer.status(), 502, "{}", answer.text);
        assert!(answer.header("proxy-status").contains("destination_not_found"), "{}", answer.text);
    }
    assert_eq!(outside.seen().len(), 2);

    let connect = format!("CONNECT {0} HTTP/1.1\r\nhost: {0}\r\n\r\n", outside.address);
    let mut tunnel = TcpStream::connect(open.proxy).await.expect("it listens");
    tunnel.write_all(connect.as_bytes()).await.expect("it reads");
    assert!(read_head(&mut tunnel).await.starts_with("HTTP/1.1 200"));
    tunnel.write_all(&get(outside.address)).await.expect("it reads");
    assert!(read_head(&mut tunnel).await.starts_with("HTTP/1.1 200"));
    let mut tunnel = TcpStream::connect(closed.proxy).await.expect("it listens");
    tunnel.write_all(connect.as_bytes()).await.expect("it reads");
    let refused = read_head(&mut tunnel).await;
    assert!(refused.starts_with("HTTP/1.1 502"), "{refused}");

    for proxy in [open.proxy, closed.proxy] {
        let answer = exchange(proxy, &get("echo.shop")).await;
        assert!(answer.text.ends_with("inside"), "{}", answer.text);
    }
}

#[tokio::test]
async fn an_external_name_is_resolved_and_reached() {
    let outside = App::fixed(200, "outside").await;
    let mesh = TestMesh::start().await;
    mesh.stand_in("client", outside.address).await;
    let client = mesh.workload(Workload::new("client").port("legacy.shop:80")).await;
    let port = outside.address.port();
    let service = |host: &str| {
        mesh.manifest(
            "legacy.yaml",
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: legacy, namespace: {NAMESPACE}}}\nspec:\n  \
                 type: ExternalName\n  externalName: {host}\n  \
                 ports: [{{name: http, port: 80, targetPort: {port}, appProtocol: http}}, {{name: http-alt, port: {port}}}]\n"
            ),
        );
    };
    service("localhost");
    let authority = format!("legacy.shop:{port}");
    let way = mesh.way("client", &client, &authority).await;
    let reached = || async {
        let answer = exchange(way, &get(&authority)).await;
        match answer.status() {
            200 => Ok(answer),
            _ => Err(answer.text),
        }
    };
    let answer = wait_for(LIMIT, reached).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(answer.text.ends_with("outside"), "{}", answer.text);
    // A name that stands for nothing is an answer, and the next good one is followed.
    service("no-such-host.invalid");
    let gone = || async {
        let answer = exchange(way, &get(&authority)).await;
        match answer.status() {
            503 => Ok(answer),
            _ => Err(answer.text),
        }
    };
    let answer = wait_for(LIMIT, gone).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(answer.header("proxy-status").contains("destination_unavailable"), "{}", answer.text);
    service("localhost");
    wait_for(LIMIT, reached).await.unwrap_or_else(|error| panic!("{error}"));
}

/// A server that says its name to everyone.
async fn named(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(name.as_bytes()).await;
                let _ = stream.shutdown().await;
                // Until the client has ended too: a reset would take the name with it.
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn connections_are_split_by_weight() {
    let mesh = TestMesh::start().await;
    let _one = mesh.workload(Workload::new("one").app(named("one").await).protocol("tcp")).await;
    let _two = mesh.workload(Workload::new("two").app(named("two").await).protocol("tcp")).await;
    mesh.manifest(
        "route.yaml",
        &format!(
            "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {{name: one, namespace: {NAMESPACE}}}\n\
             spec:\n  parentRefs: [{{group: \"\", kind: Service, name: one, port: 80}}]\n  \
             rules: [{{backendRefs: [{{name: one, port: 80, weight: 3}}, {{name: two, port: 80, weight: 1}}]}}]\n"
        ),
    );
    let client = mesh.workload(Workload::new("client").port("one.shop:80")).await;
    let ask = async || {
        let mut stream = TcpStream::connect(client.ports["one.shop:80"]).await.expect("it listens");
        stream.shutdown().await.expect("it is open");
        read_to_end(&mut stream).await
    };
    let split = || async {
        match ask().await.as_str() {
            "two" => Ok(()),
            other => Err(format!("only {other:?}")),
        }
    };
    wait_for(LIMIT, split).await.unwrap_or_else(|error| panic!("{error}"));
    let mut two = 0;
    for _ in 0..200 {
        match ask().await.as_str() {
            "one" => {}
            "two" => two += 1,
            other => panic!("{other:?}"),
        }
    }
    // Six standard deviations of a binomial around 50.
    assert!((14..=87).contains(&two), "{two} of 200");
}

#[tokio::test]
async fn a_port_may_be_an_exception_from_what_its_workload_asks_of_peers() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    let mesh_port = pair.server.inbound[0];
    let policy = |all: &str, port: &str| {
        pair.mesh.manifest(
            "mtls.yaml",
            &format!(
                "apiVersion: tulle.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {{name: mtls, namespace: {NAMESPACE}}}\n\
                 spec:\n  targetRefs: [{{kind: Service, name: echo}}]\n  mtls: {{mode: {all}}}\n  \
                 ports: [{{port: {}, mtls: {{mode: {port}}}}}]\n",
                app.address.port()
            ),
        );
    };
    for (all, port, plaintext) in [("Permissive", "Strict", false), ("Strict", "Permissive", true)] {
        policy(all, port);
        let in_force = || async {
            let mut stream = TcpStream::connect(mesh_port).await.map_err(|error| error.to_string())?;
            let mut text = String::new();
            if stream.write_all(GET).await.is_ok() {
                let read = tokio::time::timeout(LIMIT, stream.read_to_string(&mut text)).await;
                let _ = read.expect("it ends");
            }
            if text.starts_with("HTTP/1.1 200") == plaintext {
                Ok(())
            } else {
                Err(format!("{port}: {text:?}"))
            }
        };
        wait_for(LIMIT, in_force).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(exchange(pair.port(), GET).await.status(), 200, "mTLS passes in any case");
    }
}

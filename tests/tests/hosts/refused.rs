//! Connections that go no further: straight to the sidecar's ports, to addresses that are not the workload's, in
//! plaintext where that is forbidden.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tulle_tests::hosts::{Host, Member};
use tulle_tests::{LIMIT, TestMesh, wait_for};

use crate::{Pair, echo, get, refused, refused_at_least};

/// What a plain request to an address brings: a status line, or nothing.
pub(crate) async fn ask(host: &Host, address: SocketAddr) -> String {
    // A reset may be there before the handshake's end is noticed.
    let Ok(mut stream) = host.connect(address).await else { return String::new() };
    let request = format!("GET / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    let mut text = String::new();
    if stream.write_all(request.as_bytes()).await.is_ok() {
        let read = tokio::time::timeout(LIMIT, stream.read_to_string(&mut text)).await;
        // A reset is an end too.
        let _ = read.expect("it ends");
    }
    text.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn connections_straight_to_the_sidecar_s_ports_are_refused() {
    let pair = Pair::start().await;
    let server = &pair.server;
    let stranger = pair.mesh.host("stranger");
    let mut loops = 0.0;
    for ip in server.host.addresses() {
        assert_eq!(ask(&stranger, (ip, 15006).into()).await, "");
        loops += 1.0;
        refused_at_least(server, "loop", loops).await;
    }
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        for port in [15001, 15006] {
            assert_eq!(ask(&server.host, (ip, port).into()).await, "");
            loops += 1.0;
            refused_at_least(server, "loop", loops).await;
        }
    }
    // The outbound port is for this host alone.
    let answer = ask(&stranger, (server.host.v4, 15001).into()).await;
    assert_eq!(answer, "HTTP/1.1 503 Service Unavailable", "nobody listens there");
    pair.works().await;
}

#[tokio::test]
async fn a_destination_that_is_not_the_workload_s_is_refused() {
    let mesh = TestMesh::on_hosts().await;
    let host = mesh.host("echo");
    let _app = echo(&host, 8080).await;
    let own = json!({ "addresses": [host.v4.to_string()] });
    let meshed = mesh.join_as(&host, Member::of("echo").config("capture", own)).await;
    // The host has another address, which its sidecar was not told to be the workload's.
    let stranger = mesh.host("stranger");
    assert_eq!(ask(&stranger, (host.v6, 8080).into()).await, "");
    assert_eq!(refused(&meshed, "spoofed").await, 1.0);
}

#[tokio::test]
async fn strict_refuses_a_host_without_a_sidecar_and_permissive_takes_it() {
    let pair = Pair::start().await;
    let stranger = pair.mesh.host("stranger");
    let app = SocketAddr::from((pair.server.host.v4, 8080));
    for (mode, answer) in [("Strict", ""), ("Permissive", "HTTP/1.1 200 OK"), ("Strict", "")] {
        pair.mesh.manifest(
            "mtls.yaml",
            &format!(
                "apiVersion: tulle.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {{name: mtls, namespace: shop}}\n\
                 spec:\n  targetRefs: [{{kind: Namespace, name: shop}}]\n  mtls: {{mode: {mode}}}\n"
            ),
        );
        let in_force = || async {
            let got = ask(&stranger, app).await;
            if got == answer { Ok(()) } else { Err(format!("{mode}: {got:?}")) }
        };
        wait_for(LIMIT, in_force).await.unwrap_or_else(|error| panic!("{error}"));
        pair.works().await;
    }
    // Ports that no Workload names are captured too, under the same policy.
    let _other = echo(&pair.server.host, 9999).await;
    assert_eq!(ask(&stranger, (pair.server.host.v4, 9999).into()).await, "");
    let member = get(&pair.client.host, &format!("http://{}:9999/", pair.server.host.v4)).await;
    assert!(member.is_ok(), "{member:?}");
    let local = get(&pair.server.host, "http://127.0.0.1:9999/").await;
    assert!(local.is_ok(), "its own host reaches it: {local:?}");
}

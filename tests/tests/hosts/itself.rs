//! An application that reaches itself and its peers in every way that there is, by both families: with HTTP and with a
//! protocol in which the server speaks first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::AsyncWriteExt;
use tulle_tests::hosts::{Host, Member, Meshed, Server};
use tulle_tests::{LIMIT, TestMesh, identity, wait_for};

use crate::captured::{connect, greeter, line};
use crate::{echo, get, passed_through};

/// The virtual addresses of the Service, with ports of its own.
const SERVICE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 21)), IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x21))];
const WEB: u16 = 80;
const MAIL: u16 = 4040;

/// Where the application serves.
const HTTP: u16 = 8080;
const GREETER: u16 = 2525;

/// A client, and an application that speaks HTTP on one port and greets on another, at both addresses of its host. Its
/// Service has addresses, and there is a headless one before it too.
struct Both {
    mesh: TestMesh,
    client: Meshed,
    server: Meshed,
    _apps: [Server; 2],
}

impl Both {
    async fn start() -> Self {
        let mesh = TestMesh::on_hosts().await;
        let host = mesh.host("both");
        let apps = [echo(&host, HTTP).await, greeter(&host, GREETER).await];
        mesh.workload_at(&host, "both", &host.addresses(), &[("http", HTTP), ("main", GREETER)]);
        mesh.service("both", &SERVICE, &[("http", WEB, "http"), ("main", MAIL, "main")]);
        mesh.manifest(
            "headless.yaml",
            "apiVersion: v1\nkind: Service\nmetadata: {name: all, namespace: shop}\nspec:\n  clusterIP: None\n  \
             selector: {app: both}\n  ports: [{name: main, port: 2525}, {name: http, port: 8080}]\n",
        );
        let server = mesh.join_as(&host, Member::of("both")).await;
        let client = mesh.join("client").await;
        mesh.knows("Service", "all").await;
        Self { mesh, client, server, _apps: apps }
    }
}

/// Hears the greeting, and gets its own word back.
async fn talk(host: &Host, address: SocketAddr) {
    let mut stream = connect(host, address.ip(), address.port()).await;
    assert_eq!(line(&mut stream).await, "220 ready", "{address}");
    stream.write_all(b"EHLO seersucker\r\n").await.expect("open");
    assert_eq!(line(&mut stream).await, "250 EHLO seersucker", "{address}");
}

#[tokio::test]
async fn an_application_reaches_itself() {
    let both = Both::start().await;
    let host = &both.server.host;
    let link = host.capture("eth0").await;
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    let direct = || host.addresses().into_iter().chain(loopback);
    let services = |port| SERVICE.into_iter().map(move |ip| SocketAddr::new(ip, port));
    for address in services(MAIL).chain(direct().map(|ip| SocketAddr::new(ip, GREETER))) {
        talk(host, address).await;
    }
    for address in services(WEB).chain(direct().map(|ip| SocketAddr::new(ip, HTTP))) {
        let url = format!("http://{address}/seersucker");
        let answer = get(host, &url).await.unwrap_or_else(|error| panic!("{url}: {error}"));
        assert!(answer.starts_with("both /seersucker\n"), "{url}: {answer}");
    }
    assert!(!link.end().await.contain("seersucker"), "none of it has left the host");
}

#[tokio::test]
async fn a_peer_is_reached_at_each_address_over_mtls() {
    let both = Both::start().await;
    let (client, server) = (&both.client.host, &both.server.host);
    let link = server.capture("eth0").await;
    // By the Service, and by the addresses of the endpoint of the headless one.
    let all = |service, own| {
        let own = server.addresses().map(|ip| SocketAddr::new(ip, own));
        SERVICE.map(|ip| SocketAddr::new(ip, service)).into_iter().chain(own)
    };
    for address in all(MAIL, GREETER) {
        talk(client, address).await;
    }
    for address in all(WEB, HTTP) {
        let url = format!("http://{address}/seersucker");
        let answer = get(client, &url).await.unwrap_or_else(|error| panic!("{url}: {error}"));
        let proven = format!("x-forwarded-client-cert: URI={}\n", identity("client"));
        assert!(answer.starts_with("both /seersucker\n") && answer.contains(&proven), "{url}: {answer}");
    }
    let carried = || async {
        let metrics = both.server.metrics().await;
        let peer = [("source_principal", &*identity("client"))];
        let count = metrics.sum("tulle_tcp_connection_duration_seconds_count", &peer);
        if count == 4.0 { Ok(()) } else { Err(format!("{count} connections came from the client")) }
    };
    wait_for(LIMIT, carried).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(passed_through(&both.client).await, 0.0);
    assert!(!link.end().await.contain("seersucker"), "nothing of it can be read on the link");
}

#[tokio::test]
async fn endpoints_with_ipv6_alone_are_served_as_others() {
    let both = Both::start().await;
    let host = &both.server.host;
    both.mesh.workload_on(host, "both", host.v6, &[("http", HTTP), ("main", GREETER)]);
    // Nothing else leads there any more.
    let rule = format!("ip saddr {} drop", both.client.host.v4);
    host.nft(&format!("table ip t {{ chain c {{ type filter hook input priority 0; {rule}; }}; }}")).await;
    let link = host.capture("eth0").await;
    for ip in SERVICE {
        let url = format!("http://{}/", SocketAddr::new(ip, WEB));
        let answer = wait_for(LIMIT * 2, || get(&both.client.host, &url)).await;
        let answer = answer.unwrap_or_else(|error| panic!("{url}: {error}"));
        assert!(answer.contains(&identity("client")), "{answer}");
        talk(&both.client.host, SocketAddr::new(ip, MAIL)).await;
    }
    assert!(!link.end().await.contain("seersucker"), "nothing of it can be read on the link");
}

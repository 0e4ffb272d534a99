//! What is captured without being in any manifest: ports that nobody declares, destinations that nobody has asked for yet,
//! and peers that are not who they should be.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tulle_tests::hosts::{APP_UID, Host, Member, Server};
use tulle_tests::{LIMIT, NAMESPACE, TRUST_DOMAIN, TestMesh, fetch, output_of, wait_for};

use crate::{ECHO_URL, Pair, echo, get, passed_through, refused, refused_at_least};

/// A port that stands in no manifest.
const UNDECLARED: u16 = 2525;

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_on_a_port_that_nobody_declares() {
    let pair = Pair::start().await;
    let stranger = pair.mesh.host("stranger");
    let _greeter = greeter(&pair.server.host, UNDECLARED).await;
    for host in [&pair.client.host, &stranger] {
        let mut stream = connect(host, pair.server.host.v4, UNDECLARED).await;
        assert_eq!(line(&mut stream).await, "220 ready");
        stream.write_all(b"EHLO me\r\n").await.expect("open");
        assert_eq!(line(&mut stream).await, "250 EHLO me");
    }
    // A workload that is strict is still heard by who is in the mesh, and by nobody else.
    make_strict(&pair.mesh);
    until_refused(&stranger, pair.server.host.v4, UNDECLARED).await;
    let mut stream = connect(&pair.client.host, pair.server.host.v4, UNDECLARED).await;
    assert_eq!(line(&mut stream).await, "220 ready");
    assert_eq!(passed_through(&pair.client).await, 0.0);
}

#[tokio::test]
async fn a_port_that_nobody_declares_is_reached_over_mtls_whatever_it_speaks() {
    let pair = Pair::start().await;
    let (_http, _greeter) =
        (echo(&pair.server.host, 9999).await, greeter(&pair.server.host, UNDECLARED).await);
    let link = pair.server.host.capture("eth0").await;
    let url = format!("http://{}:9999/the-secret", pair.server.host.v4);
    let answer = get(&pair.client.host, &url).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(answer.starts_with("echo /the-secret"), "{answer}");
    let mut stream = connect(&pair.client.host, pair.server.host.v4, UNDECLARED).await;
    assert_eq!(line(&mut stream).await, "220 ready");
    stream.write_all(b"EHLO the-secret\r\n").await.expect("open");
    assert_eq!(line(&mut stream).await, "250 EHLO the-secret");
    assert!(!link.end().await.contain("the-secret"));
    let metrics = pair.client.metrics().await;
    let id = format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/echo");
    let proven = metrics.sum("http_client_request_duration_seconds_count", &[("destination_principal", &id)]);
    assert!(proven >= 1.0, "{metrics:?}");
    assert_eq!(passed_through(&pair.client).await, 0.0);
}

#[tokio::test]
async fn ports_that_redirection_leaves_alone_are_reached_past_both_sidecars() {
    const SKIPPED: u16 = 2222;
    let pair = Pair::start().await;
    let server = &pair.server.host;
    make_strict(&pair.mesh);
    let _greeter = greeter(server, SKIPPED).await;
    let mut init = server.command(0, &tulle_tests::binaries().sidecar);
    init.args(["init", "--skip-inbound-ports", &SKIPPED.to_string()]);
    assert!(output_of(init).await.status.success());
    tell_skipped(&pair.mesh, server, SKIPPED);
    until_heard(&pair.client.host, server.v4, SKIPPED).await;
    let counted = || async {
        let count = passed_through(&pair.client).await;
        if count >= 1.0 { Ok(()) } else { Err(format!("{count} connections have passed as they are")) }
    };
    wait_for(LIMIT, counted).await.unwrap_or_else(|error| panic!("{error}"));
    // The sidecar's own ports are never redirected.
    for ip in server.addresses() {
        let health = get(&pair.client.host, &format!("http://{}/live", SocketAddr::new(ip, 15020))).await;
        assert_eq!(health.as_deref(), Ok("live\n"), "{ip}");
    }
    pair.works().await;
}

#[tokio::test]
async fn a_policy_for_a_port_that_nobody_declares_holds_there_alone() {
    let pair = Pair::start().await;
    let stranger = pair.mesh.host("stranger");
    let _denied = greeter(&pair.server.host, UNDECLARED).await;
    let _other = greeter(&pair.server.host, UNDECLARED + 1).await;
    pair.mesh.manifest(
        "deny.yaml",
        &format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: deny, namespace: shop}}\nspec:\n  \
             targetRefs: [{{group: core, kind: Namespace, name: shop}}]\n  enforcementLevel: Network\n  action: DENY\n  \
             rules: [{{networkAttributes: {{ports: [{UNDECLARED}]}}}}]\n"
        ),
    );
    until_refused(&stranger, pair.server.host.v4, UNDECLARED).await;
    refused_at_least(&pair.server, "denied", 1.0).await;
    let mut stream = connect(&stranger, pair.server.host.v4, UNDECLARED + 1).await;
    assert_eq!(line(&mut stream).await, "220 ready");
}

#[tokio::test]
async fn a_destination_that_was_never_asked_for_waits_for_the_control_plane_to_come_back() {
    let pair = Pair::start().await;
    let outside = pair.mesh.host("outside");
    let (_known, _unknown) = (greeter(&outside, 9000).await, greeter(&outside, 9001).await);
    let client = &pair.client.host;
    let mut stream = connect(client, outside.v4, 9000).await;
    assert_eq!(line(&mut stream).await, "220 ready");
    let control = &pair.mesh.hosts().control;
    control.cut();
    // That the mesh does not know it is remembered.
    let mut stream = connect(client, outside.v4, 9000).await;
    assert_eq!(line(&mut stream).await, "220 ready");
    // Of this one nobody knows whether it would have to be encrypted.
    let mut stream = connect(client, outside.v4, 9001).await;
    assert!(stream.read_u8().await.is_err(), "nothing goes out in plaintext in doubt");
    refused_at_least(&pair.client, "unavailable", 1.0).await;
    control.mend();
    let heard = || async {
        let mut stream = connect(client, outside.v4, 9001).await;
        match stream.read_u8().await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    };
    wait_for(LIMIT * 3, heard).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn a_peer_with_another_identity_than_that_of_the_address_gets_nothing() {
    let pair = Pair::start().await;
    // From now on the address is another workload's, as after a restart elsewhere; who listens there is still the old one.
    pair.mesh.manifest(
        "workload-echo.yaml",
        &format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: Workload\n\
             metadata: {{name: echo, namespace: shop, labels: {{app: echo}}}}\n\
             spec: {{address: {}, serviceAccount: other, ports: [{{name: http, port: 8080}}]}}\n",
            pair.server.host.v4
        ),
    );
    let link = pair.server.host.capture("eth0").await;
    let _greeter = greeter(&pair.server.host, UNDECLARED).await;
    let cut_off = || async {
        match get(&pair.client.host, &format!("{ECHO_URL}/the-secret")).await {
            Err(text) if text.contains("no connection") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    };
    wait_for(LIMIT, cut_off).await.unwrap_or_else(|error| panic!("{error}"));
    for port in [8080, 9999] {
        let app = format!("http://{}:{port}/the-secret", pair.server.host.v4);
        assert!(get(&pair.client.host, &app).await.is_err());
    }
    // Not even a server that speaks first is heard on a port that nobody declares.
    let mut stream = connect(&pair.client.host, pair.server.host.v4, UNDECLARED).await;
    let _ = stream.write_all(b"the-secret\r\n").await;
    assert!(timeout(LIMIT, stream.read_u8()).await.expect("in time").is_err());
    assert!(!link.end().await.contain("the-secret"));
    assert_eq!(passed_through(&pair.client).await, 0.0);
    // And the old one is told nothing more about who may call there.
    let stranger = pair.mesh.host("stranger");
    until_refused(&stranger, pair.server.host.v4, 8080).await;
    assert!(refused(&pair.server, "no_listener").await >= 1.0);
}

#[tokio::test]
async fn an_application_that_tries_every_address_still_reaches_its_services() {
    let pair = Pair::start().await;
    let host = pair.mesh.host("scanner");
    let member = Member::of("scanner").config("outbound", json!({ "policy": "RegistryOnly" }));
    let scanner = pair.mesh.join_as(&host, member).await;
    for n in 0..6000_u16 {
        let [high, low] = n.to_be_bytes();
        let stream = host.connect(([10, 78, high, low], 9)).await;
        drop(stream.expect("redirection takes every connection"));
        if n % 1000 == 0 {
            let answer = get(&host, ECHO_URL).await;
            assert!(answer.is_ok(), "{answer:?}");
        }
    }
    let (status, config) = fetch(&format!("http://{}/config", scanner.admin)).await.expect("it answers");
    assert_eq!(status, 200);
    let config: Value = serde_json::from_str(&config).expect("JSON");
    let absent = config["absent"].as_array().map_or(0, Vec::len);
    assert!((1..=4096).contains(&absent), "{absent} names that stand for nothing are remembered");
    assert!(get(&host, ECHO_URL).await.is_ok());
}

#[tokio::test]
async fn an_application_that_dials_every_port_of_a_peer_costs_little_and_still_reaches_it() {
    let pair = Pair::start().await;
    let _greeter = greeter(&pair.server.host, UNDECLARED).await;
    let host = &pair.client.host;
    for port in 20_000..22_000_u16 {
        let stream = host.connect((pair.server.host.v4, port)).await;
        drop(stream.expect("redirection takes every connection"));
        if port % 500 == 0 {
            // While more ports are asked for than may be at once, others are refused.
            until_heard(host, pair.server.host.v4, UNDECLARED).await;
        }
    }
    until_heard(host, pair.server.host.v4, UNDECLARED).await;
    pair.works().await;
    let (status, config) = fetch(&format!("http://{}/config", pair.client.admin)).await.expect("it answers");
    assert_eq!(status, 200);
    let config: Value = serde_json::from_str(&config).expect("JSON");
    let own =
        |name: &Value| name.as_str().is_some_and(|name| name.contains(&pair.server.host.v4.to_string()));
    let listeners: Vec<_> =
        config["outbound"].as_array().expect("a list").iter().filter(|one| own(&one["name"])).collect();
    assert_eq!(listeners.len(), 1, "all ports are one listener");
    let aliases = listeners[0]["aliases"].as_array().expect("a list").len();
    assert!((1..=512).contains(&aliases), "{aliases} ports are remembered");
}

/// Tells the mesh which port redirection leaves alone at the host of the echo.
pub(crate) fn tell_skipped(mesh: &TestMesh, host: &Host, port: u16) {
    mesh.manifest(
        "workload-echo.yaml",
        &format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: Workload\n\
             metadata: {{name: echo, namespace: shop, labels: {{app: echo}}}}\n\
             spec: {{address: {}, serviceAccount: echo, ports: [{{name: http, port: 8080}}], \
             skipInboundPorts: [{port}]}}\n",
            host.v4
        ),
    );
}

/// Only mTLS is taken from now on.
pub(crate) fn make_strict(mesh: &TestMesh) {
    mesh.manifest(
        "mtls.yaml",
        "apiVersion: tulle.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: mtls, namespace: shop}\n\
         spec: {targetRefs: [{kind: Namespace, name: shop}], mtls: {mode: Strict}}\n",
    );
}

/// A server that speaks first, and repeats what it is told.
pub(crate) async fn greeter(host: &Host, port: u16) -> Server {
    let script = "import socket, socketserver, sys
class Greeter(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b'220 ready\\r\\n')
        for line in self.rfile:
            self.wfile.write(b'250 ' + line)
class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
Server(('::', int(sys.argv[1])), Greeter).serve_forever()
";
    let mut command = host.command(APP_UID, "/usr/bin/python3");
    command.args(["-c", script, &port.to_string()]).stderr(std::process::Stdio::null());
    host.serve(command, port).await
}

pub(crate) async fn connect(host: &Host, ip: impl Into<IpAddr>, port: u16) -> TcpStream {
    let address = SocketAddr::new(ip.into(), port);
    host.connect(address).await.unwrap_or_else(|error| panic!("{address}: {error}"))
}

/// A line without its end.
pub(crate) async fn line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let byte = timeout(LIMIT, stream.read_u8()).await.expect("in time");
        line.push(byte.unwrap_or_else(|error| panic!("after {:?}: {error}", String::from_utf8_lossy(&line))));
    }
    String::from_utf8_lossy(&line).trim_end().to_owned()
}

/// Waits until a server that speaks first is heard.
pub(crate) async fn until_heard(host: &Host, ip: impl Into<IpAddr>, port: u16) {
    let ip = ip.into();
    let heard = || async {
        let mut stream = connect(host, ip, port).await;
        match timeout(LIMIT, stream.read_u8()).await.expect("in time") {
            Ok(b'2') => Ok(()),
            other => Err(format!("{other:?}")),
        }
    };
    wait_for(LIMIT, heard).await.unwrap_or_else(|error| panic!("{error}"));
}

/// Waits until a connection brings nothing but its end.
pub(crate) async fn until_refused(host: &Host, ip: impl Into<IpAddr>, port: u16) {
    let address = SocketAddr::new(ip.into(), port);
    let refused = || async {
        // A reset may be there before the handshake's end is noticed.
        let Ok(mut stream) = host.connect(address).await else { return Ok(()) };
        // Who waits for the client's word gets one.
        let _ = stream.write_all(b"\0hello\r\n").await;
        match timeout(LIMIT, stream.read_u8()).await.expect("in time") {
            Ok(_) => Err(format!("{address} still answers")),
            Err(_) => Ok(()),
        }
    };
    wait_for(LIMIT, refused).await.unwrap_or_else(|error| panic!("{error}"));
}

//! Hosts in network namespaces: what only several machines can show. Needs root.

mod bad_input;
mod bookshop;
mod capture;
mod captured;
mod classic;
mod cni;
mod envoy;
mod faults;
mod itself;
mod metrics;
mod moved;
mod names;
mod network;
mod probes;
mod readme;
mod redirect;
mod refused;
mod servers;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tulle_tests::hosts::{APP_UID, Host, Member, Meshed, Server};
use tulle_tests::{LIMIT, TestMesh, output_of, wait_for};

/// The virtual addresses of `echo.shop`.
pub(crate) const ECHO: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 16)), IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x10))];

/// `echo.shop`, as an application dials it.
pub(crate) const ECHO_URL: &str = "http://10.96.0.16";

/// A client's host, and a server's with an application on port 8080 behind `echo.shop:80`.
pub(crate) struct Pair {
    pub(crate) mesh: TestMesh,
    pub(crate) client: Meshed,
    pub(crate) server: Meshed,
    _app: Server,
}

impl Pair {
    pub(crate) async fn start() -> Self {
        let mesh = TestMesh::on_hosts().await;
        mesh.service("echo", &ECHO, &[("http", 80, "http")]);
        let (server, app) = replica(&mesh, "echo").await;
        let client = mesh.join("client").await;
        let pair = Self { mesh, client, server, _app: app };
        pair.works().await;
        pair
    }

    /// Waits until the client gets an answer.
    pub(crate) async fn works(&self) {
        let answered = wait_for(LIMIT, || get(&self.client.host, ECHO_URL)).await;
        answered.unwrap_or_else(|error| panic!("{error}\n{}", self.client.process.log()));
    }
}

/// A host with an application on port 8080, as one of `echo.shop`.
pub(crate) async fn replica(mesh: &TestMesh, name: &str) -> (Meshed, Server) {
    let host = mesh.host(name);
    let app = echo(&host, 8080).await;
    mesh.workload_on(&host, "echo", host.v4, &[("http", 8080)]);
    (mesh.join_as(&host, Member::of(name)).await, app)
}

/// An HTTP server that answers with its host's name, the path, and the headers.
pub(crate) async fn echo(host: &Host, port: u16) -> Server {
    let script = "import http.server, socket, sys
class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = f'{sys.argv[2]} {self.path}\\n{self.headers}'.encode()
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 128
Server(('::', int(sys.argv[1])), Echo).serve_forever()
";
    let mut command = host.command(APP_UID, "/usr/bin/python3");
    command.args(["-c", script, &port.to_string(), &host.name]);
    host.serve(command, port).await
}

/// What an application gets for a URL.
pub(crate) async fn get(host: &Host, url: &str) -> Result<String, String> {
    let mut command = host.curl();
    command.args(["--fail-with-body", url]);
    let output = output_of(command).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() { Ok(text) } else { Err(text + &String::from_utf8_lossy(&output.stderr)) }
}

/// How many connections a sidecar has refused for a reason.
pub(crate) async fn refused(meshed: &Meshed, reason: &str) -> f64 {
    meshed.metrics().await.sum("tulle_connections_refused_total", &[("reason", reason)])
}

/// Waits until a sidecar has refused `count` connections for a reason.
pub(crate) async fn refused_at_least(meshed: &Meshed, reason: &str, count: f64) {
    let counted = || async {
        let now = refused(meshed, reason).await;
        if now >= count { Ok(()) } else { Err(format!("{now} connections refused as {reason}")) }
    };
    wait_for(LIMIT, counted).await.unwrap_or_else(|error| panic!("{error}"));
}

/// How many connections a sidecar has passed on as they are, to where the mesh knows nothing.
pub(crate) async fn passed_through(meshed: &Meshed) -> f64 {
    meshed.metrics().await.sum("tulle_tcp_connections_total", &[("backend", "passthrough")])
}

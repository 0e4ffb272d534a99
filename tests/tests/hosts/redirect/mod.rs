//! Redirection as the kernel does it: real rules, real connections between hosts, and who is at their end.

mod options;
mod proof;
mod traffic;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::{ExitStatus, Output};

use serde_json::Value;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tulle_tests::hosts::{APP_UID, Host, Network};
use tulle_tests::{binary, output_of};

/// The user that the sidecar runs as.
const SIDECAR_UID: u32 = 2102;

/// Two hosts. On `here` traffic is redirected. Whoever accepts a connection says who it is, and where the connection was
/// going: `outbound` and `inbound` in the sidecar's place, `app` on `here`, `remote` on `there`.
struct Scene {
    network: Network,
    here: Host,
    there: Host,
    servers: JoinSet<()>,
}

/// Who connects.
#[derive(Clone, Copy, Debug)]
enum Client {
    /// A program on the other host.
    There,
    /// The application.
    App,
    /// A program of root, beside the application.
    Root,
    /// The sidecar.
    Sidecar,
}

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

impl Scene {
    fn new() -> Self {
        let network = Network::new();
        let (here, there) = (network.host("here"), network.host("there"));
        let mut scene = Self { network, here, there, servers: JoinSet::new() };
        let everywhere = [scene.here.addresses(), LOOPBACK].concat();
        for ip in LOOPBACK {
            scene.answer("outbound", ip, 15001);
        }
        for ip in everywhere {
            scene.answer("inbound", ip, 15006);
            for port in [8000, 8005, 8080, 15020] {
                scene.answer("app", ip, port);
            }
        }
        for ip in scene.there.addresses() {
            for port in [8000, 8005, 8080] {
                scene.answer("remote", ip, port);
            }
        }
        scene
    }

    /// Starts a server; only `remote` is on `there`.
    fn answer(&mut self, name: &'static str, ip: IpAddr, port: u16) {
        let host = if name == "remote" { &self.there } else { &self.here };
        let listener = host.listen((ip, port)).unwrap_or_else(|error| panic!("{name} {ip} {port}: {error}"));
        self.servers.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let answer = format!("{name} {}", destination(&stream));
                // A client that is gone by now shows in what it has read.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
    }

    /// Runs `tulle-sidecar init` on `here`, as root.
    async fn init(&self, arguments: &[&str]) -> Finished {
        sidecar(&self.here, 0, &[&["init"], arguments].concat()).await
    }

    /// Puts rules in place.
    async fn redirect(&self, arguments: &[&str]) {
        let finished = self.init(arguments).await;
        assert!(finished.status.success(), "{arguments:?}: {finished:?}");
    }

    /// Who answers this client there, and where the connection was going; or the error.
    async fn said(&self, client: Client, ip: IpAddr, port: u16) -> String {
        let (host, uid) = match client {
            Client::There => (&self.there, APP_UID),
            Client::App => (&self.here, APP_UID),
            Client::Root => (&self.here, 0),
            Client::Sidecar => (&self.here, SIDECAR_UID),
        };
        connect(host, uid, &ip.to_string(), port).await
    }

    /// Checks who answers, at the address that the client meant.
    async fn expect(&self, client: Client, ip: IpAddr, port: u16, name: &str) {
        let expected = format!("{name} {}", SocketAddr::new(ip, port));
        assert_eq!(self.said(client, ip, port).await, expected, "{client:?} to {ip} {port}");
    }

    /// All rules of the host, without the numbers that tell when each was made.
    async fn rules(&self) -> Value {
        let mut command = self.here.command(0, "nft");
        command.args(["-j", "list", "ruleset"]);
        let listed = Finished::from(output_of(command).await);
        assert!(listed.status.success(), "{listed:?}");
        let mut rules = serde_json::from_str(&listed.stdout).expect("nft prints JSON");
        forget_handles(&mut rules);
        rules
    }
}

/// Connects as a user, and what the server says until it closes, or the error.
async fn connect(host: &Host, uid: u32, ip: &str, port: u16) -> String {
    let mut command = host.command(uid, "timeout");
    command.args(["10", "bash", "-c", "exec 3<>/dev/tcp/$0/$1 && cat <&3", ip, &port.to_string()]);
    let finished = Finished::from(output_of(command).await);
    if finished.status.success() { finished.stdout } else { finished.stderr }
}

/// Runs the sidecar's program on a host to its end.
pub(crate) async fn sidecar(host: &Host, uid: u32, arguments: &[&str]) -> Finished {
    let mut command = host.command(uid, binary("tulle-sidecar"));
    command.args(arguments);
    output_of(command).await.into()
}

/// Runs a script on a host, as root.
pub(crate) async fn sh(host: &Host, script: &str) {
    let mut command = host.command(0, "sh");
    command.args(["-c", script]);
    let finished = Finished::from(output_of(command).await);
    assert!(finished.status.success(), "{script}: {finished:?}");
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("programs speak UTF-8");
        Self { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

fn destination(stream: &TcpStream) -> SocketAddr {
    let local = stream.local_addr().expect("it is connected");
    let socket = SockRef::from(stream);
    let original = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    original.ok().and_then(|address| address.as_socket()).unwrap_or(local)
}

fn forget_handles(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("handle");
            map.values_mut().for_each(forget_handles);
        }
        Value::Array(list) => list.iter_mut().for_each(forget_handles),
        _ => (),
    }
}

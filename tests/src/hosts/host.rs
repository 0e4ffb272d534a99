//! One host: its processes, its sockets and its link.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::capture::Capture;
use super::namespace::Namespace;
use crate::{Ground, LIMIT, output_of, wait_for};

/// The user that applications run as: one without any right.
pub const APP_UID: u32 = 1000;

/// A host; clones are the same one. Everything on it ends when the last is dropped.
#[derive(Clone)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, where it has IPv6.
    pub v6: Ipv6Addr,
    namespace: Arc<Namespace>,
    bridge: Arc<Namespace>,
    /// The bridge's end of its link.
    port: String,
}

/// A server on a host. Ends when dropped.
pub struct Server {
    child: Child,
}

impl Host {
    pub(super) fn new(
        name: &str,
        namespace: Namespace,
        bridge: Arc<Namespace>,
        port: String,
        v4: Ipv4Addr,
        v6: Ipv6Addr,
    ) -> Self {
        Self { name: name.into(), v4, v6, namespace: Arc::new(namespace), bridge, port }
    }

    /// Its addresses of both families.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// What `ip netns` calls it.
    pub fn namespace(&self) -> &str {
        self.namespace.name()
    }

    /// A program on it, run by a user; with no setting that sends anything to a proxy.
    pub fn command(&self, uid: u32, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.namespace.name()]);
        // It ends with the thread of the test that starts it, also when that is killed.
        command.args(["setpriv", "--pdeathsig", "KILL"]);
        if uid != 0 {
            command.arg(format!("--reuid={uid}")).arg(format!("--regid={uid}"));
            command.args(["--clear-groups", "--no-new-privs"]);
        }
        command.arg(program.as_ref());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().to_ascii_lowercase().ends_with("_proxy") {
                command.env_remove(name);
            }
        }
        command
    }

    /// What a command would run, on it, by a user.
    pub fn place(&self, uid: u32, command: &Command) -> Command {
        let command = command.as_std();
        let mut placed = self.command(uid, command.get_program());
        placed.args(command.get_args());
        placed
    }

    /// It as a place for servers of others and their clients.
    pub fn ground(&self) -> Ground {
        let before = ["ip", "netns", "exec", self.namespace()].map(str::to_owned);
        Ground { ip: self.v4.into(), before: before.into() }
    }

    /// curl on it, quiet, with a bound on its time, run as an application.
    pub fn curl(&self) -> Command {
        let mut command = self.command(APP_UID, "curl");
        command.args(["--silent", "--show-error", "--max-time", "20"]);
        command
    }

    /// Starts a server on it and waits until it listens on a port of its loopback or of its own address.
    pub async fn serve(&self, mut command: Command, port: u16) -> Server {
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let name = format!("{command:?}");
        let mut server = Server { child: command.spawn().unwrap_or_else(|error| panic!("{name}: {error}")) };
        let listens = || async {
            let mut last = String::new();
            for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), self.v4.into()] {
                match self.connect((ip, port)).await {
                    Ok(_) => return Ok(()),
                    Err(error) => last = error.to_string(),
                }
            }
            Err(last)
        };
        let listening = wait_for(LIMIT, listens).await;
        listening.unwrap_or_else(|error| panic!("{name}: {error}, {:?}", server.child.try_wait()));
        server
    }

    /// Runs a program on it to its end, as an application.
    pub async fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = self.command(APP_UID, program);
        command.args(arguments);
        output_of(command).await
    }

    /// Connects from it.
    ///
    /// # Errors
    /// Those of connecting; `TimedOut` after [`LIMIT`].
    pub async fn connect(&self, address: impl Into<SocketAddr>) -> io::Result<TcpStream> {
        let address = address.into();
        let socket = self.namespace.within(|| match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        })?;
        timeout(LIMIT, socket.connect(address)).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// Listens on it.
    ///
    /// # Errors
    /// When the address is taken or not its own.
    pub fn listen(&self, address: impl Into<SocketAddr>) -> io::Result<TcpListener> {
        let address = address.into();
        self.namespace.within(|| {
            let socket = match address {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            }?;
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(1024)
        })
    }

    /// A UDP socket on it.
    ///
    /// # Errors
    /// When the address is taken or not its own.
    pub fn udp(&self, address: impl Into<SocketAddr>) -> io::Result<UdpSocket> {
        let socket = self.namespace.within(|| std::net::UdpSocket::bind(address.into()))?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    }

    /// What `/etc/resolv.conf` says to the programs that are started on it from now on.
    pub fn resolver(&self, text: &str) {
        self.namespace.etc("resolv.conf", text);
    }

    /// What `/etc/hosts` says to the programs that are started on it from now on: names beside its loopback's.
    pub fn names(&self, text: &str) {
        self.namespace.etc("hosts", &format!("127.0.0.1 localhost\n::1 localhost\n{text}"));
    }

    /// Loads a rule set of nftables.
    pub async fn nft(&self, rules: &str) {
        let mut command = self.command(0, "nft");
        command.arg(rules);
        let output = output_of(command).await;
        assert!(output.status.success(), "{rules}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Cuts its link: nothing comes in or goes out any more, and nobody is told.
    pub fn cut(&self) {
        self.bridge.ip(&format!("link set {} down\n", self.port));
    }

    /// Mends its link.
    pub fn mend(&self) {
        self.bridge.ip(&format!("link set {} up\n", self.port));
    }

    /// Lets no packet of its link be longer than `bytes`.
    pub fn mtu(&self, bytes: u16) {
        self.namespace.ip(&format!("link set eth0 mtu {bytes}\n"));
        self.bridge.ip(&format!("link set {} mtu {bytes}\n", self.port));
    }

    /// Loses `percent` of 100 packets that come to it, at random; 0 mends that.
    pub async fn lose(&self, percent: u8) {
        // Added and deleted before it is made: also the first time there is one to delete.
        self.nft(&format!(
            "table netdev tulle-test-loss {{}}\ndelete table netdev tulle-test-loss\n\
             table netdev tulle-test-loss {{\n  chain loss {{\n    \
             type filter hook ingress device eth0 priority 0;\n    \
             numgen random mod 100 < {percent} drop\n  }}\n}}\n"
        ))
        .await;
    }

    /// Holds every packet that leaves it back for a while.
    ///
    /// # Errors
    /// When this kernel can't: `tc netem` is a module that many small kernels lack.
    pub async fn delay(&self, delay: Duration) -> Result<(), String> {
        let mut command = self.command(0, "tc");
        command.args(["qdisc", "replace", "dev", "eth0", "root", "netem", "delay"]);
        let output = output_of({
            command.arg(format!("{}us", delay.as_micros()));
            command
        })
        .await;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("no delay, this kernel has no netem: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// Captures what passes on a device of it (`eth0`, `lo`) from now on.
    pub async fn capture(&self, device: &str) -> Capture<'_> {
        Capture::start(self, device).await
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.name, self.v4, self.v6)
    }
}

impl Server {
    /// Its process.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills it and waits until it is gone.
    pub async fn kill(&mut self) {
        let _ = self.child.kill().await;
    }
}

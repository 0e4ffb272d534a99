//! The addresses that the sidecar listens on.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Config;
use crate::nameserver::Sockets;
use crate::upstream::KEEPALIVE;

/// An address that is listened on, and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The address.
    pub(crate) address: SocketAddr,
    /// What for.
    pub(crate) role: Role,
}

impl Place {
    /// Whether peers connect to it, rather than the application.
    pub(crate) fn is_inbound(&self) -> bool {
        match self.role {
            Role::Inbound | Role::CapturedInbound => true,
            Role::Proxy | Role::Service(_) | Role::CapturedOutbound => false,
        }
    }
}

/// What connections that arrive at a place are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The forward proxy: each request names its service.
    Proxy,
    /// One service, `<name>:<port>`.
    Service(Arc<str>),
    /// The application, from peers.
    Inbound,
    /// Whatever the application has dialled, redirected here.
    CapturedOutbound,
    /// The application, from peers that have dialled its own ports, redirected here.
    CapturedInbound,
}

/// Everything that is listened on.
pub(crate) struct Bound {
    /// Where traffic arrives, for the workers: non-blocking, and what each accepts inherits its options.
    pub(crate) listeners: Vec<(TcpListener, Arc<Place>)>,
    /// The admin interface.
    pub(crate) admin: TcpListener,
    /// Health and metrics; one for each family where it is for all addresses.
    pub(crate) health: Vec<TcpListener>,
    /// The resolver.
    pub(crate) dns: Option<Sockets>,
    /// What it all came to be.
    pub(crate) addresses: Addresses,
}

/// The addresses that were bound, port 0 resolved: what the sidecar prints at its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Addresses {
    /// The forward proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) proxy: Option<SocketAddr>,
    /// Where redirected connections arrive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) capture: Option<CaptureAddresses>,
    /// The local ports, in the order of the settings.
    pub(crate) ports: Vec<ServiceAddress>,
    /// What peers dial, in the order of the settings.
    pub(crate) inbound: Vec<AppAddress>,
    /// The resolver, over UDP and TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dns: Option<SocketAddr>,
    /// The admin interface.
    pub(crate) admin: SocketAddr,
    /// Health and metrics.
    pub(crate) health: SocketAddr,
}

/// Where redirected connections arrive: one address for each family that the host has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct CaptureAddresses {
    /// The application's.
    pub(crate) outbound: Vec<SocketAddr>,
    /// Those of peers.
    pub(crate) inbound: Vec<SocketAddr>,
}

/// Where a service is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ServiceAddress {
    /// `<name>:<port>`
    pub(crate) service: String,
    /// The local address.
    pub(crate) address: SocketAddr,
}

/// Where peers reach an application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct AppAddress {
    /// Its own address.
    pub(crate) app: SocketAddr,
    /// What peers dial.
    pub(crate) address: SocketAddr,
}

impl Addresses {
    /// `config` with the ports that were bound in place of 0.
    pub(crate) fn apply(&self, mut config: Config) -> Config {
        config.outbound.proxy = self.proxy;
        if let (Some(capture), Some(bound)) = (&mut config.capture, &self.capture) {
            capture.outbound = bound.outbound.first().map_or(capture.outbound, SocketAddr::port);
            capture.inbound = bound.inbound.first().map_or(capture.inbound, SocketAddr::port);
        }
        for (port, bound) in config.outbound.ports.iter_mut().zip(&self.ports) {
            port.listen = bound.address;
        }
        for (port, bound) in config.inbound.iter_mut().zip(&self.inbound) {
            port.listen = bound.address;
        }
        if let (Some(dns), Some(bound)) = (&mut config.dns, self.dns) {
            dns.listen = bound;
        }
        Config { admin: self.admin, health: self.health, ..config }
    }
}

/// Takes all addresses of `config`.
///
/// # Errors
/// The first that can't be had.
pub(crate) fn bind(config: &Config) -> Result<Bound, BindError> {
    let mut listeners = Vec::new();
    let mut add = |listener, address, role| listeners.push((listener, Arc::new(Place { address, role })));
    let mut proxy = None;
    if let Some(address) = config.outbound.proxy {
        let (listener, address) = listen("outbound.proxy", address)?;
        add(listener, address, Role::Proxy);
        proxy = Some(address);
    }
    let mut capture = None;
    if let Some(settings) = &config.capture {
        let outbound = listen_on_both("capture.outbound", settings.outbound_addresses())?;
        let inbound = listen_on_both("capture.inbound", settings.inbound_addresses())?;
        let addresses = |bound: &[(TcpListener, SocketAddr)]| bound.iter().map(|(_, at)| *at).collect();
        capture = Some(CaptureAddresses { outbound: addresses(&outbound), inbound: addresses(&inbound) });
        outbound.into_iter().for_each(|(listener, at)| add(listener, at, Role::CapturedOutbound));
        inbound.into_iter().for_each(|(listener, at)| add(listener, at, Role::CapturedInbound));
    }
    let mut ports = Vec::new();
    for port in &config.outbound.ports {
        let (listener, address) = listen("outbound.ports", port.listen)?;
        let service = port.service.to_string();
        add(listener, address, Role::Service(service.as_str().into()));
        ports.push(ServiceAddress { service, address });
    }
    let mut inbound = Vec::new();
    for port in &config.inbound {
        let (listener, address) = listen("inbound", port.listen)?;
        add(listener, address, Role::Inbound);
        inbound.push(AppAddress { app: port.app, address });
    }
    let dns = config.dns.as_ref().map(|dns| Sockets::bind(dns.listen)).transpose()?;
    let (admin, admin_address) = listen("admin", config.admin)?;
    let health = match config.health.ip() {
        // A pod's first address, which a kubelet asks at, may be of either family.
        IpAddr::V4(ip) if ip.is_unspecified() => {
            let v6 = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), config.health.port());
            listen_on_both("health", [config.health, v6])?
        }
        _ => vec![listen("health", config.health)?],
    };
    let addresses = Addresses {
        proxy,
        capture,
        ports,
        inbound,
        dns: dns.as_ref().map(|dns| dns.address),
        admin: admin_address,
        health: health.first().map_or(config.health, |(_, address)| *address),
    };
    let health = health.into_iter().map(|(listener, _)| listener).collect();
    Ok(Bound { listeners, admin, health, dns, addresses })
}

/// Listens on the addresses of both families; on a host without IPv6, on the first alone.
fn listen_on_both(
    field: &'static str,
    [v4, mut v6]: [SocketAddr; 2],
) -> Result<Vec<(TcpListener, SocketAddr)>, BindError> {
    let (listener, address) = listen(field, v4)?;
    let mut bound = vec![(listener, address)];
    if has_ipv6() {
        // Redirection knows one port for both.
        v6.set_port(address.port());
        // The original destination is asked for by family.
        bound.push(open(v6, true).map_err(|error| BindError { field, address: v6, error })?);
    }
    Ok(bound)
}

/// Whether the host has IPv6 at all: where it does, it has its loopback address.
fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

pub(crate) fn listen(
    field: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), BindError> {
    open(address, false).map_err(|error| BindError { field, address, error })
}

/// Listens; with `only_v6`, not for IPv4 on an IPv6 wildcard.
fn open(address: SocketAddr, only_v6: bool) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for connections of its predecessor to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Linux gives these to each accepted socket, which saves three system calls for each.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    if only_v6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Connections that wait to be accepted; the system's own limit (`net.core.somaxconn`) is 4096.
const BACKLOG: i32 = 4096;

/// An address that can't be had.
#[derive(Debug)]
pub(crate) struct BindError {
    field: &'static str,
    address: SocketAddr,
    error: io::Error,
}

impl BindError {
    /// An address of a field of the settings, and what the system says of it.
    pub(crate) fn new(field: &'static str, address: SocketAddr, error: io::Error) -> Self {
        Self { field, address, error }
    }

    /// Whether another socket has the address.
    pub(crate) fn is_taken(&self) -> bool {
        self.error.kind() == io::ErrorKind::AddrInUse
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, address, error } = self;
        let port = address.port();
        match error.kind() {
            io::ErrorKind::AddrInUse => write!(
                f,
                "{field}: {address} is in use by another process (`ss -ltnp 'sport = :{port}'` names it); end that, or \
                 choose another address, where port 0 stands for any free one"
            ),
            io::ErrorKind::AddrNotAvailable => {
                write!(
                    f,
                    "{field}: {address} is not an address of this host; choose one that `ip address` shows"
                )
            }
            io::ErrorKind::PermissionDenied => write!(
                f,
                "{field}: {address} may not be listened on; choose a port of 1024 or above, or grant \
                 CAP_NET_BIND_SERVICE"
            ),
            _ => write!(f, "{field}: can't listen on {address}: {error}"),
        }
    }
}

impl std::error::Error for BindError {}

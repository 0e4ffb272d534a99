//! The addresses that the sidecar listens on.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Config;
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
        self.role == Role::Inbound
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
}

/// Everything that is listened on.
pub(crate) struct Bound {
    /// Where traffic arrives, for the workers: non-blocking, and what each accepts inherits its options.
    pub(crate) listeners: Vec<(TcpListener, Arc<Place>)>,
    /// The admin interface.
    pub(crate) admin: TcpListener,
    /// Health and metrics.
    pub(crate) health: TcpListener,
    /// What it all came to be.
    pub(crate) addresses: Addresses,
}

/// The addresses that were bound, port 0 resolved: what the sidecar prints at its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Addresses {
    /// The forward proxy.
    pub(crate) proxy: SocketAddr,
    /// The local ports, in the order of the settings.
    pub(crate) ports: Vec<ServiceAddress>,
    /// What peers dial, in the order of the settings.
    pub(crate) inbound: Vec<AppAddress>,
    /// The admin interface.
    pub(crate) admin: SocketAddr,
    /// Health and metrics.
    pub(crate) health: SocketAddr,
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
        for (port, bound) in config.outbound.ports.iter_mut().zip(&self.ports) {
            port.listen = bound.address;
        }
        for (port, bound) in config.inbound.iter_mut().zip(&self.inbound) {
            port.listen = bound.address;
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
    let (proxy, proxy_address) = listen("outbound.proxy", config.outbound.proxy)?;
    add(proxy, proxy_address, Role::Proxy);
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
    let (admin, admin_address) = listen("admin", config.admin)?;
    let (health, health_address) = listen("health", config.health)?;
    let addresses =
        Addresses { proxy: proxy_address, ports, inbound, admin: admin_address, health: health_address };
    Ok(Bound { listeners, admin, health, addresses })
}

pub(super) fn listen(
    field: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), BindError> {
    let open = || -> io::Result<(TcpListener, SocketAddr)> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restart must not wait for connections of its predecessor to leave TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        // Linux gives these to each accepted socket, which saves three system calls for each.
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&KEEPALIVE)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    open().map_err(|error| BindError { field, address, error })
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

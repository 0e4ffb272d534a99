//! The sockets of the resolver: UDP and TCP on one port, for each family of addresses that the host has.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use crate::listener::{BindError, listen};

/// The sockets, bound.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// Where the first of them listens.
    pub(crate) address: SocketAddr,
    pub(super) udp: Vec<UdpSocket>,
    pub(super) tcp: Vec<TcpListener>,
}

/// How often a port of the kernel's choice for UDP may be in use for TCP.
const TRIES: usize = 16;

impl Sockets {
    /// Takes an address, and with the loopback address of IPv4 that of IPv6.
    ///
    /// # Errors
    /// When an address can't be had. That a host has no IPv6 is no error.
    pub(crate) fn bind(wanted: SocketAddr) -> Result<Self, BindError> {
        let mut tries = TRIES;
        let (udp, tcp) = loop {
            tries -= 1;
            match both(wanted) {
                Err(error) if wanted.port() == 0 && tries > 0 && error.is_taken() => {}
                result => break result?,
            }
        };
        let address = udp.local_addr().map_err(|error| BindError::new(FIELD, wanted, error))?;
        let mut sockets = Self { address, udp: vec![udp], tcp: vec![tcp] };
        if address.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
            let other = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port());
            match both(other) {
                Ok((udp, tcp)) => {
                    sockets.udp.push(udp);
                    sockets.tcp.push(tcp);
                }
                Err(error) if error.is_taken() && wanted.port() != 0 => return Err(error),
                Err(error) => tracing::debug!("no resolver for IPv6: {error}"),
            }
        }
        Ok(sockets)
    }
}

const FIELD: &str = "dns.listen";

fn both(address: SocketAddr) -> Result<(UdpSocket, TcpListener), BindError> {
    let open = || -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let udp = open().map_err(|error| BindError::new(FIELD, address, error))?;
    let port = udp.local_addr().map_err(|error| BindError::new(FIELD, address, error))?.port();
    let (tcp, _) = listen(FIELD, SocketAddr::new(address.ip(), port))?;
    Ok((udp, tcp))
}

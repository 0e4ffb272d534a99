//! What the kernel remembers of a redirected connection.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// The address that the client dialled; of a connection that nobody redirected, the address at which it arrived. Of
/// `listener`, which it arrived at, only the family counts.
///
/// # Errors
/// When the kernel tracks no such connection.
pub(crate) fn destination(socket: &TcpStream, listener: SocketAddr) -> io::Result<Option<SocketAddr>> {
    let socket = SockRef::from(socket);
    let address = match listener {
        SocketAddr::V4(_) => socket.original_dst_v4()?,
        SocketAddr::V6(_) => socket.original_dst_v6()?,
    };
    Ok(address.as_socket().map(|address| SocketAddr::new(address.ip().to_canonical(), address.port())))
}

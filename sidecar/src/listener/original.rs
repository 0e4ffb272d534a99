//! Where a captured connection was going before it was redirected.
//!
//! In: an accepted connection, and the port that it arrived at. Out: the address that the client dialled, which the kernel
//! remembers for as long as the connection is redirected. A connection that nobody redirected goes nowhere: to follow it
//! would mean to connect to oneself, again and again.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::SockRef;
use tokio::net::TcpStream;

use super::place::{Place, Role};
use super::refusal::Refusal;

/// The address that the client dialled: on a port to which nothing is redirected, the port's own. `own` are the
/// workload's addresses.
///
/// # Errors
/// When the connection may not be followed there.
pub(super) fn destination(socket: &TcpStream, place: &Place, own: &[IpAddr]) -> Result<SocketAddr, Refusal> {
    match place.role {
        Role::Proxy | Role::Service(_) | Role::Inbound => Ok(place.address),
        Role::CapturedOutbound => redirected_from(socket, place.address),
        Role::CapturedInbound => {
            let destination = redirected_from(socket, place.address)?;
            if own.contains(&destination.ip()) { Ok(destination) } else { Err(Refusal::Spoofed) }
        }
    }
}

fn redirected_from(socket: &TcpStream, listener: SocketAddr) -> Result<SocketAddr, Refusal> {
    judge(ask(socket, listener), listener)
}

/// Without an entry in the kernel's table the question fails; with one, but without redirection, the answer is the
/// address at which the connection arrived. A destination with the port of the listener is no better: redirection leaves
/// it alone, so whoever makes one has a loop in mind, or makes one by mistake.
fn judge(answer: io::Result<Option<SocketAddr>>, listener: SocketAddr) -> Result<SocketAddr, Refusal> {
    match answer {
        Ok(Some(destination)) if destination.port() != listener.port() => Ok(destination),
        Ok(_) | Err(_) => Err(Refusal::Loop),
    }
}

fn ask(socket: &TcpStream, listener: SocketAddr) -> io::Result<Option<SocketAddr>> {
    let socket = SockRef::from(socket);
    let address = match listener {
        SocketAddr::V4(_) => socket.original_dst_v4()?,
        SocketAddr::V6(_) => socket.original_dst_v6()?,
    };
    Ok(address.as_socket().map(|address| SocketAddr::new(address.ip().to_canonical(), address.port())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_redirected_is_a_loop() {
        let at = |text: &str| -> SocketAddr { text.parse().expect("valid") };
        let listener = at("127.0.0.1:15001");
        assert_eq!(judge(Ok(Some(at("10.0.0.1:80"))), listener), Ok(at("10.0.0.1:80")));
        for answer in [
            Ok(Some(at("127.0.0.1:15001"))),
            Ok(Some(at("10.0.0.7:15001"))),
            Ok(None),
            Err(io::Error::from(io::ErrorKind::NotFound)),
        ] {
            assert_eq!(judge(answer, listener), Err(Refusal::Loop));
        }
    }
}

//! Where a captured connection was going before it was redirected.
//!
//! In: an accepted connection, and the port that it arrived at. Out: the address that the client dialled, which the kernel
//! remembers for as long as the connection is redirected, or that it is a probe of the redirection itself. A connection
//! that nobody redirected goes nowhere: to follow it would mean to connect to oneself, again and again.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpStream;

use super::place::{Place, Role};
use super::refusal::Refusal;
use crate::redirect::original;
use crate::redirect::probe::{Direction, is_probe};

/// What a connection that has just arrived is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// To be carried to the address that the client dialled: on a port to which nothing is redirected, the port's own.
    To(SocketAddr),
    /// To be answered, as the proof that it was redirected.
    Probe(Direction),
}

/// Finds out where a connection was going. `own` are the workload's addresses.
///
/// # Errors
/// When the connection may not be followed there.
pub(super) fn arrival(socket: &TcpStream, place: &Place, own: &[IpAddr]) -> Result<Arrival, Refusal> {
    let direction = match place.role {
        Role::Proxy | Role::Service(_) | Role::Inbound => return Ok(Arrival::To(place.address)),
        Role::CapturedOutbound => Direction::Outbound,
        Role::CapturedInbound => Direction::Inbound,
    };
    judge(original::destination(socket, place.address), place.address, direction, own)
}

/// Without an entry in the kernel's table the question fails; with one, but without redirection, the answer is the
/// address at which the connection arrived. A destination with the port of the listener is no better: redirection leaves
/// it alone, so whoever makes one has a loop in mind, or makes one by mistake. Probes of the other direction are
/// redirected whoever makes them: to follow one would never end.
fn judge(
    answer: io::Result<Option<SocketAddr>>,
    listener: SocketAddr,
    direction: Direction,
    own: &[IpAddr],
) -> Result<Arrival, Refusal> {
    let Ok(Some(destination)) = answer else { return Err(Refusal::Loop) };
    match is_probe(destination) {
        Some(probed) if probed == direction => Ok(Arrival::Probe(direction)),
        Some(_) => Err(Refusal::Loop),
        None if destination.port() == listener.port() => Err(Refusal::Loop),
        None if direction == Direction::Inbound && !own.contains(&destination.ip()) => Err(Refusal::Spoofed),
        None => Ok(Arrival::To(destination)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTBOUND: &str = "127.0.0.1:15001";
    const INBOUND: &str = "[::]:15006";

    #[test]
    fn what_was_redirected_goes_on_to_where_it_was_going() {
        assert_eq!(outbound(Some("10.0.0.1:80")), Ok(Arrival::To(at("10.0.0.1:80"))));
        assert_eq!(inbound(Some("[fd00::7]:80")), Ok(Arrival::To(at("[fd00::7]:80"))));
        assert_eq!(outbound(Some("127.0.0.1:15009")), Ok(Arrival::Probe(Direction::Outbound)));
        assert_eq!(inbound(Some("[::1]:15010")), Ok(Arrival::Probe(Direction::Inbound)));
    }

    #[test]
    fn what_was_not_redirected_is_a_loop() {
        for answer in [Some(OUTBOUND), Some("10.0.0.7:15001"), Some("127.0.0.1:15010"), None] {
            assert_eq!(outbound(answer), Err(Refusal::Loop), "{answer:?}");
        }
        for answer in [Some("[fd00::7]:15006"), Some("[fd00::8]:15006"), Some("[::1]:15009"), None] {
            assert_eq!(inbound(answer), Err(Refusal::Loop), "{answer:?}");
        }
        let gone = Err(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(judge(gone, at(OUTBOUND), Direction::Outbound, &[]), Err(Refusal::Loop));
    }

    #[test]
    fn peers_reach_only_addresses_of_the_workload() {
        for spoofed in ["10.0.0.1:80", "[fd00::8]:80", "127.0.0.1:80", "[::1]:15000"] {
            assert_eq!(inbound(Some(spoofed)), Err(Refusal::Spoofed), "{spoofed}");
        }
    }

    fn outbound(answer: Option<&str>) -> Result<Arrival, Refusal> {
        judge(Ok(answer.map(at)), at(OUTBOUND), Direction::Outbound, &[at("[fd00::7]:0").ip()])
    }

    fn inbound(answer: Option<&str>) -> Result<Arrival, Refusal> {
        judge(Ok(answer.map(at)), at(INBOUND), Direction::Inbound, &[at("[fd00::7]:0").ip()])
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("valid")
    }
}

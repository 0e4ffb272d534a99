//! The proof that redirection works, without any capability.
//!
//! The rules of `tulle-sidecar init` send connections to two ports of loopback, on which nobody listens, through the
//! chains that redirect traffic: one to the outbound port, one to the inbound port. Who accepts a redirected connection
//! whose original destination is such a probe's answers one line that tells the direction, and closes.
//!
//! In: nothing but the host's loopback. Out: what was found for each direction and family. A probe never leaves the
//! host, and its answer tells nothing but the direction.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The loopback port that the rules redirect as the application's own connections are.
pub const OUTBOUND_PROBE_PORT: u16 = 15009;
/// The loopback port that the rules redirect as connections from other hosts are.
pub const INBOUND_PROBE_PORT: u16 = 15010;

/// Which of the two listeners redirected connections reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Connections of the application, at the outbound port.
    Outbound,
    /// Connections of other hosts, at the inbound port.
    Inbound,
}

impl Direction {
    /// The loopback port whose redirection proves this direction's.
    pub const fn probe_port(self) -> u16 {
        match self {
            Self::Outbound => OUTBOUND_PROBE_PORT,
            Self::Inbound => INBOUND_PROBE_PORT,
        }
    }

    /// What the listener of this direction answers to its probe, before it closes the connection.
    pub const fn answer(self) -> &'static [u8] {
        match self {
            Self::Outbound => b"tulle: redirected outbound\n",
            Self::Inbound => b"tulle: redirected inbound\n",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        })
    }
}

/// The direction that a connection with this original destination probes; `None` for all other traffic. A listener
/// answers only the probe of its own direction.
pub fn is_probe(original_destination: SocketAddr) -> Option<Direction> {
    let loopback = match original_destination.ip() {
        IpAddr::V4(ip) => ip == Ipv4Addr::LOCALHOST,
        IpAddr::V6(ip) => ip == Ipv6Addr::LOCALHOST,
    };
    match original_destination.port() {
        OUTBOUND_PROBE_PORT if loopback => Some(Direction::Outbound),
        INBOUND_PROBE_PORT if loopback => Some(Direction::Inbound),
        _ => None,
    }
}

/// Connects to all four probe addresses at once, each for at most `limit`.
pub async fn probe(limit: Duration) -> Proof {
    let ipv4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let ipv6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let (a, b, c, d) = tokio::join!(
        cell(Direction::Outbound, ipv4, limit),
        cell(Direction::Outbound, ipv6, limit),
        cell(Direction::Inbound, ipv4, limit),
        cell(Direction::Inbound, ipv6, limit),
    );
    Proof { cells: [a, b, c, d] }
}

/// What was found for each direction and family. Its text has a line for each, with the reason and the fix.
#[derive(Debug)]
pub struct Proof {
    /// Outbound IPv4, outbound IPv6, inbound IPv4, inbound IPv6.
    pub cells: [Cell; 4],
}

impl Proof {
    /// Whether all traffic that the host can have is redirected.
    pub fn is_complete(&self) -> bool {
        self.cells.iter().all(|cell| cell.outcome.is_good())
    }
}

/// What was found for one direction and family.
#[derive(Debug)]
pub struct Cell {
    /// The direction.
    pub direction: Direction,
    /// The address that was connected to; its family is the cell's.
    pub address: SocketAddr,
    /// What happened.
    pub outcome: Outcome,
}

/// What a probe met.
#[derive(Debug)]
pub enum Outcome {
    /// The direction's listener answered.
    Proven,
    /// The host has no IPv6 address at all, so there is nothing to redirect.
    NoIpv6,
    /// The connection was refused: no rule redirects it, or nobody listens where it leads.
    Refused,
    /// Someone answered, but not the direction's listener.
    Foreign,
    /// Nobody answered within this time.
    Silent(Duration),
    /// There was no connection for another reason.
    Failed(io::Error),
}

impl Outcome {
    /// Whether nothing of this direction and family goes around the sidecar.
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Proven | Self::NoIpv6)
    }
}

async fn cell(direction: Direction, ip: IpAddr, limit: Duration) -> Cell {
    let address = SocketAddr::new(ip, direction.probe_port());
    // An address that the host does not have would be looked for elsewhere.
    let outcome = match UdpSocket::bind((ip, 0)) {
        Ok(_) => ask(direction, address, limit).await,
        Err(_) if ip.is_ipv6() && !has_ipv6() => Outcome::NoIpv6,
        Err(error) => Outcome::Failed(error),
    };
    Cell { direction, address, outcome }
}

async fn ask(direction: Direction, address: SocketAddr, limit: Duration) -> Outcome {
    match timeout(limit, exchange(address, direction.answer().len())).await {
        Ok(Ok(answer)) if answer == direction.answer() => Outcome::Proven,
        Ok(Ok(_)) => Outcome::Foreign,
        Ok(Err(error)) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Outcome::Refused,
            io::ErrorKind::ConnectionReset => Outcome::Foreign,
            _ => Outcome::Failed(error),
        },
        Err(_) => Outcome::Silent(limit),
    }
}

/// What the other end says before it closes, or `length` bytes of it and one more.
async fn exchange(address: SocketAddr, length: usize) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    // Who waits for the client's word sees that there is none.
    stream.shutdown().await?;
    let mut answer = Vec::with_capacity(length + 1);
    stream.take(length as u64 + 1).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Whether any interface has an IPv6 address.
pub(super) fn has_ipv6() -> bool {
    match std::fs::read("/proc/net/if_inet6") {
        Ok(addresses) => !addresses.is_empty(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, cell) in self.cells.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            cell.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { direction, address, outcome } = self;
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        write!(f, "{direction} {family}: ")?;
        match outcome {
            Outcome::Proven => f.write_str("redirected"),
            Outcome::NoIpv6 => f.write_str("nothing to redirect: no interface has an IPv6 address"),
            Outcome::Refused => write!(
                f,
                "not redirected: {address} refused the connection; run `tulle-sidecar init` in this network \
                 namespace, with the ports that the sidecar listens on"
            ),
            Outcome::Foreign => write!(
                f,
                "not proven: it is not the sidecar's {direction} listener that answers on {address}; stop the \
                 program that listens there, and run `tulle-sidecar init` with the ports that the sidecar listens on"
            ),
            Outcome::Silent(limit) => write!(
                f,
                "not proven: nobody answered on {address} within {limit:?}; see that loopback is up (`ip link set lo \
                 up`), that no other firewall rule drops this, and that no other program holds the sidecar's \
                 {direction} port"
            ),
            Outcome::Failed(error) if address.is_ipv6() => write!(
                f,
                "not proven: {address}: {error}; give the loopback interface its IPv6 address: `ip link set lo up`, \
                 `sysctl -w net.ipv6.conf.lo.disable_ipv6=0`"
            ),
            Outcome::Failed(error) => {
                write!(f, "not proven: {address}: {error}; bring loopback up: `ip link set lo up`")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_probe_addresses_of_loopback_are_probes() {
        let is = |text: &str| is_probe(text.parse().unwrap());
        assert_eq!(is("127.0.0.1:15009"), Some(Direction::Outbound));
        assert_eq!(is("[::1]:15009"), Some(Direction::Outbound));
        assert_eq!(is("127.0.0.1:15010"), Some(Direction::Inbound));
        assert_eq!(is("[::1]:15010"), Some(Direction::Inbound));
        for other in ["127.0.0.2:15009", "10.0.0.1:15009", "[fd00::1]:15010", "127.0.0.1:15001", "[::1]:80"] {
            assert_eq!(is(other), None, "{other}");
        }
    }

    #[test]
    fn a_proof_is_complete_when_every_cell_is_redirected_or_has_nothing_to_redirect() {
        let address = SocketAddr::from(([127, 0, 0, 1], OUTBOUND_PROBE_PORT));
        let proof = |third| Proof {
            cells: [Outcome::Proven, Outcome::NoIpv6, third, Outcome::NoIpv6].map(|outcome| Cell {
                direction: Direction::Outbound,
                address,
                outcome,
            }),
        };
        assert!(proof(Outcome::Proven).is_complete());
        let bad = [
            Outcome::Refused,
            Outcome::Foreign,
            Outcome::Silent(Duration::from_secs(1)),
            Outcome::Failed(io::ErrorKind::NetworkUnreachable.into()),
        ];
        for outcome in bad {
            let proof = proof(outcome);
            assert!(!proof.is_complete());
            let text = proof.to_string();
            assert_eq!(text.lines().count(), 4, "{text}");
            assert!(text.contains("127.0.0.1:15009"), "{text}");
        }
    }
}

//! Other name servers: who is asked for what is not the mesh's.
//!
//! In: queries as they came. Out: the servers' answers as they came. A query goes from a socket of its own, so from a port
//! of the kernel's choice, and under an identifier that nobody can guess; an answer counts only when it comes from the
//! server, has that identifier, and repeats the question (RFC 5452). What does not fit into a datagram is asked for again
//! over TCP. Nothing here takes longer than [`LIMIT`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::rand;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::message::{Outline, Query, rcode};
use crate::telemetry::metrics::Counter;

/// The longest that an answer may take, over all servers: a little less than clients wait.
const LIMIT: Duration = Duration::from_millis(4500);
/// The longest that one server may take for one try over UDP.
const UDP_TRY: Duration = Duration::from_millis(1200);
/// The longest that one server may take over TCP, with the connection.
const TCP_TRY: Duration = Duration::from_millis(2500);
/// The most sockets at a time: a client that floods must not take the descriptors that traffic needs.
const MAX_SOCKETS: usize = 256;
/// The largest datagram that is expected of a server that was not told another size.
const DATAGRAM: u16 = 4096;
/// How often all servers are asked.
const ROUNDS: usize = 2;

/// The servers.
#[derive(Debug)]
pub(super) struct Upstream {
    servers: Vec<SocketAddr>,
    /// The one that answered last; it is asked first.
    preferred: AtomicUsize,
    failures: Arc<Counter>,
    sockets: Semaphore,
}

/// An answer, and what it says of itself.
pub(super) type Answer = (Vec<u8>, Outline);

impl Upstream {
    /// These servers, in this order. `failures` counts tries without an answer.
    pub(super) fn new(servers: Vec<SocketAddr>, failures: Arc<Counter>) -> Self {
        Self { servers, preferred: AtomicUsize::new(0), failures, sockets: Semaphore::new(MAX_SOCKETS) }
    }

    /// Asks until a server answers; `None` when none does in time. A server that can't answer (SERVFAIL, REFUSED) is
    /// believed only when the others can't either. The answer has an identifier of its own.
    pub(super) async fn ask(&self, query: &Query) -> Option<Answer> {
        let asked = async {
            let _socket = self.sockets.acquire().await.ok()?;
            self.rounds(query).await
        };
        timeout(LIMIT, asked).await.ok().flatten()
    }

    async fn rounds(&self, query: &Query) -> Option<Answer> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut excuse = None;
        for _ in 0..ROUNDS {
            for step in 0..self.servers.len() {
                let index = (first + step) % self.servers.len();
                match exchange(self.servers[index], query).await {
                    Ok((bytes, outline)) => {
                        let is_excuse =
                            [rcode::SERVER_FAILURE, rcode::REFUSED].map(u16::from).contains(&outline.code);
                        if !is_excuse {
                            self.preferred.store(index, Ordering::Relaxed);
                            return Some((bytes, outline));
                        }
                        excuse = excuse.or(Some((bytes, outline)));
                    }
                    Err(error) => {
                        self.failures.increment();
                        tracing::debug!(server = %self.servers[index], "no answer: {error}");
                    }
                }
            }
            if excuse.is_some() {
                break;
            }
        }
        excuse
    }
}

async fn exchange(server: SocketAddr, query: &Query) -> io::Result<Answer> {
    let answer = timeout(UDP_TRY, over_udp(server, query)).await??;
    if !answer.1.truncated {
        return Ok(answer);
    }
    timeout(TCP_TRY, over_tcp(server, query)).await?
}

async fn over_udp(server: SocketAddr, query: &Query) -> io::Result<Answer> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let question = renamed(query)?;
    socket.send(&question).await?;
    let size = query.edns.map_or(DATAGRAM, |edns| edns.size.max(DATAGRAM));
    let mut buffer = vec![0; size.into()];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What is not an answer to this may be a forgery: the answer is still on its way.
        if let Some(outline) = judge(&buffer[..length], &question, query) {
            buffer.truncate(length);
            return Ok((buffer, outline));
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &Query) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(server).await?;
    let question = renamed(query)?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &question].concat()).await?;
    let mut bytes = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut bytes).await?;
    let outline = judge(&bytes, &question, query).filter(|outline| !outline.truncated);
    outline.map(|outline| (bytes, outline)).ok_or_else(|| io::Error::other("a broken answer"))
}

/// The query under an identifier that nobody can guess.
fn renamed(query: &Query) -> io::Result<Vec<u8>> {
    let mut bytes = query.bytes.clone();
    rand::fill(&mut bytes[..2]).map_err(|_| io::Error::other("no randomness"))?;
    Ok(bytes)
}

fn judge(bytes: &[u8], question: &[u8], query: &Query) -> Option<Outline> {
    (bytes.get(..2)? == &question[..2]).then(|| Outline::read(bytes, query)).flatten()
}

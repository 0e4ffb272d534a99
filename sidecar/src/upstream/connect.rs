//! Makes a connection to an endpoint: TCP, and mesh TLS where the endpoint has a sidecar.
//!
//! In: an endpoint, and what shall be spoken. Out: a stream whose other end is the one that the endpoint stands for, and
//! onto which nothing of the application was sent yet; so every failure here is safe to try elsewhere.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::Keepalive;

use super::dial::dial;
use super::{ConnectError, dead_peer};
use crate::balance::{Cluster, Endpoint};
use crate::io::Stream;
use crate::tls::{self, Alpn, Material, Reason};

/// A connection to an endpoint.
pub(crate) struct Connection {
    /// Its bytes.
    pub(crate) stream: Stream,
    /// Whom the endpoint proved to be; `None` in plaintext.
    pub(crate) peer: Option<SpiffeId>,
    /// What was agreed on; `None` in plaintext, and for bytes.
    pub(crate) alpn: Option<Alpn>,
}

/// Connects to `endpoint` within the connect timeout of `cluster`, over mesh TLS where the endpoint has it. `alpn` is
/// what will be spoken; `None`: bytes.
///
/// # Errors
/// When there is no connection, or its other end is not who it has to be.
pub(crate) async fn connect(
    cluster: &Cluster,
    endpoint: &Endpoint,
    material: Option<&Arc<Material>>,
    alpn: Option<Alpn>,
) -> Result<Connection, ConnectError> {
    let limit = cluster.model.connect_timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT);
    let attempt = attempt(cluster.model.keepalive, endpoint, material, alpn);
    let connection = tokio::time::timeout(limit, attempt).await;
    let connection = connection.unwrap_or(Err(ConnectError::Timeout(limit)));
    let series = &cluster.state.series;
    match &connection {
        Ok(_) => series.connections.increment(),
        Err(error) => {
            series.connect_failures.increment();
            if matches!(error, ConnectError::Tls(_) | ConnectError::Identity { .. }) {
                series.tls_failures.increment();
            }
        }
    }
    connection
}

/// Envoy's default for a cluster without one.
pub(crate) const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

async fn attempt(
    keepalive: Keepalive,
    endpoint: &Endpoint,
    material: Option<&Arc<Material>>,
    alpn: Option<Alpn>,
) -> Result<Connection, ConnectError> {
    // Asked first: without a certificate there is no need to bother the endpoint.
    let tls = match (&endpoint.tls, material) {
        (None, _) => None,
        (Some(tls), Some(material)) => Some((tls, material)),
        (Some(_), None) => return Err(ConnectError::NoCertificate),
    };
    let mut late = 0;
    let connected = loop {
        let socket = dial(endpoint).await.map_err(ConnectError::Io)?;
        tune(&socket, keepalive, alpn.is_some()).map_err(ConnectError::Io)?;
        let Some((tls, material)) = tls else {
            return Ok(Connection { stream: Stream::from(socket), peer: None, alpn: None });
        };
        match tls::connect(socket, material, tls, alpn, endpoint.address).await {
            // The peer has taken us for a client without TLS, and passed on what its server says first.
            Err(error) if error.reason == Reason::NotTls && alpn.is_none() && late < MOST_LATE => late += 1,
            result => break result?,
        }
    };
    Ok(Connection {
        stream: Stream::TlsClient(Box::new(connected.stream)),
        peer: Some(connected.peer),
        alpn: connected.alpn,
    })
}

/// How often a handshake that came too late is made again on a connection of its own. A sidecar that takes plaintext too
/// does not keep a server's first words back for long, and who has too much to do may miss that time.
const MOST_LATE: u32 = 2;

/// Small writes go out at once. How a peer that is gone is noticed the cluster may say; else a socket for requests, unless they
/// go to this host, is watched besides.
fn tune(socket: &TcpStream, keepalive: Keepalive, requests: bool) -> io::Result<()> {
    match keepalive {
        Keepalive::Own => {
            prepare(socket)?;
            let remote = !socket.peer_addr()?.ip().is_loopback();
            if requests && remote { dead_peer::watch(socket) } else { Ok(()) }
        }
        Keepalive::Off => socket.set_nodelay(true),
        Keepalive::Probes { time, interval, probes } => {
            socket.set_nodelay(true)?;
            let seconds = |seconds: u16| Duration::from_secs(seconds.into());
            let mut options = socket2::TcpKeepalive::new();
            if let Some(time) = time {
                options = options.with_time(seconds(time));
            }
            if let Some(interval) = interval {
                options = options.with_interval(seconds(interval));
            }
            if let Some(probes) = probes {
                options = options.with_retries(probes.into());
            }
            let socket = socket2::SockRef::from(socket);
            socket.set_keepalive(true)?;
            socket.set_tcp_keepalive(&options)
        }
    }
}

/// Small writes go out at once, and a peer that is gone is noticed even when nothing is sent.
pub(crate) fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    socket2::SockRef::from(socket).set_tcp_keepalive(&KEEPALIVE)
}

/// A peer that does not answer for about a minute and a half is gone.
pub(crate) const KEEPALIVE: socket2::TcpKeepalive = socket2::TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

impl ConnectError {
    /// Its RFC 9209 token.
    pub(crate) fn token(&self) -> &'static str {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => "connection_refused",
            Self::Io(_) => "destination_unavailable",
            Self::Timeout(_) => "connection_timeout",
            Self::Tls(_) => "tls_protocol_error",
            Self::Identity { .. } => "tls_certificate_error",
            Self::NoCertificate => "proxy_internal_error",
            Self::NotHttp2 { .. } => "http_protocol_error",
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "no connection: {error}"),
            Self::Timeout(limit) => write!(f, "no connection within {limit:?}"),
            Self::Tls(reason) => f.write_str(reason),
            Self::Identity { expected, presented } => {
                write!(f, "the endpoint is {presented} and must be {expected}")
            }
            Self::NoCertificate => {
                f.write_str("this workload has no certificate yet, and the endpoint asks for one")
            }
            Self::NotHttp2 { answered } => f.write_str(Self::not_http2(*answered)),
        }
    }
}

impl From<tls::HandshakeError> for ConnectError {
    fn from(error: tls::HandshakeError) -> Self {
        match error.reason {
            Reason::WrongIdentity | Reason::WrongTrustDomain => Self::Identity {
                expected: error.expected,
                presented: error.presented.unwrap_or_else(|| "nothing".into()),
            },
            _ => Self::Tls(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_cluster_says_how_the_end_of_a_peer_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let probes = |time, interval, probes| Keepalive::Probes { time, interval, probes };
        for (keepalive, on, [time, interval, retries]) in [
            (Keepalive::Own, true, [Some(60), Some(10), Some(3)]),
            (Keepalive::Off, false, [None; 3]),
            (probes(Some(7), Some(8), Some(9)), true, [Some(7), Some(8), Some(9)]),
            (probes(None, Some(8), None), true, [None, Some(8), None]),
            (probes(None, None, None), true, [None; 3]),
        ] {
            let socket = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
            let of = || {
                let socket = socket2::SockRef::from(&socket);
                let seconds = |time: Duration| time.as_secs();
                [
                    socket.tcp_keepalive_time().map(seconds).expect("a socket"),
                    socket.tcp_keepalive_interval().map(seconds).expect("a socket"),
                    socket.tcp_keepalive_retries().map(u64::from).expect("a socket"),
                ]
            };
            let system = of();
            tune(&socket, keepalive, true).expect("a socket");
            let expected = [time, interval, retries];
            let expected: [u64; 3] = std::array::from_fn(|i| expected[i].unwrap_or(system[i]));
            assert_eq!(of(), expected, "{keepalive:?}");
            assert_eq!(socket2::SockRef::from(&socket).keepalive().expect("a socket"), on, "{keepalive:?}");
        }
    }
}

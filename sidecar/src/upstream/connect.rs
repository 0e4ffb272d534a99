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
    let connection = tokio::time::timeout(limit, attempt(endpoint, material, alpn)).await;
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
        let socket = TcpStream::connect(endpoint.address).await.map_err(ConnectError::Io)?;
        prepare(&socket).map_err(ConnectError::Io)?;
        if alpn.is_some() && !endpoint.address.ip().is_loopback() {
            dead_peer::watch(&socket).map_err(ConnectError::Io)?;
        }
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

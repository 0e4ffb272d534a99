//! `tulle-sidecar validate`: shows, before the application starts, that redirection works.
//!
//! In: the ports of the sidecar. Out: a [`Proof`]. A port that is free is listened on here, for as long as the probes
//! take, and only probes are answered; where a port is taken, the sidecar that runs there answers. Nothing but loopback is
//! listened on, and no capability is needed.

use std::convert::Infallible;
use std::fmt;
use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use clap::Args;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::runtime::Builder;

use super::options::{DEFAULT_INBOUND_PORT, DEFAULT_OUTBOUND_PORT};
use super::original;
use super::probe::{Direction, Proof, is_probe, probe};
use crate::config::Span;

/// The exit code when redirection is not proven; that of Linkerd's validator, so that what looks for pods without rules
/// knows it already.
pub const EXIT_NOT_REDIRECTED: u8 = 95;

/// What `tulle-sidecar validate` is told.
#[derive(Clone, Debug, Args)]
pub struct ValidateSettings {
    /// The port that the application's connections are redirected to.
    #[arg(long, env = "TULLE_OUTBOUND_PORTS", value_name = "PORT", default_value_t = DEFAULT_OUTBOUND_PORT)]
    pub outbound_port: NonZeroU16,
    /// The port that connections of other hosts are redirected to.
    #[arg(long, env = "TULLE_INBOUND_PORTS", value_name = "PORT", default_value_t = DEFAULT_INBOUND_PORT)]
    pub inbound_port: NonZeroU16,
    /// The longest that one probe may take.
    #[arg(long, env = "TULLE_TIMEOUT", value_name = "TIME", default_value = "10s")]
    pub timeout: Span,
}

/// Probes redirection, and answers the probes where no sidecar does.
///
/// # Errors
/// When a port can't be listened on although nobody else does.
pub fn validate(settings: &ValidateSettings) -> Result<Proof, ValidateError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(ValidateError::System)?;
    runtime.block_on(async {
        let (outbound, inbound) = (settings.outbound_port.get(), settings.inbound_port.get());
        let (ipv4, ipv6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
        let listeners = [
            listen(SocketAddr::new(ipv4, outbound)).await?,
            listen(SocketAddr::new(ipv6, outbound)).await?,
            listen(SocketAddr::new(ipv4, inbound)).await?,
            listen(SocketAddr::new(ipv6, inbound)).await?,
        ];
        let [a, b, c, d] = &listeners;
        let answers = async {
            tokio::join!(
                answer(a.as_ref(), Direction::Outbound),
                answer(b.as_ref(), Direction::Outbound),
                answer(c.as_ref(), Direction::Inbound),
                answer(d.as_ref(), Direction::Inbound),
            )
        };
        tokio::select! {
            proof = probe(settings.timeout.0) => Ok(proof),
            (never, ..) = answers => match never {},
        }
    })
}

/// Listens, unless someone does already or the host has no such address: the probe then says what that means.
async fn listen(address: SocketAddr) -> Result<Option<TcpListener>, ValidateError> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(_) if address.is_ipv6() => Ok(None),
        Err(error) => Err(ValidateError::Listen(address, error)),
    }
}

/// Answers probes until the end. Other connections are closed.
async fn answer(listener: Option<&TcpListener>, direction: Direction) -> Infallible {
    let Some(listener) = listener else { return pending().await };
    while let Ok((mut stream, _)) = listener.accept().await {
        let arrived = stream.local_addr();
        let destination = arrived.and_then(|arrived| original::destination(&stream, arrived));
        if destination.ok().flatten().and_then(is_probe) == Some(direction) {
            // A prober that is gone by now needs no answer.
            let _ = stream.write_all(direction.answer()).await;
        }
    }
    pending().await
}

/// Why the probes could not be made.
#[derive(Debug)]
pub enum ValidateError {
    /// This address can't be listened on.
    Listen(SocketAddr, io::Error),
    /// The system gives no event queue.
    System(io::Error),
}

impl fmt::Display for ValidateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(address, error) => {
                write!(f, "{address} can't be listened on: {error}; choose ports above 1023 that are free")
            }
            Self::System(error) => write!(f, "no event queue: {error}"),
        }
    }
}

impl std::error::Error for ValidateError {}

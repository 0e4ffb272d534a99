//! `tulle-sidecar await`: keeps who starts the application waiting until the sidecar beside it is ready.
//!
//! In: where that sidecar tells its health. Out: that it is ready, or why it is not after all this time. Kubernetes before
//! 1.29 runs it as the sidecar's postStart hook: containers are started one after the other, and the next one only after
//! the hook.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Args;
use http::HeaderMap;
use http::uri::PathAndQuery;
use tokio::runtime::Builder;
use tokio::time::{Instant, sleep, timeout_at};

use crate::config::{DEFAULT_HEALTH, Span};
use crate::probes::http::{Place, get};

/// What `tulle-sidecar await` is told.
#[derive(Clone, Debug, Args)]
pub struct AwaitSettings {
    /// Where the sidecar tells its health, as its own --health has it.
    #[arg(long, env = "TULLE_HEALTH", value_name = "ADDRESS", default_value_t = DEFAULT_HEALTH)]
    pub health: SocketAddr,
    /// The longest to wait.
    #[arg(long, env = "TULLE_TIMEOUT", value_name = "TIME", default_value = "2m")]
    pub timeout: Span,
}

/// How long after a question the next one is asked.
const AGAIN: Duration = Duration::from_millis(100);

/// Waits until the sidecar is ready.
///
/// # Errors
/// When it is not within the time, with its own reason; or when there is no asking.
pub fn wait(settings: &AwaitSettings) -> Result<(), AwaitError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(AwaitError::System)?;
    runtime.block_on(async {
        let (limit, end) = (settings.timeout.0, Instant::now() + settings.timeout.0);
        let mut reason = "it does not answer".to_owned();
        loop {
            match timeout_at(end, ready(settings.health)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(why)) => reason = why,
                // What it said before is worth more.
                Err(_) => {}
            }
            if Instant::now() >= end {
                return Err(AwaitError::NotReady { limit, reason });
            }
            sleep(AGAIN).await;
        }
    })
}

/// Whether the sidecar says that it is ready; if not, why.
async fn ready(health: SocketAddr) -> Result<(), String> {
    let ip = match health.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let place = Place { tls: false, port: health.port(), target: PathAndQuery::from_static("/ready") };
    let (answer, body) = get(ip, &place, &HeaderMap::new()).await?;
    if answer.status().is_success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&body).trim().replace('\n', "; "))
}

/// Why the application is not to be started.
#[derive(Debug)]
pub enum AwaitError {
    /// The sidecar is not ready.
    NotReady {
        /// After this time.
        limit: Duration,
        /// What it lacks.
        reason: String,
    },
    /// The system gives no event queue.
    System(io::Error),
}

impl fmt::Display for AwaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady { limit, reason } => {
                write!(f, "the sidecar is not ready after {limit:?}: {reason}")
            }
            Self::System(error) => write!(f, "no event queue: {error}"),
        }
    }
}

impl std::error::Error for AwaitError {}

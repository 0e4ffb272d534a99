//! Asks the application whether it is well, for who may not ask it: under strict mTLS a kubelet, which has no certificate,
//! is refused at the application's ports, and whatever is redirected is accepted by the sidecar, dead or not.
//!
//! In: the name of a probe. Out: the application's own verdict. Nothing of a question but the name counts, and nothing of
//! the application's answer but the verdict comes back, so that this is no way to anything that policy guards: what is
//! asked, and where, is what the configuration declares, always at the workload's own address. However many ask, the
//! application is asked once at a time, and not again within [`REUSE`].

mod grpc;
pub(crate) mod http;
mod redirect;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::config::{Check, Probe};

/// How long a verdict is good for others who ask. A kubelet asks once a second at most.
const REUSE: Duration = Duration::from_millis(250);

/// All probes of the application.
pub(crate) struct Probes(HashMap<String, Arc<Watched>>);

/// What became of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// 200, the failure that the application told, or 503.
    pub(crate) status: StatusCode,
    /// Why, in words of this program.
    pub(crate) reason: String,
}

struct Watched {
    probe: Probe,
    address: IpAddr,
    last: Mutex<Option<(Instant, Verdict)>>,
}

impl Probes {
    /// Those of an application at `address`.
    pub(crate) fn new(probes: &[Probe], address: IpAddr) -> Self {
        let watched = |probe: &Probe| Watched { probe: probe.clone(), address, last: Mutex::new(None) };
        Self(probes.iter().map(|probe| (probe.name.clone(), Arc::new(watched(probe)))).collect())
    }

    /// The verdict of the probe of this name; `None` where there is none.
    pub(crate) async fn ask(&self, name: &str) -> Option<Verdict> {
        let watched = Arc::clone(self.0.get(name)?);
        // On its own: who hangs up and asks again does not make the application start anew.
        let asked = tokio::spawn(async move { watched.ask().await }).await;
        Some(asked.unwrap_or_else(|error| Verdict::failed(format!("the probe broke off: {error}"))))
    }
}

impl Watched {
    async fn ask(&self) -> Verdict {
        let mut last = self.last.lock().await;
        if let Some((at, verdict)) = &*last
            && at.elapsed() < REUSE
        {
            return verdict.clone();
        }
        let limit = self.probe.timeout;
        let verdict = timeout(limit, check(&self.probe.check, self.address))
            .await
            .unwrap_or_else(|_| Verdict::failed(format!("no answer within {limit:?}")));
        self.tell(last.as_ref().map(|(_, before)| before), &verdict);
        *last = Some((Instant::now(), verdict.clone()));
        verdict
    }

    /// Logs what is new.
    fn tell(&self, before: Option<&Verdict>, now: &Verdict) {
        if before.is_some_and(|before| before.status == now.status) {
            return;
        }
        let (probe, reason) = (&self.probe.name, &now.reason);
        if now.status.is_success() {
            tracing::info!(probe, "the application passes its probe: {reason}");
        } else {
            tracing::warn!(probe, "the application fails its probe: {reason}");
        }
    }
}

impl Verdict {
    fn passed(reason: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, reason: reason.into() }
    }

    fn failed(reason: impl Into<String>) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, reason: reason.into() }
    }
}

async fn check(check: &Check, ip: IpAddr) -> Verdict {
    let verdict = match check {
        Check::Http(check) => http::check(check, ip).await,
        Check::Tcp(port) => {
            let address = SocketAddr::new(ip, port.get());
            connect(address).await.map(|_| Verdict::passed(format!("{address} takes connections")))
        }
        Check::Grpc(port, service) => grpc::check(SocketAddr::new(ip, port.get()), service).await,
    };
    verdict.unwrap_or_else(Verdict::failed)
}

/// Connects to the application.
async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(address).await.map_err(|error| failure(&format!("connecting to {address}"), &error))
}

fn failure(what: &str, error: &io::Error) -> String {
    format!("{what} failed: {error}")
}

/// The name under which TLS asks for an address: none that is sent.
fn server_name(ip: IpAddr) -> ServerName<'static> {
    ServerName::IpAddress(ip.into())
}

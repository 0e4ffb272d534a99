//! Puts the parts together: the control thread and the workers.
//!
//! In: the settings. Out: a process that serves until it is told to stop. This thread is the control thread: it gets
//! configuration and certificates, exports spans, and answers on the admin and health ports; it carries no traffic. What
//! can fail because of the settings fails here, before the first connection; a control plane that is away is no reason
//! to fail.

mod descriptors;
mod footprint;
mod in_force;
mod log;
mod redirection;
mod stop;
mod wait;

use std::fmt;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;

pub(crate) use self::in_force::InForce;
pub(crate) use self::log::LogControl;
use self::stop::Signals;
pub(crate) use self::stop::Stop;
pub use self::wait::{AwaitError, AwaitSettings, wait};
use crate::admin::{self, Admin};
use crate::config::Config;
use crate::listener::{self, BindError, Bound};
use crate::nameserver;
use crate::probes::Probes;
use crate::telemetry::{Exporter, Telemetry, Workload};
use crate::upstream::dead_peer;
use crate::worker::drain::Phase;
use crate::worker::{self, Shared};
use crate::xds::{Control, StartError};

/// Runs the sidecar until it is told to stop. The first line on standard output says where it listens, as
/// `{"listening": {...}}`.
///
/// # Errors
/// When the settings can't be met: an address is taken, a file is missing.
pub fn run(config: Config) -> Result<(), RunError> {
    let log = LogControl::start(&config.log);
    descriptors::raise();
    dead_peer::set_limit(config.outbound.dead_peer_timeout);
    let bound = listener::bind(&config).map_err(Cause::Bind)?;
    let config = Arc::new(bound.addresses.apply(config));
    let collector = config.otlp.as_ref().map(|endpoint| endpoint.uri().clone());
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    runtime.map_err(Cause::System)?.block_on(async {
        let telemetry = Telemetry::new(workload(&config), collector.as_ref()).map_err(Cause::Telemetry)?;
        Box::pin(serve(config, bound, telemetry, log)).await
    })
}

async fn serve(
    config: Arc<Config>,
    bound: Bound,
    (telemetry, exporter): (Arc<Telemetry>, Exporter),
    log: LogControl,
) -> Result<(), RunError> {
    let (control, handle) = Control::new(config.clone(), telemetry.clone()).map_err(Cause::Start)?;
    let mut signals = Signals::new().map_err(Cause::System)?;
    let (phase, drain) = watch::channel(Phase::default());
    let shared = Shared {
        telemetry: telemetry.clone(),
        demands: handle.demands.clone(),
        lookups: handle.lookups.clone(),
        outbound_policy: config.outbound.policy,
        own: config.capture.iter().flat_map(|capture| capture.addresses.iter().copied()).collect(),
        demand_timeout: config.outbound.demand_timeout,
    };
    let hears = worker::Signals { snapshots: handle.snapshots.clone(), drain };
    let workers = worker::spawn(config.workers, bound.listeners, shared, &hears).map_err(Cause::System)?;
    drop(hears);
    let installed = workers.installed.clone();
    let in_force = in_force::follow(&handle, installed.clone());

    let resolver =
        bound.dns.map(|sockets| nameserver::start(sockets, &config, handle.names.clone(), &telemetry));
    let resolver = resolver.transpose().map_err(Cause::System)?;

    let stop = Arc::new(Stop::new(phase));
    let exporter = tokio::spawn(exporter.run(handle.snapshots.clone()));
    let shrinking = tokio::spawn(footprint::shrink(handle.readiness.clone()));
    let (proving, unproven) = match &config.capture {
        Some(_) => redirection::prove(&telemetry.metrics),
        None => (None, watch::channel(None).1),
    };
    // Without capture, applications of this host are dialled on loopback.
    let app = config.capture.as_ref().map_or(Ipv4Addr::LOCALHOST.into(), |capture| capture.primary);
    let probes = Probes::new(&config.probes, app);
    let admin = Arc::new(Admin { handle, in_force, telemetry, log, stop: stop.clone(), probes, unproven });
    let answer = admin::serve(admin, bound.admin, bound.health).map_err(Cause::System)?;
    announce(&bound.addresses).map_err(Cause::System)?;

    // Configuration is kept up to date until the last connection has ended.
    Box::pin(control.run(installed, stop.run(config.drain, &mut signals, || workers.connections()))).await;

    drop(resolver);
    // All that could still make spans ends, and then what is left of them is sent.
    answer.end().await;
    for helper in proving.into_iter().chain([shrinking]) {
        helper.abort();
    }
    workers.join().map_err(Cause::System)?;
    stop::at_most(LAST_SPANS, async { drop(exporter.await) }).await;
    Ok(())
}

/// How long the last spans may take to be sent.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Says on standard output where the sidecar listens. A reader that is gone is no reason to fail.
fn announce(addresses: &listener::Addresses) -> io::Result<()> {
    let line = serde_json::json!({ "listening": addresses });
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

fn workload(config: &Config) -> Workload {
    let workload = &config.workload;
    Workload {
        namespace: workload.namespace.clone(),
        name: workload.service_account.clone(),
        instance: workload.name.clone(),
    }
}

/// Why the sidecar could not run. Nothing was served.
#[derive(Debug)]
pub struct RunError(Cause);

#[derive(Debug)]
enum Cause {
    Bind(BindError),
    Start(StartError),
    Telemetry(String),
    System(io::Error),
}

impl From<Cause> for RunError {
    fn from(cause: Cause) -> Self {
        Self(cause)
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Cause::Bind(error) => error.fmt(f),
            Cause::Start(error) => error.fmt(f),
            Cause::Telemetry(error) => write!(f, "otlp.endpoint: {error}"),
            Cause::System(error) => write!(f, "the system gives no thread, signal or socket: {error}"),
        }
    }
}

impl std::error::Error for RunError {}

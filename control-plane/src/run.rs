//! Puts the parts together: a folder of manifests and a state folder, or a cluster, come in ([`origin`]), a control plane
//! that serves goes out.
//!
//! ```text
//! manifests, cluster ─► Source ─► World ─┬─► Hub ─► xDS streams
//!                                        └─► Board ─► HTTP API, log
//! state, cluster ─► Authority ─┬─► certificates, proof of identity
//!                     └─► trust bundle ─► Hub
//! ```

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::api::Api;
use crate::args::{Args, Cli, ClusterArgs, Command, LogFormat, Step};
use crate::ca::{CaError, rotation, secret};
use crate::grpc::{GrpcError, Services};
use crate::health::Health;
use crate::inject::webhook;
use crate::kubernetes::{Cluster, ConnectError};
use crate::metrics::Metrics;
use crate::origin::{self, Origin};
use crate::repair::repair;
use crate::source::SourceError;
use crate::status::Board;
use crate::virtual_addresses::KeptError;
use crate::world::MeshSettings;
use crate::xds::hub::Hub;
use crate::xds::proxies::Proxies;
use crate::xds::resources::Resources;
use crate::xds::server::Limits;

/// What is logged where TULLE_LOG does not say. The watcher of folders is chatty about files that went away.
const DEFAULT_LOG: &str = "info,notify=error";

/// Does what the command line says, until it is done or the process is told to end (SIGTERM, SIGINT).
///
/// # Errors
/// When the control plane can't start, or fails as a whole.
pub fn run(cli: Cli) -> Result<(), Error> {
    match (cli.command, cli.serve) {
        (Some(Command::RotateRoot { step, state, cluster }), _) => {
            runtime()?.block_on(rotate(step, state.as_deref(), &cluster))
        }
        (Some(Command::Repair { namespace, kubeconfig, context, log_format }), _) => {
            start_log(log_format)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(Error::Runtime)?.block_on(async {
                let stop = CancellationToken::new();
                end_on_signals(stop.clone())?;
                let cluster = Cluster::connect(kubeconfig.as_deref(), context.as_deref(), &namespace).await;
                repair(cluster.map_err(Error::Cluster)?, stop).await;
                Ok(())
            })
        }
        (None, Some(mut args)) => {
            args.inject = cli.inject;
            start_log(args.log_format)?;
            runtime()?.block_on(async {
                let stop = CancellationToken::new();
                end_on_signals(stop.clone())?;
                serve(args, stop, |ready| ready.print()).await
            })
        }
        // The parser asks for one or the other.
        (None, None) => Ok(()),
    }
}

/// Serves until `stop`. `ready` is called once, when every port is open and the first configuration is in force.
///
/// # Errors
/// When a port or a folder can't be used, or a part fails as a whole. What is wrong with single objects is no error:
/// it is logged and shown by the API.
pub async fn serve(args: Args, stop: CancellationToken, ready: impl FnOnce(Ready)) -> Result<(), Error> {
    let xds = bind("xDS and the CA", "--listen", args.listen).await?;
    let http = bind("the HTTP API", "--http", args.http).await?;
    let webhook = match args.kubernetes {
        true => Some(bind("the webhooks", "--webhook", args.webhook).await?),
        false => None,
    };
    let addresses = Ready {
        ready: true,
        xds: xds.local_addr().map_err(Error::Runtime)?,
        http: http.local_addr().map_err(Error::Runtime)?,
        webhook: webhook.as_ref().map(TcpListener::local_addr).transpose().map_err(Error::Runtime)?,
    };
    let sidecars = args.inject.settings(&args.trust_domain, &args.cluster_domain, &args.namespace);
    let health = Arc::new(Health::default());
    let metrics = Arc::new(Metrics::new());
    let proxies = Arc::new(Proxies::default());
    let board = Arc::new(Board::new(Arc::clone(&metrics), Arc::clone(&proxies)));
    // Who asks meanwhile is told what is waited for.
    let mut parts: JoinSet<Result<(), Error>> = JoinSet::new();
    let api = Api {
        proxies: Arc::clone(&proxies),
        board: Arc::clone(&board),
        health: Arc::clone(&health),
        metrics: Arc::clone(&metrics),
        stop: stop.clone(),
    };
    parts.spawn(async { api.serve(http).await.map_err(Error::Http) });

    let opening = origin::open(&args, Arc::clone(&health), Arc::clone(&metrics));
    let Origin { authority, source, loaded, kept, cluster, intermediate } = tokio::select! {
        opened = opening => opened?,
        () = stop.cancelled() => return Ok(()),
    };
    let authority = Arc::new(authority.with_leaf_lifetime(args.leaf_lifetime));
    let settings = MeshSettings {
        trust_domain: args.trust_domain,
        cluster_domain: args.cluster_domain,
        namespace: args.namespace,
        sampling: args.trace_sampling,
        // What nobody keeps would move with each restart.
        virtual_ranges: if kept.is_some() { args.virtual_addresses } else { Vec::new() },
    };
    let resources = Arc::new(Resources::new(settings, authority.bundle(), kept));
    let hub = Hub::new(Arc::clone(&resources) as Arc<_>);
    board.publish(&loaded, resources.update(&loaded), hub.published());

    let (sender, mut updates) = watch::channel(Arc::new(loaded));
    updates.mark_unchanged();
    let mut bundle = authority.bundle();
    bundle.mark_unchanged();

    let names = args.names.clone();
    let services = Services {
        authority: Arc::clone(&authority),
        hub: hub.clone(),
        proxies: Arc::clone(&proxies),
        metrics: Arc::clone(&metrics),
        limits: Limits::default(),
        hosts: args.names,
    };
    let serving = services.serve(xds, stop.clone());
    parts.spawn(async { serving.await.map_err(Error::Grpc) });
    if let (Some(listener), Some(cluster)) = (webhook, &cluster) {
        let serving = webhook::Serving {
            client: cluster.client.clone(),
            settings: sidecars,
            names,
            loaded: updates.clone(),
            metrics: Arc::clone(&metrics),
        };
        let serving = Box::pin(serving.run(listener, stop.clone()));
        parts.spawn(async { serving.await.map_err(Error::Webhook) });
    }
    for part in origin::parts(authority, intermediate, source, sender, cluster, Arc::clone(&board), &stop) {
        parts.spawn(async {
            part.await;
            Ok(())
        });
    }
    let updating = stop.clone();
    parts.spawn(async move {
        loop {
            tokio::select! {
                () = updating.cancelled() => return Ok(()),
                changed = updates.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let loaded = Arc::clone(&updates.borrow_and_update());
                    let building = (Arc::clone(&resources), Arc::clone(&loaded));
                    let built = tokio::task::spawn_blocking(move || building.0.update(&building.1));
                    let update = built.await.map_err(|error| Error::Runtime(error.into()))?;
                    hub.publish(update.changed.clone());
                    board.publish(&loaded, update, hub.published());
                }
                changed = bundle.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    hub.publish(resources.set_bundle(&bundle.borrow_and_update()));
                }
            }
        }
    });
    health.started();
    tracing::info!(xds = %addresses.xds, http = %addresses.http, "ready");
    ready(addresses);

    // Parts end when they are told to; one that ends before takes the others with it.
    let mut result = Ok(());
    while let Some(ended) = parts.join_next().await {
        let early = !stop.is_cancelled();
        let ended = ended.unwrap_or_else(|error| Err(Error::Runtime(error.into())));
        if early || ended.is_err() {
            stop.cancel();
            result = result.and(ended);
        }
    }
    result
}

/// Where the control plane listens: the line on standard output that says that it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Always true.
    pub ready: bool,
    /// The address of xDS and the CA.
    pub xds: SocketAddr,
    /// The address of the HTTP API.
    pub http: SocketAddr,
    /// The address of the webhooks, in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<SocketAddr>,
}

impl Ready {
    fn print(self) {
        let line = serde_json::to_string(&self).map_err(io::Error::from);
        let printed = line.and_then(|line| writeln!(io::stdout(), "{line}"));
        // Nobody may be reading; the log says the same.
        if let Err(error) = printed {
            tracing::warn!(%error, "can't write to standard output");
        }
    }
}

async fn bind(what: &'static str, flag: &'static str, address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|error| Error::Bind { what, flag, address, error })
}

async fn rotate(step: Step, state: Option<&Path>, cluster: &ClusterArgs) -> Result<(), Error> {
    let now = SystemTime::now();
    let said = match state {
        Some(state) => rotation::step_in_folder(state, step, now),
        None => secret::rotate(&origin::connect(cluster).await?, step, now).await,
    };
    // As with the line that says ready: nobody may be reading.
    let _ = writeln!(io::stdout(), "{}", said.map_err(Error::Ca)?);
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::Runtime)
}

fn start_log(format: LogFormat) -> Result<(), Error> {
    let filter = std::env::var("TULLE_LOG");
    let filter = filter.as_deref().unwrap_or(DEFAULT_LOG).parse::<Targets>();
    let filter = filter.map_err(|error| Error::Log(error.to_string()))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let started = tracing_subscriber::registry().with(filter).with(lines).try_init();
    started.map_err(|error| Error::Log(error.to_string()))
}

fn end_on_signals(stop: CancellationToken) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Runtime)?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.cancel();
    });
    Ok(())
}

/// Why the control plane does not run. The exit code is 1; the message names what to change.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A port can't be opened.
    Bind {
        /// For what it is.
        what: &'static str,
        /// The flag that sets it.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The state folder can't be used.
    Ca(CaError),
    /// No client for the API server can be made.
    Cluster(ConnectError),
    /// The folder of manifests can't be read.
    Source(SourceError),
    /// The virtual addresses of before can't be read.
    VirtualAddresses(KeptError),
    /// Port 15012 does not serve.
    Grpc(GrpcError),
    /// Port 15014 does not serve.
    Http(io::Error),
    /// Port 15017 does not serve.
    Webhook(io::Error),
    /// The log can't be written as asked.
    Log(String),
    /// The process can't do what every process can.
    Runtime(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { what, flag, address, error } if error.kind() == io::ErrorKind::AddrInUse => write!(
                f,
                "can't serve {what} on {address}: another process listens on port {}; end it, or give {flag} another \
                 address (port 0 takes a free one)",
                address.port()
            ),
            Self::Bind { what, flag, address, error } => {
                write!(f, "can't serve {what} on {address}: {error}; give {flag} an address of this host")
            }
            Self::Ca(error) => error.fmt(f),
            Self::Cluster(error) => error.fmt(f),
            Self::Source(error) => write!(f, "{error}; give --manifests a folder that this user may read"),
            Self::VirtualAddresses(error) => error.fmt(f),
            Self::Grpc(error) => error.fmt(f),
            Self::Http(error) => write!(f, "the HTTP API failed: {error}"),
            Self::Webhook(error) => write!(f, "the webhooks failed: {error}"),
            Self::Log(reason) => write!(f, "can't start the log: {reason}; check TULLE_LOG"),
            Self::Runtime(error) => write!(f, "can't run: {error}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Bind { error, .. } | Self::Http(error) | Self::Webhook(error) | Self::Runtime(error) => {
                Some(error)
            }
            Self::Ca(error) => Some(error),
            Self::Cluster(error) => Some(error),
            Self::Source(error) => Some(error),
            Self::VirtualAddresses(error) => Some(error),
            Self::Grpc(error) => Some(error),
            Self::Log(_) => None,
        }
    }
}

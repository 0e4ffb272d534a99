//! What a control plane stands on: folders of this machine, or a cluster.
//!
//! In: the flags. Out: the authority, the source with its first objects, and the tasks that keep both up to date and, in a cluster, write status. What
//! comes after does not know which it is.

use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::args::{Args, ClusterArgs};
use crate::ca::intermediate::{Intermediate, Place};
use crate::ca::review::Reviewer;
use crate::ca::{Authority, cluster_bundle, distribute, follow, secret};
use crate::health::Health;
use crate::kubernetes::Cluster;
use crate::leader;
use crate::metrics::Metrics;
use crate::run::Error;
use crate::source::{KubernetesSource, Loaded, ManifestsSource};
use crate::status::Board;
use crate::status::exchange::Exchange;
use crate::status::writer::StatusWriter;
use crate::virtual_addresses::Kept;

/// Everything that comes from outside.
pub(crate) struct Origin {
    pub(crate) authority: Authority,
    pub(crate) source: Source,
    /// What the source read first.
    pub(crate) loaded: Loaded,
    /// Where virtual addresses are kept, if anywhere.
    pub(crate) kept: Option<Kept>,
    pub(crate) cluster: Option<Cluster>,
    /// What signs, where somebody else has made that.
    pub(crate) intermediate: Option<Intermediate>,
}

/// Where objects come from.
pub(crate) enum Source {
    Manifests(Box<ManifestsSource>),
    Kubernetes(KubernetesSource),
}

/// Opens everything. In a cluster it waits until the API server answers and has listed all.
pub(crate) async fn open(args: &Args, health: Arc<Health>, metrics: Arc<Metrics>) -> Result<Origin, Error> {
    // The parser asks for both folders, or for a cluster.
    if let (Some(state), Some(manifests)) = (&args.state, &args.manifests) {
        let folder = args.ca_folder.clone().map(Place::Folder);
        let mut intermediate = folder.map(|folder| Intermediate::follow(folder, health));
        let authority = match &mut intermediate {
            Some(intermediate) => intermediate.open(Some(state), &args.trust_domain).await,
            None => Authority::open(state, &args.trust_domain, SystemTime::now()),
        };
        let authority = authority.map_err(Error::Ca)?;
        let (source, loaded) = ManifestsSource::load(manifests).map_err(Error::Source)?;
        let kept = Some(Kept::open(state).map_err(Error::VirtualAddresses)?);
        return Ok(Origin {
            authority,
            source: Source::Manifests(Box::new(source)),
            loaded,
            kept,
            cluster: None,
            intermediate,
        });
    }
    let cluster = connect(&args.cluster()).await?;
    let place = match (&args.ca_secret, &args.ca_folder) {
        (Some(name), _) => Some(Place::Secret(cluster.clone(), name.clone())),
        (None, folder) => folder.clone().map(Place::Folder),
    };
    let mut intermediate = place.map(|place| Intermediate::follow(place, Arc::clone(&health)));
    let authority = match &mut intermediate {
        Some(intermediate) => intermediate.open(None, &args.trust_domain).await,
        None => secret::open(&cluster, &args.trust_domain, &health).await,
    };
    let authority = authority.map_err(Error::Ca)?.with_reviewer(Reviewer::new(cluster.client.clone()));
    let source = KubernetesSource::start(cluster.client.clone(), health, metrics);
    let loaded = source.load().await;
    let source = Source::Kubernetes(source);
    Ok(Origin { authority, source, loaded, kept: None, cluster: Some(cluster), intermediate })
}

/// Makes the client for the cluster that the flags name.
pub(crate) async fn connect(args: &ClusterArgs) -> Result<Cluster, Error> {
    let ClusterArgs { kubeconfig, context, namespace, .. } = args;
    let cluster = Cluster::connect(kubeconfig.as_deref(), context.as_deref(), namespace).await;
    cluster.map_err(Error::Cluster)
}

/// What runs beside the servers: `sender` gets each new state of the source, the authority follows its state.
pub(crate) fn parts(
    authority: Arc<Authority>,
    intermediate: Option<Intermediate>,
    source: Source,
    sender: watch::Sender<Arc<Loaded>>,
    cluster: Option<Cluster>,
    board: Arc<Board>,
    stop: &CancellationToken,
) -> Vec<BoxFuture<'static, ()>> {
    let (watching, statuses) = match source {
        Source::Manifests(source) => (until(stop, source.watch(sender)), Arc::default()),
        Source::Kubernetes(source) => {
            let statuses = source.statuses();
            (until(stop, source.watch(sender)), statuses)
        }
    };
    let Some(cluster) = cluster else {
        let following = match intermediate {
            Some(intermediate) => until(stop, intermediate.keep(authority)),
            None => Box::pin(follow::follow(authority, stop.clone())),
        };
        return vec![watching, following];
    };
    // The process's own name: two processes are never one candidate.
    let name = std::env::var("HOSTNAME").unwrap_or_else(|_| "control-plane".into());
    let name = format!("{name}_{:016x}", fastrand::u64(..));
    let (leads, electing) = leader::elect(cluster.clone(), name.clone(), stop.clone());
    let distributing = distribute::distribute(cluster.clone(), authority.bundle(), leads.clone());
    let publishing = cluster_bundle::publish(cluster.client.clone(), authority.bundle(), leads.clone());
    let exchange = Exchange {
        cluster: cluster.clone(),
        name,
        board: Arc::clone(&board),
        leader: leads.clone(),
        stop: stop.clone(),
    };
    let (client, leader) = (cluster.client.clone(), leads.clone());
    let writer = StatusWriter { client, board, statuses, leader, stop: stop.clone() };
    let following = match intermediate {
        Some(intermediate) => until(stop, intermediate.keep(authority)),
        None => until(stop, secret::follow(cluster, authority, leads)),
    };
    let (distributing, publishing) = (until(stop, distributing), until(stop, publishing));
    let (writing, telling) = (Box::pin(writer.run()), Box::pin(exchange.run()));
    vec![watching, following, distributing, publishing, writing, telling, Box::pin(electing)]
}

/// Ends a part when the control plane stops.
fn until(
    stop: &CancellationToken,
    part: impl Future<Output = ()> + Send + 'static,
) -> BoxFuture<'static, ()> {
    let stop = stop.clone();
    Box::pin(async move {
        tokio::select! {
            () = part => {}
            () = stop.cancelled() => {}
        }
    })
}

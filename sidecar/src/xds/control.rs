//! Runs the control side of the sidecar: certificates, the stream to the control plane, names, and what becomes of them.
//!
//! One future on the control thread. Everything that it starts ends with it.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::{Node, node::UserAgentVersionType};
use envoy_types::pb::envoy::service::status::v3::ClientConfig;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind as ValueKind};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep_until;
use tulle_mesh::identity::{IdentityError, SpiffeId};

use super::Demand;
use super::bundle::ROOT_CA;
use super::cache::{Cache, Names};
use super::disk::Disk;
use super::engine::{Engine, Inspection, Readiness};
use super::interest::Interest;
use super::names::{MeshNames, NameQuestion};
use super::status::{Status, StreamStatus};
use super::stream::{Event, keep_open};
use super::subscribe::Subscriptions;
use crate::config::{Config, Workload};
use crate::dns::{self, DnsError, Lookups, Resolver, Watched};
use crate::snapshot::{Builder, Snapshot};
use crate::telemetry::Telemetry;
use crate::tls::{ControlPlane, ControlPlaneError, FILE_CHECK, Material, Rotation, keep_issued, keep_read};
use crate::worker;

/// How many events of the stream wait to be acted on together.
const EVENTS: usize = 32;

/// The control side, ready to run.
pub(crate) struct Control {
    config: Arc<Config>,
    identity: SpiffeId,
    control_plane: ControlPlane,
    rotation: Arc<Mutex<Rotation>>,
    resolver: Resolver,
    pub(super) engine: Engine,
    /// How often identity files are looked at.
    file_check: Duration,
    demands: mpsc::UnboundedReceiver<Demand>,
    questions: mpsc::Receiver<dns::Question>,
    name_questions: mpsc::Receiver<NameQuestion>,
    inspections: mpsc::Receiver<Inspection>,
}

/// What the rest of the sidecar holds of the control side.
#[derive(Clone)]
pub(crate) struct Handle {
    /// Where workers ask for listeners.
    pub(crate) demands: mpsc::UnboundedSender<Demand>,
    /// Where workers ask for addresses of hosts outside the mesh.
    pub(crate) lookups: Lookups,
    /// Where the resolver asks for names of the mesh.
    pub(crate) names: MeshNames,
    /// What is in force.
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Whether the sidecar may take traffic.
    pub(crate) readiness: watch::Receiver<Readiness>,
    /// The certificate in force.
    pub(crate) material: watch::Receiver<Option<Arc<Material>>>,
    inspections: mpsc::Sender<Inspection>,
}

impl Handle {
    /// How the configuration stands; `None` when the control side has ended.
    pub(crate) async fn status(&self) -> Option<Status> {
        let (answer, status) = oneshot::channel();
        self.inspections.send(Inspection::Status(answer)).await.ok()?;
        status.await.ok()
    }

    /// All resources, as CSDS tells them; `None` when the control side has ended.
    pub(crate) async fn client_config(&self) -> Option<ClientConfig> {
        let (answer, config) = oneshot::channel();
        self.inspections.send(Inspection::Resources(answer)).await.ok()?;
        config.await.ok().map(|config| *config)
    }
}

impl Control {
    /// Prepares the control side.
    ///
    /// # Errors
    /// When the configuration names files that are missing or broken.
    pub(crate) fn new(config: Arc<Config>, telemetry: Arc<Telemetry>) -> Result<(Self, Handle), StartError> {
        let workload = &config.workload;
        let identity =
            SpiffeId::workload(&config.trust_domain, &workload.namespace, &workload.service_account)
                .map_err(StartError::Identity)?;
        let control_plane = ControlPlane::new(config.control_plane.clone(), &config.trust_domain);
        let rotation =
            Rotation::new(control_plane.configured_bundle().map_err(StartError::Files)?, &telemetry.metrics);
        let resolver = Resolver::new(config.dns.as_ref()).map_err(StartError::Dns)?;

        let (demand_sender, demands) = mpsc::unbounded_channel();
        let (lookups, questions) = Lookups::channel();
        let (names, name_questions) = MeshNames::channel();
        let (inspection_sender, inspections) = mpsc::channel(4);
        let (snapshot_sender, snapshots) = watch::channel(Arc::default());
        let (readiness_sender, readiness) = watch::channel(Readiness::default());
        let handle = Handle {
            demands: demand_sender,
            lookups,
            names,
            snapshots,
            readiness,
            material: rotation.watch(),
            inspections: inspection_sender,
        };

        let rotation = Arc::new(Mutex::new(rotation));
        // Where the certificate comes from files, the bundle does too.
        let secrets =
            if config.identity.is_none() { BTreeSet::from([ROOT_CA.into()]) } else { BTreeSet::new() };
        let engine = Engine {
            cache: Cache::default(),
            interest: Interest::new(&config, secrets),
            subscriptions: Subscriptions::new(node(&config.workload)),
            builder: Builder::new(Arc::clone(&telemetry), &config),
            stream_open: telemetry.metrics.gauge(
                "tulle_xds_stream_open",
                "1 while the control plane is heard, else 0.",
                &[],
            ),
            responses: ["accepted", "rejected"].map(|outcome| {
                let help = "Responses of the control plane; of a rejected one, the good part was taken.";
                telemetry.metrics.counter("tulle_xds_responses", help, &[("outcome", outcome)])
            }),
            telemetry,
            rotation: Arc::clone(&rotation),
            snapshots: snapshot_sender,
            readiness: readiness_sender,
            disk: config
                .state_dir
                .as_deref()
                .map(|folder| Disk::new(folder, format!("{identity} {}", workload.name))),
            status: StreamStatus {
                address: config.control_plane.address.to_string(),
                ..StreamStatus::default()
            },
            wanted: Names::default(),
            requests: None,
            answers: Vec::new(),
            unacknowledged: VecDeque::new(),
            deadlines: Default::default(),
            questions: Vec::new(),
            closed_at: None,
            changed: false,
            save_at: None,
            sweep_at: Instant::now(),
        };
        let control = Self {
            config,
            identity,
            control_plane,
            rotation,
            resolver,
            engine,
            file_check: FILE_CHECK,
            demands,
            questions,
            name_questions,
            inspections,
        };
        Ok((control, handle))
    }

    /// Asks more often than by default whether the connection to the control plane lives.
    #[cfg(test)]
    pub(crate) fn with_keep_alive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.control_plane = self.control_plane.with_keep_alive(interval, timeout);
        self
    }

    /// Looks at identity files more often than by default.
    #[cfg(test)]
    pub(crate) fn with_file_check(self, file_check: Duration) -> Self {
        Self { file_check, ..self }
    }

    /// Runs until `stop`, and then writes the configuration to disk. `installed`: the generation that each worker serves
    /// from.
    pub(crate) async fn run(self, mut installed: Vec<watch::Receiver<u64>>, stop: impl Future<Output = ()>) {
        let Self { config, identity, control_plane, rotation, resolver, mut engine, .. } = self;
        let (mut demands, mut inspections) = (self.demands, self.inspections);
        let mut name_questions = self.name_questions;
        let (event_sender, mut events) = mpsc::channel::<Event>(EVENTS);
        let mut material = rotation.lock().unwrap_or_else(std::sync::PoisonError::into_inner).watch();
        let mut names = Watched::new(resolver.clone());

        let certificates = async {
            match &config.identity {
                Some(files) => keep_read(files, &rotation, self.file_check).await,
                None => keep_issued(&control_plane, &identity, &rotation).await,
            }
        };
        let stream = keep_open(&control_plane, &rotation, event_sender);
        let lookups = dns::serve(resolver, self.questions);
        let background = async { tokio::join!(certificates, stream, lookups) };
        tokio::pin!(background, stop);

        engine.start(&mut names, Instant::now());
        loop {
            tokio::select! {
                () = &mut stop => break,
                _ = &mut background => break,
                Some(demand) = demands.recv() => engine.demand(demand.name, Instant::now()),
                Some(question) = name_questions.recv() => {
                    // What is known changes nothing.
                    if !engine.ask(question, Instant::now()) {
                        continue;
                    }
                }
                Some(event) = events.recv() => engine.event(event),
                Ok(()) = material.changed() => engine.refresh(),
                () = names.changed() => engine.refresh(),
                Some(inspection) = inspections.recv() => engine.inspect(inspection),
                generation = served(&mut installed, engine.awaited_generation()) => engine.acknowledge(generation),
                () = sleep_until(engine.next_timer().into()) => engine.timers(Instant::now()),
            }
            // What has come together is acted on together: one request, one snapshot.
            while let Ok(demand) = demands.try_recv() {
                engine.demand(demand.name, Instant::now());
            }
            while let Ok(event) = events.try_recv() {
                engine.event(event);
            }
            engine.flush(&mut names, Instant::now());
        }
        engine.save();
    }
}

/// Waits until all workers serve from the snapshot of this generation, or a newer one; for ever without one.
async fn served(installed: &mut [watch::Receiver<u64>], generation: Option<u64>) -> u64 {
    let Some(generation) = generation else { return std::future::pending().await };
    worker::all_serve(installed, generation).await;
    generation
}

/// What the sidecar says of itself. It proves nothing: the certificate or token does.
pub(super) fn node(workload: &Workload) -> Node {
    let text = |text: &str| Value { kind: Some(ValueKind::StringValue(text.into())) };
    let metadata = [
        ("NAME", text(&workload.name)),
        ("NAMESPACE", text(&workload.namespace)),
        ("SERVICE_ACCOUNT", text(&workload.service_account)),
        ("VERSION", text(env!("CARGO_PKG_VERSION"))),
    ];
    Node {
        id: format!("{}/{}", workload.namespace, workload.name),
        cluster: workload.service_account.clone(),
        metadata: Some(Struct { fields: metadata.map(|(name, value)| (name.into(), value)).into() }),
        user_agent_name: "tulle-sidecar".into(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").into(),
        )),
        ..Node::default()
    }
}

/// Why the control side can't start. The fault is the configuration's.
#[derive(Debug)]
pub(crate) enum StartError {
    /// Namespace and service account make no identity.
    Identity(IdentityError),
    /// A file is missing or broken.
    Files(ControlPlaneError),
    /// Names can't be resolved.
    Dns(DnsError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(error) => write!(f, "workload: {error}"),
            Self::Files(error) => error.fmt(f),
            Self::Dns(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}

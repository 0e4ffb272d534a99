//! What became of each object: for the HTTP API, the log, the metrics, and the status in Kubernetes.
//!
//! In: what the sources read, what the world made of it, how far each proxy is, and at the leader what other replicas say
//! of theirs. Out: one list ([`Board::objects`]), a
//! log line for each problem that is new or gone, and what each object's status should say ([`Board::wanted`]), which
//! [`writer`] writes. It decides nothing.

pub mod document;
mod efforts;
pub mod exchange;
pub mod features;
mod kinds;
pub mod programmed;
pub mod replicas;
pub mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use self::document::Wanted;
use self::kinds::StatusKind;
use self::programmed::{Outcome, Progress};
use self::replicas::{Digests, Replicas, Report};
use crate::api::types::{Condition, ObjectList, ObjectStatus, ParentStatus, ProblemStatus};
use crate::metrics::Metrics;
use crate::source::{Loaded, ObjectRef, Problem, Severity};
use crate::world::{self, Affected};
use crate::xds::proxies::Proxies;
use crate::xds::resources::Update;

/// How long a change may be on its way to sidecars until what they have counts as it is.
const SETTLE: Duration = Duration::from_secs(2);

/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// The state of all objects after the last update.
pub struct Board {
    metrics: Arc<Metrics>,
    proxies: Arc<Proxies>,
    replicas: Replicas,
    /// Replaced whole; held only to clone the `Arc`.
    shown: Mutex<Arc<Shown>>,
    /// What was logged and still holds.
    logged: Mutex<BTreeSet<Problem>>,
}

/// What is known of the objects.
#[derive(Default)]
struct Shown {
    /// Without what sidecars say.
    list: ObjectList,
    /// The routes and policies.
    reported: BTreeMap<ObjectRef, Reported>,
    /// What of them decides where they are in force.
    known: Digests,
    /// The place, in the order of all changes that were pushed, of the last one.
    published: u64,
    /// How many updates there have been.
    updates: u64,
}

/// A route or policy.
struct Reported {
    kind: &'static StatusKind,
    generation: i64,
    parents: Vec<world::ParentStatus>,
    affected: BTreeSet<Affected>,
}

impl Board {
    /// An empty board.
    pub fn new(metrics: Arc<Metrics>, proxies: Arc<Proxies>) -> Self {
        Self {
            metrics,
            proxies,
            replicas: Replicas::default(),
            shown: Mutex::default(),
            logged: Mutex::default(),
        }
    }

    /// Shows the state after an update. `published`: the place of the last change that was pushed.
    pub fn publish(&self, loaded: &Loaded, update: Update, published: u64) {
        let objects = loaded.objects.refs();
        self.metrics.objects(objects.len(), update.problems.len());
        self.log(&update.problems);
        let list = list(objects, &update);
        let Update { mut statuses, mut affected, .. } = update;
        let mut reported = BTreeMap::new();
        let mut known = Digests::default();
        kinds::for_each(&loaded.objects, &mut |kind, object, generation| {
            let parents = statuses.remove(&object).unwrap_or_default();
            let affected = affected.remove(&object).unwrap_or_default();
            known.add(&object, &(generation, &parents, &affected));
            reported.insert(object, Reported { kind, generation, parents, affected });
        });
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        *shown = Arc::new(Shown { list, reported, known, published, updates: shown.updates + 1 });
    }

    /// The state after the last update, with what sidecars say of it by now.
    pub fn objects(&self) -> ObjectList {
        let (shown, standings) = (self.shown(), self.proxies.standings());
        let progress = Progress::new(&standings, shown.published);
        let others = self.replicas.reports();
        let view = View { progress: &progress, known: &shown.known, others: &others };
        let mut list = shown.list.clone();
        for object in &mut list.objects {
            let Some(kind) = StatusKind::find(&object.kind) else { continue };
            let (namespace, name) = (object.namespace.clone(), object.name.clone());
            let key = ObjectRef { kind: kind.kind, namespace, name };
            let Some(reported) = shown.reported.get(&key) else { continue };
            for (parent, known) in object.parents.iter_mut().zip(&reported.parents) {
                parent.conditions = reported.conditions(&key, known, &view).iter().map(Into::into).collect();
            }
        }
        list
    }

    /// What the status of each route and policy should say by now.
    pub fn wanted(&self) -> BTreeMap<ObjectRef, Wanted> {
        let (shown, standings) = (self.shown(), self.proxies.standings());
        let progress = Progress::new(&standings, shown.published);
        let others = self.replicas.reports();
        let view = View { progress: &progress, known: &shown.known, others: &others };
        let wanted = |(object, reported): (&ObjectRef, &Reported)| {
            let entry = |parent: &world::ParentStatus| {
                (parent.reference.clone(), reported.conditions(object, parent, &view))
            };
            let entries = reported.parents.iter().map(entry).collect();
            let (policy, generation) = (reported.kind.policy, reported.generation);
            (object.clone(), Wanted { policy, generation, entries })
        };
        shown.reported.iter().map(wanted).collect()
    }

    /// What this replica says of the sidecars that are connected to it.
    pub fn report(&self) -> Report {
        let (shown, standings) = (self.shown(), self.proxies.standings());
        let progress = Progress::new(&standings, shown.published);
        let mut report = Report::new(shown.known.clone(), progress.behind());
        for (object, reported) in &shown.reported {
            let outcome = progress.outcome(&reported.affected);
            if outcome != Outcome::default() {
                report.add(object, outcome);
            }
        }
        report
    }

    /// What other replicas say, which who leads has to know.
    pub fn replicas(&self) -> &Replicas {
        &self.replicas
    }

    /// Another triple after each change of [`Self::wanted`].
    pub fn turn(&self) -> (u64, u64, u64) {
        (self.shown().updates, self.proxies.turns(), self.replicas.turns())
    }

    /// Waits until every sidecar has been sent the last change, for a while: in the milliseconds that this takes, none
    /// has acknowledged anything, and every object would seem to wait.
    pub async fn settle(&self) {
        let until = Instant::now() + SETTLE;
        while self.proxies.behind(self.shown().published) > 0 && Instant::now() < until {
            sleep(LOOK).await;
        }
    }

    fn shown(&self) -> Arc<Shown> {
        Arc::clone(&self.shown.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn log(&self, problems: &[Problem]) {
        let now: BTreeSet<_> = problems.iter().cloned().collect();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        for problem in now.difference(&logged) {
            match problem.severity {
                Severity::Error => tracing::error!("{problem}"),
                Severity::Warning => tracing::warn!("{problem}"),
            }
        }
        for problem in logged.difference(&now) {
            tracing::info!("no longer: {problem}");
        }
        *logged = now;
    }
}

/// What sidecars have, as far as this replica knows.
struct View<'a> {
    progress: &'a Progress<'a>,
    known: &'a Digests,
    others: &'a [(String, Arc<Report>)],
}

impl Reported {
    /// All conditions at one parent or target.
    fn conditions(
        &self,
        object: &ObjectRef,
        parent: &world::ParentStatus,
        view: &View<'_>,
    ) -> Vec<world::Condition> {
        let kind = self.kind.programmed();
        let refused = parent.conditions.iter().find(|known| known.kind == "Accepted" && !known.status);
        let programmed = match refused {
            None => view.progress.condition(kind, object, &self.affected, view.known, view.others),
            Some(refused) => world::Condition {
                kind,
                status: false,
                reason: if refused.reason == "Conflicted" { "Overridden" } else { "Invalid" },
                message: "it is not accepted".into(),
            },
        };
        parent.conditions.iter().cloned().chain([programmed]).collect()
    }
}

fn list(objects: Vec<ObjectRef>, update: &Update) -> ObjectList {
    let mut list = ObjectList::default();
    let mut statuses: BTreeMap<ObjectRef, ObjectStatus> =
        objects.into_iter().map(|object| (object.clone(), status(&object, true))).collect();
    for problem in &update.problems {
        let shown = ProblemStatus::from(problem);
        match &problem.object {
            // An object that is not among those in force was never good.
            Some(object) => {
                statuses.entry(object.clone()).or_insert_with(|| status(object, false)).problems.push(shown)
            }
            None => list.problems.push(shown),
        }
    }
    for (object, parents) in &update.statuses {
        if let Some(status) = statuses.get_mut(object) {
            status.parents = parents.iter().map(ParentStatus::from).collect();
            status.in_force &= parents.iter().any(|parent| {
                parent.conditions.iter().all(|condition| condition.kind != "Accepted" || condition.status)
            });
        }
    }
    list.objects = statuses.into_values().collect();
    list
}

fn status(object: &ObjectRef, in_force: bool) -> ObjectStatus {
    ObjectStatus {
        kind: object.kind.into(),
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        in_force,
        parents: Vec::new(),
        problems: Vec::new(),
    }
}

impl From<&world::ParentStatus> for ParentStatus {
    fn from(status: &world::ParentStatus) -> Self {
        let reference = &status.reference;
        let port = reference.port.map(|port| port.to_string());
        Self {
            parent: status.parent.to_string(),
            section: reference.section_name.clone().or(port),
            conditions: status.conditions.iter().map(Into::into).collect(),
        }
    }
}

impl From<&world::Condition> for Condition {
    fn from(condition: &world::Condition) -> Self {
        Self {
            kind: condition.kind.into(),
            status: condition.status,
            reason: condition.reason.into(),
            message: condition.message.clone(),
        }
    }
}

impl From<&Problem> for ProblemStatus {
    fn from(problem: &Problem) -> Self {
        Self {
            severity: problem.severity.to_string(),
            file: problem.file.as_ref().map(|file| file.display().to_string()),
            line: problem.line,
            column: problem.column,
            field: problem.field.clone(),
            reason: problem.reason.clone(),
            fix: problem.fix.clone(),
        }
    }
}

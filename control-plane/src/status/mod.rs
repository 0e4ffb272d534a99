//! What became of each object: for the HTTP API, the log and the metrics.
//!
//! In: what the sources read and what the world made of it. Out: one list ([`Board::objects`]), and a log line for each
//! problem that is new or gone. It decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::api::types::{Condition, ObjectList, ObjectStatus, ParentStatus, ProblemStatus};
use crate::metrics::Metrics;
use crate::source::{Loaded, ObjectRef, Problem, Severity};
use crate::world;
use crate::xds::resources::Update;

/// The state of all objects after the last update.
pub struct Board {
    metrics: Arc<Metrics>,
    /// Replaced whole; held only to clone the `Arc`.
    shown: Mutex<Arc<ObjectList>>,
    /// What was logged and still holds.
    logged: Mutex<BTreeSet<Problem>>,
}

impl Board {
    /// An empty board.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, shown: Mutex::default(), logged: Mutex::default() }
    }

    /// Shows the state after an update.
    pub fn publish(&self, loaded: &Loaded, update: Update) {
        let objects = loaded.objects.refs();
        self.metrics.objects(objects.len(), update.problems.len());
        self.log(&update.problems);
        let list = list(objects, &update);
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(list);
    }

    /// The state after the last update.
    pub fn objects(&self) -> Arc<ObjectList> {
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
        let condition = |condition: &world::Condition| Condition {
            kind: condition.kind.into(),
            status: condition.status,
            reason: condition.reason.into(),
            message: condition.message.clone(),
        };
        Self {
            parent: status.parent.to_string(),
            section: status.section.clone(),
            conditions: status.conditions.iter().map(condition).collect(),
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

//! What became of each object: conditions and problems.
//!
//! In: findings, as the world is built. Out: one list of problems for `tulle check`, the HTTP API and the log, and the
//! conditions that an object's status shows. Nothing here decides anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::source::{Key, Kind, Object, ObjectRef, Place, Problem, Severity, object_ref};

/// What became of an object at one parent (a route) or target (a policy).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// The parent or target.
    pub parent: ObjectRef,
    /// The same as its author wrote it.
    pub reference: Reference,
    /// `Accepted`, and for routes `ResolvedRefs`.
    pub conditions: Vec<Condition>,
}

/// A reference to a parent or target, as it is written in a spec.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reference {
    /// The API group.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// The namespace, where it is written.
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
    /// The section, where one is named.
    pub section_name: Option<String>,
    /// The port, where one is named.
    pub port: Option<i32>,
}

/// A condition, as in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `Accepted` or `ResolvedRefs`. Whether a configuration is in force (`Programmed`) is known by who sends it.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether it holds.
    pub status: bool,
    /// One word, from the Gateway API where it has one.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Condition {
    /// The condition `Accepted`.
    pub(super) fn accepted() -> Self {
        Self { kind: "Accepted", status: true, reason: "Accepted", message: String::new() }
    }

    /// The condition `ResolvedRefs`.
    pub(super) fn resolved() -> Self {
        Self { kind: "ResolvedRefs", status: true, reason: "ResolvedRefs", message: String::new() }
    }

    /// A condition that does not hold.
    pub(super) fn failed(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: false, reason, message: message.into() }
    }
}

/// An object that findings are about.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) object: ObjectRef,
    place: Option<Arc<Place>>,
}

impl Subject {
    pub(super) fn of<T: Kind>(key: &Key, object: &Object<T>) -> Self {
        Self { object: object_ref::<T>(key), place: object.place.clone() }
    }

    /// A problem with a field of the object.
    fn problem(&self, severity: Severity, field: String, reason: String, fix: String) -> Problem {
        Problem {
            file: self.place.as_ref().map(|place| place.file.clone()),
            line: self.place.as_ref().map(|place| place.line_of(&field)),
            object: Some(self.object.clone()),
            field,
            ..Problem::new(severity, one_line(reason), fix)
        }
    }
}

/// A regular expression's error has a drawing between its first and its last line.
fn one_line(text: String) -> String {
    match (text.lines().next(), text.lines().last()) {
        (Some(first), Some(last)) if text.contains('\n') => {
            format!("{first} {}", last.trim_start_matches("error: "))
        }
        _ => text,
    }
}

/// All findings of one build.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) problems: Vec<Problem>,
    pub(super) statuses: BTreeMap<ObjectRef, Vec<ParentStatus>>,
}

impl Report {
    pub(super) fn error(
        &mut self,
        subject: &Subject,
        field: impl Into<String>,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.problems.push(subject.problem(Severity::Error, field.into(), reason.into(), fix.into()));
    }

    pub(super) fn warning(
        &mut self,
        subject: &Subject,
        field: impl Into<String>,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.problems.push(subject.problem(Severity::Warning, field.into(), reason.into(), fix.into()));
    }

    pub(super) fn status(&mut self, object: &ObjectRef, status: ParentStatus) {
        self.statuses.entry(object.clone()).or_default().push(status);
    }

    /// Says `Invalid` at every target of a policy with a fault that is not one of its targets': a part of it does not hold.
    pub(super) fn judge_policies(&mut self) {
        for problem in &self.problems {
            let targets = problem.object.as_ref().and_then(|object| self.statuses.get_mut(object));
            if problem.severity != Severity::Error || problem.field.starts_with("spec.targetRefs") {
                continue;
            }
            for target in targets.into_iter().flatten() {
                // A route says with `ResolvedRefs` what it lacks.
                if let [accepted @ Condition { status: true, .. }] = &mut target.conditions[..] {
                    let message = format!("{}: {}; {}", problem.field, problem.reason, problem.fix);
                    *accepted = Condition::failed("Accepted", "Invalid", message);
                }
            }
        }
    }
}

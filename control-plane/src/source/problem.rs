//! What is wrong with an object, in a form that a user can act on.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// A fault in the configuration. It is always the configuration's; trying again does not help.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// The file, where the object comes from one.
    pub file: Option<PathBuf>,
    /// The line in it, from 1.
    pub line: Option<u32>,
    /// The column in it, from 1.
    pub column: Option<u32>,
    /// How bad it is.
    pub severity: Severity,
    /// The object, where it is known.
    pub object: Option<ObjectRef>,
    /// The field, such as `spec.rules[0].matches`; empty for the whole object.
    pub field: String,
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    pub fix: String,
}

impl Problem {
    /// A fault of no file, object or field in particular.
    pub(crate) fn new(severity: Severity, reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            file: None,
            line: None,
            column: None,
            severity,
            object: None,
            field: String::new(),
            reason: reason.into(),
            fix: fix.into(),
        }
    }

    /// Where it is, as `<file>:<line>:<column>: `; empty where no file is known.
    pub fn place(&self) -> String {
        let Some(file) = &self.file else { return String::new() };
        let positions = [self.line, self.column].into_iter().flatten();
        positions.fold(format!("{}:", file.display()), |place, position| format!("{place}{position}:")) + " "
    }

    /// What it is, as `<object>: <field>: <reason>; <fix>`.
    pub fn message(&self) -> String {
        let object = self.object.as_ref().map(|object| format!("{object}: ")).unwrap_or_default();
        let field = if self.field.is_empty() { String::new() } else { format!("{}: ", self.field) };
        format!("{object}{field}{}; {}", self.reason, self.fix)
    }
}

impl fmt::Display for Problem {
    /// `<place>: <severity>: <message>`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}: {}", self.place(), self.severity, self.message())
    }
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// The object, or the part of it that is named, is not in force.
    Error,
    /// It is in force, but maybe not as its author meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// Names an object: `HTTPRoute shop/stock`. Kinds that Tulle reads have different names even across groups.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace; empty for kinds without.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

//! What the runtime is told when a call fails: a CNI error object, whose text Kubernetes shows as the pod's event.

use std::fmt;

use serde_json::{Value, json};

/// Why a call failed; numbers up to 99 are the specification's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// The configuration is of a version that is not spoken.
    IncompatibleVersion = 1,
    /// A variable of the environment is missing or wrong.
    InvalidEnvironment = 4,
    /// The call can't be read.
    Io = 5,
    /// The call is not JSON.
    NotJson = 6,
    /// The configuration asks for what can't be.
    InvalidConfiguration = 7,
    /// No call can succeed now.
    NotAvailable = 50,
    /// The pod's annotation asks for what can't be.
    InvalidAnnotation = 100,
    /// The pod's network namespace can't be entered.
    Namespace = 101,
    /// The rules can't be made.
    Rules = 102,
    /// The rules are not there.
    RulesMissing = 103,
}

/// A failed call.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: Code,
    message: String,
    details: String,
}

impl Failure {
    pub(super) fn new(code: Code, message: impl Into<String>, details: impl fmt::Display) -> Self {
        Self { code, message: message.into(), details: details.to_string() }
    }

    /// The error object.
    pub(super) fn object(&self, version: &str) -> Value {
        let (code, message) = (self.code as u16, format!("tulle-cni: {}", self.message));
        json!({ "cniVersion": version, "code": code, "msg": message, "details": self.details })
    }
}

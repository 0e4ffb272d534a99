//! Puts a sidecar into pods.
//!
//! In: a pod, or a workload's pod template, as JSON; what is known of its namespace; the mesh's [`Settings`]. Out: the
//! same with the sidecar in it, or the reason why it gets none. The admission webhook and `tulle inject` are this one
//! code. It is pure, keeps every field that it does not know, and is idempotent: what an earlier injection left is taken
//! out first, so that a second one gives the same, and [`uninject`] gives back what there was.

mod apply;
pub mod args;
mod decide;
mod options;
pub mod patch;
mod probes;
mod template;
pub mod webhook;
pub mod workloads;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::Value;

pub use apply::uninject;
pub use decide::Skip;
pub(crate) use options::SKIP_INBOUND;
pub use options::{Quantity, Redirection, Resources, Settings, Trust};

/// The label of Namespaces and Pods that says whether sidecars are injected: `enabled` or `disabled`.
pub const INJECT_LABEL: &str = "tulle.dev/inject";
/// The label of injected Pods that says that they speak mesh TLS.
pub const TLS_LABEL: &str = "tulle.dev/tls";
/// Its value.
pub const TLS_MESH: &str = "mesh";
/// The annotation that records what an injection added.
pub const STATUS_ANNOTATION: &str = "tulle.dev/status";
/// The label of the control plane's own Pods.
pub const COMPONENT_LABEL: &str = "tulle.dev/component";
/// The name of the container in which the sidecar runs.
pub const SIDECAR: &str = "tulle-sidecar";
/// The name of the init container that redirects traffic.
pub const INIT: &str = "tulle-init";
/// The name of the init container that shows that someone else redirected it.
pub const VALIDATE: &str = "tulle-validate";
/// The name of the volume that holds the roots, of whichever kind it is.
pub const TRUST_VOLUME: &str = "tulle-trust-bundle";
/// The user that the sidecar runs as: redirection spares its connections, so nobody else may be it.
pub const SIDECAR_USER: i64 = 2102;
/// The port of the sidecar that answers `/ready`, `/live` and `/metrics`.
pub const HEALTH_PORT: u16 = 15020;
/// What is known of a pod's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name; empty where nobody says, as in manifests.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations: defaults for its pods.
    pub annotations: BTreeMap<String, String>,
}

impl Namespace {
    /// One that takes part.
    pub fn enabled(name: impl Into<String>) -> Self {
        let labels = BTreeMap::from([(INJECT_LABEL.into(), "enabled".into())]);
        Self { name: name.into(), labels, annotations: BTreeMap::new() }
    }
}

/// A template with a sidecar.
#[derive(Clone, Debug, PartialEq)]
pub struct Injected {
    /// The pod, or the pod template.
    pub template: Value,
    /// What its owner should know.
    pub warnings: Vec<String>,
}

/// Injects a sidecar into a Pod or a pod template: an object with `metadata` and `spec`.
///
/// # Errors
/// When it gets none, with the reason.
pub fn inject(template: &Value, namespace: &Namespace, settings: &Settings) -> Result<Injected, Skip> {
    let mut bare = uninject(template);
    let facts = decide::decide(&bare, namespace, settings)?;
    let options = options::Options::of(&facts, namespace, settings)?;
    let mut warnings = facts.warnings(&options);
    let probes =
        if options.rewrite_probes { probes::rewrite(&mut bare) } else { probes::Rewritten::default() };
    warnings.extend(probes.warnings.iter().cloned());
    let template = apply::apply(bare, template, &facts, &options, &probes, settings);
    Ok(Injected { template, warnings })
}

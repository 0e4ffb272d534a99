//! Tulle's own kinds of objects, `tulle.dev/v1alpha1`: what no standard covers yet.
//!
//! The Rust types here are the only definition. Manifests are read into them, and the CRDs in `manifests/crds/` are
//! generated from them, descriptions included ([`crds`]). Field names follow the Gateway API's experimental kinds and
//! GEPs wherever those have a shape for the same thing, so that moving to them later is a change of `apiVersion`.
//! Policies attach directly to their targets (GEP-713, class Direct): of two that say the same about one target, the
//! older wins.

mod authorization;
mod common;
mod duration;
mod fault;
mod inbound;
mod telemetry;
mod traffic;
mod workload;

#[cfg(test)]
mod tests;

use kube::CustomResourceExt;

pub use authorization::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationPolicySpec, AuthorizationRule,
    AuthorizationSource, AuthorizationTarget, EnforcementLevel, HttpConditions, LabelSelector,
    NetworkAttributes, PathCondition, PathConditionType, ServiceAccountSource, SourceType, SpiffeSource,
};
pub use common::{Fraction, PolicyCondition, PolicyStatus, PolicyTarget, Rate};
pub use duration::Duration;
pub use fault::{HTTPFaultFilter, HTTPFaultFilterSpec, InjectedAbort, InjectedDelay};
pub use inbound::{
    ClientRef, ConcurrencyLimit, InboundPolicy, InboundPolicySpec, InboundPort, InboundProtocol, MtlsMode,
    MtlsSettings, RateLimit, RateOverride,
};
pub use telemetry::{
    AccessLogMode, AccessLogSettings, CollectorRef, TelemetryPolicy, TelemetryPolicySpec, TracingMode,
    TracingProvider, TracingSettings,
};
pub use traffic::{
    Algorithm, BackendTrafficPolicy, BackendTrafficPolicySpec, Budget, CircuitBreaker, ConnectionSettings,
    ConsistentHash, CookieConfig, CookieLifetime, HashType, LoadBalancerSettings, NamedSource,
    OutlierSettings, PersistenceType, RetryConstraint, RetrySettings, SessionPersistence,
    SuccessRateSettings, TimeoutSettings,
};
pub use workload::{Workload, WorkloadPort, WorkloadSpec};

/// The group of all kinds here.
pub const GROUP: &str = "tulle.dev";

const HEADER: &str = "# Generated from the types in control-plane/src/kinds. To write it anew:\n\
    # UPDATE=1 cargo test -p tulle-control-plane crds\n";

/// The CRDs of all kinds: file name and YAML.
///
/// # Errors
/// When a schema can't be written as YAML, which would be a fault of the types here.
pub fn crds() -> Result<Vec<(&'static str, String)>, serde_saphyr::ser_error::Error> {
    let crds = [
        ("authorizationpolicies.yaml", AuthorizationPolicy::crd(), true),
        ("backendtrafficpolicies.yaml", BackendTrafficPolicy::crd(), true),
        ("httpfaultfilters.yaml", HTTPFaultFilter::crd(), false),
        ("inboundpolicies.yaml", InboundPolicy::crd(), true),
        ("telemetrypolicies.yaml", TelemetryPolicy::crd(), true),
        ("workloads.yaml", Workload::crd(), false),
    ];
    crds.into_iter()
        .map(|(file, mut crd, policy)| {
            if policy {
                let labels = crd.metadata.labels.get_or_insert_default();
                labels.insert("gateway.networking.k8s.io/policy".into(), "Direct".into());
            }
            let yaml = serde_saphyr::to_string(&crd)?;
            Ok((file, format!("{HEADER}{yaml}")))
        })
        .collect()
}

//! Tulle's own kinds of objects, `tulle.dev/v1alpha1`: what no standard covers yet.
//!
//! The Rust types here are the only definition. Manifests are read into them, and the CRDs in `manifests/crds/` are
//! generated from them, descriptions included ([`crds()`]). Field names follow the Gateway API's experimental kinds and
//! GEPs wherever those have a shape for the same thing, so that moving to them later is a change of `apiVersion`.
//! Policies attach directly to their targets (GEP-713, class Direct): of two that say the same about one target, the
//! older wins.

mod authorization;
mod common;
mod crds;
mod duration;
mod fault;
mod inbound;
mod telemetry;
mod traffic;
mod workload;

#[cfg(test)]
mod tests;

pub use authorization::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationPolicySpec, AuthorizationRule,
    AuthorizationSource, AuthorizationTarget, EnforcementLevel, HttpConditions, LabelSelector,
    NetworkAttributes, PathCondition, PathConditionType, ServiceAccountSource, SourceType, SpiffeSource,
};
pub use common::{Fraction, PolicyCondition, PolicyStatus, PolicyTarget, Rate};
pub use crds::{SCHEMA, crds, schema_digest};
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

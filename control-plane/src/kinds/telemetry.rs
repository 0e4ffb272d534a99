//! TelemetryPolicy: what is traced and logged (the shape of GEP-4768).

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fraction, PolicyStatus, PolicyTarget};

/// What of the requests to a Service, or to all of a namespace, is traced and logged, at both ends. One for the namespace
/// of the control plane holds for the whole mesh. What a policy for a Service does not say is taken from that for its
/// namespace, and what neither says from that for the mesh.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "tulle.dev", version = "v1alpha1", kind = "TelemetryPolicy", namespaced)]
#[kube(plural = "telemetrypolicies", status = "PolicyStatus", derive = "PartialEq")]
#[kube(doc = "What of the requests to a Service, or to all of a namespace, is traced and logged.")]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TelemetryPolicySpec {
    /// Services, or the policy's own Namespace.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<PolicyTarget>,
    /// Traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<TracingSettings>,
    /// A line per request; none where it is not given. Goes beyond GEP-4768.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLogSettings>,
}

/// What is traced. A request that arrives with a sampling decision keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TracingSettings {
    /// Whether anything is; Enabled where it is not given.
    #[serde(default)]
    pub mode: TracingMode,
    /// Where spans go; to the collector of the sidecar's own configuration where no policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<TracingProvider>,
    /// Which part of the requests without a sampling decision is sampled; the control plane's `--trace-sampling` where no
    /// policy says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling_rate: Option<Fraction>,
}

/// Whether anything is traced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TracingMode {
    /// Yes.
    #[default]
    Enabled,
    /// No.
    Disabled,
}

/// Where spans go, over OTLP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TracingProvider {
    /// A Service that takes OTLP over gRPC.
    pub backend_ref: CollectorRef,
}

/// A collector's Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CollectorRef {
    /// Its name.
    pub name: String,
    /// Its namespace; the policy's own where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its port; 4317 where it is not given.
    #[serde(default = "CollectorRef::otlp")]
    pub port: u16,
}

impl CollectorRef {
    fn otlp() -> u16 {
        4317
    }
}

/// A line per request, on the sidecar's standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AccessLogSettings {
    /// Whether, and how it is written.
    pub mode: AccessLogMode,
    /// With mode Text: Envoy's format string with command operators; Envoy's default where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
}

/// How access log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccessLogMode {
    /// Not at all.
    Disabled,
    /// As JSON objects with OpenTelemetry's attribute names.
    #[serde(rename = "JSON")]
    Json,
    /// As text.
    Text,
}

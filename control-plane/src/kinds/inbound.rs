//! InboundPolicy: what a workload accepts.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PolicyStatus, PolicyTarget, Rate};

/// What the workloads behind a Service, or all workloads of a namespace, accept. A policy for a Service goes before one
/// for its namespace.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "tulle.dev", version = "v1alpha1", kind = "InboundPolicy", namespaced)]
#[kube(plural = "inboundpolicies", status = "PolicyStatus", derive = "PartialEq")]
#[kube(doc = "What the workloads behind a Service, or of a namespace, accept: mTLS, protocol, rate.")]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct InboundPolicySpec {
    /// Services, or the policy's own Namespace.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<PolicyTarget>,
    /// Whether peers must speak mTLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MtlsSettings>,
    /// Exceptions for single ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<InboundPort>,
    /// How many requests are let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// How many requests the application may work on at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency_limit: Option<ConcurrencyLimit>,
}

/// Whether peers must speak mTLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct MtlsSettings {
    /// How strictly.
    pub mode: MtlsMode,
}

/// Whether peers must speak mTLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MtlsMode {
    /// Only mTLS is let in.
    Strict,
    /// mTLS and plaintext are let in.
    #[default]
    Permissive,
    /// Only plaintext is let in, and peers send it.
    Disabled,
}

/// An exception for a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct InboundPort {
    /// The port on which the application serves.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Whether peers must speak mTLS on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MtlsSettings>,
    /// What is spoken on it; as its Service says, where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<InboundProtocol>,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum InboundProtocol {
    /// Found out from the first bytes.
    Detect,
    /// HTTP/1.1 or HTTP/2.
    #[serde(rename = "HTTP")]
    Http,
    /// HTTP/2 in plaintext.
    H2C,
    /// gRPC.
    #[serde(rename = "GRPC")]
    Grpc,
    /// Anything: bytes are passed on as they are.
    #[serde(rename = "TCP")]
    Tcp,
}

/// Between what the limit on requests at once moves. It follows the application's latency: what is above it is answered
/// with 503 and marked as not processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ConcurrencyLimit {
    /// The least that it falls to; 500 where it is not given, so that only an application in distress refuses. A small
    /// one protects an application that can do little at once.
    #[serde(default = "least_concurrency")]
    #[schemars(range(min = 1))]
    pub min: u32,
    /// The most that it rises to; 10000 where it is not given.
    #[serde(default = "most_concurrency")]
    #[schemars(range(min = 1))]
    pub max: u32,
}

impl Default for ConcurrencyLimit {
    fn default() -> Self {
        Self { min: least_concurrency(), max: most_concurrency() }
    }
}

fn least_concurrency() -> u32 {
    500
}

fn most_concurrency() -> u32 {
    10_000
}

/// How many requests a workload lets in; what is above is answered with 429 and `Retry-After`. Each workload counts for
/// itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RateLimit {
    /// Of all clients together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<Rate>,
    /// Of each client identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_client: Option<Rate>,
    /// Further limits for single clients, in force beside `perClient`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub overrides: Vec<RateOverride>,
}

/// A limit for some clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RateOverride {
    /// For these, together.
    #[schemars(length(min = 1, max = 64))]
    pub client_refs: Vec<ClientRef>,
    /// How many.
    pub rate: Rate,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClientRef {
    /// `ServiceAccount`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its namespace; the policy's own where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

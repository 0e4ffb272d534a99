//! AuthorizationPolicy: who may do what (GEP-3779, with marked extensions).

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PolicyStatus;

/// Who may do what with the workloads that it targets. Without an ALLOW policy, a workload lets everyone in; with one or
/// more, only whom one of their rules allows. DENY goes before ALLOW.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "tulle.dev", version = "v1alpha1", kind = "AuthorizationPolicy", namespaced)]
#[kube(plural = "authorizationpolicies", status = "PolicyStatus", derive = "PartialEq")]
#[kube(doc = "Who may do what with the workloads that it targets.")]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// The workloads, by label, by Service, or all of the policy's namespace.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<AuthorizationTarget>,
    /// What a matching rule means. DENY and AUDIT go beyond GEP-3779.
    pub action: AuthorizationAction,
    /// Whether connections are judged (with what is known of them alone) or requests. Network where it is not given.
    #[serde(default)]
    pub enforcement_level: EnforcementLevel,
    /// The policy matches when one of its rules does. None: it never matches, so an ALLOW policy without rules
    /// refuses everyone.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub rules: Vec<AuthorizationRule>,
}

/// What an authorization policy is attached to, in its own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationTarget {
    /// The target's API group; empty for Pods, Services and Namespaces.
    #[serde(default)]
    pub group: String,
    /// `Pod` (with `selector`; Workloads are selected too), `Service` or `Namespace` (with `name`).
    pub kind: String,
    /// The target's name; not for `Pod`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Which Pods and Workloads; empty for all of the namespace. Only for `Pod`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// A condition on labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that must all be there, with these values.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}

/// What a matching rule means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum AuthorizationAction {
    /// Let in; whom no ALLOW policy of the workload lets in is refused.
    Allow,
    /// Refuse.
    Deny,
    /// Let in, count and log.
    Audit,
}

/// What is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EnforcementLevel {
    /// Connections, before their first byte: one that is refused is closed.
    #[default]
    Network,
    /// Requests: one that is refused is answered with 403. On ports that don't carry HTTP, connections.
    Application,
}

/// A rule: sources, ports and requests must all match; what is not given matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationRule {
    /// One of these must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub sources: Vec<AuthorizationSource>,
    /// What of the connection must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_attributes: Option<NetworkAttributes>,
    /// What of the request must match; needs `enforcementLevel: Application`. Goes beyond GEP-3779.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpConditions>,
}

/// Who asks. Only a peer that proved itself by mTLS has an identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationSource {
    /// Which of the fields below is given.
    #[serde(rename = "type")]
    pub kind: SourceType,
    /// A service account of the mesh's trust domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccountSource>,
    /// An identity in full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spiffe: Option<SpiffeSource>,
}

/// How a source is described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SourceType {
    /// By service account.
    ServiceAccount,
    /// By SPIFFE ID.
    #[serde(rename = "SPIFFE")]
    Spiffe,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServiceAccountSource {
    /// Its namespace; the policy's own where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name; `*` for every one of the namespace.
    pub name: String,
}

/// A SPIFFE ID, `spiffe://<trust domain>/<path>`; a `*` at its end stands for any text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct SpiffeSource(pub String);

/// Conditions on a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NetworkAttributes {
    /// One of these, on which the application serves, is addressed.
    #[serde(default)]
    pub ports: Vec<u16>,
}

/// Conditions on a request: one of the methods and one of the paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpConditions {
    /// One of these; any where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// One of these; any where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathCondition>,
}

/// A condition on a path, without its query (the Gateway API's `HTTPPathMatch`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PathCondition {
    /// How `value` is compared; PathPrefix where it is not given.
    #[serde(default, rename = "type")]
    pub kind: PathConditionType,
    /// What the path is compared with.
    pub value: String,
}

/// How paths are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PathConditionType {
    /// The whole path.
    Exact,
    /// Whole segments at its start.
    #[default]
    PathPrefix,
    /// The whole path, by a regular expression.
    RegularExpression,
}

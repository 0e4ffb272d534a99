//! HTTPFaultFilter: injected failure, to test what depends on a service.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, Fraction};

/// Injected delay and failure. A rule of an HTTPRoute or GRPCRoute names it in a filter of type `ExtensionRef`, and so
/// says for which requests it holds.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "tulle.dev", version = "v1alpha1", kind = "HTTPFaultFilter", namespaced)]
#[kube(plural = "httpfaultfilters", derive = "PartialEq")]
#[kube(doc = "Injected delay and failure, for the route rules that name it in an ExtensionRef filter.")]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HTTPFaultFilterSpec {
    /// A pause before the request goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<InjectedDelay>,
    /// An answer instead of the service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<InjectedAbort>,
}

/// An injected pause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct InjectedDelay {
    /// How long.
    pub duration: Duration,
    /// For which part of the requests; all where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
}

/// An injected answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct InjectedAbort {
    /// The HTTP status, 200 to 599; 503 where it is not given.
    #[serde(default = "InjectedAbort::unavailable")]
    #[schemars(range(min = 200, max = 599))]
    pub status_code: u16,
    /// The gRPC status by name (`UNAVAILABLE`), for gRPC requests; mapped from the HTTP status where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<String>,
    /// For which part of the requests; all where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
}

impl InjectedAbort {
    fn unavailable() -> u16 {
        503
    }
}

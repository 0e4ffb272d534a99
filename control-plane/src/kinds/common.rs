//! Shapes that several kinds share.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Duration;

/// What a policy is attached to. It is always an object of the policy's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PolicyTarget {
    /// The target's API group; empty for Services and Namespaces.
    #[serde(default)]
    pub group: String,
    /// The target's kind: `Service`, or `Namespace` where the policy's kind allows it.
    pub kind: String,
    /// The target's name.
    pub name: String,
    /// For a Service: the name of one of its ports. Without it, the policy holds for all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

/// A part of a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Fraction {
    /// The part.
    #[schemars(range(min = 0))]
    pub numerator: u32,
    /// The whole; 100 where it is not given.
    #[serde(default = "Fraction::hundred")]
    #[schemars(range(min = 1))]
    pub denominator: u32,
}

impl Fraction {
    /// Everything.
    pub const ALL: Self = Self { numerator: 100, denominator: 100 };

    fn hundred() -> u32 {
        100
    }
}

/// A number of requests in a length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rate {
    /// How many.
    #[schemars(range(min = 1))]
    pub count: u32,
    /// In which time; 1s where it is not given.
    #[serde(default = "Rate::second")]
    pub interval: Duration,
}

impl Rate {
    fn second() -> Duration {
        "1s".parse().expect("a literal of the right form")
    }
}

/// What became of a policy, per target (GEP-713).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// One entry per target.
    #[serde(default)]
    pub ancestors: Vec<PolicyCondition>,
}

/// What became of a policy at one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyCondition {
    /// The target.
    pub ancestor_ref: PolicyTarget,
    /// Who says so.
    pub controller_name: String,
    /// `Accepted` and, once it is in force, `Programmed`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

//! What the HTTP API answers, as JSON. The CLI reads it with these same types.

use std::collections::BTreeMap;
use std::time::SystemTime;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The answer of `GET /api/v1/proxies`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyList {
    /// One per stream, in the order in which they connected.
    pub proxies: Vec<ProxyStatus>,
}

/// A proxy that is connected, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyStatus {
    /// What it calls itself (`node.id`); proves nothing.
    pub node: String,
    /// Its SPIFFE ID, proven.
    pub identity: String,
    /// Where it connects from.
    pub address: Option<String>,
    /// The software that it says it is (`node.user_agent_name`).
    pub user_agent: String,
    /// And its version (`node.user_agent_version`); empty where it does not say.
    pub version: String,
    /// `delta` or `sotw`.
    pub protocol: String,
    /// Since when.
    pub connected_since: Time,
    /// Since when the certificate is valid that it connected with, 5 minutes before it was issued; absent if it used a
    /// join token.
    pub certificate_since: Option<Time>,
    /// Until when the certificate is valid that it connected with; absent if it used a join token.
    pub certificate_expires: Option<Time>,
    /// The id of the root that signed that certificate.
    pub root: Option<String>,
    /// Until when the join token is valid that it connected with.
    pub token_expires: Option<Time>,
    /// It has acknowledged everything that was sent to it, and rejects nothing.
    pub synced: bool,
    /// By type: `CDS`, `EDS`, `LDS`, `RDS`, `SDS`; only those that it uses.
    pub types: BTreeMap<String, TypeStatus>,
}

/// How far a proxy is with one type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeStatus {
    /// How many names it subscribes to.
    pub subscribed: usize,
    /// It subscribes to all.
    pub wildcard: bool,
    /// It has answered the last response, and rejects nothing.
    pub synced: bool,
    /// The version of all that it should hold, after the last response.
    pub sent: Option<String>,
    /// When that was sent.
    pub sent_at: Option<Time>,
    /// The nonce of that response.
    pub nonce: Option<String>,
    /// The version that it acknowledged last.
    pub acked: Option<String>,
    /// What it rejects: the last good version of these is in force there.
    pub nacked: Vec<Nack>,
}

/// A resource that a proxy rejected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Nack {
    /// The resource.
    pub name: String,
    /// The version of the response that it came in.
    pub version: String,
    /// The proxy's words.
    pub reason: String,
    /// When.
    pub at: Time,
}

/// The answer of `GET /api/v1/objects`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectList {
    /// All objects that were read, by kind and then by name, and those that only have problems.
    pub objects: Vec<ObjectStatus>,
    /// Problems that belong to no object: files that can't be read.
    pub problems: Vec<ProblemStatus>,
}

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStatus {
    /// Its kind.
    pub kind: String,
    /// Its namespace; empty for kinds without.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// It is in force, at least in part or in its last good version.
    pub in_force: bool,
    /// What became of it at each parent (a route) or target (a policy).
    pub parents: Vec<ParentStatus>,
    /// What is wrong with it.
    pub problems: Vec<ProblemStatus>,
}

/// What became of an object at one parent or target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// The parent or target, as `Kind namespace/name`.
    pub parent: String,
    /// The port or section of it that was named.
    pub section: Option<String>,
    /// `Accepted`, for routes `ResolvedRefs`, and whether sidecars have it (`Programmed`, for routes
    /// `tulle.dev/Programmed`).
    pub conditions: Vec<Condition>,
}

/// A condition, as in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Its type, such as `Accepted`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: bool,
    /// One word, from the Gateway API where it has one.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// A fault in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProblemStatus {
    /// `error`: the object, or the part of it that is named, is not in force; `warning`: it is, but maybe not as meant.
    pub severity: String,
    /// The file, where the object comes from one.
    pub file: Option<String>,
    /// The line in it, from 1.
    pub line: Option<u32>,
    /// The column in it, from 1.
    pub column: Option<u32>,
    /// The field; empty for the whole object.
    pub field: String,
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    pub fix: String,
}

/// A moment, RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub SystemTime);

impl From<SystemTime> for Time {
    fn from(at: SystemTime) -> Self {
        Self(at)
    }
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match Timestamp::try_from(self.0) {
            Ok(at) => write!(f, "{at:.3}"),
            Err(_) => f.write_str("out of range"),
        }
    }
}

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Timestamp::deserialize(deserializer).map(|at| Self(at.into()))
    }
}

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
    /// `delta` or `sotw`.
    pub protocol: String,
    /// Since when.
    pub connected_since: Time,
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

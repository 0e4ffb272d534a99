//! What the admin interface says, as JSON. Its clients decode the same types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `GET /config`: what the sidecar believes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dump {
    /// The number of the snapshot in force; it grows with each change.
    pub generation: u64,
    /// Where configuration comes from, and each resource's version.
    pub sync: Value,
    /// Listeners for the application's own connections.
    pub outbound: Vec<ListenerDump>,
    /// Listeners for peers.
    pub inbound: Vec<ListenerDump>,
    /// Names that were asked for and do not exist.
    pub absent: Vec<String>,
    /// Clusters.
    pub clusters: Vec<ClusterDump>,
    /// What the names of the mesh mean that the resolver was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<Value>,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerDump {
    /// Its canonical name.
    pub name: String,
    /// The other names by which it is known.
    pub aliases: Vec<String>,
    /// How long ago it was last used, in seconds.
    pub idle_seconds: u64,
    /// As it was received.
    pub listener: Value,
    /// The routes of each of its HTTP chains, by the chain's name.
    pub routes: BTreeMap<String, Vec<Value>>,
}

/// A cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterDump {
    /// Its name.
    pub name: String,
    /// As it was received.
    pub cluster: Value,
    /// Where it leads.
    pub endpoints: Vec<EndpointDump>,
}

/// An endpoint, and how it does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointDump {
    /// Its address.
    pub address: String,
    /// The workload that it is part of; empty where unknown.
    pub workload: String,
    /// Who has to answer; `None`: anyone.
    pub identity: Option<String>,
    /// Connections to it are mesh TLS.
    pub tls: bool,
    /// What the control plane says of it.
    pub health: Value,
    /// Requests and connections under way.
    pub in_flight: u32,
    /// Its average latency, in milliseconds.
    pub latency_ms: f64,
    /// The breaker keeps requests away.
    pub ejected: bool,
}

/// `GET /certs`: the certificates in force. No keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificates {
    /// The workload's own; `None` until the first was issued.
    pub leaf: Option<Certificate>,
    /// The roots that peers are verified against.
    pub roots: Vec<Certificate>,
}

/// A certificate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    /// Its subject.
    pub subject: String,
    /// The URIs that it names: a leaf's SPIFFE ID.
    pub uris: Vec<String>,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// SHA-256 over its DER, in hexadecimal.
    pub fingerprint: String,
    /// Valid from (RFC 3339).
    pub not_before: String,
    /// Valid until (RFC 3339).
    pub not_after: String,
    /// Seconds until then; negative when it is over.
    pub expires_in: i64,
}

/// `GET /explain`: where a request would go, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The destination that was asked for, `<name>:<port>`.
    pub destination: String,
    /// Why there is no explanation.
    pub reason: Option<String>,
    /// The decision, by the engine that the CLI uses offline. What a peer's own sidecar decides is not known here.
    pub explanation: Option<tulle_mesh::explain::Explanation>,
    /// The clusters that the request may go to, and how their endpoints do now.
    pub clusters: Vec<ClusterDump>,
}

/// `GET /log`: what is logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogState {
    /// As in the settings.
    pub level: String,
}

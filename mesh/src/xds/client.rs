//! What kind of client asks, by what its node says of itself, and how what it gets differs.
//!
//! Sidecars, Envoy and gRPC get the same routes and endpoints, and clusters that differ in their TLS settings alone: where the
//! workload's certificate is, and who may answer. Sidecars pin an identity on each endpoint, gRPC and Envoy know no such
//! thing and get the identities of all endpoints of a cluster. Listeners differ in form. A node's word decides only about forms,
//! never about what its caller may see.

use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::value::Kind as ValueKind;

/// The key in Envoy's node metadata for the folder that `tulle certs` keeps.
pub const CERTIFICATES: &str = "TULLE_CERTS";
/// The key in Envoy's node metadata for the address of the workload that it serves.
pub const ADDRESS: &str = "TULLE_ADDRESS";
/// Where Envoy's certificates are if its node does not say.
pub const DEFAULT_CERTIFICATES: &str = "/etc/tulle/certs";

/// The longest path that is believed, in bytes.
const MAX_PATH: usize = 1024;

/// A kind of client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Client {
    /// Ours, and any that is none of the others.
    #[default]
    Sidecar,
    /// Proxyless gRPC.
    Grpc,
    /// Envoy.
    Envoy(Envoy),
}

/// What an Envoy says of its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envoy {
    /// The folder of its certificates.
    pub certificates: String,
    /// The address of the workload that it takes connections for; `None`: of none.
    pub address: Option<IpAddr>,
}

impl Client {
    /// The kind of client that a node is.
    pub fn of(node: &Node) -> Self {
        if node.user_agent_name.starts_with("gRPC") {
            return Self::Grpc;
        }
        if node.user_agent_name != "envoy" {
            return Self::Sidecar;
        }
        let text = |key: &str| {
            let value = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(key));
            match value.and_then(|value| value.kind.as_ref()) {
                Some(ValueKind::StringValue(text)) => Some(text.as_str()),
                _ => None,
            }
        };
        let certificates = text(CERTIFICATES).filter(|path| path.len() <= MAX_PATH);
        Self::Envoy(Envoy {
            certificates: certificates.unwrap_or(DEFAULT_CERTIFICATES).into(),
            address: text(ADDRESS).and_then(|address| address.parse().ok()),
        })
    }
}

//! The mapping between the model and Envoy's v3 protobufs, in both directions.
//!
//! The control plane puts models in and sends the bytes that come out; the sidecar puts bytes in and runs the models
//! that come out. Encoding and decoding a model gives the same model back. Decoding takes whatever a reasonable
//! control plane sends: what has no meaning for Tulle is passed over, and what would change a decision if it
//! were passed over is an error that names the field. No input may make it panic.
//!
//! Encoding is deterministic, since a resource's version is a hash of its bytes ([`version`]): maps, whose order
//! protobuf leaves open, are written in the order of their keys. What is emitted is accepted by Envoy and by gRPC, as far
//! as a feature exists there; where they differ, the comment beside the code says how.

use std::fmt;

use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::model;

pub mod client;
pub mod cluster;
pub mod dns;
pub mod endpoint;
mod error;
mod fault;
mod http2;
pub mod listener;
mod matching;
mod proto;
pub mod route;
pub mod secret;
mod tls;
mod upgrades;

#[cfg(test)]
mod tests;

pub use client::Client;
pub use error::XdsError;

/// The type URLs of the resources.
pub mod type_url {
    /// Listeners (LDS).
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    /// Route configurations (RDS).
    pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    /// Clusters (CDS).
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    /// Load assignments (EDS).
    pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    /// Secrets (SDS).
    pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    /// Names of the mesh; no discovery service of Envoy's has them.
    pub const DNS: &str = "type.googleapis.com/envoy.data.dns.v3.DnsTable";
}

/// A type of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A listener.
    Listener,
    /// A route configuration.
    Route,
    /// A cluster.
    Cluster,
    /// A cluster's endpoints.
    Endpoint,
    /// A secret.
    Secret,
    /// A name of the mesh.
    Dns,
}

impl Kind {
    /// Every type.
    pub const ALL: [Self; 6] =
        [Self::Listener, Self::Route, Self::Cluster, Self::Endpoint, Self::Secret, Self::Dns];

    /// Its type URL.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Listener => type_url::LISTENER,
            Self::Route => type_url::ROUTE,
            Self::Cluster => type_url::CLUSTER,
            Self::Endpoint => type_url::ENDPOINT,
            Self::Secret => type_url::SECRET,
            Self::Dns => type_url::DNS,
        }
    }

    /// The type with this URL.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listener => "listener",
            Self::Route => "route configuration",
            Self::Cluster => "cluster",
            Self::Endpoint => "load assignment",
            Self::Secret => "secret",
            Self::Dns => "DNS name",
        })
    }
}

/// A resource of any type.
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once, and few exist at a time")]
#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    /// A listener.
    Listener(model::Listener),
    /// A route configuration.
    Route(model::RouteConfiguration),
    /// A cluster.
    Cluster(model::Cluster),
    /// A cluster's endpoints.
    Endpoint(model::LoadAssignment),
    /// A secret.
    Secret(model::Secret),
    /// A name of the mesh.
    Dns(model::DnsName),
}

impl Resource {
    /// Reads a resource.
    ///
    /// # Errors
    /// When the type is not known, the bytes are not of the type, or a field is not valid.
    pub fn decode(type_url: &str, bytes: &[u8]) -> Result<Self, XdsError> {
        let kind = Kind::from_type_url(type_url).ok_or_else(|| XdsError::UnknownType(type_url.into()))?;
        match kind {
            Kind::Listener => listener::decode(parse(kind, bytes)?).map(Self::Listener),
            Kind::Route => route::decode(parse(kind, bytes)?).map(Self::Route),
            Kind::Cluster => cluster::decode(parse(kind, bytes)?).map(Self::Cluster),
            Kind::Endpoint => endpoint::decode(parse(kind, bytes)?).map(Self::Endpoint),
            Kind::Secret => secret::decode(parse(kind, bytes)?).map(Self::Secret),
            Kind::Dns => dns::decode(parse(kind, bytes)?).map(Self::Dns),
        }
    }

    /// The bytes of its protobuf message; the same model always gives the same bytes.
    pub fn encode_bytes(&self) -> Vec<u8> {
        self.encode_bytes_for(&Client::Sidecar)
    }

    fn encode_bytes_for(&self, client: &Client) -> Vec<u8> {
        match self {
            Self::Listener(listener) => listener::encode_for(listener, client).encode_to_vec(),
            Self::Route(routes) => route::encode_bytes(routes),
            Self::Cluster(cluster) => cluster::encode_for(cluster, client).encode_to_vec(),
            Self::Endpoint(assignment) => endpoint::encode(assignment).encode_to_vec(),
            Self::Secret(secret) => secret::encode(secret).encode_to_vec(),
            Self::Dns(name) => dns::encode(name).encode_to_vec(),
        }
    }

    /// Its protobuf message with its type, as a discovery response holds it.
    pub fn encode(&self) -> Any {
        self.encode_for(&Client::Sidecar)
    }

    /// The same in the form that a kind of client takes.
    pub fn encode_for(&self, client: &Client) -> Any {
        Any { type_url: self.type_url().into(), value: self.encode_bytes_for(client) }
    }

    /// The name under which it is subscribed to.
    pub fn name(&self) -> &str {
        match self {
            Self::Listener(listener) => &listener.name,
            Self::Route(routes) => &routes.name,
            Self::Cluster(cluster) => &cluster.name,
            Self::Endpoint(assignment) => &assignment.name,
            Self::Secret(secret) => &secret.name,
            Self::Dns(name) => &name.name,
        }
    }

    /// Its type.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Listener(_) => Kind::Listener,
            Self::Route(_) => Kind::Route,
            Self::Cluster(_) => Kind::Cluster,
            Self::Endpoint(_) => Kind::Endpoint,
            Self::Secret(_) => Kind::Secret,
            Self::Dns(_) => Kind::Dns,
        }
    }

    /// Its type's URL.
    pub fn type_url(&self) -> &'static str {
        self.kind().type_url()
    }
}

/// The version of a resource: the first 64 bits of the SHA-256 of its bytes, in hexadecimal. It is the same for the
/// same content on every replica and after every restart, so that a client which reconnects is not sent what it has.
pub fn version(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn parse<M: Message + Default>(kind: Kind, bytes: &[u8]) -> Result<M, XdsError> {
    M::decode(bytes).map_err(|error| XdsError::Malformed { kind, problem: error.to_string() })
}

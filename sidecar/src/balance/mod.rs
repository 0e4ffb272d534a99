//! Which endpoint gets a request.
//!
//! In: a cluster of the snapshot, the request's hash, the endpoints that were tried, the time and a random number. Out:
//! an endpoint. What is shared between workers are relaxed atomics on the endpoint and the cluster; nothing here
//! locks, allocates or reads a clock.

use std::net::SocketAddr;
use std::sync::Arc;

use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model;

/// A cluster of a snapshot. A change of its configuration or endpoints makes a new one that shares `state` and the
/// endpoints that stayed.
pub(crate) struct Cluster {
    /// Its name.
    pub(crate) name: Arc<str>,
    /// As it was received.
    pub(crate) model: Arc<model::Cluster>,
    /// The endpoints by priority, with what the balancer prepared.
    pub(crate) endpoints: EndpointSet,
    /// Limits, budgets and counters, shared by all versions of the cluster and by all workers.
    pub(crate) state: Arc<ClusterState>,
}

/// One address that serves. Shared by all versions of the cluster in which it stands, and by all workers.
pub(crate) struct Endpoint {
    /// Unique for the life of the process: a key for pools.
    pub(crate) id: u64,
    /// Where to connect.
    pub(crate) address: SocketAddr,
    /// Mesh TLS, or `None` for plaintext.
    pub(crate) tls: Option<EndpointTls>,
    /// As it was received.
    pub(crate) model: model::Endpoint,
    /// Load and health, as atomics.
    pub(crate) stats: EndpointStats,
}

/// How a peer's sidecar is addressed and known.
pub(crate) struct EndpointTls {
    /// The SNI.
    pub(crate) server_name: Arc<str>,
    /// The only identity that may answer. `None`: any of `subject_alt_names`.
    pub(crate) identity: Option<SpiffeId>,
    /// What else the identity must match; empty: nothing.
    pub(crate) subject_alt_names: Arc<[model::StringMatch]>,
}

/// The endpoints of a cluster, prepared for its balancer.
pub(crate) struct EndpointSet {}

/// What outlives a cluster's versions.
pub(crate) struct ClusterState {}

/// Load and health of an endpoint.
pub(crate) struct EndpointStats {}

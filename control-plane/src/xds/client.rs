//! Who is at the other end of a stream: the proven caller, and the kind of client that its node says it is.

use envoy_types::pb::envoy::config::core::v3::Node;
use tulle_mesh::xds::client;

use crate::caller::Caller;

/// A client of the discovery service.
#[derive(Clone, Debug)]
pub struct Client {
    /// Who it is: decides what it may see.
    pub caller: Caller,
    /// What it is: decides in which form.
    pub kind: client::Client,
}

impl Client {
    /// A client by its proof and the node of its first request.
    pub fn new(caller: Caller, node: &Node) -> Self {
        Self { caller, kind: client::Client::of(node) }
    }
}

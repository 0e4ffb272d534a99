//! The incremental protocol, for one stream: requests and news of changes come in, responses come out.
//!
//! No I/O and no clock: the state machine is what the tests drive, and [`server`](super::server) connects it to a
//! stream. Per type it knows what the client asked for (by name or alias, or everything), what each of those names
//! means now, and which version of it the client holds; a response is made of the difference. The rules are those of the
//! xDS protocol specification, section "Incremental xDS", as its clients in fact need them.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, ResourceError, ResourceName,
};
use envoy_types::pb::google::rpc;
use tonic::Status;

use self::subscription::TypeState;
use super::server::{Ack, Batch, Session};
use super::{Catalog, Changed, Client, Encoded, Kind, PUSH_ORDER, has_wildcard, place};
use crate::caller::Caller;

mod subscription;
#[cfg(test)]
mod tests;

/// The most names of one type that a stream may subscribe to.
pub(super) const MAX_NAMES: usize = 50_000;

/// The state of one stream.
pub(super) struct Delta {
    client: Client,
    types: [TypeState; 6],
    /// Clusters that were sent on this stream and whose endpoints were not sent after them. The client warms such a
    /// cluster until its endpoints come, even when it has them already.
    warming: HashSet<Arc<str>>,
    /// The client may be in the middle of warming from an earlier stream, so its endpoints are always sent again.
    resend_endpoints: bool,
}

impl Session for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    const PROTOCOL: &'static str = "delta";

    fn open(caller: Caller, first: &DeltaDiscoveryRequest) -> Result<Self, Status> {
        let Some(node) = &first.node else {
            return Err(Status::invalid_argument("the first request of a stream must have a node"));
        };
        Ok(Self {
            client: Client::new(caller, node),
            types: PUSH_ORDER.map(TypeState::new),
            warming: HashSet::new(),
            resend_endpoints: node.user_agent_name == "envoy",
        })
    }

    fn node(request: &DeltaDiscoveryRequest) -> Option<&envoy_types::pb::envoy::config::core::v3::Node> {
        request.node.as_ref()
    }

    fn request(
        &mut self,
        request: DeltaDiscoveryRequest,
        catalog: &dyn Catalog,
    ) -> Result<Option<Ack>, Status> {
        let Some(kind) = Kind::from_type_url(&request.type_url) else {
            tracing::debug!(type_url = %request.type_url, "a type that is not served");
            return Ok(None);
        };
        let resend = self.resend_endpoints && kind == Kind::Endpoint;
        let warming = if kind == Kind::Endpoint { Some(&self.warming) } else { None };
        let state = &mut self.types[place(kind)];
        let ack = Ack::new(kind, &request.response_nonce, request.error_detail);
        let first = !std::mem::replace(&mut state.opened, true);
        if first {
            state.resume(request.initial_resource_versions);
        }
        state.subscribe(request.resource_names_subscribe, first && !resend, warming, catalog, &self.client);
        state.unsubscribe(request.resource_names_unsubscribe, first);
        if first && !state.explicit && has_wildcard(kind) {
            state.set_wildcard(catalog, &self.client);
        }
        if state.asked.len() > MAX_NAMES {
            return Err(Status::resource_exhausted(format!(
                "more than {MAX_NAMES} names of one type are subscribed to"
            )));
        }
        Ok(ack)
    }

    fn changed(&mut self, changed: &Changed) {
        for state in &mut self.types {
            state.changed(changed.names(state.kind), changed.renamed(state.kind));
        }
    }

    fn all_changed(&mut self, catalog: &dyn Catalog) {
        for state in &mut self.types {
            state.all_changed(catalog, &self.client);
        }
    }

    fn waiting(&self) -> bool {
        self.types.iter().any(TypeState::waiting)
    }

    fn next(&mut self, nonce: &str, catalog: &dyn Catalog) -> Option<(DeltaDiscoveryResponse, Batch)> {
        for kind in PUSH_ORDER {
            let state = &mut self.types[place(kind)];
            let resources = state.updates(catalog, &self.client);
            // Nothing may be left that refers to a cluster when it goes, so those wait for everything else.
            let late = matches!(kind, Kind::Cluster | Kind::Endpoint);
            let removed = if late { BTreeSet::new() } else { std::mem::take(&mut state.removed) };
            // The last of the late ones to go pays what is owed; see below.
            let owed = std::mem::take(&mut state.owed) && (!late || state.removed.is_empty());
            if resources.is_empty() && removed.is_empty() && !owed {
                continue;
            }
            self.after(kind, &resources);
            return Some(self.response(kind, nonce, resources, removed));
        }
        for kind in [Kind::Endpoint, Kind::Cluster] {
            let removed = std::mem::take(&mut self.types[place(kind)].removed);
            if !removed.is_empty() {
                return Some(self.response(kind, nonce, Vec::new(), removed));
            }
        }
        None
    }

    fn subscribed(&self, kind: Kind) -> (usize, bool) {
        let state = &self.types[place(kind)];
        (state.asked.len(), state.wildcard)
    }
}

impl Delta {
    /// Endpoints follow their cluster, always: the client may not even ask for those that it has.
    fn after(&mut self, kind: Kind, resources: &[Arc<Encoded>]) {
        let endpoints = &mut self.types[place(Kind::Endpoint)];
        for resource in resources {
            match kind {
                Kind::Cluster => {
                    self.warming.insert(Arc::clone(&resource.name));
                    endpoints.force(&resource.name);
                }
                Kind::Endpoint => {
                    self.warming.remove(&resource.name);
                }
                _ => {}
            }
        }
    }

    fn response(
        &self,
        kind: Kind,
        nonce: &str,
        resources: Vec<Arc<Encoded>>,
        removed: BTreeSet<Arc<str>>,
    ) -> (DeltaDiscoveryResponse, Batch) {
        let state = &self.types[place(kind)];
        let version = format!("{:016x}", state.version);
        let names = resources.iter().map(|resource| Arc::clone(&resource.name)).collect();
        let response = DeltaDiscoveryResponse {
            system_version_info: version.clone(),
            resources: resources.iter().map(|resource| state.resource(resource)).collect(),
            type_url: kind.type_url().into(),
            removed_resources: removed.iter().map(|name| name.to_string()).collect(),
            resource_errors: removed.iter().map(|name| not_found(kind, name)).collect(),
            nonce: nonce.into(),
            ..Default::default()
        };
        (response, Batch { kind, version, names, removed: removed.into_iter().collect() })
    }
}

/// Says why a name is among the removed ones (xRFC TP3).
pub(super) fn not_found(kind: Kind, name: &str) -> ResourceError {
    ResourceError {
        resource_name: Some(ResourceName { name: name.into(), dynamic_parameter_constraints: None }),
        error_detail: Some(rpc::Status {
            code: tonic::Code::NotFound as i32,
            message: format!(
                "the mesh has no {} resource {name:?} for this caller",
                super::abbreviation(kind)
            ),
            details: Vec::new(),
        }),
    }
}

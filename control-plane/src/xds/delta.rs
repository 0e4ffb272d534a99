//! The incremental protocol, for one stream: requests and news of changes come in, responses come out.
//!
//! No I/O and no clock: the state machine is what the tests drive, and [`server`](super::server) connects it to a
//! stream. Per type it knows what the client asked for (by name or alias, or everything), what each of those names
//! means now, and which version of it the client holds; a response is made of the difference. The rules are those of the
//! xDS protocol specification, section "Incremental xDS", as its clients in fact need them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource, ResourceError, ResourceName,
};
use envoy_types::pb::google::rpc;
use tonic::Status;

use super::server::{Ack, Batch, Session};
use super::{Catalog, Changed, Encoded, Kind, PUSH_ORDER, fingerprint, has_wildcard, place};
use crate::caller::Caller;

/// The most names of one type that a stream may subscribe to.
pub(super) const MAX_NAMES: usize = 50_000;

/// A response is closed when its resources have this many bytes; the rest goes into the next.
const SOFT_RESPONSE_BYTES: usize = 1 << 20;

/// The state of one stream.
pub(super) struct Delta {
    caller: Caller,
    types: [TypeState; 5],
    /// Clusters that were sent on this stream and whose endpoints were not sent after them. The client warms such a
    /// cluster until its endpoints come, even when it has them already.
    warming: HashSet<Arc<str>>,
    /// The client may be in the middle of warming from an earlier stream, so its endpoints are always sent again.
    resend_endpoints: bool,
}

/// The state of one type on one stream.
struct TypeState {
    kind: Kind,
    /// A request of this type was seen.
    opened: bool,
    /// A name was subscribed to: an empty list no longer means everything.
    explicit: bool,
    wildcard: bool,
    /// What was asked for, and what it means.
    asked: HashMap<Arc<str>, Meaning>,
    /// The other direction: by which names a resource was asked for.
    asked_by: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// What the client holds: name to version.
    sent: HashMap<Arc<str>, Arc<str>>,
    /// The exclusive or of the fingerprints of `sent`.
    version: u64,
    /// Names that were asked for (and, under the wildcard, any name) to look at anew.
    pending: BTreeSet<Arc<str>>,
    /// Names that are held, to look at when it is known what every name that was asked for means: they may be gone, or
    /// not be wanted any more.
    doubtful: BTreeSet<Arc<str>>,
    /// Names that were asked for and mean nothing: each may be an alias of whatever appears.
    nothing: BTreeSet<Arc<str>>,
    /// Names to answer even though nothing changed.
    forced: HashSet<Arc<str>>,
    /// Names that are gone, as the client knows them.
    removed: BTreeSet<Arc<str>>,
    /// The client waits for an answer, even an empty one.
    owed: bool,
}

/// What a name that was asked for means.
enum Meaning {
    /// It was not looked up yet.
    Unknown,
    /// Nothing, and the client knows.
    Nothing,
    /// The resource of this name.
    Resource(Arc<str>),
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
            caller,
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
        state.subscribe(request.resource_names_subscribe, first && !resend, warming, catalog, &self.caller);
        state.unsubscribe(request.resource_names_unsubscribe);
        if first && !state.explicit && has_wildcard(kind) {
            state.set_wildcard(catalog, &self.caller);
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
            state.all_changed(catalog, &self.caller);
        }
    }

    fn waiting(&self) -> bool {
        self.types.iter().any(TypeState::waiting)
    }

    fn next(&mut self, nonce: &str, catalog: &dyn Catalog) -> Option<(DeltaDiscoveryResponse, Batch)> {
        for kind in PUSH_ORDER {
            let state = &mut self.types[place(kind)];
            let resources = state.updates(catalog, &self.caller);
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
        (response, Batch { kind, version, names, removed: removed.len() })
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

impl TypeState {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            opened: false,
            explicit: false,
            wildcard: false,
            asked: HashMap::new(),
            asked_by: HashMap::new(),
            sent: HashMap::new(),
            version: 0,
            pending: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            nothing: BTreeSet::new(),
            forced: HashSet::new(),
            removed: BTreeSet::new(),
            owed: false,
        }
    }

    /// Takes over what a client that reconnects holds. This subscribes to nothing, but what is gone is told.
    fn resume(&mut self, versions: HashMap<String, String>) {
        for (name, version) in versions {
            let name: Arc<str> = name.into();
            self.doubtful.insert(Arc::clone(&name));
            self.hold(&name, &version.into());
        }
    }

    /// `resuming`: what the client holds in the right version needs no answer, unless it warms.
    fn subscribe(
        &mut self,
        names: Vec<String>,
        resuming: bool,
        warming: Option<&HashSet<Arc<str>>>,
        catalog: &dyn Catalog,
        caller: &Caller,
    ) {
        if !names.is_empty() && !self.explicit {
            self.explicit = true;
            self.wildcard = false;
            self.doubtful.extend(self.sent.keys().cloned());
        }
        for name in names {
            if name == "*" && has_wildcard(self.kind) {
                self.set_wildcard(catalog, caller);
                continue;
            }
            let name: Arc<str> = name.into();
            self.asked.entry(Arc::clone(&name)).or_insert(Meaning::Unknown);
            if !resuming || warming.is_some_and(|warming| warming.contains(&name)) {
                self.forced.insert(Arc::clone(&name));
            }
            self.pending.insert(name);
        }
    }

    fn unsubscribe(&mut self, names: Vec<String>) {
        for name in names {
            if name == "*" && has_wildcard(self.kind) {
                self.wildcard = false;
                self.owed = false;
                self.doubtful.extend(self.sent.keys().cloned());
                continue;
            }
            let name: Arc<str> = name.into();
            self.forced.remove(&name);
            self.removed.remove(&name);
            self.nothing.remove(&name);
            if let Some(Meaning::Resource(resource)) = self.asked.remove(&name) {
                self.unlink(&name, &resource);
                if !self.wanted(&resource) {
                    self.drop_held(&resource);
                } else if self.wildcard {
                    // The client forgot it together with the name; under the wildcard it still wants it.
                    self.forced.insert(Arc::clone(&resource));
                    self.pending.insert(resource);
                }
            }
        }
    }

    fn set_wildcard(&mut self, catalog: &dyn Catalog, caller: &Caller) {
        self.wildcard = true;
        // A client with nothing waits for the first answer, however empty; one that resumes has what it needs.
        self.owed = self.sent.is_empty();
        self.pending.extend(catalog.names(self.kind, caller));
    }

    fn changed(&mut self, names: &HashSet<Arc<str>>, renamed: bool) {
        if !self.opened {
            return;
        }
        if renamed {
            self.pending.extend(self.asked.keys().cloned());
        }
        for name in names {
            if self.wildcard || self.asked.contains_key(name) {
                self.pending.insert(Arc::clone(name));
            }
            self.pending.extend(self.asked_by.get(name).into_iter().flatten().cloned());
        }
        if !names.is_empty() {
            self.pending.extend(self.nothing.iter().cloned());
        }
    }

    fn all_changed(&mut self, catalog: &dyn Catalog, caller: &Caller) {
        self.pending.extend(self.asked.keys().cloned());
        self.doubtful.extend(self.sent.keys().cloned());
        if self.wildcard {
            self.pending.extend(catalog.names(self.kind, caller));
        }
    }

    /// Answers for a resource even when it did not change, by whatever name it was asked for.
    fn force(&mut self, resource: &Arc<str>) {
        let names = self.asked_by.get(resource).into_iter().flatten().cloned().chain([Arc::clone(resource)]);
        for name in names.filter(|name| self.asked.contains_key(name)).collect::<Vec<_>>() {
            self.forced.insert(Arc::clone(&name));
            self.pending.insert(name);
        }
    }

    fn waiting(&self) -> bool {
        self.owed || !(self.pending.is_empty() && self.doubtful.is_empty() && self.removed.is_empty())
    }

    /// Looks at pending names; yields what must be sent, and notes what is gone.
    fn updates(&mut self, catalog: &dyn Catalog, caller: &Caller) -> Vec<Arc<Encoded>> {
        let mut updates = BTreeMap::new();
        let mut bytes = 0;
        while bytes < SOFT_RESPONSE_BYTES
            && let Some(name) = self.pending.pop_first().or_else(|| self.doubtful.pop_first())
        {
            let forced = self.forced.remove(&name);
            match catalog.find(self.kind, &name, caller) {
                Some(resource) => {
                    if self.found(&name, &resource, forced) {
                        bytes += resource.any.value.len();
                        updates.insert(Arc::clone(&resource.name), resource);
                    }
                }
                None => self.missing(&name, forced),
            }
        }
        updates.into_values().collect()
    }

    /// Notes that a name means a resource; says whether the client needs it.
    fn found(&mut self, name: &Arc<str>, resource: &Encoded, forced: bool) -> bool {
        self.removed.remove(name);
        self.nothing.remove(name);
        let mut news = false;
        if let Some(meaning) = self.asked.get_mut(name) {
            let before = std::mem::replace(meaning, Meaning::Resource(Arc::clone(&resource.name)));
            // A client that holds the resource but was told that this name means nothing must learn the alias.
            news = matches!(before, Meaning::Nothing);
            if let Meaning::Resource(before) = before
                && before != resource.name
            {
                news = true;
                self.unlink(name, &before);
                if !self.wanted(&before) && self.drop_held(&before) {
                    self.removed.insert(before);
                }
            }
            self.asked_by.entry(Arc::clone(&resource.name)).or_default().insert(Arc::clone(name));
        }
        if !self.wanted(&resource.name) {
            // It was held from an earlier stream, or under a wildcard that is gone.
            self.drop_held(name);
            return false;
        }
        self.removed.remove(&resource.name);
        let same = self.sent.get(&resource.name) == Some(&resource.version);
        if same && !forced && !news {
            return false;
        }
        self.hold(&resource.name, &resource.version);
        true
    }

    /// Notes that a name means nothing.
    fn missing(&mut self, name: &Arc<str>, forced: bool) {
        let held = self.drop_held(name);
        let before = match self.asked.get_mut(name) {
            Some(meaning) => {
                self.nothing.insert(Arc::clone(name));
                std::mem::replace(meaning, Meaning::Nothing)
            }
            None => {
                if held {
                    self.removed.insert(Arc::clone(name));
                }
                return;
            }
        };
        if let Meaning::Resource(resource) = &before {
            self.unlink(name, resource);
            if !self.wanted(resource) {
                self.drop_held(resource);
            }
        }
        if held || forced || !matches!(before, Meaning::Nothing) {
            self.removed.insert(Arc::clone(name));
        }
    }

    /// Whether the client subscribes to a resource, by whatever name.
    fn wanted(&self, resource: &str) -> bool {
        self.wildcard || self.asked_by.contains_key(resource)
    }

    fn unlink(&mut self, name: &str, resource: &str) {
        if let Some(names) = self.asked_by.get_mut(resource) {
            names.remove(name);
            if names.is_empty() {
                self.asked_by.remove(resource);
            }
        }
    }

    fn hold(&mut self, resource: &Arc<str>, version: &Arc<str>) {
        self.version ^= fingerprint(resource, version);
        if let Some(old) = self.sent.insert(Arc::clone(resource), Arc::clone(version)) {
            self.version ^= fingerprint(resource, &old);
        }
    }

    fn drop_held(&mut self, resource: &str) -> bool {
        let Some((resource, old)) = self.sent.remove_entry(resource) else { return false };
        self.version ^= fingerprint(&resource, &old);
        true
    }

    /// A resource as this client asked for it: with the aliases by which it did.
    fn resource(&self, resource: &Encoded) -> Resource {
        let names = self.asked_by.get(&resource.name).into_iter().flatten();
        Resource {
            name: resource.name.to_string(),
            aliases: names.filter(|name| **name != resource.name).map(|name| name.to_string()).collect(),
            version: resource.version.to_string(),
            resource: Some(resource.any.clone()),
            ..Default::default()
        }
    }
}

//! The state-of-the-world protocol, for one stream; gRPC knows no other.
//!
//! As [`delta`](super::delta), a state machine without I/O. A request lists all names that the client wants. A response
//! about listeners or clusters holds all of those that exist, and what is absent is gone; of the other types it holds
//! only what changed. There are no aliases here: a resource is only found by its own name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use tonic::Status;

use super::delta::{MAX_NAMES, not_found};
use super::server::{Ack, Batch, Session};
use super::{Catalog, Changed, Client, Encoded, Kind, PUSH_ORDER, has_wildcard, place};
use crate::caller::Caller;

/// The state of one stream.
pub(super) struct StateOfTheWorld {
    client: Client,
    types: [TypeState; 6],
}

/// The state of one type on one stream.
struct TypeState {
    kind: Kind,
    /// Names were listed: an empty list no longer means everything.
    explicit: bool,
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// Of the last response.
    nonce: Option<String>,
    /// What the client holds.
    sent: BTreeMap<Arc<str>, Arc<Encoded>>,
    /// Names to look at anew, and whether to answer for them even when nothing changed.
    pending: BTreeMap<Arc<str>, bool>,
    /// A complete response may be due, ...
    doubtful: bool,
    /// ... or is due, even when nothing changed.
    owed: bool,
}

/// The content of a response.
struct Content {
    resources: Vec<Arc<Encoded>>,
    missing: Vec<Arc<str>>,
    /// Names of those resources that are new or changed.
    news: Vec<Arc<str>>,
}

impl Session for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    const PROTOCOL: &'static str = "sotw";

    fn open(caller: Caller, first: &DiscoveryRequest) -> Result<Self, Status> {
        let Some(node) = &first.node else {
            return Err(Status::invalid_argument("the first request of a stream must have a node"));
        };
        Ok(Self { client: Client::new(caller, node), types: PUSH_ORDER.map(TypeState::new) })
    }

    fn node(request: &DiscoveryRequest) -> Option<&envoy_types::pb::envoy::config::core::v3::Node> {
        request.node.as_ref()
    }

    fn request(&mut self, request: DiscoveryRequest, _: &dyn Catalog) -> Result<Option<Ack>, Status> {
        let Some(kind) = Kind::from_type_url(&request.type_url) else {
            tracing::debug!(type_url = %request.type_url, "a type that is not served");
            return Ok(None);
        };
        if request.resource_names.len() > MAX_NAMES {
            return Err(Status::resource_exhausted(format!(
                "more than {MAX_NAMES} names of one type are subscribed to"
            )));
        }
        let ack = Ack::new(kind, &request.response_nonce, request.error_detail);
        let state = &mut self.types[place(kind)];
        let current =
            request.response_nonce.is_empty() || state.nonce.as_ref() == Some(&request.response_nonce);
        // The client wrote it before it saw the last response, and will write another when it has.
        if current {
            state.subscribe(request.resource_names);
        }
        Ok(ack)
    }

    fn changed(&mut self, changed: &Changed) {
        for state in &mut self.types {
            // A listener is asked for by any name that means it.
            let listeners = state.kind == Kind::Listener && !changed.names(state.kind).is_empty();
            if changed.renamed(state.kind) || listeners {
                state.doubtful |= !state.names.is_empty();
            }
            for name in changed.names(state.kind) {
                if state.wildcard || state.names.contains(name) {
                    state.look_at(name, false);
                }
            }
        }
    }

    fn all_changed(&mut self, _: &dyn Catalog) {
        for state in &mut self.types {
            for name in state.names.clone() {
                state.look_at(&name, false);
            }
            state.doubtful |= state.wildcard;
        }
    }

    fn waiting(&self) -> bool {
        self.types.iter().any(|state| state.owed || state.doubtful || !state.pending.is_empty())
    }

    fn next(&mut self, nonce: &str, catalog: &dyn Catalog) -> Option<(DiscoveryResponse, Batch)> {
        for kind in PUSH_ORDER {
            let state = &mut self.types[place(kind)];
            let content = if has_wildcard(kind) {
                state.complete(catalog, &self.client)
            } else {
                state.partial(catalog, &self.client)
            };
            let Some(content) = content else { continue };
            state.nonce = Some(nonce.into());
            let version = state.sent.values().fold(0, |sum, resource| sum ^ resource.fingerprint);
            let version = format!("{version:016x}");
            if kind == Kind::Cluster {
                // Endpoints follow their cluster, always: the client warms it until they come.
                let endpoints = &mut self.types[place(Kind::Endpoint)];
                for name in content
                    .news
                    .iter()
                    .filter(|name| endpoints.names.contains(*name))
                    .cloned()
                    .collect::<Vec<_>>()
                {
                    endpoints.look_at(&name, true);
                }
            }
            let response = DiscoveryResponse {
                version_info: version.clone(),
                resources: content.resources.iter().map(|resource| resource.any.clone()).collect(),
                type_url: kind.type_url().into(),
                nonce: nonce.into(),
                resource_errors: content.missing.iter().map(|name| not_found(kind, name)).collect(),
                ..Default::default()
            };
            let names = content.resources.iter().map(|resource| Arc::clone(&resource.name)).collect();
            return Some((response, Batch { kind, version, names, removed: content.missing }));
        }
        None
    }

    fn subscribed(&self, kind: Kind) -> (usize, bool) {
        let state = &self.types[place(kind)];
        (state.names.len(), state.wildcard)
    }
}

impl TypeState {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            explicit: false,
            wildcard: false,
            names: BTreeSet::new(),
            nonce: None,
            sent: BTreeMap::new(),
            pending: BTreeMap::new(),
            doubtful: false,
            owed: false,
        }
    }

    fn subscribe(&mut self, names: Vec<String>) {
        self.explicit |= !names.is_empty();
        let mut names: BTreeSet<Arc<str>> = names.into_iter().map(Into::into).collect();
        let wildcard = has_wildcard(self.kind) && (names.remove("*") || !self.explicit);
        if wildcard && !self.wildcard {
            self.owed = true;
        }
        self.wildcard = wildcard;
        let before = std::mem::replace(&mut self.names, names);
        for name in self.names.difference(&before).cloned().collect::<Vec<_>>() {
            self.look_at(&name, true);
        }
        for name in before.difference(&self.names) {
            self.pending.remove(name);
            if !self.wildcard {
                self.sent.remove(name);
            }
        }
    }

    /// Looks at a name in the next response.
    fn look_at(&mut self, name: &Arc<str>, owed: bool) {
        if has_wildcard(self.kind) {
            self.doubtful = true;
            self.owed |= owed;
        } else {
            *self.pending.entry(Arc::clone(name)).or_default() |= owed;
        }
    }

    /// All that is wanted and exists, if that is news or owed.
    fn complete(&mut self, catalog: &dyn Catalog, client: &Client) -> Option<Content> {
        let owed = std::mem::take(&mut self.owed);
        if !std::mem::take(&mut self.doubtful) && !owed {
            return None;
        }
        let mut names = self.names.clone();
        if self.wildcard {
            names.extend(catalog.names(self.kind, client));
        }
        let mut sent = BTreeMap::new();
        let mut missing = Vec::new();
        for name in names {
            match find(catalog, self.kind, &name, client) {
                Some(resource) => drop(sent.insert(name, resource)),
                None => missing.push(name),
            }
        }
        let same = |name: &Arc<str>, resource: &Arc<Encoded>| {
            self.sent.get(name).is_some_and(|held| held.version == resource.version)
        };
        let news: Vec<_> = sent
            .iter()
            .filter(|(name, resource)| !same(name, resource))
            .map(|(name, _)| Arc::clone(name))
            .collect();
        if !owed && news.is_empty() && sent.len() == self.sent.len() {
            return None;
        }
        self.sent = sent;
        Some(Content { resources: self.sent.values().cloned().collect(), missing, news })
    }

    /// What changed or is owed of the names to look at.
    fn partial(&mut self, catalog: &dyn Catalog, client: &Client) -> Option<Content> {
        let mut content = Content { resources: Vec::new(), missing: Vec::new(), news: Vec::new() };
        for (name, owed) in std::mem::take(&mut self.pending) {
            match find(catalog, self.kind, &name, client) {
                Some(resource) => {
                    let held = self.sent.insert(Arc::clone(&name), Arc::clone(&resource));
                    if owed || held.is_none_or(|held| held.version != resource.version) {
                        content.news.push(name);
                        content.resources.push(resource);
                    }
                }
                None => {
                    if self.sent.remove(&name).is_some() || owed {
                        content.missing.push(name);
                    }
                }
            }
        }
        (!content.resources.is_empty() || !content.missing.is_empty()).then_some(content)
    }
}

/// A resource by its own name.
fn find(catalog: &dyn Catalog, kind: Kind, name: &str, client: &Client) -> Option<Arc<Encoded>> {
    catalog.find(kind, name, client).filter(|resource| *resource.name == *name)
}

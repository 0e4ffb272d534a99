//! The resources that were accepted, and what is known of those that were not.
//!
//! In: responses of the control plane (or of the snapshot on disk). Out: resources by name or alias, and for each
//! response the reason why a part of it is rejected. What is bad never takes the rest of a response down, and never
//! replaces what was good. What is not wanted any more is dropped, so that memory follows what the workload uses.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::{Index, IndexMut};
use std::sync::Arc;
use std::time::SystemTime;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, Resource as Wire, ResourceError,
};
use envoy_types::pb::google::protobuf::Any;
use tulle_mesh::model::{self, Protocol, RouteAction, RouteSource};
use tulle_mesh::route::RouteTable;
use tulle_mesh::xds::{Kind, Resource};

use super::bounds;

/// One of something for each type of resource.
#[derive(Clone, Debug, Default)]
pub(crate) struct PerKind<T>([T; 6]);

impl<T> PerKind<T> {
    /// Every type with its part.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Kind, &T)> {
        Kind::ALL.into_iter().map(|kind| (kind, &self[kind]))
    }
}

impl<T> Index<Kind> for PerKind<T> {
    type Output = T;

    fn index(&self, kind: Kind) -> &T {
        &self.0[position(kind)]
    }
}

impl<T> IndexMut<Kind> for PerKind<T> {
    fn index_mut(&mut self, kind: Kind) -> &mut T {
        &mut self.0[position(kind)]
    }
}

fn position(kind: Kind) -> usize {
    match kind {
        Kind::Listener => 0,
        Kind::Route => 1,
        Kind::Cluster => 2,
        Kind::Endpoint => 3,
        Kind::Secret => 4,
        Kind::Dns => 5,
    }
}

/// Names of each type.
pub(crate) type Names = PerKind<BTreeSet<Arc<str>>>;

/// A resource, ready for use.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// A listener, with the route tables that stand in it.
    Listener(Arc<ListenerValue>),
    /// A route configuration, compiled.
    Route(Arc<RouteTable>),
    /// A cluster.
    Cluster(Arc<model::Cluster>),
    /// A cluster's endpoints.
    Endpoint(Arc<model::LoadAssignment>),
    /// A secret.
    Secret(Arc<model::Secret>),
    /// A name of the mesh.
    Dns(Arc<model::DnsName>),
}

/// A listener, and the route tables that stand in it.
#[derive(Debug)]
pub(crate) struct ListenerValue {
    /// As it was received.
    pub(crate) model: Arc<model::Listener>,
    /// By chain; `None` where the chain carries bytes or names a route configuration.
    pub(crate) inline: Vec<Option<Arc<RouteTable>>>,
}

/// An accepted resource.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// Ready for use.
    pub(crate) value: Value,
    /// The control plane's name for this content.
    pub(crate) version: String,
    /// The other names by which it is known.
    pub(crate) aliases: Vec<Arc<str>>,
    /// As it was received.
    pub(crate) raw: Any,
    /// When it came with this content.
    pub(crate) updated: SystemTime,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Knowledge {
    /// It is held.
    Held,
    /// The control plane says that it does not exist.
    Absent,
    /// What came was rejected, and nothing good was there before.
    Rejected,
    /// The control plane has not answered in time.
    Unavailable,
    /// It was asked for, or is about to be.
    Awaited,
}

#[derive(Debug, Default)]
struct Shelf {
    held: HashMap<Arc<str>, Held>,
    /// Alias to canonical name, of the one resource that has it among its aliases.
    aliases: HashMap<Arc<str>, Arc<str>>,
    absent: HashSet<Arc<str>>,
    rejected: HashMap<Arc<str>, String>,
    unavailable: HashSet<Arc<str>>,
}

impl Shelf {
    /// An address that leads elsewhere now: what becomes of its former owner is no business of the new one's.
    fn forget(&mut self, owner: &str, alias: &str) {
        if let Some(owner) = self.held.get_mut(owner) {
            owner.aliases.retain(|held| **held != *alias);
        }
    }
}

/// All resources of this sidecar.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    shelves: PerKind<Shelf>,
}

impl Cache {
    /// Takes a response, as far as `wanted` asks for what is in it.
    ///
    /// # Errors
    /// Why each resource that is rejected is: the text of the NACK. The others were taken.
    pub(crate) fn apply(
        &mut self,
        kind: Kind,
        response: DeltaDiscoveryResponse,
        wanted: &BTreeSet<Arc<str>>,
    ) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        let mut seen = HashSet::new();
        for wire in response.resources {
            let name: Arc<str> = wire_name(&wire).into();
            if !seen.insert(Arc::clone(&name)) {
                problems.push(format!("{kind} {name}: stands twice in one response"));
                continue;
            }
            let is_wanted =
                wanted.contains(&name) || wire.aliases.iter().any(|alias| wanted.contains(alias.as_str()));
            // A message without a body is a heartbeat; what was unsubscribed from may still be on its way.
            if let Some(raw) = wire.resource.filter(|_| is_wanted) {
                let aliases = wire.aliases.iter().map(|alias| alias.as_str().into()).collect();
                // The same content again (after a reconnect) stays the same object, so that nothing is built anew.
                let same = self.shelves[kind].held.get(&name).filter(|held| held.raw == raw);
                let updated = same.map_or_else(SystemTime::now, |held| held.updated);
                let value = same.map(|held| held.value.clone()).map_or_else(|| decode(kind, &name, &raw), Ok);
                match value {
                    Ok(value) => {
                        self.hold(kind, name, Held { value, version: wire.version, aliases, raw, updated });
                    }
                    Err(problem) => {
                        self.shelves[kind].rejected.insert(name, problem.clone());
                        problems.push(problem);
                    }
                }
            }
        }
        let by_locator = response.removed_resource_names.into_iter().map(|name| name.name);
        for name in response.removed_resources.into_iter().chain(by_locator) {
            self.remove(kind, &name, wanted);
        }
        for error in response.resource_errors {
            self.note(kind, &error, wanted);
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    fn hold(&mut self, kind: Kind, name: Arc<str>, held: Held) {
        let shelf = &mut self.shelves[kind];
        if let Some(before) = shelf.held.get(&name) {
            for alias in &before.aliases {
                shelf.aliases.remove(alias);
            }
        }
        for known in held.aliases.iter().chain([&name]) {
            shelf.absent.remove(known);
            shelf.unavailable.remove(known);
            shelf.rejected.remove(known);
        }
        for alias in held.aliases.iter().filter(|alias| **alias != name) {
            if let Some(before) = shelf.aliases.insert(Arc::clone(alias), Arc::clone(&name)) {
                shelf.forget(&before, alias);
            }
        }
        shelf.held.insert(name, held);
    }

    /// The control plane has taken a resource away. Of listeners and names that is honoured at once: an address may belong
    /// to another service now. Routes, clusters and endpoints that are in use are kept as they were last: they go with the
    /// listener that needs them.
    fn remove(&mut self, kind: Kind, name: &str, wanted: &BTreeSet<Arc<str>>) {
        let goes_at_once = matches!(kind, Kind::Listener | Kind::Dns);
        let shelf = &mut self.shelves[kind];
        shelf.unavailable.remove(name);
        shelf.rejected.remove(name);
        let Some(asked) = wanted.get(name) else {
            // Under its own name while it was asked for by an alias: all of it goes.
            if goes_at_once && let Some(held) = shelf.held.remove(name) {
                for alias in held.aliases {
                    shelf.aliases.remove(&alias);
                    shelf.absent.extend(wanted.get(&alias).cloned());
                }
            }
            return;
        };
        if goes_at_once {
            if let Some(canonical) = shelf.aliases.remove(name) {
                shelf.forget(&canonical, name);
            }
            if let Some(held) = shelf.held.remove(name) {
                for alias in held.aliases {
                    shelf.aliases.remove(&alias);
                    shelf.absent.extend(wanted.get(&alias).cloned());
                }
            }
            shelf.absent.insert(Arc::clone(asked));
        } else if shelf.held.contains_key(name) {
            tracing::warn!(
                "{kind} {name} was removed by the control plane but is still in use: its last version stays"
            );
        } else {
            shelf.absent.insert(Arc::clone(asked));
        }
    }

    fn note(&mut self, kind: Kind, error: &ResourceError, wanted: &BTreeSet<Arc<str>>) {
        const NOT_FOUND: i32 = 5;
        const PERMISSION_DENIED: i32 = 7;
        let name = error.resource_name.as_ref().map(|name| name.name.as_str()).unwrap_or_default();
        let Some(status) = &error.error_detail else { return };
        tracing::debug!("{kind} {name}: the control plane says: {}", status.message);
        if let Some(asked) = wanted.get(name)
            && matches!(status.code, NOT_FOUND | PERMISSION_DENIED)
            && self.get(kind, name).is_none()
        {
            self.shelves[kind].absent.insert(Arc::clone(asked));
        }
    }

    /// The resource of a name or alias.
    pub(crate) fn get(&self, kind: Kind, name: &str) -> Option<(&Arc<str>, &Held)> {
        let shelf = &self.shelves[kind];
        let canonical = shelf.aliases.get(name).map_or(name, |canonical| canonical);
        shelf.held.get_key_value(canonical)
    }

    /// The listener of a name or alias.
    pub(crate) fn listener(&self, name: &str) -> Option<(&Arc<str>, &Arc<ListenerValue>)> {
        match self.get(Kind::Listener, name)? {
            (name, Held { value: Value::Listener(listener), .. }) => Some((name, listener)),
            _ => None,
        }
    }

    /// A route table.
    pub(crate) fn routes(&self, name: &str) -> Option<&Arc<RouteTable>> {
        match &self.get(Kind::Route, name)?.1.value {
            Value::Route(table) => Some(table),
            _ => None,
        }
    }

    /// A cluster.
    pub(crate) fn cluster(&self, name: &str) -> Option<&Arc<model::Cluster>> {
        match &self.get(Kind::Cluster, name)?.1.value {
            Value::Cluster(cluster) => Some(cluster),
            _ => None,
        }
    }

    /// All clusters.
    pub(crate) fn clusters(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<model::Cluster>)> {
        self.held(Kind::Cluster).filter_map(|(name, held)| match &held.value {
            Value::Cluster(cluster) => Some((name, cluster)),
            _ => None,
        })
    }

    /// A cluster's endpoints, by their EDS name.
    pub(crate) fn endpoints(&self, name: &str) -> Option<&Arc<model::LoadAssignment>> {
        match &self.get(Kind::Endpoint, name)?.1.value {
            Value::Endpoint(assignment) => Some(assignment),
            _ => None,
        }
    }

    /// A secret.
    pub(crate) fn secret(&self, name: &str) -> Option<&Arc<model::Secret>> {
        match &self.get(Kind::Secret, name)?.1.value {
            Value::Secret(secret) => Some(secret),
            _ => None,
        }
    }

    /// What a name of the mesh means.
    pub(crate) fn dns(&self, name: &str) -> Option<&Arc<model::DnsName>> {
        match &self.get(Kind::Dns, name)?.1.value {
            Value::Dns(name) => Some(name),
            _ => None,
        }
    }

    /// What is known of a name.
    pub(crate) fn knowledge(&self, kind: Kind, name: &str) -> Knowledge {
        let shelf = &self.shelves[kind];
        if self.get(kind, name).is_some() {
            Knowledge::Held
        } else if shelf.absent.contains(name) {
            Knowledge::Absent
        } else if shelf.rejected.contains_key(name) {
            Knowledge::Rejected
        } else if shelf.unavailable.contains(name) {
            Knowledge::Unavailable
        } else {
            Knowledge::Awaited
        }
    }

    /// The control plane has not answered in time.
    pub(crate) fn give_up(&mut self, kind: Kind, name: &Arc<str>) {
        self.shelves[kind].unavailable.insert(Arc::clone(name));
    }

    /// A new stream: what was not answered is asked for again.
    pub(crate) fn reconnected(&mut self) {
        for kind in Kind::ALL {
            self.shelves[kind].unavailable.clear();
        }
    }

    /// Drops what nobody wants.
    pub(crate) fn prune(&mut self, wanted: &Names) {
        for kind in Kind::ALL {
            let names = &wanted[kind];
            let shelf = &mut self.shelves[kind];
            let is_wanted = |name: &Arc<str>| names.contains(name);
            shelf.held.retain(|name, held| is_wanted(name) || held.aliases.iter().any(is_wanted));
            shelf.aliases.retain(|_, canonical| shelf.held.contains_key(canonical));
            shelf.absent.retain(is_wanted);
            shelf.unavailable.retain(is_wanted);
            shelf.rejected.retain(|name, _| is_wanted(name) || shelf.held.contains_key(name));
        }
    }

    /// Everything of a type that is held.
    pub(crate) fn held(&self, kind: Kind) -> impl Iterator<Item = (&Arc<str>, &Held)> {
        self.shelves[kind].held.iter()
    }

    /// The names of a type that do not exist.
    pub(crate) fn absent(&self, kind: Kind) -> impl Iterator<Item = &Arc<str>> {
        self.shelves[kind].absent.iter()
    }

    /// The resources of a type whose last version was rejected, and why.
    pub(crate) fn rejected(&self, kind: Kind) -> impl Iterator<Item = (&Arc<str>, &String)> {
        self.shelves[kind].rejected.iter()
    }

    /// What is held of a type, by name and by alias: a server that knows it, and what each name means, need not send it
    /// again.
    pub(crate) fn versions(&self, kind: Kind) -> HashMap<String, String> {
        let names = |(name, held): (&Arc<str>, &Held)| {
            let names = held.aliases.iter().chain([name]);
            names.map(|name| (name.to_string(), held.version.clone())).collect::<Vec<_>>()
        };
        self.held(kind).flat_map(names).collect()
    }
}

fn wire_name(wire: &Wire) -> &str {
    match &wire.resource_name {
        Some(locator) if wire.name.is_empty() => &locator.name,
        _ => &wire.name,
    }
}

fn decode(kind: Kind, name: &str, raw: &Any) -> Result<Value, String> {
    if raw.type_url != kind.type_url() {
        return Err(format!(
            "{kind} {name}: is of the type {:?}, and must be of the response's",
            raw.type_url
        ));
    }
    bounds::check(&raw.value).map_err(|problem| format!("{kind} {name}: {problem}"))?;
    let resource = Resource::decode(&raw.type_url, &raw.value).map_err(|error| {
        // A message that can't be read at all does not know its own name.
        if error.resource_name().is_some() { error.to_string() } else { format!("{name}: {error}") }
    })?;
    if resource.name() != name {
        return Err(format!("{kind} {name}: calls itself {:?} inside", resource.name()));
    }
    Ok(match resource {
        Resource::Listener(listener) => Value::Listener(Arc::new(compile_listener(listener)?)),
        Resource::Route(routes) => Value::Route(compile(kind, name, &routes)?),
        Resource::Cluster(cluster) => Value::Cluster(Arc::new(cluster)),
        Resource::Endpoint(assignment) => Value::Endpoint(Arc::new(assignment)),
        Resource::Secret(secret) => Value::Secret(Arc::new(secret)),
        Resource::Dns(name) => Value::Dns(Arc::new(name)),
    })
}

fn compile_listener(listener: model::Listener) -> Result<ListenerValue, String> {
    let tables = listener.chains.iter().map(|chain| match &chain.protocol {
        Protocol::Http(model::HttpConnection { routes: RouteSource::Inline(routes), .. }) => {
            compile(Kind::Listener, &listener.name, routes).map(Some)
        }
        Protocol::Http(_) | Protocol::Tcp(_) => Ok(None),
    });
    let inline = tables.collect::<Result<_, String>>()?;
    Ok(ListenerValue { model: Arc::new(listener), inline })
}

fn compile(kind: Kind, name: &str, routes: &model::RouteConfiguration) -> Result<Arc<RouteTable>, String> {
    RouteTable::compile(routes).map(Arc::new).map_err(|error| format!("{kind} {name}: {error}"))
}

/// What a listener needs besides itself.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    /// Route configurations.
    pub(crate) routes: BTreeSet<Arc<str>>,
    /// Clusters, as far as the route configurations are held.
    pub(crate) clusters: BTreeSet<Arc<str>>,
    /// Clusters that take its spans. It serves without them.
    pub(crate) collectors: BTreeSet<Arc<str>>,
}

impl ListenerValue {
    /// What it needs, with the route configurations as they are in `cache`.
    pub(crate) fn needs(&self, cache: &Cache) -> Needs {
        let mut needs = Needs::default();
        for (chain, inline) in self.model.chains.iter().zip(&self.inline) {
            match &chain.protocol {
                Protocol::Tcp(proxy) => {
                    needs.clusters.extend(proxy.backends.iter().map(|(name, _)| name.as_str().into()));
                }
                Protocol::Http(http) => {
                    let mut table = inline.as_ref();
                    if let RouteSource::Named(name) = &http.routes {
                        needs.routes.insert(name.as_str().into());
                        table = cache.routes(name);
                    }
                    needs.clusters.extend(table.into_iter().flat_map(|table| table_clusters(table)));
                    let collector = http.tracing.as_ref().and_then(|tracing| tracing.collector.as_deref());
                    needs.collectors.extend(collector.map(Into::into));
                }
            }
        }
        needs
    }
}

fn table_clusters(table: &RouteTable) -> impl Iterator<Item = Arc<str>> {
    let forwards = table.routes().filter_map(|(_, route)| match &route.action {
        RouteAction::Forward(forward) => Some(forward),
        RouteAction::Redirect(_) | RouteAction::Respond(_) | RouteAction::NonForwarding => None,
    });
    forwards.flat_map(|forward| {
        let backends = forward.backends.iter().map(|backend| backend.cluster.as_str());
        backends.chain(forward.mirrors.iter().map(|mirror| mirror.cluster.as_str())).map(Arc::from)
    })
}

#[cfg(test)]
mod tests;

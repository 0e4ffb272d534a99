//! The catalog of the mesh: the world's models, each encoded once, when it is first asked for.
//!
//! In: what the sources read, and the trust bundle. Out: resources by name or alias as their caller may see them, and the
//! names of those that changed. Private keys are not among them: nothing here ever holds one.
//!
//! The world is replaced whole, so that what a stream looks up belongs together; streams are never kept waiting while a
//! new one is built. Bytes that were encoded stay good for as long as the world says that their model did not change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::watch;
use tulle_mesh::address::{is_any_port_listener, parse_captured_listener};
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{Secret, SecretValue};
use tulle_mesh::xds::{self, Resource};

use super::{Catalog, Changed, Client, Encoded, Kind};
use crate::ca::Bundle;
use crate::caller::Caller;
use crate::source::{Loaded, ObjectRef, Problem};
use crate::virtual_addresses::Kept;
use crate::world::{Affected, Changes, MeshSettings, ParentStatus, World};

mod captured;
mod peers;
#[cfg(test)]
mod tests;

/// The name of the trust bundle, as Istio has it.
pub const TRUST_BUNDLE: &str = "ROOTCA";

/// The catalog.
pub struct Resources {
    settings: MeshSettings,
    /// `None` where no virtual addresses are given.
    kept: Option<Kept>,
    /// Replaced whole; held only to clone the `Arc`.
    view: RwLock<Arc<View>>,
}

/// What streams see at one moment.
#[derive(Default)]
struct View {
    world: World,
    /// Who may see an inbound listener, by its name; `None` for nobody.
    owners: Owners,
    bundle: Option<Arc<Encoded>>,
    /// By kind and key in the world.
    encoded: Mutex<HashMap<Key, Arc<Encoded>>>,
}

type Owners = HashMap<Arc<str>, Option<SpiffeId>>;
type Key = (Kind, Arc<str>);

/// What an update brought.
pub struct Update {
    /// What is to be pushed.
    pub changed: Changed,
    /// What is wrong with objects and files, in order.
    pub problems: Vec<Problem>,
    /// What became of each route and policy.
    pub statuses: BTreeMap<ObjectRef, Vec<ParentStatus>>,
    /// The resources that each of them has a part in.
    pub affected: BTreeMap<ObjectRef, BTreeSet<Affected>>,
}

impl Resources {
    /// A catalog without objects. The virtual addresses that are chosen for them are those of before, and are kept.
    pub fn new(settings: MeshSettings, bundle: watch::Receiver<Bundle>, kept: Option<Kept>) -> Self {
        let before = kept.as_ref().map(Kept::addresses).unwrap_or_default();
        let world = World::with_virtual_addresses(before);
        let view = View { world, bundle: Some(encode_bundle(&bundle.borrow())), ..View::default() };
        Self { settings, kept, view: RwLock::new(Arc::new(view)) }
    }

    /// Takes what the sources read. Updates must not overlap; lookups may go on meanwhile.
    pub fn update(&self, loaded: &Loaded) -> Update {
        let before = self.view();
        let mut world = before.world.clone();
        let changes = world.update(&loaded.objects, &self.settings);
        // Before anybody hears of an address, it is certain that a restart leaves it as it is.
        if world.virtual_addresses() != before.world.virtual_addresses()
            && let Some(Err(error)) = self.kept.as_ref().map(|kept| kept.save(world.virtual_addresses()))
        {
            tracing::error!("a restart may move virtual addresses: {error}");
        }
        let owners = owners(&world);
        let mut changed = names(&changes, &before.owners, &owners);
        changed.add(peers::changed(&changes, [&before.world, &world]));
        let mut encoded = before.encoded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for key in stale(&changes) {
            encoded.remove(&key);
        }
        let mut problems = [&loaded.problems, world.problems()].concat();
        problems.sort();
        problems.dedup();
        let (statuses, affected) = (world.statuses().clone(), world.affected().clone());
        self.replace(View { world, owners, bundle: before.bundle.clone(), encoded: Mutex::new(encoded) });
        Update { changed, problems, statuses, affected }
    }

    /// Takes another trust bundle.
    pub fn set_bundle(&self, bundle: &Bundle) -> Changed {
        let before = self.view();
        let encoded = before.encoded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.replace(View {
            world: before.world.clone(),
            owners: before.owners.clone(),
            bundle: Some(encode_bundle(bundle)),
            encoded: Mutex::new(encoded),
        });
        Changed::new([(Kind::Secret, TRUST_BUNDLE.into())])
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, view: View) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
    }
}

impl Catalog for Resources {
    fn find(&self, kind: Kind, name: &str, client: &Client) -> Option<Arc<Encoded>> {
        let view = self.view();
        match (kind, &client.kind) {
            (Kind::Listener, xds::Client::Grpc) => view.grpc_listener(name, client),
            (Kind::Listener, xds::Client::Envoy(envoy)) => view.envoy_listener(name, envoy, client),
            (Kind::Cluster, xds::Client::Grpc | xds::Client::Envoy(_)) => view.peer_cluster(name, client),
            (Kind::Endpoint, xds::Client::Envoy(_)) => view.peer_endpoints(name, client),
            (Kind::Route, xds::Client::Envoy(_)) => view.envoy_routes(name, client),
            _ => view.shared(kind, name, &client.caller),
        }
    }

    fn names(&self, kind: Kind, client: &Client) -> Vec<Arc<str>> {
        let view = self.view();
        match (kind, &client.kind) {
            (Kind::Listener, xds::Client::Envoy(envoy)) => view.envoy_listeners(envoy, client),
            (Kind::Listener, _) => {
                let shown =
                    view.world.listeners().keys().filter(|key| view.shows(key, &client.caller.identity));
                // These are bound nowhere: only who captures connections knows what to do with them.
                let shown =
                    shown.filter(|key| parse_captured_listener(key).is_none() && !is_any_port_listener(key));
                shown.map(wire_name).collect::<BTreeSet<_>>().into_iter().collect()
            }
            (Kind::Cluster, _) => {
                let clusters = view.world.clusters().keys().cloned();
                clusters.chain(view.own_clusters(client)).collect()
            }
            // These can't be subscribed to all at once.
            (Kind::Route | Kind::Endpoint | Kind::Secret | Kind::Dns, _) => Vec::new(),
        }
    }
}

impl View {
    /// An inbound listener tells who may call a workload and how; only the workload itself may know.
    fn shows(&self, listener: &str, caller: &SpiffeId) -> bool {
        self.owners.get(listener).is_none_or(|owner| owner.as_ref() == Some(caller))
    }

    /// What all kinds of clients get alike, and sidecars' own forms of the rest.
    fn shared(&self, kind: Kind, name: &str, caller: &Caller) -> Option<Arc<Encoded>> {
        let world = &self.world;
        match kind {
            Kind::Listener => {
                let key = world.resolve(name, caller.namespace())?;
                if !self.shows(&key, &caller.identity) {
                    return None;
                }
                let listener = Arc::clone(world.listener(&key)?);
                Some(self.encoded(kind, &key, || Resource::Listener((*listener).clone())))
            }
            Kind::Route => {
                let (key, routes) = world.routes().get_key_value(name)?;
                Some(self.encoded(kind, key, || Resource::Route((**routes).clone())))
            }
            Kind::Cluster => {
                let (key, cluster) = world.clusters().get_key_value(name)?;
                Some(self.encoded(kind, key, || Resource::Cluster((**cluster).clone())))
            }
            Kind::Endpoint => {
                let (key, assignment) = world.assignments().get_key_value(name)?;
                Some(self.encoded(kind, key, || Resource::Endpoint((**assignment).clone())))
            }
            Kind::Dns => {
                let key = world.resolve_dns(name, caller.namespace())?;
                let name = Arc::clone(world.dns().get(&key)?);
                Some(self.encoded(kind, &key, || Resource::Dns((*name).clone())))
            }
            Kind::Secret => self.bundle.clone().filter(|_| name == TRUST_BUNDLE),
        }
    }

    fn encoded(&self, kind: Kind, key: &Arc<str>, model: impl FnOnce() -> Resource) -> Arc<Encoded> {
        let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = encoded.entry((kind, Arc::clone(key)));
        let made = entry.or_insert_with(|| {
            let model = model();
            Arc::new(Encoded::new(model.name(), model.encode()))
        });
        Arc::clone(made)
    }
}

fn owners(world: &World) -> Owners {
    let mut owners = Owners::new();
    for workload in world.workloads() {
        for key in &workload.inbound {
            owners.entry(Arc::clone(key)).or_insert_with(|| workload.identity.clone());
        }
    }
    owners
}

/// The names, on the wire, of what changed.
fn names(changes: &Changes, before: &Owners, owners: &Owners) -> Changed {
    let given_away = owners
        .iter()
        .filter(|(key, owner)| before.get(*key).is_some_and(|before| before != *owner))
        .map(|(key, _)| (Kind::Listener, Arc::clone(key)));
    let changed = Changed::new(stale(changes).map(|(kind, key)| (kind, wire_name(&key))).chain(given_away));
    if changes.names { changed.with_renamed() } else { changed }
}

/// Everything that is not as it was.
fn stale(changes: &Changes) -> impl Iterator<Item = Key> {
    let Changes { listeners, routes, clusters, endpoints, dns, .. } = changes;
    let kinds = [
        (Kind::Listener, listeners),
        (Kind::Route, routes),
        (Kind::Cluster, clusters),
        (Kind::Endpoint, endpoints),
        (Kind::Dns, dns),
    ];
    kinds.into_iter().flat_map(|(kind, changed)| {
        changed.updated.iter().chain(&changed.removed).map(move |key| (kind, Arc::clone(key)))
    })
}

/// What stands in the world under a key of its own for the clients of a namespace (`<name>~<namespace>`) has the same
/// name for all of them.
fn wire_name(key: &Arc<str>) -> Arc<str> {
    match key.split_once('~') {
        Some((name, _)) if !name.contains('|') => name.into(),
        _ => Arc::clone(key),
    }
}

fn encode_bundle(bundle: &Bundle) -> Arc<Encoded> {
    let value = SecretValue::TrustBundle(bundle.pem());
    let secret = Resource::Secret(Secret { name: TRUST_BUNDLE.into(), value });
    Arc::new(Encoded::new(TRUST_BUNDLE, secret.encode()))
}

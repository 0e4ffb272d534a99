//! Compiles what was received into a snapshot.
//!
//! In: accepted resources, resolved names, the workload's certificate. Out: a [`Snapshot`] in which whatever did not
//! change is the very object of the snapshot before, and a listener stands only with all that it needs: until then its
//! last version stays in force. Runs on the control thread.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tulle_mesh::address::{ServicePort, parse_captured_listener, parse_inbound_listener};
use tulle_mesh::authorize::Authorizer;
use tulle_mesh::model::{
    self, AccessLogFormat, Discovery, EndpointAddress, HostPort, LoadAssignment, Operator, Protocol,
    RouteAction, RouteConfiguration, RouteSource, TrafficDirection,
};
use tulle_mesh::route::RouteTable;
use tulle_mesh::xds::Kind;

use super::app;
use super::filters::{Filters, name_cluster};
use super::{
    BackendRuntime, Chain, ChainProtocol, HttpRoutes, LastUse, Listener, RouteRuntime, Snapshot, Stage,
    TcpRoutes,
};
use crate::balance::Cluster;
use crate::config::Config;
use crate::dns::{Resolved, Watched};
use crate::limit::{Counts, Said};
use crate::telemetry::Telemetry;
use crate::telemetry::metrics::HttpLabels;
use crate::tls::Material;
use crate::xds::{Cache, ListenerValue, is_local, is_settled};

/// What a snapshot is made of.
pub(crate) struct Sources<'a> {
    /// What was accepted.
    pub(crate) cache: &'a Cache,
    /// The names that clusters are configured by.
    pub(crate) names: &'a Watched,
    /// The listeners that are needed, by the names under which they were asked for.
    pub(crate) listeners: Vec<Arc<str>>,
    /// The certificate in force.
    pub(crate) tls: Option<Arc<Material>>,
}

/// Makes snapshots, and remembers what the last one was made of.
pub(crate) struct Builder {
    telemetry: Arc<Telemetry>,
    generation: u64,
    /// The workload's own addresses, with capture.
    own: Vec<IpAddr>,
    /// The cluster of the sidecar itself, as it calls itself to the control plane.
    source: String,
    /// The application's ports, by the address that peers dial.
    apps: HashMap<SocketAddr, Arc<Cluster>>,
    /// The application behind captured connections, by the name of the cluster.
    captured: HashMap<Arc<str>, Arc<Cluster>>,
    clusters: HashMap<Arc<str>, BuiltCluster>,
    listeners: HashMap<Arc<str>, BuiltListener>,
}

struct BuiltCluster {
    endpoints: Endpoints,
    cluster: Arc<Cluster>,
}

/// Where a cluster's endpoints came from.
enum Endpoints {
    None,
    /// Over EDS.
    Assigned(Arc<LoadAssignment>),
    /// In the cluster itself.
    Inline,
    /// From DNS.
    Resolved(Vec<Option<Resolved>>),
}

struct BuiltListener {
    value: Arc<ListenerValue>,
    tables: Vec<Option<Arc<RouteTable>>>,
    clusters: BTreeMap<Arc<str>, Option<Arc<Cluster>>>,
    listener: Arc<Listener>,
}

impl Builder {
    /// Starts without any resource.
    pub(crate) fn new(telemetry: Arc<Telemetry>, config: &Config) -> Self {
        let apps = config.inbound.iter().map(|port| (port.listen, app::fixed(&telemetry, port))).collect();
        let own = config.capture.as_ref().map(|capture| capture.addresses.clone()).unwrap_or_default();
        Self {
            telemetry,
            generation: 0,
            own,
            source: config.workload.service_account.clone(),
            apps,
            captured: HashMap::new(),
            clusters: HashMap::new(),
            listeners: HashMap::new(),
        }
    }

    /// Which snapshot was built last.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The next snapshot.
    pub(crate) fn build(&mut self, sources: Sources<'_>) -> Arc<Snapshot> {
        let Sources { cache, names, listeners, tls } = sources;
        self.build_clusters(cache, names);
        self.generation += 1;
        let mut snapshot = Snapshot { generation: self.generation, tls, ..Snapshot::default() };
        let mut in_force = HashSet::new();
        for asked in listeners {
            let Some((name, value)) = cache.listener(&asked) else { continue };
            if in_force.insert(Arc::clone(name)) {
                self.build_listener(name, value, cache, names);
            }
            let Some(built) = self.listeners.get(name) else { continue };
            let listener = || Arc::clone(&built.listener);
            if let Some(address) = parse_inbound_listener(name) {
                snapshot.inbound.insert(address, listener());
            } else if let Some(ip) = parse_captured_listener(name) {
                snapshot.captured.insert(ip, listener());
            } else {
                snapshot.outbound.insert(Arc::clone(name), listener());
                snapshot.outbound.insert(asked, listener());
            }
        }
        self.listeners.retain(|name, _| in_force.contains(name));
        snapshot.absent = cache.absent(Kind::Listener).cloned().collect();
        let known = self.clusters.iter().map(|(name, built)| (Arc::clone(name), Arc::clone(&built.cluster)));
        let in_use: HashSet<_> = self.clusters_in_force().collect();
        self.captured.retain(|name, _| in_use.contains(name));
        let apps = self.apps.values().chain(self.captured.values());
        let apps = apps.map(|cluster| (Arc::clone(&cluster.name), Arc::clone(cluster)));
        snapshot.clusters = known.chain(apps).collect();
        Arc::new(snapshot)
    }

    /// The clusters that listeners in force use; they may be of versions that wait for their successors.
    pub(crate) fn clusters_in_force(&self) -> impl Iterator<Item = Arc<str>> {
        self.listeners.values().flat_map(|built| built.clusters.keys().cloned())
    }

    /// Whether a version of a listener is in force.
    pub(crate) fn is_in_force(&self, canonical: &str) -> bool {
        self.listeners.contains_key(canonical)
    }

    /// When a listener was last used.
    pub(crate) fn last_use(&self, canonical: &str) -> Option<Arc<LastUse>> {
        self.listeners.get(canonical).map(|built| Arc::clone(&built.listener.last_use))
    }

    fn build_clusters(&mut self, cache: &Cache, names: &Watched) {
        for (name, model) in cache.clusters() {
            let endpoints = find_endpoints(&model.discovery, cache, names);
            let before = self.clusters.get(name);
            if before.is_some_and(|before| {
                Arc::ptr_eq(&before.cluster.model, model) && before.endpoints.same(&endpoints)
            }) {
                continue;
            }
            let assignment = endpoints.assignment(&model.discovery);
            let cluster = Cluster::build_beside(
                &self.own,
                Arc::clone(model),
                assignment.as_deref(),
                before.map(|before| &before.cluster),
                self.telemetry.metrics.cluster(name),
            );
            self.clusters.insert(Arc::clone(name), BuiltCluster { endpoints, cluster });
        }
        self.clusters.retain(|name, _| cache.cluster(name).is_some());
    }

    /// Builds the version of a listener that arrived last, or, until all that it needs is settled, the one before with
    /// its clusters as they are now.
    fn build_listener(
        &mut self,
        name: &Arc<str>,
        newest: &Arc<ListenerValue>,
        cache: &Cache,
        names: &Watched,
    ) {
        let before = self.listeners.get(name);
        let (value, tables, needed) = if is_settled(cache, name, |discovery| is_resolved(names, discovery)) {
            (Arc::clone(newest), tables_of(newest, cache), newest.needs(cache).clusters)
        } else {
            let Some(before) = before else { return };
            (Arc::clone(&before.value), before.tables.clone(), before.clusters.keys().cloned().collect())
        };
        let (address, captured) = (parse_inbound_listener(name), parse_captured_listener(name).is_some());
        let (telemetry, apps) = (&self.telemetry, &mut self.captured);
        let mut resolve = |cluster: &Arc<str>| match address {
            Some(address) if is_local(cluster) => self.apps.get(&address).cloned(),
            None if captured && is_local(cluster) => {
                let app = apps.entry(Arc::clone(cluster)).or_insert_with(|| app::dialled(telemetry, cluster));
                Some(Arc::clone(app))
            }
            _ => self.clusters.get(cluster).map(|built| Arc::clone(&built.cluster)),
        };
        let clusters = needed.into_iter().map(|cluster| (Arc::clone(&cluster), resolve(&cluster)));
        let clusters: BTreeMap<_, _> = clusters.collect();
        if before.is_some_and(|before| before.is_made_of(&value, &tables, &clusters)) {
            return;
        }
        let compiler = |chain: &model::FilterChain| Compiler {
            telemetry: &self.telemetry,
            source: &self.source,
            direction: value.model.direction,
            service: service_label(name, chain.matches.destination_port).into(),
            clusters: &clusters,
        };
        let previous = before.map(|before| &before.listener);
        let chains = value.model.chains.iter().zip(&tables).enumerate();
        let chains = chains.map(|(index, (chain, table))| {
            compiler(chain).chain(
                chain,
                table.as_ref(),
                previous.and_then(|listener| listener.chains.get(index)),
            )
        });
        let listener = Arc::new(Listener {
            name: Arc::clone(name),
            model: Arc::clone(&value.model),
            chains: chains.collect(),
            last_use: previous.map_or_else(Arc::default, |listener| Arc::clone(&listener.last_use)),
        });
        let built = BuiltListener { value, tables, clusters, listener };
        self.listeners.insert(Arc::clone(name), built);
    }
}

impl BuiltListener {
    fn is_made_of(
        &self,
        value: &Arc<ListenerValue>,
        tables: &[Option<Arc<RouteTable>>],
        clusters: &BTreeMap<Arc<str>, Option<Arc<Cluster>>>,
    ) -> bool {
        Arc::ptr_eq(&self.value, value)
            && self.tables.iter().zip(tables).all(|(a, b)| same_object(a.as_ref(), b.as_ref()))
            && self.clusters.len() == clusters.len()
            && self
                .clusters
                .iter()
                .zip(clusters)
                .all(|((a, x), (b, y))| a == b && same_object(x.as_ref(), y.as_ref()))
    }
}

/// The route tables of a listener's chains; `None` for bytes, and where the control plane says that there are no routes.
fn tables_of(value: &ListenerValue, cache: &Cache) -> Vec<Option<Arc<RouteTable>>> {
    let chains = value.model.chains.iter().zip(&value.inline);
    let tables = chains.map(|(chain, inline)| match &chain.protocol {
        Protocol::Http(model::HttpConnection { routes: RouteSource::Named(routes), .. }) => {
            cache.routes(routes).cloned()
        }
        Protocol::Http(_) | Protocol::Tcp(_) => inline.clone(),
    });
    tables.collect()
}

fn same_object<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

/// Compiles the chains of one listener.
struct Compiler<'a> {
    telemetry: &'a Telemetry,
    source: &'a str,
    direction: TrafficDirection,
    service: Arc<str>,
    clusters: &'a BTreeMap<Arc<str>, Option<Arc<Cluster>>>,
}

impl Compiler<'_> {
    fn chain(
        &self,
        chain: &model::FilterChain,
        table: Option<&Arc<RouteTable>>,
        previous: Option<&Chain>,
    ) -> Chain {
        let protocol = match &chain.protocol {
            Protocol::Tcp(proxy) => ChainProtocol::Tcp(self.tcp(proxy)),
            Protocol::Http(http) => {
                let previous = previous.and_then(|chain| match &chain.protocol {
                    ChainProtocol::Http(routes) => Some(&routes.counts),
                    ChainProtocol::Tcp(_) => None,
                });
                ChainProtocol::Http(Arc::new(self.http(http, table, previous)))
            }
        };
        Chain { authorizer: Authorizer::compile(chain.authorization.clone()), protocol }
    }

    fn http(
        &self,
        http: &model::HttpConnection,
        table: Option<&Arc<RouteTable>>,
        previous: Option<&Counts>,
    ) -> HttpRoutes {
        let name = match &http.routes {
            RouteSource::Named(name) => name,
            RouteSource::Inline(routes) => &routes.name,
        };
        // The control plane says that there are no routes: every request gets a 404.
        let table = table.cloned().unwrap_or_else(|| Arc::new(empty_table(name)));
        let mut filters = Filters::new(&http.filters, self.source, previous);
        let stages = filters.stages(&[], Said::default(), true);
        HttpRoutes {
            runtime: table
                .routes()
                .map(|(id, route)| {
                    self.route(route, &table.virtual_host(id).rate_limits, &mut filters, &stages)
                })
                .collect(),
            stages,
            counts: filters.into_counts(),
            tells_tls: tells_tls(http, &table),
            table,
            unrouted: self.telemetry.metrics.http(self.labels("", "")),
            spans: http
                .tracing
                .as_ref()
                .and_then(|tracing| self.telemetry.spans(tracing.collector.as_deref())),
            settings: model::HttpConnection {
                routes: RouteSource::Named(name.clone()),
                filters: Vec::new(),
                ..http.clone()
            },
        }
    }

    fn route(
        &self,
        route: &model::Route,
        of_host: &[model::RateLimitRule],
        filters: &mut Filters<'_>,
        of_listener: &[Stage],
    ) -> RouteRuntime {
        let forward = match &route.action {
            RouteAction::Forward(forward) => Some(forward),
            RouteAction::Redirect(_) | RouteAction::Respond(_) | RouteAction::NonForwarding => None,
        };
        let (backends, mirrors) =
            forward.map_or_else(Default::default, |forward| (&forward.backends[..], &forward.mirrors[..]));
        let rates = forward
            .map_or_else(Said::default, |forward| Said { route: Some(&forward.rate_limits), host: of_host });
        let session = forward.filter(|_| filters.have_sessions()).and_then(|forward| forward.session.clone());
        let says_rates = rates.route.is_some_and(|said| !said.is_empty()) || !of_host.is_empty();
        let has_own = !route.filters.is_empty() || (says_rates && filters.have_descriptors());
        let stages = has_own.then(|| filters.stages(&[&route.filters], rates, forward.is_some()));
        let names_cluster = name_cluster(stages.as_deref().unwrap_or(of_listener));
        let draws_first = backends.iter().any(|backend| !backend.filters.is_empty())
            || (backends.len() > 1 && names_cluster);
        let backends = backends.iter().map(|backend| BackendRuntime {
            cluster: self.cluster(&backend.cluster),
            series: self.telemetry.metrics.http(self.labels(&route.name, &backend.cluster)),
            stages: (!backend.filters.is_empty())
                .then(|| filters.stages(&[&backend.filters, &route.filters], rates, true)),
        });
        let backends = backends.collect();
        RouteRuntime {
            stages,
            session,
            draws_first,
            backends,
            mirrors: mirrors.iter().map(|mirror| self.cluster(&mirror.cluster)).collect(),
            local: self.telemetry.metrics.http(self.labels(&route.name, "")),
        }
    }

    fn tcp(&self, proxy: &model::TcpProxy) -> TcpRoutes {
        let backends = proxy.backends.iter().map(|(name, weight)| {
            (self.cluster(name), *weight, self.telemetry.metrics.tcp(self.labels("", name)))
        });
        TcpRoutes { settings: proxy.clone(), backends: backends.collect() }
    }

    fn cluster(&self, name: &str) -> Option<Arc<Cluster>> {
        self.clusters.get(name).cloned().flatten()
    }

    fn labels(&self, route: &str, backend: &str) -> HttpLabels {
        HttpLabels {
            direction: self.direction,
            service: Arc::clone(&self.service),
            route: route.into(),
            backend: backend.into(),
        }
    }
}

/// Whether a log or a header tells of the TLS of clients.
fn tells_tls(http: &model::HttpConnection, table: &RouteTable) -> bool {
    let is_tls = |operator: &Operator| matches!(operator, Operator::Tls(_));
    let logged = match http.access_log.as_ref().map(|log| &log.format) {
        Some(AccessLogFormat::Text(format)) => format.operators().any(is_tls),
        Some(AccessLogFormat::Json) | None => false,
    };
    logged || table.operators().any(is_tls)
}

/// The service's name, or the application's port. Of a captured connection, the port of its chain: peers choose which
/// ports they dial, and must not choose how many series there are.
fn service_label(listener: &str, port: Option<u16>) -> String {
    if let Some(address) = parse_inbound_listener(listener) {
        return address.port().to_string();
    }
    if parse_captured_listener(listener).is_some() {
        return port.map_or_else(|| "other".into(), |port| port.to_string());
    }
    listener.parse().map_or_else(|_| listener.to_owned(), |service: ServicePort| service.fqdn.to_string())
}

fn empty_table(name: &str) -> RouteTable {
    let configuration = RouteConfiguration::new(name, Vec::new());
    RouteTable::compile(&configuration).expect("without virtual hosts there is nothing to refuse")
}

impl Endpoints {
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) | (Self::Inline, Self::Inline) => true,
            (Self::Assigned(a), Self::Assigned(b)) => Arc::ptr_eq(a, b),
            (Self::Resolved(a), Self::Resolved(b)) => a == b,
            _ => false,
        }
    }

    fn assignment<'a>(&'a self, discovery: &'a Discovery) -> Option<std::borrow::Cow<'a, LoadAssignment>> {
        use std::borrow::Cow::{Borrowed, Owned};
        match (self, discovery) {
            (Self::Assigned(assignment), _) => Some(Borrowed(assignment)),
            (Self::Inline, Discovery::Static(assignment)) => Some(Borrowed(assignment)),
            (Self::Resolved(resolved), Discovery::StrictDns(hosts, family)) => {
                let found = hosts
                    .iter()
                    .zip(resolved)
                    .filter_map(|(host, resolved)| Some((host, resolved.as_ref()?)));
                let endpoints =
                    found.flat_map(|(host, resolved)| resolved.of(*family).map(|ip| endpoint(host, ip)));
                Some(Owned(assignment(endpoints.collect())))
            }
            (Self::Resolved(resolved), Discovery::LogicalDns(host, family)) => {
                let found = resolved.iter().flatten();
                let found = found.filter_map(|resolved| Some(endpoint(host, resolved.one_of(*family)?)));
                Some(Owned(assignment(found.collect())))
            }
            _ => None,
        }
    }
}

fn find_endpoints(discovery: &Discovery, cache: &Cache, names: &Watched) -> Endpoints {
    match discovery {
        Discovery::Eds(name) => cache.endpoints(name).cloned().map_or(Endpoints::None, Endpoints::Assigned),
        Discovery::Static(_) => Endpoints::Inline,
        Discovery::StrictDns(hosts, _) => {
            Endpoints::Resolved(hosts.iter().map(|host| names.known(&host.host).cloned()).collect())
        }
        Discovery::LogicalDns(host, _) => Endpoints::Resolved(vec![names.known(&host.host).cloned()]),
        Discovery::OriginalDestination => Endpoints::None,
    }
}

/// Whether the names that a cluster is configured by have been looked up.
fn is_resolved(names: &Watched, discovery: &Discovery) -> bool {
    hosts_of(discovery).iter().all(|host| names.is_settled(&host.host))
}

/// The names that a cluster is configured by.
pub(crate) fn hosts_of(discovery: &Discovery) -> &[HostPort] {
    match discovery {
        Discovery::StrictDns(hosts, _) => hosts,
        Discovery::LogicalDns(host, _) => std::slice::from_ref(host),
        Discovery::Eds(_) | Discovery::Static(_) | Discovery::OriginalDestination => &[],
    }
}

pub(super) fn endpoint(host: &HostPort, ip: IpAddr) -> model::Endpoint {
    model::Endpoint {
        hostname: host.host.clone(),
        ..model::Endpoint::new(EndpointAddress::Socket(SocketAddr::new(ip, host.port)))
    }
}

pub(super) fn assignment(endpoints: Vec<model::Endpoint>) -> LoadAssignment {
    LoadAssignment::new("", endpoints)
}

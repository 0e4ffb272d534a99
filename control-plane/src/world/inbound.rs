//! Inbound listeners: what workloads take from their peers.
//!
//! In: workloads with a sidecar, InboundPolicies, authorization, telemetry. Out: for each port of each of them a listener
//! `tulle/inbound/<ip>:<mesh port>`, and (in [`captured`](super::captured)) one for all ports of each address. Its routes lead to the cluster `inbound|<mesh port>||`, which no one serves over xDS:
//! only the sidecar knows where its application listens, and supplies that cluster itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use tulle_mesh::address::{ClusterName, ServicePort, inbound_listener};
use tulle_mesh::identity::{SpiffeId, TrustDomain};
use tulle_mesh::model::{
    AdaptiveConcurrency, Authorization, ChainMatch, ClientCertificate, Domain, DownstreamTls, FilterChain,
    HttpConnection, HttpFilter, Listener, LocalRateLimit, PathHandling, Protocol as Carried,
    RouteConfiguration, RouteSource, TcpProxy, TokenBucket, TrafficDirection, Transport, VirtualHost,
};

use super::authorization::{Authorizations, Sets};
use super::captured::own_addresses;
use super::endpoints::Slices;
use super::policies::Attached;
use super::report::{Report, Subject};
use super::routes::inbound_route;
use super::services::{Port, Protocol, Service, Services};
use super::telemetry::{Telemetries, Telemetry};
use super::traffic;
use super::workloads::{Workload, WorkloadPort, Workloads, protocol};
use crate::kinds::{
    BackendTrafficPolicy, BackendTrafficPolicySpec, ConcurrencyLimit, InboundPolicy, InboundProtocol,
    MtlsMode, Rate, RateLimit,
};

/// How often the concurrency limit is computed anew.
const CONCURRENCY_INTERVAL: Duration = Duration::from_millis(100);

/// Builds inbound listeners.
pub(super) struct Inbound<'a> {
    pub(super) policies: &'a Attached<'a, InboundPolicy>,
    pub(super) traffic: &'a Attached<'a, BackendTrafficPolicy>,
    pub(super) authorizations: &'a Authorizations,
    pub(super) telemetries: &'a Telemetries<'a>,
    pub(super) trust_domain: &'a TrustDomain,
}

/// The Services before each workload, by the workload's place in the list of all.
pub(super) type Before<'a> = Vec<Vec<&'a Service>>;

/// Finds the Services before each workload: those whose selector matches it and, of those without a selector, those
/// whose EndpointSlices have its address.
pub(super) fn before<'a>(workloads: &Workloads, services: &'a Services, slices: &Slices<'_>) -> Before<'a> {
    let mut by_namespace: BTreeMap<&str, Vec<&Service>> = BTreeMap::new();
    for service in services.iter() {
        by_namespace.entry(&service.key.namespace).or_default().push(service);
    }
    let all = |workload: &Workload| by_namespace.get(workload.key.namespace.as_str()).into_iter().flatten();
    let mut before: Before<'a> = workloads
        .iter()
        .map(|workload| all(workload).copied().filter(|service| workload.behind(service)).collect())
        .collect();
    for service in services.iter().filter(|service| service.selector.is_empty()) {
        let indices: BTreeSet<usize> =
            slices.addresses(service).filter_map(|address| workloads.index_at(address)).collect();
        for index in indices {
            before[index].push(service);
        }
    }
    before
}

impl Inbound<'_> {
    /// The addresses at which sidecars take only plaintext.
    pub(super) fn plaintext(&self, workloads: &Workloads, before: &Before<'_>) -> BTreeSet<SocketAddr> {
        let mut plaintext = BTreeSet::new();
        for (workload, services) in workloads.iter().zip(before) {
            let takes_plaintext = |port: &WorkloadPort| {
                self.mode(workload, services, port) == MtlsMode::Disabled || workload.skips(port.mesh)
            };
            for port in workload.ports.iter().filter(|port| takes_plaintext(port)) {
                plaintext.extend(workload.addresses.iter().map(|ip| SocketAddr::new(*ip, port.mesh)));
            }
            if workload.is_captured() {
                let named = self.known_ports(workload, services).into_values();
                for port in named.filter(takes_plaintext) {
                    let own = own_addresses(workload, workloads);
                    plaintext.extend(own.map(|ip| SocketAddr::new(ip, port.mesh)));
                }
            }
        }
        plaintext
    }

    /// The listeners of a workload.
    pub(super) fn listeners(
        &self,
        workload: &Workload,
        services: &[&Service],
        report: &mut Report,
    ) -> Vec<Listener> {
        let mut listeners: BTreeMap<SocketAddr, Listener> = BTreeMap::new();
        for port in &workload.ports {
            for ip in &workload.addresses {
                let address = SocketAddr::new(*ip, port.mesh);
                listeners
                    .entry(address)
                    .or_insert_with(|| self.listener(workload, services, port, address, report));
            }
        }
        listeners.into_values().collect()
    }

    /// What is spoken on a port: what its policy says, else what its Services say.
    pub(super) fn protocol(
        &self,
        workload: &Workload,
        services: &[&Service],
        port: &WorkloadPort,
    ) -> Protocol {
        let told = self.all_policies(workload, services).into_iter().find_map(|(_, policy)| {
            policy.spec.ports.iter().find(|exception| exception.port == port.number)?.protocol
        });
        match told {
            Some(InboundProtocol::Detect) => Protocol::Detect,
            Some(InboundProtocol::Http) => Protocol::Http,
            Some(InboundProtocol::H2C | InboundProtocol::Grpc) => Protocol::Http2,
            Some(InboundProtocol::Tcp) => Protocol::Tcp,
            None => protocol(workload, port, services),
        }
    }

    fn listener(
        &self,
        workload: &Workload,
        services: &[&Service],
        port: &WorkloadPort,
        address: SocketAddr,
        report: &mut Report,
    ) -> Listener {
        let names = server_names(workload, services, port, address);
        let chains = self.chains(workload, services, port, &names, report);
        let listener = Listener::new(inbound_listener(address), TrafficDirection::Inbound, chains);
        Listener { address: Some(address), ..listener }
    }

    /// How connections to a port are treated; `names` are those under which peers ask for it.
    pub(super) fn chains(
        &self,
        workload: &Workload,
        services: &[&Service],
        port: &WorkloadPort,
        names: &[String],
        report: &mut Report,
    ) -> Vec<FilterChain> {
        let mode = self.mode(workload, services, port);
        let protocol = self.protocol(workload, services, port);
        let keys: Vec<_> = services.iter().map(|service| &service.key).collect();
        let telemetry = self.telemetries.of_workload(&workload.key.namespace, &keys, report);
        let mut limits = self.rate_limits(workload, services, report);
        limits.push(self.concurrency_limit(workload, services, report));
        let cluster = ClusterName::Inbound { port: port.mesh }.to_string();
        let idle = self.idle(workload, services, port, traffic::idle);
        let stream_idle = self.idle(workload, services, port, traffic::stream_idle);
        let http = |name: &str, matches, tls| {
            let sets = self.authorizations.of(workload, services, port.number, true);
            FilterChain {
                name: name.into(),
                matches,
                tls,
                authorization: sets.connection,
                protocol: Carried::Http(connection(&cluster, sets.request, &limits, stream_idle, &telemetry)),
            }
        };
        let tcp = |name: &str, matches, tls| {
            let Sets { connection, .. } = self.authorizations.of(workload, services, port.number, false);
            let proxy = TcpProxy {
                idle_timeout: idle,
                access_log: telemetry.access_log.clone(),
                ..TcpProxy::new(vec![(cluster.clone(), 1)])
            };
            FilterChain {
                name: name.into(),
                matches,
                tls,
                authorization: connection,
                protocol: Carried::Tcp(proxy),
            }
        };
        match protocol {
            Protocol::Http | Protocol::Http2 => {
                let mut chains = Vec::new();
                if mode != MtlsMode::Disabled {
                    chains.push(http("mtls-http", starts_with(Transport::Tls), Some(mesh_tls(&HTTP_ALPN))));
                }
                if mode != MtlsMode::Strict {
                    chains.push(http("plaintext-http", starts_with(Transport::Plaintext), None));
                }
                chains
            }
            Protocol::Tcp => {
                let mut chains = Vec::new();
                if mode != MtlsMode::Disabled {
                    chains.push(tcp("mtls-tcp", mesh_match(mode, names, &[]), Some(mesh_tls(&[]))));
                }
                if mode != MtlsMode::Strict {
                    chains.push(tcp("plaintext-tcp", ChainMatch::default(), None));
                }
                chains
            }
            Protocol::Detect => {
                let mut chains = Vec::new();
                if mode != MtlsMode::Disabled {
                    let matches = mesh_match(mode, names, &HTTP_ALPN);
                    chains.push(http("mtls-http", matches, Some(mesh_tls(&HTTP_ALPN))));
                    chains.push(tcp("mtls-tcp", mesh_match(mode, names, &[]), Some(mesh_tls(&[]))));
                }
                if mode != MtlsMode::Strict {
                    chains.push(http("plaintext-http", detected_http(), None));
                    chains.push(tcp("plaintext-tcp", starts_with(Transport::Plaintext), None));
                    // The application's own TLS, whatever protocol it offers inside.
                    chains.push(tcp("own-tls", starts_with(Transport::Tls), None));
                }
                chains
            }
        }
    }

    /// How long nothing may move on a connection or stream. The client's end keeps the time; so it is told only where a
    /// Service's policy (`of`) gives clients more of it than this end would.
    fn idle(
        &self,
        workload: &Workload,
        services: &[&Service],
        port: &WorkloadPort,
        of: fn(Option<&BackendTrafficPolicySpec>) -> Option<Duration>,
    ) -> Option<Duration> {
        let told = leading_here(workload, services, port).filter_map(|(service, port)| {
            let policy = self.traffic.of_port(&service.key, port.name.as_deref());
            of(policy.map(|(_, policy)| &policy.spec))
        });
        let longest = told.max_by_key(|idle| if idle.is_zero() { Duration::MAX } else { *idle });
        traffic::longer_than_default(longest)
    }

    /// The mode of a port. Where several Services stand before it, the strictest of their policies holds.
    pub(super) fn mode(&self, workload: &Workload, services: &[&Service], port: &WorkloadPort) -> MtlsMode {
        let of = |policy: &InboundPolicy| {
            let exceptions = policy.spec.ports.iter().filter(|exception| exception.port == port.number);
            let exception = exceptions.filter_map(|exception| exception.mtls.as_ref()).next();
            exception.or(policy.spec.mtls.as_ref()).map(|settings| settings.mode)
        };
        let rank = |mode: &MtlsMode| match mode {
            MtlsMode::Strict => 2,
            MtlsMode::Permissive => 1,
            MtlsMode::Disabled => 0,
        };
        let by_service = services
            .iter()
            .filter_map(|service| self.policies.of_port(&service.key, None))
            .filter_map(|(_, policy)| of(policy));
        by_service
            .max_by_key(rank)
            .or_else(|| {
                self.policies.of_namespace(&workload.key.namespace).and_then(|(_, policy)| of(policy))
            })
            .unwrap_or_default()
    }

    pub(super) fn all_policies(
        &self,
        workload: &Workload,
        services: &[&Service],
    ) -> Vec<(&Subject, &InboundPolicy)> {
        let by_service = services.iter().filter_map(|service| self.policies.of_port(&service.key, None));
        by_service.chain(self.policies.of_namespace(&workload.key.namespace)).collect()
    }

    fn rate_limits(
        &self,
        workload: &Workload,
        services: &[&Service],
        report: &mut Report,
    ) -> Vec<HttpFilter> {
        let found = self
            .all_policies(workload, services)
            .into_iter()
            .find_map(|(subject, policy)| Some((subject, policy.spec.rate_limit.as_ref()?)));
        match found {
            Some((subject, limit)) => {
                self.buckets(subject, limit, report).into_iter().map(HttpFilter::LocalRateLimit).collect()
            }
            None => Vec::new(),
        }
    }

    /// The concurrency limit, which every port with HTTP has. It only ever binds when the application's latency grows
    /// with its load.
    fn concurrency_limit(
        &self,
        workload: &Workload,
        services: &[&Service],
        report: &mut Report,
    ) -> HttpFilter {
        let found = self
            .all_policies(workload, services)
            .into_iter()
            .find_map(|(subject, policy)| Some((subject, policy.spec.concurrency_limit?)));
        let mut limit = found.map(|(_, limit)| limit).unwrap_or_default();
        if let Some((subject, ConcurrencyLimit { min, max })) = found
            && !(1..=max).contains(&min)
        {
            let reason = format!("the limit would go from {min} to {max}");
            report.error(subject, "spec.concurrencyLimit", reason, "start from 1, and end no lower");
            limit = ConcurrencyLimit::default();
        }
        HttpFilter::AdaptiveConcurrency(AdaptiveConcurrency {
            min_concurrency: limit.min,
            max_concurrency: limit.max,
            update_interval: CONCURRENCY_INTERVAL,
        })
    }

    fn buckets(&self, subject: &Subject, limit: &RateLimit, report: &mut Report) -> Vec<LocalRateLimit> {
        let name = format!("{}/{}", subject.object.namespace, subject.object.name);
        let bucket = |part: &str, rate: Rate, clients: Vec<String>, per_client| LocalRateLimit {
            clients,
            per_client,
            ..LocalRateLimit::new(
                format!("{name}/{part}"),
                TokenBucket {
                    burst: rate.count.max(1),
                    tokens_per_fill: rate.count.max(1),
                    // An interval of nothing would be no limit at all.
                    fill_interval: rate.interval.get().max(Duration::from_millis(1)),
                },
            )
        };
        let mut buckets = Vec::new();
        buckets.extend(limit.total.map(|rate| bucket("total", rate, Vec::new(), false)));
        buckets.extend(limit.per_client.map(|rate| bucket("per-client", rate, Vec::new(), true)));
        for (index, exception) in limit.overrides.iter().enumerate() {
            let mut clients = Vec::new();
            for (at, client) in exception.client_refs.iter().enumerate() {
                let namespace = client.namespace.as_deref().unwrap_or(&subject.object.namespace);
                let field = format!("spec.rateLimit.overrides[{index}].clientRefs[{at}]");
                if client.kind != "ServiceAccount" {
                    let reason = format!("a client of kind {} is not supported", client.kind);
                    report.error(subject, format!("{field}.kind"), reason, "use ServiceAccount");
                    continue;
                }
                match SpiffeId::workload(self.trust_domain, namespace, &client.name) {
                    Ok(id) => clients.push(id.to_string()),
                    Err(error) => report.error(subject, field, error.to_string(), "correct the name"),
                }
            }
            // A bucket for no one in particular would be one for everyone.
            if !clients.is_empty() {
                buckets.push(bucket(&format!("override-{index}"), exception.rate, clients, false));
            }
        }
        buckets
    }
}

fn connection(
    cluster: &str,
    authorization: Vec<Authorization>,
    limits: &[HttpFilter],
    stream_idle: Option<Duration>,
    telemetry: &Telemetry,
) -> HttpConnection {
    let mut filters: Vec<HttpFilter> = authorization.into_iter().map(HttpFilter::Authorization).collect();
    filters.extend(limits.iter().cloned());
    let host = VirtualHost::new(cluster, vec![Domain::Any], vec![inbound_route(cluster.into())]);
    let routes = RouteConfiguration::new(cluster, vec![host]);
    HttpConnection {
        // The application can learn who calls from nobody else.
        client_certificate: ClientCertificate::Identity,
        ..http_connection(RouteSource::Inline(routes), filters, stream_idle, telemetry)
    }
}

/// An HTTP connection with the sidecar's own limits, but for the time without movement.
pub(super) fn http_connection(
    routes: RouteSource,
    filters: Vec<HttpFilter>,
    stream_idle_timeout: Option<Duration>,
    telemetry: &Telemetry,
) -> HttpConnection {
    HttpConnection {
        filters,
        stream_idle_timeout: stream_idle_timeout.or(Some(HttpConnection::MESH_STREAM_IDLE)),
        // A path that can be written in several ways must not get past a policy or a route.
        paths: PathHandling::NORMAL,
        tracing: telemetry.tracing.clone(),
        access_log: telemetry.access_log.clone(),
        ..HttpConnection::new(routes)
    }
}

const HTTP_ALPN: [&str; 2] = ["h2", "http/1.1"];

fn mesh_tls(alpn: &[&str]) -> DownstreamTls {
    DownstreamTls { require_client_certificate: true, alpn: alpn.iter().copied().map(Into::into).collect() }
}

/// What is found to be HTTP by its first bytes. Chains are told apart by transport before they are by protocol, so one that
/// is for plaintext must say so.
pub(super) fn detected_http() -> ChainMatch {
    ChainMatch {
        application_protocols: ["http/1.0", "http/1.1", "h2c"].map(Into::into).into(),
        ..starts_with(Transport::Plaintext)
    }
}

/// How a connection starts, without regard to anything else.
pub(super) fn starts_with(transport: Transport) -> ChainMatch {
    ChainMatch { transport: Some(transport), ..ChainMatch::default() }
}

/// Which connections are the mesh's own TLS. Where only that is let in, all TLS is; else it is told from the application's
/// own by the server names that peers use for this port.
fn mesh_match(mode: MtlsMode, names: &[String], alpn: &[&str]) -> ChainMatch {
    ChainMatch {
        server_names: if mode == MtlsMode::Strict { Vec::new() } else { names.to_vec() },
        application_protocols: alpn.iter().copied().map(Into::into).collect(),
        ..starts_with(Transport::Tls)
    }
}

/// Under which names peers ask for a port: those of the Services' ports that lead to it, and its address.
pub(super) fn server_names(
    workload: &Workload,
    services: &[&Service],
    port: &WorkloadPort,
    address: SocketAddr,
) -> Vec<String> {
    let ports = leading_here(workload, services, port);
    let mut names: Vec<String> = ports.map(|(_, port)| port.cluster().sni()).collect();
    names.push(direct_cluster(address).sni());
    names
}

/// The ports of Services that lead to a port of a workload.
fn leading_here<'a>(
    workload: &'a Workload,
    services: &'a [&'a Service],
    port: &'a WorkloadPort,
) -> impl Iterator<Item = (&'a Service, &'a Port)> {
    let ports = services.iter().flat_map(|service| service.ports.iter().map(|port| (*service, port)));
    ports.filter(|(_, candidate)| {
        workload.target(&candidate.target).is_some_and(|target| target.mesh == port.mesh)
    })
}

/// The cluster of one address, dialled directly: `outbound|<port>||<ip>`.
pub(super) fn direct_cluster(address: SocketAddr) -> ClusterName {
    ClusterName::outbound(ServicePort::new(address.ip().to_string(), address.port()))
}

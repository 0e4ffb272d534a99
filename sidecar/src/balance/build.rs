//! Builds a cluster from what was received, and carries over what is known about endpoints that stay.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tulle_mesh::model::{self, EndpointAddress, HappyEyeballs, Health, IpFamily};

use super::set::EndpointSet;
use super::{Cluster, ClusterState, Endpoint, EndpointStats, EndpointTls};
use crate::telemetry::metrics::ClusterSeries;

impl Cluster {
    /// Builds `model` over `endpoints` (from EDS, from the model itself or resolved; `None`: none yet). Statistics,
    /// limits and the endpoints that did not change are those of `previous`, the version before.
    pub(crate) fn build(
        model: Arc<model::Cluster>,
        endpoints: Option<&model::LoadAssignment>,
        previous: Option<&Arc<Self>>,
        series: Arc<ClusterSeries>,
    ) -> Arc<Self> {
        Self::build_beside(&[], model, endpoints, previous, series)
    }

    /// The same for a workload whose own addresses are `own`: an endpoint that is the workload itself is reached without
    /// TLS, since what is dialled there is the application and not its sidecar.
    pub(crate) fn build_beside(
        own: &[IpAddr],
        model: Arc<model::Cluster>,
        endpoints: Option<&model::LoadAssignment>,
        previous: Option<&Arc<Self>>,
        series: Arc<ClusterSeries>,
    ) -> Arc<Self> {
        let (now, seed) = (Instant::now(), fastrand::u64(..));
        Self::build_at(own, model, endpoints, previous, series, now, seed)
    }

    /// The same with the time and a random seed.
    pub(super) fn build_at(
        own: &[IpAddr],
        model: Arc<model::Cluster>,
        endpoints: Option<&model::LoadAssignment>,
        previous: Option<&Arc<Self>>,
        series: Arc<ClusterSeries>,
        now: Instant,
        seed: u64,
    ) -> Arc<Self> {
        let builder = Builder::new(own, &model, previous, now);
        let overprovisioning = endpoints.and_then(|assignment| assignment.overprovisioning);
        let localities = endpoints.map(|assignment| assignment.localities.as_slice()).unwrap_or_default();
        let placed = localities
            .iter()
            .map(|place| {
                (place, place.endpoints.iter().filter_map(|model| builder.endpoint(model)).collect())
            })
            .collect();
        let state = match previous {
            Some(previous) => previous.state.clone(),
            None => Arc::new(ClusterState::new(series, now)),
        };
        Arc::new(Self {
            name: model.name.as_str().into(),
            endpoints: EndpointSet::new(placed, &model, overprovisioning, seed),
            drops: endpoints.map(|assignment| assignment.drops.clone().into()).unwrap_or_default(),
            model,
            state,
        })
    }
}

struct Builder<'a> {
    own: &'a [IpAddr],
    happy_eyeballs: HappyEyeballs,
    tls: Option<(&'a model::UpstreamTls, EndpointTls)>,
    previous: HashMap<SocketAddr, Vec<&'a Arc<Endpoint>>>,
    /// Others carry the load while a new endpoint warms up.
    ramp: bool,
    /// What to expect of a new endpoint: as much as of the others.
    latency: Duration,
    now: Instant,
}

impl<'a> Builder<'a> {
    fn new(
        own: &'a [IpAddr],
        model: &'a model::Cluster,
        previous: Option<&'a Arc<Cluster>>,
        now: Instant,
    ) -> Self {
        let known: Vec<_> = previous.iter().flat_map(|cluster| cluster.endpoints.iter()).collect();
        let mut by_address: HashMap<_, Vec<_>> = HashMap::new();
        for endpoint in &known {
            by_address.entry(endpoint.address).or_default().push(*endpoint);
        }
        let sum: Duration = known.iter().map(|endpoint| endpoint.stats.latency(now)).sum();
        let tls = model.tls.as_ref().map(|tls| {
            let shared = EndpointTls {
                server_name: tls.sni.as_str().into(),
                identity: None,
                subject_alt_names: tls.subject_alt_names.clone().into(),
            };
            (tls, shared)
        });
        Self {
            own,
            happy_eyeballs: model.happy_eyeballs,
            tls,
            ramp: previous.is_some_and(|cluster| cluster.endpoints.healthy > 0),
            latency: sum / u32::try_from(known.len().max(1)).unwrap_or(u32::MAX),
            previous: by_address,
            now,
        }
    }

    /// The endpoint of `model`: the one from before where nothing changed, else a new one that keeps what still
    /// holds. `None` for a Unix socket, which this sidecar does not dial.
    fn endpoint(&self, model: &model::Endpoint) -> Option<Arc<Endpoint>> {
        let EndpointAddress::Socket(address) = model.address else { return None };
        let tls = self.tls.as_ref().filter(|(rule, _)| model.meshed || !rule.only_meshed_endpoints);
        let tls = tls.filter(|_| !self.own.contains(&address.ip()));
        let tls = tls.map(|(_, shared)| EndpointTls { identity: model.identity.clone(), ..shared.clone() });
        let addresses = in_order(self.happy_eyeballs, address, &model.additional_addresses);
        let candidates = self.previous.get(&address).map(Vec::as_slice).unwrap_or_default();
        let same = candidates.iter().find(|known| known.model.identity == model.identity);
        if let Some(same) = same
            && same.tls == tls
            && same.model == *model
            && same.addresses == addresses
        {
            return Some(Arc::clone(same));
        }
        let stats = match same {
            Some(same) if !comes_back(same, model) => same.stats.clone(),
            _ => Arc::new(EndpointStats::new(self.now, self.ramp, self.latency)),
        };
        let id = same.filter(|same| same.tls == tls).map_or_else(next_id, |same| same.id);
        Some(Arc::new(Endpoint { id, address, addresses, tls, model: model.clone(), stats }))
    }
}

/// The addresses of an endpoint by turns: so many of the first family, then one of the other. Nothing where there is only one.
fn in_order(
    HappyEyeballs { first, count }: HappyEyeballs,
    address: SocketAddr,
    additional: &[SocketAddr],
) -> Box<[SocketAddr]> {
    if additional.is_empty() {
        return Box::default();
    }
    let all = || std::iter::once(&address).chain(additional).copied();
    let v4 = match first {
        Some(IpFamily::V4) => true,
        Some(IpFamily::V6) => false,
        None => address.is_ipv4(),
    };
    let [mut first, mut other] = [v4, !v4].map(|v4| all().filter(move |address| address.is_ipv4() == v4));
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let mut ordered = Vec::with_capacity(1 + additional.len());
    while ordered.len() <= additional.len() {
        ordered.extend(first.by_ref().take(count));
        ordered.extend(other.next());
    }
    ordered.into()
}

/// Whether the control plane lets the endpoint serve again: it starts anew then, and warms up.
fn comes_back(before: &Endpoint, now: &model::Endpoint) -> bool {
    before.model.health == Health::Unhealthy && now.health == Health::Healthy
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

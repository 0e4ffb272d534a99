//! The endpoints of a cluster, prepared for choosing: by priority, by locality, by weight.
//!
//! What follows from configuration alone is computed once, when the set is built: the share of each locality, cumulative
//! weights, the ring. What changes between two requests (ejections, load) is read at the choice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use tulle_mesh::model::{Cluster, Health, LoadBalancer, LocalityEndpoints, Panic};

use super::Endpoint;
use super::bounded::Bound;
use super::maglev::Table;
use super::ring::Ring;
use super::stride::Stride;

/// The endpoints of a cluster, prepared for its balancer.
pub(crate) struct EndpointSet {
    /// All of them, whatever their health.
    pub(super) all: Vec<Arc<Endpoint>>,
    /// By priority.
    pub(super) priorities: Vec<Priority>,
    /// Not usable, for when nothing else is left: draining ones first.
    pub(super) spare: Vec<Arc<Endpoint>>,
    /// How many are usable.
    pub(super) healthy: usize,
    /// How far the usable ones stand in for the others, in percent.
    pub(super) overprovisioning: u64,
    /// Which are ejected.
    pub(super) ejected: Ejected,
}

/// The endpoints of a priority.
pub(super) struct Priority {
    /// Those that are usable, by locality.
    pub(super) groups: Vec<Group>,
    /// The share of each group, cumulative, while none is ejected.
    pub(super) shares: Shares,
    /// All, for when health is not believed; `None` where that never is, or where they are those of the one group.
    pub(super) everyone: Option<Group>,
    /// How many there are, usable or not.
    pub(super) total: usize,
    /// How many of them say something of its health.
    counted: usize,
}

/// Some endpoints that are chosen from by one rule: the usable ones of a locality, or, for a ring, of a whole priority.
pub(super) struct Group {
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    /// The share of each endpoint, cumulative.
    pub(super) shares: Shares,
    pub(super) order: Order,
    /// How much each may have in flight, where there is such a bound.
    pub(super) bound: Option<Bound>,
    /// Its share among the groups, by configuration.
    pub(super) weight: u64,
    /// How many endpoints of its locality say something of its health.
    pub(super) counted: usize,
    /// How many are ejected, as they were counted last.
    pub(super) out: AtomicU32,
}

/// How many endpoints of a set are ejected. It is counted again after each ejection, and while there are any each tenth
/// of a second, since they end with time.
pub(super) struct Ejected {
    /// After which ejection it was counted.
    at_change: AtomicU64,
    /// When, by the cluster's clock.
    at: AtomicU64,
    /// How many there were.
    pub(super) count: AtomicU32,
}

/// What a balancer prepares.
pub(super) enum Order {
    /// Nothing: it draws.
    Drawn,
    /// Round robin.
    Stride(Stride),
    /// A ring.
    Ring(Ring),
    /// A table.
    Table(Table),
}

/// A distribution to draw from.
pub(super) enum Shares {
    /// All the same: this many.
    Equal(usize),
    /// Cumulative weights.
    Weighted(Box<[u64]>),
}

impl Shares {
    pub(super) fn new(weights: impl Iterator<Item = u64> + Clone) -> Self {
        let mut rest = weights.clone();
        let first = rest.next();
        if rest.all(|weight| Some(weight) == first) {
            return Self::Equal(weights.count());
        }
        let mut sum = 0u64;
        Self::Weighted(
            weights
                .map(|weight| {
                    sum = sum.saturating_add(weight);
                    sum
                })
                .collect(),
        )
    }

    /// An index in proportion to its share; `None` when there is nothing to choose from.
    pub(super) fn draw(&self, draws: &mut Draws) -> Option<usize> {
        match self {
            Self::Equal(len) => (*len > 0).then(|| draws.below(*len as u64) as usize),
            Self::Weighted(sums) => {
                let at = draws.below(*sums.last()?);
                Some(sums.partition_point(|sum| *sum <= at))
            }
        }
    }

    /// The same among all but the index `not`; `None` when there is no other.
    pub(super) fn draw_other(&self, not: usize, draws: &mut Draws) -> Option<usize> {
        match self {
            Self::Equal(len) => {
                let at = (*len > 1).then(|| draws.below(*len as u64 - 1) as usize)?;
                Some(if at < not { at } else { at + 1 })
            }
            Self::Weighted(sums) => {
                let start = not.checked_sub(1).map_or(0, |before| sums[before]);
                let gap = sums[not] - start;
                let rest = sums.last()? - gap;
                let at = (rest > 0).then(|| draws.below(rest))?;
                let at = if at < start { at } else { at + gap };
                Some(sums.partition_point(|sum| *sum <= at))
            }
        }
    }
}

/// Random numbers that follow from one (SplitMix64).
pub(super) struct Draws(pub(super) u64);

impl Draws {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform below `end`, which is not 0.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// Uniform in [0, 1).
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A locality and its endpoints, in the order of the configuration.
pub(super) type Placed<'a> = (&'a LocalityEndpoints, Vec<Arc<Endpoint>>);

impl EndpointSet {
    /// Prepares `localities` for the balancer of `cluster`. `seed`: random, for the start of round robins.
    pub(super) fn new(
        localities: Vec<Placed<'_>>,
        cluster: &Cluster,
        overprovisioning: Option<u32>,
        seed: u64,
    ) -> Self {
        let overprovisioning = overprovisioning.unwrap_or(OVERPROVISIONING).into();
        let mut draws = Draws(seed);
        let all: Vec<_> = localities.iter().flat_map(|(_, endpoints)| endpoints).cloned().collect();
        let spare = [Health::Draining, Health::Unhealthy]
            .iter()
            .flat_map(|health| all.iter().filter(|e| e.model.health == *health).cloned())
            .collect();
        let mut numbers: Vec<u32> = localities.iter().map(|(place, _)| place.priority).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let priorities = numbers.into_iter().map(|number| {
            let places = localities.iter().filter(|(place, _)| place.priority == number);
            Priority::new(&places.collect::<Vec<_>>(), cluster, overprovisioning, &mut draws)
        });
        let priorities = priorities.collect();
        let healthy = all.iter().filter(|e| is_healthy(e)).count();
        Self { all, priorities, spare, healthy, overprovisioning, ejected: Ejected::new() }
    }

    /// All endpoints, for dumps.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Endpoint>> + Clone {
        self.all.iter()
    }

    /// Counts who is ejected at `now`, unless that is known. `change`: how many ejections the cluster has seen; `clock`: `now` by
    /// its clock, in nanoseconds.
    pub(super) fn count_ejected(&self, change: u64, clock: u64, now: Instant) {
        const FRESH: u64 = 100_000_000;
        let Ejected { at_change, at, count } = &self.ejected;
        if at_change.load(Relaxed) == change
            && (count.load(Relaxed) == 0 || clock.saturating_sub(at.load(Relaxed)) < FRESH)
        {
            return;
        }
        let mut sum = 0;
        for group in self.priorities.iter().flat_map(|priority| &priority.groups) {
            let out = group.endpoints.iter().filter(|e| e.stats.is_ejected(now)).count() as u32;
            group.out.store(out, Relaxed);
            sum += out;
        }
        count.store(sum, Relaxed);
        at.store(clock, Relaxed);
        at_change.store(change, Relaxed);
    }
}

impl Ejected {
    fn new() -> Self {
        Self { at_change: AtomicU64::new(u64::MAX), at: AtomicU64::new(0), count: AtomicU32::new(0) }
    }
}

impl Priority {
    fn new(places: &[&Placed<'_>], cluster: &Cluster, overprovisioning: u64, draws: &mut Draws) -> Self {
        let balancer = cluster.load_balancer;
        let hashed = balancer.hashing().is_some();
        let total = places.iter().map(|(_, endpoints)| endpoints.len()).sum();
        let counted = places.iter().map(|(_, endpoints)| that_count(endpoints)).sum();
        // Where no locality is said to have a share, all are alike.
        let alike = cluster.ignores_localities || places.iter().all(|(place, _)| place.weight == 0);
        let share = |place: &LocalityEndpoints| if alike { 1 } else { u64::from(place.weight) };
        let usable = |endpoints: &[Arc<Endpoint>]| -> Vec<_> {
            endpoints.iter().filter(|e| is_healthy(e)).cloned().collect()
        };
        let whole = |endpoints: Vec<Arc<Endpoint>>, weights: Vec<f64>, draws: &mut Draws| {
            Group::new(endpoints, &weights, balancer, (1, counted), draws)
        };
        let groups: Vec<Group> = if hashed || alike {
            // A ring or a table keeps a key in its place; localities don't divide it, but weigh its endpoints.
            let places = places.iter().map(|(place, endpoints)| (share(place), usable(endpoints)));
            let (endpoints, weights) = weighed(places.collect(), alike);
            if endpoints.is_empty() { Vec::new() } else { vec![whole(endpoints, weights, draws)] }
        } else {
            let places = places.iter().map(|(place, all)| (share(place), usable(all), that_count(all)));
            let places = places.filter(|(share, usable, _)| *share > 0 && !usable.is_empty());
            let group = |(share, endpoints, all)| {
                let (endpoints, weights) = weighed(vec![(1, endpoints)], true);
                Group::new(endpoints, &weights, balancer, (share, all), draws)
            };
            places.map(group).collect()
        };
        let one_for_all = matches!(groups.as_slice(), [group] if group.endpoints.len() == total);
        let believed =
            cluster.panic.threshold <= Panic::LAST_RESORT.threshold || cluster.panic.fails_requests;
        let everyone = (!believed && !one_for_all && total > 0).then(|| {
            let places = places.iter().map(|(place, endpoints)| (share(place), endpoints.clone()));
            let (endpoints, weights) = weighed(places.collect(), alike || !hashed);
            whole(endpoints, weights, draws)
        });
        let shares = Shares::new(groups.iter().map(|group| group.load(overprovisioning, 0)));
        Self { groups, shares, everyone, total, counted }
    }

    /// How many endpoints are usable and not ejected.
    pub(super) fn standing(&self) -> usize {
        self.groups.iter().map(Group::standing).sum()
    }

    /// How much of all requests it can take, in percent.
    pub(super) fn load(&self, overprovisioning: u64) -> u64 {
        availability(self.standing(), self.counted, overprovisioning)
    }

    /// Whether fewer of its endpoints are usable than this, in percent.
    pub(super) fn is_below(&self, percent: u32) -> bool {
        (self.standing() as u64 * 100) < u64::from(percent) * (self.counted as u64).max(1)
    }
}

/// How many endpoints say something of the health of their place: not those that end as they are meant to.
fn that_count(endpoints: &[Arc<Endpoint>]) -> usize {
    endpoints.iter().filter(|e| e.model.health != Health::Draining).count()
}

/// Endpoints with their shares: of the endpoint itself, or by that of its locality (`alike` says which).
fn weighed(places: Vec<(u64, Vec<Arc<Endpoint>>)>, alike: bool) -> (Vec<Arc<Endpoint>>, Vec<f64>) {
    let weight = |endpoint: &Arc<Endpoint>| f64::from(endpoint.model.weight.max(1));
    let of_places: u64 = places.iter().filter(|(_, all)| !all.is_empty()).map(|(share, _)| share).sum();
    let mut weights = Vec::new();
    let mut endpoints = Vec::new();
    for (share, members) in places {
        let sum: f64 = members.iter().map(weight).sum();
        let factor = if alike { 1.0 } else { share as f64 / of_places.max(1) as f64 / sum };
        let taken = members.into_iter().filter(|_| share > 0);
        for endpoint in taken {
            weights.push(weight(&endpoint) * factor);
            endpoints.push(endpoint);
        }
    }
    (endpoints, weights)
}

impl Group {
    /// `weight` and `counted`: of its locality.
    fn new(
        endpoints: Vec<Arc<Endpoint>>,
        weights: &[f64],
        balancer: LoadBalancer,
        (weight, counted): (u64, usize),
        draws: &mut Draws,
    ) -> Self {
        let own = endpoints.iter().map(|endpoint| endpoint.model.weight.max(1));
        let hashing = balancer.hashing().unwrap_or_default();
        let by_name = || {
            let names = endpoints.iter().map(|e| match e.model.hostname.as_str() {
                host if hashing.by_hostname && !host.is_empty() => host.to_owned(),
                _ => e.address.to_string(),
            });
            names.zip(weights.iter().copied()).collect::<Vec<_>>()
        };
        let order = match balancer {
            LoadBalancer::RoundRobin => Order::Stride(Stride::new(own.clone(), draws.next() as u32)),
            LoadBalancer::RingHash { min_size, max_size, function, .. } => {
                Order::Ring(Ring::new(&by_name(), min_size, max_size, function))
            }
            LoadBalancer::Maglev { table_size, .. } => Order::Table(Table::new(&by_name(), table_size)),
            LoadBalancer::PeakEwma | LoadBalancer::LeastRequest { .. } | LoadBalancer::Random => Order::Drawn,
        };
        let shares = match balancer {
            LoadBalancer::Random => Shares::Equal(endpoints.len()),
            _ => Shares::new(own.map(u64::from)),
        };
        let bound = hashing.balance_factor.map(|factor| Bound::new(factor, weights));
        Self { shares, endpoints, order, bound, weight, counted, out: AtomicU32::new(0) }
    }

    /// How many endpoints are not ejected.
    fn standing(&self) -> usize {
        self.endpoints.len().saturating_sub(self.out.load(Relaxed) as usize)
    }

    /// Its share among the groups of its priority, while so many endpoints are ejected.
    fn load(&self, overprovisioning: u64, ejected: usize) -> u64 {
        let standing = self.endpoints.len().saturating_sub(ejected);
        self.weight * availability(standing, self.counted, overprovisioning)
    }

    /// The same, as things stand.
    pub(super) fn load_now(&self, overprovisioning: u64) -> u64 {
        self.load(overprovisioning, self.out.load(Relaxed) as usize)
    }
}

fn is_healthy(endpoint: &Arc<Endpoint>) -> bool {
    endpoint.model.health == Health::Healthy
}

/// The share of its load that a priority or locality can take, in percent: all of it while so many of its endpoints are
/// usable that with `factor`, in percent, they make up for the others, less below, and none without any.
fn availability(usable: usize, all: usize, factor: u64) -> u64 {
    (usable as u64 * factor / all.max(1) as u64).clamp(u64::from(usable > 0), 100)
}

/// Envoy's factor where nothing is said: all of the load while at least 5 in 7 endpoints are usable.
const OVERPROVISIONING: u32 = 140;

//! The endpoints of a cluster, prepared for choosing: by priority, by locality, by weight.
//!
//! What follows from configuration alone is computed once, when the set is built: the share of each priority and
//! locality, cumulative weights, the ring. What changes between two requests (ejections, load) is read at the choice.

use std::sync::Arc;

use tulle_mesh::model::{Cluster, Health, LoadBalancer, LocalityEndpoints};

use super::Endpoint;
use super::maglev::Table;
use super::ring::Ring;
use super::stride::Stride;

/// The endpoints of a cluster, prepared for its balancer.
pub(crate) struct EndpointSet {
    /// All of them, whatever their health.
    pub(super) all: Vec<Arc<Endpoint>>,
    /// The usable ones; a priority without any is left out.
    pub(super) priorities: Vec<Priority>,
    /// The share of each priority, cumulative.
    pub(super) shares: Shares,
    /// Not usable, for when nothing else is left: draining ones first.
    pub(super) spare: Vec<Arc<Endpoint>>,
    /// How many are usable.
    pub(super) healthy: usize,
}

/// The usable endpoints of a priority.
pub(super) struct Priority {
    pub(super) groups: Vec<Group>,
    /// The share of each group, cumulative.
    pub(super) shares: Shares,
}

/// The usable endpoints of a locality; for a ring, those of a whole priority.
pub(super) struct Group {
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    /// The share of each endpoint, cumulative.
    pub(super) shares: Shares,
    pub(super) order: Order,
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
        let factor = overprovisioning.unwrap_or(OVERPROVISIONING).into();
        let mut draws = Draws(seed);
        let all: Vec<_> = localities.iter().flat_map(|(_, endpoints)| endpoints).cloned().collect();
        let spare = [Health::Draining, Health::Unhealthy]
            .iter()
            .flat_map(|health| all.iter().filter(|e| e.model.health == *health).cloned())
            .collect();
        let mut numbers: Vec<u32> = localities.iter().map(|(place, _)| place.priority).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let (mut priorities, mut loads, mut left) = (Vec::new(), Vec::new(), 100);
        for number in numbers {
            let places = localities.iter().filter(|(place, _)| place.priority == number);
            let (mut total, mut parts) = (0, Vec::new());
            for (place, endpoints) in places {
                let usable: Vec<_> = endpoints.iter().filter(|e| is_healthy(e)).cloned().collect();
                total += endpoints.len();
                if !usable.is_empty() {
                    let available = availability(usable.len(), endpoints.len(), factor);
                    parts.push((u64::from(place.weight.max(1)) * available, usable));
                }
            }
            let healthy: usize = parts.iter().map(|(_, usable)| usable.len()).sum();
            if healthy > 0 {
                let load = availability(healthy, total, factor).min(left);
                left -= load;
                loads.push(load);
                priorities.push(Priority::new(parts, cluster, &mut draws));
            }
        }
        // What no priority has room for goes to them in proportion, as in Envoy.
        let healthy = all.iter().filter(|e| is_healthy(e)).count();
        Self { all, priorities, shares: Shares::new(loads.into_iter()), spare, healthy }
    }

    /// All endpoints, for dumps.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.all.iter()
    }
}

impl Priority {
    fn new(mut parts: Vec<(u64, Vec<Arc<Endpoint>>)>, cluster: &Cluster, draws: &mut Draws) -> Self {
        let balancer = cluster.load_balancer;
        let hashed = matches!(balancer, LoadBalancer::RingHash { .. } | LoadBalancer::Maglev { .. });
        if hashed || cluster.ignores_localities {
            // A ring or a table keeps a key in its place; localities don't divide it.
            parts = vec![(1, parts.into_iter().flat_map(|(_, endpoints)| endpoints).collect())];
        }
        let shares = Shares::new(parts.iter().map(|(weight, _)| *weight));
        let groups = parts.into_iter().map(|(_, endpoints)| Group::new(endpoints, balancer, draws)).collect();
        Self { groups, shares }
    }
}

impl Group {
    fn new(endpoints: Vec<Arc<Endpoint>>, balancer: LoadBalancer, draws: &mut Draws) -> Self {
        let weights = endpoints.iter().map(|endpoint| endpoint.model.weight.max(1));
        let order = match balancer {
            LoadBalancer::RoundRobin => Order::Stride(Stride::new(weights.clone(), draws.next() as u32)),
            LoadBalancer::RingHash { min_size, max_size } => {
                let weighted: Vec<_> = endpoints.iter().map(|e| e.address).zip(weights.clone()).collect();
                Order::Ring(Ring::new(&weighted, min_size, max_size))
            }
            LoadBalancer::Maglev { table_size } => {
                let weighted: Vec<_> = endpoints.iter().map(|e| e.address).zip(weights.clone()).collect();
                Order::Table(Table::new(&weighted, table_size))
            }
            LoadBalancer::PeakEwma | LoadBalancer::LeastRequest { .. } | LoadBalancer::Random => Order::Drawn,
        };
        Self { shares: Shares::new(weights.map(u64::from)), endpoints, order }
    }
}

fn is_healthy(endpoint: &Arc<Endpoint>) -> bool {
    endpoint.model.health == Health::Healthy
}

/// The share of its load that a priority or locality can take, in percent: all of it while so many of its endpoints are
/// usable that with `factor`, in percent, they make up for the others, less below.
fn availability(usable: usize, all: usize, factor: u64) -> u64 {
    (usable as u64 * factor / all.max(1) as u64).clamp(1, 100)
}

/// Envoy's factor where nothing is said: all of the load while at least 5 in 7 endpoints are usable.
const OVERPROVISIONING: u32 = 140;

//! The choice itself.
//!
//! Endpoints that are ejected, and those that the request has tried, are passed over while there are others. Where fewer are
//! usable than the cluster's threshold, all are used ("panic", which is counted) or none. At the least threshold that is when
//! nothing else is left, and the choice goes down by steps: healthy but tried, then ejected, then those that the control plane
//! calls draining or unhealthy. So a cluster of the mesh that has endpoints always answers with one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use tulle_mesh::model::{self, Health, LoadBalancer};

use super::breaker::Standing;
use super::set::{Draws, Group, Order, Priority, Shares};
use super::{Cluster, Endpoint, Limit};

/// What a choice depends on besides the cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pick<'a> {
    /// The time.
    pub(crate) now: Instant,
    /// Uniform over `u64`.
    pub(crate) random: u64,
    /// What a ring goes by; `None`: any endpoint will do.
    pub(crate) hash: Option<u64>,
    /// The IDs of the endpoints that the request has tried.
    pub(crate) tried: &'a [u64],
}

/// The cluster has no endpoint, or none that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoEndpoint;

impl Cluster {
    /// The endpoint for a request.
    ///
    /// # Errors
    /// When the cluster has no endpoints, or none that may be used.
    pub(crate) fn pick(&self, pick: &Pick<'_>) -> Result<&Arc<Endpoint>, NoEndpoint> {
        self.compare(pick.now, pick.random);
        let changes = self.state.changes.load(Relaxed);
        self.endpoints.count_ejected(changes, self.state.clock(pick.now), pick.now);
        let mut draws = Draws(pick.random);
        match self.priority(&mut draws) {
            Place::In(priority) => self
                .among(priority, Tier::FRESH, pick, &mut draws)
                .or_else(|| self.among(priority, Tier::STANDING, pick, &mut draws))
                .or_else(|| self.last_resort(pick, &mut draws)),
            Place::Panic(priority) => self.in_panic(priority, pick, &mut draws),
            Place::LastResort => self.last_resort(pick, &mut draws),
            Place::Nowhere => None,
        }
        .ok_or(NoEndpoint)
    }

    /// The priority for a request: by how much of all requests those before leave to it, or where too few endpoints of each
    /// are usable, by how many it has.
    fn priority(&self, draws: &mut Draws) -> Place<'_> {
        let (set, panic) = (&self.endpoints, &self.model.panic);
        let load = |p: &Priority| p.load(set.overprovisioning);
        let (mut taken, mut standing) = (0, false);
        for priority in &set.priorities {
            taken = 100.min(taken + load(priority));
            standing |= priority.standing() > 0;
        }
        let panics = |p: &Priority| {
            let few = match panic.threshold {
                0 => false,
                1 => p.standing() == 0,
                threshold => p.is_below(threshold),
            };
            taken < 100 && few
        };
        let chosen = if set.priorities.iter().all(panics) {
            let total: usize = set.priorities.iter().map(|priority| priority.total).sum();
            if panic.fails_requests || total == 0 {
                return Place::Nowhere;
            }
            if !standing && panic.threshold <= model::Panic::LAST_RESORT.threshold {
                return Place::LastResort;
            }
            let mut at = draws.below(total as u64) as usize;
            set.priorities.iter().find(|priority| {
                let here = at < priority.total;
                at = at.saturating_sub(priority.total);
                here
            })
        } else {
            let (mut left, mut at) = (taken, if taken > 0 { draws.below(taken) } else { 0 });
            set.priorities.iter().find(|priority| {
                let load = load(priority).min(left);
                left -= load;
                let here = at < load;
                at = at.saturating_sub(load);
                here
            })
        };
        match chosen {
            Some(priority) if !panics(priority) => Place::In(priority),
            Some(priority) if !panic.fails_requests => Place::Panic(priority),
            _ => Place::Nowhere,
        }
    }

    /// Whether a session can stay at `address`: an endpoint that is usable for it and not ejected.
    pub(crate) fn holds(&self, address: SocketAddr) -> bool {
        let now = Instant::now();
        let stands = |endpoint: &Arc<Endpoint>| endpoint.stats.standing(now) != Standing::Out;
        self.endpoint_at(address).is_some_and(|endpoint| self.model.sessions.unhealthy || stands(endpoint))
    }

    /// The endpoint at `address` for a request of a session that it holds; `None` where another must be found.
    pub(crate) fn pick_held(&self, address: SocketAddr, pick: &Pick<'_>) -> Option<&Arc<Endpoint>> {
        let endpoint = self.endpoint_at(address)?;
        if self.model.sessions.unhealthy {
            return (!pick.tried.contains(&endpoint.id)).then_some(endpoint);
        }
        (Tier::FRESH.admits(endpoint, pick) && self.enter(endpoint, pick.now)).then_some(endpoint)
    }

    fn endpoint_at(&self, address: SocketAddr) -> Option<&Arc<Endpoint>> {
        let sessions = &self.model.sessions;
        let usable = |endpoint: &&Arc<Endpoint>| match endpoint.model.health {
            Health::Healthy => sessions.healthy,
            Health::Draining => sessions.draining,
            Health::Unhealthy => sessions.unhealthy,
        };
        self.endpoints.iter().filter(usable).find(|endpoint| endpoint.address == address)
    }

    /// An endpoint of `tier`: of the priority and of the locality that the shares give, else of the first that has one.
    fn among<'a>(
        &'a self,
        priority: &'a Priority,
        tier: Tier,
        pick: &Pick<'_>,
        draws: &mut Draws,
    ) -> Option<&'a Arc<Endpoint>> {
        if tier == Tier::STANDING && pick.tried.is_empty() {
            return None;
        }
        let set = &self.endpoints;
        let group = self.group(priority, draws)?;
        self.in_group(group, tier, pick, draws).or_else(|| {
            let groups = set.priorities.iter().flat_map(|priority| &priority.groups);
            groups
                .filter(|other| !std::ptr::eq(*other, group))
                .find_map(|g| self.in_group(g, tier, pick, draws))
        })
    }

    /// A locality, by the weights and by how much of their load they can take.
    fn group<'a>(&self, priority: &'a Priority, draws: &mut Draws) -> Option<&'a Group> {
        let set = &self.endpoints;
        let index = if priority.groups.len() < 2 || set.ejected.count.load(Relaxed) == 0 {
            priority.shares.draw(draws)?
        } else {
            let loads = priority.groups.iter().map(|group| group.load_now(set.overprovisioning));
            let sum = loads.clone().fold(0, u64::saturating_add);
            let mut at = (sum > 0).then(|| draws.below(sum))?;
            loads
                .take_while(|load| {
                    let beyond = at >= *load;
                    at = at.saturating_sub(*load);
                    beyond
                })
                .count()
        };
        priority.groups.get(index)
    }

    /// Any endpoint of the priority, whatever its health; one that was not tried, if possible.
    fn in_panic<'a>(
        &self,
        priority: &'a Priority,
        pick: &Pick<'_>,
        draws: &mut Draws,
    ) -> Option<&'a Arc<Endpoint>> {
        let everyone = priority.everyone.as_ref().or(priority.groups.first())?;
        self.state.series.panics.increment();
        self.in_group(everyone, Tier::UNTRIED, pick, draws)
            .or_else(|| self.in_group(everyone, Tier::ANY, pick, draws))
    }

    /// When all healthy endpoints are ejected: any of them, untried if possible; else the first draining or unhealthy.
    fn last_resort(&self, pick: &Pick<'_>, draws: &mut Draws) -> Option<&Arc<Endpoint>> {
        if self.model.panic.threshold == 0 {
            return None;
        }
        let set = &self.endpoints;
        let healthy = set.priorities.iter().flat_map(|priority| &priority.groups).flat_map(|g| &g.endpoints);
        let healthy: SmallVec<[&Arc<Endpoint>; 16]> = healthy.collect();
        let from = if healthy.is_empty() { SmallVec::from_iter(&set.spare) } else { healthy };
        if from.is_empty() {
            return None;
        }
        self.state.series.panics.increment();
        let start = if set.healthy > 0 { draws.below(from.len() as u64) as usize } else { 0 };
        let turned = (0..from.len()).map(|i| from[(start + i) % from.len()]);
        turned.clone().find(|e| !pick.tried.contains(&e.id)).or_else(|| turned.clone().next())
    }

    fn in_group<'a>(
        &self,
        group: &'a Group,
        tier: Tier,
        pick: &Pick<'_>,
        draws: &mut Draws,
    ) -> Option<&'a Arc<Endpoint>> {
        let endpoints = &group.endpoints;
        let chosen = match (&group.order, self.model.load_balancer) {
            (Order::Stride(stride), _) => {
                let turns = (0..endpoints.len()).map(|_| &endpoints[stride.next()]);
                turns.into_iter().find(|e| tier.admits(e, pick))
            }
            (Order::Ring(ring), _) => {
                let hash = pick.hash.unwrap_or_else(|| draws.next());
                // The walk meets an endpoint many times; a few steps find one that is in, else the scan does.
                let mut walk = ring.walk(hash).take(WALK);
                let first = walk.find(|index| tier.admits(&endpoints[*index], pick));
                first.map(|index| self.with_room(group, index, hash, tier, pick))
            }
            (Order::Table(table), _) => {
                let hash = pick.hash.unwrap_or_else(|| draws.next());
                let mut walk = table.walk(hash).take(WALK);
                let first = walk.find(|index| tier.admits(&endpoints[*index], pick));
                first.map(|index| self.with_room(group, index, hash, tier, pick))
            }
            (Order::Drawn, LoadBalancer::LeastRequest { choices, bias }) => match group.shares {
                Shares::Equal(_) => {
                    let cost = |e: &Endpoint| f64::from(e.stats.in_flight());
                    best(group, choices.clamp(2, 16), tier, pick, draws, cost)
                }
                Shares::Weighted(_) => least_by_weight(group, bias, tier, pick, draws),
            },
            (Order::Drawn, LoadBalancer::Random) => {
                let drawn = draw(group, None, tier, pick, draws).map(|index| &endpoints[index]);
                drawn.or_else(|| scan(group, tier, pick, draws).next())
            }
            (Order::Drawn, _) => best(group, 2, tier, pick, draws, |e| e.stats.cost(pick.now)),
        };
        // An endpoint whose ejection is over takes one request; whoever loses it to another worker looks again.
        chosen
            .filter(|e| !tier.standing || self.enter(e, pick.now))
            .or_else(|| scan(group, tier, pick, draws).find(|e| !tier.standing || self.enter(e, pick.now)))
    }

    /// The endpoint of a hash, or where that is full, the first that has room, or else the one that is least full.
    fn with_room<'a>(
        &self,
        group: &'a Group,
        first: usize,
        hash: u64,
        tier: Tier,
        pick: &Pick<'_>,
    ) -> &'a Arc<Endpoint> {
        let endpoints = &group.endpoints;
        let Some(bound) = &group.bound else { return &endpoints[first] };
        let all = self.state.in_flight(Limit::Requests);
        let load = |index: usize| bound.load(index, endpoints[index].stats.in_flight(), all);
        let (mut best, mut least) = (first, load(first));
        if least > 1.0 {
            let others = bound.others(hash).filter(|index| *index != first);
            for index in others.filter(|index| tier.admits(&endpoints[*index], pick)) {
                let load = load(index);
                if load < least {
                    (best, least) = (index, load);
                }
                if least <= 1.0 {
                    break;
                }
            }
        }
        &endpoints[best]
    }

    /// Whether a chosen endpoint may have the request: it is in, or this is its probe.
    fn enter(&self, endpoint: &Endpoint, now: Instant) -> bool {
        match endpoint.stats.standing(now) {
            Standing::In => true,
            Standing::Out => false,
            Standing::Due => endpoint.stats.claim_probe(now, PROBE_LEASE),
        }
    }
}

/// Another probe may go when one has not answered for so long.
const PROBE_LEASE: Duration = Duration::from_secs(5);

/// How far a ring or a table is walked for an endpoint that is in, before all are looked at.
const WALK: usize = 256;

/// Where a request may go.
enum Place<'a> {
    /// To the usable endpoints of this priority.
    In(&'a Priority),
    /// To any endpoint of this priority: health is not believed.
    Panic(&'a Priority),
    /// Nobody is usable: to whoever is most so.
    LastResort,
    /// Nowhere.
    Nowhere,
}

/// Which endpoints a choice is among.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Tier {
    /// Only those that are not ejected.
    standing: bool,
    /// Only those that the request has not tried.
    untried: bool,
}

impl Tier {
    const FRESH: Self = Self { standing: true, untried: true };
    const STANDING: Self = Self { standing: true, untried: false };
    const UNTRIED: Self = Self { standing: false, untried: true };
    const ANY: Self = Self { standing: false, untried: false };

    fn admits(self, endpoint: &Endpoint, pick: &Pick<'_>) -> bool {
        (!self.standing || endpoint.stats.standing(pick.now) != Standing::Out)
            && (!self.untried || !pick.tried.contains(&endpoint.id))
    }
}

/// The cheapest of `choices` that are drawn, of which each is another than the cheapest before it: of two endpoints both
/// are compared. One that waits for its probe is taken at once: its past would never let it win.
fn best<'a>(
    group: &'a Group,
    choices: u32,
    tier: Tier,
    pick: &Pick<'_>,
    draws: &mut Draws,
    cost: impl Fn(&Endpoint) -> f64,
) -> Option<&'a Arc<Endpoint>> {
    let endpoints = &group.endpoints;
    let Some(mut best) = draw(group, None, tier, pick, draws) else {
        return scan(group, tier, pick, draws).next();
    };
    if endpoints.len() == 1 || endpoints[best].stats.standing(pick.now) == Standing::Due {
        return Some(&endpoints[best]);
    }
    let mut least = cost(&endpoints[best]);
    for _ in 1..choices {
        // Where there is no second choice, the first will do.
        let Some(other) = draw(group, Some(best), tier, pick, draws) else { continue };
        if endpoints[other].stats.standing(pick.now) == Standing::Due {
            return Some(&endpoints[other]);
        }
        let price = cost(&endpoints[other]);
        if price < least {
            (best, least) = (other, price);
        }
    }
    Some(&endpoints[best])
}

/// One by its weight, divided by a power of its requests in flight: of several that are drawn by weight, each has a chance by
/// the rest.
fn least_by_weight<'a>(
    group: &'a Group,
    bias: f64,
    tier: Tier,
    pick: &Pick<'_>,
    draws: &mut Draws,
) -> Option<&'a Arc<Endpoint>> {
    const CANDIDATES: usize = 16;
    let mut candidates = [(0, 0.0); CANDIDATES];
    let (mut count, mut sum) = (0, 0.0);
    for _ in 0..CANDIDATES {
        let Some(index) = draw(group, None, tier, pick, draws) else { break };
        let stats = &group.endpoints[index].stats;
        if stats.standing(pick.now) == Standing::Due {
            return Some(&group.endpoints[index]);
        }
        sum += (f64::from(stats.in_flight()) + 1.0).powf(-bias);
        candidates[count] = (index, sum);
        count += 1;
    }
    let at = draws.unit() * sum;
    match candidates[..count].iter().find(|(_, until)| at < *until) {
        Some((index, _)) => Some(&group.endpoints[*index]),
        None => scan(group, tier, pick, draws).next(),
    }
}

/// The index of an endpoint by weight, another than `not`. One that warms up is passed over as often as its share is
/// still missing; where it was to be compared with `not`, that is all it gets, or being idle would win it far more than
/// its share. `None` when all that was drawn was passed over.
fn draw(group: &Group, not: Option<usize>, tier: Tier, pick: &Pick<'_>, draws: &mut Draws) -> Option<usize> {
    const TRIES: usize = 8;
    for _ in 0..TRIES {
        let index = match not {
            None => group.shares.draw(draws)?,
            Some(not) => group.shares.draw_other(not, draws)?,
        };
        let endpoint = &group.endpoints[index];
        if !tier.admits(endpoint, pick) {
            continue;
        }
        let ramp = endpoint.stats.ramp(pick.now);
        if ramp >= 1.0 || draws.unit() < ramp {
            return Some(index);
        }
        if not.is_some() {
            break;
        }
    }
    None
}

/// All that `tier` admits, from a random place on.
fn scan<'a>(
    group: &'a Group,
    tier: Tier,
    pick: &Pick<'_>,
    draws: &mut Draws,
) -> impl Iterator<Item = &'a Arc<Endpoint>> {
    let start = draws.below(group.endpoints.len() as u64) as usize;
    let (before, after) = group.endpoints.split_at(start);
    after.iter().chain(before).filter(move |endpoint| tier.admits(endpoint, pick))
}

//! Which resources this sidecar needs, and which it needs no more.
//!
//! The roots are the listeners of its own inbound ports, of its fixed outbound ports, and those that traffic asked for;
//! everything else follows from what they refer to. A listener that traffic has not used for a while is let go, and with
//! it all that only it needed. So is a name that the resolver has not been asked for.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tulle_mesh::address::{ClusterName, captured_listener, inbound_listener};
use tulle_mesh::model::Discovery;
use tulle_mesh::xds::Kind;

use super::cache::{Cache, Knowledge, Names};
use crate::config::Config;
use crate::snapshot::LastUse;

/// How long an on-demand listener is kept without use.
pub(crate) const IDLE: Duration = Duration::from_secs(600);
/// The most names of listeners in use that traffic may have asked for; those that were used longest ago make room.
const MAX_KNOWN: usize = 8192;
/// The most names that stand for nothing, or are not answered yet: an application that tries address after address must
/// not push out what it uses. More than ever wait for an answer, so that none of those is forgotten before it has come.
const MAX_UNKNOWN: usize = 3072;
/// How many names more than that there may be until room is made, so that it need not be made for each.
const SLACK: usize = 1024;
/// The most names by which traffic may have asked for one and the same listener. Of an address all of whose ports have one
/// in common, an application may dial each.
const MAX_ALIASES: usize = 512;
/// How many of them stay when there are more: those that were asked for last, among them all that are still waited for.
const KEPT_ALIASES: usize = 384;
/// The most names that the resolver may have asked for, also those that don't exist.
const MAX_NAMES: usize = 4096;

/// The roots of what is needed.
#[derive(Debug)]
pub(crate) struct Interest {
    /// Always: they stand in the configuration.
    fixed: BTreeSet<Arc<str>>,
    /// Those of them that the sidecar is not ready without.
    inbound: BTreeSet<Arc<str>>,
    demanded: HashMap<Arc<str>, Instant>,
    /// How many of them there are when room is made the next time.
    make_room_at: usize,
    /// Names that the resolver asked for, and when it last did.
    names: HashMap<Arc<str>, Instant>,
    secrets: BTreeSet<Arc<str>>,
}

impl Interest {
    /// What the configuration asks for. `secrets` are needed besides.
    pub(crate) fn new(config: &Config, secrets: BTreeSet<Arc<str>>) -> Self {
        let own = config.capture.iter().flat_map(|capture| &capture.addresses);
        let captured = own.map(|address| captured_listener(*address));
        let inbound: BTreeSet<Arc<str>> = config
            .inbound
            .iter()
            .map(|port| inbound_listener(port.listen))
            .chain(captured)
            .map(Into::into)
            .collect();
        let outbound = config.outbound.ports.iter().map(|port| port.service.to_string().into());
        let fixed = outbound.chain(inbound.iter().cloned()).collect();
        Self {
            fixed,
            inbound,
            demanded: HashMap::new(),
            names: HashMap::new(),
            make_room_at: MAX_UNKNOWN + SLACK,
            secrets,
        }
    }

    /// Traffic asks for a listener. Returns whether that is news. `last_use` gives the mark of a listener by any of its
    /// names; `None` where there is none.
    pub(crate) fn demand(
        &mut self,
        name: Arc<str>,
        now: Instant,
        last_use: impl Fn(&str) -> Option<Arc<LastUse>>,
    ) -> bool {
        if self.fixed.contains(&name) {
            return false;
        }
        let is_news = self.demanded.insert(name, now).is_none();
        if self.demanded.len() > self.make_room_at {
            self.make_room(now, last_use);
        }
        is_news
    }

    /// Forgets the oldest of the names that are too many.
    fn make_room(&mut self, now: Instant, last_use: impl Fn(&str) -> Option<Arc<LastUse>>) {
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for (name, asked) in self.demanded.drain() {
            let age = now.saturating_duration_since(asked);
            match last_use(&name) {
                Some(mark) => known.push((mark.age(now).min(age), name, asked)),
                None => unknown.push((age, name, asked)),
            }
        }
        for (names, most) in [(&mut known, MAX_KNOWN), (&mut unknown, MAX_UNKNOWN)] {
            names.sort_unstable();
            names.truncate(most);
        }
        self.demanded.extend(known.into_iter().chain(unknown).map(|(_, name, asked)| (name, asked)));
        self.make_room_at = self.demanded.len().max(MAX_UNKNOWN) + SLACK;
    }

    /// A listener is held that goes by these names: the oldest of those that traffic has asked for are forgotten when they
    /// are too many. Whoever dials one again asks again.
    pub(crate) fn limit_aliases(&mut self, aliases: &[Arc<str>]) {
        if aliases.len() <= MAX_ALIASES {
            return;
        }
        let mut asked: Vec<_> =
            aliases.iter().filter_map(|alias| Some((*self.demanded.get(alias)?, alias))).collect();
        if asked.len() > MAX_ALIASES {
            asked.sort_unstable();
            for (_, alias) in &asked[..asked.len() - KEPT_ALIASES] {
                self.demanded.remove(*alias);
            }
        }
    }

    /// The resolver asks for a name. Returns whether that is news.
    pub(crate) fn demand_name(&mut self, name: Arc<str>, now: Instant) -> bool {
        if self.names.len() >= MAX_NAMES
            && !self.names.contains_key(&name)
            && let Some(oldest) = self.names.iter().min_by_key(|(_, at)| **at).map(|(name, _)| name.clone())
        {
            self.names.remove(&oldest);
        }
        self.names.insert(name, now).is_none()
    }

    /// Lets go of what has not been used for [`IDLE`], and says whether there was any. `last_use` gives the mark of a
    /// listener by any of its names.
    pub(crate) fn sweep(&mut self, now: Instant, last_use: impl Fn(&str) -> Option<Arc<LastUse>>) -> bool {
        let before = self.demanded.len() + self.names.len();
        self.names.retain(|_, asked| now.saturating_duration_since(*asked) < IDLE);
        self.demanded.retain(|name, asked| {
            let asked_ago = now.saturating_duration_since(*asked);
            let used_ago = last_use(name).map_or(asked_ago, |mark| mark.age(now).min(asked_ago));
            used_ago < IDLE
        });
        self.demanded.len() + self.names.len() < before
    }

    /// The names under which listeners were asked for by traffic.
    pub(crate) fn demanded(&self) -> impl Iterator<Item = &Arc<str>> {
        self.demanded.keys()
    }

    /// The names that the resolver asked for.
    pub(crate) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.keys()
    }

    /// The names of all listeners that are needed, as they were asked for.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = &Arc<str>> {
        self.fixed.iter().chain(self.demanded.keys())
    }

    /// Whether everything without which the sidecar is not ready has been answered.
    pub(crate) fn inbound_settled(&self, is_settled: impl Fn(&str) -> bool) -> bool {
        self.inbound.iter().all(|name| is_settled(name))
    }

    /// All that is needed, as far as it is known yet. `in_force` are clusters that are still used by versions of listeners
    /// that wait for their successors.
    pub(crate) fn wanted(&self, cache: &Cache, in_force: impl Iterator<Item = Arc<str>>) -> Names {
        let mut wanted = Names::default();
        wanted[Kind::Secret] = self.secrets.clone();
        wanted[Kind::Dns] = self.names.keys().cloned().collect();
        wanted[Kind::Listener] = self.listeners().cloned().collect();
        for name in self.listeners() {
            if let Some((_, listener)) = cache.listener(name) {
                let needs = listener.needs(cache);
                wanted[Kind::Route].extend(needs.routes);
                wanted[Kind::Cluster].extend(needs.clusters);
                wanted[Kind::Cluster].extend(needs.collectors);
            }
        }
        wanted[Kind::Cluster].extend(in_force);
        wanted[Kind::Cluster].retain(|name| !is_local(name));
        let assignments =
            wanted[Kind::Cluster].iter().filter_map(|name| match &cache.cluster(name)?.discovery {
                Discovery::Eds(assignment) => Some(Arc::from(assignment.as_str())),
                _ => None,
            });
        wanted[Kind::Endpoint] = assignments.collect();
        wanted
    }
}

/// Whether a cluster is the application behind this sidecar, which nobody else knows how to reach.
pub(crate) fn is_local(cluster: &str) -> bool {
    matches!(cluster.parse(), Ok(ClusterName::Inbound { .. }))
}

/// Whether all that a listener needs is there or known not to come, so that it may be put in force (gRFC A74).
/// `resolved` says whether a DNS cluster's names have been looked up.
pub(crate) fn is_settled(cache: &Cache, name: &str, resolved: impl Fn(&Discovery) -> bool) -> bool {
    let Some((_, listener)) = cache.listener(name) else { return false };
    let needs = listener.needs(cache);
    let cluster_settled = |name: &Arc<str>| match cache.cluster(name) {
        None => is_local(name) || cache.knowledge(Kind::Cluster, name) != Knowledge::Awaited,
        Some(cluster) => match &cluster.discovery {
            Discovery::Eds(assignment) => cache.knowledge(Kind::Endpoint, assignment) != Knowledge::Awaited,
            discovery => resolved(discovery),
        },
    };
    // Without its routes a listener would answer 404 to all: whoever asks waits, or is told that it is unavailable.
    needs
        .routes
        .iter()
        .all(|name| matches!(cache.knowledge(Kind::Route, name), Knowledge::Held | Knowledge::Absent))
        && needs.clusters.iter().all(cluster_settled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The interest of a sidecar that has just started and is configured with nothing.
    fn nothing() -> Interest {
        Interest {
            fixed: BTreeSet::new(),
            inbound: BTreeSet::new(),
            names: HashMap::new(),
            demanded: HashMap::new(),
            make_room_at: MAX_UNKNOWN + SLACK,
            secrets: BTreeSet::new(),
        }
    }

    #[test]
    fn an_application_that_tries_every_address_pushes_nothing_out_that_is_in_use() {
        let mut interest = nothing();
        let (start, mark) = (Instant::now(), Arc::new(LastUse::default()));
        let in_use = |name: &str| name.starts_with("used").then(|| Arc::clone(&mark));
        for service in 0..100 {
            assert!(interest.demand(format!("used-{service}:80").into(), start, in_use));
        }
        let ask = |n: u32| Arc::from(format!("10.{}.{}.{}:80", n >> 16, (n >> 8) & 255, n & 255));
        for n in 0..100_000 {
            let now = start + Duration::from_millis(n.into());
            interest.demand(ask(n), now, in_use);
            // Those that may still wait for their answer.
            assert!(interest.demanded.contains_key(&ask(n.saturating_sub(2048))), "{n}");
            assert!(interest.demanded.len() <= 100 + MAX_UNKNOWN + SLACK, "{}", interest.demanded.len());
        }
        assert_eq!(interest.demanded.keys().filter(|name| name.starts_with("used")).count(), 100);
    }

    #[test]
    fn an_application_that_dials_every_port_of_an_address_is_remembered_by_the_last_ones() {
        let mut interest = nothing();
        let (start, mark) = (Instant::now(), Arc::new(LastUse::default()));
        let other: Arc<str> = "cart.shop:80".into();
        interest.demand(other.clone(), start, |_| None);
        let port = |port: u16| Arc::<str>::from(format!("10.0.0.1:{port}"));
        for number in 1..=20_000 {
            let now = start + Duration::from_millis(number.into());
            interest.demand(port(number), now, |_| Some(Arc::clone(&mark)));
            // The control plane's answer names all by which the listener was asked for.
            let aliases: Vec<_> =
                interest.demanded.keys().filter(|name| name.starts_with("10.")).cloned().collect();
            interest.limit_aliases(&aliases);
            assert!(interest.demanded.len() <= MAX_ALIASES + 1, "{}", interest.demanded.len());
            // Those that may still wait for their answer.
            assert!(interest.demanded.contains_key(&port(number.saturating_sub(255).max(1))), "{number}");
        }
        assert!(
            interest.demanded.contains_key(&other),
            "another listener's names have nothing to do with it"
        );
    }
}

//! Whether what an object asks for is in force everywhere: the condition `Programmed`.
//!
//! In: the resources that the object has a part in, and how far each connected proxy is ([`Standing`]). Out: a condition.
//! True only when each proxy that holds one of those resources has acknowledged its last version; a rejection is shown
//! with the proxy's own words. Pure: what is not known here (a proxy that is not connected) does not count.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tulle_mesh::xds::Kind;

use crate::world::{Affected, Condition};

/// The condition's type on a policy (GEP-713).
pub const PROGRAMMED: &str = "Programmed";

/// The condition's type on a route, for which the Gateway API has none.
pub const ROUTE_PROGRAMMED: &str = "tulle.dev/Programmed";

/// How far a proxy is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// What it calls itself.
    pub node: String,
    /// Its namespace, as it proved.
    pub namespace: String,
    /// The last change that it was sent all of.
    pub seen: u64,
    /// What was sent and is not answered yet.
    pub unanswered: Vec<(Kind, Arc<str>)>,
    /// What it rejects, and why.
    pub rejected: Vec<(Kind, Arc<str>, String)>,
}

/// How far all connected proxies are, by resource.
#[derive(Debug, Default)]
pub struct Progress<'a> {
    standings: &'a [Standing],
    /// How many have not been sent the last change yet.
    behind: usize,
    unanswered: HashMap<(Kind, &'a str), Vec<usize>>,
    rejected: HashMap<(Kind, &'a str), Vec<(usize, &'a str)>>,
}

impl<'a> Progress<'a> {
    /// Sorts what is known of proxies. `published`: the last change.
    pub fn new(standings: &'a [Standing], published: u64) -> Self {
        let mut progress = Self { standings, ..Self::default() };
        for (at, standing) in standings.iter().enumerate() {
            progress.behind += usize::from(standing.seen < published);
            for (kind, name) in &standing.unanswered {
                progress.unanswered.entry((*kind, name)).or_default().push(at);
            }
            for (kind, name, reason) in &standing.rejected {
                progress.rejected.entry((*kind, name)).or_default().push((at, reason));
            }
        }
        progress
    }

    /// The condition of an object that has a part in these resources.
    pub fn condition(&self, kind: &'static str, affected: &BTreeSet<Affected>) -> Condition {
        let failed = |reason, message| Condition { kind, status: false, reason, message };
        let mut rejections = Vec::new();
        let mut waiting = BTreeSet::new();
        for resource in affected {
            let key = (resource.kind, &*resource.name);
            let meant = |at: &usize| {
                let clients = resource.clients.as_deref();
                clients.is_none_or(|namespace| self.standings[*at].namespace == namespace)
            };
            let rejected = self.rejected.get(&key).into_iter().flatten().filter(|(at, _)| meant(at));
            rejections.extend(rejected.map(|(at, reason)| (*at, resource, *reason)));
            waiting.extend(self.unanswered.get(&key).into_iter().flatten().copied().filter(meant));
        }
        if let Some((at, resource, reason)) = rejections.first() {
            let proxies: BTreeSet<_> = rejections.iter().map(|(at, ..)| at).collect();
            let others = match proxies.len() - 1 {
                0 => String::new(),
                others => format!(" (and {others} more)"),
            };
            let standing = &self.standings[*at];
            let message =
                format!("{}{others} rejects {} {:?}: {reason}", standing.node, resource.kind, resource.name);
            return failed("PartiallyProgrammed", message);
        }
        if self.behind > 0 || !waiting.is_empty() {
            // Whoever is behind may be waited for as well: the larger number is no less than the truth.
            let count = self.behind.max(waiting.len());
            let message = match count {
                1 => "1 connected sidecar has not acknowledged it yet".to_owned(),
                count => format!("{count} connected sidecars have not acknowledged it yet"),
            };
            return failed("Reconciling", message);
        }
        Condition { kind, status: true, reason: PROGRAMMED, message: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(kind: Kind, name: &str, clients: Option<&str>) -> Affected {
        Affected { kind, name: name.into(), clients: clients.map(Into::into) }
    }

    fn standing(node: &str, namespace: &str) -> Standing {
        Standing { node: node.into(), namespace: namespace.into(), seen: 7, ..Standing::default() }
    }

    fn said(standings: &[Standing], published: u64, affected: &[Affected]) -> (bool, &'static str, String) {
        let affected = affected.iter().cloned().collect();
        let condition = Progress::new(standings, published).condition(PROGRAMMED, &affected);
        (condition.status, condition.reason, condition.message)
    }

    #[test]
    fn true_once_every_proxy_has_been_sent_all_and_acknowledged_it() {
        let cart = [resource(Kind::Route, "cart", None)];
        assert_eq!(said(&[], 7, &cart), (true, "Programmed", String::new()), "nobody is connected");
        let mut proxy = standing("a", "shop");
        assert!(said(&[proxy.clone()], 7, &cart).0);
        let behind = said(&[proxy.clone()], 8, &cart);
        assert_eq!(behind, (false, "Reconciling", "1 connected sidecar has not acknowledged it yet".into()));
        proxy.unanswered = vec![(Kind::Route, "cart".into()), (Kind::Cluster, "other".into())];
        assert_eq!(said(&[proxy.clone(), standing("b", "shop")], 7, &cart).1, "Reconciling");
        let other = [resource(Kind::Listener, "cart", None)];
        assert!(said(&[proxy.clone()], 7, &other).0, "of what it waits for, nothing is the object's");
        let two = said(&[proxy.clone(), proxy], 7, &cart);
        assert_eq!(two.2, "2 connected sidecars have not acknowledged it yet");
    }

    #[test]
    fn a_rejection_is_shown_with_the_sidecar_s_own_words() {
        let cart = [resource(Kind::Route, "cart", None)];
        let mut proxy = standing("cart-1", "shop");
        proxy.rejected = vec![(Kind::Route, "cart".into(), "no such regex".into())];
        let (status, reason, message) = said(&[proxy.clone()], 9, &cart);
        assert_eq!((status, reason), (false, "PartiallyProgrammed"));
        assert_eq!(message, "cart-1 rejects route configuration \"cart\": no such regex");
        let more = said(&[standing("a", "b"), proxy.clone(), proxy], 7, &cart).2;
        assert!(more.starts_with("cart-1 (and 1 more) rejects"), "{more}");
    }

    #[test]
    fn what_only_one_namespace_has_is_not_asked_of_others() {
        let consumer = [resource(Kind::Listener, "cart:80", Some("readers"))];
        let mut proxy = standing("a", "shop");
        proxy.rejected = vec![(Kind::Listener, "cart:80".into(), "no".into())];
        assert!(said(&[proxy.clone()], 7, &consumer).0, "its listener of that name is another one");
        proxy.namespace = "readers".into();
        assert!(!said(&[proxy], 7, &consumer).0);
    }
}

//! Whether what an object asks for is in force everywhere: the condition `Programmed`.
//!
//! In: the resources that the object has a part in, how far each connected proxy is ([`Standing`]), and what other replicas
//! say of theirs ([`Report`]). Out: a condition. True only when each proxy that holds one of those resources has
//! acknowledged its last version; a rejection is shown with the proxy's own words. Pure: what is not known here (a proxy
//! that is not connected) does not count.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tulle_mesh::xds::Kind;

use super::replicas::{Digests, Report};
use crate::source::ObjectRef;
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

/// What keeps an object from being in force everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What a proxy says against it.
    pub rejected: Option<String>,
    /// How many proxies have not answered yet.
    pub waiting: usize,
    /// A replica that has not said that it knows the object as it is now.
    pub unknown_to: Option<String>,
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

    /// How many proxies have not been sent the last change yet.
    pub fn behind(&self) -> usize {
        self.behind
    }

    /// What those who were sent all say of these resources.
    pub fn outcome(&self, affected: &BTreeSet<Affected>) -> Outcome {
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
        let rejected = rejections.first().map(|(at, resource, reason)| {
            let proxies: BTreeSet<_> = rejections.iter().map(|(at, ..)| at).collect();
            let others = match proxies.len() - 1 {
                0 => String::new(),
                others => format!(" (and {others} more)"),
            };
            let standing = &self.standings[*at];
            format!("{}{others} rejects {} {:?}: {reason}", standing.node, resource.kind, resource.name)
        });
        Outcome { rejected, waiting: waiting.len(), unknown_to: None }
    }

    /// The condition of an object that has a part in these resources. `known`: what is known here of all objects, as
    /// `others` (by the name of the replica) say it of theirs.
    pub fn condition(
        &self,
        kind: &'static str,
        object: &ObjectRef,
        affected: &BTreeSet<Affected>,
        known: &Digests,
        others: &[(String, Arc<Report>)],
    ) -> Condition {
        let mut outcome = self.outcome(affected);
        // Whoever is behind may be waited for as well: the larger number is no less than the truth.
        outcome.waiting = outcome.waiting.max(self.behind);
        for (replica, report) in others {
            outcome.add(report.outcome(replica, object, known));
        }
        outcome.condition(kind)
    }
}

impl Outcome {
    /// Adds what another replica says.
    fn add(&mut self, other: Self) {
        self.waiting += other.waiting;
        self.rejected = self.rejected.take().or(other.rejected);
        self.unknown_to = self.unknown_to.take().or(other.unknown_to);
    }

    fn condition(self, kind: &'static str) -> Condition {
        let failed = |reason, message| Condition { kind, status: false, reason, message };
        match self {
            Self { rejected: Some(message), .. } => failed("PartiallyProgrammed", message),
            Self { waiting: 0, unknown_to: None, .. } => {
                Condition { kind, status: true, reason: PROGRAMMED, message: String::new() }
            }
            Self { waiting: 0, unknown_to: Some(replica), .. } => failed(
                "Reconciling",
                format!("the control plane {replica} has not said yet that its sidecars have it"),
            ),
            Self { waiting: 1, .. } => {
                failed("Reconciling", "1 connected sidecar has not acknowledged it yet".into())
            }
            Self { waiting, .. } => {
                failed("Reconciling", format!("{waiting} connected sidecars have not acknowledged it yet"))
            }
        }
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
        said_with(standings, published, affected, &[])
    }

    fn said_with(
        standings: &[Standing],
        published: u64,
        affected: &[Affected],
        others: &[(String, Arc<Report>)],
    ) -> (bool, &'static str, String) {
        let affected = affected.iter().cloned().collect();
        let progress = Progress::new(standings, published);
        let condition = progress.condition(PROGRAMMED, &cart(), &affected, &known(1), others);
        (condition.status, condition.reason, condition.message)
    }

    fn cart() -> ObjectRef {
        ObjectRef { kind: "HTTPRoute", namespace: "shop".into(), name: "cart".into() }
    }

    fn known(generation: i64) -> Digests {
        let mut digests = Digests::default();
        digests.add(&cart(), &generation);
        digests
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

    #[test]
    fn what_other_replicas_say_counts_as_well() {
        let cart_route = [resource(Kind::Route, "cart", None)];
        let said = |reports: Vec<Report>| {
            let others: Vec<_> =
                (1..).map(|at| format!("r{at}")).zip(reports.into_iter().map(Arc::new)).collect();
            said_with(&[standing("a", "shop")], 7, &cart_route, &others)
        };
        let fine = || Report::new(known(1), 0);
        assert_eq!(said(vec![fine(), fine()]), (true, "Programmed", String::new()));
        let older = said(vec![fine(), Report::new(known(0), 0)]);
        assert_eq!(older.1, "Reconciling");
        assert!(older.2.contains("r2"), "{older:?}");
        assert_eq!(said(vec![Report::default()]).1, "Reconciling", "it has said nothing");
        let mut waits = fine();
        waits.add(&cart(), Outcome { waiting: 2, ..Outcome::default() });
        let behind = Report::new(known(1), 1);
        assert_eq!(said(vec![waits, behind]).2, "3 connected sidecars have not acknowledged it yet");
        let mut refuses = fine();
        refuses.add(&cart(), Outcome { rejected: Some("cart-7 rejects it".into()), ..Outcome::default() });
        assert_eq!(
            said(vec![Report::new(known(0), 3), refuses]),
            (false, "PartiallyProgrammed", "cart-7 rejects it".into())
        );
    }
}

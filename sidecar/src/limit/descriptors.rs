//! Descriptors: which buckets of a limit a request takes from, by what its route says of it.
//!
//! In: the rules of a route, and a request. Out: the buckets whose entries are those that the rules make, the slowest first. Nothing
//! of it runs for limits without descriptors.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;

use ipnet::IpNet;
use smallvec::SmallVec;
use tulle_mesh::model::{HostRules, RateAction, RateDescriptors, RateLimitRule, RouteRateLimits};
use tulle_mesh::route::RequestView;

use super::bucket::{Pace, Table, hash};

/// What a request is told apart by.
pub(super) struct Asked<'a> {
    pub(super) view: &'a RequestView<'a>,
    /// The cluster that it goes to, where that is known.
    pub(super) cluster: Option<&'a str>,
    /// The client.
    pub(super) client: IpAddr,
}

/// What a route and its virtual host say.
#[derive(Clone, Copy, Default)]
pub(crate) struct Said<'a> {
    /// The route, where it forwards.
    pub(crate) route: Option<&'a RouteRateLimits>,
    /// Its virtual host.
    pub(crate) host: &'a [RateLimitRule],
}

impl<'a> Said<'a> {
    /// The rules that a limit sees.
    pub(super) fn rules(self, limit: &'a RateDescriptors) -> Vec<RateLimitRule> {
        if !limit.rules.is_empty() {
            return limit.rules.clone();
        }
        let Some(route) = self.route else { return Vec::new() };
        let of_host = match limit.of_host {
            _ if route.with_hosts => true,
            HostRules::Include => true,
            HostRules::Override => route.rules.is_empty(),
            HostRules::Ignore => false,
        };
        let host = self.host.iter().filter(|_| of_host);
        route.rules.iter().chain(host).filter(|rule| rule.stage == limit.stage).cloned().collect()
    }
}

/// The buckets of a limit for requests with descriptors.
pub(super) struct DescriptorBuckets {
    fixed: Vec<Fixed>,
    /// Those of `fixed` by the hash of their entries.
    by_entries: HashMap<u64, SmallVec<[usize; 1]>>,
    open: Vec<Open>,
    pub(super) and_default: bool,
}

struct Fixed {
    entries: Vec<(String, String)>,
    burst: u32,
    pace: Pace,
    bucket: AtomicU64,
}

/// One that leaves values open.
struct Open {
    entries: Vec<(String, String)>,
    burst: u32,
    pace: Pace,
    table: Table,
}

/// A bucket, with its pace and size.
#[derive(Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) burst: u32,
    pub(super) pace: Pace,
    pub(super) bucket: &'a AtomicU64,
}

/// The entries of a descriptor.
type Entries<'a> = SmallVec<[(&'a str, Cow<'a, str>); 4]>;

impl DescriptorBuckets {
    pub(super) fn new(model: &RateDescriptors, seed: u64) -> Self {
        let (mut fixed, mut open) = (Vec::new(), Vec::new());
        let mut by_entries: HashMap<u64, SmallVec<[usize; 1]>> = HashMap::new();
        for descriptor in &model.buckets {
            let entries = descriptor.entries.clone();
            let (burst, pace) = (descriptor.bucket.burst, Pace::of(descriptor.bucket));
            if entries.iter().any(|(_, value)| value.is_empty()) {
                let places = usize::try_from(model.most_open).unwrap_or(usize::MAX).min(MOST_PLACES);
                open.push(Open { entries, burst, pace, table: Table::new(seed, places, PROBES) });
            } else {
                let parts = entries.iter().flat_map(|(key, value)| [key.as_str(), value]);
                by_entries.entry(hash(0, parts)).or_default().push(fixed.len());
                fixed.push(Fixed { entries, burst, pace, bucket: AtomicU64::new(0) });
            }
        }
        Self { fixed, by_entries, open, and_default: model.and_default }
    }

    /// The buckets of a request, the slowest first.
    pub(super) fn find(
        &self,
        rules: &[RateLimitRule],
        asked: &Asked<'_>,
        now: u64,
    ) -> SmallVec<[Found<'_>; 4]> {
        let descriptors = rules.iter().filter_map(|rule| entries(rule, asked));
        let mut found: SmallVec<[Found<'_>; 4]> =
            descriptors.filter_map(|entries| self.bucket(&entries, now)).collect();
        // Who is refused by the slowest has not taken from the others.
        found.sort_by_key(|found| std::cmp::Reverse(found.pace.token));
        found
    }

    fn bucket(&self, entries: &Entries<'_>, now: u64) -> Option<Found<'_>> {
        let parts = || entries.iter().flat_map(|(key, value)| [*key, &**value]);
        let same = |own: &[(String, String)]| {
            own.len() == entries.len()
                && own.iter().zip(entries).all(|((key, value), (other, said))| {
                    key == other && (value.is_empty() || value.as_str() == said)
                })
        };
        let fixed = self.by_entries.get(&hash(0, parts())).into_iter().flatten();
        let fixed = fixed.map(|index| &self.fixed[*index]).find(|fixed| same(&fixed.entries));
        if let Some(Fixed { burst, pace, bucket, .. }) = fixed {
            return Some(Found { burst: *burst, pace: *pace, bucket });
        }
        let open = self.open.iter().find(|open| same(&open.entries))?;
        Some(Found { burst: open.burst, pace: open.pace, bucket: open.table.bucket(parts(), now) })
    }
}

/// More buckets for open values than this are never held.
const MOST_PLACES: usize = 65_536;
/// In how many places the bucket of a value may be; a table of no more has room for as many values as it has places.
const PROBES: usize = 64;

/// The descriptor that a rule makes of a request.
fn entries<'a>(rule: &'a RateLimitRule, asked: &Asked<'a>) -> Option<Entries<'a>> {
    let view = asked.view;
    let mut entries = Entries::new();
    for action in &rule.actions {
        let entry = match action {
            // Where limits are compiled, the sidecar's own cluster is put in its place.
            RateAction::SourceCluster => return None,
            RateAction::DestinationCluster => Some(("destination_cluster", Cow::Borrowed(asked.cluster?))),
            RateAction::RemoteAddress => Some(("remote_address", asked.client.to_string().into())),
            RateAction::MaskedRemoteAddress { v4, v6 } => {
                let length = if asked.client.is_ipv4() { *v4 } else { *v6 };
                let network = IpNet::new(asked.client, length).ok()?.trunc();
                Some(("masked_remote_address", network.to_string().into()))
            }
            RateAction::GenericKey { key, value } => Some((key.as_str(), value.into())),
            RateAction::Header { name, key, optional } => match view.values(name).next() {
                Some(value) => Some((key.as_str(), value)),
                None if *optional => None,
                None => return None,
            },
            RateAction::Query { name, key, optional } => match view.query_value(name) {
                Some(value) => Some((key.as_str(), value)),
                None if *optional => None,
                None => return None,
            },
            RateAction::HeadersMatch { key, value, expect, headers } => {
                let met = headers.iter().all(|condition| condition.matches(view.values(&condition.name)));
                (met == *expect).then_some(())?;
                Some((key.as_str(), value.into()))
            }
            RateAction::QueryMatches { key, value, expect, query } => {
                let met = query
                    .iter()
                    .all(|condition| condition.matches(view.query_value(&condition.name).as_deref()));
                (met == *expect).then_some(())?;
                Some((key.as_str(), value.into()))
            }
        };
        entries.extend(entry);
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, Method};
    use std::time::Duration;
    use tulle_mesh::model::{DescriptorBucket, TokenBucket};

    fn model(buckets: &[&[(&str, &str)]], most_open: u32) -> RateDescriptors {
        let bucket = TokenBucket { burst: 1, tokens_per_fill: 1, fill_interval: Duration::from_secs(60) };
        let owned = |entries: &&[(&str, &str)]| DescriptorBucket {
            entries: entries.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            bucket,
        };
        RateDescriptors {
            buckets: buckets.iter().map(owned).collect(),
            rules: Vec::new(),
            stage: 0,
            of_host: HostRules::default(),
            most_open,
            and_default: true,
        }
    }

    fn rule(actions: &[RateAction]) -> RateLimitRule {
        RateLimitRule { stage: 0, actions: actions.to_vec() }
    }

    fn header(optional: bool) -> RateAction {
        RateAction::Header { name: "x-user".into(), key: "user".into(), optional }
    }

    fn found(buckets: &DescriptorBuckets, rules: &[RateLimitRule], user: Option<&str>) -> Vec<usize> {
        let headers: HeaderMap =
            user.into_iter().map(|user| ("x-user".parse().unwrap(), user.parse().unwrap())).collect();
        let view = RequestView::new(&Method::GET, "h", "/?q=1", &headers);
        let asked = Asked { view: &view, cluster: Some("c"), client: "10.1.2.3".parse().unwrap() };
        let found = buckets.find(rules, &asked, 0);
        let taken = found.iter().map(|found| {
            // A full bucket is nobody's.
            let _ = found.pace.take(found.bucket, 0);
            std::ptr::from_ref(found.bucket) as usize
        });
        taken.collect()
    }

    #[test]
    fn a_descriptor_is_its_entries_in_their_order() {
        let generic = |key: &str| RateAction::GenericKey { key: key.into(), value: "v".into() };
        let model = model(&[&[("a", "v"), ("b", "v")], &[("b", "v")]], 1);
        let buckets = DescriptorBuckets::new(&model, 1);
        assert_eq!(found(&buckets, &[rule(&[generic("a"), generic("b")])], None).len(), 1);
        assert_eq!(found(&buckets, &[rule(&[generic("b"), generic("a")])], None).len(), 0);
        assert_eq!(found(&buckets, &[rule(&[generic("b")]), rule(&[generic("c")])], None).len(), 1);
        let with_header = |optional| [rule(&[header(optional), generic("b")])];
        assert_eq!(found(&buckets, &with_header(true), None).len(), 1, "just no entry");
        assert_eq!(found(&buckets, &with_header(false), None).len(), 0, "no descriptor");
    }

    #[test]
    fn what_the_client_is_makes_entries() {
        let model = model(
            &[
                &[("remote_address", "10.1.2.3")],
                &[("masked_remote_address", "10.1.0.0/16")],
                &[("destination_cluster", "c"), ("q", "1")],
            ],
            1,
        );
        let buckets = DescriptorBuckets::new(&model, 1);
        let query = RateAction::Query { name: "q".into(), key: "q".into(), optional: false };
        let rules = [
            rule(&[RateAction::RemoteAddress]),
            rule(&[RateAction::MaskedRemoteAddress { v4: 16, v6: 64 }]),
            rule(&[RateAction::DestinationCluster, query]),
        ];
        assert_eq!(found(&buckets, &rules, None).len(), 3);
    }

    #[test]
    fn open_values_have_buckets_of_their_own_within_bounds() {
        let model = model(&[&[("user", "")], &[("user", "root")]], 2);
        let buckets = DescriptorBuckets::new(&model, 1);
        let rules = [rule(&[header(false)])];
        let of = |user: &str| found(&buckets, &rules, Some(user));
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
        assert!(of("root") != of("a") && of("root") != of("b"), "its own bucket");
        let mut all: Vec<_> = (0..100).flat_map(|n| of(&n.to_string())).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn of_hosts_rules_those_count_that_are_wanted() {
        let mut limit = model(&[&[("a", "v")]], 1);
        let own = [rule(&[header(false)])];
        let host = [rule(&[RateAction::RemoteAddress]), RateLimitRule { stage: 1, ..rule(&[header(true)]) }];
        let count = |limit: &RateDescriptors, rules: &[RateLimitRule], with_hosts| {
            let route = RouteRateLimits { rules: rules.to_vec(), with_hosts };
            Said { route: Some(&route), host: &host }.rules(limit).len()
        };
        assert_eq!((count(&limit, &own, false), count(&limit, &[], false)), (1, 1));
        assert_eq!(count(&limit, &own, true), 2);
        limit.of_host = HostRules::Ignore;
        assert_eq!((count(&limit, &[], false), count(&limit, &[], true)), (0, 1));
        limit.of_host = HostRules::Include;
        assert_eq!(count(&limit, &own, false), 2);
        limit.stage = 1;
        assert_eq!(count(&limit, &own, false), 1);
        limit.rules = own.to_vec();
        assert_eq!(count(&limit, &[], true), 1);
        assert_eq!(Said::default().rules(&model(&[&[("a", "v")]], 1)).len(), 0);
    }
}

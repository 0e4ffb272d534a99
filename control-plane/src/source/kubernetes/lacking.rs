//! What a cluster lacks of the kinds that Tulle reads: the warnings for its operator.
//!
//! In: which kinds are there, and the releases of their definitions. Out: a warning for each group of kinds that is absent,
//! or served in no version that is read, or whose definitions are of another release: an API server drops fields that
//! those lack when an object is applied, so that nobody else would ever say so. The rest is served all the same. Pure.

use std::collections::BTreeMap;

use super::crds::Definitions;
use super::is_custom;
use super::mirror::{Absence, Standing, Standings};
use super::reflect::{definition, resource};
use crate::kinds;
use crate::source::{Kind, KindVisitor, Objects, Problem, Severity};

/// The first release of the Gateway API whose kinds have all that Tulle reads.
pub const GATEWAY_RELEASE: (u32, u32) = (1, 5);

/// What is the matter with a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lack {
    Absent(Absence),
    OtherRelease,
}

/// A warning for each group of kinds of which something is the matter. Without `definitions` their releases are not judged.
pub(super) fn lacking(kinds: &Standings, definitions: Option<&Definitions>) -> Vec<Problem> {
    let mut groups = Groups { kinds, definitions, lacks: BTreeMap::new() };
    Objects::visit_kinds(&mut groups);
    groups.lacks.into_iter().map(|((group, lack), kinds)| problem(group, lack, &kinds.join(", "))).collect()
}

struct Groups<'a> {
    kinds: &'a Standings,
    definitions: Option<&'a Definitions>,
    /// The kinds, by their group and what is the matter with them.
    lacks: BTreeMap<(&'static str, Lack), Vec<String>>,
}

impl KindVisitor for Groups<'_> {
    fn visit<T: Kind>(&mut self) {
        if !is_custom::<T>() {
            return;
        }
        let (lack, name) = match self.kinds.get(T::KIND) {
            Some(Standing::Absent(absence)) => (Lack::Absent(*absence), T::KIND.into()),
            Some(Standing::Listed) => {
                let name = definition(&resource::<T>(T::VERSIONS.first().copied().unwrap_or_default()));
                let Some(release) = self.definitions.and_then(|all| all.get(&name)) else { return };
                let release = release.as_deref();
                let named = match T::GROUP {
                    kinds::GROUP if release == kinds::schema_digest(&name) => return,
                    kinds::GROUP => T::KIND.into(),
                    _ if release.is_some_and(has_all) => return,
                    _ => format!("{} ({})", T::KIND, release.unwrap_or("of no known release")),
                };
                (Lack::OtherRelease, named)
            }
            _ => return,
        };
        self.lacks.entry((T::GROUP, lack)).or_default().push(name);
    }
}

/// Whether a release of the Gateway API has all that Tulle reads. Those of its developers (`v0.0.0-dev`) count as the newest.
pub fn has_all(release: &str) -> bool {
    let mut numbers = release.trim_start_matches('v').split(['.', '-']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(0)), Some(Ok(0))) => true,
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= GATEWAY_RELEASE,
        _ => false,
    }
}

fn problem(group: &str, lack: Lack, kinds: &str) -> Problem {
    let (major, minor) = GATEWAY_RELEASE;
    let reason = match lack {
        Lack::Absent(Absence::NotInstalled) => format!("the cluster does not have {kinds}"),
        Lack::Absent(Absence::OtherVersions) => {
            format!("the cluster serves no version that is read here of {kinds}")
        }
        Lack::OtherRelease if group == kinds::GROUP => {
            format!(
                "the cluster's definitions of {kinds} are not those of this version of Tulle: fields that they \
                 lack are lost when objects are applied"
            )
        }
        Lack::OtherRelease => {
            format!(
                "the cluster's definitions of {kinds} are older than v{major}.{minor}: fields that they lack are \
                 lost when objects are applied"
            )
        }
    };
    let fix = match group {
        kinds::GROUP => "apply manifests/crds".into(),
        _ => {
            format!("install the CustomResourceDefinitions of {group}, version {major}.{minor} or later")
        }
    };
    Problem::new(Severity::Warning, reason, format!("{fix}; they are taken up without a restart"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_told_from_each_other() {
        for (release, all) in [
            ("v1.5.0", true),
            ("v1.6.1", true),
            ("v2.0.0-rc.1", true),
            ("v1.10.0", true),
            ("v0.0.0-dev", true),
            ("v1.4.1", false),
            ("v0.8.1", false),
            ("latest", false),
            ("", false),
        ] {
            assert_eq!(has_all(release), all, "{release}");
        }
    }

    #[test]
    fn definitions_of_another_release_are_told_and_those_of_this_one_are_not() {
        let kinds = Standings::from([
            ("HTTPRoute", Standing::Listed),
            ("GRPCRoute", Standing::Listed),
            ("Workload", Standing::Listed),
            ("InboundPolicy", Standing::Listed),
            ("TCPRoute", Standing::Unknown),
        ]);
        let mut definitions = Definitions::from([
            ("httproutes.gateway.networking.k8s.io".into(), Some("v0.8.1".into())),
            ("grpcroutes.gateway.networking.k8s.io".into(), None),
            ("workloads.tulle.dev".into(), kinds::schema_digest("workloads.tulle.dev").map(Into::into)),
            ("inboundpolicies.tulle.dev".into(), None),
        ]);
        let reasons = |definitions: Option<&Definitions>| {
            lacking(&kinds, definitions).into_iter().map(|problem| problem.reason).collect::<Vec<_>>()
        };
        assert!(reasons(None).is_empty());
        let told = reasons(Some(&definitions));
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told[0].contains("HTTPRoute (v0.8.1), GRPCRoute (of no known release) are older than v1.5"),
            "{told:?}"
        );
        assert!(told[1].contains("of InboundPolicy are not those of this version"), "{told:?}");
        for (name, release) in &mut definitions {
            *release = kinds::schema_digest(name).map_or(Some("v1.6.1".into()), |digest| Some(digest.into()));
        }
        assert!(reasons(Some(&definitions)).is_empty());
    }
}

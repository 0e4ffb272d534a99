//! Which filters the requests of a route pass: those of the listener, in their order, each as the nearest to the request that
//! speaks of it wants it.

use std::mem::discriminant;
use std::sync::Arc;

use crate::model::{
    AdaptiveConcurrency, Authorization, Cors, Fault, FilterOverride, FilterSettings, HttpFilter,
    LocalRateLimit,
};

/// A filter that requests pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step<'a> {
    /// Allow, deny or audit.
    Authorization(&'a Authorization),
    /// A limit on the rate of requests.
    LocalRateLimit(&'a LocalRateLimit),
    /// A limit on concurrent requests.
    AdaptiveConcurrency(&'a AdaptiveConcurrency),
    /// Injected delay and failure.
    Fault(&'a Fault),
    /// Which pages of other origins may use what is asked for.
    Cors(&'a Cors),
}

/// The steps of `filters`, with who has put each in the place of the listener's own. `said` is what is said of them, the nearest
/// to the request first: by its backend, then by its route.
pub fn steps<'a>(
    filters: &'a [HttpFilter],
    said: &[&'a [Arc<FilterOverride>]],
) -> Vec<(Step<'a>, Option<&'a Arc<FilterOverride>>)> {
    let mut steps = Vec::with_capacity(filters.len());
    for filter in filters {
        let own = match filter {
            HttpFilter::Authorization(set) => Step::Authorization(set),
            HttpFilter::LocalRateLimit(limit) => Step::LocalRateLimit(limit),
            HttpFilter::AdaptiveConcurrency(limit) => Step::AdaptiveConcurrency(limit),
            // The routes say all of them, and they change nothing on a request's way to its route.
            HttpFilter::Sessions => continue,
            HttpFilter::Replaceable(filter) => {
                let by = said.iter().flat_map(|said| *said).find(|other| other.filter == filter.name);
                let (settings, by) = match by.map(|by| &by.settings) {
                    None => ((!filter.disabled).then_some(&filter.settings), None),
                    Some(None) => (None, by),
                    Some(Some(said)) if discriminant(said) == discriminant(&filter.settings) => {
                        (Some(said), by)
                    }
                    // What is for another kind of filter switches this one on, and changes nothing of it (as in Envoy).
                    Some(Some(_)) => (Some(&filter.settings), None),
                };
                steps.extend(settings.into_iter().flat_map(of_settings).map(|step| (step, by)));
                continue;
            }
        };
        steps.push((own, None));
    }
    steps
}

fn of_settings(settings: &FilterSettings) -> Vec<Step<'_>> {
    match settings {
        FilterSettings::Authorization(sets) => sets.iter().map(Step::Authorization).collect(),
        FilterSettings::LocalRateLimit(limit) => limit.iter().map(Step::LocalRateLimit).collect(),
        FilterSettings::AdaptiveConcurrency(limit) => vec![Step::AdaptiveConcurrency(limit)],
        FilterSettings::Fault(fault) => {
            (*fault != Fault::default()).then_some(Step::Fault(fault)).into_iter().collect()
        }
        FilterSettings::Cors(rules) => rules.iter().map(Step::Cors).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Action, ReplaceableFilter};

    fn set(name: &str) -> Authorization {
        Authorization { name: name.into(), action: Action::Allow, policies: Vec::new(), audit_only: false }
    }

    fn replaceable(name: &str, disabled: bool) -> HttpFilter {
        let settings = FilterSettings::Authorization(vec![set(name)]);
        HttpFilter::Replaceable(ReplaceableFilter { name: name.into(), disabled, settings })
    }

    fn said(filter: &str, by: Option<&str>) -> Arc<FilterOverride> {
        let settings = by.map(|by| FilterSettings::Authorization(vec![set(by)]));
        Arc::new(FilterOverride { filter: filter.into(), settings })
    }

    #[test]
    fn the_nearest_to_the_request_has_the_say() {
        let filters =
            [HttpFilter::Authorization(set("fixed")), replaceable("a", false), replaceable("b", true)];
        let names = |said: &[&[Arc<FilterOverride>]]| -> Vec<(String, bool)> {
            let names = steps(&filters, said).into_iter().map(|(step, by)| match step {
                Step::Authorization(set) => (set.name.clone(), by.is_some()),
                other => panic!("{other:?}"),
            });
            names.collect()
        };
        let own = |name: &str| (name.to_owned(), false);
        let theirs = |name: &str| (name.to_owned(), true);
        assert_eq!(names(&[]), [own("fixed"), own("a")]);
        let route = [said("a", Some("route")), said("b", Some("route b")), said("fixed", None)];
        assert_eq!(names(&[&route]), [own("fixed"), theirs("route"), theirs("route b")]);
        let backend = [said("a", None)];
        assert_eq!(names(&[&backend, &route]), [own("fixed"), theirs("route b")]);
        assert_eq!(names(&[&[], &[]]), [own("fixed"), own("a")]);
        let other =
            Arc::new(FilterOverride { filter: "a".into(), settings: Some(FilterSettings::Cors(None)) });
        assert_eq!(names(&[&[other]]), [own("fixed"), own("a")], "it is for another kind of filter");
        let other = FilterOverride { filter: "b".into(), settings: Some(FilterSettings::Cors(None)) };
        let woken = [own("fixed"), own("a"), own("b")];
        assert_eq!(names(&[&[other.into()]]), woken, "it switches on what bears its name");
    }
}

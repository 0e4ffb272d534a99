//! Explanations against checks, and what is unclear against all that it could mean, on random policies.

use http::{HeaderMap, Method};
use proptest::prelude::*;

use super::{Asked, CART, below, header, not, passes, path, policy};
use crate::authorize::path::{Readings, readings};
use crate::authorize::{Authorizer, Verdict};
use crate::model::{Action, Authorization, Permission, Principal, StringMatch};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn an_explanation_says_what_the_check_did(sets in any_sets(), asked in any_asked()) {
        let authorizer = Authorizer::compile(sets.clone());
        let (verdict, record) = asked.with(|facts| {
            let verdict = match authorizer.check(facts) {
                Verdict::Allowed { by } => (true, None, by.map(String::from)),
                Verdict::Denied { set, by } => (false, Some(set.to_owned()), by.map(String::from)),
            };
            (verdict, authorizer.explain(facts))
        });
        prop_assert_eq!(&verdict, &(record.allowed, record.set.clone(), record.by.clone()));
        prop_assert_eq!(record.policies.len(), sets.iter().map(|set| set.policies.len()).sum::<usize>());

        // The verdict follows from how the policies came out.
        let matched = |set: &Authorization| {
            let mut policies = record.policies.iter().filter(|policy| policy.set == set.name);
            policies.find(|policy| policy.matched).map(|policy| policy.policy.clone())
        };
        let of = |action| sets.iter().filter(move |set| set.action == action && !set.audit_only);
        let refused = of(Action::Deny).find(|set| matched(set).is_some());
        let refused = refused.or_else(|| of(Action::Allow).find(|set| matched(set).is_none()));
        prop_assert_eq!(verdict.1, refused.map(|set| set.name.clone()));
        if let Some(set) = refused.filter(|set| set.action == Action::Allow) {
            prop_assert_eq!(record.nearest.is_some(), !set.policies.is_empty());
        }
        for policy in &record.policies {
            prop_assert_eq!(policy.matched, policy.failed.is_none());
        }

        // No audit set has a say in it.
        let enforced = sets.into_iter().filter(|set| set.action != Action::Audit && !set.audit_only);
        let enforced = Authorizer::compile(enforced.collect());
        prop_assert_eq!(asked.with(|facts| enforced.check(facts).is_allowed()), record.allowed);
    }

    #[test]
    fn what_is_unclear_passes_only_where_all_that_it_could_mean_does(
        permission in any_permission(),
        asked in any_asked(),
        method in prop::sample::select(vec![Method::GET, Method::PUT]),
    ) {
        for action in [Action::Allow, Action::Deny] {
            let unreadable = Asked { path: Some("/%00".into()), ..asked.clone() };
            let could_mean = [
                (&unreadable, asked.clone()),
                (&Asked::bytes(), Asked { method: method.clone(), ..asked.clone() }),
                (&asked, Asked { path: Some(lax(&asked)), ..asked.clone() }),
            ];
            for (unclear, meant) in could_mean.iter().filter(|(_, meant)| meant.path.is_some()) {
                let passes = |asked| passes(action, permission.clone(), asked);
                prop_assert!(!passes(unclear) || passes(meant), "{:?} {:?} as {:?}", action, unclear, meant);
            }
        }
    }
}

/// What a server reads that takes every slash for one and cuts parameters.
fn lax(asked: &Asked) -> String {
    match readings(asked.path.as_deref().unwrap_or_default()) {
        Readings::One(path) => path.into_owned(),
        Readings::Two { lax, .. } => lax,
        Readings::Unreadable => "/%00".into(),
    }
}

prop_compose! {
    fn any_sets()(
        sets in prop::collection::vec((
            prop::sample::select(vec![Action::Allow, Action::Deny, Action::Audit]),
            prop::bool::weighted(0.2),
            prop::collection::vec((any_permission(), any_principal()), 0..3),
        ), 0..5),
    ) -> Vec<Authorization> {
        let number = |(number, (action, audit_only, policies)): (usize, (_, _, Vec<_>))| Authorization {
            name: format!("s{number}"),
            action,
            policies: (0..)
                .zip(policies)
                .map(|(place, (permission, principal))| policy(&format!("p{place}"), permission, principal))
                .collect(),
            audit_only,
        };
        sets.into_iter().enumerate().map(number).collect()
    }
}

fn any_permission() -> impl Strategy<Value = Permission> {
    let leaf = prop_oneof![
        Just(Permission::Any),
        any_path().prop_map(|text| path(&text)),
        any_path().prop_map(|text| below(&text)),
        Just(Permission::Header(header(":method", "GET"))),
        Just(Permission::DestinationPort(8080)),
        Just(Permission::DestinationPort(1)),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Permission::And),
            prop::collection::vec(inner.clone(), 0..3).prop_map(Permission::Or),
            inner.prop_map(not),
        ]
    })
}

fn any_principal() -> impl Strategy<Value = Principal> {
    prop_oneof![
        3 => Just(Principal::Any),
        1 => Just(Principal::Authenticated(None)),
        1 => Just(Principal::Not(Box::new(Principal::Authenticated(Some(StringMatch::exact(CART)))))),
        1 => Just(Principal::UrlPath(StringMatch::prefix("/a"))),
    ]
}

fn any_path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["/a", "/b", "/..", "%2f", "/", ";x"]), 0..4)
        .prop_map(|parts| format!("/{}", parts.concat()))
}

fn any_asked() -> impl Strategy<Value = Asked> {
    (any::<bool>(), any::<bool>(), prop::option::weighted(0.8, any_path())).prop_map(|(known, get, path)| {
        Asked {
            tls: known,
            peer: known.then(|| CART.parse().unwrap()),
            method: if get { Method::GET } else { Method::PUT },
            path,
            headers: HeaderMap::new(),
        }
    })
}

//! The compiled table against a matcher that tries everything in turn, on random configurations and requests.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::model::{
    Domain, HeaderMatch, HeaderTest, PathMatch, PerMillion, QueryMatch, Regex, RouteConfiguration,
    RouteMatch, StringMatch, VirtualHost,
};
use crate::route::fixtures::{configuration, header, on, query, route};
use crate::route::{Lookup, Miss, Outcome, RequestView, RouteTable};

/// Texts that are close to each other, so that conditions overlap and nearly match.
const DOMAINS: [&str; 12] =
    ["*", "a.b", "a.b:80", "*.b", "*.a.b", "*b", "*.b:80", "a.*", "a.b.*", "c", "a*", "[::1]"];
const AUTHORITIES: [&str; 16] = [
    "a.b",
    "A.B",
    "a.b:80",
    "a.b:81",
    "x.b",
    "x.a.b",
    "x.b:80",
    "X.B:81",
    "a.b.c",
    "a.x",
    "b",
    "C:1",
    "[::1]:80",
    "d",
    "a.b.",
    "X.a.b.:80",
];
const PATHS: [&str; 14] =
    ["/", "", "/a", "/A", "/a/", "/a/b", "/A/b", "/ab", "/a/b/c", "/a/bc", "/a//b", "/b", "/b/a", "/a/b/"];

#[derive(Debug)]
struct Request {
    method: Method,
    authority: &'static str,
    target: String,
    headers: HeaderMap,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn the_table_answers_as_trying_everything_does(
        configuration in any_configuration(),
        request in any_request(),
        draws in prop::collection::vec(any::<u32>(), 1..4),
    ) {
        let table = RouteTable::compile(&configuration).unwrap();
        let Request { method, authority, target, headers } = &request;
        let view = RequestView::new(method, authority, target, headers);
        let cycle = || {
            let mut draws = draws.iter().copied().cycle();
            move || draws.next().unwrap()
        };

        let found = table.lookup(&view, cycle());
        let (host, number) = match linear(&configuration, &request, cycle()) {
            None => {
                prop_assert_eq!(found, Lookup::NoVirtualHost);
                let record = table.explain(&view, cycle());
                prop_assert_eq!(record.outcome, Outcome::NoVirtualHost);
                prop_assert!(!record.known_domains.is_empty() || configuration.virtual_hosts.is_empty());
                return Ok(());
            }
            Some(found) => found,
        };
        let record = table.explain(&view, cycle());
        prop_assert_eq!(&record.virtual_host.as_ref().unwrap().name, &host.name);
        match number {
            Some(number) => {
                let Lookup::Found(id) = found else {
                    return Err(TestCaseError::fail(format!("{found:?}, not route {number}")));
                };
                prop_assert_eq!(table.route(id), &host.routes[number]);
                prop_assert_eq!(table.virtual_host(id), host);
                prop_assert_eq!(record.outcome, Outcome::Found);
                prop_assert_eq!(record.matched.unwrap().index, number);
            }
            None => {
                prop_assert_eq!(found, Lookup::NoRoute);
                prop_assert_eq!(record.outcome, Outcome::NoRoute);
                prop_assert_eq!(record.matched, None);
            }
        }
        // Each other route has its reason, and only what stands behind the winner is shadowed.
        let others: Vec<usize> = (0..host.routes.len()).filter(|place| Some(*place) != number).collect();
        prop_assert_eq!(record.missed.iter().map(|miss| miss.route.index).collect::<Vec<_>>(), others);
        for miss in &record.missed {
            let shadowed = matches!(miss.reason, Miss::Shadowed { .. });
            let holds = meets(&host.routes[miss.route.index].matches, &request);
            prop_assert_eq!(shadowed, holds && number.is_some_and(|number| number < miss.route.index));
        }
    }
}

/// The virtual host and the place of the route in it, found without any of the table's code.
fn linear<'c>(
    configuration: &'c RouteConfiguration,
    request: &Request,
    mut draw: impl FnMut() -> u32,
) -> Option<(&'c VirtualHost, Option<usize>)> {
    let given = request.authority.to_ascii_lowercase();
    let bare = given.trim_end_matches(|c: char| c.is_ascii_digit()).strip_suffix(':').unwrap_or(&given);
    let relative = bare.strip_suffix('.').unwrap_or(bare);
    // Kind of domain, as given or without the port or without a dot, length: the least is the best.
    let rank = |domain: &Domain| {
        let fits = |host: &str| match domain {
            Domain::Exact(text) => (host == text).then_some((0, text.len())),
            Domain::Suffix(text) => {
                (host.ends_with(text.as_str()) && host.len() > text.len()).then_some((1, text.len()))
            }
            Domain::Prefix(text) => {
                (host.starts_with(text.as_str()) && host.len() > text.len()).then_some((2, text.len()))
            }
            Domain::Any => Some((3, 0)),
        };
        let tries = [&given, bare, relative].map(fits);
        (0..).zip(tries).filter_map(|(form, fit)| fit.map(|(kind, len)| (kind, form, usize::MAX - len))).min()
    };
    let hosts = configuration.virtual_hosts.iter();
    let ranked = hosts.filter_map(|host| Some((host.domains.iter().filter_map(rank).min()?, host)));
    let (_, host) = ranked.min_by_key(|(rank, _)| *rank)?;
    let number = host.routes.iter().position(|route| {
        meets(&route.matches, request) && route.matches.fraction.is_none_or(|fraction| fraction.hit(draw()))
    });
    Some((host, number))
}

fn meets(rule: &RouteMatch, request: &Request) -> bool {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let fold = |text: &str| if rule.case_sensitive { text.into() } else { text.to_ascii_lowercase() };
    let path_meets = match &rule.path {
        PathMatch::Exact(text) => fold(path) == fold(text),
        PathMatch::Prefix(text) => fold(path).starts_with(&fold(text)),
        PathMatch::Segments(text) => {
            fold(path) == fold(text) || fold(path).starts_with(&format!("{}/", fold(text)))
        }
        PathMatch::Regex(regex) => regex.matches(path),
    };
    let values = |name: &str| -> Vec<&str> {
        match name {
            ":method" => vec![request.method.as_str()],
            _ => request.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect(),
        }
    };
    let pairs: Vec<(&str, &str)> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    path_meets
        && (!rule.grpc || values("content-type").contains(&"application/grpc"))
        && rule.headers.iter().all(|condition| {
            let values = values(&condition.name);
            let asks = |value: &str| match &condition.test {
                HeaderTest::Value(StringMatch::Exact { value: asked, .. }) => asked == value,
                test => panic!("{test:?} is not generated"),
            };
            let missing = values.is_empty() && !condition.missing_is_empty;
            match condition.test {
                HeaderTest::Present(present) => (present != missing) != condition.invert,
                _ if missing => false,
                _ if values.is_empty() => asks("") != condition.invert,
                _ => values.into_iter().any(asks) != condition.invert,
            }
        })
        && rule.query.iter().all(|condition| {
            let value = pairs.iter().find(|(name, _)| *name == condition.name).map(|(_, value)| *value);
            match &condition.value {
                Some(StringMatch::Exact { value: asked, .. }) => value == Some(asked),
                Some(test) => panic!("{test:?} is not generated"),
                None => value.is_some(),
            }
        })
}

prop_compose! {
    fn any_configuration()(
        domains in subsequence(DOMAINS.to_vec(), 0..=DOMAINS.len()).prop_shuffle(),
        cuts in prop::collection::vec(1usize..5, 4),
        rules in prop::collection::vec(prop::collection::vec(any_match(), 0..9), 4),
    ) -> RouteConfiguration {
        let mut rest = domains.as_slice();
        let mut hosts = Vec::new();
        for (cut, rules) in cuts.into_iter().zip(rules) {
            if rest.is_empty() {
                break;
            }
            let (now, then) = rest.split_at(cut.min(rest.len()));
            rest = then;
            let routes = (0..).zip(rules).map(|(number, rule)| route(&format!("r{number}"), rule)).collect();
            hosts.push(crate::route::fixtures::host(now, routes));
        }
        configuration(hosts)
    }
}

prop_compose! {
    fn any_match()(
        path in any_path(),
        case_sensitive in prop::bool::weighted(0.8),
        headers in prop::collection::vec(any_header(), 0..2),
        query in prop_oneof![
            3 => Just(vec![]),
            1 => Just(vec![query("q", "1")]),
            1 => Just(vec![QueryMatch { name: "p".into(), value: None }]),
        ],
        grpc in prop::bool::weighted(0.1),
        fraction in prop_oneof![5 => Just(None), 1 => (0u32..=1_000_000).prop_map(|n| Some(PerMillion(n)))],
    ) -> RouteMatch {
        RouteMatch { case_sensitive, headers, query, grpc, fraction, ..on(path) }
    }
}

fn any_path() -> impl Strategy<Value = PathMatch> {
    let text = || select(&PATHS[..]).prop_map(String::from);
    prop_oneof![
        text().prop_map(PathMatch::Exact),
        text().prop_map(|text| PathMatch::Segments(text.trim_end_matches('/').into())),
        text().prop_map(PathMatch::Prefix),
        select(vec!["/a.*", "/[ab]", ".*/b", ""])
            .prop_map(|source| PathMatch::Regex(Regex::new(source).unwrap())),
    ]
}

fn any_header() -> impl Strategy<Value = HeaderMatch> {
    (
        prop_oneof![
            Just(header(":method", "GET")),
            Just(header(":method", "POST")),
            Just(header("x-a", "1")),
            Just(header("x-a", "1,2")),
            any::<bool>()
                .prop_map(|present| HeaderMatch { test: HeaderTest::Present(present), ..header("x-b", "") }),
        ],
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(header, invert, missing_is_empty)| HeaderMatch {
            invert,
            missing_is_empty,
            ..header
        })
}

prop_compose! {
    fn any_request()(
        method in select(vec![Method::GET, Method::POST]),
        authority in select(&AUTHORITIES[..]),
        path in select(&PATHS[..]),
        query in select(vec!["", "?q=1", "?q=2&q=1", "?p=&q=1"]),
        headers in subsequence(
            vec![("x-a", "1"), ("x-a", "2"), ("x-b", "1"), ("content-type", "application/grpc")],
            0..=4,
        ),
    ) -> Request {
        let pairs = headers.into_iter().map(|(name, value)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        });
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        Request { method, authority, target: format!("{path}{query}"), headers }
    }
}

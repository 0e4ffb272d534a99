//! Short ways to write routes in tests.

use crate::model::{
    Domain, HeaderMatch, HeaderTest, PathMatch, QueryMatch, Route, RouteAction, RouteConfiguration,
    RouteMatch, StringMatch, VirtualHost,
};

pub(super) fn exact(path: &str) -> PathMatch {
    PathMatch::Exact(path.into())
}

pub(super) fn segments(path: &str) -> PathMatch {
    PathMatch::Segments(path.into())
}

pub(super) fn prefix(path: &str) -> PathMatch {
    PathMatch::Prefix(path.into())
}

pub(super) fn regex(source: &str) -> PathMatch {
    PathMatch::Regex(crate::model::Regex::new(source).unwrap())
}

/// Asks for nothing but the path.
pub(super) fn on(path: PathMatch) -> RouteMatch {
    RouteMatch::new(path)
}

/// A header of this very value.
pub(super) fn header(name: &str, value: &str) -> HeaderMatch {
    HeaderMatch::new(name, HeaderTest::Value(StringMatch::exact(value)))
}

/// A query parameter of this very value.
pub(super) fn query(name: &str, value: &str) -> QueryMatch {
    QueryMatch { name: name.into(), value: Some(StringMatch::exact(value)) }
}

pub(super) fn route(name: &str, matches: RouteMatch) -> Route {
    Route::new(name, matches, RouteAction::NonForwarding)
}

/// Names the virtual host after its first domain.
pub(super) fn host(domains: &[&str], routes: Vec<Route>) -> VirtualHost {
    let name = domains.first().copied().unwrap_or("none");
    VirtualHost::new(name, domains.iter().map(|domain| Domain::parse(domain)).collect(), routes)
}

pub(super) fn configuration(virtual_hosts: Vec<VirtualHost>) -> RouteConfiguration {
    RouteConfiguration::new("test", virtual_hosts)
}

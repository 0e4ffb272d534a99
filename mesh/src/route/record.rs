//! Why a request took its route: the virtual host, the route, and for each other route its first failing condition.
//!
//! A record is made to be read by people and may end up in logs and tickets: values of headers that hold credentials
//! never stand in it, neither the request's nor those that a rule asks for.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::{
    Domain, HeaderMatch, Origin, PathMatch, REDACTED, Route, RouteConfiguration, RouteMatch, VirtualHost,
    is_secret_header,
};

use super::RequestView;
use super::matcher::{Failing, drawn, failing};

/// The most domains that a record lists when none matches.
const MAX_KNOWN_DOMAINS: usize = 20;

/// How a request was routed, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteRecord {
    /// The name of the route configuration.
    pub configuration: String,
    /// The host that the request is for, as it was given.
    pub authority: String,
    /// What came of it.
    pub outcome: Outcome,
    /// The virtual host whose routes were tried.
    pub virtual_host: Option<HostRecord>,
    /// The route that matched.
    pub matched: Option<RouteName>,
    /// All other routes of the virtual host, in order.
    pub missed: Vec<RouteMiss>,
    /// Where no domain matched: those that there are, at most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub known_domains: Vec<String>,
    /// How many domains there are beyond those listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_domains: usize,
}

/// What came of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// A route matched.
    Found,
    /// No domain matches the host: 404.
    NoVirtualHost,
    /// No route matches: 404.
    NoRoute,
}

/// A virtual host, and how it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostRecord {
    /// The virtual host's name.
    pub name: String,
    /// That of its domains that matched.
    pub domain: String,
}

/// Which route is spoken of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteName {
    /// Its name.
    pub name: String,
    /// Its place within the virtual host, from 0.
    pub index: usize,
    /// The object that it was made from.
    pub origin: Option<Origin>,
}

/// A route that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteMiss {
    /// Which one.
    pub route: RouteName,
    /// Why.
    pub reason: Miss,
}

/// Why a route was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Miss {
    /// This is the first of its conditions that does not hold.
    Condition(Condition),
    /// All its conditions hold, but an earlier rule does too. A fraction of this route is not drawn.
    Shadowed {
        /// The name of the rule that was taken.
        by: String,
    },
}

/// A condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is on.
    pub on: ConditionKind,
    /// What the rule asks for.
    pub expected: String,
    /// What the request has, or `None` where it has nothing.
    pub actual: Option<String>,
}

/// What a condition of a route is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ConditionKind {
    /// The path.
    Path,
    /// The method.
    Method,
    /// The header of this name.
    Header(String),
    /// The query parameter of this name.
    Query(String),
    /// That the request be gRPC.
    Grpc,
    /// The draw.
    Fraction,
}

/// Tries the routes of `found`, the virtual host and the domain that matched, one after the other.
pub(super) fn explain(
    configuration: &RouteConfiguration,
    found: Option<(&VirtualHost, &Domain)>,
    request: &RequestView<'_>,
    mut draw: impl FnMut() -> u32,
) -> RouteRecord {
    let mut record = RouteRecord {
        configuration: configuration.name.clone(),
        authority: request.authority.into(),
        outcome: Outcome::NoVirtualHost,
        virtual_host: None,
        matched: None,
        missed: Vec::new(),
        known_domains: Vec::new(),
        more_domains: 0,
    };
    let Some((host, domain)) = found else {
        let mut domains = configuration.virtual_hosts.iter().flat_map(|host| &host.domains);
        record.known_domains = domains.by_ref().take(MAX_KNOWN_DOMAINS).map(Domain::to_string).collect();
        record.more_domains = domains.count();
        return record;
    };
    record.virtual_host = Some(HostRecord { name: host.name.clone(), domain: domain.to_string() });
    for (index, route) in host.routes.iter().enumerate() {
        let name = RouteName { name: route.name.clone(), index, origin: route.origin.clone() };
        let reason = match (failing(&route.matches, request), &record.matched) {
            (Some(failing), _) => Miss::Condition(condition(failing, &route.matches, request)),
            (None, Some(matched)) => Miss::Shadowed { by: matched.name.clone() },
            (None, None) => match drawn_or_miss(route, &mut draw) {
                Some(miss) => Miss::Condition(miss),
                None => {
                    record.matched = Some(name);
                    continue;
                }
            },
        };
        record.missed.push(RouteMiss { route: name, reason });
    }
    record.outcome = if record.matched.is_some() { Outcome::Found } else { Outcome::NoRoute };
    record
}

fn drawn_or_miss(route: &Route, draw: &mut impl FnMut() -> u32) -> Option<Condition> {
    let mut number = None;
    let taken = drawn(&route.matches, &mut || *number.insert(draw()));
    let fraction = route.matches.fraction.filter(|_| !taken)?;
    Some(Condition {
        on: ConditionKind::Fraction,
        expected: format!("a draw below {} of 1000000", fraction.0),
        actual: number.map(|draw| ((u64::from(draw) * 1_000_000) >> 32).to_string()),
    })
}

fn condition(failing: Failing<'_>, rule: &RouteMatch, request: &RequestView<'_>) -> Condition {
    match failing {
        Failing::Path => Condition {
            on: ConditionKind::Path,
            expected: match rule.path {
                PathMatch::Regex(_) => rule.path.to_string(),
                _ if rule.case_sensitive => rule.path.to_string(),
                _ => format!("{}, in any case", rule.path),
            },
            actual: Some(request.path.into()),
        },
        Failing::Grpc => Condition {
            on: ConditionKind::Grpc,
            expected: "content-type application/grpc".into(),
            actual: request.header("content-type").map(Into::into),
        },
        Failing::Header(header) => {
            let (expected, actual) = shown_header(header, request.header(&header.name));
            let on = match header.name.as_str() {
                ":method" => ConditionKind::Method,
                name => ConditionKind::Header(name.into()),
            };
            Condition { on, expected, actual }
        }
        Failing::Query(query) => Condition {
            on: ConditionKind::Query(query.name.clone()),
            expected: query.to_string(),
            actual: request.query_value(&query.name).map(Into::into),
        },
    }
}

/// What a condition on a header asks for and what the header is, without credentials.
pub(crate) fn shown_header(header: &HeaderMatch, value: Option<Cow<'_, str>>) -> (String, Option<String>) {
    match is_secret_header(&header.name) {
        true => (REDACTED.into(), value.map(|_| REDACTED.into())),
        false => (header.to_string(), value.map(Into::into)),
    }
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl fmt::Display for RouteRecord {
    /// A line for the result, and one for each route that was not taken.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(host) = &self.virtual_host else {
            write!(f, "no domain of {:?} matches host {:?}", self.configuration, self.authority)?;
            let known = match self.known_domains.as_slice() {
                [] => "none".into(),
                known => known.join(", "),
            };
            write!(f, "; its domains: {known}")?;
            return match self.more_domains {
                0 => Ok(()),
                more => write!(f, " and {more} more"),
            };
        };
        match &self.matched {
            Some(route) => {
                write!(f, "{route}, in virtual host {:?} by domain \"{}\"", host.name, host.domain)?
            }
            None => {
                write!(f, "no route of virtual host {:?} (domain \"{}\") matches", host.name, host.domain)?
            }
        }
        self.missed.iter().try_for_each(|miss| write!(f, "\n  not {}: {}", miss.route, miss.reason))
    }
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {:?}", self.name)?;
        match &self.origin {
            Some(Origin { kind, namespace, name, rule, matched }) => {
                write!(f, " ({kind} {namespace}/{name}, rule {rule}, match {matched})")
            }
            None => Ok(()),
        }
    }
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Condition(condition) => condition.fmt(f),
            Self::Shadowed { by } => write!(f, "it matches too, but is shadowed by the earlier rule {by:?}"),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, ", self.on, self.expected)?;
        match &self.actual {
            Some(actual) => write!(f, "the request has {actual:?}"),
            None => f.write_str("the request has none"),
        }
    }
}

impl fmt::Display for ConditionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path => f.write_str("path"),
            Self::Method => f.write_str("method"),
            Self::Header(name) => write!(f, "header {name:?}"),
            Self::Query(name) => write!(f, "query parameter {name:?}"),
            Self::Grpc => f.write_str("gRPC"),
            Self::Fraction => f.write_str("fraction"),
        }
    }
}

#[cfg(test)]
mod tests;

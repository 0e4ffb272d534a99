//! The order of rules that several objects bring for the same hosts, as Gateway API has it.
//!
//! For HTTP: an exact path, a regular expression, the longest prefix; then a condition on the method, the most headers,
//! the most query parameters. For gRPC: the longest service, the longest method, the most headers. What ties goes by
//! the oldest object, `<namespace>/<name>`, and the place within the object.
//!
//! Gateway API leaves regular expressions to the implementation: before prefixes, because behind them one would
//! rarely be reached.

use std::cmp::Reverse;

use crate::model::{PathMatch, RouteMatch};

/// Stands for a service or a method that a GRPCRoute's match leaves open, in the regular expression of its path:
/// `/[^/]+/Get` is any service's method `Get`.
pub const ANY_SEGMENT: &str = "[^/]+";

/// Where a rule stands: sort by it, and try the rules in that order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    specificity: Specificity,
    /// Objects without a time come last: they are not known to be older than any.
    created: (bool, Option<i64>),
    object: String,
    rule: u32,
    matched: u32,
}

impl Key {
    /// The place of match number `matched` of rule number `rule` of the object `namespace`/`name`, created at `created`
    /// (seconds since 1970). A match with `grpc` is a GRPCRoute's: its path is `/service/method` exactly, the segment
    /// `/service`, a regular expression with [`ANY_SEGMENT`] for what is open, or any path.
    pub fn new(
        rule_match: &RouteMatch,
        created: Option<i64>,
        namespace: &str,
        name: &str,
        rule: u32,
        matched: u32,
    ) -> Self {
        Self {
            specificity: Specificity::of(rule_match),
            created: (created.is_none(), created),
            object: format!("{namespace}/{name}"),
            rule,
            matched,
        }
    }
}

/// The most specific is the least. gRPC stands first, because it asks for a content type besides the path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Specificity {
    Grpc { service: Reverse<usize>, method: Reverse<usize>, headers: Reverse<usize> },
    Http { path: PathRank, method: Reverse<bool>, headers: Reverse<usize>, query: Reverse<usize> },
}

/// How a path condition ranks, with its length in characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathRank {
    Exact,
    Regex(Reverse<usize>),
    Prefix(Reverse<usize>),
}

impl Specificity {
    fn of(rule: &RouteMatch) -> Self {
        let on_method = rule.headers.iter().filter(|header| header.name == ":method").count();
        let headers = Reverse(rule.headers.len() - on_method);
        if rule.grpc {
            let (service, method) = grpc_parts(&rule.path);
            let length = |part: &str| Reverse(part.chars().count());
            return Self::Grpc { service: length(service), method: length(method), headers };
        }
        Self::Http {
            path: match &rule.path {
                PathMatch::Exact(_) => PathRank::Exact,
                PathMatch::Regex(regex) => PathRank::Regex(Reverse(regex.as_str().chars().count())),
                PathMatch::Segments(path) | PathMatch::Prefix(path) => {
                    // `/a` and `/a/` are the same prefix to Gateway API.
                    PathRank::Prefix(Reverse(path.trim_end_matches('/').chars().count()))
                }
            },
            method: Reverse(on_method > 0),
            headers,
            query: Reverse(rule.query.len()),
        }
    }
}

/// The service and the method that a path asks for, each empty where it is open.
fn grpc_parts(path: &PathMatch) -> (&str, &str) {
    let text = match path {
        PathMatch::Exact(path) | PathMatch::Segments(path) | PathMatch::Prefix(path) => path,
        PathMatch::Regex(regex) => regex.as_str(),
    };
    let text = text.strip_prefix('/').unwrap_or(text);
    if let Some(method) = text.strip_prefix(ANY_SEGMENT) {
        return ("", method.trim_start_matches('/'));
    }
    let (service, method) = text.split_once('/').unwrap_or((text, ""));
    (service, if method == ANY_SEGMENT { "" } else { method })
}

#[cfg(test)]
mod tests;

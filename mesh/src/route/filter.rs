//! What a route changes in a head: headers, the path, and the location of a redirect.
//!
//! Which headers a route may touch at all is decided where configuration is read, not here.

use std::borrow::Cow;
use std::fmt;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue};
use smallvec::SmallVec;

use crate::model::{
    HeaderMutation, HeaderMutations, HeaderOp, HeaderText, Operator, PathMatch, PathRewrite, Redirect,
};

/// Changes a head as Envoy does: first all removals, then what is set, then what is added; whether a header is there, and what
/// `value` writes for an operator, is told by the head as it is after the removals. What comes out empty changes nothing, unless it is
/// to be kept. A map that is full (over 24,000 fields, far above any limit on a head) takes no further field.
pub fn mutate_headers(
    mutations: &HeaderMutations,
    headers: &mut HeaderMap,
    value: impl Fn(&HeaderMap, &Operator, &mut Vec<u8>),
) {
    for name in &mutations.remove {
        headers.remove(name);
    }
    let values: SmallVec<[Option<HeaderValue>; 4]> =
        mutations.change.iter().map(|change| evaluate(change, headers, &value)).collect();
    let is_set = |change: &HeaderMutation| matches!(change.op, HeaderOp::Set | HeaderOp::SetIfPresent);
    // The results only tell whether the map is full and what was there before.
    for (change, value) in mutations.change.iter().zip(&values).filter(|(change, _)| is_set(change)) {
        if let Some(value) = value {
            drop(headers.try_insert(&change.name, value.clone()));
        }
    }
    for (change, value) in mutations.change.iter().zip(values).filter(|(change, _)| !is_set(change)) {
        if let Some(value) = value {
            drop(headers.try_append(&change.name, value));
        }
    }
}

/// What a header becomes; `None`: it is left alone.
fn evaluate(
    change: &HeaderMutation,
    headers: &HeaderMap,
    value: impl Fn(&HeaderMap, &Operator, &mut Vec<u8>),
) -> Option<HeaderValue> {
    match change.op {
        HeaderOp::AddIfAbsent if headers.contains_key(&change.name) => return None,
        HeaderOp::SetIfPresent if !headers.contains_key(&change.name) => return None,
        _ => {}
    }
    match &change.value {
        HeaderText::Literal(value) => Some(value.clone()),
        HeaderText::Format { format, keep_empty } => {
            let mut text = Vec::new();
            format.write(b"", &mut text, |operator, out| value(headers, operator, out));
            // What stands in other headers is valid in one; anything else that is not is left out.
            (*keep_empty || !text.is_empty()).then(|| HeaderValue::try_from(text).ok())?
        }
    }
}

/// The target of a request after a rewrite; the query stays. `matched` is the condition that the path met.
///
/// # Errors
/// When the new text is no valid path, as for a replacement with a space in it.
pub fn rewrite_path(
    rewrite: &PathRewrite,
    matched: &PathMatch,
    target: &PathAndQuery,
) -> Result<PathAndQuery, RewriteError> {
    let text = rewritten(rewrite, matched, target.path(), target.query());
    PathAndQuery::try_from(text.as_str()).map_err(|_| RewriteError(text))
}

/// The `location` of a redirect, by the rules of Gateway API's `HTTPRequestRedirectFilter`: a part that the redirect does
/// not name stays that of the request, `scheme`, `authority` and `target`; the port is the redirect's, or that which
/// is well known for the redirect's scheme, or the request's; and a well-known port is left out.
pub fn redirect_location(
    redirect: &Redirect,
    scheme: &str,
    authority: &str,
    target: &PathAndQuery,
    matched: &PathMatch,
) -> String {
    let (host, port) = split_port(authority);
    let port = match (redirect.port, redirect.scheme.as_deref()) {
        (Some(port), _) => Some(port),
        (None, Some(scheme)) => well_known_port(scheme).or(port),
        (None, None) => port,
    };
    let scheme = redirect.scheme.as_deref().unwrap_or(scheme);
    let host = redirect.host.as_deref().unwrap_or(host);
    let port = match port.filter(|port| well_known_port(scheme) != Some(*port)) {
        Some(port) => format!(":{port}"),
        None => String::new(),
    };
    let query = target.query().filter(|_| !redirect.strip_query);
    let target = match &redirect.path {
        Some(rewrite) => rewritten(rewrite, matched, target.path(), query),
        None => with_query(target.path().into(), query),
    };
    format!("{scheme}://{host}{port}{target}")
}

fn rewritten(rewrite: &PathRewrite, matched: &PathMatch, path: &str, query: Option<&str>) -> String {
    let path = match rewrite {
        PathRewrite::Full(replacement) => Cow::Borrowed(replacement.as_str()),
        PathRewrite::Prefix(replacement) => replace_prefix(replacement, matched, path).into(),
        PathRewrite::Regex(substitution) => substitution.apply(path),
    };
    let path = if path.starts_with('/') { path } else { format!("/{path}").into() };
    with_query(path.into_owned(), query)
}

/// Puts `replacement` in place of the prefix that matched, as in the table of Gateway API's `HTTPPathModifier`: exactly one
/// slash stands between it and the segments that stay. A slash at the end of a matched prefix counts as the start of
/// those segments; that is where Envoy's `prefix_rewrite` would make `/xyzbar` of `/foo/bar`. Where all of the path
/// matched, as an exact path or a regular expression does, all of it is replaced.
fn replace_prefix(replacement: &str, matched: &PathMatch, path: &str) -> String {
    let start = match matched {
        PathMatch::Segments(prefix) | PathMatch::Prefix(prefix) => prefix.trim_end_matches('/').len(),
        PathMatch::Exact(_) | PathMatch::Regex(_) => path.len(),
    };
    match path.get(start..).unwrap_or_default() {
        "" => replacement.into(),
        rest if rest.starts_with('/') => format!("{}{rest}", replacement.trim_end_matches('/')),
        rest => format!("{replacement}{rest}"),
    }
}

/// A replacement that brings its own query keeps it, as in Envoy.
fn with_query(path: String, query: Option<&str>) -> String {
    match query {
        Some(query) if !path.contains('?') => format!("{path}?{query}"),
        _ => path,
    }
}

fn split_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if host.ends_with(']') || !host.contains(':') => (host, port.parse().ok()),
        _ => (authority, None),
    }
}

fn well_known_port(scheme: &str) -> Option<u16> {
    match scheme {
        _ if scheme.eq_ignore_ascii_case("http") => Some(80),
        _ if scheme.eq_ignore_ascii_case("https") => Some(443),
        _ => None,
    }
}

/// A rewrite made something that is no path. The fault is the route's; trying again does not help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteError(pub String);

impl fmt::Display for RewriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the rewritten path {:?} is not valid: percent-encode what may not stand in a path", self.0)
    }
}

impl std::error::Error for RewriteError {}

#[cfg(test)]
mod tests;

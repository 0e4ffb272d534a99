//! Whether a request meets the conditions of one route. The table asks, and the record asks the very same, so that an
//! explanation can't say anything else than what happened.

use crate::model::{HeaderMatch, QueryMatch, RouteMatch};

use super::RequestView;

/// The first condition that a request does not meet.
#[derive(Clone, Copy)]
pub(super) enum Failing<'r> {
    /// On the path.
    Path,
    /// That it be gRPC.
    Grpc,
    /// On a header.
    Header(&'r HeaderMatch),
    /// On a query parameter.
    Query(&'r QueryMatch),
}

/// The first failing condition, leaving aside the fraction; `None` when all hold.
pub(super) fn failing<'r>(rule: &'r RouteMatch, request: &RequestView<'_>) -> Option<Failing<'r>> {
    if !rule.path.matches(request.path, rule.case_sensitive) {
        return Some(Failing::Path);
    }
    failing_beyond_path(rule, request)
}

/// As [`failing`], where the path is known to match.
pub(super) fn failing_beyond_path<'r>(
    rule: &'r RouteMatch,
    request: &RequestView<'_>,
) -> Option<Failing<'r>> {
    if rule.grpc && !request.is_grpc() {
        return Some(Failing::Grpc);
    }
    let header = |header: &&HeaderMatch| !header.matches(request.values(&header.name));
    if let Some(header) = rule.headers.iter().find(header) {
        return Some(Failing::Header(header));
    }
    let query = |query: &&QueryMatch| !query.matches(request.query_value(&query.name).as_deref());
    rule.query.iter().find(query).map(Failing::Query)
}

/// Whether the route's fraction takes the request. Draws only where the route has one.
pub(super) fn drawn(rule: &RouteMatch, draw: &mut impl FnMut() -> u32) -> bool {
    rule.fraction.is_none_or(|fraction| fraction.hit(draw()))
}

/// Whether every request with a matching path meets the conditions.
pub(super) fn is_unconditional(rule: &RouteMatch) -> bool {
    rule.headers.is_empty() && rule.query.is_empty() && !rule.grpc && rule.fraction.is_none()
}

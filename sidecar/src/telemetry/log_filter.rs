//! Of which requests there is a line in the log.

use std::time::Duration;

use http::request::Parts;
use tulle_mesh::model::LogFilter;
use tulle_mesh::route::RequestView;

use super::record::Failure;
use crate::error::grpc_of;

/// What a filter looks at.
pub(super) struct Facts<'a> {
    pub(super) status: Option<http::StatusCode>,
    pub(super) duration: Duration,
    /// `None` of a connection of bytes.
    pub(super) request: Option<&'a Parts>,
    pub(super) grpc_status: Option<u32>,
    pub(super) error: Option<Failure<'a>>,
    pub(super) traced: bool,
    /// Uniform over `u32`: one for all shares in a filter.
    pub(super) draw: u32,
}

/// Whether a filter lets a line through.
pub(super) fn admits(filter: &LogFilter, facts: &Facts<'_>) -> bool {
    match filter {
        LogFilter::Status(comparison) => {
            comparison.holds(facts.status.map_or(0, |status| status.as_u16()).into())
        }
        LogFilter::Duration(comparison) => {
            comparison.holds(u64::try_from(facts.duration.as_millis()).unwrap_or(u64::MAX))
        }
        LogFilter::NotHealthCheck => true,
        LogFilter::Traced => facts.traced,
        LogFilter::Fraction(share) => share.hit(facts.draw),
        LogFilter::Header(condition) => facts.request.is_some_and(|request| {
            let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
            let authority = crate::http::authority(request);
            let view = RequestView::new(&request.method, authority, path, &request.headers);
            condition.matches(view.values(&condition.name))
        }),
        LogFilter::Flags(flags) => facts.error.is_some_and(|error| {
            error.flags != "-" && (flags.is_empty() || flags.iter().any(|flag| flag == error.flags))
        }),
        LogFilter::GrpcStatus { statuses, exclude } => {
            let status = facts.grpc_status.or_else(|| facts.status.map(grpc_of)).unwrap_or(GRPC_UNKNOWN);
            statuses.contains(&status) != *exclude
        }
        LogFilter::All(filters) => filters.iter().all(|filter| admits(filter, facts)),
        LogFilter::Any(filters) => filters.iter().any(|filter| admits(filter, facts)),
    }
}

/// gRPC's UNKNOWN.
const GRPC_UNKNOWN: u32 = 2;

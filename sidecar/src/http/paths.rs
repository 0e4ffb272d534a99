//! The path of a request, as policies and routes are to see it.
//!
//! In: a request, and what its listener says of paths. Out: the same request with the path that everything after this point
//! sees, its backend too; or the answer that sends the client to that path.

use http::uri::PathAndQuery;
use http::{HeaderValue, Response, StatusCode, Uri};
use tulle_mesh::model::PathHandling;
use tulle_mesh::route::{Normalized, normalize};

use super::body::Body;
use super::exchange::Exchange;
use super::respond;
use crate::error::RequestError;

/// Brings the path of a request into the form that its listener wants: the answer where the client is sent elsewhere.
///
/// # Errors
/// When the listener refuses such paths.
pub(super) fn apply(
    exchange: &mut Exchange,
    how: &PathHandling,
) -> Result<Option<Response<Body>>, RequestError> {
    let Some(target) = exchange.request.uri.path_and_query() else { return Ok(None) };
    match normalize(target.as_str(), how) {
        Normalized::Same => Ok(None),
        Normalized::Changed(target) => {
            let mut parts = exchange.request.uri.clone().into_parts();
            parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(|_| RequestError::Path)?);
            exchange.request.uri = Uri::from_parts(parts).map_err(|_| RequestError::Path)?;
            Ok(None)
        }
        // No gRPC client follows a redirect.
        Normalized::Redirect(_) if exchange.view().is_grpc() => Err(RequestError::Path),
        Normalized::Redirect(target) => {
            let location = HeaderValue::try_from(target).map_err(|_| RequestError::Path)?;
            Ok(Some(respond::redirect(StatusCode::TEMPORARY_REDIRECT, location)))
        }
        Normalized::Refused => Err(RequestError::Path),
    }
}

//! A request's head in the form of HTTP/2.

use h2::ext::Protocol;
use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Uri, Version};

use crate::http::body::Body;
use crate::http::h2::strip_connection_fields;
use crate::upstream::SendError;

/// Moves Host to `:authority` and drops what HTTP/2 does not have.
///
/// # Errors
/// When the request has no valid authority.
pub(super) fn to_http2(mut request: Request<Body>) -> Result<Request<Body>, SendError> {
    let host = request.headers_mut().remove(HOST);
    // An extended CONNECT has a path as any other request (RFC 8441 section 4).
    let connect = request.method() == Method::CONNECT && request.extensions().get::<Protocol>().is_none();
    let uri = std::mem::take(request.uri_mut()).into_parts();
    let authority = match (host, uri.authority) {
        // The target of a CONNECT is in its URI, whatever Host says.
        (_, Some(authority)) if connect => authority,
        (Some(host), _) => Authority::try_from(host.as_bytes()).map_err(|_| invalid("an invalid Host"))?,
        (None, Some(authority)) => authority,
        (None, None) => return Err(invalid("a request without authority")),
    };
    let mut parts = http::uri::Parts::default();
    parts.authority = Some(authority);
    if !connect {
        parts.scheme = Some(uri.scheme.unwrap_or(Scheme::HTTP));
        parts.path_and_query = Some(uri.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/")));
    }
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| invalid("an invalid target"))?;
    *request.version_mut() = Version::HTTP_2;
    strip_connection_fields(request.headers_mut());
    Ok(request)
}

fn invalid(reason: &'static str) -> SendError {
    SendError::Request(reason)
}

//! The one place where an error becomes an answer.
//!
//! In: a [`RequestError`] and what the client speaks. Out: a response that says that the mesh made it, which part of the
//! way failed and why, in `Proxy-Status` (RFC 9209) and in the body, or as a trailers-only gRPC status.

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tulle_mesh::model::DirectResponse;

use super::body::Body;
use super::headers::Outcome;
use super::refusal::{PROXY_STATUS, proxy_status};
use crate::error::RequestError;
use crate::limit::Tokens;
use crate::upstream::SendError;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// The gRPC status of a trailers-only answer.
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Envoy's sign that a 503 is due to a limit.
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
/// The same of one that the control plane asked for.
const DROPPED: HeaderName = HeaderName::from_static("x-envoy-drop-overload");
const ALL_DROPPED: HeaderName = HeaderName::from_static("x-envoy-unconditional-drop-overload");

/// Who asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    /// It speaks gRPC.
    pub(crate) grpc: bool,
    /// It is a sidecar of the mesh, and understands [`Outcome`].
    pub(crate) sidecar: bool,
}

/// The answer to a request that failed with `error`. `details` is what is said of it.
pub(crate) fn error(error: &RequestError, details: &str, asker: Asker) -> Response<Body> {
    let mut response = match asker.grpc {
        true => grpc(error.grpc_status(), details),
        false => text(error.status(), details),
    };
    let headers = response.headers_mut();
    headers.insert(PROXY_STATUS, proxy_status(error.token(), details));
    match error {
        RequestError::RateLimited(_, wait, _) => {
            // At least a second, as the field has no smaller unit.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        RequestError::Overload(_)
        | RequestError::Limit(_)
        | RequestError::Attempt(_, SendError::Overflow(_)) => {
            headers.insert(OVERLOADED, HeaderValue::from_static("true"));
        }
        RequestError::Dropped { all, .. } => {
            headers.insert(if *all { ALL_DROPPED } else { DROPPED }, HeaderValue::from_static("true"));
        }
        _ => {}
    }
    if asker.sidecar {
        let outcome = if error.is_not_processed() { Outcome::NotProcessed } else { Outcome::Failed };
        outcome.write(headers);
    }
    response
}

/// The answer that a route gives itself. To gRPC it is a status, as in Envoy.
pub(crate) fn direct(configured: &DirectResponse, asker: Asker) -> Response<Body> {
    if asker.grpc {
        return grpc(RequestError::Fault(configured.status, None).grpc_status(), &configured.body);
    }
    text(configured.status, &configured.body)
}

/// Tells what is left of a bucket (draft-polli-ratelimit-headers-03, with the names that Envoy has for it).
pub(crate) fn tell(tokens: Tokens, headers: &mut HeaderMap) {
    let Tokens { limit, remaining, reset } = tokens;
    for (name, value) in [
        (HeaderName::from_static("x-ratelimit-limit"), HeaderValue::from(limit)),
        (HeaderName::from_static("x-ratelimit-remaining"), HeaderValue::from(remaining)),
        (HeaderName::from_static("x-ratelimit-reset"), HeaderValue::from(reset)),
    ] {
        // A head that is full goes without.
        drop(headers.try_append(name, value));
    }
}

/// The answer to a request that asks what another may do.
pub(crate) fn preflight() -> Response<Body> {
    text(StatusCode::OK, "")
}

/// The answer that sends the client to `location`.
pub(crate) fn redirect(status: StatusCode, location: HeaderValue) -> Response<Body> {
    let mut response = text(status, "");
    response.headers_mut().insert(LOCATION, location);
    response
}

fn text(status: StatusCode, body: &str) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    if !body.is_empty() && !matches!(status.as_u16(), 204 | 304) {
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        *response.body_mut() = Body::Full(body.to_owned().into());
    }
    response
}

fn grpc(status: u32, message: &str) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, GRPC);
    headers.insert(GRPC_STATUS, HeaderValue::from(status));
    if !message.is_empty()
        && let Ok(value) = HeaderValue::from_str(&utf8_percent_encode(message, UNSAFE).to_string())
    {
        headers.insert(GRPC_MESSAGE, value);
    }
    response
}

/// What a gRPC message can't carry as it is: all but printable ASCII, and the percent sign (gRPC over HTTP/2,
/// `Status-Message`).
const UNSAFE: &AsciiSet = &CONTROLS.add(b'%');

/// The gRPC status in a head or in trailers.
pub(crate) fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::time::Duration;

    const HTTP: Asker = Asker { grpc: false, sidecar: false };

    fn respond(error: &RequestError, asker: Asker) -> Response<Body> {
        super::error(error, &error.to_string(), asker)
    }

    #[tokio::test]
    async fn an_error_says_that_the_mesh_made_it_and_why() {
        let response = respond(&RequestError::Timeout("request", Duration::from_millis(250)), HTTP);
        assert_eq!(response.status(), 504);
        assert_eq!(
            response.headers()[PROXY_STATUS],
            r#"tulle; error=http_response_timeout; details="the timeout request=250ms is over""#
        );
        assert!(!response.headers().contains_key(super::super::headers::OUTCOME));
        let body = response.into_body().collect().await.expect("short").to_bytes();
        assert_eq!(body, "the timeout request=250ms is over");
    }

    #[test]
    fn to_grpc_it_is_a_status_in_trailers_only() {
        let response = respond(&RequestError::Denied("50 % no\n".into()), Asker { grpc: true, ..HTTP });
        assert_eq!(response.status(), 200);
        assert!(http_body::Body::is_end_stream(response.body()));
        assert_eq!(grpc_status(response.headers()), Some(7));
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert_eq!(response.headers()["grpc-message"], "50 %25 no%0A");
        assert!(response.headers().contains_key(PROXY_STATUS));
    }

    #[test]
    fn only_a_sidecar_hears_whether_the_request_was_processed() {
        let sidecar = Asker { sidecar: true, ..HTTP };
        let mut overload = respond(&RequestError::Overload("full".into()), sidecar);
        assert_eq!(overload.headers()["x-envoy-overloaded"], "true");
        assert_eq!(Outcome::take(overload.headers_mut(), true), Some(Outcome::NotProcessed));
        let mut timeout = respond(&RequestError::Timeout("request", Duration::ZERO), sidecar);
        assert_eq!(Outcome::take(timeout.headers_mut(), true), Some(Outcome::Failed));
    }

    #[test]
    fn a_rate_limit_says_when_to_come_back() {
        for (wait, seconds) in [(10, "1"), (1_000, "1"), (1_001, "2")] {
            let error =
                RequestError::RateLimited("l".into(), Duration::from_millis(wait), std::sync::Arc::default());
            assert_eq!(respond(&error, HTTP).headers()[RETRY_AFTER], seconds);
        }
    }

    #[test]
    fn a_direct_response_is_a_status_to_grpc() {
        let configured = DirectResponse { status: StatusCode::FORBIDDEN, body: "go away".into() };
        let response = direct(&configured, Asker { grpc: true, ..HTTP });
        assert_eq!((response.status().as_u16(), grpc_status(response.headers())), (200, Some(7)));
        let success = DirectResponse { status: StatusCode::OK, body: "fine".into() };
        let response = direct(&success, Asker { grpc: true, ..HTTP });
        assert_eq!(grpc_status(response.headers()), Some(2), "nobody has answered the call");
        assert_eq!(direct(&configured, HTTP).status(), 403);
    }
}

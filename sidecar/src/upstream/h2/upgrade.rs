//! Upgrades, from the form of HTTP/1 to that of HTTP/2 (RFC 8441), for endpoints that speak nothing else.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use h2::ext::Protocol;
use http::header::{CONTENT_LENGTH, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderName, Method, Request, Response, StatusCode};

use crate::http::body::Body;
use crate::upstream::SendError;

/// What the answer to an upgrade needs to be in the form of HTTP/1 again.
pub(super) struct Upgrade {
    protocol: HeaderValue,
    /// What the client's key asks for.
    accept: Option<HeaderValue>,
}

impl Upgrade {
    /// Makes an extended CONNECT of an upgrade. `enabled`: the endpoint takes them.
    ///
    /// # Errors
    /// When the endpoint does not, or the request has something that an extended CONNECT has not.
    pub(super) fn begin(request: &mut Request<Body>, enabled: bool) -> Result<Self, SendError> {
        if !enabled {
            return Err(SendError::Version(
                "the endpoint speaks only HTTP/2, and takes no upgrades over it (RFC 8441)",
            ));
        }
        if !http_body::Body::is_end_stream(request.body()) {
            return Err(SendError::Version(
                "the endpoint speaks only HTTP/2, where an upgrade can't have a body",
            ));
        }
        if let Some(protocol) = request.extensions().get::<Protocol>() {
            // Whoever asks in HTTP/2 has no key, and the answer goes back to it as it is.
            let protocol = HeaderValue::from_str(protocol.as_str()).map_err(|_| several())?;
            return Ok(Self { protocol, accept: None });
        }
        let protocol = request.headers_mut().remove(UPGRADE).ok_or_else(several)?;
        let name = protocol.to_str().ok().filter(|name| HeaderName::from_bytes(name.as_bytes()).is_ok());
        let extension = Protocol::from(name.ok_or_else(several)?);
        let key = request.headers_mut().remove(SEC_WEBSOCKET_KEY);
        request.extensions_mut().insert(extension);
        *request.method_mut() = Method::CONNECT;
        Ok(Self { protocol, accept: key.and_then(|key| accept(key.as_bytes())) })
    }

    /// Says "switching protocols" of an answer that accepts.
    pub(super) fn end(self, response: &mut Response<()>) {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.remove(CONTENT_LENGTH);
        headers.insert(UPGRADE, self.protocol);
        if let Some(accept) = self.accept {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
    }
}

fn several() -> SendError {
    SendError::Version("the endpoint speaks only HTTP/2, where an upgrade names one protocol")
}

/// What proves that the server has read the key (RFC 6455 section 4.2.2). SHA-1 is no secret here.
fn accept(key: &[u8]) -> Option<HeaderValue> {
    const MAGIC: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, MAGIC].concat());
    HeaderValue::from_str(&STANDARD.encode(digest)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn websocket() -> http::request::Builder {
        Request::get("/chat")
            .header("host", "a")
            .header("upgrade", "websocket")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
    }

    #[test]
    fn a_websocket_is_a_connect_with_a_protocol_and_back() {
        let mut request = websocket().body(Body::Empty).expect("valid");
        let upgrade = Upgrade::begin(&mut request, true).expect("one protocol");
        assert_eq!(request.method(), Method::CONNECT);
        assert_eq!(request.extensions().get::<Protocol>().map(Protocol::as_str), Some("websocket"));
        let names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["host"]);
        let mut response = Response::new(());
        upgrade.end(&mut response);
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["upgrade"], "websocket");
        // The example of RFC 6455 section 1.3.
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn what_an_extended_connect_can_t_say_is_refused() {
        let mut plain = websocket().body(Body::Empty).expect("valid");
        assert!(matches!(Upgrade::begin(&mut plain, false), Err(SendError::Version(_))));
        assert!(plain.headers().contains_key(UPGRADE), "it can still be sent elsewhere");
        let body = Body::Full(bytes::Bytes::from_static(b"x"));
        let mut with_body = websocket().body(body).expect("valid");
        assert!(matches!(Upgrade::begin(&mut with_body, true), Err(SendError::Version(_))));
        let mut several = websocket().body(Body::Empty).expect("valid");
        several.headers_mut().insert(UPGRADE, HeaderValue::from_static("a, b"));
        assert!(matches!(Upgrade::begin(&mut several, true), Err(SendError::Version(_))));
    }
}

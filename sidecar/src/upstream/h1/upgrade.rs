//! Upgrades, from the form of HTTP/2 to that of HTTP/1.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use h2::ext::Protocol;
use http::header::{HOST, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{Method, Request, Uri, Version};

use crate::http::body::Body;

/// Whether a request asks for another protocol on its connection.
pub(in crate::upstream) fn is_upgrade<B>(request: &Request<B>) -> bool {
    request.headers().contains_key(UPGRADE) || request.extensions().get::<Protocol>().is_some()
}

/// Turns an extended CONNECT (RFC 8441) into the GET with Upgrade that it stands for; others stay as they are.
pub(super) fn to_http1(mut request: Request<Body>) -> Request<Body> {
    let Some(protocol) = request.extensions_mut().remove::<Protocol>() else { return request };
    let Ok(protocol) = HeaderValue::from_str(protocol.as_str()) else { return request };
    *request.method_mut() = Method::GET;
    *request.version_mut() = Version::HTTP_11;
    let authority =
        request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let target = request.uri().path_and_query().map(|target| Uri::from(target.clone()));
    if let Some(target) = target {
        *request.uri_mut() = target;
    }
    let headers = request.headers_mut();
    if let Some(authority) = authority
        && !headers.contains_key(HOST)
    {
        headers.insert(HOST, authority);
    }
    if protocol.as_bytes().eq_ignore_ascii_case(b"websocket") {
        headers.insert(SEC_WEBSOCKET_KEY, websocket_key());
        headers
            .entry(HeaderName::from_static("sec-websocket-version"))
            .or_insert(HeaderValue::from_static("13"));
    }
    headers.insert(UPGRADE, protocol);
    request
}

/// A nonce of 16 bytes. It proves that the server speaks WebSocket, and is no secret.
fn websocket_key() -> HeaderValue {
    let key = STANDARD.encode(fastrand::u128(..).to_be_bytes());
    HeaderValue::from_str(&key).unwrap_or_else(|_| HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="))
}

//! Keeps web pages out.
//!
//! A page in a browser on this host can send requests to loopback: under a name that it has made resolve to it (DNS
//! rebinding), or to the address itself, where it can't read the answer but a POST would have done its work. The former
//! is known by its Host, the latter by what browsers add to every such request.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, Uri, header, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Lets through what no web page can have sent.
pub(super) async fn refuse_browsers(request: Request, next: Next) -> Response {
    match check(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(reason) => (StatusCode::FORBIDDEN, format!("{reason}\n")).into_response(),
    }
}

fn check(uri: &Uri, headers: &HeaderMap) -> Result<(), &'static str> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = uri.authority().cloned().or_else(|| host?.parse::<Authority>().ok());
    if !authority.is_some_and(|authority| is_literal(authority.host())) {
        return Err("ask for this by its address (127.0.0.1), not by a name");
    }
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    if headers.contains_key(header::ORIGIN) || !matches!(site, None | Some(b"none" | b"same-origin")) {
        return Err("web pages may not ask for this");
    }
    Ok(())
}

fn is_literal(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    address.parse::<IpAddr>().is_ok() || host.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_page_can_send_passes() {
        for (host, extra, passes) in [
            (Some("127.0.0.1:15000"), None, true),
            (Some("[::1]:15000"), None, true),
            (Some("localhost:15000"), None, true),
            (Some("127.0.0.1"), Some(("sec-fetch-site", "none")), true),
            (None, None, false),
            (Some("rebound.example:15000"), None, false),
            (Some("127.0.0.1.example"), None, false),
            (Some("127.0.0.1:15000"), Some(("origin", "http://evil.example")), false),
            (Some("127.0.0.1:15000"), Some(("origin", "null")), false),
            (Some("127.0.0.1:15000"), Some(("sec-fetch-site", "cross-site")), false),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(host.map(|host| (header::HOST, host.parse().expect("valid"))));
            if let Some((name, value)) = extra {
                headers.insert(name, value.parse().expect("valid"));
            }
            assert_eq!(check(&Uri::from_static("/drain"), &headers).is_ok(), passes, "{host:?} {extra:?}");
        }
    }
}

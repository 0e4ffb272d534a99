//! What the `h2` crate leaves to be checked of a request's head.
//!
//! It has refused connection fields, misplaced and repeated pseudo-headers and bad characters. Here: an authority that is
//! a host, the same in Host if that is there too (RFC 9113 section 8.3.1), a path, and a bounded number of fields.

use http::header::HOST;
use http::request::Parts;
use http::{Method, Version};

use crate::http::h1::request::is_host;
use crate::http::refusal::Refusal;

/// Checks a request's head.
pub(super) fn check(head: &Parts, max_fields: usize) -> Result<(), Refusal> {
    debug_assert_eq!(head.version, Version::HTTP_2);
    if head.headers.len() > max_fields {
        return Err(Refusal::HEADERS_TOO_LARGE);
    }
    let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
    let mut hosts = head.headers.get_all(HOST).iter().map(|host| host.as_bytes());
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::bad_request("more than one Host"));
    }
    let named = match (authority, host) {
        (None, None) => return Err(Refusal::bad_request("neither :authority nor Host")),
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            return Err(Refusal::bad_request(":authority and Host differ"));
        }
        (Some(named), _) | (None, Some(named)) => named,
    };
    if !is_host(named) {
        return Err(Refusal::bad_request("an invalid :authority"));
    }
    let path = head.uri.path();
    let plain_connect =
        head.method == Method::CONNECT && head.extensions.get::<h2::ext::Protocol>().is_none();
    if plain_connect || path.starts_with('/') || (path == "*" && head.method == Method::OPTIONS) {
        Ok(())
    } else {
        Err(Refusal::bad_request("an invalid :path"))
    }
}

//! What the `h2` crate leaves to be checked of a request's head.
//!
//! It has refused connection fields, misplaced and repeated pseudo-headers and bad characters in fields. Here: an authority
//! that is a host, the same in Host if that is there too (RFC 9113 section 8.3.1), a path, a protocol that may be opened,
//! and a bounded number of fields. What passes has one meaning in HTTP/1.1 too.

use h2::ext::Protocol;
use http::header::{HOST, HeaderName};
use http::request::Parts;
use http::{Method, Version};

use crate::http::h1::request::is_host;
use crate::http::headers::names_http;
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
    match head.extensions.get::<Protocol>() {
        None if head.method == Method::CONNECT => return Ok(()),
        Some(protocol) if !is_upgrade(protocol.as_str().as_bytes()) => {
            return Err(Refusal::bad_request("a :protocol that is none to open a tunnel for"));
        }
        _ => {}
    }
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    if !target.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Refusal::bad_request("an invalid character in :path"));
    }
    if target.starts_with('/') || (target == "*" && head.method == Method::OPTIONS) {
        Ok(())
    } else {
        Err(Refusal::bad_request("an invalid :path"))
    }
}

/// Whether the protocol is one that an upgrade in HTTP/1.1 may lead to: the same as there.
fn is_upgrade(protocol: &[u8]) -> bool {
    HeaderName::from_bytes(protocol).is_ok() && !names_http(protocol)
}

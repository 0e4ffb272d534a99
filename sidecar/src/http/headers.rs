//! Which header fields cross the sidecar, and which it adds.
//!
//! In: a head as it came. Out: the head as it goes on. Fields of a single connection end here (RFC 9110 section 7.6.1),
//! what only a mesh may say is taken from nobody else, and everything else passes as it is: the sidecar adds `via` (outbound) to
//! requests, `x-forwarded-proto` where it is missing, and to responses nothing. What a listener's settings add has its own place
//! (`request_id`, `client_certificate`, `forwarded`).

use std::borrow::Cow;

use http::header::{CONNECTION, COOKIE, HOST, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, VIA};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use tulle_mesh::model::{TrafficDirection, Underscores};

use crate::error::RequestError;

/// What the mesh says of an answer that is its own; only between sidecars, only over mesh TLS.
pub(crate) const OUTCOME: HeaderName = HeaderName::from_static("x-tulle-outcome");
/// How often the request has been sent, from the second time on, or from the first where the virtual host says so (Envoy's name).
pub(crate) const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
pub(super) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Of one connection, besides what `Connection` names.
const HOP_BY_HOP: [HeaderName; 6] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];
/// The member of `tracestate` that marks a request as being made on behalf of a retry. Applications pass `tracestate` on.
const RETRY_MEMBER: &str = "tulle=r";
/// So many sidecars on a request's way are a loop.
const MAX_SIDECARS: usize = 10;

/// An answer that a sidecar made itself, as it tells the calling sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The application has not seen the request.
    NotProcessed,
    /// The application may have seen it.
    Failed,
}

impl Outcome {
    /// Marks an answer.
    pub(crate) fn write(self, headers: &mut HeaderMap) {
        let value = match self {
            Self::NotProcessed => "not-processed",
            Self::Failed => "failed",
        };
        headers.insert(OUTCOME, HeaderValue::from_static(value));
    }

    /// Takes the mark off an answer; `None` for the application's. `trusted`: a sidecar of the mesh has sent it.
    pub(crate) fn take(headers: &mut HeaderMap, trusted: bool) -> Option<Self> {
        let value = headers.remove(OUTCOME)?;
        match value.as_bytes() {
            _ if !trusted => None,
            b"not-processed" => Some(Self::NotProcessed),
            _ => Some(Self::Failed),
        }
    }
}

/// The host, and port where it has one, that a request is for; empty where it names none.
pub(crate) fn authority(head: &Parts) -> &str {
    let host = || head.headers.get(HOST).and_then(|host| host.to_str().ok());
    head.uri.authority().map(|authority| authority.as_str()).or_else(host).unwrap_or_default()
}

/// Whether a request asks for another protocol on its connection. HTTP/2 by upgrade is no use behind a proxy, and
/// TLS by upgrade not in a mesh; such requests are served as they are.
pub(crate) fn is_upgrade(head: &Parts) -> bool {
    if head.extensions.get::<h2::ext::Protocol>().is_some() {
        return true;
    }
    let Some(protocol) = head.headers.get(UPGRADE) else { return false };
    let version = head.version == Version::HTTP_11;
    version && names(&head.headers, &CONNECTION, "upgrade") && !names_http(protocol.as_bytes())
}

/// The name of the protocol that a request asks to switch its connection to.
pub(crate) fn upgrade(head: &Parts) -> Option<Cow<'_, str>> {
    if let Some(protocol) = head.extensions.get::<h2::ext::Protocol>() {
        return Some(protocol.as_str().into());
    }
    let name = head.headers.get(UPGRADE).filter(|_| is_upgrade(head))?;
    Some(String::from_utf8_lossy(name.as_bytes()))
}

/// Whether a protocol to upgrade to is HTTP itself, which would carry requests past the sidecar, or the TLS around it.
/// Any in a list counts.
pub(crate) fn names_http(protocols: &[u8]) -> bool {
    protocols.split(|b| *b == b',').map(<[u8]>::trim_ascii).any(|name| {
        let starts = |with: &[u8]| name.get(..with.len()).is_some_and(|n| n.eq_ignore_ascii_case(with));
        name.eq_ignore_ascii_case(b"h2c")
            || name.eq_ignore_ascii_case(b"h2")
            || starts(b"http/")
            || starts(b"tls/")
    })
}

/// Does with header names that have an underscore as their listener wants.
///
/// # Errors
/// When it refuses such.
pub(crate) fn underscores(headers: &mut HeaderMap, how: Underscores) -> Result<(), RequestError> {
    let has = |name: &HeaderName| name.as_str().contains('_');
    if how == Underscores::Allow || !headers.keys().any(has) {
        return Ok(());
    }
    if how == Underscores::Reject {
        return Err(RequestError::Underscore);
    }
    let names: Vec<_> = headers.keys().filter(|name| has(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
    Ok(())
}

/// Whether a request came through so many sidecars that it must be going round.
pub(crate) fn is_loop(headers: &HeaderMap) -> bool {
    let hops = headers.get_all(VIA).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    hops.filter(|hop| hop.trim_ascii().ends_with(b" tulle")).count() >= MAX_SIDECARS
}

/// Whether a request, or the one on whose behalf the application makes it, is a retry of a hop before.
pub(crate) fn is_retry(headers: &HeaderMap) -> bool {
    attempt_count(headers) > 1
        || headers.get_all(TRACESTATE).iter().any(|value| {
            let members = value.as_bytes().split(|b| *b == b',');
            members.into_iter().any(|member| member.trim_ascii() == RETRY_MEMBER.as_bytes())
        })
}

/// Which attempt the hop before has made; 1 where it does not say.
pub(crate) fn attempt_count(headers: &HeaderMap) -> u32 {
    let count = headers.get(ATTEMPT_COUNT).and_then(|value| value.to_str().ok()?.parse().ok());
    count.unwrap_or(1).clamp(1, 1000)
}

/// Marks a request as attempt number `count`, from the second on; from the first where that is to be `told`.
pub(crate) fn mark_attempt(headers: &mut HeaderMap, count: u32, told: bool) {
    if count > 1 || told {
        headers.insert(ATTEMPT_COUNT, HeaderValue::from(count));
    }
    if count < 2 || !headers.contains_key(TRACEPARENT) || is_retry_member_set(headers) {
        return;
    }
    let rest = headers.get(TRACESTATE).and_then(|value| value.to_str().ok());
    let state = rest.map_or_else(|| RETRY_MEMBER.to_owned(), |rest| format!("{RETRY_MEMBER},{rest}"));
    if let Ok(state) = HeaderValue::from_str(&state) {
        headers.insert(TRACESTATE, state);
    }
}

fn is_retry_member_set(headers: &HeaderMap) -> bool {
    headers.get(TRACESTATE).is_some_and(|value| value.as_bytes().starts_with(RETRY_MEMBER.as_bytes()))
}

/// What of a downstream connection decides about a request's fields.
#[derive(Clone, Copy)]
pub(crate) struct Origin {
    /// Which side of the application it is on.
    pub(crate) direction: TrafficDirection,
    /// The request named its destination itself (forward proxy).
    pub(crate) forward_proxy: bool,
}

/// The fields with which a request goes on.
pub(crate) fn request(head: &Parts, origin: Origin) -> HeaderMap {
    let mut headers = head.headers.clone();
    let upgrade = if is_upgrade(head) { headers.remove(UPGRADE) } else { None };
    strip_hop_by_hop(&mut headers);
    if let Some(protocol) = upgrade {
        headers.insert(UPGRADE, protocol);
    }
    keep_trailers_of_te(&mut headers);
    if head.version == Version::HTTP_2 {
        join_cookies(&mut headers);
    }
    headers.remove(OUTCOME);
    match origin.direction {
        TrafficDirection::Outbound => {
            if origin.forward_proxy {
                headers.remove(PROXY_AUTHORIZATION);
            }
            let via = if head.version == Version::HTTP_2 { "2 tulle" } else { "1.1 tulle" };
            headers.append(VIA, HeaderValue::from_static(via));
        }
        TrafficDirection::Inbound => remove_own_via(&mut headers),
    }
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    headers
}

/// Takes off a response what belongs to its connection. The protocol of an upgrade stays.
pub(crate) fn response(headers: &mut HeaderMap, upgrade: bool) {
    let protocol = if upgrade { headers.remove(UPGRADE) } else { None };
    strip_hop_by_hop(headers);
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
    }
}

/// The scheme that the client used at the edge, as far as it is known.
pub(crate) fn scheme(headers: &HeaderMap) -> &'static str {
    match headers.get(FORWARDED_PROTO).map(HeaderValue::as_bytes) {
        Some(b"https") => "https",
        _ => "http",
    }
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: smallvec::SmallVec<[HeaderName; 4]> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|b| *b == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            // What frames a message and where it goes is no option of a connection, whoever says so.
            .filter(|name| *name != HOST && *name != http::header::CONTENT_LENGTH && *name != TE)
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// `TE: trailers` is for the whole way (gRPC needs it), other codings for a connection.
fn keep_trailers_of_te(headers: &mut HeaderMap) {
    let Some(te) = headers.get(TE) else { return };
    if te != "trailers" {
        let trailers = names(headers, &TE, "trailers");
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// HTTP/2 may split cookies; anything else may not (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(COOKIE).iter();
    if cookies.next().is_none() || cookies.next().is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// The application does not hear of the calling sidecar: servers such as nginx change their answers for proxies.
fn remove_own_via(headers: &mut HeaderMap) {
    let own = |value: &HeaderValue| value.as_bytes().ends_with(b" tulle");
    if !headers.get_all(VIA).iter().any(own) {
        return;
    }
    let others: Vec<HeaderValue> = headers.get_all(VIA).iter().filter(|value| !own(value)).cloned().collect();
    headers.remove(VIA);
    for value in others {
        headers.append(VIA, value);
    }
}

fn names(headers: &HeaderMap, list: &HeaderName, option: &str) -> bool {
    let values = headers.get_all(list).iter();
    values
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
}

/// Whether an answer to `method` with `status` has no body whatever its head says.
pub(crate) fn is_bodiless(method: &Method, status: http::StatusCode) -> bool {
    method == Method::HEAD || status.is_informational() || matches!(status.as_u16(), 204 | 304)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(version: Version, fields: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().version(version).uri("/x");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).expect("valid").into_parts().0
    }

    const OUT: Origin = Origin { direction: TrafficDirection::Outbound, forward_proxy: false };
    const IN: Origin = Origin { direction: TrafficDirection::Inbound, ..OUT };

    fn pass(origin: Origin, fields: &[(&str, &str)]) -> HeaderMap {
        request(&head(Version::HTTP_11, fields), origin)
    }

    #[test]
    fn what_belongs_to_a_connection_ends_with_it() {
        let sent = pass(
            OUT,
            &[
                ("host", "a"),
                ("connection", "x-private, close, host"),
                ("connection", "keep-alive"),
                ("x-private", "1"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("upgrade", "h2c"),
                ("http2-settings", "x"),
                ("te", "gzip, trailers"),
                ("x-other", "stays"),
            ],
        );
        let mut names: Vec<_> = sent.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["host", "te", "via", "x-forwarded-proto", "x-other"]);
        assert_eq!(sent["te"], "trailers");
    }

    #[test]
    fn an_upgrade_passes_and_a_bare_upgrade_field_does_not() {
        let sent = pass(OUT, &[("connection", "Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(sent["upgrade"], "websocket");
        assert!(!pass(OUT, &[("upgrade", "websocket")]).contains_key("upgrade"));
        let mut answer = sent;
        response(&mut answer, true);
        assert_eq!(answer["upgrade"], "websocket");
    }

    #[test]
    fn nobody_but_the_mesh_speaks_for_the_mesh() {
        for origin in [OUT, IN] {
            assert!(!pass(origin, &[("x-tulle-outcome", "not-processed")]).contains_key(OUTCOME));
        }

        let mut answer = HeaderMap::new();
        Outcome::NotProcessed.write(&mut answer);
        assert_eq!(Outcome::take(&mut answer.clone(), false), None);
        assert_eq!(Outcome::take(&mut answer, true), Some(Outcome::NotProcessed));
        assert!(!answer.contains_key(OUTCOME));
    }

    #[test]
    fn the_application_does_not_hear_of_the_calling_sidecar() {
        let sent = pass(IN, &[("via", "1.1 cdn"), ("via", "1.1 tulle")]);
        assert_eq!(sent.get_all(VIA).iter().collect::<Vec<_>>(), ["1.1 cdn"]);
    }

    #[test]
    fn a_request_that_goes_round_is_noticed() {
        let mut headers = HeaderMap::new();
        for n in 0..MAX_SIDECARS {
            assert!(!is_loop(&headers), "after {n}");
            headers =
                request(&head(Version::HTTP_11, &[]), OUT).into_iter().fold(headers, |mut all, (_, v)| {
                    if v.as_bytes().ends_with(b"tulle") {
                        all.append(VIA, v);
                    }
                    all
                });
        }
        assert!(is_loop(&headers));
        let joined = ["1.1 tulle"; MAX_SIDECARS].join(", ");
        assert!(is_loop(&HeaderMap::from_iter([(VIA, joined.parse().expect("valid"))])));
    }

    #[test]
    fn what_is_missing_is_added_and_what_is_there_stays() {
        assert_eq!(pass(OUT, &[("x-forwarded-proto", "https")])[FORWARDED_PROTO], "https");
        assert_eq!(pass(OUT, &[])[FORWARDED_PROTO], "http");
    }

    #[test]
    fn the_clients_credentials_for_the_proxy_stay_here_only_in_a_forward_proxy() {
        let credentials = [("proxy-authorization", "Basic x")];
        assert!(pass(OUT, &credentials).contains_key(PROXY_AUTHORIZATION));
        assert!(!pass(Origin { forward_proxy: true, ..OUT }, &credentials).contains_key(PROXY_AUTHORIZATION));
    }

    #[test]
    fn split_cookies_are_joined() {
        let parts = head(Version::HTTP_2, &[("cookie", "a=1"), ("cookie", "b=2")]);
        assert_eq!(request(&parts, OUT)[COOKIE], "a=1; b=2");
    }

    #[test]
    fn a_retry_is_known_down_the_chain() {
        let mut headers = HeaderMap::new();
        mark_attempt(&mut headers, 1, false);
        assert!(headers.is_empty());
        mark_attempt(&mut headers, 1, true);
        assert_eq!((attempt_count(&headers), headers.len(), is_retry(&headers)), (1, 1, false));
        headers.insert(TRACEPARENT, HeaderValue::from_static("00-x"));
        headers.insert(TRACESTATE, HeaderValue::from_static("vendor=1"));
        mark_attempt(&mut headers, 2, false);
        mark_attempt(&mut headers, 3, false);
        assert_eq!(headers[TRACESTATE], "tulle=r,vendor=1");
        assert_eq!(attempt_count(&headers), 3);
        assert!(is_retry(&headers));
        // An application passes on the trace, but not the count.
        headers.remove(ATTEMPT_COUNT);
        assert!(is_retry(&headers));
        headers.insert(TRACESTATE, HeaderValue::from_static("tulle=rx"));
        assert!(!is_retry(&headers));
    }
}

//! What a request is hashed by.
//!
//! In: a route's hash policies and a request. Out: a hash, combined as Envoy combines it, and the cookie to set where
//! the mesh has made one up.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use tulle_mesh::model::{HashPolicy, Substitution};
use tulle_mesh::route::RequestView;

use crate::balance::{hash, hash_after};

/// The hash of a request, or `None` when no policy yields a value. A cookie that is to be set is put into `cookie`;
/// `random` is what it is made of.
pub(crate) fn of(
    policies: &[HashPolicy],
    request: &RequestView<'_>,
    client: IpAddr,
    random: u64,
    cookie: &mut Option<HeaderValue>,
) -> Option<u64> {
    let mut combined: Option<u64> = None;
    for policy in policies {
        let (value, terminal) = match policy {
            HashPolicy::Header { name, rewrite, terminal } => {
                (header(request.headers, name.as_str(), rewrite.as_ref()), *terminal)
            }
            HashPolicy::Cookie { name, ttl, path, attributes, terminal } => {
                let value = cookie_value(request.headers, name).map(|value| hash(value.as_bytes()));
                let made = || {
                    let value = format!("{random:016x}");
                    *cookie = Some(set_cookie(name, &value, (*ttl)?, path.as_deref(), attributes));
                    Some(hash(value.as_bytes()))
                };
                (value.or_else(made), *terminal)
            }
            HashPolicy::SourceIp { terminal } => (Some(hash(client.to_string().as_bytes())), *terminal),
            HashPolicy::Query { name, terminal } => {
                (request.query_value(name).map(|value| hash(value.as_bytes())), *terminal)
            }
            HashPolicy::FilterState { terminal, .. } => (None, *terminal),
        };
        if let Some(value) = value {
            combined = Some(combined.map_or(value, |before| before.rotate_left(1) ^ value));
        }
        if terminal && combined.is_some() {
            break;
        }
    }
    combined
}

/// Several values of one name are hashed one after the other, whatever order they come in.
fn header(headers: &HeaderMap, name: &str, rewrite: Option<&Substitution>) -> Option<u64> {
    let mut values = headers.get_all(name).iter().peekable();
    let first = values.next()?;
    if values.peek().is_none() && rewrite.is_none() {
        return Some(hash(first.as_bytes()));
    }
    let rewritten = |value: &HeaderValue| match (rewrite, value.to_str()) {
        (Some(rewrite), Ok(text)) => rewrite.apply(text).into_owned().into_bytes(),
        _ => value.as_bytes().to_vec(),
    };
    let mut values: Vec<_> = std::iter::once(first).chain(values).map(rewritten).collect();
    values.sort_unstable();
    Some(values.iter().fold(0, |before, value| hash_after(before, value)))
}

/// The value of a cookie, without its quotes; `None` where it is empty.
pub(super) fn cookie_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let pairs = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = pairs.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value.trim_matches('"')).filter(|v| !v.is_empty())
}

fn set_cookie(
    name: &str,
    value: &str,
    ttl: Duration,
    path: Option<&str>,
    attributes: &[(String, String)],
) -> HeaderValue {
    let mut text = format!("{name}=\"{value}\"");
    // Writing to a String can't fail.
    if !ttl.is_zero() {
        let _ = write!(text, "; Max-Age={}", ttl.as_secs());
    }
    if let Some(path) = path.filter(|path| !path.is_empty()) {
        let _ = write!(text, "; Path={path}");
    }
    for (name, value) in attributes {
        let equals = if value.is_empty() { "" } else { "=" };
        let _ = write!(text, "; {name}{equals}{value}");
    }
    text.push_str("; HttpOnly");
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, Method};

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn header_policy(name: &'static str, terminal: bool) -> HashPolicy {
        HashPolicy::Header { name: HeaderName::from_static(name), rewrite: None, terminal }
    }

    fn hash_of(policies: &[HashPolicy], fields: &[(&'static str, &'static str)]) -> Option<u64> {
        let fields = fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)));
        let headers: HeaderMap = fields.collect();
        let request = RequestView::new(&Method::GET, "a", "/x?user=7", &headers);
        of(policies, &request, CLIENT, 1, &mut None)
    }

    #[test]
    fn policies_combine_until_a_terminal_one_yields_a_value() {
        let (a, b) = (hash(b"1"), hash(b"2"));
        let fields = [("x-a", "1"), ("x-b", "2")];
        let both = [header_policy("x-a", false), header_policy("x-b", false)];
        assert_eq!(hash_of(&both, &fields), Some(a.rotate_left(1) ^ b));
        let first = [header_policy("x-a", true), header_policy("x-b", false)];
        assert_eq!(hash_of(&first, &fields), Some(a));
        assert_eq!(hash_of(&first, &fields[1..]), Some(b), "a terminal policy without a value ends nothing");
        assert_eq!(hash_of(&first, &[]), None);
        let second = [header_policy("x-b", false), header_policy("x-c", true), header_policy("x-a", false)];
        assert_eq!(hash_of(&second, &fields), Some(b), "it ends the list once there is a value");
    }

    #[test]
    fn values_of_one_header_are_hashed_in_any_order_and_as_they_are_rewritten() {
        let policy = [header_policy("x-a", false)];
        let (one, other) =
            (hash_of(&policy, &[("x-a", "b"), ("x-a", "a")]), Some(hash_after(hash(b"a"), b"b")));
        assert_eq!((one, hash_of(&policy, &[("x-a", "a"), ("x-a", "b")])), (other, other));
        let rewrite = Substitution::new("^u([0-9]+).*", r"\1").expect("valid");
        let name = HeaderName::from_static("x-a");
        let policy = [HashPolicy::Header { name, rewrite: Some(rewrite), terminal: false }];
        assert_eq!(hash_of(&policy, &[("x-a", "u17-x")]), Some(hash(b"17")));
        assert_eq!(hash_of(&policy, &[("x-a", "x")]), Some(hash(b"x")));
    }

    #[test]
    fn the_client_its_query_and_its_cookies_can_be_hashed() {
        let ip = [HashPolicy::SourceIp { terminal: true }];
        assert_eq!(hash_of(&ip, &[]), Some(hash(b"127.0.0.1")));
        let query = [HashPolicy::Query { name: "user".into(), terminal: true }];
        assert_eq!(hash_of(&query, &[]), Some(hash(b"7")));
        let cookie = HashPolicy::Cookie {
            name: "sid".into(),
            ttl: None,
            path: None,
            attributes: Vec::new(),
            terminal: true,
        };
        assert_eq!(hash_of(std::slice::from_ref(&cookie), &[("cookie", "a=b; sid=\"9\"")]), Some(hash(b"9")));
        assert_eq!(hash_of(&[cookie], &[("cookie", "a=b; xsid=9")]), None);
    }

    #[test]
    fn a_missing_cookie_with_a_life_is_made_up_and_set() {
        let policy = HashPolicy::Cookie {
            name: "sid".into(),
            ttl: Some(Duration::from_secs(60)),
            path: Some("/".into()),
            attributes: vec![("Secure".into(), String::new()), ("SameSite".into(), "Lax".into())],
            terminal: true,
        };
        let headers = HeaderMap::new();
        let request = RequestView::new(&Method::GET, "a", "/", &headers);
        let mut cookie = None;
        let made = of(std::slice::from_ref(&policy), &request, CLIENT, 255, &mut cookie);
        let cookie = cookie.expect("set");
        assert_eq!(cookie, "sid=\"00000000000000ff\"; Max-Age=60; Path=/; Secure; SameSite=Lax; HttpOnly");
        // The client sends it back, and comes to the same place.
        let back = HeaderMap::from_iter([(COOKIE, HeaderValue::from_static("sid=\"00000000000000ff\""))]);
        let request = RequestView::new(&Method::GET, "a", "/", &back);
        assert_eq!(of(&[policy], &request, CLIENT, 1, &mut None), made);
    }
}

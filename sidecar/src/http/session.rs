//! Sessions: which endpoint a request belongs to, and how a client is told.
//!
//! In: a route's session settings, a request's headers, the time. Out: the address of the endpoint that holds the session,
//! and the cookie or header that makes the next request come back to it. The token is the address (and the session's
//! end) in hexadecimal. It is no secret and is not trusted: whoever makes one up reaches an endpoint of the same
//! route's backends, as any request may.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue};
use tulle_mesh::model::{Session, SessionCarrier};

use super::hash::cookie_value;

/// The endpoint that holds the session of a request; `None` for a request without one, or whose session has ended.
pub(super) fn held(session: &Session, headers: &HeaderMap, now: SystemTime) -> Option<SocketAddr> {
    let token = match &session.carrier {
        SessionCarrier::Cookie { name, .. } => cookie_value(headers, name)?,
        SessionCarrier::Header(name) => headers.get(name)?.to_str().ok()?,
    };
    let (address, end) = match token.split_once('-') {
        Some((address, end)) => (address, Some(u64::from_str_radix(end, 16).ok()?)),
        None => (token, None),
    };
    match (session.lifetime, end) {
        // A session from before there was a lifetime has none to go by.
        (Some(_), None) => return None,
        (Some(lifetime), Some(end)) => {
            // Nor may a token say that its session lives for longer than it can.
            let left = Duration::from_secs(end.checked_sub(seconds(now)).filter(|left| *left > 0)?);
            if left > lifetime {
                return None;
            }
        }
        (None, _) => {}
    }
    read_address(address)
}

/// Tells the client of a request that `endpoint` has answered to come back to it.
pub(super) fn begin(session: &Session, endpoint: SocketAddr, now: SystemTime, headers: &mut HeaderMap) {
    let token = token(session, endpoint, now);
    let text = match &session.carrier {
        SessionCarrier::Cookie { name, path, permanent } => {
            let lifetime = session.lifetime.filter(|_| *permanent);
            let max_age = lifetime.map(|life| format!("; Max-Age={}", life.as_secs())).unwrap_or_default();
            let path = if path.is_empty() { String::new() } else { format!("; Path={path}") };
            format!("{name}={token}{max_age}{path}; HttpOnly")
        }
        SessionCarrier::Header(_) => token,
    };
    // A name that no header can carry has no session.
    let Ok(value) = HeaderValue::try_from(text) else { return };
    match &session.carrier {
        SessionCarrier::Cookie { .. } => drop(headers.try_append(SET_COOKIE, value)),
        SessionCarrier::Header(name) => drop(headers.try_insert(name, value)),
    }
}

fn token(session: &Session, endpoint: SocketAddr, now: SystemTime) -> String {
    let ip = match endpoint.ip() {
        IpAddr::V4(ip) => format!("{:08x}", u32::from(ip)),
        IpAddr::V6(ip) => format!("{:032x}", u128::from(ip)),
    };
    let end = session.lifetime.map(|life| format!("-{:x}", seconds(now).saturating_add(life.as_secs())));
    format!("{ip}{:04x}{}", endpoint.port(), end.unwrap_or_default())
}

fn read_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_at_checked(text.len().checked_sub(4)?)?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let ip = match ip.len() {
        8 => IpAddr::V4(u32::from_str_radix(ip, 16).ok()?.into()),
        32 => IpAddr::V6(u128::from_str_radix(ip, 16).ok()?.into()),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::COOKIE;
    use http::{HeaderName, HeaderValue};

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn cookie(lifetime: Option<u64>, permanent: bool) -> Session {
        let carrier = SessionCarrier::Cookie { name: "s".into(), path: "/".into(), permanent };
        Session { carrier, lifetime: lifetime.map(Duration::from_secs) }
    }

    /// What the client sends back, and where that leads at some time.
    fn back(session: &Session, endpoint: &str, now: u64) -> Option<SocketAddr> {
        let mut answer = HeaderMap::new();
        begin(session, endpoint.parse().expect("an address"), at(1000), &mut answer);
        let mut request = HeaderMap::new();
        match &session.carrier {
            SessionCarrier::Cookie { .. } => {
                let set = answer[SET_COOKIE].to_str().expect("text").to_owned();
                let pair = set.split(';').next().expect("a pair");
                request.insert(COOKIE, HeaderValue::try_from(format!("a=b; {pair}")).expect("valid"));
            }
            SessionCarrier::Header(name) => drop(request.insert(name, answer[name].clone())),
        }
        held(session, &request, at(now))
    }

    #[test]
    fn a_client_comes_back_to_its_endpoint() {
        let header = SessionCarrier::Header(HeaderName::from_static("x-session"));
        for session in
            [cookie(None, false), cookie(Some(60), true), Session { carrier: header, lifetime: None }]
        {
            for endpoint in ["10.1.2.3:8080", "[fd00::1]:15006"] {
                assert_eq!(back(&session, endpoint, 1001), endpoint.parse().ok(), "{session:?}");
            }
        }
    }

    #[test]
    fn a_session_ends_with_its_lifetime_whatever_its_token_says() {
        let session = cookie(Some(60), false);
        assert_eq!(back(&session, "10.1.2.3:80", 1059), "10.1.2.3:80".parse().ok());
        assert_eq!(back(&session, "10.1.2.3:80", 1060), None, "it is over");
        assert_eq!(back(&cookie(Some(600), false), "10.1.2.3:80", 1599), "10.1.2.3:80".parse().ok());
        let forged = |token: &str| {
            let value = HeaderValue::try_from(format!("s={token}")).expect("valid");
            held(&session, &HeaderMap::from_iter([(COOKIE, value)]), at(1000))
        };
        assert!(forged("0a0102030050-424").is_some(), "1060 seconds");
        assert_eq!(forged("0a0102030050"), None, "without an end");
        assert_eq!(forged("0a0102030050-425"), None, "later than any that was given out");
        assert_eq!(forged("0a0102030050-ffffffffffffffff"), None);
    }

    #[test]
    fn what_is_no_token_is_no_session() {
        for token in
            ["", "0", "00ü0", "0a01020300500", "zz0102030050", "0a0102030050-", "-1", "+a0102030050x"]
        {
            let value = HeaderValue::from_bytes(format!("s={token}").as_bytes()).expect("valid");
            let headers = HeaderMap::from_iter([(COOKIE, value)]);
            assert_eq!(held(&cookie(None, false), &headers, at(0)), None, "{token:?}");
        }
    }

    #[test]
    fn only_a_permanent_cookie_says_how_long_it_lives() {
        let set = |session: &Session| {
            let mut headers = HeaderMap::new();
            begin(session, SocketAddr::from(([10, 0, 0, 1], 80)), at(16), &mut headers);
            headers[SET_COOKIE].to_str().expect("text").to_owned()
        };
        assert_eq!(set(&cookie(None, false)), "s=0a0000010050; Path=/; HttpOnly");
        assert_eq!(set(&cookie(Some(240), false)), "s=0a0000010050-100; Path=/; HttpOnly");
        assert_eq!(set(&cookie(Some(240), true)), "s=0a0000010050-100; Max-Age=240; Path=/; HttpOnly");
    }
}

//! Where an answer sends the probe.
//!
//! In: an answer, and what was asked for. Out: what to ask for next, which is always at the same address (RFC 9110,
//! sections 10.2.2 and 15.4; RFC 3986, section 5.2).

use std::net::IpAddr;

use http::header::LOCATION;
use http::uri::PathAndQuery;
use http::{Response, Uri};

use super::http::Place;

/// What follows from an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It is the last word.
    Here,
    /// This is to be asked for.
    Follow(Place),
}

/// What `answer` of the application at `ip` to `place` leads to.
///
/// # Errors
/// When it is a redirect to what can't be read.
pub(super) fn next(answer: &Response<()>, ip: IpAddr, place: &Place) -> Result<Next, String> {
    if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(Next::Here);
    }
    let Some(location) = answer.headers().get(LOCATION) else { return Ok(Next::Here) };
    let location = location.to_str().ok().and_then(|location| resolve(location, ip, place));
    location.ok_or_else(|| format!("it answers {} to a place that is none", answer.status().as_u16()))
}

/// The place that a reference means; `None` where it can't be read.
fn resolve(reference: &str, ip: IpAddr, place: &Place) -> Option<Next> {
    let reference = reference.split('#').next().unwrap_or_default();
    let scheme = if place.tls { "https" } else { "http" };
    if let Some(rest) = reference.strip_prefix("//") {
        return absolute(&format!("{scheme}://{rest}"), ip);
    }
    if has_scheme(reference) {
        return absolute(reference, ip);
    }
    let path = place.target.path();
    let target = match reference.as_bytes().first() {
        None => place.target.to_string(),
        Some(b'/') => reference.to_owned(),
        Some(b'?') => format!("{path}{reference}"),
        Some(_) => format!("{}{reference}", &path[..=path.rfind('/')?]),
    };
    Some(Next::Follow(Place { target: without_dots(&target)?, ..place.clone() }))
}

/// A whole URL: to another host it is no place for a probe.
fn absolute(url: &str, ip: IpAddr) -> Option<Next> {
    let (tls, usual) = match url.split(':').next()?.to_ascii_lowercase().as_str() {
        "http" => (false, 80),
        "https" => (true, 443),
        _ => return Some(Next::Here),
    };
    let uri: Uri = url.parse().ok()?;
    let (authority, host) = (uri.authority()?.as_str(), uri.host()?);
    let port = match uri.port_u16() {
        Some(port) => port,
        None if authority.trim_end_matches(':').ends_with(host) => usual,
        None => return None,
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.parse() != Ok(ip) {
        return Some(Next::Here);
    }
    let target = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    Some(Next::Follow(Place { tls, port, target: without_dots(target)? }))
}

fn has_scheme(reference: &str) -> bool {
    let scheme = reference.split(['/', '?']).next().unwrap_or_default().split_once(':');
    scheme.is_some_and(|(scheme, _)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    })
}

/// Takes `.` and `..` out of a path, which has a slash in front.
fn without_dots(target: &str) -> Option<PathAndQuery> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("/{}{query}", kept.join("/")).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_at_the_application_s_address() {
        let place = |tls, port, target: &str| Place { tls, port, target: target.parse().expect("a path") };
        let from = place(false, 8080, "/a/b?c=d");
        for (location, to) in [
            ("/x?y", Some(place(false, 8080, "/x?y"))),
            ("x", Some(place(false, 8080, "/a/x"))),
            ("?z", Some(place(false, 8080, "/a/b?z"))),
            ("", Some(place(false, 8080, "/a/b?c=d"))),
            ("#top", Some(place(false, 8080, "/a/b?c=d"))),
            ("../../../x/./y/..", Some(place(false, 8080, "/x/"))),
            ("x:y", None),
            ("./x:y", Some(place(false, 8080, "/a/x:y"))),
            ("http://10.0.0.7:9090", Some(place(false, 9090, "/"))),
            ("HTTPS://10.0.0.7/s", Some(place(true, 443, "/s"))),
            ("//10.0.0.7/s", Some(place(false, 80, "/s"))),
            ("https://10.0.0.7:/s", Some(place(true, 443, "/s"))),
            ("http://10.0.0.8:8080/", None),
            ("http://10.0.0.7.example/", None),
            ("http://10.0.0.7@evil.example/", None),
            ("http://evil.example/", None),
            ("//evil.example/", None),
            ("ftp://10.0.0.7/", None),
        ] {
            let to = to.map_or(Next::Here, Next::Follow);
            assert_eq!(
                resolve(location, "10.0.0.7".parse().expect("an address"), &from),
                Some(to),
                "{location}"
            );
        }
        for unreadable in ["/a b", "http://", "http://[10.0.0.7/", "http://10.0.0.7:99999/"] {
            assert_eq!(
                resolve(unreadable, "10.0.0.7".parse().expect("an address"), &from),
                None,
                "{unreadable}"
            );
        }
        let six = resolve("https://[fd00::7]:8443/s", "fd00::7".parse().expect("an address"), &from);
        assert_eq!(six, Some(Next::Follow(place(true, 8443, "/s"))));
    }
}

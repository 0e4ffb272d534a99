//! What routing and authorization see of a request: its head, borrowed.

use std::borrow::Cow;

use http::{HeaderMap, Method};
use percent_encoding::percent_decode_str;

/// The head of a request. It is made by [`RequestView::new`], so that its parts agree with each other.
///
/// It has no `Debug`: heads hold credentials.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct RequestView<'a> {
    /// The method.
    pub method: &'a Method,
    /// `http` or `https`, as the client sees it.
    pub scheme: &'a str,
    /// `host` or `host:port`, as it was given.
    pub authority: &'a str,
    /// The path without its query, as it was given.
    pub path: &'a str,
    /// What stands behind the `?`, or `None` where there is none.
    pub query: Option<&'a str>,
    /// The header fields.
    pub headers: &'a HeaderMap,
    /// Path and query together, for conditions on `:path`.
    path_and_query: &'a str,
}

impl<'a> RequestView<'a> {
    /// Views a request of scheme `http`. `path_and_query` is the request's target without scheme and authority; what
    /// stands behind a `#` is dropped, as it is no part of a request (RFC 9112, 3.2).
    pub fn new(
        method: &'a Method,
        authority: &'a str,
        path_and_query: &'a str,
        headers: &'a HeaderMap,
    ) -> Self {
        let path_and_query = path_and_query.split_once('#').map_or(path_and_query, |(target, _)| target);
        let (path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path_and_query, None),
        };
        Self { method, scheme: "http", authority, path, query, headers, path_and_query }
    }

    /// The same request with another scheme.
    #[must_use]
    pub fn with_scheme(self, scheme: &'a str) -> Self {
        Self { scheme, ..self }
    }

    /// The same request with another target.
    #[must_use]
    pub fn with_target(self, path_and_query: &'a str) -> Self {
        Self::new(self.method, self.authority, path_and_query, self.headers).with_scheme(self.scheme)
    }

    /// Path and query together.
    pub fn target(&self) -> &'a str {
        self.path_and_query
    }

    /// The values of a header or pseudo-header. Bytes that are not UTF-8 become U+FFFD. `host` is the authority, whichever
    /// version of HTTP carried it.
    pub fn values(&self, name: &str) -> impl Iterator<Item = Cow<'a, str>> + use<'a> {
        let own = match name {
            ":method" => Some(self.method.as_str()),
            ":authority" | "host" => Some(self.authority),
            ":path" => Some(self.path_and_query),
            ":scheme" => Some(self.scheme),
            _ => None,
        };
        let fields = own.is_none().then(|| self.headers.get_all(name).iter());
        let fields = fields.into_iter().flatten().map(|value| String::from_utf8_lossy(value.as_bytes()));
        own.map(Cow::Borrowed).into_iter().chain(fields)
    }

    /// All values of a header or pseudo-header, joined by `,` to be shown; `None` where it is missing.
    pub fn header(&self, name: &str) -> Option<Cow<'a, str>> {
        let mut values = self.values(name);
        let mut joined = values.next()?;
        for value in values {
            let joined = joined.to_mut();
            joined.push(',');
            joined.push_str(&value);
        }
        Some(joined)
    }

    /// The percent-decoded value of the first query parameter of that name, or `None` where there is none. A parameter
    /// without `=` is empty.
    pub fn query_value(&self, name: &str) -> Option<Cow<'a, str>> {
        self.query?.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            // An empty pair, as in `?a&&b`, is no parameter.
            (!pair.is_empty() && decoded(key) == name).then(|| decoded(value))
        })
    }

    /// Whether it is a gRPC request by its content type: `application/grpc`, bare or with a suffix.
    pub fn is_grpc(&self) -> bool {
        let content_type = self.headers.get(http::header::CONTENT_TYPE);
        content_type
            .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+')))
    }
}

fn decoded(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view<'a>(target: &'a str, headers: &'a HeaderMap) -> RequestView<'a> {
        RequestView::new(&Method::PUT, "Cart:80", target, headers)
    }

    #[test]
    fn a_target_is_split_at_its_first_question_mark() {
        let none = HeaderMap::new();
        for (target, path, query) in [
            ("/a?b?c", "/a", Some("b?c")),
            ("/a?", "/a", Some("")),
            ("/a", "/a", None),
            ("", "", None),
            ("*", "*", None),
            ("/a#b?c", "/a", None),
            ("/a?b#c", "/a", Some("b")),
        ] {
            let view = view(target, &none);
            assert_eq!((view.path, view.query), (path, query), "{target}");
        }
    }

    #[test]
    fn pseudo_headers_are_the_requests_own() {
        let mut headers = HeaderMap::new();
        headers.insert("host", "other".parse().unwrap());
        let view = view("/a?b", &headers).with_scheme("https");
        let values =
            [":method", ":authority", "host", ":path", ":scheme"].map(|name| view.header(name).unwrap());
        assert_eq!(values, ["PUT", "Cart:80", "Cart:80", "/a?b", "https"]);
        assert_eq!(view.header(":other"), None);
        assert_eq!(view.header("not a name"), None);
    }

    #[test]
    fn several_values_of_a_header_are_joined() {
        let mut headers = HeaderMap::new();
        headers.append("x", "a".parse().unwrap());
        assert!(matches!(view("/", &headers).header("x"), Some(Cow::Borrowed("a"))));
        headers.append("x", "b, c".parse().unwrap());
        headers.append("x", http::HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(view("/", &headers).header("x").unwrap(), "a,b, c,\u{fffd}");
    }

    #[test]
    fn the_first_query_parameter_of_a_name_counts() {
        let none = HeaderMap::new();
        let view = view("/?&b&%61=1%202&a=3&c=%zz&%2&=x&p=a+b", &none);
        for (name, value) in [
            ("a", Some("1 2")),
            ("b", Some("")),
            ("c", Some("%zz")),
            ("%2", Some("")),
            ("", Some("x")),
            ("p", Some("a+b")),
            ("A", None),
        ] {
            assert_eq!(view.query_value(name).as_deref(), value, "{name}");
        }
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let headers =
                [(http::header::CONTENT_TYPE, value.parse().unwrap())].into_iter().collect::<HeaderMap>();
            assert_eq!(view("/", &headers).is_grpc(), expected, "{value}");
        }
        assert!(!view("/", &HeaderMap::new()).is_grpc());
    }
}

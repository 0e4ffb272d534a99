//! Cross-origin requests: the answers to preflight requests, and the marks on all others (Fetch standard, GEP-1767).
//!
//! In: a route's rules and a request's headers. Out: the answer to a preflight request, whether or not its origin is allowed,
//! and headers for any other answer of the route. Whether a page may read it is up to the browser: no request is refused.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tulle_mesh::model::Cors;

/// Whether a request asks what another may do. The mesh answers it, and no application sees it, unless its origin is not
/// allowed and the rules let such pass.
pub(super) fn is_preflight(method: &Method, request: &HeaderMap) -> bool {
    let said = |name: &HeaderName| request.get(name).is_some_and(|value| !value.is_empty());
    *method == Method::OPTIONS && said(&ORIGIN) && said(&ACCESS_CONTROL_REQUEST_METHOD)
}

/// Whether the mesh answers a preflight request.
pub(super) fn is_answered(cors: &Cors, request: &HeaderMap) -> bool {
    !cors.forward_unmatched || allowed_origin(cors, request).is_some()
}

/// What the answer to a preflight request says, if its origin is allowed.
pub(super) fn allow(cors: &Cors, request: &HeaderMap, response: &mut HeaderMap) {
    if allowed_origin(cors, request).is_none() {
        return;
    }
    let or_asked = |said: &str, name: &HeaderName| match said {
        "*" => request.get(name).cloned(),
        said => text(said),
    };
    set(
        response,
        ACCESS_CONTROL_ALLOW_METHODS,
        or_asked(&cors.allow_methods, &ACCESS_CONTROL_REQUEST_METHOD),
    );
    set(
        response,
        ACCESS_CONTROL_ALLOW_HEADERS,
        or_asked(&cors.allow_headers, &ACCESS_CONTROL_REQUEST_HEADERS),
    );
    set(response, ACCESS_CONTROL_MAX_AGE, text(&cors.max_age));
    if cors.allow_private_network && request.get(REQUEST_PRIVATE_NETWORK).is_some_and(|asked| asked == "true")
    {
        set(response, ALLOW_PRIVATE_NETWORK, Some(HeaderValue::from_static("true")));
    }
}

/// Marks an answer, whoever made it, with whether the origin of its request may read it.
pub(super) fn mark(cors: &Cors, request: &HeaderMap, preflight: bool, response: &mut HeaderMap) {
    // A cache must not give the answer for one origin to another.
    drop(response.try_append(VARY, HeaderValue::from_static("Origin")));
    let Some(origin) = allowed_origin(cors, request) else { return };
    set(response, ACCESS_CONTROL_ALLOW_ORIGIN, Some(origin.clone()));
    if cors.allow_credentials {
        set(response, ACCESS_CONTROL_ALLOW_CREDENTIALS, Some(HeaderValue::from_static("true")));
    }
    if preflight {
        return;
    }
    let exposed = match cors.expose_headers.as_str() {
        // With credentials a browser takes the asterisk for a name.
        "*" if cors.allow_credentials => {
            let names: Vec<_> = response.keys().map(HeaderName::as_str).collect();
            text(&names.join(", "))
        }
        said => text(said),
    };
    set(response, ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
}

fn allowed_origin<'a>(cors: &Cors, request: &'a HeaderMap) -> Option<&'a HeaderValue> {
    let origin = request.get(ORIGIN).filter(|origin| !origin.is_empty())?;
    origin.to_str().is_ok_and(|text| cors.allows(text)).then_some(origin)
}

fn text(text: &str) -> Option<HeaderValue> {
    (!text.is_empty()).then(|| HeaderValue::from_str(text).ok()).flatten()
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        // The result only tells whether the map is full, and what was there before.
        drop(headers.try_insert(name, value));
    }
}

const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

#[cfg(test)]
mod tests {
    use super::*;
    use tulle_mesh::model::StringMatch;

    fn cors(credentials: bool, lists: [&str; 3]) -> Cors {
        let [allow_methods, allow_headers, expose_headers] = lists.map(Into::into);
        Cors {
            allow_origins: vec![StringMatch::exact("https://shop.example")],
            allow_credentials: credentials,
            allow_methods,
            allow_headers,
            expose_headers,
            max_age: "7".into(),
            ..Cors::default()
        }
    }

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        fields.iter().map(field).collect()
    }

    const ASKED: &[(&str, &str)] = &[
        ("origin", "https://shop.example"),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "x-a, x-b"),
    ];

    /// The headers of the answer to a request, without the prefix that they share, by name.
    fn answer(cors: &Cors, request: &[(&'static str, &'static str)], method: Method) -> Vec<String> {
        let (request, mut response) = (headers(request), headers(&[("x-app", "1")]));
        let preflight = is_preflight(&method, &request);
        if preflight {
            allow(cors, &request, &mut response);
        }
        mark(cors, &request, preflight, &mut response);
        let text = |(name, value): (&HeaderName, &HeaderValue)| {
            let name = name.as_str().strip_prefix("access-control-")?.to_owned();
            Some(format!("{name}: {}", value.to_str().expect("text")))
        };
        let mut lines: Vec<_> = response.iter().filter_map(text).collect();
        lines.sort();
        assert_eq!(response[VARY], "Origin");
        lines
    }

    #[test]
    fn a_preflight_request_hears_what_is_configured_or_what_it_asked_for() {
        let named = cors(false, ["PUT, DELETE", "X-A", "X-App"]);
        assert_eq!(
            answer(&named, ASKED, Method::OPTIONS),
            [
                "allow-headers: X-A",
                "allow-methods: PUT, DELETE",
                "allow-origin: https://shop.example",
                "max-age: 7"
            ]
        );
        let all = cors(true, ["*", "*", "*"]);
        assert_eq!(
            answer(&all, ASKED, Method::OPTIONS),
            [
                "allow-credentials: true",
                "allow-headers: x-a, x-b",
                "allow-methods: PUT",
                "allow-origin: https://shop.example",
                "max-age: 7"
            ]
        );
        assert_eq!(answer(&all, &ASKED[..2], Method::OPTIONS).len(), 4, "no headers were asked for");
        let other = [("origin", "https://evil.example"), ASKED[1]];
        assert_eq!(answer(&all, &other, Method::OPTIONS), [""; 0]);
    }

    #[test]
    fn an_answer_says_who_may_read_it() {
        let plain = cors(false, ["", "", "*"]);
        assert_eq!(
            answer(&plain, &ASKED[..1], Method::GET),
            ["allow-origin: https://shop.example", "expose-headers: *"]
        );
        // OPTIONS without asking for a method is a request like any other.
        assert_eq!(answer(&plain, &ASKED[..1], Method::OPTIONS).len(), 2);
        let mut trusted = cors(true, ["", "", "*"]);
        let exposed = answer(&trusted, &ASKED[..1], Method::GET).pop().expect("one");
        assert!(exposed.contains("x-app") && !exposed.contains('*'), "{exposed}");
        trusted.expose_headers = "X-App, X-More".into();
        assert_eq!(answer(&trusted, &ASKED[..1], Method::GET)[2], "expose-headers: X-App, X-More");
        assert_eq!(answer(&trusted, &[], Method::GET), [""; 0]);
    }

    #[test]
    fn an_asterisk_allows_every_origin() {
        let mut open = cors(false, ["", "", ""]);
        open.allow_origins = vec![StringMatch::exact("*")];
        let lines = answer(&open, &[("origin", "null")], Method::GET);
        assert_eq!(lines, ["allow-origin: null"]);
    }
}

//! How the mesh says that an answer is its own: RFC 9209 `Proxy-Status`.

use std::time::SystemTime;

use http::header::DATE;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use jiff::Timestamp;

/// `proxy-status`
pub(crate) const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// A request that is answered without being looked at further. The fault is the client's, where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The answer's status.
    pub(crate) status: StatusCode,
    /// The RFC 9209 error token.
    pub(crate) error: &'static str,
    /// What is wrong, for people.
    pub(crate) details: &'static str,
}

impl Refusal {
    /// The target is longer than a request's may be.
    pub(crate) const URI_TOO_LONG: Self = Self {
        status: StatusCode::URI_TOO_LONG,
        error: "http_request_denied",
        details: "the request target is too long",
    };

    /// The head is larger, or has more fields, than a request's may be.
    pub(crate) const HEADERS_TOO_LARGE: Self = Self {
        status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        error: "http_request_denied",
        details: "the request's headers are too large or too many",
    };

    /// The head took too long.
    pub(crate) const HEAD_TIMEOUT: Self = Self {
        status: StatusCode::REQUEST_TIMEOUT,
        error: "http_request_error",
        details: "the request's head did not arrive in time",
    };

    /// The connection was closed while nothing was asked on it, as far as this end had heard. Not the client's fault.
    pub(crate) const CLOSED: Self = Self {
        status: StatusCode::SERVICE_UNAVAILABLE,
        error: "connection_terminated",
        details: "the connection was closed before the request was looked at",
    };

    /// An Expect that nobody knows.
    pub(crate) const EXPECTATION_FAILED: Self = Self {
        status: StatusCode::EXPECTATION_FAILED,
        error: "http_request_denied",
        details: "an expectation other than 100-continue",
    };

    /// HTTP/1.0, where it is not served.
    pub(crate) const HTTP_10: Self = Self {
        status: StatusCode::UPGRADE_REQUIRED,
        error: "http_protocol_error",
        details: "HTTP/1.0 is not served here",
    };

    /// A request that breaks the rules, in a way that `details` names.
    pub(crate) const fn bad_request(details: &'static str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error: "http_request_error", details }
    }

    /// The answer that says so. It has no body.
    pub(crate) fn response(self) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(DATE, http_date(SystemTime::now()));
        headers.insert(PROXY_STATUS, proxy_status(self.error, self.details));
        response
    }
}

/// A time as HTTP writes it (RFC 9110 section 5.6.7).
pub(crate) fn http_date(time: SystemTime) -> HeaderValue {
    let text = Timestamp::try_from(time)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .strftime("%a, %d %b %Y %H:%M:%S GMT")
        .to_string();
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The value of `Proxy-Status` for an answer of the mesh itself: an RFC 9209 error token and a text for people, of
/// which characters that a structured field can't carry are replaced.
pub(crate) fn proxy_status(error: &str, details: &str) -> HeaderValue {
    let mut value = format!("tulle; error={error}; details=\"");
    for c in details.chars() {
        match c {
            '"' | '\\' => value.extend(['\\', c]),
            ' '..='~' => value.push(c),
            _ => value.push('?'),
        }
    }
    value.push('"');
    // Only printable ASCII was written, whatever `error` is made of.
    HeaderValue::from_str(&value).unwrap_or_else(|_| HeaderValue::from_static("tulle"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_as_in_the_standard() {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(784_111_777);
        assert_eq!(http_date(time), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn any_text_makes_a_valid_field() {
        let value = proxy_status("dns_error", "no \"such\\ host\"\r\nx: y \u{e9}");
        assert_eq!(value, r#"tulle; error=dns_error; details="no \"such\\ host\"??x: y ?""#);
    }
}

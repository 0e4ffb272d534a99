//! Request heads.
//!
//! In: the bytes of a head. Out: a request and how its body is framed, or a refusal. Whatever another server could
//! understand differently is refused here (RFC 9112 section 11.2), before anything is forwarded.

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, EXPECT, HOST, HeaderValue};
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version};

use super::framing::Framing;
use super::head::{HeadEnd, fields, slice_of, with_fields};
use crate::http::refusal::Refusal;

/// The longest request target, in bytes. RFC 9110 section 4.1 asks for at least 8000.
const MAX_TARGET: usize = 16 * 1024;
/// Empty lines before a request that are overlooked (RFC 9112 section 2.2 asks for one), in bytes.
const MAX_LEADING: usize = 8;

/// How large a head may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLimits {
    /// In bytes, from the request line to the empty line.
    pub(crate) bytes: usize,
    /// In fields.
    pub(crate) fields: usize,
}

/// Reads request heads, one after the other.
#[derive(Debug, Default)]
pub(crate) struct RequestReader {
    end: HeadEnd,
    leading: usize,
}

/// A request's head and what it means for the connection.
#[derive(Debug)]
pub(crate) struct RequestHead {
    /// The head. Without Transfer-Encoding, and with the target's authority as Host where it has one.
    pub(crate) request: Request<()>,
    /// Where its body ends.
    pub(crate) framing: Framing,
    /// Whether the client wants to send another request on the connection.
    pub(crate) keep_alive: bool,
    /// Whether it waits for 100 before it sends the body.
    pub(crate) expects_continue: bool,
}

impl RequestReader {
    /// Takes a request's head off the front of `bytes`; `None` when more has to come.
    ///
    /// # Errors
    /// When it is malformed, ambiguous or too large. The connection can't be used any more then.
    pub(crate) fn take(
        &mut self,
        bytes: &mut BytesMut,
        limits: HeadLimits,
    ) -> Result<Option<RequestHead>, Refusal> {
        if !self.skip_empty_lines(bytes)? {
            return Ok(None);
        }
        match self.end.find(bytes).map_err(Refusal::bad_request)? {
            Some(len) if len <= limits.bytes => {
                self.leading = 0;
                parse(&bytes.split_to(len).freeze(), limits.fields).map(Some)
            }
            None if bytes.len() <= limits.bytes && !target_too_long(bytes) => Ok(None),
            _ if target_too_long(bytes) => Err(Refusal::URI_TOO_LONG),
            _ => Err(Refusal::HEADERS_TOO_LARGE),
        }
    }

    /// `false` when the bytes at hand are not enough to tell.
    fn skip_empty_lines(&mut self, bytes: &mut BytesMut) -> Result<bool, Refusal> {
        while bytes.starts_with(b"\r\n") {
            bytes.advance(2);
            self.leading += 2;
            if self.leading > MAX_LEADING {
                return Err(Refusal::bad_request("too many empty lines before the request"));
            }
        }
        Ok(!matches!(bytes.as_ref(), [] | [b'\r']))
    }
}

/// Whether the request line is longer than the longest target.
fn target_too_long(bytes: &[u8]) -> bool {
    bytes.len() > MAX_TARGET && !bytes[..MAX_TARGET].contains(&b'\n')
}

fn parse(head: &Bytes, max_fields: usize) -> Result<RequestHead, Refusal> {
    with_fields(max_fields, |uninit| {
        let mut parsed = httparse::Request::new(&mut []);
        match httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut parsed, head, uninit) {
            Ok(httparse::Status::Complete(len)) if len == head.len() => {}
            Ok(_) => return Err(Refusal::bad_request("a malformed request")),
            Err(error) => return Err(refusal(error)),
        }
        let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(Refusal::bad_request("a malformed request line"));
        };
        let method =
            Method::from_bytes(method.as_bytes()).map_err(|_| Refusal::bad_request("an invalid method"))?;
        let version = if version == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
        let uri = parse_target(head, target, &method)?;

        let mut request = Request::new(());
        fields(head, parsed.headers, request.headers_mut()).map_err(Refusal::bad_request)?;
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.version_mut() = version;
        check(request)
    })
}

/// The checks that need the whole head.
fn check(mut request: Request<()>) -> Result<RequestHead, Refusal> {
    let version = request.version();
    check_host(&request)?;
    let framing = Framing::of_request(version, request.headers()).map_err(Refusal::bad_request)?;
    if request.method() == Method::CONNECT && framing != Framing::Empty {
        return Err(Refusal::bad_request("CONNECT with a body"));
    }
    let keep_alive = keeps_alive(version, request.headers());
    let expects_continue = match request.headers().get(EXPECT) {
        None => false,
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
            version == Version::HTTP_11 && framing != Framing::Empty
        }
        Some(_) => return Err(Refusal::EXPECTATION_FAILED),
    };
    request.headers_mut().remove(http::header::TRANSFER_ENCODING);
    if request.method() != Method::CONNECT
        && let Some(authority) = request.uri().authority()
    {
        // RFC 9112 section 3.2.2: what the target says replaces what Host says.
        let host = HeaderValue::from_str(authority.as_str())
            .map_err(|_| Refusal::bad_request("an invalid authority"))?;
        request.headers_mut().insert(HOST, host);
    }
    Ok(RequestHead { request, framing, keep_alive, expects_continue })
}

/// One Host with HTTP/1.1, at most one with HTTP/1.0, and only a host and a port in it (RFC 9112 section 3.2).
fn check_host(request: &Request<()>) -> Result<(), Refusal> {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version() == Version::HTTP_10 => Ok(()),
        (None, _) => Err(Refusal::bad_request("no Host")),
        (Some(_), Some(_)) => Err(Refusal::bad_request("more than one Host")),
        (Some(host), None) if is_host(host.as_bytes()) => Ok(()),
        (Some(_), None) => Err(Refusal::bad_request("an invalid Host")),
    }
}

/// Whether a text is a host with or without a port (RFC 3986 section 3.2.2).
pub(crate) fn is_host(text: &[u8]) -> bool {
    let (host, port) = match text {
        [b'[', rest @ ..] => match rest.iter().position(|&b| b == b']') {
            Some(end) if rest[..end].iter().all(|&b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.')) => {
                (&rest[..end], &rest[end + 1..])
            }
            _ => return false,
        },
        _ => text.split_at(text.iter().position(|&b| b == b':').unwrap_or(text.len())),
    };
    let in_name = |b: &u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%:".contains(b);
    let port = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    !host.is_empty() && host.iter().all(in_name) && port
}

/// A target in the form that goes with its method (RFC 9112 section 3.2).
fn parse_target(head: &Bytes, target: &str, method: &Method) -> Result<Uri, Refusal> {
    if target.len() > MAX_TARGET {
        return Err(Refusal::URI_TOO_LONG);
    }
    if !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(Refusal::bad_request("an invalid character in the target"));
    }
    let uri = Uri::from_maybe_shared(slice_of(head, target.as_bytes()))
        .map_err(|_| Refusal::bad_request("an invalid target"))?;
    let well_formed = if method == Method::CONNECT {
        uri.scheme().is_none() && uri.path().is_empty() && uri.port().is_some() && is_host(target.as_bytes())
    } else if target == "*" {
        method == Method::OPTIONS
    } else if target.starts_with('/') {
        true
    } else {
        let scheme = matches!(uri.scheme_str(), Some("http" | "https"));
        scheme && uri.authority().is_some_and(|authority| is_host(authority.as_str().as_bytes()))
    };
    if well_formed { Ok(uri) } else { Err(Refusal::bad_request("a target that does not go with the method")) }
}

/// Whether the sender keeps the connection open after this message.
pub(crate) fn keeps_alive(version: Version, headers: &HeaderMap) -> bool {
    let has = |option: &str| {
        let values = headers.get_all(CONNECTION).iter();
        values.filter_map(|value| value.to_str().ok()).any(|value| names(value, option))
    };
    if version == Version::HTTP_11 { !has("close") } else { has("keep-alive") && !has("close") }
}

/// Whether a comma-separated list names an option.
pub(crate) fn names(list: &str, option: &str) -> bool {
    list.split(',').any(|item| item.trim().eq_ignore_ascii_case(option))
}

fn refusal(error: httparse::Error) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => Refusal::HEADERS_TOO_LARGE,
        httparse::Error::Version => Refusal {
            status: StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            error: "http_protocol_error",
            details: "an unknown HTTP version",
        },
        httparse::Error::HeaderName => Refusal::bad_request("a malformed header name"),
        httparse::Error::HeaderValue => Refusal::bad_request("a malformed header value"),
        httparse::Error::NewLine => Refusal::bad_request("a line that does not end where it should"),
        httparse::Error::Token | httparse::Error::Status => Refusal::bad_request("a malformed request line"),
    }
}

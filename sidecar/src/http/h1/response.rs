//! Response heads, as an upstream sends them.
//!
//! In: the bytes of a head. Out: a response and how its body is framed, or what is wrong with it. An upstream that
//! frames a response ambiguously is not repaired: the rest of the connection might be another's answer.

use bytes::{Bytes, BytesMut};
use http::header::TRANSFER_ENCODING;
use http::{Method, Response, StatusCode, Version};

use super::framing::Framing;
use super::head::{HeadEnd, fields, with_fields};
use super::request::keeps_alive;

/// The largest response head, in bytes.
const MAX_HEAD: usize = 256 * 1024;
/// The most fields of a response.
const MAX_FIELDS: usize = 256;

/// A response's head and what it means for the connection.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    /// The head, without Transfer-Encoding.
    pub(crate) response: Response<()>,
    /// Where its body ends.
    pub(crate) framing: Framing,
    /// Whether the server keeps the connection open.
    pub(crate) keep_alive: bool,
}

/// Takes the head of a response to `method` off the front of `bytes`; `None` when more has to come. `end` belongs to
/// the connection.
///
/// # Errors
/// When it is malformed, ambiguous or too large.
pub(crate) fn take_response(
    bytes: &mut BytesMut,
    end: &mut HeadEnd,
    method: &Method,
) -> Result<Option<ResponseHead>, &'static str> {
    match end.find(bytes)? {
        Some(len) if len <= MAX_HEAD => parse(&bytes.split_to(len).freeze(), method).map(Some),
        None if !may_be_http(bytes) => Err("an answer that is not HTTP"),
        None if bytes.len() <= MAX_HEAD => Ok(None),
        _ => Err("a response head that is too large"),
    }
}

/// Whether a head may begin with `bytes`. A server of another protocol that greets its clients would be waited for in
/// vain. One of HTTP/2 begins with a zero, and is told by the whole header of its first frame.
fn may_be_http(bytes: &[u8]) -> bool {
    const START: &[u8] = b"HTTP/";
    const FRAME_HEADER: usize = 9;
    let known = bytes.len().min(START.len());
    bytes[..known] == START[..known] || (bytes[0] == 0 && bytes.len() < FRAME_HEADER)
}

fn parse(head: &Bytes, method: &Method) -> Result<ResponseHead, &'static str> {
    with_fields(MAX_FIELDS, |uninit| {
        let mut parsed = httparse::Response::new(&mut []);
        match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, head, uninit)
        {
            Ok(httparse::Status::Complete(len)) if len == head.len() => {}
            Err(httparse::Error::TooManyHeaders) => return Err("too many response headers"),
            Ok(_) | Err(_) => return Err("a malformed response head"),
        }
        let (Some(status), Some(version)) = (parsed.code, parsed.version) else {
            return Err("a malformed status line");
        };
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).map_err(|_| "an invalid status")?;
        *response.version_mut() = if version == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
        fields(head, parsed.headers, response.headers_mut())?;
        check(response, method)
    })
}

fn check(mut response: Response<()>, method: &Method) -> Result<ResponseHead, &'static str> {
    let (version, status) = (response.version(), response.status());
    let bodiless = method == Method::HEAD || (method == Method::CONNECT && status.is_success());
    let framing = Framing::of_response(version, status, response.headers(), bodiless)?;
    let keep_alive = framing != Framing::UntilClose && keeps_alive(version, response.headers());
    response.headers_mut().remove(TRANSFER_ENCODING);
    Ok(ResponseHead { response, framing, keep_alive })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_of_another_protocol_is_not_waited_for() {
        let take = |text: &[u8]| {
            let taken = take_response(&mut BytesMut::from(text), &mut HeadEnd::default(), &Method::GET);
            taken.map(|head| head.is_some())
        };
        for begun in [&b""[..], b"H", b"HTTP/", b"HTTP/1.1 200 OK\r\n", b"\0\0\x06\x04"] {
            assert_eq!(take(begun), Ok(false), "{begun:?}");
        }
        assert_eq!(take(b"HTTP/1.1 204 No Content\r\n\r\n"), Ok(true));
        for other in [&b"2"[..], b"220 ready\r\n", b"HTTQ", b"\0\0\x06\x04\0\0\0\0\0", b"\x16\x03\x01"] {
            assert!(take(other).is_err(), "{other:?}");
        }
    }
}

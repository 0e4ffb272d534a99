//! Heads and bodies, from their parts to bytes.
//!
//! In: requests, responses and body frames. Out: bytes in a [`WriteBuffer`]. The fields that frame a message or belong
//! to the connection are written here and nowhere else, whatever the head that comes in says about them.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};

use super::framing::status_is_bodiless;
use super::head::may_trail;
use super::transport::WriteBuffer;

/// Fields of the connection, which the writer sets itself.
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// How a body's end is told to the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoder {
    /// Nothing may be written.
    Empty,
    /// Exactly this many bytes are still to come.
    Length(u64),
    /// In chunks.
    Chunked,
    /// By closing the connection.
    UntilClose,
}

/// A body that is not as long as its Content-Length said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LengthMismatch;

impl Encoder {
    /// The encoder of a body with this exact length, where it is known.
    fn new(length: Option<u64>) -> Self {
        match length {
            Some(0) => Self::Empty,
            Some(length) => Self::Length(length),
            None => Self::Chunked,
        }
    }

    /// Writes a piece of the body.
    ///
    /// # Errors
    /// When the body is longer than announced; what is too much is not written.
    pub(crate) fn data(&mut self, out: &mut WriteBuffer, data: Bytes) -> Result<(), LengthMismatch> {
        if data.is_empty() {
            return Ok(());
        }
        match self {
            Self::Empty => return Err(LengthMismatch),
            Self::UntilClose => out.put(data),
            Self::Length(length) => {
                *length = length.checked_sub(data.len() as u64).ok_or(LengthMismatch)?;
                out.put(data);
            }
            Self::Chunked => {
                put_hex(out, data.len());
                out.put(data);
                out.put_slice(b"\r\n");
            }
        }
        Ok(())
    }

    /// Writes the end of the body, with its trailers where the framing can carry them.
    ///
    /// # Errors
    /// When the body is shorter than announced.
    pub(crate) fn end(
        self,
        out: &mut WriteBuffer,
        trailers: Option<&HeaderMap>,
    ) -> Result<(), LengthMismatch> {
        match self {
            Self::Empty | Self::UntilClose | Self::Length(0) => Ok(()),
            Self::Length(_) => Err(LengthMismatch),
            Self::Chunked => {
                out.put_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten().filter(|(name, _)| may_trail(name)) {
                    put_field(out, name, value.as_bytes());
                }
                out.put_slice(b"\r\n");
                Ok(())
            }
        }
    }
}

/// Writes a request's head, and says how its body follows. `length` is the body's where it is known; a body that is
/// not empty and of unknown length goes in chunks.
///
/// The target is in origin form (the authority with CONNECT), the authority in Host: that of the head or, where there
/// is none, that of the URI. Cookies that HTTP/2 split are joined (RFC 9113 section 8.2.3).
pub(crate) fn write_request<B>(out: &mut WriteBuffer, request: &Request<B>, length: Option<u64>) -> Encoder {
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    out.put_slice(method.as_str().as_bytes());
    out.put_slice(b" ");
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let target = match uri.path_and_query() {
        _ if method == Method::CONNECT => authority,
        Some(target) => target.as_str(),
        None => "/",
    };
    if target.starts_with('?') {
        out.put_slice(b"/");
    }
    out.put_slice(target.as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
    if !headers.contains_key(HOST) {
        put_field(out, &HOST, authority.as_bytes());
    }
    put_fields(out, headers, headers.contains_key(UPGRADE));
    put_cookies(out, headers);
    let encoder = Encoder::new(length);
    match encoder {
        Encoder::Chunked => out.put_slice(b"transfer-encoding: chunked\r\n"),
        Encoder::Length(length) => put_length(out, length),
        Encoder::Empty if matches!(*method, Method::POST | Method::PUT | Method::PATCH) => put_length(out, 0),
        Encoder::Empty | Encoder::UntilClose => {}
    }
    out.put_slice(b"\r\n");
    encoder
}

/// What a response's head has to say about its connection and body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResponseContext<'a> {
    /// The request's method.
    pub(crate) method: &'a Method,
    /// The request's version.
    pub(crate) version: Version,
    /// The length of the body, where it is known.
    pub(crate) length: Option<u64>,
    /// The connection stays open afterwards, if the framing allows it.
    pub(crate) keep_alive: bool,
    /// The connection becomes a tunnel.
    pub(crate) tunnel: bool,
}

/// Writes a response's head, and says how its body follows and whether the connection stays open.
pub(crate) fn write_response<B>(
    out: &mut WriteBuffer,
    response: &Response<B>,
    context: ResponseContext<'_>,
) -> (Encoder, bool) {
    let (status, headers) = (response.status(), response.headers());
    put_status_line(out, status);
    put_fields(out, headers, context.tunnel);
    let bodiless = context.tunnel || status_is_bodiless(status);
    let announced = headers.get(CONTENT_LENGTH);
    let encoder = if bodiless {
        Encoder::Empty
    } else if context.method == Method::HEAD {
        // What a GET would get; it is the sender's to know.
        if let Some(length) = announced {
            put_field(out, &CONTENT_LENGTH, length.as_bytes());
        }
        Encoder::Empty
    } else {
        let announced = announced.and_then(|value| super::framing::parse_length(value.as_bytes()).ok());
        match Encoder::new(announced.or(context.length)) {
            Encoder::Empty => {
                put_length(out, 0);
                Encoder::Empty
            }
            Encoder::Length(length) => {
                put_length(out, length);
                Encoder::Length(length)
            }
            _ if context.version == Version::HTTP_11 => {
                out.put_slice(b"transfer-encoding: chunked\r\n");
                Encoder::Chunked
            }
            _ => Encoder::UntilClose,
        }
    };
    if status == StatusCode::NOT_MODIFIED
        && let Some(length) = announced
    {
        put_field(out, &CONTENT_LENGTH, length.as_bytes());
    }
    let keep_alive = context.keep_alive && encoder != Encoder::UntilClose;
    if !context.tunnel {
        if !keep_alive {
            out.put_slice(b"connection: close\r\n");
        } else if context.version == Version::HTTP_10 {
            out.put_slice(b"connection: keep-alive\r\n");
        }
    }
    out.put_slice(b"\r\n");
    (encoder, keep_alive)
}

/// Writes an interim response.
pub(crate) fn write_interim(out: &mut WriteBuffer, response: &Response<()>) {
    put_status_line(out, response.status());
    put_fields(out, response.headers(), false);
    out.put_slice(b"\r\n");
}

fn put_status_line(out: &mut WriteBuffer, status: StatusCode) {
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_slice(b" ");
    out.put_slice(status.canonical_reason().unwrap_or("").as_bytes());
    out.put_slice(b"\r\n");
}

/// Writes all fields but those that are written elsewhere.
fn put_fields(out: &mut WriteBuffer, headers: &HeaderMap, upgrade: bool) {
    for (name, value) in headers {
        let elsewhere = match *name {
            CONTENT_LENGTH | TRANSFER_ENCODING | CONNECTION | COOKIE => true,
            UPGRADE => !upgrade,
            _ => *name == KEEP_ALIVE || *name == PROXY_CONNECTION,
        };
        if !elsewhere {
            put_field(out, name, value.as_bytes());
        }
    }
    if upgrade && headers.contains_key(UPGRADE) {
        out.put_slice(b"connection: upgrade\r\n");
    }
}

fn put_cookies(out: &mut WriteBuffer, headers: &HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    let Some(first) = crumbs.next() else { return };
    out.put_slice(b"cookie: ");
    out.put_slice(first.as_bytes());
    for crumb in crumbs {
        out.put_slice(b"; ");
        out.put_slice(crumb.as_bytes());
    }
    out.put_slice(b"\r\n");
}

fn put_field(out: &mut WriteBuffer, name: &HeaderName, value: &[u8]) {
    out.put_slice(name.as_str().as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn put_length(out: &mut WriteBuffer, mut length: u64) {
    out.put_slice(b"content-length: ");
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (length % 10) as u8;
        length /= 10;
        if length == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
    out.put_slice(b"\r\n");
}

/// The line of a chunk of this size.
fn put_hex(out: &mut WriteBuffer, mut size: usize) {
    let mut line = *b"................\r\n";
    let mut at = line.len() - 2;
    while size > 0 {
        at -= 1;
        line[at] = b"0123456789abcdef"[size & 15];
        size >>= 4;
    }
    out.put_slice(&line[at..]);
}

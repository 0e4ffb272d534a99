//! What request and response heads have in common: where they end, and their fields.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use httparse::Header;

/// Heads with up to this many fields are parsed without an allocation for it.
const INLINE_FIELDS: usize = 100;

/// Looks for the end of a head. Remembers how far it looked, so that a head that comes byte by byte costs no more than
/// one that comes at once.
#[derive(Debug, Default)]
pub(crate) struct HeadEnd {
    /// Up to here there is no end.
    looked: usize,
    /// Where the line that `looked` stands in begins.
    line: usize,
}

impl HeadEnd {
    /// The length of the head at the front of `bytes`, its empty line included; `None` when more has to come.
    ///
    /// # Errors
    /// When a line ends with LF alone, which some read as an end and some don't.
    pub(crate) fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, &'static str> {
        while let Some(at) = bytes[self.looked..].iter().position(|&b| b == b'\n') {
            let at = self.looked + at;
            if at == 0 || bytes[at - 1] != b'\r' {
                return Err("a line that ends without CR");
            }
            let empty = at - 1 == self.line;
            self.looked = at + 1;
            self.line = at + 1;
            if empty {
                *self = Self::default();
                return Ok(Some(at + 1));
            }
        }
        self.looked = bytes.len();
        Ok(None)
    }
}

/// Gives `parse` room for `limit` fields.
pub(crate) fn with_fields<'h, T>(limit: usize, parse: impl FnOnce(&mut [MaybeUninit<Header<'h>>]) -> T) -> T {
    if limit <= INLINE_FIELDS {
        let mut fields = [const { MaybeUninit::uninit() }; INLINE_FIELDS];
        parse(&mut fields[..limit])
    } else {
        let mut fields: Vec<_> = (0..limit).map(|_| MaybeUninit::uninit()).collect();
        parse(&mut fields)
    }
}

/// The fields of a parsed head, which lie in `head`, as a map whose values share its memory.
///
/// # Errors
/// When a name or a value is one that no field may have.
pub(crate) fn fields(
    head: &Bytes,
    fields: &[Header<'_>],
    headers: &mut HeaderMap,
) -> Result<(), &'static str> {
    headers.reserve(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| "an invalid header name")?;
        let value = HeaderValue::from_maybe_shared(slice_of(head, field.value))
            .map_err(|_| "an invalid header value")?;
        headers.append(name, value);
    }
    Ok(())
}

/// `part`, which lies in `whole`, as a slice that shares its memory.
pub(crate) fn slice_of(whole: &Bytes, part: &[u8]) -> Bytes {
    if part.is_empty() { Bytes::new() } else { whole.slice_ref(part) }
}

/// Takes the trailer section (without the last chunk's line) off `bytes`: `None` when more has to come.
///
/// Fields that would change what the message is, and so must not come late (RFC 9110 section 6.5.1), are dropped.
///
/// # Errors
/// When they are malformed, or more than `max_bytes` or `max_fields`.
pub(crate) fn take_trailers(
    bytes: &mut BytesMut,
    end: &mut HeadEnd,
    max_bytes: usize,
    max_fields: usize,
) -> Result<Option<HeaderMap>, &'static str> {
    let Some(len) = end.find(bytes)? else {
        return if bytes.len() > max_bytes { Err("trailers that are too large") } else { Ok(None) };
    };
    if len > max_bytes {
        return Err("trailers that are too large");
    }
    let section = bytes.split_to(len).freeze();
    let mut trailers = HeaderMap::new();
    if section.len() > 2 {
        let mut parsed = vec![httparse::EMPTY_HEADER; max_fields];
        match httparse::parse_headers(&section, &mut parsed) {
            Ok(httparse::Status::Complete((_, parsed))) => fields(&section, parsed, &mut trailers)?,
            Ok(httparse::Status::Partial) | Err(_) => return Err("malformed trailers"),
        }
        for name in NEVER_TRAIL {
            trailers.remove(name);
        }
    }
    Ok(Some(trailers))
}

/// Whether a field may come after a body: not where it would change what the message is (RFC 9110 section 6.5.1). HTTP/2
/// lets such fields come, and an HTTP/1.1 receiver may merge them into the head.
pub(crate) fn may_trail(name: &HeaderName) -> bool {
    !NEVER_TRAIL.contains(name)
}

const NEVER_TRAIL: [HeaderName; 10] = [
    TRANSFER_ENCODING,
    CONTENT_LENGTH,
    HOST,
    CONNECTION,
    TE,
    TRAILER,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

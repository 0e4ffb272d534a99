//! How the length of a message's body is told.
//!
//! In: a head's version, status and header fields. Out: one framing, or the reason why there is not exactly one
//! (RFC 9112 section 6).

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Version};

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none.
    Empty,
    /// After this many bytes.
    Length(u64),
    /// After the last chunk and its trailers.
    Chunked,
    /// With the connection; responses only.
    UntilClose,
}

impl Framing {
    /// The framing of a request.
    ///
    /// # Errors
    /// When it is ambiguous or unknown.
    pub(crate) fn of_request(version: Version, headers: &HeaderMap) -> Result<Self, &'static str> {
        Ok(match declared(version, headers)? {
            None | Some(Self::Length(0)) => Self::Empty,
            Some(framing) => framing,
        })
    }

    /// The framing of a response with this status to a request that may (`!bodiless`) have a body in its answer.
    ///
    /// # Errors
    /// When it is ambiguous or unknown.
    pub(crate) fn of_response(
        version: Version,
        status: http::StatusCode,
        headers: &HeaderMap,
        bodiless: bool,
    ) -> Result<Self, &'static str> {
        let declared = declared(version, headers)?;
        if bodiless || status_is_bodiless(status) {
            return Ok(Self::Empty);
        }
        Ok(match declared {
            None => Self::UntilClose,
            Some(Self::Length(0)) => Self::Empty,
            Some(framing) => framing,
        })
    }
}

/// Whether a response with this status never has a body.
pub(crate) fn status_is_bodiless(status: http::StatusCode) -> bool {
    status.is_informational() || matches!(status.as_u16(), 204 | 304)
}

/// The framing that the headers declare.
fn declared(version: Version, headers: &HeaderMap) -> Result<Option<Framing>, &'static str> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (codings.next(), lengths.next()) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err("both Content-Length and Transfer-Encoding"),
        (Some(coding), None) => {
            if version != Version::HTTP_11 {
                return Err("Transfer-Encoding in HTTP/1.0");
            }
            if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return Err("Transfer-Encoding other than chunked");
            }
            Ok(Some(Framing::Chunked))
        }
        (None, Some(length)) => {
            if lengths.next().is_some() {
                return Err("more than one Content-Length");
            }
            Ok(Some(Framing::Length(parse_length(length.as_bytes())?)))
        }
    }
}

/// A Content-Length: digits, nothing else, not more than a `u64` holds.
pub(crate) fn parse_length(text: &[u8]) -> Result<u64, &'static str> {
    let error = "Content-Length that is not a number";
    if text.is_empty() {
        return Err(error);
    }
    text.iter().try_fold(0_u64, |length, &byte| {
        if !byte.is_ascii_digit() {
            return Err(error);
        }
        length
            .checked_mul(10)
            .and_then(|length| length.checked_add(u64::from(byte - b'0')))
            .ok_or("Content-Length that is too large")
    })
}

//! What both ends of HTTP/2 share: bodies, flow control, keep-alive.
//!
//! In: streams of the `h2` crate. Out: body frames, and body frames into streams. Flow control goes end to end: a
//! window is opened again only when whoever reads comes back for more, and a body is asked for more only when what it gave
//! has found room.

pub(crate) mod ping;
pub(crate) mod recv;
pub(crate) mod send;

use http::header::{CONNECTION, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderValue};

use super::body::BodyError;

/// What one stream may have in flight: at 1 ms of round trip this is 1 GB/s, and slow readers cost no more than this.
pub(crate) const STREAM_WINDOW: u32 = 1024 * 1024;
/// What all streams of a connection may have in flight. Bounds what a connection can make a worker hold.
pub(crate) const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// The largest frame: few enough per megabyte, and short enough that streams alternate.
pub(crate) const MAX_FRAME: u32 = 64 * 1024;
/// What the `h2` crate may hold unsent per stream.
pub(crate) const SEND_BUFFER: usize = 128 * 1024;

/// Removes the fields that HTTP/2 does not have (RFC 9113 section 8.2.2).
pub(crate) fn strip_connection_fields(headers: &mut HeaderMap) {
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    headers.remove(HeaderName::from_static("keep-alive"));
    headers.remove(HeaderName::from_static("proxy-connection"));
    headers.remove(HeaderName::from_static("http2-settings"));
    if let Some(te) = headers.get(TE)
        && te != "trailers"
    {
        let trailers = te.to_str().is_ok_and(|te| super::h1::request::names(te, "trailers"));
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// An error of a stream that was being read, as that of its body.
pub(crate) fn body_error(error: &h2::Error) -> BodyError {
    match error.reason() {
        Some(reason) if error.is_reset() || error.is_go_away() => BodyError::Reset(reason.into()),
        _ => BodyError::Truncated,
    }
}

/// The code with which a stream is reset whose body failed. Codes that tell the peer's application something (gRPC maps
/// them to its own) go through; those that concern a single connection don't.
pub(crate) fn reset_reason(error: &BodyError) -> h2::Reason {
    match error {
        BodyError::Reset(code) => match h2::Reason::from(*code) {
            reason @ (h2::Reason::CANCEL
            | h2::Reason::ENHANCE_YOUR_CALM
            | h2::Reason::INADEQUATE_SECURITY) => reason,
            _ => h2::Reason::INTERNAL_ERROR,
        },
        BodyError::Idle => h2::Reason::CANCEL,
        BodyError::Protocol(_) => h2::Reason::PROTOCOL_ERROR,
        BodyError::Truncated => h2::Reason::INTERNAL_ERROR,
    }
}

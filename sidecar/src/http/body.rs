//! Bodies: one type for every source, so that nothing on the way needs a box.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::server::{RequestBody, StreamBody};
use crate::retry::replay;
use crate::upstream;

/// A request's or a response's body, wherever it comes from.
#[derive(Default)]
pub(crate) enum Body {
    /// None.
    #[default]
    Empty,
    /// A short text of the mesh itself.
    Full(Bytes),
    /// Of a request over HTTP/1.
    Http1Request(RequestBody),
    /// Of a request over HTTP/2.
    Http2Request(StreamBody),
    /// Of an endpoint's answer over HTTP/1.
    Http1Response(upstream::Http1Body),
    /// Of an endpoint's answer over HTTP/2.
    Http2Response(upstream::Http2Body),
    /// Of a request, for one of its attempts.
    Replay(replay::Attempt),
}

/// Why a body ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BodyError {
    /// The connection ended in the middle.
    Truncated,
    /// The HTTP/2 stream was reset, with this code.
    Reset(u32),
    /// The sender broke the protocol.
    Protocol(&'static str),
    /// Nothing moved for too long.
    Idle,
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(text) => {
                let text = std::mem::take(text);
                *self = Self::Empty;
                Poll::Ready((!text.is_empty()).then(|| Ok(Frame::data(text))))
            }
            Self::Http1Request(body) => body.poll_frame(cx),
            Self::Http2Request(body) => body.poll_frame(cx),
            Self::Http1Response(body) => body.poll_frame(cx),
            Self::Http2Response(body) => body.poll_frame(cx),
            Self::Replay(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(text) => text.is_empty(),
            Self::Http1Request(body) => body.is_end_stream(),
            Self::Http2Request(body) => body.is_end_stream(),
            Self::Http1Response(body) => body.is_end_stream(),
            Self::Http2Response(body) => body.is_end_stream(),
            Self::Replay(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(text) => SizeHint::with_exact(text.len() as u64),
            Self::Http1Request(body) => body.size_hint(),
            Self::Http2Request(body) => body.size_hint(),
            Self::Http1Response(body) => body.size_hint(),
            Self::Http2Response(body) => body.size_hint(),
            Self::Replay(body) => body.size_hint(),
        }
    }
}

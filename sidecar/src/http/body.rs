//! Bodies: one type for every source, so that nothing on the way needs a box.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

/// A request's or a response's body, wherever it comes from.
#[derive(Default)]
pub(crate) enum Body {
    /// None.
    #[default]
    Empty,
    /// A short text of the mesh itself.
    Full(Bytes),
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
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        unimplemented!("the wire founder's")
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

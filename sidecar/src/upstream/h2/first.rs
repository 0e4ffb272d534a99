//! The first byte of a peer that should speak HTTP/2.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::io::Stream;

/// A stream that remembers the first byte that came. Errors can't be asked what it was: a peer that answers in HTTP/1.1
/// and closes is mostly noticed by its close.
///
/// Until something has come, a write that fails is left for the reads to tell: what the peer said before it closed is
/// still to be read then, and after a failed write nobody would. The end or the error comes after it.
pub(super) struct Watched {
    stream: Stream,
    first: First,
}

/// The first byte, once it came.
#[derive(Clone, Default)]
pub(super) struct First(Rc<Cell<Option<u8>>>);

impl First {
    /// Whether something came that is not the SETTINGS frame with which HTTP/2 begins (RFC 9113 section 3.4). A frame
    /// begins with its length, whose first byte is zero for all that a peer may send before it was allowed more.
    pub(super) fn is_foreign(&self) -> bool {
        self.0.get().is_some_and(|byte| byte != 0)
    }

    /// Whether nothing came.
    pub(super) fn is_missing(&self) -> bool {
        self.0.get().is_none()
    }
}

impl Watched {
    /// A stream of which nothing was read.
    pub(super) fn new(stream: Stream) -> (Self, First) {
        let first = First::default();
        (Self { stream, first: first.clone() }, first)
    }

    /// What to say of a write that came to `result`; `all`: what it would be if it had not failed.
    fn told<T>(&self, result: Poll<io::Result<T>>, all: T) -> Poll<io::Result<T>> {
        match result {
            Poll::Ready(Err(_)) if self.first.is_missing() => Poll::Ready(Ok(all)),
            result => result,
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, first } = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(stream).poll_read(cx, buf))?;
        if first.is_missing() {
            first.0.set(buf.filled().get(before).copied());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.told(written, buf.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.told(written, bufs.iter().map(|buf| buf.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.told(flushed, ())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

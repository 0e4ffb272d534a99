//! A stream with its two buffers.
//!
//! In: bytes of the socket, and bytes and slices to send. Out: what was read, and as few writes as possible: what is
//! queued before a flush leaves in one call. The buffers keep their memory from message to message.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use crate::io::Stream;

/// Above this much unsent, whoever produces has to wait.
pub(crate) const WRITE_HIGH_WATER: usize = 64 * 1024;

const MIN_READ: usize = 8 * 1024;
const MAX_READ: usize = 64 * 1024;
/// Slices up to this size are copied behind each other rather than sent as vectors of their own.
const COPY_BELOW: usize = 2048;
const MAX_SLICES: usize = 16;

/// A connection's stream and buffers.
pub(crate) struct Transport {
    /// `None` once it was taken for a tunnel.
    stream: Option<Stream>,
    /// Read and not yet understood.
    pub(crate) read: BytesMut,
    /// How much the next read asks for: grows while reads fill it.
    read_size: usize,
    /// Nothing more will come.
    pub(crate) read_closed: bool,
    /// To be sent.
    pub(crate) write: WriteBuffer,
    /// Whether TLS may still hold bytes that were written.
    needs_flush: bool,
}

impl Transport {
    /// Buffers for `stream`.
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream: Some(stream),
            read: BytesMut::new(),
            read_size: MIN_READ,
            read_closed: false,
            write: WriteBuffer::default(),
            needs_flush: false,
        }
    }

    /// Reads once. `Ready(Ok(0))` is the end of the stream.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.read_closed {
            return Poll::Ready(Ok(0));
        }
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        if self.read.capacity() - self.read.len() < MIN_READ / 4 {
            self.read.reserve(self.read_size);
        }
        let room = self.read.capacity() - self.read.len();
        let count = match ready!(poll_read_buf(Pin::new(stream), cx, &mut self.read)) {
            Ok(count) => count,
            Err(error) => {
                self.read_closed = true;
                return Poll::Ready(Err(error));
            }
        };
        self.read_closed = count == 0;
        if count == room {
            self.read_size = (self.read_size * 2).min(MAX_READ);
        } else if count < self.read_size / 4 {
            self.read_size = (self.read_size / 2).max(MIN_READ);
        }
        Poll::Ready(Ok(count))
    }

    /// Sends what is queued. `Ready` when all of it has left.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.write.is_empty() && !self.needs_flush {
            return Poll::Ready(Ok(()));
        }
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let mut stream = Pin::new(stream);
        while !self.write.is_empty() {
            let count = ready!(self.write.poll_write(stream.as_mut(), cx))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.needs_flush = true;
        }
        ready!(stream.poll_flush(cx))?;
        self.needs_flush = false;
        Poll::Ready(Ok(()))
    }

    /// Ends the sending side, after what is queued.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        match &mut self.stream {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Takes the stream away from HTTP, with what was read of it beyond the last message.
    pub(crate) fn take(&mut self) -> Option<(Stream, Bytes)> {
        Some((self.stream.take()?, self.read.split().freeze()))
    }

    /// The stream, where it was not taken.
    pub(crate) fn stream(&self) -> Option<&Stream> {
        self.stream.as_ref()
    }

    /// Gives memory back that an idle connection doesn't need.
    pub(crate) fn shrink(&mut self) {
        if self.read.is_empty() && self.read.capacity() > MIN_READ {
            self.read = BytesMut::new();
            self.read_size = MIN_READ;
        }
        self.write.shrink();
    }
}

/// Bytes to send, in order: short ones copied together, long ones as the slices that they are.
#[derive(Default)]
pub(crate) struct WriteBuffer {
    queue: VecDeque<Bytes>,
    /// Goes after the queue.
    tail: BytesMut,
    len: usize,
    /// All bytes that the stream has ever taken.
    sent: u64,
}

impl WriteBuffer {
    /// Adds a copy.
    pub(crate) fn put_slice(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Adds a slice, copied only if that is cheaper.
    pub(crate) fn put(&mut self, bytes: Bytes) {
        if bytes.len() <= COPY_BELOW {
            return self.put_slice(&bytes);
        }
        if !self.tail.is_empty() {
            self.queue.push_back(self.tail.split().freeze());
        }
        self.len += bytes.len();
        self.queue.push_back(bytes);
    }

    /// The number of bytes to be sent.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether all was sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All bytes that the stream has ever taken.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    fn poll_write(&mut self, stream: Pin<&mut Stream>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let count = if self.queue.is_empty() {
            ready!(stream.poll_write(cx, &self.tail))?
        } else {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let mut used = 0;
            for (slot, bytes) in
                slices.iter_mut().zip(self.queue.iter().map(|b| &b[..]).chain([&self.tail[..]]))
            {
                *slot = IoSlice::new(bytes);
                used += 1;
            }
            ready!(stream.poll_write_vectored(cx, &slices[..used]))?
        };
        self.advance(count);
        Poll::Ready(Ok(count))
    }

    fn advance(&mut self, mut count: usize) {
        self.len -= count;
        self.sent += count as u64;
        while let Some(front) = self.queue.front_mut() {
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.queue.pop_front();
        }
        if count == self.tail.len() {
            // Unlike advancing, this keeps the whole capacity.
            self.tail.clear();
        } else {
            self.tail.advance(count);
        }
    }

    fn shrink(&mut self) {
        if self.is_empty() && self.tail.capacity() > MIN_READ {
            self.tail = BytesMut::new();
        }
        self.queue.shrink_to(MAX_SLICES);
    }
}

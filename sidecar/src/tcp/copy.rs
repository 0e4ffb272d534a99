//! Carries bytes between two connections, in both directions at once.
//!
//! In: two streams. Out: what one says reaches the other, the end of each direction as its own (half-close), and how
//! much it was. Whoever can't take more holds up the other side and nobody else. A connection on which nothing moves
//! holds no buffer: bytes are read into one buffer per thread, and only what the other side does not take at once is
//! kept. Nothing is ever reordered, repeated or left behind in a buffer.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// How much was carried, and how it ended.
#[derive(Debug)]
pub(crate) struct Relayed {
    /// Bytes from the first stream to the second.
    pub(crate) forward: u64,
    /// Bytes from the second stream to the first.
    pub(crate) back: u64,
    /// How it ended.
    pub(crate) end: End,
}

/// How a relay ended.
#[derive(Debug)]
pub(crate) enum End {
    /// Both sides closed, after everything had been carried.
    Closed,
    /// Nothing moved for the idle timeout.
    Idle,
    /// The first stream failed.
    First(io::Error),
    /// The second stream failed.
    Second(io::Error),
}

/// Carries bytes between `first` and `second` until both have closed, one has failed, or nothing has moved for `idle`
/// (`None`: however long). The streams are left to the caller, who knows whether to close or to reset them.
pub(crate) async fn relay<A, B>(first: &mut A, second: &mut B, idle: Option<Duration>) -> Relayed
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut forward, mut back) = (Direction::default(), Direction::default());
    let timer = idle.map(tokio::time::sleep);
    tokio::pin!(timer);
    let mut last = Instant::now();
    let mut moved = 0;
    let end = poll_fn(|cx| {
        let forwarded = forward.poll(cx, first, second);
        let backed = back.poll(cx, second, first);
        match (forwarded, backed) {
            (Poll::Ready(Err(Fault::Reader(error))), _) | (_, Poll::Ready(Err(Fault::Writer(error)))) => {
                return Poll::Ready(End::First(error));
            }
            (Poll::Ready(Err(Fault::Writer(error))), _) | (_, Poll::Ready(Err(Fault::Reader(error)))) => {
                return Poll::Ready(End::Second(error));
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(End::Closed),
            (Poll::Pending, _) | (_, Poll::Pending) => {}
        }
        let (Some(idle), Some(mut timer)) = (idle, timer.as_mut().as_pin_mut()) else { return Poll::Pending };
        let written = forward.bytes + back.bytes;
        if moved != written {
            moved = written;
            last = Instant::now();
        }
        // The timer is moved when it fires, not with each byte.
        while timer.as_mut().poll(cx).is_ready() {
            if last.elapsed() >= idle {
                return Poll::Ready(End::Idle);
            }
            timer.as_mut().reset(last + idle);
        }
        Poll::Pending
    })
    .await;
    Relayed { forward: forward.bytes, back: back.bytes, end }
}

/// The way from one stream to the other.
#[derive(Default)]
struct Direction {
    /// What was read and not yet written, from `written` on; without memory while there is nothing.
    kept: Vec<u8>,
    written: usize,
    /// Bytes written in all.
    bytes: u64,
    unflushed: bool,
    state: State,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The reader has ended; its end is not yet passed on.
    Ending,
    Ended,
}

/// Which side of a direction failed.
enum Fault {
    Reader(io::Error),
    Writer(io::Error),
}

impl Direction {
    /// Carries on as far as both sides allow. Ready when the reader's end was passed on, and from then on.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            ready!(self.poll_write_kept(cx, writer))?;
            match self.state {
                State::Open => {
                    let read =
                        SCRATCH.with_borrow_mut(|scratch| self.poll_through(cx, reader, writer, scratch))?;
                    if read.is_pending() {
                        if self.unflushed
                            && Pin::new(&mut *writer).poll_flush(cx).map_err(Fault::Writer)?.is_ready()
                        {
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                }
                State::Ending => {
                    ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(Fault::Writer)?;
                    self.state = State::Ended;
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Reads once and writes what came at once, keeping what is not taken.
    fn poll_through<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        scratch: &mut [u8],
    ) -> Result<Poll<()>, Fault>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut buf = ReadBuf::new(scratch);
        match Pin::new(reader).poll_read(cx, &mut buf) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(result) => result.map_err(Fault::Reader)?,
        }
        let mut read = buf.filled();
        if read.is_empty() {
            self.state = State::Ending;
            return Ok(Poll::Ready(()));
        }
        while !read.is_empty() {
            match Pin::new(&mut *writer).poll_write(cx, read) {
                Poll::Ready(result) => read = &read[self.count(result)?..],
                Poll::Pending => {
                    self.kept.extend_from_slice(read);
                    break;
                }
            }
        }
        Ok(Poll::Ready(()))
    }

    fn poll_write_kept<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        writer: &mut W,
    ) -> Poll<Result<(), Fault>> {
        while self.written < self.kept.len() {
            let result = ready!(Pin::new(&mut *writer).poll_write(cx, &self.kept[self.written..]));
            self.written += self.count(result)?;
        }
        if !self.kept.is_empty() {
            self.kept = Vec::new();
            self.written = 0;
        }
        Poll::Ready(Ok(()))
    }

    fn count(&mut self, result: io::Result<usize>) -> Result<usize, Fault> {
        match result {
            Ok(0) => Err(Fault::Writer(io::ErrorKind::WriteZero.into())),
            Ok(written) => {
                self.bytes += written as u64;
                self.unflushed = true;
                Ok(written)
            }
            Err(error) => Err(Fault::Writer(error)),
        }
    }
}

thread_local! {
    /// What was just read, on its way to the writer; never holds anything between two polls.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_SIZE].into());
}

const SCRATCH_SIZE: usize = 64 * 1024;

#[cfg(test)]
mod tests;

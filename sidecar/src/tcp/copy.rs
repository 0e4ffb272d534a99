//! Carries bytes between two connections, in both directions at once.
//!
//! In: two streams. Out: what one says reaches the other, the end of each direction as its own (half-close), and how
//! much it was. Whoever can't take more holds up the other side and nobody else. A connection on which nothing moves
//! holds no buffer: bytes are read into one large buffer per thread, and only what the other side does not take at once
//! is kept. What comes in bulk between two sockets without TLS does not even come that far: the kernel moves it through
//! a pipe. Nothing is ever reordered, repeated or left behind in a buffer.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::splice::{FillError, Pipe};
use crate::io::Bare;

/// How much was carried, and how it ended.
#[derive(Debug)]
pub(crate) struct Relayed {
    /// Bytes from the first stream to the second.
    pub(crate) forward: u64,
    /// Bytes from the second stream to the first.
    pub(crate) back: u64,
    /// How many of all these the kernel moved by itself.
    pub(crate) spliced: u64,
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
    /// It has lasted for as long as it may.
    Overdue,
    /// The first stream failed.
    First(io::Error),
    /// The second stream failed.
    Second(io::Error),
}

/// How long a relay may last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// How long nothing may move; `None`: however long.
    pub(crate) idle: Option<Duration>,
    /// When it ends in any case; `None`: never.
    pub(crate) until: Option<Instant>,
}

impl Limits {
    /// When to look again, where something has moved at `last`.
    fn due(self, last: Instant) -> Option<Instant> {
        self.idle.map(|idle| last + idle).into_iter().chain(self.until).min()
    }

    /// What has come to its end.
    fn over(self, last: Instant) -> Option<End> {
        let now = Instant::now();
        match self {
            Self { until: Some(until), .. } if now >= until => Some(End::Overdue),
            Self { idle: Some(idle), .. } if now - last >= idle => Some(End::Idle),
            _ => None,
        }
    }
}

impl From<Option<Duration>> for Limits {
    fn from(idle: Option<Duration>) -> Self {
        Self { idle, until: None }
    }
}

/// Carries bytes between `first` and `second` until both have closed, one has failed, or a limit is reached. `said` is what was read from `second` already. The streams are left to the caller, who knows
/// whether to close or to reset them.
pub(crate) async fn relay<A: Bare, B: Bare>(
    first: &mut A,
    second: &mut B,
    said: Vec<u8>,
    limits: impl Into<Limits>,
) -> Relayed {
    let limits = limits.into();
    let mut forward = Direction::default();
    let mut back = Direction { kept: said, ..Direction::default() };
    let mut last = Instant::now();
    let timer = limits.due(last).map(tokio::time::sleep_until);
    tokio::pin!(timer);
    let mut moved = 0;
    let mut look: Option<Pin<Box<Sleep>>> = None;
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
        if let Some(end) = poll_failure(cx, &mut look, (&forward, &*first), (&back, &*second)) {
            return Poll::Ready(end);
        }
        let Some(mut timer) = timer.as_mut().as_pin_mut() else { return Poll::Pending };
        let written = forward.bytes + back.bytes;
        if moved != written {
            moved = written;
            last = Instant::now();
        }
        // The timer is moved when it fires, not with each byte.
        while timer.as_mut().poll(cx).is_ready() {
            if let Some(end) = limits.over(last) {
                return Poll::Ready(end);
            }
            let due = limits.due(last).expect("there is a limit, or there were no timer");
            timer.as_mut().reset(due);
        }
        Poll::Pending
    })
    .await;
    let spliced = forward.spliced + back.spliced;
    Relayed { forward: forward.bytes, back: back.bytes, spliced, end }
}

/// Waits until `stream` says something of its own accord, and appends it to `said`; says how much came, 0 for its end.
/// Cancel-safe, and without memory as long as nothing comes.
///
/// # Errors
/// When the stream fails.
pub(super) async fn listen<S: AsyncRead + Unpin>(stream: &mut S, said: &mut Vec<u8>) -> io::Result<usize> {
    poll_fn(|cx| {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(scratch);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut buf))?;
            said.extend_from_slice(buf.filled());
            Poll::Ready(Ok(buf.filled().len()))
        })
    })
    .await
}

/// Looks for the failure of a side whose bytes the other does not take: as nothing is read from it, nothing else tells.
/// `look` is when to look, while there is one.
fn poll_failure<A: Bare, B: Bare>(
    cx: &mut Context<'_>,
    look: &mut Option<Pin<Box<Sleep>>>,
    (forward, first): (&Direction, &A),
    (back, second): (&Direction, &B),
) -> Option<End> {
    if look.is_none() && !forward.is_held_up() && !back.is_held_up() {
        return None;
    }
    let timer = look.get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK)));
    while timer.as_mut().poll(cx).is_ready() {
        if forward.is_held_up()
            && let Some(error) = failure(first)
        {
            return Some(End::First(error));
        }
        if back.is_held_up()
            && let Some(error) = failure(second)
        {
            return Some(End::Second(error));
        }
        if !forward.is_held_up() && !back.is_held_up() {
            *look = None;
            return None;
        }
        timer.as_mut().reset(Instant::now() + LOOK);
    }
    None
}

/// How a connection has failed, if it has.
fn failure(stream: &impl Bare) -> Option<io::Error> {
    stream.under()?.take_error().ok().flatten()
}

/// The way from one stream to the other.
#[derive(Default)]
struct Direction {
    /// What was read and not yet written, from `written` on; without memory while there is nothing.
    kept: Vec<u8>,
    written: usize,
    /// What is between the two in the kernel; `None` while nothing comes, so that connections share pipes.
    pipe: Option<Pipe>,
    /// Bytes written in all.
    bytes: u64,
    /// Those of them that went through a pipe.
    spliced: u64,
    /// How many reads in a row brought much.
    large: Large,
    unflushed: bool,
    state: State,
}

/// Whether bytes come in bulk.
#[derive(Default)]
enum Large {
    #[default]
    No,
    /// So many reads in a row brought much.
    Reads(u8),
    /// The kernel does not splice between these two.
    Never,
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
    fn poll<R: Bare, W: Bare>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<Result<(), Fault>> {
        loop {
            ready!(self.poll_write_kept(cx, writer))?;
            match self.state {
                State::Open => {
                    let read = match (self.is_bulk(), reader.bare(), writer.bare()) {
                        (true, Some(from), Some(_)) => self.poll_into_pipe(cx, from)?,
                        _ => SCRATCH
                            .with_borrow_mut(|scratch| self.poll_through(cx, reader, writer, scratch))?,
                    };
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

    /// Takes into a pipe what the reader has.
    fn poll_into_pipe(&mut self, cx: &mut Context<'_>, reader: &TcpStream) -> Result<Poll<()>, Fault> {
        let mut pipe = match self.pipe.take().map_or_else(Pipe::take, Ok) {
            Ok(pipe) => pipe,
            Err(_) => {
                // Copying needs no file descriptor; there may be one again later.
                self.large = Large::No;
                return Ok(Poll::Ready(()));
            }
        };
        let read = match pipe.poll_fill(cx, reader) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(0)) => {
                self.state = State::Ending;
                Poll::Ready(())
            }
            Poll::Ready(Ok(len)) => {
                self.has_read(len);
                self.pipe = Some(pipe);
                return Ok(Poll::Ready(()));
            }
            Poll::Ready(Err(FillError::Unsupported)) => {
                self.large = Large::Never;
                Poll::Ready(())
            }
            Poll::Ready(Err(FillError::Reader(error))) => return Err(Fault::Reader(error)),
        };
        pipe.give_back();
        Ok(read)
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
        self.has_read(read.len());
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

    fn poll_write_kept<W: Bare>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> Poll<Result<(), Fault>> {
        while self.written < self.kept.len() {
            let result = ready!(Pin::new(&mut *writer).poll_write(cx, &self.kept[self.written..]));
            self.written += self.count(result)?;
        }
        if !self.kept.is_empty() {
            self.kept = Vec::new();
            self.written = 0;
        }
        while let Some(pipe) = &mut self.pipe {
            let socket = writer.bare().expect("a writer that was a mere socket stays one");
            let result = ready!(pipe.poll_drain(cx, socket));
            let is_empty = pipe.is_empty();
            self.spliced += self.count(result)? as u64;
            if is_empty && let Some(pipe) = self.pipe.take() {
                pipe.give_back();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the writer does not take what was read.
    fn is_held_up(&self) -> bool {
        !self.kept.is_empty() || self.pipe.is_some()
    }

    fn is_bulk(&self) -> bool {
        matches!(self.large, Large::Reads(BULK))
    }

    fn has_read(&mut self, len: usize) {
        self.large = match self.large {
            Large::Never => Large::Never,
            _ if len < LARGE => Large::No,
            Large::No => Large::Reads(1),
            Large::Reads(reads) => Large::Reads(BULK.min(reads + 1)),
        };
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

/// A read of as many bytes is cheaper to splice than to copy; below, two calls more for a pipe cost more than the copies.
const LARGE: usize = 16 * 1024;

/// How often a side whose bytes the other does not take is asked whether it has failed.
const LOOK: Duration = Duration::from_secs(1);

/// So many large reads in a row are a bulk transfer.
const BULK: u8 = 4;

#[cfg(test)]
mod tests;

//! Bytes that go from socket to socket inside the kernel, through a pipe (`splice(2)`).
//!
//! In: two sockets, neither of which has TLS. Out: bytes of the one in the send queue of the other, without a copy to this
//! process. A pipe is filled only when it is empty, so that "would block" always speaks of the socket and never of the
//! pipe. It belongs to a connection only while something is in it, so that a thread has as many pipes as it has
//! connections whose writer can't take more, and a few to spare.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// A pipe between two sockets, and how much is in it.
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    len: usize,
}

/// Why a pipe can't be filled.
#[derive(Debug)]
pub(super) enum FillError {
    /// The kernel does not splice here; nothing was moved.
    Unsupported,
    /// The reader's connection has failed.
    Reader(io::Error),
}

impl Pipe {
    /// An empty pipe.
    ///
    /// # Errors
    /// When there are no file descriptors or no memory for one.
    pub(super) fn take() -> io::Result<Self> {
        if let Some(spare) = SPARE.with_borrow_mut(Vec::pop) {
            return Ok(spare);
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A smaller one (the kernel limits what a user has in all) only means more calls.
        let _ = fcntl_setpipe_size(&write, SIZE);
        Ok(Self { read, write, len: 0 })
    }

    /// Keeps an empty pipe for the next who needs one; any other is closed, with what is in it.
    pub(super) fn give_back(self) {
        SPARE.with_borrow_mut(|spare| {
            if self.len == 0 && spare.len() < MOST_SPARE {
                spare.push(self);
            }
        });
    }

    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes what `reader` has into the pipe, which must be empty; 0 when it has ended.
    ///
    /// # Errors
    /// See [`FillError`].
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        reader: &TcpStream,
    ) -> Poll<Result<usize, FillError>> {
        debug_assert_eq!(self.len, 0, "else it could be the pipe that blocks");
        loop {
            ready!(reader.poll_read_ready(cx)).map_err(FillError::Reader)?;
            let moved = reader
                .try_io(Interest::READABLE, || Ok(splice(reader, None, &self.write, None, SIZE, FLAGS)?));
            match moved {
                Ok(len) => {
                    self.len = len;
                    return Poll::Ready(Ok(len));
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    return Poll::Ready(Err(match Errno::from_io_error(&error) {
                        Some(Errno::INVAL | Errno::NOSYS | Errno::PERM) => FillError::Unsupported,
                        _ => FillError::Reader(error),
                    }));
                }
            }
        }
    }

    /// Gives what is in the pipe to `writer`; how much of it was taken.
    ///
    /// # Errors
    /// When the writer's connection has failed.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>, writer: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(writer.poll_write_ready(cx))?;
            let moved = writer
                .try_io(Interest::WRITABLE, || Ok(splice(&self.read, None, writer, None, self.len, FLAGS)?));
            match moved {
                Ok(len) => {
                    self.len -= len;
                    return Poll::Ready(Ok(len));
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// How much a pipe holds: enough for what a socket has between two turns of a busy worker.
const SIZE: usize = 256 * 1024;

/// How many empty pipes a thread keeps.
const MOST_SPARE: usize = 8;

thread_local! {
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// From now on this thread's next pipe is none, so that the kernel does not splice.
#[cfg(test)]
pub(super) fn spoil() {
    let nothing =
        || OwnedFd::from(std::fs::File::options().read(true).write(true).open("/dev/null").unwrap());
    SPARE.with_borrow_mut(|spare| spare.push(Pipe { read: nothing(), write: nothing(), len: 0 }));
}

/// How many empty pipes this thread keeps.
#[cfg(test)]
pub(super) fn spare() -> usize {
    SPARE.with_borrow(Vec::len)
}

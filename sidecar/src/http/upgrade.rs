//! What follows 101 or a CONNECT: bytes in both directions.
//!
//! In: the two ends, each an HTTP/1 connection taken out of HTTP or an HTTP/2 stream. Out: what one says reaches the
//! other, beginning with what was read along with the heads.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::pace::Pace;
use crate::io::{Bare, Stream};
use crate::tcp::copy::{Relayed, relay};
use crate::upstream::Hold;

/// The upstream end of an upgraded connection.
pub(crate) struct Tunnel {
    end: TunnelEnd,
    carried: Rc<Carried>,
    /// What the route says of the time without movement; zero is no limit.
    idle: Option<Duration>,
    _hold: Hold,
}

/// How much a tunnel has carried, once it has ended.
#[derive(Default)]
pub(crate) struct Carried {
    /// Bytes from the client.
    pub(crate) received: Cell<u64>,
    /// Bytes to the client.
    pub(crate) sent: Cell<u64>,
}

impl Tunnel {
    /// A tunnel to `end`, which occupies `hold`.
    pub(crate) fn new(end: TunnelEnd, hold: Hold) -> Self {
        Self { end, carried: Rc::default(), idle: None, _hold: hold }
    }

    /// Where the tunnel leaves how much it has carried.
    pub(crate) fn carried(&self) -> Rc<Carried> {
        self.carried.clone()
    }

    /// Sets what a route says of the time without movement; zero is no limit.
    pub(crate) fn set_idle_timeout(&mut self, idle: Duration) {
        self.idle = Some(idle);
    }

    /// The same, from which the client gets no more at a time than `pace` says.
    pub(super) fn slowed(self, pace: Pace) -> Self {
        Self { end: self.end.slowed(pace), ..self }
    }

    /// Carries bytes between the downstream end and this one until both have closed, one has failed, or nothing has
    /// moved for `idle` (where the route says nothing else).
    pub(crate) async fn run(mut self, mut downstream: TunnelEnd, idle: Option<Duration>) {
        let idle = self.idle.map_or(idle, |idle| Some(idle).filter(|idle| !idle.is_zero()));
        let Relayed { forward, back, .. } = relay(&mut downstream, &mut self.end, Vec::new(), idle).await;
        self.carried.received.set(forward);
        self.carried.sent.set(back);
    }
}

/// One end of a tunnel.
pub(crate) enum TunnelEnd {
    /// A connection that spoke HTTP/1, and what was read of it beyond the head.
    Http1(Bytes, Stream),
    /// An HTTP/2 stream.
    Http2(Http2End),
    /// One of these that may not be read as fast as it speaks.
    Slowed(Box<Slowed>),
}

impl TunnelEnd {
    /// A connection that spoke HTTP/1, and what was read of it beyond the head.
    pub(crate) fn http1(stream: Stream, read: Bytes) -> Self {
        Self::Http1(read, stream)
    }

    /// A stream that was opened with CONNECT.
    pub(crate) fn http2(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        Self::Http2(Http2End { send, recv, read: Bytes::new(), ended: false })
    }

    fn slowed(self, pace: Pace) -> Self {
        Self::Slowed(Box::new(Slowed { end: self, pace }))
    }
}

impl Bare for TunnelEnd {
    fn bare(&self) -> Option<&TcpStream> {
        match self {
            Self::Http1(read, stream) if read.is_empty() => stream.bare(),
            Self::Http1(..) | Self::Http2(_) | Self::Slowed(_) => None,
        }
    }
}

impl AsyncRead for TunnelEnd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(read, stream) if read.is_empty() => Pin::new(stream).poll_read(cx, buf),
            Self::Http1(read, _) => {
                take(read, buf);
                Poll::Ready(Ok(()))
            }
            Self::Http2(end) => end.poll_read(cx, buf),
            Self::Slowed(slowed) => slowed.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for TunnelEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Http1(_, stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Http2(end) => end.poll_write(cx, buf),
            Self::Slowed(slowed) => Pin::new(&mut slowed.end).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(_, stream) => Pin::new(stream).poll_flush(cx),
            Self::Http2(_) => Poll::Ready(Ok(())),
            Self::Slowed(slowed) => Pin::new(&mut slowed.end).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(_, stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Http2(end) => Poll::Ready(end.shutdown()),
            Self::Slowed(slowed) => Pin::new(&mut slowed.end).poll_shutdown(cx),
        }
    }
}

/// An HTTP/2 stream as bytes in both directions. Dropped before both have ended, it is reset.
pub(crate) struct Http2End {
    send: SendStream<Bytes>,
    recv: RecvStream,
    read: Bytes,
    ended: bool,
}

impl Http2End {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.read.is_empty() {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => self.read = data,
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(into_io(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = take(&mut self.read, buf);
        // Fails only for more than was received.
        let _ = self.recv.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.send.reserve_capacity(buf.len());
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(into_io(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let count = self.send.capacity().min(buf.len());
        self.send.send_data(Bytes::copy_from_slice(&buf[..count]), false).map_err(into_io)?;
        Poll::Ready(Ok(count))
    }

    fn shutdown(&mut self) -> io::Result<()> {
        if self.ended {
            return Ok(());
        }
        self.ended = true;
        self.send.send_data(Bytes::new(), true).map_err(into_io)
    }
}

/// An end that is read no faster than it may.
pub(crate) struct Slowed {
    end: TunnelEnd,
    pace: Pace,
}

impl Slowed {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let most = ready!(self.pace.poll_turn(cx)).min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
        ready!(Pin::new(&mut self.end).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buf.advance(read);
        self.pace.went(read);
        Poll::Ready(Ok(()))
    }
}

/// Moves as much as fits; says how much.
fn take(from: &mut Bytes, into: &mut ReadBuf<'_>) -> usize {
    let count = from.len().min(into.remaining());
    into.put_slice(&from[..count]);
    from.advance(count);
    count
}

fn into_io(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
    } else {
        io::Error::new(io::ErrorKind::ConnectionReset, error)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::http::fault::Active;

    #[tokio::test(start_paused = true)]
    async fn what_is_slowed_is_read_slice_by_slice() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let socket = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
        let said = Bytes::from(vec![b'x'; 2048]);
        let end = TunnelEnd::http1(Stream::from(socket), said.clone());
        let suffering = Active::default().begin(None).expect("unlimited");
        let mut end = end.slowed(Pace::new(1, suffering));
        let begun = tokio::time::Instant::now();
        let (mut all, mut buffer) = (Vec::new(), [0; 1000]);
        while all.len() < said.len() {
            let length = end.read(&mut buffer).await.expect("open");
            assert!(length <= 64, "{length} bytes at once");
            all.extend_from_slice(&buffer[..length]);
        }
        assert_eq!(all, said);
        let took = begun.elapsed();
        assert!(took > Duration::from_millis(1900) && took < Duration::from_millis(2100), "{took:?}");
    }
}

//! One type for every connection that bytes come from or go to, so that nothing above needs a box or a type parameter.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

/// A connection, downstream or upstream.
pub(crate) enum Stream {
    /// Plain bytes, some of which detection may have read already.
    Tcp(Prefixed),
    /// The server end of TLS.
    TlsServer(Box<server::TlsStream<Prefixed>>),
    /// The client end of TLS.
    TlsClient(Box<client::TlsStream<TcpStream>>),
}

impl Stream {
    /// The socket under it.
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Tcp(tcp) => &tcp.socket,
            Self::TlsServer(tls) => &tls.get_ref().0.socket,
            Self::TlsClient(tls) => tls.get_ref().0,
        }
    }

    /// Whether it is over TLS.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::TlsServer(_) | Self::TlsClient(_))
    }

    /// Makes the end of the connection a reset: what the peer has not read is lost, and it knows that this was no
    /// orderly end.
    pub(crate) fn reset(self) {
        // A socket without a zero linger still closes, only more politely.
        let _ = socket2::SockRef::from(self.socket()).set_linger(Some(std::time::Duration::ZERO));
    }
}

/// A stream that bytes can be carried from and to.
pub(crate) trait Bare: AsyncRead + AsyncWrite + Unpin {
    /// The socket, where its bytes are those of the stream: without TLS, and with nothing read ahead of it.
    fn bare(&self) -> Option<&TcpStream>;

    /// The socket under it, whatever is in between; `None` where there is none.
    fn under(&self) -> Option<&TcpStream> {
        self.bare()
    }
}

impl Bare for Stream {
    fn under(&self) -> Option<&TcpStream> {
        Some(self.socket())
    }

    fn bare(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(tcp) => tcp.prefix.is_empty().then_some(&tcp.socket),
            Self::TlsServer(_) | Self::TlsClient(_) => None,
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Self {
        Self::Tcp(Prefixed::new(Bytes::new(), socket))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Self::TlsServer(io) => Pin::new(io.as_mut()).poll_read(cx, buf),
            Self::TlsClient(io) => Pin::new(io.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_write(cx, buf),
            Self::TlsServer(io) => Pin::new(io.as_mut()).poll_write(cx, buf),
            Self::TlsClient(io) => Pin::new(io.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::TlsServer(io) => Pin::new(io.as_mut()).poll_write_vectored(cx, bufs),
            Self::TlsClient(io) => Pin::new(io.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(io) => io.is_write_vectored(),
            Self::TlsServer(io) => io.is_write_vectored(),
            Self::TlsClient(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_flush(cx),
            Self::TlsServer(io) => Pin::new(io.as_mut()).poll_flush(cx),
            Self::TlsClient(io) => Pin::new(io.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Self::TlsServer(io) => Pin::new(io.as_mut()).poll_shutdown(cx),
            Self::TlsClient(io) => Pin::new(io.as_mut()).poll_shutdown(cx),
        }
    }
}

/// A socket whose first bytes were read already, to see what it carries; they are read again from here first.
pub(crate) struct Prefixed {
    prefix: Bytes,
    socket: TcpStream,
}

impl Prefixed {
    /// Puts `prefix`, which came from `socket`, back in front of it.
    pub(crate) fn new(prefix: Bytes, socket: TcpStream) -> Self {
        Self { prefix, socket }
    }
}

impl AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.socket).poll_read(cx, buf);
        }
        let len = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..len]);
        self.prefix.advance(len);
        if self.prefix.is_empty() {
            // Its buffer may be far larger than what was left of it.
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, Empty};
    use tokio::net::TcpListener;

    use super::*;

    impl Bare for TcpStream {
        fn bare(&self) -> Option<&TcpStream> {
            Some(self)
        }
    }

    impl Bare for DuplexStream {
        fn bare(&self) -> Option<&TcpStream> {
            None
        }
    }

    impl Bare for Empty {
        fn bare(&self) -> Option<&TcpStream> {
            None
        }
    }

    #[tokio::test]
    async fn what_was_peeked_is_read_again_and_in_order() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
        let (mut socket, _) = listener.accept().await.expect("a client");
        client.write_all(b"hello, world").await.expect("open");
        client.shutdown().await.expect("open");
        let mut peeked = [0; 5];
        socket.read_exact(&mut peeked).await.expect("five bytes");

        let mut stream = Stream::Tcp(Prefixed::new(Bytes::copy_from_slice(&peeked), socket));
        let mut first = [0; 3];
        stream.read_exact(&mut first).await.expect("a part of what was peeked");
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.expect("the rest");
        assert_eq!((&first, rest.as_str()), (b"hel", "lo, world"));
    }

    #[tokio::test]
    async fn a_reset_is_seen_as_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
        let (socket, _) = listener.accept().await.expect("a client");
        Stream::from(socket).reset();
        let error = client.read_u8().await.expect_err("no byte came");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

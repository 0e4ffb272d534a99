//! What a connection carries, by its first bytes.
//!
//! In: a socket. Out: what its client speaks, and every byte that was read, so that none is lost. A detection ends as
//! soon as the bytes allow; it never waits for more than it needs, never reads more than [`MOST`], and decides nothing
//! about a client that says nothing: how long to wait for it is the caller's matter.

mod client_hello;
mod proxied;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tulle_mesh::model::ProxyProtocol;

pub(crate) use self::client_hello::ClientHello;
use self::proxied::{Header, NoHeader};
use crate::io::Prefixed;
use crate::upstream::HttpVersion;

/// What a client speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// HTTP/1.0, or an HTTP/1 that nobody knows.
    Http10,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, with prior knowledge.
    Http2,
    /// TLS.
    Tls(ClientHello),
    /// Something else.
    Other,
    /// The beginning of something, and then no more of it.
    Unfinished,
    /// Nothing: the client has closed its direction without a byte.
    Nothing,
}

/// Reads the first bytes of a connection.
#[derive(Default)]
pub(crate) struct Detector {
    read: BytesMut,
    /// A ClientHello is something else.
    no_tls: bool,
    /// So is HTTP.
    no_http: bool,
    /// When the first byte came.
    begun: Option<Instant>,
    /// How much of what was read did not tell yet.
    seen: usize,
    /// How much has to be there before there is any use in looking again.
    wanted: usize,
}

impl Detector {
    /// One that looks for TLS only where `tls` says so, and for HTTP where `http` does.
    pub(crate) fn looking_for(tls: bool, http: bool) -> Self {
        Self { no_tls: !tls, no_http: !http, ..Self::default() }
    }

    /// Reads until it is clear what the client speaks. A client that stops in the middle of something is waited for no
    /// longer than [`PATIENCE`]. Cancel-safe: what was read is kept, and calling again goes on.
    ///
    /// # Errors
    /// When the connection fails.
    pub(crate) async fn detect(&mut self, socket: &mut TcpStream) -> io::Result<Spoken> {
        loop {
            if self.read.len() >= self.wanted {
                let unasked = self.read.first().is_some_and(|first| match *first {
                    client_hello::HANDSHAKE => self.no_tls,
                    _ => self.no_http,
                });
                let told = if unasked { Ok(Spoken::Other) } else { classify(&self.read, self.seen) };
                match told {
                    Ok(spoken) => return Ok(spoken),
                    Err(More(wanted)) => (self.seen, self.wanted) = (self.read.len(), wanted),
                }
            }
            match self.read_more(socket).await? {
                Read::Some => {}
                // Whatever began here was never finished: the other end may make sense of it.
                Read::End if self.is_silent() => return Ok(Spoken::Nothing),
                Read::End => return Ok(Spoken::Other),
                Read::Late => return Ok(Spoken::Unfinished),
            }
        }
    }

    /// Reads until it is clear which version of HTTP the client speaks, if it speaks HTTP at all; `None` when it leaves
    /// without a word. Cancel-safe as [`Detector::detect`].
    ///
    /// # Errors
    /// When the connection fails.
    pub(crate) async fn http_version(&mut self, socket: &mut TcpStream) -> io::Result<Option<HttpVersion>> {
        loop {
            let len = self.read.len().min(PREFACE.len());
            if self.read[..len] != PREFACE[..len] {
                return Ok(Some(HttpVersion::Http1));
            }
            if len == PREFACE.len() {
                return Ok(Some(HttpVersion::Http2));
            }
            match self.read_more(socket).await? {
                Read::Some => {}
                Read::End if self.is_silent() => return Ok(None),
                Read::End | Read::Late => return Ok(Some(HttpVersion::Http1)),
            }
        }
    }

    /// Reads the header that a proxy in front writes first: whose connection it tells this to be, `None` where it tells
    /// nothing. What follows it stays for detection. Cancel-safe as [`Detector::detect`].
    ///
    /// # Errors
    /// When the connection fails, or does not begin as `how` wants.
    pub(crate) async fn proxied(
        &mut self,
        socket: &mut TcpStream,
        how: ProxyProtocol,
    ) -> io::Result<Option<SocketAddr>> {
        let broken = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        loop {
            match proxied::parse(&self.read, how) {
                Ok(Header { len, client }) => {
                    self.read.advance(len);
                    if self.read.is_empty() {
                        self.begun = None;
                    }
                    return Ok(client);
                }
                Err(NoHeader::Absent) if how.optional => return Ok(None),
                Err(NoHeader::Absent) => return broken("it does not begin with a PROXY header"),
                Err(NoHeader::Broken) => return broken("its PROXY header is broken"),
                Err(NoHeader::More(_)) => {}
            }
            match self.read_more(socket).await? {
                Read::Some => {}
                Read::End if self.is_silent() && how.optional => return Ok(None),
                Read::End | Read::Late => return broken("its PROXY header is not whole"),
            }
        }
    }

    async fn read_more(&mut self, socket: &mut TcpStream) -> io::Result<Read> {
        let read = async {
            loop {
                // A client that says nothing costs no buffer.
                socket.readable().await?;
                self.read.reserve(FIRST_READ);
                match socket.try_read_buf(&mut self.read) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if self.read.is_empty() {
                            self.read = BytesMut::new();
                        }
                    }
                    result => return result,
                }
            }
        };
        let len = match self.begun {
            None => read.await?,
            Some(begun) => match tokio::time::timeout_at(begun + PATIENCE, read).await {
                Ok(len) => len?,
                Err(_) => return Ok(Read::Late),
            },
        };
        if len == 0 {
            return Ok(Read::End);
        }
        self.begun.get_or_insert_with(Instant::now);
        Ok(Read::Some)
    }

    /// Whether the client has said anything yet.
    pub(crate) fn is_silent(&self) -> bool {
        self.read.is_empty()
    }

    /// Puts what was read back in front of the socket.
    pub(crate) fn into_stream(self, socket: TcpStream) -> Prefixed {
        // An exact copy, because the buffer was made for far more than most clients say at first.
        let prefix = if self.read.is_empty() { Bytes::new() } else { Bytes::copy_from_slice(&self.read) };
        Prefixed::new(prefix, socket)
    }
}

/// What came of a read.
enum Read {
    Some,
    End,
    Late,
}

/// How long after its first byte a client has for as much as detection needs: as long as for a TLS handshake.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// The most bytes that are looked at, about the greatest ClientHello that any client sends.
const MOST: usize = 32 * 1024;
const FIRST_READ: usize = 2048;

/// So many bytes have to be there, from the start, before more can be told.
#[derive(Debug, PartialEq, Eq)]
struct More(usize);

/// What `bytes` begin. The first `seen` of them did not tell, so that a client that sends byte by byte is not looked
/// through from the start with each.
fn classify(bytes: &[u8], seen: usize) -> Result<Spoken, More> {
    let Some(first) = bytes.first() else { return Err(More(1)) };
    let spoken = if *first == client_hello::HANDSHAKE {
        match client_hello::parse(bytes) {
            client_hello::Parsed::Hello(hello) => Ok(Spoken::Tls(hello)),
            client_hello::Parsed::NotTls => Ok(Spoken::Other),
            client_hello::Parsed::More(missing) => Err(More(bytes.len() + missing)),
        }
    } else if PREFACE.starts_with(&bytes[..bytes.len().min(PREFACE.len())]) {
        if bytes.len() >= PREFACE.len() { Ok(Spoken::Http2) } else { Err(More(bytes.len() + 1)) }
    } else {
        classify_text(bytes, seen).ok_or(More(bytes.len() + 1))
    };
    match spoken {
        Err(More(_)) if bytes.len() >= MOST => Ok(Spoken::Other),
        Err(More(wanted)) => Err(More(wanted.min(MOST))),
        spoken => spoken,
    }
}

/// A request line is known by its end, ` HTTP/1.x`: other protocols have commands that look like methods (Redis has
/// `GET key`). Only a line longer than any sane URI is taken for HTTP by its method alone, so that it gets its 414.
fn classify_text(bytes: &[u8], seen: usize) -> Option<Spoken> {
    let method = bytes.iter().take(LONGEST_METHOD + 1).position(|b| !b.is_ascii_uppercase() && *b != b'-');
    let Some(method) = method else {
        return (bytes.len() > LONGEST_METHOD).then_some(Spoken::Other);
    };
    if method == 0 || bytes[method] != b' ' {
        return Some(Spoken::Other);
    }
    // The start of a preface has line ends too.
    let from = if seen > PREFACE.len() { seen } else { 0 };
    match bytes[from..].iter().position(|b| *b == b'\n') {
        Some(end) => {
            let line = &bytes[..from + end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let version = line.len().checked_sub(VERSION_LEN).map(|at| &line[at..]);
            Some(match version.and_then(|version| version.strip_prefix(b" HTTP/1.")) {
                Some([b'1']) => Spoken::Http1,
                Some([b'0'..=b'9']) => Spoken::Http10,
                _ => Spoken::Other,
            })
        }
        None if bytes.len() >= LONGEST_LINE => {
            let known = METHODS.contains(&&bytes[..method]);
            Some(if known { Spoken::Http1 } else { Spoken::Other })
        }
        None => None,
    }
}

/// What an HTTP/2 client begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const VERSION_LEN: usize = " HTTP/1.1".len();
const LONGEST_METHOD: usize = 32;
const LONGEST_LINE: usize = 16 * 1024;
const METHODS: [&[u8]; 9] =
    [b"GET", b"POST", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE"];

#[cfg(test)]
mod tests;

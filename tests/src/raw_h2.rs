//! HTTP/2 frames as a hostile client writes them: nothing is checked before it is sent.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::LIMIT;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// A connection.
pub struct RawH2(TcpStream);

/// What became of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// An answer with this status; 0 for one that is not in HPACK's static table.
    Answer(u16),
    /// A reset of the stream.
    Reset,
    /// The end of the connection.
    Connection,
}

/// A frame of a peer (RFC 9113, section 4.1).
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// What its type has flags for.
    pub flags: u8,
    /// Whose it is; 0 for the connection's.
    pub stream: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The next one.
    ///
    /// # Errors
    /// When the connection fails or ends.
    pub async fn read(socket: &mut TcpStream) -> io::Result<Self> {
        let mut head = [0; 9];
        socket.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        socket.read_exact(&mut payload).await?;
        Ok(Self { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }
}

impl RawH2 {
    /// Connects and says the preface.
    pub async fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("it reads");
        let mut this = Self(stream);
        this.frame(SETTINGS, 0, 0, &[]).await;
        this
    }

    /// Sends a head, or trailers, field by field as they are; `end`: that is all.
    pub async fn headers(&mut self, stream: u32, fields: &[(&[u8], &[u8])], end: bool) {
        let mut block = Vec::new();
        for (name, value) in fields {
            // A literal field that is never indexed, with a new name (RFC 7541 section 6.2.3).
            block.push(0x10);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).ok().filter(|len| *len < 127).expect("a short text"));
                block.extend_from_slice(text);
            }
        }
        self.frame(HEADERS, if end { END_HEADERS | END_STREAM } else { END_HEADERS }, stream, &block).await;
    }

    /// Sends a piece of a body; `end`: the last.
    pub async fn data(&mut self, stream: u32, bytes: &[u8], end: bool) {
        self.frame(DATA, if end { END_STREAM } else { 0 }, stream, bytes).await;
    }

    /// Reads until a stream has an answer or never will.
    pub async fn end_of(&mut self, stream: u32) -> End {
        timeout(LIMIT, self.read_end_of(stream)).await.expect("an end in time")
    }

    async fn read_end_of(&mut self, stream: u32) -> End {
        loop {
            let Ok(frame) = Frame::read(&mut self.0).await else { return End::Connection };
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => self.frame(SETTINGS, ACK, 0, &[]).await,
                GOAWAY => return End::Connection,
                RST_STREAM if frame.stream == stream => return End::Reset,
                HEADERS if frame.stream == stream => return End::Answer(status(&frame.payload)),
                _ => {}
            }
        }
    }

    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        // The other end may have closed; reading will tell.
        let _ = self.0.write_all(&frame).await;
    }
}

/// The status at the beginning of a header block (RFC 7541 appendix A).
fn status(block: &[u8]) -> u16 {
    let first = block.iter().find(|byte| **byte & 0xe0 != 0x20);
    match first {
        Some(0x88) => 200,
        Some(0x89) => 204,
        Some(0x8a) => 206,
        Some(0x8b) => 304,
        Some(0x8c) => 400,
        Some(0x8d) => 404,
        Some(0x8e) => 500,
        _ => 0,
    }
}

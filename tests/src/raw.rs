//! Bytes on a socket: a client that sends what it is told and shows what comes back.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::LIMIT;

/// What came back on a connection.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Everything, as text.
    pub text: String,
}

impl Answer {
    /// The first response's status; 0 where there is none.
    pub fn status(&self) -> u16 {
        self.text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// A header of the first response; empty where it has none.
    pub fn header(&self, name: &str) -> &str {
        let head = self.text.split("\r\n\r\n").next().unwrap_or("");
        let fields = head.lines().filter_map(|line| line.split_once(':'));
        let mut found = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        found.next().map_or("", |(_, value)| value.trim())
    }

    /// The statuses of all responses.
    pub fn statuses(&self) -> Vec<u16> {
        // A body without a line end stands right before the next response.
        let heads = self.text.split("HTTP/1.1 ").skip(1);
        heads.filter_map(|head| head.split(' ').next()?.parse().ok()).collect()
    }
}

/// Sends bytes, keeps the sending side open, and reads until the other end closes.
pub async fn exchange(address: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(bytes).await.expect("it reads");
    Answer { text: read_to_end(&mut stream).await }
}

/// Reads until the other end closes or resets.
pub async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = timeout(LIMIT, stream.read_to_end(&mut bytes)).await;
    assert!(read.is_ok(), "still open after {LIMIT:?}: {}", String::from_utf8_lossy(&bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads up to and with the empty line that ends a head.
pub async fn read_head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = async {
        while !bytes.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => bytes.push(byte),
                Err(_) => break,
            }
        }
    };
    assert!(timeout(LIMIT, read).await.is_ok(), "no head after {LIMIT:?}");
    String::from_utf8_lossy(&bytes).into_owned()
}

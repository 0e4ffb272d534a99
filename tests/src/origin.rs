//! An HTTP/1.1 application of which the test writes each byte itself.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::{LIMIT, read_head};

/// Where it listens, and who comes.
pub struct Origin(TcpListener);

impl Origin {
    /// One on a free port.
    pub async fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.expect("a port"))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("it is bound")
    }

    /// The head of the next request, and its connection. Who asks for HTTP/2 is refused.
    pub async fn request(&self) -> (String, TcpStream) {
        loop {
            let (mut stream, _) =
                timeout(LIMIT, self.0.accept()).await.expect("in time").expect("it listens");
            let head = read_head(&mut stream).await;
            if !head.starts_with("PRI ") {
                return (head, stream);
            }
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("it is open");
        }
    }

    /// Reads exactly `bytes` off a connection.
    pub async fn reads(stream: &mut TcpStream, bytes: &[u8]) {
        let mut read = vec![0; bytes.len()];
        let whole = timeout(LIMIT, stream.read_exact(&mut read)).await;
        let seen = || String::from_utf8_lossy(&read).into_owned();
        assert!(matches!(whole, Ok(Ok(_))), "{whole:?} after {:?}", seen());
        assert_eq!(seen(), String::from_utf8_lossy(bytes));
    }
}

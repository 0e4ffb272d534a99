//! An application whose every answer is scripted byte by byte, and which remembers what reached it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request as it reached the application.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// The request line.
    pub line: String,
    /// Header lines.
    pub headers: Vec<(String, String)>,
    /// The body, without chunk framing.
    pub body: Vec<u8>,
}

impl Seen {
    /// A header's value; empty where it has none.
    pub fn header(&self, name: &str) -> &str {
        let mut found = self.headers.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name));
        found.next().map_or("", |(_, value)| value)
    }
}

/// A running HTTP/1.1 application. Who asks for HTTP/2 is refused as most servers do it. Ends when dropped.
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl App {
    /// Answers each request with what `answer` makes of it, as raw bytes; an empty answer closes the connection.
    pub async fn start(answer: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let answer = Arc::new(answer);
        let (log, count) = (seen.clone(), connections.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, answer.clone(), log.clone()));
            }
        });
        Self { address, seen, connections, task }
    }

    /// Answers each request with a status and a text.
    pub async fn fixed(status: u16, text: &'static str) -> Self {
        Self::start(move |_| script(status, text)).await
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no test thread panics with it").clone()
    }

    /// How many connections it took.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A plain response.
pub fn script(status: u16, text: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{text}", text.len()).into_bytes()
}

/// Answers the requests of one connection.
pub(crate) async fn serve(
    mut stream: TcpStream,
    answer: Arc<impl Fn(&Seen) -> Vec<u8> + Send + Sync>,
    log: Arc<Mutex<Vec<Seen>>>,
) {
    while let Some(request) = read_request(&mut stream).await {
        if request.line.starts_with("PRI ") {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await;
            return;
        }
        log.lock().expect("no test thread panics with it").push(request.clone());
        let bytes = answer(&request);
        if bytes.is_empty() || stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

pub(crate) async fn read_request(stream: &mut TcpStream) -> Option<Seen> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut lines = text.lines();
    let line = lines.next()?.to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    let mut seen = Seen { line, headers, body: Vec::new() };
    if let Ok(length) = seen.header("content-length").parse::<usize>() {
        seen.body = vec![0; length];
        stream.read_exact(&mut seen.body).await.ok()?;
    } else if seen.header("transfer-encoding").eq_ignore_ascii_case("chunked") {
        seen.body = read_chunks(stream).await?;
    }
    Some(seen)
}

async fn read_chunks(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(stream).await?;
        let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
        let mut chunk = vec![0; size];
        stream.read_exact(&mut chunk).await.ok()?;
        body.extend_from_slice(&chunk);
        if size == 0 {
            while !read_line(stream).await?.is_empty() {}
            return Some(body);
        }
        read_line(stream).await?;
    }
}

async fn read_line(stream: &mut TcpStream) -> Option<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.ok()?);
    }
    line.truncate(line.len() - 2);
    String::from_utf8(line).ok()
}

//! What became of a request, without what may differ between any two proxies.

use std::fmt;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Scripted;
use crate::{LIMIT, Seen};

/// What the client and the upstream saw.
#[derive(Clone, PartialEq)]
pub struct Outcome {
    /// What came back.
    pub received: Received,
    /// What reached which cluster, attempt for attempt.
    pub upstream: Vec<(String, Seen)>,
}

/// A response as its client saw it.
#[derive(Clone, Default, PartialEq)]
pub struct Received {
    /// The statuses of responses before the final one.
    pub interim: Vec<u16>,
    /// 0: there was none.
    pub status: u16,
    /// In order of names.
    pub headers: Vec<(String, String)>,
    /// Without framing.
    pub body: String,
    /// What became of the connection.
    pub then: Then,
}

/// What becomes of a connection after a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Then {
    /// It was closed before a whole response had come.
    #[default]
    CutShort,
    /// It is closed after the response.
    Closed,
    /// It takes another request.
    Kept,
}

/// Sends a request, reads the response, and tries whether the connection takes another.
pub(super) async fn send(address: SocketAddr, request: &[u8]) -> Received {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    // A proxy that has already refused the head may close before it has read the rest.
    let _ = stream.write_all(request).await;
    let mut reader = Reader { stream, bytes: Vec::new() };
    let head_only = request.starts_with(b"HEAD ");
    let read = timeout(LIMIT, reader.response(head_only)).await;
    let mut received = read.unwrap_or_else(|_| panic!("no response within {LIMIT:?} to {request:?}"));
    if received.status == 101 {
        let echoed = timeout(LIMIT, reader.echo(b"after the upgrade")).await;
        received.body = String::from_utf8_lossy(&echoed.unwrap_or_default()).into_owned();
        return received;
    }
    if received.then == Then::Kept {
        let again = b"GET / HTTP/1.1\r\nhost: nobody.test\r\n\r\n";
        let another = async {
            reader.stream.write_all(again).await.is_ok() && reader.response(false).await.status != 0
        };
        if !timeout(LIMIT, another).await.unwrap_or(false) {
            received.then = Then::Closed;
        }
    }
    received
}

/// Sends requests one after the other over one connection, and reads the responses.
pub(super) async fn send_in_turn(address: SocketAddr, requests: &[Vec<u8>]) -> Vec<Received> {
    let stream = TcpStream::connect(address).await.expect("it listens");
    let mut reader = Reader { stream, bytes: Vec::new() };
    let mut all = Vec::new();
    for request in requests {
        let _ = reader.stream.write_all(request).await;
        let read = timeout(LIMIT, reader.response(request.starts_with(b"HEAD "))).await;
        all.push(read.unwrap_or_else(|_| panic!("no response within {LIMIT:?} to {request:?}")));
    }
    all
}

/// What is answered to bytes, up to where it is `enough`, or to the end of the connection.
pub(super) async fn answer_to_bytes(
    address: SocketAddr,
    bytes: &[u8],
    enough: impl Fn(&str) -> bool,
) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = async {
        loop {
            let said = String::from_utf8_lossy(&answer).into_owned();
            if enough(&said) || !matches!(stream.read_buf(&mut answer).await, Ok(1..)) {
                return said;
            }
        }
    };
    timeout(LIMIT, read).await.unwrap_or_else(|_| panic!("no answer within {LIMIT:?} to {bytes:?}"))
}

struct Reader {
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Reader {
    async fn response(&mut self, head_only: bool) -> Received {
        let mut received = Received::default();
        loop {
            let Some(head) = self.until(b"\r\n\r\n").await else { return received };
            let head = String::from_utf8_lossy(&head).into_owned();
            let mut lines = head.lines();
            let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
            if (100..200).contains(&status) && status != 101 {
                received.interim.push(status);
                continue;
            }
            received.status = status;
            let fields = lines.filter_map(|line| line.split_once(':'));
            received.headers =
                fields.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
            break;
        }
        let field = |name: &str| {
            let found = received.headers.iter().find(|(field, _)| field == name);
            found.map_or(String::new(), |(_, value)| value.clone())
        };
        let (length, chunked) =
            (field("content-length").parse().ok(), field("transfer-encoding") == "chunked");
        let close = field("connection") == "close";
        let bodiless = head_only || matches!(received.status, 101 | 204 | 304);
        let (body, whole, at_end) = match length {
            _ if bodiless => (Vec::new(), true, false),
            _ if chunked => {
                let (body, whole) = self.chunks().await;
                (body, whole, false)
            }
            Some(length) => {
                let body = self.exactly(length).await;
                let whole = body.len() == length;
                (body, whole, false)
            }
            None => (self.rest().await, true, true),
        };
        received.body = String::from_utf8_lossy(&body).into_owned();
        received.then = match () {
            () if !whole => Then::CutShort,
            () if close || at_end => Then::Closed,
            () => Then::Kept,
        };
        received
    }

    /// What comes back of bytes.
    async fn echo(&mut self, bytes: &[u8]) -> Vec<u8> {
        match self.stream.write_all(bytes).await {
            Ok(()) => self.exactly(bytes.len()).await,
            Err(_) => Vec::new(),
        }
    }

    async fn chunks(&mut self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        loop {
            let Some(line) = self.until(b"\r\n").await else { return (body, false) };
            let line = String::from_utf8_lossy(&line).into_owned();
            let size = line.split(';').next().and_then(|size| usize::from_str_radix(size.trim(), 16).ok());
            let Some(size) = size else { return (body, false) };
            if size == 0 {
                // Trailers, if any, and the empty line.
                loop {
                    match self.until(b"\r\n").await {
                        Some(line) if line == b"\r\n" => return (body, true),
                        Some(_) => {}
                        None => return (body, false),
                    }
                }
            }
            let chunk = self.exactly(size + 2).await;
            let whole = chunk.len() == size + 2;
            body.extend_from_slice(&chunk[..chunk.len().min(size)]);
            if !whole {
                return (body, false);
            }
        }
    }

    async fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.bytes.windows(end.len()).position(|window| window == end) {
                return Some(self.bytes.drain(..at + end.len()).collect());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.bytes.len() < length && self.more().await {}
        self.bytes.drain(..length.min(self.bytes.len())).collect()
    }

    async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.bytes)
    }

    async fn more(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer).await {
            Ok(0) | Err(_) => false,
            Ok(read) => {
                self.bytes.extend_from_slice(&buffer[..read]);
                true
            }
        }
    }
}

impl Outcome {
    /// Without what may differ: times, identifiers, addresses, the order and case of header names. `compared`: headers that
    /// stay even so.
    pub(super) fn normalised(mut self, own: SocketAddr, upstreams: &[Scripted], compared: &[&str]) -> Self {
        let addresses: Vec<(String, &str)> = upstreams
            .iter()
            .map(|upstream| (upstream.address.to_string(), upstream.name.as_str()))
            .chain([(own.to_string(), "proxy"), (own.port().to_string(), "port")])
            .collect();
        normalise(&mut self.received.headers, &addresses, compared);
        for (_, seen) in &mut self.upstream {
            normalise(&mut seen.headers, &addresses, compared);
        }
        self
    }
}

/// Headers that are about the proxy itself, or that no two requests share.
const IGNORED: [&str; 10] = [
    super::scripted::CASE,
    "date",
    "server",
    "x-request-id",
    "x-envoy-upstream-service-time",
    "x-forwarded-proto",
    "traceparent",
    "tracestate",
    "x-envoy-expected-rq-timeout-ms",
    "via",
];

fn normalise(headers: &mut Vec<(String, String)>, addresses: &[(String, &str)], compared: &[&str]) {
    let is = |names: &[&str], name: &str| names.iter().any(|other| name.eq_ignore_ascii_case(other));
    headers.retain(|(name, _)| !is(&IGNORED, name) || is(compared, name));
    for (name, value) in headers.iter_mut() {
        name.make_ascii_lowercase();
        if name == "connection" {
            value.make_ascii_lowercase();
        }
        for (address, what) in addresses {
            *value = value.replace(address, what);
        }
    }
    headers.sort();
    // A list may stand in one header or in several (RFC 9110, section 5.3).
    headers.dedup_by(|later, first| {
        let list = later.0 == first.0 && later.0 != "set-cookie";
        if list {
            first.1 = format!("{},{}", first.1, later.1);
        }
        list
    });
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Received { interim, status, headers, body, then } = &self.received;
        writeln!(f, "  {interim:?} {status} {headers:?} {body:?}, then {then:?}")?;
        for (cluster, Seen { line, headers, body }) in &self.upstream {
            writeln!(f, "  at {cluster}: {line:?} {headers:?} {:?}", String::from_utf8_lossy(body))?;
        }
        Ok(())
    }
}

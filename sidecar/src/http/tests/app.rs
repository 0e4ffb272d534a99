//! Applications that do as they are told.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use http::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What an application does with a request.
#[derive(Clone, Debug)]
pub(super) enum Say {
    /// 200 with this body.
    Ok(&'static str),
    /// These bytes, and the connection stays open.
    Raw(String),
    /// These bytes, and the connection is closed.
    Last(String),
    /// The connection is reset.
    Reset,
    /// The connection is closed without an answer.
    Close,
    /// Nothing, for ever.
    Nothing,
}

/// A status without a body.
pub(super) fn status(code: u16) -> Say {
    Say::Raw(format!("HTTP/1.1 {code} x\r\ncontent-length: 0\r\n\r\n"))
}

/// A request as an application got it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) line: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// An application.
#[derive(Clone)]
pub(super) struct App {
    pub(super) address: SocketAddr,
    seen: Rc<RefCell<Vec<Seen>>>,
}

impl App {
    /// One that does what `script` says with the request of this number, from 0.
    pub(super) async fn new(script: impl Fn(usize) -> Say + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let app = Self { address, seen: Rc::default() };
        let (seen, script) = (app.seen.clone(), Rc::new(script));
        tokio::task::spawn_local(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::task::spawn_local(serve(socket, seen.clone(), script.clone()));
            }
        });
        app
    }

    /// The requests that it got, resent ones too.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.borrow().clone()
    }
}

async fn serve(mut socket: TcpStream, seen: Rc<RefCell<Vec<Seen>>>, script: Rc<impl Fn(usize) -> Say>) {
    let mut bytes = Vec::new();
    while let Some(request) = read(&mut socket, &mut bytes).await {
        let number = seen.borrow().len();
        seen.borrow_mut().push(request);
        let answer = match script(number) {
            Say::Ok(body) => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()),
            Say::Raw(answer) => answer,
            Say::Last(answer) => {
                let _ = socket.write_all(answer.as_bytes()).await;
                return;
            }
            Say::Close => return,
            Say::Reset => {
                let _ = socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO));
                return;
            }
            Say::Nothing => std::future::pending().await,
        };
        if socket.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Reads a request with a Content-Length or in chunks.
async fn read(socket: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<Seen> {
    let end = |bytes: &[u8], what: &[u8]| {
        bytes.windows(what.len()).position(|w| w == what).map(|at| at + what.len())
    };
    let head = loop {
        if let Some(at) = end(bytes, b"\r\n\r\n") {
            break at;
        }
        more(socket, bytes).await?;
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    bytes.drain(..head);
    let mut lines = text.lines();
    let line = lines.next().unwrap_or_default().to_owned();
    let fields = lines.filter_map(|line| line.split_once(": "));
    let headers: HeaderMap = fields
        .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
        .collect::<Vec<(http::HeaderName, http::HeaderValue)>>()
        .into_iter()
        .fold(HeaderMap::new(), |mut all, (name, value)| {
            all.append(name, value);
            all
        });
    let length = headers.get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
    let mut body = Vec::new();
    if headers.contains_key("transfer-encoding") {
        while end(bytes, b"0\r\n\r\n").is_none() {
            more(socket, bytes).await?;
        }
        body = unchunk(&std::mem::take(bytes));
    } else if let Some(length) = length {
        while bytes.len() < length {
            more(socket, bytes).await?;
        }
        body = bytes.drain(..length).collect();
    }
    Some(Seen { line, headers, body })
}

fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = bytes.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..at]).expect("hex"), 16).expect("hex");
        if size == 0 {
            break;
        }
        body.extend_from_slice(&bytes[at + 2..at + 2 + size]);
        bytes = &bytes[at + 4 + size..];
    }
    body
}

async fn more(socket: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<()> {
    let mut buffer = [0; 4 * 1024];
    let count = socket.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
    bytes.extend_from_slice(&buffer[..count]);
    Some(())
}

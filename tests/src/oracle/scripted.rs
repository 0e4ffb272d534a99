//! An upstream that does as a script says, attempt for attempt.
//!
//! In: requests, each with a header that names its case. Out: answers byte for byte, and what reached it. A script is a list of
//! words, one for each attempt; the last one holds for all that follow. A word with `@` and the name of an upstream is for that
//! one, and `ok` for all others.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::Seen;
use crate::app::read_request;

/// The header that names a request's case.
pub(super) const CASE: &str = "x-case";

/// The upstream of one cluster. Ends when dropped.
pub struct Scripted {
    /// The cluster's name.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

/// What is to be done and what was seen, of each case.
#[derive(Clone, Default)]
pub struct Scripts(Arc<Mutex<HashMap<String, Case>>>);

#[derive(Default)]
struct Case {
    script: Vec<String>,
    seen: Vec<(String, Seen)>,
}

impl Scripts {
    pub(super) fn put(&self, case: &str, script: &str) {
        let script = script.split(',').map(str::to_owned).collect();
        self.all().insert(case.into(), Case { script, seen: Vec::new() });
    }

    /// What reached which cluster.
    pub(super) fn take(&self, case: &str) -> Vec<(String, Seen)> {
        self.all().remove(case).unwrap_or_default().seen
    }

    /// Whether an attempt of a case has come.
    pub(super) fn is_met(&self, case: &str) -> bool {
        // Who has taken the outcome has met it.
        self.all().get(case).is_none_or(|case| !case.seen.is_empty())
    }

    /// How many attempts of a case have come.
    pub(super) fn count(&self, case: &str) -> usize {
        self.all().get(case).map_or(0, |case| case.seen.len())
    }

    /// Notes an attempt: what it is to meet.
    pub(super) fn next(&self, cluster: &str, seen: Seen) -> String {
        let mut all = self.all();
        let Some(case) = all.get_mut(seen.header(CASE)) else { return "ok".into() };
        let at = case.seen.len().min(case.script.len() - 1);
        case.seen.push((cluster.into(), seen));
        match case.script[at].split_once('@') {
            Some((_, other)) if other != cluster => "ok".into(),
            Some((word, _)) => word.into(),
            None => case.script[at].clone(),
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Case>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scripted {
    pub(super) async fn start(name: &str, scripts: Scripts) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), name, scripts).await
    }

    pub(super) async fn start_at(address: SocketAddr, name: &str, scripts: Scripts) -> Self {
        let listener = TcpListener::bind(address).await.expect("nobody has the address");
        let address = listener.local_addr().expect("it is bound");
        let cluster: Arc<str> = name.into();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, cluster.clone(), scripts.clone()));
            }
        });
        Self { name: name.into(), address, task }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, cluster: Arc<str>, scripts: Scripts) {
    while let Some(request) = read_request(&mut stream).await {
        let word = scripts.next(&cluster, request.clone());
        let end = match answer(&word, &cluster, &request) {
            Act::Say(bytes) => stream.write_all(&bytes).await.is_err(),
            Act::Switch(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                true
            }
            Act::SayLate(bytes) => {
                // Until all that come at once have come, which nothing else tells.
                tokio::time::sleep(SLOW).await;
                stream.write_all(&bytes).await.is_err()
            }
            Act::SayAndClose(bytes) => {
                let _ = stream.write_all(&bytes).await;
                true
            }
            Act::SayAndHang(bytes) => {
                let _ = stream.write_all(&bytes).await;
                // Until the other end gives up.
                let _ = stream.read(&mut [0; 64]).await;
                true
            }
            Act::Reset => {
                let _ = socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
                true
            }
            Act::Hang => {
                // Until the other end gives up.
                let _ = stream.read(&mut [0; 64]).await;
                true
            }
        };
        if end {
            return;
        }
    }
}

/// How long `slow` takes.
pub(super) const SLOW: std::time::Duration = std::time::Duration::from_millis(600);

enum Act {
    Say(Vec<u8>),
    SayLate(Vec<u8>),
    /// What comes after goes back as it came.
    Switch(Vec<u8>),
    SayAndClose(Vec<u8>),
    SayAndHang(Vec<u8>),
    Reset,
    Hang,
}

/// # Panics
/// When no script has such a word.
fn answer(word: &str, cluster: &str, request: &Seen) -> Act {
    let plain = |status: &str, fields: &str, body: &str| {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\nx-cluster: {cluster}\r\n{fields}content-length: {length}\r\n\r\n{body}")
            .into_bytes()
    };
    let head = request.line.starts_with("HEAD ");
    Act::Say(match word {
        "ok" if head => format!("HTTP/1.1 200 OK\r\nx-cluster: {cluster}\r\ncontent-length: 2\r\n\r\n").into_bytes(),
        "ok" => plain("200 OK", "", "ok"),
        // 80 KiB.
        "long" => plain("200 OK", "", &"0123456789abcdef".repeat(5 << 10)),
        "long-chunked" => {
            let chunk = format!("2000\r\n{}\r\n", "0123456789abcdef".repeat(512));
            let head = format!("HTTP/1.1 200 OK\r\nx-cluster: {cluster}\r\ntransfer-encoding: chunked\r\n\r\n");
            (head + &chunk.repeat(10) + "0\r\n\r\n").into_bytes()
        }
        "slow" => return Act::SayLate(plain("200 OK", "", "ok")),
        "101" => {
            let protocol = request.header("upgrade");
            return Act::Switch(
                format!("HTTP/1.1 101 Switching Protocols\r\nx-cluster: {cluster}\r\nconnection: Upgrade\r\nupgrade: {protocol}\r\n\r\n")
                    .into_bytes(),
            );
        }
        "echo" => plain("200 OK", "", &String::from_utf8_lossy(&request.body)),
        "chunked" => format!(
            "HTTP/1.1 200 OK\r\nx-cluster: {cluster}\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n"
        )
        .into_bytes(),
        "cookies" => plain("200 OK", "set-cookie: a=1\r\nset-cookie: b=2\r\nvary: x\r\nvary: y\r\n", "ok"),
        "hops" => plain("200 OK", "connection: x-drop\r\nx-drop: 1\r\nkeep-alive: timeout=5\r\nproxy-connection: x\r\n", "ok"),
        "hint" => [b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".to_vec(), plain("200 OK", "", "ok")].concat(),
        "continue" => [b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(), plain("200 OK", "", "ok")].concat(),
        "204" => format!("HTTP/1.1 204 No Content\r\nx-cluster: {cluster}\r\n\r\n").into_bytes(),
        "304" => format!("HTTP/1.1 304 Not Modified\r\nx-cluster: {cluster}\r\netag: \"x\"\r\n\r\n").into_bytes(),
        "late" => return Act::SayAndClose(format!("HTTP/1.1 200 OK\r\nx-cluster: {cluster}\r\n\r\nuntil the end").into_bytes()),
        "goodbye" => return Act::SayAndClose(plain("200 OK", "connection: close\r\n", "ok")),
        "half" => return Act::SayAndClose(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".to_vec()),
        // In the middle of a head, of a body, and of a chunk.
        "stall-head" => return Act::SayAndHang(b"HTTP/1.1 200 OK\r\ncontent-le".to_vec()),
        "stall" => return Act::SayAndHang(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".to_vec()),
        "stall-chunk" => {
            return Act::SayAndHang(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n5\r\nxx".to_vec());
        }
        "cut" => {
            return Act::SayAndClose(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n5\r\nxx".to_vec(),
            );
        }
        "garbage" => return Act::SayAndClose(b"what is this?\r\n\r\n".to_vec()),
        "both" => {
            return Act::SayAndClose(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_vec(),
            );
        }
        "fin" => return Act::SayAndClose(Vec::new()),
        "rst" => return Act::Reset,
        "hang" => return Act::Hang,
        tagged if tagged.contains('+') => {
            // A status, and a header with its value.
            let parts: Vec<&str> = tagged.split('+').collect();
            let [status, name, value] = parts[..] else { panic!("{tagged:?} is not STATUS+NAME+VALUE") };
            plain(&format!("{status} X"), &format!("{name}: {value}\r\n"), "tagged")
        }
        status if status.parse::<u16>().is_ok_and(|status| (200..600).contains(&status)) => {
            plain(&format!("{status} X"), "", status)
        }
        word => panic!("no script has {word:?}"),
    })
}

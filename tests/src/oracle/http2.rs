//! HTTP/2 at both ends of the proxies: an upstream that does to streams and connections as a script says, and a client that sees
//! trailers and resets.
//!
//! In: requests, each with the header that names its case. Out: answers, resets and GOAWAYs of any code. The words of a script, for
//! each attempt one:
//!
//! - `ok`, a status, `trailers`: an answer; the last of them with the trailer `x-end`.
//! - `grpc:N`: an answer of gRPC with one message and that status; `only:N`: with nothing but the status; `slow:N`: as `grpc:N`, but
//!   not at once.
//! - `reset:CODE`: the stream is reset in place of an answer; `cut:CODE`: in the middle of one.
//! - `unseen:CODE`: GOAWAY, which says that this request was not looked at, and the end of the connection; `seen:CODE`: that it was.
//! - `last`: GOAWAY, which says that this is the last request, and its answer.
//! - `101`: a stream that has switched, on which everything comes back.
//! - `fin`, `rst`: the connection ends; `hang`: no answer; `half`: an answer that does not end.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::scripted::{CASE, SLOW, Scripts};
use super::{Received, Then};
use crate::{LIMIT, Seen, wait_for};

/// An upstream with prior knowledge. Ends when dropped.
pub struct Http2 {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Http2 {
    pub(super) async fn start(name: &str, scripts: Scripts) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let cluster: Arc<str> = name.into();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(serve(socket, cluster.clone(), scripts.clone()));
            }
        });
        Self { address, task }
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is done to a connection past its streams.
struct Raw {
    bytes: Vec<u8>,
    then: After,
    done: oneshot::Sender<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    GoOn,
    Fin,
    Rst,
}

async fn serve(socket: TcpStream, cluster: Arc<str>, scripts: Scripts) {
    let (near, far) = duplex(1 << 20);
    let (raw, commands) = mpsc::channel(1);
    let streams = async move {
        let mut server = h2::server::Builder::new();
        server.enable_connect_protocol();
        let Ok(mut connection) = server.handshake(near).await else { return };
        let mut answers = JoinSet::new();
        while let Some(Ok((request, respond))) = connection.accept().await {
            answers.spawn(answer(request, respond, cluster.clone(), scripts.clone(), raw.clone()));
        }
    };
    tokio::select! {
        () = streams => {}
        _ = relay(socket, far, commands) => {}
    }
}

/// Carries the frames of the server to the socket and back, with others between them.
async fn relay(
    mut socket: TcpStream,
    far: DuplexStream,
    mut commands: mpsc::Receiver<Raw>,
) -> io::Result<()> {
    let (mut from_server, mut to_server) = tokio::io::split(far);
    let mut buffer = vec![0; 1 << 16];
    let mut read = vec![0; 1 << 16];
    loop {
        tokio::select! {
            // What the server has said by now goes first.
            biased;
            length = from_server.read(&mut buffer) => socket.write_all(&buffer[..length?]).await?,
            Some(Raw { bytes, then, done }) = commands.recv() => {
                socket.write_all(&bytes).await?;
                let _ = done.send(());
                match then {
                    After::GoOn => {}
                    After::Fin => {
                        // What was said is to be understood before the end is seen, which nothing tells.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        return Ok(());
                    }
                    After::Rst => return socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)),
                }
            }
            length = socket.read(&mut read) => match length? {
                0 => return Ok(()),
                length => to_server.write_all(&read[..length]).await?,
            },
        }
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    cluster: Arc<str>,
    scripts: Scripts,
    raw: mpsc::Sender<Raw>,
) {
    let (head, mut body) = request.into_parts();
    let mut seen = Seen {
        line: format!("{} {} HTTP/2", head.method, head.uri.path_and_query().map_or("", |p| p.as_str())),
        ..Seen::default()
    };
    let fields = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
    seen.headers = fields.collect();
    seen.headers.extend(head.uri.authority().map(|authority| ("host".to_owned(), authority.to_string())));
    let protocol = head.extensions.get::<h2::ext::Protocol>();
    seen.headers.extend(protocol.map(|protocol| ("protocol".to_owned(), protocol.as_str().to_owned())));
    if protocol.is_none() {
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            seen.body.extend_from_slice(&data);
        }
    }
    let word = scripts.next(&cluster, seen);
    let id = respond.stream_id().as_u32();
    let (word, code) = word
        .split_once(':')
        .map_or((word.as_str(), 0), |(word, code)| (word, code.parse().expect("a number")));
    let say = async |bytes: Vec<u8>, then: After| {
        let (done, said) = oneshot::channel();
        let _ = raw.send(Raw { bytes, then, done }).await;
        let _ = said.await;
    };
    let status = |status: &str| {
        Response::builder().status(status).header("x-cluster", &*cluster).body(()).expect("a valid head")
    };
    match word {
        "reset" => respond.send_reset(Reason::from(code)),
        "unseen" => say(goaway(id.saturating_sub(2), code), After::Fin).await,
        "seen" => say(goaway(id, code), After::Fin).await,
        "fin" => say(Vec::new(), After::Fin).await,
        "rst" => say(Vec::new(), After::Rst).await,
        "hang" => pending().await,
        "101" => {
            let Ok(mut stream) = respond.send_response(status("200"), false) else { return };
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
                let _ = stream.send_data(data, false);
            }
            let _ = stream.send_data(Bytes::new(), true);
        }
        "cut" | "half" => {
            let Ok(mut stream) = respond.send_response(status("200"), false) else { return };
            let _ = stream.send_data(Bytes::from_static(b"half"), false);
            if word == "half" {
                pending::<()>().await;
            }
            // What was sent so far is not to be overtaken.
            tokio::time::sleep(Duration::from_millis(20)).await;
            stream.send_reset(Reason::from(code));
        }
        "only" => {
            let mut only = status("200");
            only.headers_mut().extend(grpc(code));
            only.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            let _ = respond.send_response(only, true);
        }
        "grpc" | "slow" | "trailers" => {
            if word == "slow" {
                tokio::time::sleep(SLOW).await;
            }
            let mut head = status("200");
            let mut end = HeaderMap::new();
            let mut body: &[u8] = b"ok";
            if word != "trailers" {
                head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
                end = grpc(code);
                body = b"\0\0\0\0\x02ok";
            } else {
                end.insert("x-end", HeaderValue::from_static("1"));
            }
            let Ok(mut stream) = respond.send_response(head, false) else { return };
            let _ = stream.send_data(Bytes::from_static(body), false);
            let _ = stream.send_trailers(end);
        }
        _ => {
            if word == "last" {
                say(goaway(id, 0), After::GoOn).await;
            }
            let head = status(if word.parse::<u16>().is_ok() { word } else { "200" });
            let Ok(mut stream) = respond.send_response(head, false) else { return };
            let _ = stream.send_data(Bytes::copy_from_slice(word.as_bytes()), true);
        }
    }
}

fn grpc(status: u32) -> HeaderMap {
    let mut fields = HeaderMap::new();
    fields.insert("grpc-status", HeaderValue::from(status));
    fields.insert("grpc-message", HeaderValue::from_static("said"));
    fields
}

/// RFC 9113, section 6.8.
fn goaway(last: u32, code: u32) -> Vec<u8> {
    let mut frame = vec![0, 0, 8, 7, 0, 0, 0, 0, 0];
    frame.extend_from_slice(&last.to_be_bytes());
    frame.extend_from_slice(&code.to_be_bytes());
    frame
}

/// Sends a request over a connection of its own. What comes after the body stands among the headers: trailers as `trailer NAME`, and
/// the code of a reset as `reset`.
pub(super) async fn send(address: SocketAddr, mut request: Request<Bytes>, case: &str) -> Received {
    request.headers_mut().insert(CASE, HeaderValue::from_str(case).expect("a case's name is plain"));
    let received = timeout(LIMIT, exchange(address, request)).await;
    received.unwrap_or_else(|_| panic!("no response to {case} within {LIMIT:?}"))
}

async fn exchange(address: SocketAddr, request: Request<Bytes>) -> Received {
    let socket = TcpStream::connect(address).await.expect("it listens");
    let (client, connection) = h2::client::handshake(socket).await.expect("it speaks HTTP/2");
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.expect("it takes a request");
    if request.extensions().get::<h2::ext::Protocol>().is_some() {
        let enabled = || async {
            let enabled = client.is_extended_connect_protocol_enabled();
            enabled.then_some(()).ok_or_else(|| "it does not take extended CONNECT".to_owned())
        };
        wait_for(LIMIT, enabled).await.unwrap_or_else(|error| panic!("{error}"));
    }
    let (head, body) = request.into_parts();
    // Who speaks on a stream that has switched does not end it, and waits for as much as was said.
    let tunnel = head.extensions.get::<h2::ext::Protocol>().map(|_| body.len());
    let (response, mut send) =
        client.send_request(Request::from_parts(head, ()), false).expect("a valid head");
    // The proxy may have answered or given up by now; the response tells.
    let _ = send.send_data(body, tunnel.is_none());
    let mut received = Received::default();
    let ended = read(response, &mut received, tunnel).await;
    received.then = match ended {
        Ok(()) => Then::Kept,
        Err(error) => {
            let code =
                error.reason().map_or_else(|| error.to_string(), |reason| u32::from(reason).to_string());
            received.headers.push(("reset".into(), code));
            Then::CutShort
        }
    };
    connection.abort();
    received
}

/// Reads an answer; of what a stream carries that has switched, as many bytes as `tunnel` says.
async fn read(
    response: h2::client::ResponseFuture,
    received: &mut Received,
    tunnel: Option<usize>,
) -> Result<(), h2::Error> {
    let fields = |fields: &HeaderMap, before: &str| -> Vec<(String, String)> {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        fields.iter().map(|(name, value)| (format!("{before}{name}"), text(value))).collect()
    };
    let (head, mut body) = response.await?.into_parts();
    received.status = head.status.as_u16();
    received.headers = fields(&head.headers, "");
    while let Some(data) = body.data().await {
        let data = data?;
        let _ = body.flow_control().release_capacity(data.len());
        received.body.push_str(&String::from_utf8_lossy(&data));
        if received.status == 200 && tunnel.is_some_and(|length| received.body.len() >= length) {
            return Ok(());
        }
    }
    if let Some(trailers) = body.trailers().await? {
        received.headers.extend(fields(&trailers, "trailer "));
    }
    Ok(())
}

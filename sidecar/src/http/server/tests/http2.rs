//! What an HTTP/2 connection does, as a client of the `h2` crate sees it.

use std::array::IntoIter;
use std::cell::Cell;
use std::future::pending;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{Iter, iter};
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::http::body::{Body, BodyError};
use crate::http::server::testing::{Client, Serve, Speak, local, ok, options, server, streams, text};
use crate::http::server::{Handler, Interim, Reply, ServerOptions};
use crate::worker::drain::Phase;

/// A client's connection, and its end.
async fn connect(address: SocketAddr) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    let socket = TcpStream::connect(address).await.expect("a listener");
    let (sender, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
    (sender.ready().await.expect("open"), tokio::task::spawn_local(connection))
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://a{path}")).body(()).expect("valid")
}

/// Sends a request without a body, and reads the answer.
async fn fetch(
    sender: &mut SendRequest<Bytes>,
    request: Request<()>,
) -> Result<(StatusCode, String), h2::Error> {
    let mut sender = sender.clone().ready().await?;
    let response = sender.send_request(request, true)?.0.await?;
    let status = response.status();
    Ok((status, read(response.into_body()).await?.0))
}

/// Reads a body to its end, opening the window again.
async fn read(mut body: RecvStream) -> Result<(String, Option<HeaderMap>), h2::Error> {
    let mut read = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        read.extend_from_slice(&data);
    }
    Ok((String::from_utf8(read).expect("text"), body.trailers().await?))
}

async fn echo() -> SocketAddr {
    server(Speak::Http2, Serve(|request: Request<Body>, _| async { ok(request.into_body()) }), options())
        .await
        .0
}

/// Opens a stream with a body to come.
async fn open(sender: &mut SendRequest<Bytes>) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
    let request = Request::post("http://a/").body(()).expect("valid");
    let mut sender = sender.clone().ready().await.expect("open");
    sender.send_request(request, false).expect("open")
}

#[tokio::test]
async fn both_directions_stream_at_once_and_end_with_trailers() {
    local(async {
        let (mut sender, _) = connect(echo().await).await;
        let (response, mut send) = open(&mut sender).await;
        send.send_data(Bytes::from_static(b"one"), false).expect("open");
        let response = response.await.expect("an answer before the request has ended");
        let mut body = response.into_body();
        assert_eq!(body.data().await.expect("data").expect("open"), "one");
        send.send_data(Bytes::from_static(b"two"), false).expect("open");
        assert_eq!(body.data().await.expect("data").expect("open"), "two");
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        send.send_trailers(trailers.clone()).expect("open");
        assert_eq!(read(body).await.expect("whole"), (String::new(), Some(trailers)));
    })
    .await;
}

#[tokio::test]
async fn streams_do_not_wait_for_each_other() {
    local(async {
        let handler = Serve(|request: Request<Body>, _| async move {
            match request.uri().path() {
                "/never" => pending().await,
                path => text(path.to_owned()),
            }
        });
        let (address, _) = server(Speak::Http2, handler, options()).await;
        let (mut sender, _) = connect(address).await;
        let never = sender.send_request(get("/never"), true).expect("open").0;
        for path in ["/a", "/b"] {
            assert_eq!(
                fetch(&mut sender, get(path)).await.expect("an answer"),
                (StatusCode::OK, path.into())
            );
        }
        drop(never);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_resets_cancels_the_handler() {
    local(async {
        let held = Rc::new(());
        let handler = {
            let held = Rc::clone(&held);
            Serve(move |_, _| {
                let held = Rc::clone(&held);
                async move {
                    let _held = held;
                    pending().await
                }
            })
        };
        let (address, _) = server(Speak::Http2, handler, options()).await;
        let (mut sender, _) = connect(address).await;
        let idle = Rc::strong_count(&held);
        let (_response, mut send) = sender.send_request(get("/"), false).expect("open");
        while Rc::strong_count(&held) == idle {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        send.send_reset(Reason::CANCEL);
        while Rc::strong_count(&held) > idle {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_body_that_fails_resets_the_stream_with_a_code_that_tells() {
    local(async {
        let (mut sender, _) = connect(echo().await).await;
        for (sent, seen) in [
            (Reason::CANCEL, Reason::CANCEL),
            (Reason::ENHANCE_YOUR_CALM, Reason::ENHANCE_YOUR_CALM),
            (Reason::REFUSED_STREAM, Reason::INTERNAL_ERROR),
        ] {
            let (response, mut send) = open(&mut sender).await;
            send.send_data(Bytes::from_static(b"one"), false).expect("open");
            let mut body = response.await.expect("an answer").into_body();
            body.data().await.expect("data").expect("open");
            // The echo's request body fails, and with it the response's; what the client sees is its own reset or the
            // server's, whichever is first.
            send.send_reset(sent);
            let error = body.data().await.expect("an error").expect_err("a reset");
            assert!([Some(sent), Some(seen)].contains(&error.reason()), "{error}");
        }
    })
    .await;
}

/// Answers with a body that fails as soon as its first half is given.
struct Cut;

impl Handler for Cut {
    type Body = StreamBody<Iter<IntoIter<Result<Frame<Bytes>, BodyError>, 2>>>;

    async fn handle(&self, _: Request<Body>, _: Interim) -> Reply<Self::Body> {
        let frames = [Ok(Frame::data(Bytes::from_static(b"half"))), Err(BodyError::Truncated)];
        Reply { response: Response::new(StreamBody::new(iter(frames))), tunnel: None, close: false }
    }
}

#[tokio::test]
async fn what_came_before_a_body_failed_reaches_the_client() {
    local(async {
        let (address, _) = server(Speak::Http2, Cut, options()).await;
        let (sender, _) = connect(address).await;
        let answers = (0..20).map(|_| {
            let mut sender = sender.clone();
            async move {
                let (response, _) = sender.send_request(get("/"), true).expect("open");
                let response = response.await.expect("a head");
                assert_eq!(response.status(), StatusCode::OK);
                let mut body = response.into_body();
                assert_eq!(body.data().await.expect("data").expect("the first half"), "half");
                let error = body.data().await.expect("an error").expect_err("a reset");
                assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
            }
        });
        join_all(answers).await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_body() {
    local(async {
        let (mut sender, _) = connect(echo().await).await;
        let (response, mut send) = open(&mut sender).await;
        let block = Bytes::from(vec![b'x'; 16 * 1024]);
        let mut sent = 0;
        loop {
            send.reserve_capacity(block.len());
            let capacity = std::future::poll_fn(|cx| send.poll_capacity(cx));
            let Ok(capacity) = tokio::time::timeout(Duration::from_secs(1), capacity).await else { break };
            let capacity = capacity.expect("open").expect("open").min(block.len());
            send.send_data(block.slice(..capacity), false).expect("open");
            sent += capacity;
        }
        // Nobody has read the echo: the client's window for it (64 KiB), what the server may hold unsent, and the window
        // that the server opened for the request; nothing beyond.
        let bound = 65_535 + 128 * 1024 + 1024 * 1024 + 64 * 1024;
        assert!(sent > 65_535 && sent <= bound, "{sent}");
        drop(response);
    })
    .await;
}

#[tokio::test]
async fn heads_that_name_no_host_or_two_are_refused() {
    local(async {
        let handler = Serve(|request: Request<Body>, _| async move {
            text(format!("{:?} {}", request.headers().get("host"), request.uri()))
        });
        let (address, _) = server(Speak::Http2, handler, options()).await;
        let (mut sender, _) = connect(address).await;
        let with = |uri: &str, hosts: &[&'static str]| {
            let mut request = Request::get(uri).body(()).expect("valid");
            for host in hosts {
                request.headers_mut().append("host", HeaderValue::from_static(host));
            }
            request
        };
        for (request, status) in [
            (with("http://a/", &[]), 200),
            (with("http://a/", &["A"]), 200),
            (with("http://a/", &["b"]), 400),
            (with("http://a/", &["a", "a"]), 400),
            (with("http://u@a/", &[]), 400),
        ] {
            let (seen, _) = fetch(&mut sender, request).await.expect("an answer");
            assert_eq!(seen.as_u16(), status);
        }
    })
    .await;
}

#[tokio::test]
async fn heads_are_limited() {
    local(async {
        let (address, _) = server(Speak::Http2, Serve(|_, _| async { text("x") }), options()).await;
        let (mut sender, _) = connect(address).await;
        let mut many = get("/");
        for n in 0..30 {
            let name = http::HeaderName::try_from(format!("x-{n}")).expect("valid");
            many.headers_mut().insert(name, HeaderValue::from_static("y"));
        }
        assert_eq!(fetch(&mut sender, many).await.expect("an answer").0.as_u16(), 431);
        let mut large = get("/");
        large.headers_mut().insert("x", HeaderValue::try_from("y".repeat(40_000)).expect("valid"));
        assert_eq!(fetch(&mut sender, large).await.expect("an answer").0.as_u16(), 431);
        assert_eq!(fetch(&mut sender, get("/")).await.expect("an answer").0.as_u16(), 200);
    })
    .await;
}

#[tokio::test]
async fn interim_responses_come_first() {
    local(async {
        let handler = Serve(|_, interim: crate::http::server::Interim| async move {
            let mut hints = Response::new(());
            *hints.status_mut() = StatusCode::EARLY_HINTS;
            interim.send(hints);
            text("x")
        });
        let (address, _) = server(Speak::Http2, handler, options()).await;
        let (mut sender, _) = connect(address).await;
        let mut response = sender.send_request(get("/"), true).expect("open").0;
        let interim = std::future::poll_fn(|cx| response.poll_informational(cx)).await;
        assert_eq!(interim.expect("one").expect("open").status(), StatusCode::EARLY_HINTS);
        assert_eq!(response.await.expect("an answer").status(), StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn head_and_lengths_are_kept() {
    local(async {
        let handler = Serve(|_, _| async { text("body") });
        let (address, _) = server(Speak::Http2, handler, options()).await;
        let (mut sender, _) = connect(address).await;
        let response = sender.send_request(get("/"), true).expect("open").0.await.expect("an answer");
        assert_eq!(response.headers()["content-length"], "4");
        let head = Request::head("http://a/").body(()).expect("valid");
        assert_eq!(fetch(&mut sender, head).await.expect("an answer"), (StatusCode::OK, String::new()));
    })
    .await;
}

#[tokio::test]
async fn a_drain_says_goaway_and_lets_streams_finish() {
    local(async {
        let (address, drain) = server(
            Speak::Http2,
            Serve(|request: Request<Body>, _| async { ok(request.into_body()) }),
            options(),
        )
        .await;
        let (mut sender, closed) = connect(address).await;
        let (response, mut send) = open(&mut sender).await;
        send.send_data(Bytes::from_static(b"one"), false).expect("open");
        let body = response.await.expect("an answer").into_body();
        drain.advance(Phase::Lame);
        // No new stream is taken as soon as the client has heard.
        while sender.clone().ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        send.send_data(Bytes::from_static(b"two"), true).expect("open");
        assert_eq!(read(body).await.expect("whole").0, "onetwo");
        closed.await.expect("ended").expect("in order");
    })
    .await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_order() {
    local(async {
        let limits = ServerOptions { idle_timeout: Some(Duration::from_secs(1)), ..options() };
        let (address, _) = server(Speak::Http2, Serve(|_, _| async { text("x") }), limits).await;
        let (mut sender, closed) = connect(address).await;
        fetch(&mut sender, get("/")).await.expect("an answer");
        closed.await.expect("ended").expect("in order");
    })
    .await;
}

/// A frame (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// What begins a connection, and then the frames that `each` makes for `streams` streams, sent at once. Gives what of
/// each frame of the answer tells: its type, its stream, and the error code, where it has one, up to the end or up to
/// the first frame of the type `last`.
async fn burst(address: SocketAddr, streams: u32, each: fn(u32) -> Vec<u8>, last: u8) -> Vec<(u8, u32, u32)> {
    let mut bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])].concat();
    bytes.extend((0..streams).flat_map(|n| each(2 * n + 1)));
    let mut client = Client::connect(address).await;
    client.send(bytes).await;
    let (mut seen, word) = (Vec::new(), |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four")));
    loop {
        let mut head = [0; 9];
        if client.0.read_exact(&mut head).await.is_err() {
            return seen;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        client.0.read_exact(&mut payload).await.expect("a whole frame");
        let code = match head[3] {
            RST_STREAM => word(&payload[..4]),
            GOAWAY => word(&payload[4..8]),
            _ => 0,
        };
        seen.push((head[3], word(&head[5..]), code));
        if head[3] == last {
            return seen;
        }
    }
}

const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
/// GET http://a/, as HPACK has it.
const GET: [u8; 6] = [0x82, 0x86, 0x84, 0x41, 1, b'a'];

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    local(async {
        let limits = ServerOptions { http2: streams(5), ..options() };
        let (address, _) = server(Speak::Http2, Serve(|_, _| pending()), limits).await;
        let seen = burst(address, 6, |stream| frame(1, 5, stream, &GET), RST_STREAM).await;
        assert_eq!(seen.last(), Some(&(RST_STREAM, 11, Reason::REFUSED_STREAM.into())), "{seen:?}");
    })
    .await;
}

#[tokio::test]
async fn streams_that_are_reset_before_they_are_looked_at_end_the_connection() {
    local(async {
        let started = Rc::new(Cell::new(0));
        let count = Rc::clone(&started);
        let handler = Serve(move |_, _| {
            count.set(count.get() + 1);
            pending()
        });
        let (address, _) = server(Speak::Http2, handler, options()).await;
        // In one write, which is one read for the server: none of them is looked at before its reset is.
        let both = |stream| {
            let cancel = u32::from(Reason::CANCEL).to_be_bytes();
            [frame(1, 5, stream, &GET), frame(RST_STREAM, 0, stream, &cancel)].concat()
        };
        let seen = burst(address, 100, both, GOAWAY).await;
        assert_eq!(seen.last(), Some(&(GOAWAY, 0, Reason::ENHANCE_YOUR_CALM.into())), "{seen:?}");
        assert_eq!(started.get(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_request_is_read_whole() {
    local(async {
        let handler = Serve(|request: Request<Body>, _| async move {
            let body = request.into_body().collect().await.expect("whole").to_bytes();
            text(body.len().to_string())
        });
        let (address, _) = server(Speak::Http2, handler, options()).await;
        let (mut sender, _) = connect(address).await;
        let (response, mut send) = open(&mut sender).await;
        const SIZE: usize = 8 * 1024 * 1024;
        let mut left = SIZE;
        while left > 0 {
            send.reserve_capacity(left);
            let capacity =
                std::future::poll_fn(|cx| send.poll_capacity(cx)).await.expect("open").expect("open");
            let len = capacity.min(left);
            left -= len;
            send.send_data(Bytes::from(vec![b'x'; len]), left == 0).expect("open");
        }
        let answer = response.await.expect("an answer").into_body();
        assert_eq!(read(answer).await.expect("whole").0, SIZE.to_string());
    })
    .await;
}

#[tokio::test]
async fn a_stream_on_which_nothing_moves_is_given_up() {
    local(async {
        let limits = ServerOptions { stream_idle_timeout: Some(Duration::from_secs(1)), ..options() };
        let handler = Serve(|request: Request<Body>, _| async move {
            match request.uri().path() {
                "/read" => match request.into_body().collect().await {
                    Ok(_) => text("whole"),
                    Err(error) => text(format!("{error:?}")),
                },
                _ => text(vec![b'x'; 100_000]),
            }
        });
        let (address, _) = server(Speak::Http2, handler, limits).await;
        let (mut sender, _) = connect(address).await;
        // A client that does not send.
        let (response, _send) = sender.send_request(get("/read"), false).expect("open");
        assert_eq!(read(response.await.expect("an answer").into_body()).await.expect("whole").0, "Idle");
        // A client that does not take: its window is smaller than the answer.
        let mut ready = sender.clone().ready().await.expect("open");
        let (response, mut send) = ready.send_request(get("/take"), false).expect("open");
        let mut body = response.await.expect("an answer").into_body();
        assert_eq!(std::future::poll_fn(|cx| send.poll_reset(cx)).await.expect("a reset"), Reason::CANCEL);
        while let Some(Ok(_)) = body.data().await {}
    })
    .await;
}

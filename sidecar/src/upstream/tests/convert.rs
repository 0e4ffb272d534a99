//! Endpoints that do not speak the version of HTTP that is wanted.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::join;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tulle_mesh::model::{Limits, UpstreamProtocol};

use crate::http::body::Body;
use crate::http::server::Interim;
use crate::http::server::testing::{Client, Speak, local, options, server, text};
use crate::upstream::testing::{Origin, Upstream, get, post};
use crate::upstream::{Answer, ConnectError, HttpVersion, SendError};

/// The beginning of what an HTTP/2 server says to anything.
const SETTINGS: &[u8] = &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100];
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
/// The end of an HTTP/2 client's preface.
const PREFACE_END: &str = "SM\r\n\r\n";

async fn read(answer: Answer) -> Bytes {
    answer.response.into_body().collect().await.expect("whole").to_bytes()
}

/// An HTTP/1.1 origin and what wants to speak HTTP/2 to it.
async fn start() -> (Origin, Upstream) {
    let origin = Origin::new().await;
    let upstream = Upstream::new(origin.address(), HttpVersion::Http2);
    (origin, upstream)
}

/// Answers the preface of HTTP/2 with `answer`, and closes. Not a byte of a request has come by then.
async fn refuse(origin: &Origin, answer: &str) {
    let mut connection = origin.accept().await;
    let seen = connection.until(PREFACE_END).await;
    assert_eq!(seen, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    connection.send(answer).await;
}

#[tokio::test]
async fn who_answers_in_http_1_gets_the_request_in_it_and_is_not_asked_again() {
    local(async {
        for answer in ["HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n", "what?", ""] {
            let (origin, upstream) = start().await;
            let serve = async {
                refuse(&origin, answer).await;
                let mut connection = origin.accept().await;
                assert!(
                    connection
                        .until("x\r\n0\r\n\r\n")
                        .await
                        .starts_with("POST / HTTP/1.1\r\nhost: origin\r\n")
                );
                connection.send(OK).await;
                assert!(connection.until("\r\n\r\n").await.starts_with("GET /2 HTTP/1.1\r\n"));
                connection.send(OK).await;
            };
            let asks = async {
                let mut request = post("x");
                *request.body_mut() = streamed("x").await;
                assert_eq!(read(upstream.send(request).await.expect("an answer")).await, "ok");
                assert_eq!(read(upstream.send(get("/2")).await.expect("an answer")).await, "ok");
            };
            join!(asks, serve);
            assert!(origin.is_left_alone().await, "after {answer:?}");
        }
    })
    .await;
}

/// A body of unknown length.
async fn streamed(text: &'static str) -> Body {
    let origin = Origin::new().await;
    let upstream = Upstream::new(origin.address(), HttpVersion::Http1);
    let serve = async {
        let mut connection = origin.accept().await;
        connection.until("\r\n\r\n").await;
        connection.send(format!("HTTP/1.1 200 OK\r\n\r\n{text}")).await;
    };
    join!(upstream.send(get("/")), serve).0.expect("an answer").response.into_body()
}

#[tokio::test]
async fn requests_that_wait_for_the_same_connection_go_over_together() {
    local(async {
        let (origin, upstream) = start().await;
        let serve = async {
            refuse(&origin, "HTTP/1.1 505 No\r\n\r\n").await;
            for _ in 0..3 {
                let mut connection = origin.accept().await;
                connection.until("\r\n\r\nx").await;
                connection.send(OK).await;
            }
        };
        let all = join_all((0..3).map(|_| upstream.send(post("x"))));
        for answer in join!(all, serve).0 {
            assert_eq!(read(answer.expect("an answer")).await, "ok");
        }
        assert!(origin.is_left_alone().await);
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_goes_is_asked_anew() {
    local(async {
        let (origin, upstream) = start().await;
        let serve = async {
            refuse(&origin, "HTTP/1.1 400 No\r\n\r\n").await;
            let mut connection = origin.accept().await;
            connection.until("\r\n\r\n").await;
            drop(connection);
            // Another application listens there now.
            let mut connection = origin.accept().await;
            connection.until(PREFACE_END).await;
            connection
        };
        let lost = Box::pin(upstream.send(get("/")));
        let again = async {
            let sent = lost.await;
            assert!(matches!(sent, Err(SendError::Reset(_))), "{:?}", sent.err());
            // Asked in HTTP/2 once more, and left there.
            let sent = Box::pin(upstream.send(get("/"))).await;
            panic!("nobody answers: {:?}", sent.err());
        };
        tokio::select! {
            biased;
            () = again => {}
            _ = serve => {}
        }
    })
    .await;
}

#[tokio::test]
async fn a_grpc_call_is_never_sent_in_http_1() {
    local(async {
        let grpc = || {
            let request =
                Request::post("/a.B/C").header("host", "origin").header("content-type", "application/grpc");
            request.body(Body::Empty).expect("valid")
        };
        let (origin, upstream) = start().await;
        let (sent, ()) = join!(upstream.send(grpc()), refuse(&origin, "HTTP/1.1 400 No\r\n\r\n"));
        assert!(matches!(sent, Err(SendError::Version(_))), "{:?}", sent.err());
        let sent = upstream.send(grpc()).await;
        assert!(matches!(sent, Err(SendError::Version(_))), "{:?}", sent.err());
        assert!(origin.is_left_alone().await);
        // A close alone may be a restart.
        let (origin, upstream) = start().await;
        let (sent, ()) = join!(upstream.send(grpc()), refuse(&origin, ""));
        let Err(SendError::Connect(ConnectError::NotHttp2 { answered: false })) = sent else {
            panic!("{:?}", sent.err())
        };
    })
    .await;
}

#[tokio::test]
async fn who_begins_http_2_gets_the_next_request_in_it() {
    local(async {
        let (seen, address) = http2(false).await;
        let upstream = Upstream::new(address, HttpVersion::Http1);
        let first = upstream.send(post("once")).await;
        assert!(matches!(first, Err(SendError::NotProcessed(_))), "{:?}", first.err());
        assert!(seen.borrow().is_empty());
        assert_eq!(read(upstream.send(post("once")).await.expect("an answer")).await, "two");
        assert_eq!(*seen.borrow(), ["POST http://origin/"]);
    })
    .await;
}

#[tokio::test]
async fn who_goes_on_in_http_2_is_not_tried_in_http_1_again() {
    local(async {
        let (seen, address) = http2(false).await;
        let upstream = Upstream::new(address, HttpVersion::Http1);
        assert!(upstream.send(get("/")).await.is_err());
        // Minutes in all, and never half of one without a request.
        for _ in 0..10 {
            tokio::time::pause();
            tokio::time::advance(std::time::Duration::from_secs(20)).await;
            tokio::time::resume();
            assert_eq!(read(upstream.send(get("/")).await.expect("an answer")).await, "two");
        }
        assert_eq!(seen.borrow().len(), 10);
    })
    .await;
}

#[tokio::test]
async fn bytes_that_only_look_like_settings_are_none() {
    local(async {
        for bytes in
            [&b"\0\0\x06\x04\x01\0\0\0\0"[..], b"\0\0\x05\x04\0\0\0\0\0", b"\0\0\x06\x04\0\0\0\0\x01"]
        {
            let origin = Origin::new().await;
            let upstream = Upstream::new(origin.address(), HttpVersion::Http1);
            let serve = async {
                let mut connection = origin.accept().await;
                connection.until("\r\n\r\n").await;
                connection.send(bytes).await;
            };
            let (sent, ()) = join!(upstream.send(get("/")), serve);
            assert!(matches!(sent, Err(SendError::Reset(_) | SendError::Protocol(_))), "{:?}", sent.err());
        }
        // Nor are they on a connection that has answered before.
        let origin = Origin::new().await;
        let upstream = Upstream::new(origin.address(), HttpVersion::Http1);
        let serve = async {
            let mut connection = origin.accept().await;
            connection.until("\r\n\r\n").await;
            connection.send(OK).await;
            connection.until("\r\n\r\n").await;
            connection.send(SETTINGS).await;
        };
        let asks = async {
            read(upstream.send(get("/")).await.expect("an answer")).await;
            upstream.send(get("/")).await
        };
        let (sent, ()) = join!(asks, serve);
        assert!(matches!(sent, Err(SendError::Reset(_) | SendError::Protocol(_))), "{:?}", sent.err());
    })
    .await;
}

/// An HTTP/2 server that answers `two` and echoes in tunnels, where `tunnels`; what it has seen.
async fn http2(tunnels: bool) -> (Rc<RefCell<Vec<String>>>, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let seen = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&seen);
    tokio::task::spawn_local(async move {
        loop {
            let (socket, _) = listener.accept().await.expect("listening");
            tokio::task::spawn_local(serve_http2(socket, tunnels, Rc::clone(&log)));
        }
    });
    (seen, address)
}

async fn serve_http2(socket: TcpStream, tunnels: bool, log: Rc<RefCell<Vec<String>>>) {
    let mut builder = h2::server::Builder::new();
    if tunnels {
        builder.enable_connect_protocol();
    }
    let Ok(mut connection) = builder.handshake::<_, Bytes>(socket).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let (head, mut body) = request.into_parts();
        log.borrow_mut().push(format!("{} {}", head.method, head.uri));
        let protocol = head.extensions.get::<h2::ext::Protocol>();
        let Some(protocol) = protocol.map(|protocol| protocol.as_str().to_owned()) else {
            let mut send = respond.send_response(Response::new(()), false).expect("open");
            send.send_data(Bytes::from_static(b"two"), true).expect("open");
            continue;
        };
        assert_eq!(protocol, "websocket");
        for name in ["upgrade", "connection", "sec-websocket-key"] {
            assert!(!head.headers.contains_key(name), "{:?}", head.headers);
        }
        let mut send = respond.send_response(Response::new(()), false).expect("open");
        tokio::task::spawn_local(async move {
            while let Some(Ok(data)) = body.data().await {
                send.send_data(data, false).expect("open");
            }
            send.send_data(Bytes::new(), true).expect("open");
        });
    }
}

const WEBSOCKET: &str = "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n";

/// A proxy in front of an HTTP/2 server that was tried in HTTP/1.1 before.
async fn proxy(tunnels: bool, speak: Speak) -> std::net::SocketAddr {
    let (_, address) = http2(tunnels).await;
    let upstream = Upstream::new(address, HttpVersion::Http1);
    assert!(upstream.send(get("/")).await.is_err());
    server(speak, upstream.forward(), options()).await.0
}

#[tokio::test]
async fn a_websocket_reaches_a_server_of_http_2_that_takes_it() {
    local(async {
        let mut client = Client::connect(proxy(true, Speak::Http1).await).await;
        client.send(WEBSOCKET).await;
        let head = client.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        for field in [
            "upgrade: websocket",
            "connection: upgrade",
            "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        ] {
            assert!(head.contains(&format!("\r\n{field}\r\n")), "{head}");
        }
        client.send("hello").await;
        assert_eq!(client.until("hello").await, "hello");
        // In HTTP/2 as well.
        let socket = TcpStream::connect(proxy(true, Speak::Http2).await).await.expect("up");
        let (sender, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
        tokio::task::spawn_local(connection);
        let mut sender = sender.ready().await.expect("open");
        while !sender.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
        let mut request = Request::connect("http://a/chat").body(()).expect("valid");
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let (response, mut send) = sender.send_request(request, false).expect("open");
        let response = response.await.expect("an answer");
        assert_eq!(response.status(), 200);
        send.send_data(Bytes::from_static(b"hello"), false).expect("open");
        assert_eq!(response.into_body().data().await.expect("data").expect("open"), "hello");
    })
    .await;
}

#[tokio::test]
async fn a_websocket_for_a_server_of_http_2_that_does_not_take_it_is_refused() {
    local(async {
        let mut client = Client::connect(proxy(false, Speak::Http1).await).await;
        client.send(WEBSOCKET).await;
        let head = client.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
        let mut rest = String::new();
        let mut take = client.0.take(7);
        take.read_to_string(&mut rest).await.expect("a body");
        assert_eq!(rest, "Version");
    })
    .await;
}

#[tokio::test]
async fn where_the_cluster_says_http_2_an_upgrade_is_not_said_in_http_1_before_that_is_known_to_be_in_vain() {
    local(async {
        for tunnels in [true, false] {
            let (origin, upstream) = start().await;
            let upstream = upstream.with(|cluster| cluster.protocol = UpstreamProtocol::Http2);
            let seen = Rc::new(RefCell::new(Vec::new()));
            let serve = async {
                let first = origin.accept().await;
                tokio::task::spawn_local(serve_http2(first.0, tunnels, Rc::clone(&seen)));
                if tunnels {
                    return assert!(origin.is_left_alone().await);
                }
                let mut second = origin.accept().await;
                let head = second.until("\r\n\r\n").await;
                assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
                second.send("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n").await;
            };
            let mut request = get("/chat");
            request.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
            request.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
            let (sent, ()) = join!(upstream.send(request), serve);
            let answer = sent.expect("an answer");
            assert_eq!(
                (answer.response.status(), answer.tunnel.is_some()),
                (StatusCode::SWITCHING_PROTOCOLS, true)
            );
            let expected: &[&str] = if tunnels { &["CONNECT http://origin/chat"] } else { &[] };
            assert_eq!(*seen.borrow(), expected);
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_that_is_none_in_http_2_is_the_clients_fault() {
    local(async {
        let handler = crate::http::server::testing::Serve(|_: Request<Body>, _: Interim| async { text("x") });
        let (address, _) = server(Speak::Http2, handler, options()).await;
        let upstream = Upstream::limited(address, HttpVersion::Http2, Limits::default());
        let request = Request::get("/").body(Body::Empty).expect("valid");
        assert!(matches!(upstream.send(request).await, Err(SendError::Request(_))));
    })
    .await;
}

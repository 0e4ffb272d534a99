//! HTTP/2 to an origin: our own server, or one of the `h2` crate that does as the test wants.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::join;
use h2::Reason;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::net::{TcpListener, TcpStream};
use tulle_mesh::model::Limits;

use crate::http::body::{Body, BodyError};
use crate::http::server::ServerOptions;
use crate::http::server::testing::{Client, Serve, Speak, local, ok, options, server, streams, talk, text};
use crate::upstream::testing::{Origin, Upstream, get, post};
use crate::upstream::{Answer, HttpVersion, SendError};
use crate::worker::drain::Phase;

/// The whole body of an answer, and its trailers.
async fn read(answer: Answer) -> Result<(String, Option<HeaderMap>), BodyError> {
    let body = answer.response.into_body().collect().await?;
    let trailers = body.trailers().cloned();
    Ok((String::from_utf8(body.to_bytes().to_vec()).expect("text"), trailers))
}

/// An origin that gives each request to `serve`, and counts its connections.
async fn origin<F>(serve: F) -> (SocketAddr, Rc<Cell<usize>>)
where
    F: Fn(Request<h2::RecvStream>, SendResponse<Bytes>, &mut h2::server::Connection<TcpStream, Bytes>)
        + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let connections = Rc::new(Cell::new(0));
    let count = Rc::clone(&connections);
    let serve = Rc::new(serve);
    tokio::task::spawn_local(async move {
        loop {
            let (socket, _) = listener.accept().await.expect("listening");
            count.set(count.get() + 1);
            let serve = Rc::clone(&serve);
            tokio::task::spawn_local(async move {
                let mut connection = h2::server::handshake(socket).await.expect("HTTP/2");
                while let Some(Ok((request, respond))) = connection.accept().await {
                    serve(request, respond, &mut connection);
                }
            });
        }
    });
    (address, connections)
}

fn empty() -> Response<()> {
    Response::new(())
}

#[tokio::test]
async fn a_head_takes_the_form_of_http_2() {
    local(async {
        let seen = Rc::new(RefCell::new(None));
        let sink = Rc::clone(&seen);
        let (address, _) = origin(move |request, mut respond, _| {
            *sink.borrow_mut() = Some(request.into_parts().0);
            respond.send_response(empty(), true).expect("open");
        })
        .await;
        let upstream = Upstream::new(address, HttpVersion::Http2);
        let request = Request::get("/a?b")
            .header("host", "shop:80")
            .header("connection", "keep-alive")
            .header("keep-alive", "timeout=5")
            .header("te", "gzip, Trailers;q=1")
            .header("transfer-encoding", "chunked")
            .header("x-a", "1")
            .body(Body::Empty)
            .expect("valid");
        upstream.send(request).await.expect("an answer");
        let head = seen.borrow_mut().take().expect("a request");
        assert_eq!(head.uri, "http://shop:80/a?b");
        assert_eq!(head.headers.len(), 1, "{:?}", head.headers);
        assert_eq!(head.headers["x-a"], "1");
    })
    .await;
}

#[tokio::test]
async fn requests_share_a_connection_until_it_is_full() {
    local(async {
        let limits = ServerOptions { http2: streams(2), ..options() };
        let handler = Serve(|request: Request<Body>, _| async move {
            match request.uri().path() {
                "/never" => pending().await,
                _ => text("x"),
            }
        });
        let (address, _) = server(Speak::Http2, handler, limits).await;
        let upstream = Upstream::new(address, HttpVersion::Http2);
        // All at once: they wait for one connection, not for one each.
        for answer in join_all((0..50).map(|_| upstream.send(get("/")))).await {
            read(answer.expect("an answer")).await.expect("whole");
        }
        let connections = &upstream.cluster.state.series.connections;
        let before = connections.value();
        assert!(before <= 8, "{before}");
        let (first, second) = (upstream.clone(), upstream.clone());
        let busy = Box::pin(async { join!(first.send(get("/never")), second.send(get("/never"))) });
        tokio::select! {
            _ = busy => panic!("answered"),
            answer = async {
                // By now the peer has told how much it takes.
                for _ in 0..5 {
                    let answer = upstream.send(get("/")).await.expect("an answer");
                    read(answer).await.expect("whole");
                }
            } => answer,
        }
    })
    .await;
}

#[tokio::test]
async fn a_cluster_says_how_many_streams_a_connection_carries() {
    local(async {
        let handler = Serve(|request: Request<Body>, _| async move {
            match request.uri().path() {
                "/never" => pending().await,
                _ => text("x"),
            }
        });
        let (address, _) = server(Speak::Http2, handler, options()).await;
        let upstream = Upstream::new(address, HttpVersion::Http2).with(|cluster| cluster.http2 = streams(2));
        let connections = || upstream.cluster.state.series.connections.value();
        let busy: Vec<_> = (0..20).map(|_| upstream.clone()).collect();
        let mut busy = Box::pin(join_all(busy.iter().map(|upstream| upstream.send(get("/never")))));
        let all = poll_fn(|cx| {
            assert!(busy.as_mut().poll(cx).is_pending());
            // The others are begun as fast as connections come to stand.
            if connections() == 10 { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::time::timeout(Duration::from_secs(60), all)
            .await
            .expect("ten connections of two streams each");
    })
    .await;
}

#[tokio::test]
async fn both_directions_stream_at_once_through_two_hops() {
    local(async {
        let echo = Serve(|request: Request<Body>, _| async { ok(request.into_body()) });
        let (address, _) = server(Speak::Http2, echo, options()).await;
        let upstream = Upstream::new(address, HttpVersion::Http2);
        let (address, _) = server(Speak::Http2, upstream.forward(), options()).await;
        let socket = TcpStream::connect(address).await.expect("up");
        let (sender, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
        tokio::task::spawn_local(connection);
        let mut sender = sender.ready().await.expect("open");
        let request = Request::post("http://a/").body(()).expect("valid");
        let (response, mut send) = sender.send_request(request, false).expect("open");
        let mut body = response.await.expect("an early answer").into_body();
        for word in ["one", "two", "three"] {
            send.send_data(Bytes::from_static(word.as_bytes()), false).expect("open");
            assert_eq!(body.data().await.expect("data").expect("open"), word);
            body.flow_control().release_capacity(word.len()).expect("received");
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("3"));
        send.send_trailers(trailers.clone()).expect("open");
        assert!(body.data().await.is_none());
        assert_eq!(body.trailers().await.expect("open"), Some(trailers));
    })
    .await;
}

#[tokio::test]
async fn a_slow_reader_stops_the_writer_through_two_hops() {
    local(async {
        let echo = Serve(|request: Request<Body>, _| async { ok(request.into_body()) });
        let (address, _) = server(Speak::Http2, echo, options()).await;
        let upstream = Upstream::new(address, HttpVersion::Http2);
        let (address, _) = server(Speak::Http2, upstream.forward(), options()).await;
        let socket = TcpStream::connect(address).await.expect("up");
        let (sender, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
        tokio::task::spawn_local(connection);
        let mut sender = sender.ready().await.expect("open");
        let request = Request::post("http://a/").body(()).expect("valid");
        let (response, mut send) = sender.send_request(request, false).expect("open");
        let mut sent = 0;
        let fill = async {
            loop {
                send.reserve_capacity(16 * 1024);
                let capacity = poll_fn(|cx| send.poll_capacity(cx)).await.expect("open").expect("open");
                sent += capacity;
                send.send_data(Bytes::from(vec![b'x'; capacity]), false).expect("open");
            }
        };
        assert!(tokio::time::timeout(Duration::from_millis(300), fill).await.is_err());
        // Three windows of a megabyte (to the proxy, to the echo, back to the proxy), what each hop may hold unsent, and
        // the client's own window.
        let bound = 3 * 1024 * 1024 + 3 * 256 * 1024 + 65_535;
        assert!(sent <= bound, "{sent}");
        // Once it reads, everything flows again.
        let mut body = response.await.expect("an answer").into_body();
        send.send_data(Bytes::from_static(b"end"), true).expect("open");
        let mut read = 0;
        while let Some(data) = body.data().await {
            let data = data.expect("open");
            read += data.len();
            body.flow_control().release_capacity(data.len()).expect("received");
        }
        assert_eq!(read, sent + 3);
    })
    .await;
}

#[tokio::test]
async fn a_refused_stream_was_not_processed_and_others_may_have_been() {
    local(async {
        for (reason, refused) in [(Reason::REFUSED_STREAM, true), (Reason::CANCEL, false)] {
            let (address, _) = origin(move |_, mut respond, _| respond.send_reset(reason)).await;
            let upstream = Upstream::new(address, HttpVersion::Http2);
            match upstream.send(post("x")).await {
                Err(SendError::NotProcessed(_)) => assert!(refused),
                Err(SendError::Reset(_)) => assert!(!refused),
                other => panic!("{:?}", other.map(|answer| answer.response.status())),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_origin_that_goes_away_finishes_what_it_took() {
    local(async {
        let handler = Serve(|request: Request<Body>, _| async { ok(request.into_body()) });
        let (address, drain) = server(Speak::Http2, handler, options()).await;
        let upstream = Upstream::new(address, HttpVersion::Http2);
        // A proxy in between holds a stream open.
        let (front, _) = server(Speak::Http1, upstream.clone().forward(), options()).await;
        let mut client = Client::connect(front).await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n").await;
        client.until("one\r\n").await;
        drain.advance(Phase::Lame);
        client.send("3\r\ntwo\r\n0\r\n\r\n").await;
        client.until("two\r\n0\r\n\r\n").await;
        // The connection says GOAWAY; the next request is not lost on it.
        let answer = talk(front, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert_eq!(upstream.cluster.state.series.connections.value(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_request_above_the_last_stream_of_a_goaway_was_not_processed() {
    local(async {
        // The origin takes a first stream, and goes away without looking at the second.
        let (address, _) = origin(|_, respond, connection| {
            Box::leak(Box::new(respond));
            connection.abrupt_shutdown(Reason::NO_ERROR);
        })
        .await;
        let upstream = Upstream::new(address, HttpVersion::Http2);
        let result = upstream.send(post("x")).await.map(|answer| answer.response.status());
        assert!(matches!(result, Err(SendError::Reset(_) | SendError::NotProcessed(_))), "{result:?}");
    })
    .await;
}

#[tokio::test]
async fn a_lost_connection_is_no_proof_of_anything() {
    local(async {
        let listener = Origin::new().await;
        let upstream = Upstream::new(listener.address(), HttpVersion::Http2);
        let serve = async {
            let connection = listener.accept().await;
            let mut connection = h2::server::handshake(connection.0).await.expect("HTTP/2");
            let request = connection.accept().await.expect("a request").expect("valid");
            drop(request);
        };
        // Dropped without an answer and without a frame.
        let (result, ()) = join!(upstream.send(post("x")), serve);
        assert!(matches!(result, Err(SendError::Reset(_))), "{:?}", result.map(|a| a.response.status()));
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_is_dropped_resets_its_stream() {
    local(async {
        let reset = Rc::new(Cell::new(None));
        let sink = Rc::clone(&reset);
        let (address, connections) = origin(move |_, mut respond, _| {
            let mut send = respond.send_response(empty(), false).expect("open");
            let sink = Rc::clone(&sink);
            tokio::task::spawn_local(async move {
                sink.set(poll_fn(|cx| send.poll_reset(cx)).await.ok());
            });
        })
        .await;
        let upstream = Upstream::new(address, HttpVersion::Http2);
        drop(upstream.send(get("/")).await.expect("a head"));
        while reset.get().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(reset.get(), Some(Reason::CANCEL));
        upstream.send(get("/")).await.expect("the same connection");
        assert_eq!(connections.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn an_origin_without_http_2_gets_nothing_of_a_request_in_it() {
    local(async {
        let origin = Origin::new().await;
        let upstream = Upstream::new(origin.address(), HttpVersion::Http2);
        let serve = async {
            let mut connection = origin.accept().await;
            connection.send("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
            let mut seen = Vec::new();
            let _ = tokio::io::AsyncReadExt::read_to_end(&mut connection.0, &mut seen).await;
            drop(connection);
            let mut connection = origin.accept().await;
            connection.until("\r\n\r\nsecret").await;
            connection.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            seen
        };
        let (result, seen) = join!(upstream.send(post("secret")), serve);
        assert_eq!(result.expect("an answer in HTTP/1.1").response.status(), 200);
        assert!(!seen.windows(6).any(|bytes| bytes == b"secret"));
    })
    .await;
}

#[tokio::test]
async fn connections_that_cannot_be_made_fail_all_who_wait() {
    local(async {
        let origin = Origin::new().await;
        let upstream = Upstream::new(origin.address(), HttpVersion::Http2);
        drop(origin);
        for result in join_all((0..5).map(|_| upstream.send(get("/")))).await {
            assert!(matches!(result, Err(SendError::Connect(_))));
        }
        assert_eq!(upstream.cluster.state.series.connect_failures.value(), 1);
    })
    .await;
}

#[tokio::test]
async fn waiting_requests_are_limited() {
    local(async {
        let origin = Origin::new().await;
        let limits = Limits { max_pending_requests: Some(2), ..Limits::default() };
        let upstream = Upstream::limited(origin.address(), HttpVersion::Http2, limits);
        drop(origin);
        let results = join_all((0..5).map(|_| upstream.send(get("/")))).await;
        let refused = results.iter().filter(|result| matches!(result, Err(SendError::Overflow(_)))).count();
        assert_eq!(refused, 3);
    })
    .await;
}

#[tokio::test]
async fn http_1_reaches_http_2_and_back() {
    local(async {
        let handler = Serve(|request: Request<Body>, _| async move {
            let seen = format!("{} {} {:?}", request.method(), request.uri(), request.version());
            let body = request.into_body().collect().await.expect("whole");
            let trailer = body.trailers().map(|trailers| trailers["x-t"].clone());
            text(format!("{seen} {} {trailer:?}", body.to_bytes().len()))
        });
        let (address, _) = server(Speak::Http2, handler, options()).await;
        let upstream = Upstream::new(address, HttpVersion::Http2);
        let (front, _) = server(Speak::Http1, upstream.forward(), options()).await;
        let answer = talk(
            front,
            "POST /p HTTP/1.1\r\nhost: shop\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
             3\r\nabc\r\n0\r\nx-t: v\r\n\r\n",
        )
        .await;
        assert!(answer.ends_with(r#"POST http://shop/p HTTP/2.0 3 Some("v")"#), "{answer}");
    })
    .await;
}

/// A client of the `h2` crate in front of a proxy to an HTTP/1.1 origin.
async fn in_front_of(origin: &Origin) -> h2::client::SendRequest<Bytes> {
    let upstream = Upstream::new(origin.address(), HttpVersion::Http1);
    let (address, _) = server(Speak::Http2, upstream.forward(), options()).await;
    let socket = TcpStream::connect(address).await.expect("up");
    let (sender, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
    tokio::task::spawn_local(connection);
    sender.ready().await.expect("open")
}

#[tokio::test]
async fn http_2_reaches_http_1_and_back() {
    local(async {
        let origin = Origin::new().await;
        let mut sender = in_front_of(&origin).await;
        let request = Request::post("http://shop/p")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(())
            .expect("valid");
        let (response, mut send) = sender.send_request(request, false).expect("open");
        let mut connection = origin.accept().await;
        assert_eq!(
            connection.until("\r\n\r\n").await,
            "POST /p HTTP/1.1\r\nhost: shop\r\ncookie: a=1; b=2\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        send.send_data(Bytes::from_static(b"abc"), true).expect("open");
        connection.until("3\r\nabc\r\n0\r\n\r\n").await;
        connection
            .send("HTTP/1.1 200 OK\r\nkeep-alive: timeout=5\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx-t: v\r\n\r\n")
            .await;
        let response = response.await.expect("an answer");
        assert!(response.headers().is_empty(), "{:?}", response.headers());
        let mut body = response.into_body();
        assert_eq!(body.data().await.expect("data").expect("open"), "x");
        assert!(body.data().await.is_none());
        assert_eq!(body.trailers().await.expect("open").expect("trailers")["x-t"], "v");
    })
    .await;
}

#[tokio::test]
async fn a_websocket_over_http_2_becomes_an_upgrade() {
    local(async {
        let origin = Origin::new().await;
        let mut sender = in_front_of(&origin).await;
        while !sender.is_extended_connect_protocol_enabled() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut request = Request::builder().method(Method::CONNECT).uri("http://shop/chat").body(()).expect("valid");
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let (response, mut send) = sender.send_request(request, false).expect("open");
        let mut connection = origin.accept().await;
        let head = connection.until("\r\n\r\n").await;
        assert!(head.starts_with("GET /chat HTTP/1.1\r\nhost: shop\r\n"), "{head}");
        for field in ["upgrade: websocket\r\n", "connection: upgrade\r\n", "sec-websocket-key: ", "sec-websocket-version: 13\r\n"] {
            assert!(head.contains(field), "{head}");
        }
        connection
            .send("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: x\r\n\r\npong")
            .await;
        let response = response.await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.headers().is_empty(), "{:?}", response.headers());
        let mut body = response.into_body();
        assert_eq!(body.data().await.expect("data").expect("open"), "pong");
        send.send_data(Bytes::from_static(b"ping"), true).expect("open");
        assert_eq!(connection.rest().await, "ping");
        connection.send("bye").await;
        drop(connection);
        assert_eq!(body.data().await.expect("data").expect("open"), "bye");
        while let Some(data) = body.data().await {
            assert_eq!(data.expect("an orderly end"), "");
        }
    })
    .await;
}

#[tokio::test]
async fn connect_is_a_tunnel_over_http_2_too() {
    local(async {
        let (address, _) = origin(|request, mut respond, _| {
            assert_eq!(request.method(), Method::CONNECT);
            assert_eq!(request.uri(), "shop:1");
            let mut send = respond.send_response(empty(), false).expect("open");
            let mut body = request.into_body();
            tokio::task::spawn_local(async move {
                while let Some(Ok(data)) = body.data().await {
                    body.flow_control().release_capacity(data.len()).expect("received");
                    send.send_data(data, false).expect("open");
                }
                send.send_data(Bytes::from_static(b"!"), true).expect("open");
            });
        })
        .await;
        let upstream = Upstream::new(address, HttpVersion::Http2);
        let (front, _) = server(Speak::Http1, upstream.forward(), options()).await;
        let mut client = Client::connect(front).await;
        client.send("CONNECT shop:1 HTTP/1.1\r\nhost: shop:1\r\n\r\nping").await;
        assert_eq!(client.until("ping").await, "HTTP/1.1 200 OK\r\n\r\nping");
        tokio::io::AsyncWriteExt::shutdown(&mut client.0).await.expect("open");
        assert_eq!(client.rest().await, "!");
    })
    .await;
}

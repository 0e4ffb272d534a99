//! What an HTTP/1 connection does around its requests.

use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;

use crate::http::body::{Body, BodyError};
use crate::http::server::ServerOptions;
use crate::http::server::testing::{Client, Serve, Speak, http1, local, ok, options, server, talk, text};
use crate::worker::drain::Phase;

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// Sets a flag when it is dropped.
struct OnDrop(Rc<Cell<bool>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

/// Waits until a condition holds that another task brings about.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_one_by_one_and_in_order() {
    local(async {
        let running = Rc::new(Cell::new(0));
        let address = http1(move |request, _| {
            let running = Rc::clone(&running);
            async move {
                running.set(running.get() + 1);
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await.expect("whole").to_bytes();
                tokio::task::yield_now().await;
                let alone = running.replace(running.get() - 1) == 1;
                text(format!("[{path} {} {alone}]", body.len()))
            }
        })
        .await;
        let requests = "GET /1 HTTP/1.1\r\nhost: a\r\n\r\n\
             POST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nabcd\
             POST /3 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\r\n\
             GET /4 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n\
             GET /5 HTTP/1.1\r\nhost: a\r\n\r\n";
        let answer = talk(address, requests).await;
        let bodies: Vec<_> =
            answer.split("HTTP/1.1 200 OK").filter_map(|part| part.split_once('[')).collect();
        let bodies: Vec<_> = bodies.iter().map(|(_, body)| *body).collect();
        assert_eq!(bodies, ["/1 0 true]", "/2 4 true]", "/3 3 true]", "/4 0 true]"], "{answer}");
    })
    .await;
}

#[tokio::test]
async fn a_connection_is_kept_as_version_client_and_handler_want() {
    local(async {
        let address = http1(|request, _| async move {
            let mut reply = text("x");
            reply.close = request.uri().path() == "/close";
            reply
        })
        .await;
        for (request, stays, says) in [
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", true, None),
            ("GET / HTTP/1.1\r\nhost: a\r\nconnection: x, Close\r\n\r\n", false, Some("close")),
            ("GET /close HTTP/1.1\r\nhost: a\r\n\r\n", false, Some("close")),
            ("GET / HTTP/1.0\r\n\r\n", false, Some("close")),
            ("GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n", true, Some("keep-alive")),
        ] {
            let mut client = Client::connect(address).await;
            client.send(request).await;
            let answer = client.until("\r\n\r\nx").await;
            let said = answer.split_once("connection: ").and_then(|(_, rest)| rest.split_once("\r\n"));
            assert_eq!(said.map(|(value, _)| value), says, "{request}");
            if stays {
                client.send(GET).await;
                client.until("\r\n\r\nx").await;
            } else {
                assert_eq!(client.rest().await, "", "{request}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_client_is_told_to_go_on_when_the_body_is_wanted() {
    local(async {
        let address = http1(|request, _| async move {
            match request.uri().path() {
                "/read" => ok(request.into_body()),
                _ => text("no, thanks"),
            }
        })
        .await;
        let expecting = "HTTP/1.1\r\nhost: a\r\nexpect: 100-Continue\r\ncontent-length: 2\r\n\r\n";
        let mut client = Client::connect(address).await;
        client.send(format!("POST /read {expecting}")).await;
        // The head of the answer comes first: this handler begins to answer before it reads.
        let head = client.until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");

        // A body that nobody wants is not asked for, and what the client sends all the same is no request.
        let answer = talk(address, format!("POST / {expecting}")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");

        let collected = http1(|request, _| async move {
            let body = request.into_body().collect().await.expect("whole").to_bytes();
            ok(Body::Full(body))
        })
        .await;
        let mut client = Client::connect(collected).await;
        client.send(format!("POST / {expecting}")).await;
        assert_eq!(client.until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
        client.send("hi").await;
        assert!(client.until("hi").await.starts_with("HTTP/1.1 200 OK\r\n"));
        // Not asked again when the body came along.
        client.send(format!("POST / {expecting}ho")).await;
        assert!(client.until("ho").await.starts_with("HTTP/1.1 200 OK\r\n"));
    })
    .await;
}

#[tokio::test]
async fn interim_responses_go_out_before_the_handler_goes_on() {
    local(async {
        let address = http1(|request, interim| async move {
            let mut hints = Response::new(());
            *hints.status_mut() = StatusCode::EARLY_HINTS;
            hints.headers_mut().insert("link", HeaderValue::from_static("</x>; rel=preload"));
            interim.send(hints);
            let mut go_on = Response::new(());
            *go_on.status_mut() = StatusCode::CONTINUE;
            interim.send(go_on);
            let body = request.into_body().collect().await.expect("whole").to_bytes();
            ok(Body::Full(body))
        })
        .await;
        let head = "host: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
        let mut client = Client::connect(address).await;
        client.send(format!("POST / HTTP/1.1\r\n{head}")).await;
        assert_eq!(
            client.until("Continue\r\n\r\n").await,
            "HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
        );
        client.send("hi").await;
        assert!(client.until("hi").await.starts_with("HTTP/1.1 200 OK\r\n"));
        // HTTP/1.0 has none.
        let answer = talk(address, "POST / HTTP/1.0\r\ncontent-length: 2\r\n\r\nhi").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn methods_and_statuses_without_a_body_get_none() {
    local(async {
        let address = http1(|request, _| async move {
            let mut reply = text("body");
            let status = request.uri().path()[1..].parse().expect("a status");
            *reply.response.status_mut() = StatusCode::from_u16(status).expect("a status");
            reply.response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("4"));
            reply
        })
        .await;
        for (request, head) in [
            ("HEAD /200", "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"),
            ("GET /204", "HTTP/1.1 204 No Content\r\n\r\n"),
            ("GET /304", "HTTP/1.1 304 Not Modified\r\ncontent-length: 4\r\n\r\n"),
            ("GET /200", "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody"),
        ] {
            let mut client = Client::connect(address).await;
            client.send(format!("{request} HTTP/1.1\r\nhost: a\r\n\r\n{GET}")).await;
            assert_eq!(client.until(&head[head.len() - 4..]).await, head);
        }
    })
    .await;
}

#[tokio::test]
async fn a_body_that_is_not_as_long_as_announced_closes_the_connection() {
    local(async {
        for (announced, body, sent) in [("9", "short", "short"), ("3", "long", "")] {
            let address = http1(move |_, _| async move {
                let mut reply = text(body);
                let length = HeaderValue::from_static(announced);
                reply.response.headers_mut().insert(CONTENT_LENGTH, length);
                reply
            })
            .await;
            let answer = talk(address, format!("{GET}{GET}")).await;
            assert_eq!(answer, format!("HTTP/1.1 200 OK\r\ncontent-length: {announced}\r\n\r\n{sent}"));
        }
    })
    .await;
}

#[tokio::test]
async fn heads_are_limited_in_size_number_and_time() {
    local(async {
        let limits = ServerOptions { head_timeout: Duration::from_secs(1), ..options() };
        let (address, _) = server(Speak::Http1, Serve(|_, _| async { text("x") }), limits).await;
        let long = "x".repeat(40_000);
        for (status, request) in [
            ("431", format!("GET / HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n")),
            ("431", format!("GET / HTTP/1.1\r\nhost: a\r\nx: {long}")),
            ("431", format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(20))),
            ("414", format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", &long[..17_000])),
            ("414", format!("GET /{}", &long[..17_000])),
            ("408", "GET / HTTP/1.1\r\nho".into()),
            ("408", "\r".into()),
        ] {
            let answer = talk(address, &request).await;
            let start = &request[..request.len().min(60)];
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{start}: {answer}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_is_limited_in_all() {
    local(async {
        let limits = ServerOptions { head_timeout: Duration::from_millis(100), ..options() };
        let (address, _) = server(Speak::Http1, Serve(|_, _| async { text("x") }), limits).await;
        let (mut reader, writer) = Client::connect(address).await.0.into_split();
        let started = std::time::Instant::now();
        let dripping = tokio::task::spawn_local(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(10));
            while writer.try_write(b"x").is_ok() {
                ticks.tick().await;
            }
        });
        let mut answer = [0; 12];
        tokio::io::AsyncReadExt::read_exact(&mut reader, &mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 408");
        dripping.abort();
        assert!(started.elapsed() < Duration::from_secs(30));
    })
    .await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_silence() {
    local(async {
        let limits = ServerOptions { idle_timeout: Some(Duration::from_secs(1)), ..options() };
        let (address, _) = server(Speak::Http1, Serve(|_, _| async { text("x") }), limits).await;
        assert_eq!(talk(address, "").await, "");
        let answer = talk(address, GET).await;
        assert_eq!(answer, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx");
    })
    .await;
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_handler() {
    local(async {
        for body in ["", "content-length: 10\r\n"] {
            let (entered, dropped) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
            let flags = (entered.clone(), dropped.clone());
            let address = http1(move |request, _| {
                let (entered, guard) = (flags.0.clone(), OnDrop(flags.1.clone()));
                async move {
                    entered.set(true);
                    let _held = (request, guard);
                    pending().await
                }
            })
            .await;
            let mut client = Client::connect(address).await;
            client.send(format!("POST / HTTP/1.1\r\nhost: a\r\n{body}\r\n")).await;
            until(|| entered.get()).await;
            assert!(!dropped.get());
            drop(client);
            until(|| dropped.get()).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_left_of_a_request_is_skipped_up_to_a_bound() {
    local(async {
        let address = http1(|_, _| async { text("x") }).await;
        let short = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{GET}");
        let mut client = Client::connect(address).await;
        client.send(&short[..short.len() - GET.len()]).await;
        client.send(format!("GET / HTT{GET}")).await;
        assert_eq!(client.until("\r\n\r\nx").await, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx");
        assert_eq!(client.until("\r\n\r\nx").await, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx");

        let answer = talk(address, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10000000\r\n\r\nabc").await;
        assert_eq!(answer, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx");
    })
    .await;
}

#[tokio::test]
async fn a_body_that_stalls_fails_and_one_that_is_cut_fails() {
    local(async {
        let limits = ServerOptions { stream_idle_timeout: Some(Duration::from_millis(30)), ..options() };
        let seen = Rc::new(Cell::new(None));
        let sink = Rc::clone(&seen);
        let handler = Serve(move |request: http::Request<Body>, _| {
            let sink = Rc::clone(&sink);
            async move {
                let error = request.into_body().collect().await.map(|_| ()).expect_err("not whole");
                sink.set(Some(error));
                text("x")
            }
        });
        let (address, _) = server(Speak::Http1, handler, limits).await;
        let answer = talk(address, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc").await;
        assert!(answer.ends_with("connection: close\r\n\r\nx"), "{answer}");
        assert_eq!(seen.take(), Some(BodyError::Idle));
    })
    .await;
}

#[tokio::test]
async fn a_drain_closes_after_the_answer_and_then_what_idles() {
    local(async {
        let (address, drain) = server(Speak::Http1, Serve(|_, _| async { text("x") }), options()).await;
        let (mut busy, mut idle) = (Client::connect(address).await, Client::connect(address).await);
        for client in [&mut busy, &mut idle] {
            client.send(GET).await;
            client.until("\r\n\r\nx").await;
        }
        drain.advance(Phase::Lame);
        busy.send(GET).await;
        assert_eq!(busy.rest().await, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx");
        drain.advance(Phase::Closing);
        assert_eq!(idle.rest().await, "");
    })
    .await;
}

/// A handler that does not read must not make the connection read on.
#[tokio::test]
async fn what_nobody_reads_stays_with_the_client() {
    local(async {
        let address = http1(|request, _| async move {
            let _held = request;
            pending().await
        })
        .await;
        let client = Client::connect(address).await;
        socket2::SockRef::from(&client.0).set_send_buffer_size(32 * 1024).expect("a small buffer");
        client.0.try_write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 999999999\r\n\r\n").expect("open");
        let block = vec![b'x'; 64 * 1024];
        let mut sent = 0;
        // The kernel takes some of it; with nothing read for this long, it is full.
        while let Ok(result) = tokio::time::timeout(Duration::from_millis(200), client.0.writable()).await {
            result.expect("open");
            match client.0.try_write(&block) {
                Ok(count) => sent += count,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
            assert!(sent < 16 * 1024 * 1024, "the server reads what nobody asked for");
        }
        assert!(sent > 0);
    })
    .await;
}

#[tokio::test]
async fn large_bodies_pass_through() {
    local(async {
        let address = http1(|request, _| async { ok(request.into_body()) }).await;
        let (mut reader, mut writer) =
            tokio::net::TcpStream::connect(address).await.expect("up").into_split();
        const SIZE: usize = 64 * 1024 * 1024;
        let sending = tokio::task::spawn_local(async move {
            let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {SIZE}\r\n\r\n");
            tokio::io::AsyncWriteExt::write_all(&mut writer, head.as_bytes()).await.expect("open");
            let block = Bytes::from(vec![b'x'; 1024 * 1024]);
            for _ in 0..SIZE / block.len() {
                tokio::io::AsyncWriteExt::write_all(&mut writer, &block).await.expect("open");
            }
            writer
        });
        let mut buffer = vec![0; 256 * 1024];
        let mut read = 0;
        while read < SIZE {
            match tokio::io::AsyncReadExt::read(&mut reader, &mut buffer).await.expect("open") {
                0 => panic!("cut after {read}"),
                count => read += count,
            }
        }
        drop(sending.await.expect("sent"));
    })
    .await;
}

#[tokio::test]
async fn a_client_has_as_long_as_is_configured_to_close_its_end() {
    local(async {
        let handler = || Serve(|_, _| async { text("bye") });
        let after = async |close_timeout| {
            let options = ServerOptions { close_timeout, ..options() };
            let (address, _) = server(Speak::Http1, handler(), options).await;
            let mut client = Client::connect(address).await;
            client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
            assert!(client.rest().await.ends_with("bye"));
            client
        };
        // Whoever has no time meets a socket that is gone.
        let mut client = after(Duration::ZERO).await;
        while client.0.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut client = after(Duration::from_secs(600)).await;
        for _ in 0..20 {
            client.0.write_all(b"x").await.expect("the server still reads");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

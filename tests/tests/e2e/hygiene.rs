//! Requests that could be read two ways, or that are too large or too slow, end at the first sidecar.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tulle_tests::{App, exchange, only_on_loopback, read_to_end};

use crate::Pair;

#[tokio::test]
async fn ambiguous_requests_are_refused_and_the_connection_closed() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: echo.shop\r\n\r\n";
    let cases = [
        (
            "both lengths",
            "POST / HTTP/1.1\r\nhost: echo.shop\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "the other way round",
            "POST / HTTP/1.1\r\nhost: echo.shop\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
        ),
        (
            "two lengths",
            "POST / HTTP/1.1\r\nhost: echo.shop\r\ncontent-length: 0\r\ncontent-length: 5\r\n\r\n",
        ),
        (
            "the same length twice",
            "POST / HTTP/1.1\r\nhost: echo.shop\r\ncontent-length: 0\r\ncontent-length: 0\r\n\r\n",
        ),
        ("a list of lengths", "POST / HTTP/1.1\r\nhost: echo.shop\r\ncontent-length: 0, 0\r\n\r\n"),
        ("a signed length", "POST / HTTP/1.1\r\nhost: echo.shop\r\ncontent-length: +0\r\n\r\n"),
        (
            "a huge length",
            "POST / HTTP/1.1\r\nhost: echo.shop\r\ncontent-length: 99999999999999999999\r\n\r\n",
        ),
        (
            "another coding",
            "POST / HTTP/1.1\r\nhost: echo.shop\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        ),
        (
            "chunked twice",
            "POST / HTTP/1.1\r\nhost: echo.shop\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a coding with a tab",
            "POST / HTTP/1.1\r\nhost: echo.shop\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a coding in HTTP/1.0",
            "POST / HTTP/1.0\r\nhost: echo.shop\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("a folded header", "GET / HTTP/1.1\r\nhost: echo.shop\r\nx-a: b\r\n c\r\n\r\n"),
        ("a space before the colon", "GET / HTTP/1.1\r\nhost: echo.shop\r\ncontent-length : 0\r\n\r\n"),
        ("no host", "GET / HTTP/1.1\r\nx-a: b\r\n\r\n"),
        ("two hosts", "GET / HTTP/1.1\r\nhost: echo.shop\r\nhost: other.shop\r\n\r\n"),
        ("a host that is none", "GET / HTTP/1.1\r\nhost: echo shop\r\n\r\n"),
        ("a fragment", "GET /a#b HTTP/1.1\r\nhost: echo.shop\r\n\r\n"),
        ("a NUL", "GET / HTTP/1.1\r\nhost: echo.shop\r\nx-a: b\0c\r\n\r\n"),
        ("a bare CR", "GET / HTTP/1.1\r\nhost: echo.shop\r\nx-a: b\rc: d\r\n\r\n"),
        ("a header without a name", "GET / HTTP/1.1\r\nhost: echo.shop\r\n: b\r\n\r\n"),
    ];
    for (what, request) in cases {
        let answer = exchange(pair.port(), format!("{request}{smuggled}").as_bytes()).await;
        assert_eq!(answer.statuses(), [400], "{what}: {}", answer.text);
        assert!(
            answer.header("proxy-status").starts_with("tulle; error=http_request_error"),
            "{what}: {}",
            answer.text
        );
    }
    assert!(app.seen().is_empty(), "{:?}", app.seen());
    let good = exchange(pair.port(), b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n").await;
    assert_eq!(good.status(), 200, "and everything else still works");
}

#[tokio::test]
async fn a_broken_chunk_never_passes_for_a_whole_body() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    for chunk in [
        "zz\r\nab\r\n0\r\n\r\n",
        "-1\r\n\r\n",
        "2\r\nabX\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n",
        "\r\nab\r\n0\r\n\r\n",
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nhost: echo.shop\r\ntransfer-encoding: chunked\r\n\r\n{chunk}");
        let answer = exchange(pair.port(), request.as_bytes()).await;
        assert_eq!(answer.statuses(), [400], "{chunk:?}: {}", answer.text);
    }
    assert!(app.seen().is_empty(), "{:?}", app.seen());
}

#[tokio::test]
async fn what_is_too_large_is_named() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    let long = "x".repeat(70_000);
    let many: String = (0..300).map(|i| format!("x-{i}: 1\r\n")).collect();
    for (status, request) in [
        (414, format!("GET /{long} HTTP/1.1\r\nhost: echo.shop\r\n\r\n")),
        (431, format!("GET / HTTP/1.1\r\nhost: echo.shop\r\nx-a: {long}\r\n\r\n")),
        (431, format!("GET / HTTP/1.1\r\nhost: echo.shop\r\n{many}\r\n")),
    ] {
        let answer = exchange(pair.port(), request.as_bytes()).await;
        assert_eq!(answer.status(), status, "{}", answer.text);
    }
    assert!(app.seen().is_empty());
}

#[tokio::test]
async fn a_head_that_does_not_end_times_out() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    let mut stream = TcpStream::connect(pair.port()).await.expect("it listens");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: echo.shop\r\n").await.expect("it reads");
    let (mut reader, mut writer) = stream.split();
    // A byte now and then does not buy more time.
    let drip = async {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if writer.write_all(b"x").await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut text = String::new();
    let read = tokio::io::AsyncReadExt::read_to_string(&mut reader, &mut text);
    let answered = async { tokio::time::timeout(tulle_tests::LIMIT, read).await };
    tokio::select! {
        answered = answered => { assert!(answered.is_ok(), "still open: {text}"); }
        () = drip => unreachable!("the drip never ends"),
    }
    assert!(text.starts_with("HTTP/1.1 408"), "{text}");
    assert!(app.seen().is_empty());
}

#[tokio::test]
async fn bytes_that_are_not_http_are_refused() {
    only_on_loopback!("it speaks to the forward proxy");
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"hello\r\n\r\n", b"GET\r\n\r\n"] {
        let mut stream = TcpStream::connect(pair.client.proxy).await.expect("it listens");
        stream.write_all(bytes).await.expect("it reads");
        stream.shutdown().await.expect("it is open");
        let text = read_to_end(&mut stream).await;
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 400"), "{text}");
    }
}

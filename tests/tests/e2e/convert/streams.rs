//! Bodies on their way from one version to the other: as they come, whole or with a sign that they are not.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::{HeaderMap, HeaderValue, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tulle_tests::{App, Call, H2App, H2Client, LIMIT, Origin, read_head, script};

use super::{get, rest};
use crate::Pair;

/// Nothing moves any more when nothing has moved for this long.
const STALLED: Duration = Duration::from_millis(500);
/// More than all windows and buffers on the way hold together.
const MUCH: usize = 96 << 20;

fn post() -> Request<()> {
    Request::post("http://echo.shop/").body(()).expect("a valid request")
}

fn trailers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields
        .iter()
        .map(|(name, value)| (name.parse().expect("valid"), HeaderValue::from_static(value)))
        .collect()
}

async fn data(call: &mut Call) -> Bytes {
    call.next().await.expect("data").expect("no reset")
}

#[tokio::test]
async fn bodies_and_trailers_stream_both_ways_to_http_1() {
    let origin = Origin::start().await;
    let pair = Pair::start(origin.address(), "http").await;
    let client = H2Client::connect(pair.port()).await;
    let (response, mut send) = client.send(post(), false).await.expect("it is open");
    let (head, mut stream) = origin.request().await;
    assert!(
        head.starts_with("POST / HTTP/1.1\r\n") && head.contains("transfer-encoding: chunked\r\n"),
        "{head}"
    );
    send.send_data(Bytes::from_static(b"one"), false).expect("it is open");
    Origin::reads(&mut stream, b"3\r\none\r\n").await;
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nuno\r\n")
        .await
        .expect("it is open");
    let mut body = timeout(LIMIT, response).await.expect("in time").expect("an answer").into_body();
    assert_eq!(body.data().await.expect("data").expect("no reset"), "uno");
    send.send_data(Bytes::from_static(b"three"), false).expect("it is open");
    Origin::reads(&mut stream, b"5\r\nthree\r\n").await;
    // What would change the message is not said at its end.
    let fields = [("x-sum", "8"), ("content-length", "8"), ("host", "evil"), ("trailer", "x-sum")];
    send.send_trailers(trailers(&fields)).expect("it is open");
    Origin::reads(&mut stream, b"0\r\nx-sum: 8\r\n\r\n").await;
    stream.write_all(b"4\r\ntres\r\n0\r\nx-total: 7\r\n\r\n").await.expect("it is open");
    let (text, last) = rest(body).await.expect("whole");
    assert_eq!((text.as_str(), last), ("tres", Some(trailers(&[("x-total", "7")]))));
}

#[tokio::test]
async fn bodies_and_trailers_stream_both_ways_to_http_2() {
    let app = H2App::start("two").await;
    let pair = Pair::start(app.address, "http").await;
    let mut stream = TcpStream::connect(pair.port()).await.expect("it listens");
    let head = "POST /echo HTTP/1.1\r\nhost: echo.shop\r\ntransfer-encoding: chunked\r\nte: trailers\r\nconnection: te\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("it reads");
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("transfer-encoding: chunked"), "{head}");
    for (chunk, size) in [("one", 3), ("three", 5)] {
        let chunk = format!("{size}\r\n{chunk}\r\n");
        stream.write_all(chunk.as_bytes()).await.expect("it reads");
        Origin::reads(&mut stream, chunk.as_bytes()).await;
    }
    stream.write_all(b"0\r\n\r\n").await.expect("it reads");
    Origin::reads(&mut stream, b"0\r\n\r\n").await;
}

/// Sends until nothing more is taken, for `MUCH` at the most; how much that was.
async fn fill(send: &mut SendStream<Bytes>) -> usize {
    let mut sent = 0;
    while sent < MUCH {
        send.reserve_capacity(16 << 10);
        let capacity = timeout(STALLED, poll_fn(|cx| send.poll_capacity(cx))).await;
        let Ok(capacity) = capacity else { break };
        let capacity = capacity.expect("it is open").expect("it is open");
        send.send_data(Bytes::from(vec![b'x'; capacity]), false).expect("it is open");
        sent += capacity;
    }
    sent
}

#[tokio::test]
async fn a_slow_application_slows_its_client() {
    let origin = Origin::start().await;
    let pair = Pair::start(origin.address(), "http").await;
    let client = H2Client::connect(pair.port()).await;
    let (response, mut send) = client.send(post(), false).await.expect("it is open");
    let (_, mut stream) = origin.request().await;
    let mut sent = fill(&mut send).await;
    assert!(sent < MUCH, "all of it was taken, and held somewhere");
    // What was held arrives, and what comes after it too.
    let upload = async {
        for _ in 0..16 {
            send.reserve_capacity(64 << 10);
            let capacity = timeout(LIMIT, poll_fn(|cx| send.poll_capacity(cx))).await.expect("in time");
            let capacity = capacity.expect("it is open").expect("it is open");
            send.send_data(Bytes::from(vec![b'x'; capacity]), false).expect("it is open");
            sent += capacity;
        }
        send.send_data(Bytes::new(), true).expect("it is open");
    };
    let download = async {
        let mut received = Vec::new();
        let mut buffer = vec![0; 1 << 20];
        while !received.ends_with(b"\r\n0\r\n\r\n") {
            let count = timeout(LIMIT, stream.read(&mut buffer)).await.expect("in time").expect("it is open");
            assert!(count > 0, "closed");
            received.extend_from_slice(&buffer[..count]);
        }
        stream.write_all(&script(200, "ok")).await.expect("it is open");
        received.iter().filter(|byte| **byte == b'x').count()
    };
    let ((), received) = tokio::join!(upload, download);
    assert_eq!(received, sent);
    let response = timeout(LIMIT, response).await.expect("in time").expect("an answer");
    assert_eq!(rest(response.into_body()).await.expect("whole").0, "ok");
}

#[tokio::test]
async fn a_slow_client_slows_its_application() {
    let origin = Origin::start().await;
    let pair = Pair::start(origin.address(), "http").await;
    let client = H2Client::connect(pair.port()).await;
    let (response, _send) = client.send(post(), true).await.expect("it is open");
    let (_, mut stream) = origin.request().await;
    stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await.expect("it is open");
    let piece = vec![b'x'; 64 << 10];
    let mut sent = 0;
    while sent < MUCH {
        match timeout(STALLED, stream.write(&piece)).await {
            Ok(count) => sent += count.expect("it is open"),
            Err(_) => break,
        }
    }
    assert!(sent < MUCH, "all of it was taken, and held somewhere");
    drop(stream);
    let response = timeout(LIMIT, response).await.expect("in time").expect("an answer");
    assert_eq!(rest(response.into_body()).await.expect("whole").0.len(), sent);
}

#[tokio::test]
async fn an_early_answer_reaches_its_client() {
    let origin = Origin::start().await;
    let pair = Pair::start(origin.address(), "http").await;
    let client = H2Client::connect(pair.port()).await;
    let (response, mut send) = client.send(post(), false).await.expect("it is open");
    let (_, mut stream) = origin.request().await;
    send.send_data(Bytes::from_static(b"one"), false).expect("it is open");
    Origin::reads(&mut stream, b"3\r\none\r\n").await;
    stream.write_all(&script(413, "too much")).await.expect("it is open");
    let response = timeout(LIMIT, response).await.expect("in time").expect("an answer");
    assert_eq!(response.status(), 413);
    assert_eq!(rest(response.into_body()).await.expect("whole").0, "too much");
    // The rest of the request belongs to no other: the connection is gone, and the client is told to stop.
    closed(&mut stream).await;
    let stopped = timeout(LIMIT, poll_fn(|cx| send.poll_reset(cx))).await.expect("in time");
    assert!(matches!(stopped, Ok(Reason::NO_ERROR | Reason::CANCEL)), "{stopped:?}");
}

/// Waits until the other end has closed, with whatever came before.
async fn closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // An error is a close as well.
    let _ = timeout(LIMIT, stream.read_to_end(&mut rest)).await.expect("it closes in time");
}

#[tokio::test]
async fn who_cancels_closes_the_connection_to_the_application() {
    let origin = Origin::start().await;
    let pair = Pair::start(origin.address(), "http").await;
    let client = H2Client::connect(pair.port()).await;
    // Before the answer.
    let (response, mut send) = client.send(post(), false).await.expect("it is open");
    let (_, mut stream) = origin.request().await;
    send.send_reset(Reason::CANCEL);
    closed(&mut stream).await;
    drop(response);
    // Within it.
    let (response, mut send) = client.send(post(), false).await.expect("it is open");
    let (_, mut stream) = origin.request().await;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await.expect("it is open");
    let mut body = timeout(LIMIT, response).await.expect("in time").expect("an answer").into_body();
    assert_eq!(body.data().await.expect("data").expect("no reset"), "half");
    send.send_reset(Reason::CANCEL);
    closed(&mut stream).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_has_no_good_end() {
    let origin = Origin::start().await;
    let pair = Pair::start(origin.address(), "http").await;
    let client = H2Client::connect(pair.port()).await;
    for half in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"[..],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let (response, _send) = client.send(post(), true).await.expect("it is open");
        let (_, mut stream) = origin.request().await;
        stream.write_all(half).await.expect("it is open");
        let mut body = timeout(LIMIT, response).await.expect("in time").expect("an answer").into_body();
        assert_eq!(body.data().await.expect("data").expect("no reset"), "half");
        drop(stream);
        let error = rest(body).await.expect_err("no good end");
        assert!(error.is_reset(), "{error}");
    }
    // Both framings at once, or none at all, are no answer.
    for (bytes, status) in [
        (
            &b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
                [..],
            502,
        ),
        (b"HTTP/1.1 200", 503),
        (b"", 503),
    ] {
        let (response, _send) = client.send(post(), true).await.expect("it is open");
        let (_, mut stream) = origin.request().await;
        stream.write_all(bytes).await.expect("it is open");
        drop(stream);
        let response = timeout(LIMIT, response).await.expect("in time").expect("an answer");
        assert_eq!(response.status(), status, "{}", String::from_utf8_lossy(bytes));
        assert!(response.headers()["proxy-status"].to_str().expect("text").starts_with("tulle; error="));
    }
}

#[tokio::test]
async fn a_post_is_delivered_once_whatever_is_found_out_on_its_way() {
    let app = App::start(|seen| match seen.line.contains("/closed") {
        true => Vec::new(),
        false => script(200, "ok"),
    })
    .await;
    for told in ["http", "kubernetes.io/h2c"] {
        let pair = Pair::start(app.address, told).await;
        let client = H2Client::connect(pair.port()).await;
        let before = app.seen().len();
        // All at once, while nothing is known yet.
        let mut answers = Vec::new();
        for n in 0..20 {
            let request = Request::post(format!("http://echo.shop/{n}")).body(()).expect("a valid request");
            let (response, mut send) = client.send(request, false).await.expect("it is open");
            send.send_data(Bytes::from(vec![b'x'; 10_000]), true).expect("it is open");
            answers.push(response);
        }
        for response in answers {
            assert_eq!(timeout(LIMIT, response).await.expect("in time").expect("an answer").status(), 200);
        }
        let mut lines: Vec<_> = app.seen()[before..].iter().map(|seen| seen.line.clone()).collect();
        lines.sort_unstable();
        let mut expected: Vec<_> = (0..20).map(|n| format!("POST /{n} HTTP/1.1")).collect();
        expected.sort_unstable();
        assert_eq!(lines, expected);
        assert!(app.seen()[before..].iter().all(|seen| seen.body.len() == 10_000));
        // And one that is taken and never answered.
        let request = Request::post("http://echo.shop/closed").body(()).expect("a valid request");
        let response = super::answer(&client, request).await;
        assert_eq!(response.status(), 503);
        assert_eq!(app.seen().len(), before + 21);
        assert_eq!(get(&client, "http://echo.shop/").await.1, "ok");
    }
}

#[tokio::test]
async fn a_call_that_streams_both_ways_reaches_an_application_of_http_2_from_either_version() {
    let app = H2App::start("two").await;
    let pair = Pair::start(app.address, "http").await;
    // An HTTP/1.1 client has found out what is spoken.
    let get = b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
    assert_eq!(tulle_tests::exchange(pair.port(), get).await.status(), 200);
    let client = H2Client::connect(pair.port()).await;
    let mut call = client.call("/echo", &[]).await.expect("an answer");
    for word in ["one", "two"] {
        call.send.send_data(Bytes::from_static(word.as_bytes()), false).expect("it is open");
        assert_eq!(data(&mut call).await, word);
    }
}

//! From a client's bytes to an origin's and back: a server that forwards over the pools.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::http::server::testing::{Client, Speak, local, options, server};
use crate::upstream::HttpVersion;
use crate::upstream::testing::{Origin, Upstream};

/// An origin, and a client's connection to a proxy in front of it.
async fn start() -> (Origin, Client) {
    let origin = Origin::new().await;
    let upstream = Upstream::new(origin.address(), HttpVersion::Http1);
    let (address, _) = server(Speak::Http1, upstream.forward(), options()).await;
    (origin, Client::connect(address).await)
}

#[tokio::test]
async fn interim_responses_pass_through() {
    local(async {
        let (origin, mut client) = start().await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n").await;
        let mut connection = origin.accept().await;
        connection.until("\r\n\r\n").await;
        connection.send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(
            client.until("Continue\r\n\r\n").await,
            "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
        );
        client.send("hi").await;
        connection.until("hi").await;
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(client.until("\r\n\r\n").await, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_carries_bytes_both_ways_and_each_end_by_itself() {
    local(async {
        for (request, answer) in [
            (
                "GET /chat HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\n",
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
            ),
            ("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"),
        ] {
            let (origin, mut client) = start().await;
            // What follows the heads at once belongs to the tunnel.
            client.send(format!("{request}ping")).await;
            let mut connection = origin.accept().await;
            let seen = connection.until("\r\n\r\n").await;
            assert_eq!(seen.contains("\r\nconnection: upgrade\r\n"), seen.starts_with("GET"), "{seen}");
            connection.send(format!("{answer}pong")).await;
            let head = client.until("pong").await;
            assert_eq!(head, format!("{answer}pong"));
            assert_eq!(connection.until("ping").await, "ping");
            // The client has no more to say, but still listens.
            client.0.shutdown().await.expect("open");
            assert_eq!(connection.rest().await, "");
            connection.send("bye").await;
            drop(connection);
            assert_eq!(client.rest().await, "bye");
        }
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_that_is_refused_is_an_answer_like_any_other() {
    local(async {
        let (origin, mut client) = start().await;
        let request = "GET / HTTP/1.1\r\nhost: a\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n";
        let answer = "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno";
        let mut connection = None;
        for _ in 0..2 {
            client.send(request).await;
            if connection.is_none() {
                connection = Some(origin.accept().await);
            }
            let connection = connection.as_mut().expect("accepted");
            connection.until("\r\n\r\n").await;
            connection.send(answer).await;
            assert_eq!(client.until("no").await, answer);
        }
    })
    .await;
}

#[tokio::test]
async fn an_early_answer_reaches_the_client_while_it_sends() {
    local(async {
        let (origin, mut client) = start().await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
        let mut connection = origin.accept().await;
        connection.until("3\r\nabc\r\n").await;
        connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nABC\r\n").await;
        client.until("3\r\nABC\r\n").await;
        // Both directions go on.
        client.send("3\r\ndef\r\n").await;
        connection.until("3\r\ndef\r\n").await;
        connection.send("3\r\nDEF\r\n").await;
        client.until("3\r\nDEF\r\n").await;
        client.send("0\r\nx-a: 1\r\n\r\n").await;
        assert_eq!(connection.until("\r\n\r\n").await, "0\r\nx-a: 1\r\n\r\n");
        connection.send("0\r\nx-b: 2\r\n\r\n").await;
        assert_eq!(client.until("\r\n\r\n").await, "0\r\nx-b: 2\r\n\r\n");
        // And both connections are used again.
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        connection.until("\r\n\r\n").await;
        connection.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        client.until("\r\n\r\n").await;
    })
    .await;
}

#[tokio::test]
async fn an_answer_without_a_length_ends_with_the_connection_for_http_1_0_only() {
    local(async {
        let (origin, mut client) = start().await;
        client.send("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await;
        let mut connection = origin.accept().await;
        connection.until("\r\n\r\n").await;
        connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
        connection.send("3\r\ndef\r\n0\r\n\r\n").await;
        assert_eq!(client.rest().await, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabcdef");
    })
    .await;
}

#[tokio::test]
async fn a_cut_answer_is_seen_as_one() {
    local(async {
        // In chunks: the last one is missing. Until close: only a reset can tell.
        for (version, reset) in [("HTTP/1.1", false), ("HTTP/1.0", true)] {
            let (origin, mut client) = start().await;
            client.send(format!("GET / {version}\r\nhost: a\r\n\r\n")).await;
            let mut connection = origin.accept().await;
            connection.until("\r\n\r\n").await;
            connection.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
            client.until("abc").await;
            drop(connection);
            let mut rest = Vec::new();
            let end = client.0.read_to_end(&mut rest).await;
            assert_eq!(end.is_err(), reset, "{end:?}");
            assert!(!rest.windows(3).any(|bytes| bytes == b"0\r\n"));
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_goes_away_takes_the_upstream_request_with_it() {
    local(async {
        let (origin, mut client) = start().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut connection = origin.accept().await;
        connection.until("\r\n\r\n").await;
        drop(client);
        assert_eq!(connection.rest().await, "");
    })
    .await;
}

/// Writes without end until nothing is taken for a while; says how much was.
async fn fill(stream: &tokio::net::TcpStream) -> usize {
    let block = vec![b'x'; 64 * 1024];
    let mut sent = 0;
    while let Ok(result) = tokio::time::timeout(Duration::from_millis(200), stream.writable()).await {
        result.expect("open");
        match stream.try_write(&block) {
            Ok(count) => sent += count,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    sent
}

/// The kernel's own buffers on the way, four of them, with room to spare; a body that was held whole would be far more.
const IN_FLIGHT: usize = 24 * 1024 * 1024;
const LENGTH: usize = 1024 * 1024 * 1024;

#[tokio::test]
async fn who_does_not_read_stops_who_writes() {
    local(async {
        // A client that does not read.
        let (origin, mut client) = start().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let mut connection = origin.accept().await;
        connection.until("\r\n\r\n").await;
        connection.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n\r\n")).await;
        let sent = fill(&connection.0).await;
        assert!(sent < IN_FLIGHT, "{sent}");

        // An origin that does not read.
        let (origin, mut client) = start().await;
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {LENGTH}\r\n\r\n")).await;
        let mut connection = origin.accept().await;
        connection.until("\r\n\r\n").await;
        let sent = fill(&client.0).await;
        assert!(sent < IN_FLIGHT, "{sent}");
    })
    .await;
}

/// What an exchange occupies while it is under way: once per HTTP/1 connection, and once per stream over HTTP/2.
#[tokio::test]
async fn an_exchange_is_small() {
    let origin = Origin::new().await;
    let upstream = Upstream::new(origin.address(), HttpVersion::Http1);
    let size = size_of_val(&upstream.send(crate::upstream::testing::get("/")));
    assert!(size <= 2600, "{size}");
}

//! How bodies are told from each other and from what follows.

use crate::http::server::testing::{Client, http1, local, ok, talk};

/// Answers with what it was sent.
async fn echo() -> std::net::SocketAddr {
    http1(|request, _| async { ok(request.into_body()) }).await
}

#[tokio::test]
async fn a_body_of_known_length_keeps_it() {
    local(async {
        let answer = talk(
            echo().await,
            "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
        )
        .await;
        assert_eq!(answer, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello");
    })
    .await;
}

#[tokio::test]
async fn chunks_and_trailers_go_both_ways() {
    local(async {
        let mut client = Client::connect(echo().await).await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n").await;
        client.send("5;ext=\"x\"\r\nhello\r\n").await;
        assert_eq!(
            client.until("hello\r\n").await,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"
        );
        client.send("A\r\n, world!!!\r\n0\r\nx-sum: 42\r\ncontent-length: 9\r\n\r\n").await;
        assert_eq!(client.until("\r\n\r\n").await, "a\r\n, world!!!\r\n0\r\nx-sum: 42\r\n\r\n");
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(client.until("\r\n\r\n").await, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    })
    .await;
}

#[tokio::test]
async fn every_split_of_a_request_is_the_same_request() {
    local(async {
        let address = echo().await;
        let request = "\r\nPOST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nt: v\r\n\r\n";
        for at in 1..request.len() {
            let mut client = Client::connect(address).await;
            client.send(&request[..at]).await;
            tokio::task::yield_now().await;
            client.send(&request[at..]).await;
            let answer = client.until("t: v\r\n\r\n").await;
            let chunks = answer.split_once("\r\n\r\n").expect("a head").1;
            // However the bytes arrived, these are the pieces of the body, in order.
            let data: String = chunks.split("\r\n").skip(1).step_by(2).take_while(|line| *line != "t: v").collect();
            assert_eq!(data, "abc", "split at {at}: {answer}");
        }
    })
    .await;
}

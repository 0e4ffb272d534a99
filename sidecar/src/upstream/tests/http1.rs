//! HTTP/1.1 to an origin that answers as the test wants.

use std::time::Duration;

use futures_util::join;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tokio::io::AsyncReadExt;
use tulle_mesh::model::Limits;

use crate::http::body::{Body, BodyError};
use crate::http::server::testing::{Client, local};
use crate::upstream::testing::{Origin, Upstream, get, post};
use crate::upstream::{Answer, HttpVersion, SendError};

const EMPTY: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// An origin and a way to it.
async fn start() -> (Origin, Upstream) {
    let origin = Origin::new().await;
    let upstream = Upstream::new(origin.address(), HttpVersion::Http1);
    (origin, upstream)
}

/// Sends `request` over `upstream`, while the origin reads its head and answers with `answer`.
async fn exchange(
    upstream: &Upstream,
    connection: &mut Client,
    request: Request<Body>,
    answer: &str,
) -> Result<Answer, SendError> {
    let serve = async {
        connection.until("\r\n\r\n").await;
        connection.send(answer).await;
    };
    join!(upstream.send(request), serve).0
}

/// The whole body of an answer.
async fn read(answer: Answer) -> Result<String, BodyError> {
    let body = answer.response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(body.to_vec()).expect("text"))
}

/// Moves the clock without waiting.
async fn wait(duration: Duration) {
    tokio::time::pause();
    tokio::time::advance(duration).await;
    tokio::time::resume();
}

/// A first exchange, after which the connection idles.
async fn warm(origin: &Origin, upstream: &Upstream, answer: &str) -> Client {
    let serve = async {
        let mut connection = origin.accept().await;
        connection.until("\r\n\r\n").await;
        connection.send(answer).await;
        connection
    };
    let (sent, connection) = join!(upstream.send(get("/")), serve);
    read(sent.expect("an answer")).await.expect("whole");
    connection
}

#[tokio::test]
async fn a_request_is_written_as_the_origin_expects() {
    local(async {
        let (origin, upstream) = start().await;
        let request = Request::put("http://shop/a?b")
            .header("x-a", "1")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("connection", "x-a")
            .header("transfer-encoding", "gzip")
            .header("content-length", "999")
            .body(Body::Full("hello".into()))
            .expect("valid");
        let serve = async {
            let mut connection = origin.accept().await;
            let seen = connection.until("hello").await;
            connection.send(EMPTY).await;
            seen
        };
        let (answer, seen) = join!(upstream.send(request), serve);
        assert_eq!(
            seen,
            "PUT /a?b HTTP/1.1\r\nhost: shop\r\nx-a: 1\r\ncookie: a=1; b=2\r\ncontent-length: 5\r\n\r\nhello"
        );
        assert!(matches!(answer.expect("an answer").response.body(), Body::Empty));
    })
    .await;
}

#[tokio::test]
async fn a_connection_is_used_again_after_a_whole_exchange_only() {
    local(async {
        for (answer, reused) in [
            (EMPTY, true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", true),
            ("HTTP/1.1 204 No Content\r\n\r\n", true),
            ("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\nx", true),
            ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx", false),
            ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx", false),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxHTTP/1.1 200 OK\r\n", false),
        ] {
            let (origin, upstream) = start().await;
            let mut connection = warm(&origin, &upstream, answer).await;
            if reused {
                exchange(&upstream, &mut connection, get("/"), EMPTY).await.expect("an answer");
                assert!(origin.is_left_alone().await, "{answer}");
            } else {
                drop(connection);
                warm(&origin, &upstream, EMPTY).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_the_origin_closed_while_idle_is_not_used() {
    local(async {
        let (origin, upstream) = start().await;
        for _ in 0..20 {
            drop(warm(&origin, &upstream, EMPTY).await);
            // The close has been sent, whether or not the runtime has noticed: the next request must not meet it.
            wait(Duration::from_millis(200)).await;
        }
        warm(&origin, &upstream, EMPTY).await;
    })
    .await;
}

#[tokio::test]
async fn idle_connections_are_given_up_before_the_origin_does() {
    local(async {
        let (origin, upstream) = start().await;
        // Ours: a minute.
        let first = warm(&origin, &upstream, EMPTY).await;
        wait(Duration::from_secs(61)).await;
        let hint = "HTTP/1.1 200 OK\r\nkeep-alive: max=5, timeout=10\r\ncontent-length: 0\r\n\r\n";
        let mut second = warm(&origin, &upstream, hint).await;
        drop(first);
        // The origin's: ten seconds.
        wait(Duration::from_secs(8)).await;
        exchange(&upstream, &mut second, get("/"), hint).await.expect("still in use");
        wait(Duration::from_secs(10)).await;
        warm(&origin, &upstream, EMPTY).await;
        drop(second);
    })
    .await;
}

#[tokio::test]
async fn what_an_origin_does_with_idle_connections_is_learnt() {
    local(async {
        let (origin, upstream) = start().await;
        let first = warm(&origin, &upstream, EMPTY).await;
        wait(Duration::from_secs(5)).await;
        drop(first);
        // Found to be closed after five seconds: from now on given up after four.
        let second = warm(&origin, &upstream, EMPTY).await;
        wait(Duration::from_millis(4100)).await;
        warm(&origin, &upstream, EMPTY).await;
        drop(second);
    })
    .await;
}

#[tokio::test]
async fn a_connection_lost_after_the_request_is_no_proof_of_anything() {
    local(async {
        for answer in ["", "HTTP/1.1 200"] {
            let (origin, upstream) = start().await;
            let mut connection = warm(&origin, &upstream, EMPTY).await;
            let serve = async {
                connection.until("\r\n\r\n").await;
                connection.send(answer).await;
                drop(connection);
            };
            let (result, ()) = join!(upstream.send(get("/")), serve);
            assert!(matches!(result, Err(SendError::Reset(_))), "{answer:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn responses_that_can_be_read_in_two_ways_are_refused() {
    local(async {
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1, 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx : y\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx: y\r\n z\r\n\r\n",
            "HTTP/1.1 200 OK\nx: y\n\n",
            "HTTP/1.1 200 OK\r\nx: a\rb\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        ] {
            let (origin, upstream) = start().await;
            let mut connection = warm(&origin, &upstream, EMPTY).await;
            let result = exchange(&upstream, &mut connection, get("/"), answer).await;
            assert!(matches!(result, Err(SendError::Protocol(_))), "{answer:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn bodies_end_where_their_framing_says() {
    local(async {
        for (answer, body) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", Ok("abc")),
            ("HTTP/1.1 200 OK\r\n\r\nabc", Ok("abc")),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nt: v\r\n\r\n",
                Ok("abc"),
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc", Err(BodyError::Truncated)),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", Err(BodyError::Truncated)),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
                Err(BodyError::Protocol("an invalid chunk size")),
            ),
        ] {
            let (origin, upstream) = start().await;
            let mut connection = warm(&origin, &upstream, EMPTY).await;
            let result = exchange(&upstream, &mut connection, get("/"), answer).await.expect("a head");
            drop(connection);
            assert_eq!(read(result).await.as_deref().map_err(Clone::clone), body, "{answer:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_to_head_has_no_body_whatever_it_says() {
    local(async {
        let (origin, upstream) = start().await;
        let mut connection = warm(&origin, &upstream, EMPTY).await;
        let mut request = get("/");
        *request.method_mut() = http::Method::HEAD;
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n";
        let answer = exchange(&upstream, &mut connection, request, answer).await.expect("a head");
        assert_eq!(answer.response.headers()["content-length"], "10");
        assert_eq!(read(answer).await.as_deref(), Ok(""));
        exchange(&upstream, &mut connection, get("/"), EMPTY).await.expect("the same connection");
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_is_dropped_closes_its_connection() {
    local(async {
        let (origin, upstream) = start().await;
        let mut connection = warm(&origin, &upstream, EMPTY).await;
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc";
        let answer = exchange(&upstream, &mut connection, get("/"), answer).await.expect("a head");
        drop(answer);
        assert_eq!(connection.rest().await, "");
    })
    .await;
}

#[tokio::test]
async fn a_body_waits_for_the_origin_to_ask_for_it() {
    local(async {
        let (origin, upstream) = start().await;
        let mut connection = warm(&origin, &upstream, EMPTY).await;
        let expecting = || {
            let mut request = post("hello");
            request.headers_mut().insert("expect", http::HeaderValue::from_static("100-continue"));
            request
        };
        // It asks.
        let serve = async {
            let head = connection.until("\r\n\r\n").await;
            assert!(head.contains("expect: 100-continue\r\n"), "{head}");
            let early = tokio::time::timeout(Duration::from_millis(50), connection.0.read_u8()).await;
            assert!(early.is_err(), "the body came unasked");
            connection.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            connection.until("hello").await;
            connection.send(EMPTY).await;
            connection
        };
        let (answer, mut connection) = join!(upstream.send(expecting()), serve);
        answer.expect("an answer");
        // It refuses: the body is never sent, and the connection can't be used again.
        let refused = "HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n";
        let answer = exchange(&upstream, &mut connection, expecting(), refused).await.expect("an answer");
        assert_eq!(answer.response.status(), StatusCode::EXPECTATION_FAILED);
        assert_eq!(connection.rest().await, "");
        // It says nothing: after a while the body is sent anyway.
        let serve = async {
            let mut connection = origin.accept().await;
            connection.until("hello").await;
            connection.send(EMPTY).await;
        };
        join!(upstream.send(expecting()), serve).0.expect("an answer");
    })
    .await;
}

#[tokio::test]
async fn requests_wait_for_a_connection_where_they_are_limited_and_no_more_than_may() {
    const LAST: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    local(async {
        let origin = Origin::new().await;
        let limits = Limits { max_connections: Some(1), max_pending_requests: Some(2), ..Limits::default() };
        let upstream = Upstream::limited(origin.address(), HttpVersion::Http1, limits);
        let send = |path| Box::pin(upstream.send(get(path)));
        let serve = async {
            let mut connection = origin.accept().await;
            connection.until("\r\n\r\n").await;
            let others = async { join!(send("/2"), send("/3")) };
            let too_many = async {
                assert!(matches!(send("/4").await, Err(SendError::Overflow(_))));
                // One that is used again, and then one that is made anew.
                connection.send(EMPTY).await;
                connection.until("\r\n\r\n").await;
                connection.send(LAST).await;
                let mut connection = origin.accept().await;
                connection.until("\r\n\r\n").await;
                connection.send(EMPTY).await;
                connection
            };
            join!(others, too_many).0
        };
        let (first, (second, third)) = join!(send("/1"), serve);
        for answer in [first, second, third] {
            read(answer.expect("an answer")).await.expect("whole");
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_carries_no_more_requests_than_its_cluster_says() {
    local(async {
        let origin = Origin::new().await;
        let upstream = Upstream::new(origin.address(), HttpVersion::Http1)
            .with(|cluster| cluster.max_requests_per_connection = Some(2));
        for _ in 0..3 {
            let mut connection = warm(&origin, &upstream, EMPTY).await;
            let serve = async {
                connection.until("\r\n\r\n").await;
                connection.send(EMPTY).await;
            };
            let (sent, ()) = join!(upstream.send(get("/")), serve);
            read(sent.expect("an answer")).await.expect("whole");
        }
    })
    .await;
}

#[tokio::test]
async fn a_refused_connection_says_so() {
    local(async {
        let (origin, upstream) = start().await;
        drop(origin);
        let result = upstream.send(get("/")).await;
        assert!(matches!(result, Err(SendError::Connect(crate::upstream::ConnectError::Io(_)))));
        assert_eq!(upstream.cluster.state.series.connect_failures.value(), 1);
    })
    .await;
}

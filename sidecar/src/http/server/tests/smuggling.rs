//! Requests that two servers could understand differently, one by one.

use crate::http::server::testing::{http1, local, talk, text};

const REFUSED: &[(&str, &str, &str)] = &[
    (
        "both lengths",
        "400",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "both lengths, the other way",
        "400",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
    ),
    ("two lengths", "400", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc"),
    (
        "two equal lengths",
        "400",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    ),
    ("a list of lengths", "400", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3, 3\r\n\r\nabc"),
    ("a signed length", "400", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc"),
    ("a negative length", "400", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -3\r\n\r\nabc"),
    ("a hexadecimal length", "400", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0x3\r\n\r\nabc"),
    ("a length with a space", "400", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3 3\r\n\r\nabc"),
    ("an empty length", "400", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length:\r\n\r\nabc"),
    (
        "a length that overflows",
        "400",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551616\r\n\r\n",
    ),
    (
        "a coding before chunked",
        "400",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ),
    ("identity", "400", "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: identity\r\n\r\n"),
    (
        "chunked twice",
        "400",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "an unknown coding",
        "400",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a coding with a tab in it",
        "400",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\x0b\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked in HTTP/1.0",
        "400",
        "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("a space before the colon", "400", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length : 3\r\n\r\nabc"),
    ("a folded line", "400", "GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n 2\r\n\r\n"),
    ("a folded first line", "400", "GET / HTTP/1.1\r\n x: 1\r\nhost: a\r\n\r\n"),
    ("a bare LF", "400", "GET / HTTP/1.1\nhost: a\n\n"),
    ("a bare LF between fields", "400", "GET / HTTP/1.1\r\nhost: a\nx: 1\r\n\r\n"),
    ("a bare LF at the end", "400", "GET / HTTP/1.1\r\nhost: a\r\n\n"),
    ("a bare CR in a value", "400", "GET / HTTP/1.1\r\nhost: a\r\nx: a\rb\r\n\r\n"),
    ("NUL in a value", "400", "GET / HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n"),
    ("NUL in a name", "400", "GET / HTTP/1.1\r\nhost: a\r\nx\0: b\r\n\r\n"),
    ("an invalid name", "400", "GET / HTTP/1.1\r\nhost: a\r\nx(y: b\r\n\r\n"),
    ("an empty name", "400", "GET / HTTP/1.1\r\nhost: a\r\n: b\r\n\r\n"),
    ("no colon", "400", "GET / HTTP/1.1\r\nhost: a\r\nxy\r\n\r\n"),
    ("no Host", "400", "GET / HTTP/1.1\r\nx: a\r\n\r\n"),
    ("two Hosts", "400", "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n"),
    ("an empty Host", "400", "GET / HTTP/1.1\r\nhost:\r\n\r\n"),
    ("a Host with a path", "400", "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n"),
    ("a Host with user information", "400", "GET / HTTP/1.1\r\nhost: u@a\r\n\r\n"),
    ("a list of Hosts", "400", "GET / HTTP/1.1\r\nhost: a, b\r\n\r\n"),
    ("a Host with a bad port", "400", "GET / HTTP/1.1\r\nhost: a:b\r\n\r\n"),
    ("a fragment", "400", "GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("a target without a slash", "400", "GET a HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("a target that is not ASCII", "400", "GET /\u{e4} HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("an absolute target with user information", "400", "GET http://u@a/ HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("another scheme", "400", "GET ftp://a/ HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("an asterisk with GET", "400", "GET * HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("CONNECT with a path", "400", "CONNECT /a HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("CONNECT without a port", "400", "CONNECT a HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("CONNECT with a body", "400", "CONNECT a:1 HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx"),
    ("a bad method", "400", "GE(T / HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("two spaces", "400", "GET  / HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("a space after the version", "400", "GET / HTTP/1.1 \r\nhost: a\r\n\r\n"),
    ("HTTP/0.9", "400", "GET /\r\n\r\n"),
    ("another version", "505", "GET / HTTP/1.2\r\nhost: a\r\n\r\n"),
    ("HTTP/2 without its preface", "505", "GET / HTTP/2.0\r\nhost: a\r\n\r\n"),
    (
        "an unknown expectation",
        "417",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\nexpect: tea\r\n\r\nx",
    ),
    ("many empty lines", "400", "\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n"),
];

/// Each is refused once, nothing behind it is taken for a request, and no handler sees anything of it.
#[tokio::test]
async fn ambiguous_requests_are_refused_and_the_connection_is_closed() {
    local(async {
        let address = http1(|_, _| async { text("reached") }).await;
        for (name, status, request) in REFUSED {
            let answer = talk(address, format!("{request}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {answer}");
            assert!(answer.contains("\r\nproxy-status: tulle; error=http_"), "{name}: {answer}");
            assert!(answer.contains("\r\nconnection: close\r\n"), "{name}: {answer}");
            assert!(answer.contains("\r\ndate: "), "{name}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{name}: {answer}");
        }
    })
    .await;
}

const BAD_CHUNKS: &[(&str, &str)] = &[
    ("no size", "\r\nabc\r\n0\r\n\r\n"),
    ("not a number", "x\r\nabc\r\n0\r\n\r\n"),
    ("0x", "0x3\r\nabc\r\n0\r\n\r\n"),
    ("a sign", "+3\r\nabc\r\n0\r\n\r\n"),
    ("a space before the size", " 3\r\nabc\r\n0\r\n\r\n"),
    ("a space after the size", "3 \r\nabc\r\n0\r\n\r\n"),
    ("a size that overflows", "10000000000000000\r\nabc\r\n0\r\n\r\n"),
    ("a bare LF after the size", "3\nabc\r\n0\r\n\r\n"),
    ("a bare LF after the data", "3\r\nabc\n0\r\n\r\n"),
    ("data beyond the size", "3\r\nabcd\r\n0\r\n\r\n"),
    ("a control character in an extension", "3;a=\x01\r\nabc\r\n0\r\n\r\n"),
    ("a CR in an extension", "3;a\rb\r\nabc\r\n0\r\n\r\n"),
    ("a folded trailer", "0\r\nx: 1\r\n 2\r\n\r\n"),
    ("a trailer without a colon", "0\r\nx\r\n\r\n"),
    ("a bare LF in the trailers", "0\r\nx: 1\n\r\n"),
];

/// A handler sees the fault instead of an end, and what follows is never taken for a request.
#[tokio::test]
async fn malformed_chunks_end_the_body_with_an_error() {
    use http_body_util::BodyExt;
    local(async {
        let address = http1(|request, _| async {
            match request.into_body().collect().await {
                Ok(body) => text(format!("read {:?}", body.to_bytes())),
                Err(error) => text(format!("failed: {error:?}")),
            }
        })
        .await;
        let long = format!("3;{}\r\nabc\r\n0\r\n\r\n", "e".repeat(300));
        for (name, chunks) in BAD_CHUNKS.iter().copied().chain([("a long extension", long.as_str())]) {
            let request = format!(
                "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunks}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
            );
            let answer = talk(address, request).await;
            assert!(answer.contains("failed: Protocol("), "{name}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{name}: {answer}");
        }
    })
    .await;
}

/// What is unusual and yet clear is not refused.
#[tokio::test]
async fn unusual_but_clear_requests_are_served() {
    local(async {
        let address = http1(|request, _| async move {
            let host = request.headers().get("host").map(|host| host.to_str().expect("ASCII").to_owned());
            text(format!("{} {} {host:?}", request.method(), request.uri()))
        })
        .await;
        for (request, seen) in [
            ("GET / HTTP/1.0\r\n\r\n", "GET / None"),
            ("\r\nGET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", r#"GET / Some("a")"#),
            (
                "M-SEARCH /x?y={z}|w HTTP/1.0\r\nHost: [::1]:80\r\n\r\n",
                r#"M-SEARCH /x?y={z}|w Some("[::1]:80")"#,
            ),
            ("OPTIONS * HTTP/1.0\r\nhost: a\r\n\r\n", r#"OPTIONS * Some("a")"#),
            ("GET http://b:1/x HTTP/1.0\r\nhost: a\r\n\r\n", r#"GET http://b:1/x Some("b:1")"#),
            ("CONNECT b:443 HTTP/1.1\r\nhost: b\r\nconnection: close\r\n\r\n", r#"CONNECT b:443 Some("b")"#),
            ("GET / HTTP/1.0\r\nhost: a\r\nx: caf\u{e9}\r\n\r\n", r#"GET / Some("a")"#),
        ] {
            let answer = talk(address, request).await;
            assert!(answer.ends_with(seen), "{request:?}: {answer}");
        }
    })
    .await;
}

//! Requests in HTTP/2 that would be two, or others, in HTTP/1.1 (request smuggling by downgrade).
//!
//! Each is sent to the client's sidecar and, past it, to the server's. What the application sees is one well-formed
//! request or none, and the next request on its connection is untouched.

use std::net::SocketAddr;

use http::Request;
use tulle_tests::{App, End, H2Client, RawH2, Seen, script};

use super::answer;
use crate::Pair;

type Field = (&'static [u8], &'static [u8]);

/// A request that says something that is not to be believed.
struct Attack {
    name: &'static str,
    /// The pseudo-headers that are not as in a good request; an empty value leaves one out.
    pseudo: &'static [Field],
    fields: &'static [Field],
    /// The pieces of the body.
    data: &'static [&'static [u8]],
    trailers: &'static [Field],
}

const NONE: Attack = Attack { name: "", pseudo: &[], fields: &[], data: &[], trailers: &[] };
const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";

/// Never to be seen by the application.
const REFUSED: &[Attack] = &[
    Attack {
        name: "more data than announced",
        fields: &[(b"content-length", b"4")],
        data: &[SMUGGLED],
        ..NONE
    },
    Attack {
        name: "two lengths",
        fields: &[(b"content-length", b"3"), (b"content-length", b"4")],
        data: &[b"abc"],
        ..NONE
    },
    Attack { name: "a list of lengths", fields: &[(b"content-length", b"3, 3")], data: &[b"abc"], ..NONE },
    Attack { name: "a length with a sign", fields: &[(b"content-length", b"+3")], data: &[b"abc"], ..NONE },
    Attack {
        name: "transfer-encoding",
        fields: &[(b"transfer-encoding", b"chunked")],
        data: &[b"0\r\n\r\n", SMUGGLED],
        ..NONE
    },
    Attack { name: "connection", fields: &[(b"connection", b"host")], ..NONE },
    Attack { name: "keep-alive", fields: &[(b"keep-alive", b"x")], ..NONE },
    Attack { name: "upgrade", fields: &[(b"upgrade", b"h2c")], ..NONE },
    Attack { name: "te other than trailers", fields: &[(b"te", b"chunked")], ..NONE },
    Attack { name: "CR LF in a value", fields: &[(b"x-a", b"1\r\ntransfer-encoding: chunked")], ..NONE },
    Attack { name: "LF in a value", fields: &[(b"x-a", b"1\nx-b: 2")], ..NONE },
    Attack { name: "NUL in a value", fields: &[(b"x-a", b"1\x002")], ..NONE },
    Attack { name: "CR LF in a name", fields: &[(b"x-a: 1\r\nx-b", b"2")], ..NONE },
    Attack { name: "a colon in a name", fields: &[(b"transfer-encoding:x", b"chunked")], ..NONE },
    Attack { name: "a space in a name", fields: &[(b"transfer-encoding ", b"chunked")], ..NONE },
    Attack { name: "upper case in a name", fields: &[(b"Transfer-Encoding", b"chunked")], ..NONE },
    Attack { name: "an empty name", fields: &[(b"", b"chunked")], ..NONE },
    Attack { name: "a space in the method", pseudo: &[(b":method", b"GET /smuggled HTTP/1.1")], ..NONE },
    Attack {
        name: "CR LF in the method",
        pseudo: &[(b":method", b"GET / HTTP/1.1\r\nx: y\r\n\r\nGET")],
        ..NONE
    },
    Attack { name: "no method", pseudo: &[(b":method", b"")], ..NONE },
    Attack { name: "a space in the path", pseudo: &[(b":path", b"/ HTTP/1.1")], ..NONE },
    Attack {
        name: "CR LF in the path",
        pseudo: &[(b":path", b"/ HTTP/1.1\r\nx: y\r\n\r\nGET /smuggled")],
        ..NONE
    },
    Attack { name: "LF in the path", pseudo: &[(b":path", b"/\nx")], ..NONE },
    Attack { name: "TAB in the path", pseudo: &[(b":path", b"/\tx")], ..NONE },
    Attack { name: "NUL in the path", pseudo: &[(b":path", b"/\0")], ..NONE },
    Attack { name: "DEL in the path", pseudo: &[(b":path", b"/\x7f")], ..NONE },
    Attack { name: "bytes that are not ASCII in the path", pseudo: &[(b":path", b"/\xc4\xa0")], ..NONE },
    Attack { name: "no path", pseudo: &[(b":path", b"")], ..NONE },
    Attack { name: "a path without a slash", pseudo: &[(b":path", b"smuggled")], ..NONE },
    Attack { name: "a query without a path", pseudo: &[(b":path", b"?smuggled")], ..NONE },
    Attack { name: "an asterisk for GET", pseudo: &[(b":path", b"*")], ..NONE },
    Attack { name: "an absolute URI", pseudo: &[(b":path", b"http://admin.shop/smuggled")], ..NONE },
    Attack { name: "two paths", pseudo: &[(b":path", b"/"), (b":path", b"/smuggled")], ..NONE },
    Attack { name: "another Host", fields: &[(b"host", b"admin.shop")], ..NONE },
    Attack { name: "two Hosts", fields: &[(b"host", b"echo.shop"), (b"host", b"admin.shop")], ..NONE },
    Attack {
        name: "two authorities",
        pseudo: &[(b":authority", b"echo.shop"), (b":authority", b"admin.shop")],
        ..NONE
    },
    Attack { name: "no authority", pseudo: &[(b":authority", b"")], ..NONE },
    Attack { name: "a user in the authority", pseudo: &[(b":authority", b"admin.shop@echo.shop")], ..NONE },
    Attack { name: "a path in the authority", pseudo: &[(b":authority", b"echo.shop/smuggled")], ..NONE },
    Attack { name: "CR LF in the authority", pseudo: &[(b":authority", b"echo.shop\r\nx: y")], ..NONE },
    Attack {
        name: "CR LF in the scheme",
        pseudo: &[(b":scheme", b"http://x/ HTTP/1.1\r\nx: y\r\n\r\n")],
        ..NONE
    },
    Attack {
        name: "a pseudo-header after a field",
        fields: &[(b"x-a", b"1"), (b":path", b"/smuggled")],
        ..NONE
    },
    Attack { name: "an unknown pseudo-header", pseudo: &[(b":smuggled", b"1")], ..NONE },
    Attack {
        name: "a tunnel for HTTP",
        pseudo: &[(b":method", b"CONNECT"), (b":protocol", b"h2c")],
        data: &[SMUGGLED],
        ..NONE
    },
    Attack {
        name: "CR LF in the protocol",
        pseudo: &[
            (b":method", b"CONNECT"),
            (b":protocol", b"websocket\r\n\r\nGET /smuggled HTTP/1.1\r\nx: y"),
        ],
        ..NONE
    },
    Attack { name: "a protocol without CONNECT", pseudo: &[(b":protocol", b"websocket")], ..NONE },
    Attack {
        name: "CONNECT",
        pseudo: &[(b":method", b"CONNECT"), (b":scheme", b""), (b":path", b"")],
        data: &[SMUGGLED],
        ..NONE
    },
];

/// One request to the application, with a body that is its own.
const HARMLESS: &[Attack] = &[
    Attack { name: "a request in a body", data: &[SMUGGLED], ..NONE },
    Attack { name: "the end of chunks in a body", data: &[b"0\r\n\r\n", SMUGGLED], ..NONE },
    Attack { name: "a body of GET", pseudo: &[(b":method", b"GET")], data: &[SMUGGLED], ..NONE },
    Attack {
        name: "framing in trailers",
        data: &[b"x"],
        trailers: &[(b"content-length", b"0"), (b"host", b"admin.shop"), (b"trailer", b"x")],
        ..NONE
    },
    Attack {
        name: "the same length twice",
        fields: &[(b"content-length", b"3"), (b"content-length", b"3")],
        data: &[b"abc"],
        ..NONE
    },
    Attack { name: "an empty length", fields: &[(b"content-length", b"")], ..NONE },
    Attack { name: "the same Host", fields: &[(b"host", b"ECHO.shop")], data: &[b"x"], ..NONE },
    Attack { name: "a smuggled scheme", pseudo: &[(b":scheme", b"ftp")], data: &[b"x"], ..NONE },
];

impl Attack {
    async fn send(&self, address: SocketAddr) -> End {
        let mut fields: Vec<(&[u8], &[u8])> = Vec::new();
        for (name, value) in [
            (b":method".as_slice(), b"POST".as_slice()),
            (b":scheme", b"http"),
            (b":path", b"/attack"),
            (b":authority", b"echo.shop"),
        ] {
            if !self.pseudo.iter().any(|(other, _)| *other == name) {
                fields.push((name, value));
            }
        }
        fields.extend(self.pseudo.iter().filter(|(_, value)| !value.is_empty()));
        fields.extend(self.fields);
        let mut connection = RawH2::connect(address).await;
        connection.headers(1, &fields, self.data.is_empty() && self.trailers.is_empty()).await;
        for (at, data) in self.data.iter().enumerate() {
            connection.data(1, data, at + 1 == self.data.len() && self.trailers.is_empty()).await;
        }
        if !self.trailers.is_empty() {
            connection.headers(1, self.trailers, true).await;
        }
        connection.end_of(1).await
    }
}

/// A request after each attack, which gets the connection that the attack may have left behind.
async fn next_is_untouched(pair: &Pair, app: &App, after: &str) {
    let client = H2Client::connect(pair.port()).await;
    let request = Request::get("http://echo.shop/next").body(()).expect("a valid request");
    assert_eq!(answer(&client, request).await.headers()["x-line"], "GET /next HTTP/1.1", "after {after}");
    let last = app.seen().pop().expect("it was seen");
    assert_eq!(last.line, "GET /next HTTP/1.1", "after {after}");
}

async fn start() -> (App, Pair) {
    let app = App::start(|seen| {
        let mut answer = script(200, "");
        // The client sees which request it got the answer to.
        answer.truncate(answer.len() - 2);
        answer.extend_from_slice(format!("x-line: {}\r\n\r\n", seen.line).as_bytes());
        answer
    })
    .await;
    let pair = Pair::start(app.address, "http").await;
    next_is_untouched(&pair, &app, "nothing").await;
    (app, pair)
}

/// What the application has seen since, without the requests between.
fn seen_since(app: &App, before: usize) -> Vec<Seen> {
    app.seen().split_off(before).into_iter().filter(|seen| seen.line != "GET /next HTTP/1.1").collect()
}

#[tokio::test]
async fn what_is_no_request_in_http_1_reaches_no_application_of_it() {
    let (app, pair) = start().await;
    for address in [pair.port(), pair.server.inbound[0]] {
        for attack in REFUSED {
            let before = app.seen().len();
            let end = attack.send(address).await;
            assert_ne!(end, End::Answer(200), "{}", attack.name);
            next_is_untouched(&pair, &app, attack.name).await;
            let seen = seen_since(&app, before);
            assert!(seen.is_empty(), "{}: {seen:?}", attack.name);
        }
    }
}

#[tokio::test]
async fn what_only_looks_like_more_than_one_request_is_one() {
    let (app, pair) = start().await;
    for address in [pair.port(), pair.server.inbound[0]] {
        for attack in HARMLESS {
            let before = app.seen().len();
            assert_eq!(attack.send(address).await, End::Answer(200), "{}", attack.name);
            next_is_untouched(&pair, &app, attack.name).await;
            let seen = seen_since(&app, before);
            assert_eq!(seen.len(), 1, "{}: {seen:?}", attack.name);
            assert!(seen[0].line.ends_with(" /attack HTTP/1.1"), "{}: {seen:?}", attack.name);
            assert!(seen[0].header("host").eq_ignore_ascii_case("echo.shop"), "{}: {seen:?}", attack.name);
            assert_eq!(seen[0].body, attack.data.concat(), "{}", attack.name);
        }
    }
}

#[tokio::test]
async fn what_comes_after_a_whole_request_belongs_to_none() {
    let (app, pair) = start().await;
    let attack = Attack {
        name: "data after a length of zero",
        fields: &[(b"content-length", b"0")],
        data: &[SMUGGLED],
        ..NONE
    };
    for address in [pair.port(), pair.server.inbound[0]] {
        let before = app.seen().len();
        // The request is whole with its head: whether it is answered before the data comes is a matter of time.
        attack.send(address).await;
        next_is_untouched(&pair, &app, attack.name).await;
        let seen = seen_since(&app, before);
        let good = |seen: &Seen| seen.line == "POST /attack HTTP/1.1" && seen.body.is_empty();
        assert!(seen.len() <= 1 && seen.iter().all(good), "{seen:?}");
    }
}

#[tokio::test]
async fn a_body_that_ends_too_soon_is_no_request() {
    let (app, pair) = start().await;
    let short = Attack {
        name: "less data than announced",
        fields: &[(b"content-length", b"40")],
        data: &[b"GET /"],
        ..NONE
    };
    for address in [pair.port(), pair.server.inbound[0]] {
        let before = app.seen().len();
        assert_ne!(short.send(address).await, End::Answer(200));
        // The application waits for the rest on a connection that closes; nobody else's request comes over it.
        next_is_untouched(&pair, &app, short.name).await;
        assert!(seen_since(&app, before).is_empty());
    }
}

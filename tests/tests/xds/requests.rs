//! Requests that are odd or broken: what each refuses, and what it makes of the rest.

use serde_json::json;
use tulle_tests::oracle::Oracle;

use crate::compare::Tally;

/// Each but for its Host and the end of its head, where `@` stands for them.
const REQUESTS: [&str; 32] = [
    "GET / HTTP/1.1@\r\n",
    "GET / HTTP/1.0@\r\n",
    "GET /a?b=c&d HTTP/1.1@\r\n",
    "GET /%00%ff HTTP/1.1@\r\n",
    "GET http://h.test/absolute?x=y HTTP/1.1\r\nhost: nobody.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHOST: h.test\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: H.Test\r\n\r\n",
    "GET / HTTP/1.1\r\nhost:h.test \t\r\n\r\n",
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: nobody.test\r\n\r\n",
    "GET / HTTP/1.1@connection: close\r\n\r\n",
    "GET / HTTP/1.1@connection: keep-alive, x-mine\r\nx-mine: 1\r\nkeep-alive: timeout=5\r\n\r\n",
    "GET / HTTP/1.1@te: trailers, gzip\r\n\r\n",
    "GET / HTTP/1.1@proxy-connection: keep-alive\r\nproxy-authorization: x\r\n\r\n",
    "GET / HTTP/1.1@upgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    "GET / HTTP/1.1@x-empty:\r\nx-two: a\r\nX-Two: b\r\n\r\n",
    "GET / HTTP/1.1@x-utf: gr\u{fc}n\r\n\r\n",
    "GET / HTTP/1.1@x-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: https\r\n\r\n",
    "HEAD / HTTP/1.1@\r\n",
    "TRACE / HTTP/1.1@\r\n",
    "PATCH / HTTP/1.1@content-length: 2\r\n\r\nhi",
    "POST / HTTP/1.1@content-length: 0\r\n\r\n",
    "POST / HTTP/1.1@transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "POST / HTTP/1.1@transfer-encoding: chunked\r\n\r\n2;name=value\r\nhi\r\n0\r\nx-trailer: 1\r\n\r\n",
    "POST / HTTP/1.1@transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "POST / HTTP/1.1@transfer-encoding: chunked\r\n\r\nzz\r\nhi\r\n0\r\n\r\n",
    "POST / HTTP/1.1@content-length: 2\r\ncontent-length: 2\r\n\r\nhi",
    "POST / HTTP/1.1@content-length: 2\r\ncontent-length: 3\r\n\r\nhi!",
    "POST / HTTP/1.1@content-length: +2\r\n\r\nhi",
    "POST / HTTP/1.1@content-length: -2\r\n\r\nhi",
    "GET / HTTP/1.1@x y: 1\r\n\r\n",
    "GET / HTTP/1.1@x : 1\r\n\r\n",
];

/// What is meant to be otherwise than with Envoy: a request, its status there and here, and why.
const OWN: [(&str, u16, u16, &str); 9] = [
    ("GET / HTTP/1.1\r\nhost:\r\n\r\n", 404, 400, "an empty Host means no service"),
    (
        "GET / HTTP/1.1@x-envoy-retry-on: 5xx\r\nx-envoy-max-retries: 9\r\n\r\n",
        200,
        200,
        "Envoy takes away what would steer it; nothing of the kind steers the sidecar, and it passes",
    ),
    ("GET /?q=\" HTTP/1.1@\r\n", 200, 400, "RFC 3986, section 3.4: no query holds a quotation mark"),
    (
        "GET / HTTP/1.1@expect: 100-continue\r\n\r\n",
        200,
        200,
        "RFC 9110, section 10.1.1: whether to go on is the application's to say; Envoy says it",
    ),
    (
        "OPTIONS * HTTP/1.1@\r\n",
        404,
        200,
        "RFC 9110, section 9.3.7: it asks the server, as any other request does",
    ),
    (
        "POST / HTTP/1.1@transfer-encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        501,
        400,
        "a framing other than chunked is refused as a broken one",
    ),
    (
        "POST / HTTP/1.1@transfer-encoding: chunked, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        501,
        400,
        "RFC 9112, section 6.1: nobody may chunk twice",
    ),
    (
        "POST / HTTP/1.1@transfer-encoding: identity\r\n\r\nhi",
        501,
        400,
        "a framing other than chunked is refused as a broken one",
    ),
    (
        "GET / HTTP/1.1@x: 1\r\n folded\r\n\r\n",
        200,
        400,
        "RFC 9112, section 5.2: folded lines may be refused",
    ),
];

#[tokio::test]
async fn what_is_odd_or_broken_is_refused_or_carried_alike() {
    let mut oracle = Oracle::start().await;
    let action = json!({ "cluster": "a", "retry_policy": { "retry_on": "5xx", "num_retries": 0 } });
    let host = json!({
        "name": "h",
        "domains": ["h.test"],
        "routes": [{ "match": { "prefix": "" }, "route": action }],
    });
    oracle.routes(&[host]).await;
    let whole = |request: &str| request.replace('@', "\r\nhost: h.test\r\n");
    let mut tally = Tally::default();
    for request in REQUESTS.map(whole) {
        let outcomes = oracle.both(request.as_bytes(), "echo").await;
        tally.compare(&format!("{request:?}"), outcomes);
    }
    tally.end(&["local replies"]);
    for (request, theirs, ours, why) in OWN {
        let [envoy, tulle] = oracle.both(whole(request).as_bytes(), "echo").await;
        assert_eq!((envoy.received.status, tulle.received.status), (theirs, ours), "{request:?}: {why}");
        assert_eq!(tulle.upstream.len(), usize::from(ours == 200), "{request:?}: {why}");
        assert!(envoy != tulle, "{request:?} is no longer a difference: {why}");
    }
}

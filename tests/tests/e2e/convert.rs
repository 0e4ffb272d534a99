//! Clients and applications that do not speak the same version of HTTP.

mod attacks;
mod streams;

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, Method, Request, Response};
use tokio::time::timeout;
use tulle_tests::{App, H2App, H2Client, LIMIT, NAMESPACE, Origin, TestMesh, Workload, exchange, script};

use crate::Pair;

/// Each version of a client reaches each kind of application, with a sidecar beside it and without, from the first
/// request on.
async fn all_meet(told: Option<&'static str>) {
    let (one, two, both) =
        (App::fixed(200, "one").await, H2App::start("two").await, H2App::start_both("both").await);
    let mesh = TestMesh::start().await;
    let mut sidecars = Vec::new();
    let mut client = Workload::new("client");
    let mut services = Vec::new();
    for (name, address) in [("one", one.address), ("two", two.address), ("both", both.address)] {
        let mut server = Workload::new(name).app(address);
        if let Some(told) = told {
            server = server.protocol(told);
        }
        sidecars.push(mesh.workload(server).await);
        let port = address.port();
        mesh.outside(&format!("plain-{name}"), address, told).await;
        for service in [format!("{name}.{NAMESPACE}:80"), format!("plain-{name}.{NAMESPACE}:{port}")] {
            client = client.port(&service);
            services.push((service, name));
        }
    }
    let client = mesh.workload(client).await;
    let mut failed = Vec::new();
    for (service, name) in services {
        let port = client.ports[&service];
        // The first of a kind finds out what is spoken, the second knows.
        for version in [2, 1, 2, 1] {
            let answered = match version {
                1 => {
                    let get = format!("GET / HTTP/1.1\r\nhost: {service}\r\nconnection: close\r\n\r\n");
                    let answer = exchange(port, get.as_bytes()).await;
                    (answer.status() == 200 && answer.text.contains(name)).then_some(()).ok_or(answer.text)
                }
                _ => match get(&H2Client::connect(port).await, &format!("http://{service}/")).await {
                    (head, body) if head.status == 200 && body == name => Ok(()),
                    (head, body) => Err(format!("{head:?} {body:?}")),
                },
            };
            failed.extend(answered.err().map(|answer| format!("{service} over HTTP/{version}: {answer}")));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(one.seen().iter().all(|seen| seen.line == "GET / HTTP/1.1"), "{:?}", one.seen());
    assert_eq!((one.seen().len(), two.count("/")), (8, 8), "each request is processed once");
}

#[tokio::test]
async fn all_versions_meet_where_http_is_told() {
    all_meet(Some("http")).await;
}

#[tokio::test]
async fn all_versions_meet_where_http_2_is_told() {
    all_meet(Some("kubernetes.io/h2c")).await;
}

#[tokio::test]
async fn all_versions_meet_where_nothing_is_told() {
    all_meet(None).await;
}

/// The answer to a request without a body.
pub(crate) async fn answer(client: &H2Client, request: Request<()>) -> Response<RecvStream> {
    let (response, _) = client.send(request, true).await.expect("it is open");
    timeout(LIMIT, response).await.expect("in time").expect("an answer")
}

/// The rest of a body, and its trailers.
pub(crate) async fn rest(mut body: RecvStream) -> Result<(String, Option<HeaderMap>), h2::Error> {
    let mut text = Vec::new();
    while let Some(data) = timeout(LIMIT, body.data()).await.expect("in time") {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        text.extend_from_slice(&data);
    }
    let trailers = timeout(LIMIT, body.trailers()).await.expect("in time")?;
    Ok((String::from_utf8_lossy(&text).into_owned(), trailers))
}

/// A GET's answer.
pub(crate) async fn get(client: &H2Client, uri: &str) -> (http::response::Parts, String) {
    let request = Request::get(uri).body(()).expect("a valid request");
    let (head, body) = answer(client, request).await.into_parts();
    let (text, _) = rest(body).await.expect("a whole body");
    (head, text)
}

#[tokio::test]
async fn a_head_changes_its_form_and_nothing_else() {
    let app = App::start(|_| {
        b"HTTP/1.1 200 Fine\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: foo\r\n\
          Transfer-Encoding: chunked\r\nX-Kept: Yes\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n\r\n\
          2\r\nok\r\n0\r\nX-Sum: 2\r\nKeep-Alive: no\r\n\r\n"
            .to_vec()
    })
    .await;
    let pair = Pair::start(app.address, "http").await;
    let client = H2Client::connect(pair.port()).await;
    let request = Request::get("http://echo.shop/a%20b?c=d")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .header("x-kept", "1");
    let response = answer(&client, request.body(()).expect("a valid request")).await;
    assert_eq!(response.status(), 200);
    for name in ["connection", "x-hop", "keep-alive", "upgrade", "transfer-encoding", "content-length"] {
        assert!(!response.headers().contains_key(name), "{name}: {:?}", response.headers());
    }
    assert_eq!(response.headers()["x-kept"], "Yes");
    assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
    let (text, trailers) = rest(response.into_body()).await.expect("whole");
    let trailers = trailers.expect("trailers");
    assert_eq!((text.as_str(), trailers.len(), &trailers["x-sum"]), ("ok", 1, &"2".parse().expect("valid")));

    let seen = app.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].line, "GET /a%20b?c=d HTTP/1.1");
    for (name, value) in [
        ("host", "echo.shop"),
        ("cookie", "a=1; b=2"),
        ("te", "trailers"),
        ("x-kept", "1"),
        ("transfer-encoding", ""),
    ] {
        assert_eq!(seen[0].header(name), value, "{:?}", seen[0].headers);
    }
    let names =
        |name: &str| seen[0].headers.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name)).count();
    assert_eq!((names("host"), names("cookie"), names("connection")), (1, 1, 0));
}

#[tokio::test]
async fn interim_responses_come_as_such() {
    let origin = Origin::start().await;
    let pair = Pair::start(origin.address(), "http").await;
    let client = H2Client::connect(pair.port()).await;
    let request =
        Request::post("http://echo.shop/").header("expect", "100-continue").header("content-length", "2");
    let (mut response, mut send) =
        client.send(request.body(()).expect("a valid request"), false).await.expect("it is open");
    let (head, mut stream) = origin.request().await;
    assert!(head.contains("expect: 100-continue\r\n") && head.contains("content-length: 2\r\n"), "{head}");
    use tokio::io::AsyncWriteExt;
    let interim =
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nconnection: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
    stream.write_all(interim).await.expect("it is open");
    for status in [103, 100] {
        let next = std::future::poll_fn(|cx| response.poll_informational(cx));
        let next = timeout(LIMIT, next).await.expect("in time").expect("one more").expect("no reset");
        assert_eq!(next.status(), status);
        assert_eq!(next.headers().contains_key("link"), status == 103);
    }
    send.send_data(Bytes::from_static(b"hi"), true).expect("it is open");
    Origin::reads(&mut stream, b"hi").await;
    stream.write_all(&script(200, "ok")).await.expect("it is open");
    let response = timeout(LIMIT, response).await.expect("in time").expect("an answer");
    assert_eq!(rest(response.into_body()).await.expect("whole").0, "ok");
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let app = App::start(|seen| match seen.line.split(' ').nth(1).unwrap_or_default() {
        "/204" => b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n".to_vec(),
        "/304" => b"HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\ncontent-length: 7\r\n\r\n".to_vec(),
        _ if seen.line.starts_with("HEAD") => b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n".to_vec(),
        _ => script(200, "content"),
    })
    .await;
    let pair = Pair::start(app.address, "http").await;
    let client = H2Client::connect(pair.port()).await;
    for (method, path, status, length) in [
        (Method::HEAD, "/", 200, Some("7")),
        (Method::GET, "/204", 204, None),
        (Method::GET, "/304", 304, Some("7")),
        (Method::GET, "/", 200, Some("7")),
    ] {
        let uri = format!("http://echo.shop{path}");
        let request = Request::builder().method(method.clone()).uri(uri).body(()).expect("a valid request");
        let response = answer(&client, request).await;
        assert_eq!(response.status(), status, "{method} {path}");
        let announced = response.headers().get("content-length").and_then(|value| value.to_str().ok());
        assert_eq!(announced, length, "{method} {path}");
        let whole = method == Method::GET && path == "/";
        let (text, _) = rest(response.into_body()).await.expect("whole");
        assert_eq!(text, if whole { "content" } else { "" }, "{method} {path}");
    }
    // One that was refused, and one that was kept all the time.
    assert!(app.connections() <= 2, "{}", app.connections());
}

#[tokio::test]
async fn a_grpc_call_to_an_application_without_http_2_gets_a_grpc_error() {
    let app = App::fixed(200, "no grpc").await;
    for told in ["http", "grpc"] {
        let pair = Pair::start(app.address, told).await;
        let client = H2Client::connect(pair.port()).await;
        for _ in 0..2 {
            let request = Request::post("http://echo.shop/test.Echo/Unary")
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            let response = answer(&client, request.body(()).expect("a valid request")).await;
            assert_eq!(
                (response.status().as_u16(), &response.headers()["grpc-status"]),
                (200, &"12".parse().expect("valid"))
            );
            let message = response.headers()["grpc-message"].to_str().expect("text");
            assert!(message.contains("speaks only HTTP/1.1, and gRPC needs HTTP/2"), "{message}");
        }
    }
    assert!(app.seen().is_empty(), "{:?}", app.seen());
}

#[tokio::test]
async fn a_websocket_to_an_application_of_http_2_that_takes_none_is_refused() {
    let app = H2App::start("two").await;
    let request = b"GET /chat HTTP/1.1\r\nhost: echo.shop\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n";
    for told in ["http", "kubernetes.io/h2c"] {
        let pair = Pair::start(app.address, told).await;
        let mut stream = tokio::net::TcpStream::connect(pair.port()).await.expect("it listens");
        tokio::io::AsyncWriteExt::write_all(&mut stream, request).await.expect("it reads");
        let head = tulle_tests::read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 502") && head.contains("RFC 8441"), "{head}");
    }
    assert_eq!(app.count("/chat"), 0);
}

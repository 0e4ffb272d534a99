//! HTTP/1.1 through the pair of sidecars.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tulle_tests::{
    App, Program, curl, exchange, identity, only_on_loopback, output_of, python, read_head, script,
};

use crate::Pair;

#[tokio::test]
async fn curl_reaches_a_service_by_all_its_names() {
    let app = App::fixed(200, "hello\n").await;
    let pair = Pair::start(app.address, "http").await;
    for host in ["echo.shop", "echo", "echo.shop.svc", "echo.shop.svc.cluster.local", "echo.shop:80"] {
        let mut command = curl();
        command.args(["--proxy", &pair.proxy(), "--fail", &format!("http://{host}/a?b=c")]);
        let output = output_of(pair.beside(command).await).await;
        assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n", "{host}: {output:?}");
    }
    let seen = app.seen();
    assert_eq!(seen.len(), 5);
    assert_eq!(seen[0].line, "GET /a?b=c HTTP/1.1");
    assert_eq!(seen[0].header("host"), "echo.shop");
    let certificate = seen[0].header("x-forwarded-client-cert");
    assert!(certificate.contains(&identity("client")), "{certificate}");
    assert!(app.connections() <= 2, "connections to the application are kept");
}

#[tokio::test]
async fn a_local_port_and_a_tunnel_reach_it_too() {
    only_on_loopback!("local ports and tunnels take the place of redirection");
    let app = App::fixed(200, "hello\n").await;
    let pair = Pair::start(app.address, "http").await;
    let mut direct = curl();
    direct.arg(format!("http://{}/direct", pair.port()));
    assert_eq!(output_of(direct).await.stdout, b"hello\n");
    let mut tunnel = curl();
    tunnel.args(["--proxytunnel", "--proxy", &pair.proxy(), "http://echo.shop/tunnel"]);
    let output = output_of(tunnel).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n", "{output:?}");
    // Host alone, without the absolute form that proxies are sent.
    let request = b"GET /host HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
    assert_eq!(exchange(pair.client.proxy, request).await.status(), 200);
    let lines: Vec<String> = app.seen().into_iter().map(|seen| seen.line).collect();
    assert_eq!(lines, ["GET /direct HTTP/1.1", "GET /tunnel HTTP/1.1", "GET /host HTTP/1.1"]);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let app = App::start(|seen| script(200, seen.line.split(' ').nth(1).unwrap_or(""))).await;
    let pair = Pair::start(app.address, "http").await;
    let mut requests = String::new();
    for path in ["/1", "/2", "/3"] {
        requests += &format!("POST {path} HTTP/1.1\r\nhost: echo.shop\r\ncontent-length: 4\r\n\r\nbody");
    }
    requests += "GET /4 HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
    let answer = exchange(pair.port(), requests.as_bytes()).await;
    assert_eq!(answer.statuses(), [200; 4]);
    let bodies: Vec<&str> = answer.text.split("\r\n\r\n").skip(1).map(|rest| &rest[..2]).collect();
    assert_eq!(bodies, ["/1", "/2", "/3", "/4"]);
    assert!(app.seen()[..3].iter().all(|seen| seen.body == b"body"));
}

#[tokio::test]
async fn chunks_trailers_and_continue_pass_both_ways() {
    let response = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                     3\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 5\r\n\r\n";
    let app = App::start(|_| response.to_vec()).await;
    let pair = Pair::start(app.address, "http").await;
    let mut stream = TcpStream::connect(pair.port()).await.expect("it listens");
    let head = "POST / HTTP/1.1\r\nhost: echo.shop\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\
                te: trailers\r\nconnection: close, te\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("it reads");
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 100"));
    stream.write_all(b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\n\r\n").await.expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("it answers");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    assert!(body.contains("abc") && body.contains("de"), "{text}");
    assert!(text.to_ascii_lowercase().ends_with("x-sum: 5\r\n\r\n"), "{text}");
    assert_eq!(app.seen()[0].body, b"hello world");
}

#[tokio::test]
async fn interim_responses_reach_the_client() {
    let response = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n\
                     HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let app = App::start(|_| response.to_vec()).await;
    let pair = Pair::start(app.address, "http").await;
    let request = b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
    let answer = exchange(pair.port(), request).await;
    assert_eq!(answer.statuses(), [103, 200], "{}", answer.text);
    assert_eq!(answer.header("link"), "</style.css>; rel=preload");
}

#[tokio::test]
async fn what_concerns_one_connection_goes_no_further() {
    let app = App::start(|_| {
        b"HTTP/1.1 200 OK\r\nconnection: x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=9\r\nx-end: 2\r\n\
          content-length: 0\r\n\r\n"
            .to_vec()
    })
    .await;
    let pair = Pair::start(app.address, "http").await;
    let request = b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close, x-secret\r\nx-secret: 1\r\n\
                    proxy-connection: keep-alive\r\nx-forwarded-client-cert: URI=spiffe://evil/x\r\nx-kept: 1\r\n\r\n";
    let answer = exchange(pair.port(), request).await;
    assert_eq!((answer.header("x-hop"), answer.header("x-end")), ("", "2"));
    let seen = &app.seen()[0];
    assert_eq!(
        (seen.header("x-secret"), seen.header("proxy-connection"), seen.header("x-kept")),
        ("", "", "1")
    );
    assert!(!seen.header("x-forwarded-client-cert").contains("evil"), "a client can't forge an identity");
}

#[tokio::test]
async fn bodies_stream_through_independent_programs() {
    let app = Program::python("http_server.py", &[]).await;
    let pair = Pair::start(app.address, "http").await;
    let mut command = python("http_client.py");
    command.args([&pair.proxy(), "http://echo.shop/", "100"]);
    let output = output_of(pair.beside(command).await).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{output:?}");
}

#[tokio::test]
async fn large_files_of_nginx_arrive_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let size = 64 << 20;
    let bytes: Vec<u8> =
        (0..size / 8u64).flat_map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()).collect();
    std::fs::write(folder.path().join("big"), &bytes).expect("the folder can be written");
    let nginx = Program::nginx(folder.path(), NGINX).await;
    let pair = Pair::start(nginx.address, "http").await;
    let target = folder.path().join("copy");
    let mut command = curl();
    command.args(["--proxy", &pair.proxy(), "--fail", "http://echo.shop/big", "--output"]).arg(&target);
    let output = output_of(pair.beside(command).await).await;
    assert!(output.status.success(), "{output:?}");
    assert!(std::fs::read(&target).expect("it was written") == bytes, "the file changed on its way");

    let mut range = curl();
    range.args(["--proxy", &pair.proxy(), "--range", "100-107", "http://echo.shop/big"]);
    assert_eq!(output_of(pair.beside(range).await).await.stdout, bytes[100..108]);
    let mut head = curl();
    head.args(["--proxy", &pair.proxy(), "--head", "http://echo.shop/big"]);
    let head = String::from_utf8_lossy(&output_of(pair.beside(head).await).await.stdout).to_ascii_lowercase();
    assert!(head.contains(&format!("content-length: {size}\r\n")), "{head}");
}

const NGINX: &str = "
  server { listen 127.0.0.1:@@PORT@@; root @@DIR@@; }
";

#[tokio::test]
async fn websockets_pass() {
    let app = Program::python("ws_server.py", &[]).await;
    let pair = Pair::start(app.address, "http").await;
    for address in pair.ways() {
        let mut command = python("ws_client.py");
        command.args([&address.to_string(), "echo.shop"]);
        let output = output_of(command).await;
        assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n", "{output:?}");
    }
}

//! What takes too long or stands still: who ends it, when, and what the client sees.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tulle_tests::{H2App, H2Client, LIMIT, NAMESPACE, exchange, read_head, read_to_end, wait_for};

use crate::Pair;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
const UPGRADE: &[u8] =
    b"GET /chat HTTP/1.1\r\nhost: echo.shop\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n";
const SWITCHED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n";

/// Puts a BackendTrafficPolicy for `echo` in force, and waits until the client's sidecar has it.
async fn policy(pair: &Pair, spec: &str, in_force: &str) {
    pair.mesh.manifest(
        "policy.yaml",
        &format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: BackendTrafficPolicy\nmetadata: {{name: echo, namespace: {NAMESPACE}}}\n\
             spec:\n  targetRefs: [{{kind: Service, name: echo}}]\n  {spec}\n"
        ),
    );
    let check = || async {
        let explain = format!("http://{}/explain?host=echo.shop:80", pair.client.admin);
        // Nothing is known before it is asked for.
        tulle_tests::fetch(&explain).await?;
        let (_, config) = tulle_tests::fetch(&format!("http://{}/config", pair.client.admin)).await?;
        if config.contains(in_force) { Ok(()) } else { Err(format!("{in_force} is not in {config}")) }
    };
    wait_for(LIMIT, check).await.unwrap_or_else(|error| panic!("{error}"));
}

/// An application that the test plays itself: it answers nothing that it is not told to.
async fn played() -> (TcpListener, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

async fn accept(listener: &TcpListener) -> TcpStream {
    timeout(LIMIT, listener.accept()).await.expect("in time").expect("a connection").0
}

/// Waits for the first count of a metric whose labels include `labels`.
async fn counted(pair: &Pair, name: &str, labels: &[(&str, &str)]) {
    let check = || async {
        let metrics = pair.client.metrics().await?;
        match metrics.sum(name, labels) {
            0.0 => Err(format!("{name} {labels:?} is not counted: {metrics:?}")),
            _ => Ok(()),
        }
    };
    wait_for(LIMIT, check).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn an_answer_that_stands_still_is_cut_and_one_that_moves_is_not() {
    let (listener, address) = played().await;
    let pair = Pair::start(address, "http").await;
    policy(&pair, "connection: {streamIdleTimeout: 5s}", "\"idle\":{").await;

    let mut client = TcpStream::connect(pair.port()).await.expect("it listens");
    client.write_all(GET).await.expect("it reads");
    let mut app = accept(&listener).await;
    read_head(&mut app).await;
    app.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n").await.expect("it reads");
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200"));
    // For longer than the limit in all, but never still for as long.
    let (moving, mut moved) = (Instant::now(), Instant::now());
    while moving.elapsed() < Duration::from_secs(7) {
        moved = Instant::now();
        app.write_all(b".").await.expect("it reads");
        assert_eq!(client.read_u8().await.expect("it moves"), b'.');
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(read_to_end(&mut client).await, "", "the connection ends, and with it the half body");
    assert!(moved.elapsed() >= Duration::from_secs(4), "after {:?}", moved.elapsed());
    counted(
        &pair,
        "http_client_request_duration_seconds_count",
        &[("error_type", "connection_read_timeout"), ("http_response_status_code", "200")],
    )
    .await;
    // The application learns of it, too.
    assert_eq!(read_to_end(&mut app).await, "");
}

#[tokio::test]
async fn a_request_on_which_nothing_moves_is_answered_by_whose_fault_it_is() {
    let (listener, address) = played().await;
    let pair = Pair::start(address, "http").await;
    policy(&pair, "connection: {streamIdleTimeout: 2s}", "\"idle\":{").await;

    // The application has the whole request, and says nothing.
    let answer = exchange(pair.port(), GET).await;
    assert_eq!(answer.status(), 504, "{}", answer.text);
    let status = answer.header("proxy-status");
    assert!(status.starts_with("tulle; error=http_response_timeout"), "{status}");
    assert!(status.contains("idle=2s"), "{status}");
    drop(accept(&listener).await);

    // The client does not send what it has announced.
    let half = b"POST / HTTP/1.1\r\nhost: echo.shop\r\ncontent-length: 10\r\n\r\nhalf";
    let answer = exchange(pair.port(), half).await;
    assert_eq!(answer.status(), 408, "{}", answer.text);
    let status = answer.header("proxy-status");
    assert!(status.starts_with("tulle; error=http_request_error"), "{status}");
}

#[tokio::test]
async fn a_stream_of_http2_that_stands_still_is_reset_and_its_neighbours_go_on() {
    let app = H2App::start("two").await;
    let pair = Pair::start(app.address, "kubernetes.io/h2c").await;
    policy(&pair, "connection: {streamIdleTimeout: 5s}", "\"idle\":{").await;
    let client = H2Client::connect(pair.port()).await;
    let mut still = client.call("/hold", &[]).await.expect("an answer");
    assert_eq!(still.next().await.expect("data").expect("data"), "held");
    // What only the client sends is movement as well.
    let mut talks = client.call("/hold", &[]).await.expect("an answer");
    assert_eq!(talks.next().await.expect("data").expect("data"), "held");
    let begun = Instant::now();
    let reset = tokio::spawn(async move { still.next().await });
    while begun.elapsed() < Duration::from_secs(8) {
        talks.send.send_data(bytes::Bytes::from_static(b"more"), false).expect("it is open");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let reset = reset.await.expect("no panic").expect("no end that looks like a good one");
    let reset = reset.expect_err("a reset");
    assert!(reset.is_reset(), "{reset}");
    assert_eq!(client.get("/", &[]).await.expect("an answer"), (200, "two".into()));
    let cancelled = || async {
        match app.count("cancelled") {
            0 => Err("the application has not learnt of it".to_owned()),
            count => Ok(count),
        }
    };
    assert_eq!(wait_for(LIMIT, cancelled).await, Ok(1), "{:?}", app.events());
    counted(
        &pair,
        "http_client_request_duration_seconds_count",
        &[("error_type", "connection_read_timeout")],
    )
    .await;
}

#[tokio::test]
async fn an_upgraded_connection_lives_as_long_as_its_route_says() {
    let (listener, address) = played().await;
    let pair = Pair::start(address, "http").await;
    let upgrade = async |to: std::net::SocketAddr| {
        let mut client = TcpStream::connect(to).await.expect("it listens");
        client.write_all(UPGRADE).await.expect("it reads");
        let mut app = accept(&listener).await;
        read_head(&mut app).await;
        app.write_all(SWITCHED).await.expect("it reads");
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 101"));
        (client, app)
    };
    let (mut before, mut app_before) = upgrade(pair.port()).await;
    policy(&pair, "connection: {streamIdleTimeout: 5s}", "\"idle\":{").await;
    // By its own port and through the forward proxy, which serves all destinations.
    for to in pair.ways() {
        let (mut client, mut app) = upgrade(to).await;
        client.write_all(b"ping").await.expect("it is open");
        let mut ping = [0; 4];
        app.read_exact(&mut ping).await.expect("it is open");
        assert_eq!(&ping, b"ping");
        assert_eq!(read_to_end(&mut client).await, "");
        assert_eq!(read_to_end(&mut app).await, "");
    }
    // A connection keeps the settings that it began with.
    app_before.write_all(b"pong").await.expect("it is open");
    let mut pong = [0; 4];
    before.read_exact(&mut pong).await.expect("it is open");
    assert_eq!(&pong, b"pong");
}

/// Of the listener: the cluster has the same setting, and may come before it.
const IDLE_TCP: &str = "\"backends\":[[\"outbound|80||echo.shop.svc.cluster.local\",1]],\"idleTimeout\":{";

#[tokio::test]
async fn a_tcp_connection_that_stands_still_is_reset() {
    let (listener, address) = played().await;
    let pair = Pair::start(address, "tcp").await;
    policy(&pair, "connection: {idleTimeout: 5s}", IDLE_TCP).await;
    let mut client = TcpStream::connect(pair.port()).await.expect("it listens");
    let mut app = accept(&listener).await;
    let (moving, mut moved) = (Instant::now(), Instant::now());
    while moving.elapsed() < Duration::from_secs(7) {
        moved = Instant::now();
        client.write_all(b".").await.expect("it is open");
        assert_eq!(app.read_u8().await.expect("it moves"), b'.');
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let end = timeout(LIMIT, client.read_u8()).await.expect("it ends");
    assert_eq!(
        end.expect_err("no end that looks like a good one").kind(),
        std::io::ErrorKind::ConnectionReset
    );
    assert!(moved.elapsed() >= Duration::from_secs(4), "after {:?}", moved.elapsed());
    let end = timeout(LIMIT, app.read_u8()).await.expect("the server's connection ends too");
    assert!(end.is_err());
    counted(&pair, "tulle_tcp_connection_failures_total", &[("direction", "outbound")]).await;
}

#[tokio::test]
async fn a_connection_that_is_kept_for_the_next_request_is_closed_when_none_comes() {
    let app = tulle_tests::App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    let connections = async || {
        let metrics = pair.client.metrics().await.expect("it answers");
        metrics.sum(
            "tulle_upstream_connections_total",
            &[("cluster", "outbound|80||echo.shop.svc.cluster.local")],
        )
    };
    policy(&pair, "connection: {idleTimeout: 1h}", "\"secs\":3600").await;
    for _ in 0..3 {
        assert_eq!(exchange(pair.port(), GET).await.status(), 200);
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    assert_eq!(connections().await, 1.0, "it is used again and again");
    policy(&pair, "connection: {idleTimeout: 200ms}", "\"nanos\":200000000").await;
    for used in [2.0, 3.0] {
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(exchange(pair.port(), GET).await.status(), 200);
        assert_eq!(connections().await, used, "the one before had idled for too long");
    }
}

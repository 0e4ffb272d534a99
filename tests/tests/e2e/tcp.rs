//! Raw TCP through the pair of sidecars.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tulle_cli::local::Sidecar;
use tulle_tests::{LIMIT, NAMESPACE, TestMesh, Workload, read_to_end, wait_for};

use crate::Pair;

/// A server that greets first, sends back what it gets, and ends with a word once the client has ended.
async fn greeter() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(b"220 ready\r\n").await;
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.write_all(b"221 bye\r\n").await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_half_closed_connection_still_gets_its_answer() {
    let pair = Pair::start(greeter().await, "tcp").await;
    let mut stream = TcpStream::connect(pair.port()).await.expect("it listens");
    stream.write_all(b"one\r\n").await.expect("it reads");
    stream.shutdown().await.expect("it is open");
    assert_eq!(read_to_end(&mut stream).await, "220 ready\r\none\r\n221 bye\r\n");
}

#[tokio::test]
async fn a_server_that_speaks_first_needs_no_annotation() {
    let mesh = TestMesh::start().await;
    let _server = mesh.workload(Workload::new("mail").app(greeter().await)).await;
    let client = mesh.workload(Workload::new("client").port("mail.shop:80")).await;
    let mut stream = TcpStream::connect(client.ports["mail.shop:80"]).await.expect("it listens");
    let mut greeting = [0; 11];
    timeout(LIMIT, stream.read_exact(&mut greeting)).await.expect("in time").expect("a greeting");
    assert_eq!(&greeting, b"220 ready\r\n");
    stream.write_all(b"MAIL\r\n").await.expect("it reads");
    stream.shutdown().await.expect("it is open");
    assert_eq!(read_to_end(&mut stream).await, "MAIL\r\n221 bye\r\n");
}

#[tokio::test]
async fn a_large_transfer_arrives_whole_in_both_directions() {
    let pair = Pair::start(greeter().await, "tcp").await;
    large_transfer(pair.port()).await;
    // Between TLS and a socket the bytes have to pass through the sidecar's own hands.
    assert_eq!(spliced(&pair.client).await, 0.0);
}

#[tokio::test]
async fn a_large_transfer_without_tls_goes_through_the_kernel() {
    let pair = Pair::start(greeter().await, "tcp").await;
    // In plaintext, which the port takes as well as mTLS.
    large_transfer(pair.server.inbound[0]).await;
    let counted = || async {
        // Only the first bytes, and the last, come too few at a time to be worth it.
        let spliced = spliced(&pair.server).await;
        if spliced > f64::from(LARGE) { Ok(()) } else { Err(format!("{spliced} bytes were spliced")) }
    };
    wait_for(LIMIT, counted).await.unwrap_or_else(|error| panic!("{error}"));
}

async fn spliced(sidecar: &Sidecar) -> f64 {
    sidecar.metrics().await.expect("it answers").sum("tulle_tcp_spliced_bytes_total", &[])
}

/// How many bytes a large transfer has, in each direction.
const LARGE: u32 = 32 << 20;

/// Sends many bytes through `address` to the greeter, and compares what comes back.
async fn large_transfer(address: std::net::SocketAddr) {
    let stream = TcpStream::connect(address).await.expect("it listens");
    let (mut reader, mut writer) = stream.into_split();
    let sent: Vec<u8> = (0..LARGE).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let copy = sent.clone();
    let send = tokio::spawn(async move {
        writer.write_all(&copy).await.expect("it reads");
        writer.shutdown().await.expect("it is open");
    });
    let mut got = Vec::new();
    timeout(LIMIT * 2, reader.read_to_end(&mut got)).await.expect("in time").expect("it answers");
    send.await.expect("it was sent");
    let (greeting, rest) = got.split_at(11);
    let (body, bye) = rest.split_at(rest.len() - 9);
    assert_eq!((greeting, bye), (&b"220 ready\r\n"[..], &b"221 bye\r\n"[..]));
    assert!(body == sent, "the bytes changed on their way");
}

/// A client and the server that it reached, with a word of each behind them.
async fn through(address: std::net::SocketAddr, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = TcpStream::connect(address).await.expect("it listens");
    client.write_all(b"a").await.expect("it reads");
    let (mut server, _) = timeout(LIMIT, listener.accept()).await.expect("in time").expect("a connection");
    assert_eq!(server.read_u8().await.expect("a byte"), b'a');
    server.write_all(b"b").await.expect("it reads");
    assert_eq!(client.read_u8().await.expect("a byte"), b'b');
    (client, server)
}

/// How the other end ended, after whatever it said.
async fn end(stream: &mut TcpStream) -> Result<(), ErrorKind> {
    let ended = timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await.expect("it ends in time");
    ended.map(drop).map_err(|error| error.kind())
}

fn reset(stream: TcpStream) {
    stream.set_zero_linger().expect("a socket");
    drop(stream);
}

#[tokio::test]
async fn a_reset_stays_a_reset_and_an_end_an_end_over_mtls_and_in_plaintext() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let pair = Pair::start(listener.local_addr().expect("it is bound"), "tcp").await;
    for address in [pair.port(), pair.server.inbound[0]] {
        let (client, mut server) = through(address, &listener).await;
        reset(client);
        assert_eq!(end(&mut server).await, Err(ErrorKind::ConnectionReset), "{address}");

        let (mut client, server) = through(address, &listener).await;
        reset(server);
        assert_eq!(end(&mut client).await, Err(ErrorKind::ConnectionReset), "{address}");

        let (client, mut server) = through(address, &listener).await;
        drop(client);
        assert_eq!(end(&mut server).await, Ok(()), "{address}");

        let (mut client, server) = through(address, &listener).await;
        drop(server);
        assert_eq!(end(&mut client).await, Ok(()), "{address}");

        // A reset after an orderly end of the other direction.
        let (mut client, mut server) = through(address, &listener).await;
        client.shutdown().await.expect("it is open");
        assert_eq!(end(&mut server).await, Ok(()), "{address}");
        server.write_all(b"half an answ").await.expect("it reads");
        let mut half = [0; 12];
        client.read_exact(&mut half).await.expect("half an answer");
        reset(server);
        assert_eq!(end(&mut client).await, Err(ErrorKind::ConnectionReset), "{address}");
    }
}

#[tokio::test]
async fn a_sender_that_gives_up_leaves_no_one_waiting() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let pair = Pair::start(listener.local_addr().expect("it is bound"), "tcp").await;
    for address in [pair.port(), pair.server.inbound[0]] {
        let (mut client, mut server) = through(address, &listener).await;
        let chunk = vec![7; 1 << 20];
        while let Ok(Ok(_)) = timeout(Duration::from_millis(300), client.write(&chunk)).await {}
        // Everything on the way is full.
        reset(client);
        assert_eq!(end(&mut server).await, Err(ErrorKind::ConnectionReset), "{address}");
    }
}

#[tokio::test]
async fn a_connection_on_which_nothing_moves_is_ended_and_counted() {
    // It accepts, and never says anything.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let accept = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    let pair = Pair::start_untold(address).await;
    pair.mesh.manifest(
        "idle.yaml",
        &format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: BackendTrafficPolicy\n\
             metadata: {{name: idle, namespace: {NAMESPACE}}}\nspec:\n  \
             targetRefs: [{{kind: Service, name: echo}}]\n  connection: {{idleTimeout: 1s}}\n"
        ),
    );
    for (said, series, labels) in [
        (&b"a"[..], "tulle_tcp_connection_duration_seconds_count", ("error_type", "connection_timeout")),
        (b"", "tulle_connections_refused_total", ("reason", "silent")),
    ] {
        let ended = || async {
            let mut client = TcpStream::connect(pair.port()).await.expect("it listens");
            client.write_all(said).await.expect("it reads");
            match timeout(Duration::from_secs(3), client.read_u8()).await {
                Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
                other => Err(format!("the timeout is not in force: {other:?}")),
            }
        };
        wait_for(LIMIT, ended).await.unwrap_or_else(|error| panic!("{error}"));
        let metrics = pair.client.metrics().await.expect("it answers");
        assert!(metrics.sum(series, &[labels]) >= 1.0, "{metrics:?}");
    }
    accept.abort();
}

#[tokio::test]
async fn a_slow_reader_holds_its_sender_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let pair = Pair::start(address, "tcp").await;
    let mut client = TcpStream::connect(pair.port()).await.expect("it listens");
    let (mut server, _) = timeout(LIMIT, listener.accept()).await.expect("in time").expect("a connection");
    // The server reads nothing: what the client can send ends with the buffers on the way.
    let chunk = vec![7; 1 << 20];
    let mut sent = 0;
    while let Ok(Ok(n)) = timeout(Duration::from_secs(1), client.write(&chunk)).await {
        sent += n;
        assert!(sent < 64 << 20, "the sidecars swallow whatever comes");
    }
    // The first connection may have been opened in vain: sidecars that speak late are taken for silent clients.
    while !timeout(LIMIT, server.peek(&mut [0])).await.expect("in time").is_ok_and(|said| said > 0) {
        (server, _) = timeout(LIMIT, listener.accept()).await.expect("in time").expect("a connection");
    }
    let mut got = vec![0; sent];
    timeout(LIMIT, server.read_exact(&mut got)).await.expect("in time").expect("all of it");
}

#[tokio::test]
async fn a_connection_to_nobody_is_closed() {
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("it is bound");
    let pair = Pair::start(free, "tcp").await;
    let mut stream = TcpStream::connect(pair.port()).await.expect("it listens");
    assert_eq!(read_to_end(&mut stream).await, "");
}

#[tokio::test]
async fn a_connection_too_many_is_closed_and_counted() {
    let pair = Pair::start(greeter().await, "tcp").await;
    pair.mesh.manifest(
        "policy.yaml",
        &format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: BackendTrafficPolicy\nmetadata: {{name: echo, namespace: {NAMESPACE}}}\n\
             spec:\n  targetRefs: [{{kind: Service, name: echo}}]\n  circuitBreaker: {{maxConnections: 1}}\n"
        ),
    );
    let greeted = async || {
        // A refusal may be a reset that overtakes the connection.
        let mut stream = TcpStream::connect(pair.port()).await.ok()?;
        let mut greeting = [0; 11];
        let read = timeout(LIMIT, stream.read_exact(&mut greeting)).await.expect("in time");
        read.ok().map(|_| stream)
    };
    // The limit comes to be in force while one is open.
    let mut held = greeted().await.expect("a greeting");
    let refused = || async {
        match greeted().await {
            Some(_) => Err("there is no limit yet".to_owned()),
            None => Ok(()),
        }
    };
    wait_for(LIMIT, refused).await.unwrap_or_else(|error| panic!("{error}"));
    let metrics = pair.client.metrics().await.expect("it answers");
    assert!(metrics.sum("tulle_upstream_overflows_total", &[]) >= 1.0, "{metrics:?}");
    held.write_all(b"still here\r\n").await.expect("it is open");
    held.shutdown().await.expect("it is open");
    assert_eq!(read_to_end(&mut held).await, "still here\r\n221 bye\r\n");
    let free = || async { greeted().await.map(drop).ok_or_else(|| "the place is not free again".to_owned()) };
    wait_for(LIMIT, free).await.unwrap_or_else(|error| panic!("{error}"));
}

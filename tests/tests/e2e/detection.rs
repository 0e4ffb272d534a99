//! What a connection carries, told by its first bytes, and what becomes of bytes that tell nothing.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tulle_cli::local::Sidecar;
use tulle_tests::{App, LIMIT, NAMESPACE, exchange, wait_for};

use crate::Pair;

/// As long as a client may take from its first byte to what can be told.
const PATIENCE: Duration = Duration::from_secs(10);

/// A pair of sidecars before a server of which nothing is told, that sends back what it gets, up to the end.
async fn echo() -> Pair {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
            });
        }
    });
    Pair::start_untold(address).await
}

/// Only mTLS is let in from now on.
async fn make_strict(pair: &Pair) {
    pair.mesh.manifest(
        "strict.yaml",
        &format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {{name: strict, namespace: {NAMESPACE}}}\n\
             spec:\n  targetRefs: [{{kind: Service, name: echo}}]\n  mtls: {{mode: Strict}}\n"
        ),
    );
    let strict = || async {
        let mut stream = TcpStream::connect(pair.server.inbound[0]).await.expect("it listens");
        stream.write_all(b"\0").await.expect("it reads");
        match timeout(Duration::from_secs(1), stream.read_u8()).await {
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            other => Err(format!("plaintext is let in: {other:?}")),
        }
    };
    wait_for(LIMIT, strict).await.unwrap_or_else(|error| panic!("{error}"));
}

async fn refused(sidecar: &Sidecar, reason: &str) -> f64 {
    let metrics = sidecar.metrics().await.expect("it answers");
    metrics.sum("tulle_connections_refused_total", &[("reason", reason)])
}

/// Sends `parts` one by one, ends, and says what comes back.
async fn echoed(address: SocketAddr, parts: impl Iterator<Item = &[u8]>) -> Vec<u8> {
    let stream = TcpStream::connect(address).await.expect("it listens");
    stream.set_nodelay(true).expect("a socket");
    let (mut reader, mut writer) = stream.into_split();
    for part in parts {
        writer.write_all(part).await.expect("it reads");
        tokio::task::yield_now().await;
    }
    writer.shutdown().await.expect("it is open");
    let mut got = Vec::new();
    timeout(LIMIT, reader.read_to_end(&mut got)).await.expect("it ends in time").expect("an orderly end");
    got
}

/// The ClientHello of a client that asks for `name`.
fn client_hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).expect("a host name");
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).expect("valid");
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes).expect("memory");
    }
    bytes
}

/// A ClientHello whose server name has `len` bytes, of which more than 255 are no host name.
fn client_hello_with_name_of(len: usize) -> Vec<u8> {
    let short = client_hello("x.example");
    let at = short.windows(9).position(|part| part == b"x.example").expect("it is in the hello");
    let name = [vec![b'x'; len - 8], b".example".to_vec()].concat();
    let mut bytes = [&short[..at], &name, &short[at + 9..]].concat();
    // Every length around it: the name, the list, the extension, all extensions, the message, the record.
    let more = len - 9;
    let mut lengthen = |at: usize| {
        let new = usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]])) + more;
        bytes[at..at + 2].copy_from_slice(&u16::try_from(new).expect("short").to_be_bytes());
    };
    lengthen(at - 2);
    lengthen(at - 5);
    lengthen(at - 7);
    let session = usize::from(short[43]);
    let suites = 44 + session;
    let methods = suites + 2 + usize::from(u16::from_be_bytes([short[suites], short[suites + 1]]));
    lengthen(methods + 1 + usize::from(short[methods]));
    lengthen(7);
    lengthen(3);
    bytes
}

#[tokio::test]
async fn bytes_arrive_as_they_were_whatever_they_look_like_and_however_they_are_cut() {
    let pair = echo().await;
    let hello = client_hello("a.example");
    for said in [
        &b"\0\x01\x02\xff garbage"[..],
        b"GET key\r\n",
        b"GET",
        b"PRI * HTTP/2.0\r\n\r\nSM",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc",
        &hello,
        &hello[..hello.len() / 2],
        &client_hello_with_name_of(300),
    ] {
        // Through both sidecars, and through the server's alone.
        for address in [pair.port(), pair.server.inbound[0]] {
            for size in [1, 3, 1000, said.len()] {
                let got = echoed(address, said.chunks(size)).await;
                assert!(got == said, "{:?} in parts of {size}", String::from_utf8_lossy(said));
            }
        }
    }
    for sidecar in [&pair.client, &pair.server] {
        let metrics = sidecar.metrics().await.expect("it answers");
        assert_eq!(metrics.sum("tulle_connections_refused_total", &[]), 0.0, "{metrics:?}");
    }
}

#[tokio::test]
async fn an_old_client_of_http_is_known_for_one() {
    let app = App::fixed(200, "old").await;
    let pair = Pair::start_untold(app.address).await;
    // Through both sidecars, and in plaintext through the server's alone.
    for address in [pair.port(), pair.server.inbound[0]] {
        let answer = exchange(address, b"GET /old HTTP/1.0\r\nhost: echo.shop\r\n\r\n").await;
        assert_eq!(answer.status(), 200, "{}", answer.text);
        assert!(answer.text.ends_with("old"), "{}", answer.text);
        let seen = app.seen().pop().expect("it got there");
        let has_id = seen.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("x-request-id"));
        assert!(has_id, "it was carried as bytes, not as a request: {seen:?}");
    }
}

#[tokio::test]
async fn http_is_found_where_nothing_is_told_of_it() {
    let app = App::fixed(200, "found").await;
    let pair = Pair::start_untold(app.address).await;
    let mut stream = TcpStream::connect(pair.port()).await.expect("it listens");
    stream.set_nodelay(true).expect("a socket");
    for byte in b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n" {
        stream.write_all(&[*byte]).await.expect("it reads");
        tokio::task::yield_now().await;
    }
    let answer = tulle_tests::read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("found"), "{answer}");
    let metrics = pair.server.metrics().await.expect("it answers");
    assert_eq!(metrics.sum("http_server_request_duration_seconds_count", &[]), 1.0, "{metrics:?}");
}

#[tokio::test]
async fn a_client_that_speaks_at_once_opens_nothing_in_vain() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start_untold(app.address).await;
    for _ in 0..50 {
        let get = b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
        assert_eq!(exchange(pair.port(), get).await.status(), 200);
    }
    let metrics = pair.client.metrics().await.expect("it answers");
    let races = metrics.sum("tulle_detection_races_total", &[]);
    assert!(races <= 10.0, "{races} of 50 clients were taken for silent");
}

#[tokio::test]
async fn a_client_that_takes_its_time_is_served_as_what_it_turns_out_to_be() {
    let app = App::fixed(200, "late").await;
    let pair = Pair::start_untold(app.address).await;
    let mut stream = TcpStream::connect(pair.port()).await.expect("it listens");
    let raced = || async {
        // The application of HTTP says nothing first; its connection waits for somebody to speak.
        if app.connections() > 0 { Ok(()) } else { Err("nothing was opened".to_owned()) }
    };
    wait_for(LIMIT, raced).await.unwrap_or_else(|error| panic!("{error}"));
    let get = b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
    stream.write_all(get).await.expect("it reads");
    let answer = tulle_tests::read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("late"), "{answer}");
    let metrics = pair.client.metrics().await.expect("it answers");
    assert_eq!(metrics.sum("tulle_detection_races_total", &[("outcome", "unused")]), 1.0, "{metrics:?}");
    assert_eq!(metrics.sum("http_client_request_duration_seconds_count", &[]), 1.0, "{metrics:?}");
}

#[tokio::test]
async fn what_was_opened_in_vain_is_closed_while_its_client_stays() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let pair = Pair::start_untold(listener.local_addr().expect("it is bound")).await;
    let mut client = TcpStream::connect(pair.port()).await.expect("it listens");
    let (mut vain, _) = timeout(LIMIT, listener.accept()).await.expect("in time").expect("a connection");
    client.write_all(b"GET / HTTP/1.1\r\nhost: echo.shop\r\n\r\n").await.expect("it reads");
    // An application of HTTP, which answers on the connection that the request comes on.
    let app = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                tulle_tests::read_head(&mut stream).await;
                let _ = stream.write_all(&tulle_tests::script(200, "")).await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    });
    let head = tulle_tests::read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let ended = timeout(LIMIT, vain.read(&mut [0])).await.expect("it ends in time");
    assert!(matches!(ended, Ok(0) | Err(_)), "nothing is said on it");
    app.abort();
}

#[tokio::test]
async fn garbage_at_a_port_of_mtls_is_reset_at_once_and_counted() {
    let pair = echo().await;
    make_strict(&pair).await;
    let address = pair.server.inbound[0];
    for (said, reason) in [
        (&b"\0\x01\x02 garbage"[..], "no_chain"),
        (b"GET / HTTP/1.1\r\n\r\n", "no_chain"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "no_chain"),
        (&client_hello_with_name_of(300), "handshake"),
        (&client_hello("a.example"), "handshake"),
    ] {
        let before = refused(&pair.server, reason).await;
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(said).await.expect("it reads");
        // It need not read what it is told instead.
        stream.shutdown().await.expect("it is open");
        let _ = timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await.expect("it ends");
        let counted = || async {
            let count = refused(&pair.server, reason).await - before;
            if count == 1.0 { Ok(()) } else { Err(format!("{count} more for {reason}")) }
        };
        wait_for(LIMIT, counted).await.unwrap_or_else(|error| panic!("{error}"));
    }
    // Who belongs there is still let in.
    assert_eq!(echoed(pair.port(), [&b"hello"[..]].into_iter()).await, b"hello");
}

#[tokio::test]
async fn clients_that_never_finish_or_never_speak_have_a_limit_of_time_and_cost_little() {
    const SILENT: u32 = 500;
    let pair = echo().await;
    make_strict(&pair).await;
    let address = pair.server.inbound[0];
    let refusals =
        || async { [refused(&pair.server, "silent").await, refused(&pair.server, "no_chain").await] };
    let before = (refusals().await, resident(&pair.server));
    let hello = client_hello("a.example");
    let begun = Instant::now();
    let mut clients = Vec::new();
    for index in 0..SILENT + 4 {
        let mut client = TcpStream::connect(address).await.expect("it listens");
        let said = match index {
            0 => &hello[..hello.len() / 2],
            1 => b"PRI * HTTP/2.0\r\n",
            2 => b"GET / HT",
            3 => b"\x16",
            _ => b"",
        };
        client.write_all(said).await.expect("it reads");
        clients.push(client);
    }
    // Meanwhile who belongs there is served.
    assert_eq!(echoed(pair.port(), [&b"hello"[..]].into_iter()).await, b"hello");
    let grown = resident(&pair.server).saturating_sub(before.1);
    assert!(grown < u64::from(SILENT) * 20_000, "{grown} bytes for {SILENT} silent clients");
    for client in &mut clients {
        let ended = timeout(PATIENCE + LIMIT, client.read_u8()).await.expect("it ends in time");
        let ended = ended.expect_err("nothing is said to it").kind();
        assert!(matches!(ended, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{ended}");
    }
    assert!(begun.elapsed() >= PATIENCE, "they were given {:?}", begun.elapsed());
    // Where only TLS is let in, two are known not to be by their first byte.
    let [silent, no_chain] = refusals().await;
    assert_eq!((silent - before.0[0], no_chain - before.0[1]), (f64::from(SILENT + 2), 2.0));
}

/// The resident memory of a sidecar, in bytes.
fn resident(sidecar: &Sidecar) -> u64 {
    let path = format!("/proc/{}/status", sidecar.process.id().expect("it runs"));
    let status = std::fs::read_to_string(path).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells it");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

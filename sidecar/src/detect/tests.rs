use std::sync::Arc;

use proptest::prelude::*;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

#[test]
fn http_is_known_by_its_whole_request_line() {
    for (bytes, expected) in [
        (&b"GET / HTTP/1.1\r\n"[..], Some(Spoken::Http1)),
        (b"GET / HTTP/1.0\n", Some(Spoken::Http10)),
        (b"GET / HTTP/1.7\r\n", Some(Spoken::Http10)),
        (b"GET / HTTP/1.\r\n", Some(Spoken::Other)),
        (b"PROPFIND /a HTTP/1.1\r\nHost: x", Some(Spoken::Http1)),
        (b"GET key\r\n", Some(Spoken::Other)),
        (b"SET a b\r\n", Some(Spoken::Other)),
        (b"get / HTTP/1.1\r\n", Some(Spoken::Other)),
        (b"GET", None),
        (b"GET / HTTP/1.1", None),
        (b" GET / HTTP/1.1\r\n", Some(Spoken::Other)),
        (b"HTTP/1.1\r\n", Some(Spoken::Other)),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0", Some(Spoken::Http2)),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", None),
        (b"P", None),
        (b"PRINT it\n", Some(Spoken::Other)),
        (b"PRI * HTTP/2.0\r\nHost: a", Some(Spoken::Other)),
        (b"\0\0\0\x08", Some(Spoken::Other)),
        (b"\x16\x03", None),
        (b"\x16\x02", Some(Spoken::Other)),
        (b"\x16\x03\x01\0\0", Some(Spoken::Other)),
        (b"\x16\x03\x01\0\x05\x02", Some(Spoken::Other)),
    ] {
        assert_eq!(tell(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn an_endless_line_is_decided_at_a_limit() {
    let mut line = b"GET /".to_vec();
    line.resize(LONGEST_LINE, b'a');
    assert_eq!(tell(&line), Some(Spoken::Http1), "to be answered with 414");
    line[..5].copy_from_slice(b"FOO /");
    assert_eq!(tell(&line), Some(Spoken::Other));
    assert_eq!(tell(&[b'A'; LONGEST_METHOD + 1]), Some(Spoken::Other));
    // Half of a ClientHello that announces more than is ever read.
    let mut hello = vec![0x16, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
    while hello.len() < MOST {
        hello.resize((hello.len() / (5 + 0x4000) + 1) * (5 + 0x4000), 0);
        hello.extend_from_slice(&[0x16, 3, 1, 0x40, 0]);
    }
    assert_eq!(tell(&hello), Some(Spoken::Other));
}

#[test]
fn a_real_client_hello_gives_name_and_protocols_however_it_is_cut() {
    let bytes = client_hello("outbound_.80_._.cart.shop", &["h2", "http/1.1"]);
    let expected = ClientHello {
        server_name: Some("outbound_.80_._.cart.shop".into()),
        alpn: vec!["h2".into(), "http/1.1".into()],
    };
    for end in 0..bytes.len() {
        assert_eq!(tell(&bytes[..end]), None, "{end} of {} bytes", bytes.len());
    }
    assert_eq!(tell(&bytes), Some(Spoken::Tls(expected.clone())));

    for size in [1, 3, 100] {
        let cut = cut_into_records(&bytes, size);
        assert_eq!(tell(&cut), Some(Spoken::Tls(expected.clone())), "records of {size} bytes");
    }
}

#[test]
fn a_server_name_that_is_no_host_name_is_left_out() {
    let mut bytes = client_hello("cart.shop", &[]);
    let at = bytes.windows(9).position(|part| part == b"cart.shop").expect("it is in the hello");
    bytes[at + 4] = b'/';
    assert_eq!(tell(&bytes), Some(Spoken::Tls(ClientHello::default())));
}

#[tokio::test]
async fn detection_goes_on_after_a_pause_and_loses_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
    let (mut socket, _) = listener.accept().await.expect("a client");
    let mut detector = Detector::default();
    client.set_nodelay(true).expect("a socket");
    let text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for byte in &text[..10] {
        client.write_all(&[*byte]).await.expect("open");
        let before = detector.read.len();
        while detector.read.len() == before {
            // Given up again and again, as by a deadline.
            tokio::select! { biased;
                _ = detector.detect(&mut socket) => panic!("it is not clear yet"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    client.write_all(&text[10..]).await.expect("open");
    client.shutdown().await.expect("open");
    assert_eq!(detector.detect(&mut socket).await.expect("open"), Spoken::Http1);
    let mut all = Vec::new();
    detector.into_stream(socket).read_to_end(&mut all).await.expect("open");
    assert_eq!(all, text);
}

#[test]
fn a_client_hello_byte_by_byte_is_read_a_few_times_and_not_with_each_byte() {
    for size in [1, 7, 16_000] {
        let bytes = cut_into_records(&client_hello("cart.shop", &["h2"]), size);
        let (mut wanted, mut looks) = (0, 0);
        for end in 1..=bytes.len() {
            if end >= wanted {
                looks += 1;
                if let Err(More(more)) = classify(&bytes[..end], end - 1) {
                    wanted = more;
                }
            }
        }
        assert!(looks < 100, "{looks} times for {} bytes in records of {size}", bytes.len());
    }
}

#[tokio::test]
async fn what_makes_no_difference_is_not_waited_for() {
    let hello = client_hello("cart.shop", &["h2"]);
    let request = b"GET / HTTP/1.1\r\n";
    for ((tls, http), said, expected) in [
        ((true, false), &b"G"[..], Some(Spoken::Other)),
        ((true, false), b"PRI * HTTP/2.0\r\n\r\n", Some(Spoken::Other)),
        ((true, false), request, Some(Spoken::Other)),
        ((true, false), &hello[..5], None),
        ((true, false), &hello, tell(&hello)),
        ((false, true), &hello[..1], Some(Spoken::Other)),
        ((false, true), &hello, Some(Spoken::Other)),
        ((false, true), b"G", None),
        ((false, true), request, Some(Spoken::Http1)),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
        let (mut socket, _) = listener.accept().await.expect("a client");
        client.write_all(said).await.expect("open");
        let mut detector = Detector::looking_for(tls, http);
        let Some(expected) = expected else {
            let wait = tokio::time::timeout(Duration::from_millis(20), detector.detect(&mut socket)).await;
            assert!(wait.is_err(), "{} tells nothing yet", said.escape_ascii());
            continue;
        };
        let told = tokio::time::timeout(Duration::from_secs(60), detector.detect(&mut socket)).await;
        assert_eq!(told.expect("it is clear").expect("open"), expected, "{}", said.escape_ascii());
    }
}

#[tokio::test]
async fn a_silent_client_costs_no_buffer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let _client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
    let (mut socket, _) = listener.accept().await.expect("a client");
    let mut detector = Detector::default();
    let wait = tokio::time::timeout(Duration::from_millis(20), detector.detect(&mut socket)).await;
    assert!(wait.is_err());
    assert_eq!(detector.read.capacity(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_early_is_told_apart_from_one_that_says_nothing() {
    for (said, expected) in
        [(&b""[..], Spoken::Nothing), (b"GE", Spoken::Other), (b"\x16\x03", Spoken::Other)]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
        let (mut socket, _) = listener.accept().await.expect("a client");
        client.write_all(said).await.expect("open");
        client.shutdown().await.expect("open");
        assert_eq!(Detector::default().detect(&mut socket).await.expect("open"), expected);
    }
}

proptest! {
    #[test]
    fn no_bytes_cause_a_panic(start in prop::sample::select(vec![0x16u8, b'G', b'P', 0]), rest: Vec<u8>) {
        let mut bytes = vec![start];
        bytes.extend(&rest);
        tell(&bytes);
        let mut hello = client_hello("a.b", &["h2"]);
        for (at, byte) in rest.iter().enumerate() {
            let place = 5 + (at * 131 + usize::from(*byte)) % (hello.len() - 5);
            hello[place] ^= byte;
        }
        tell(&hello);
    }

    #[test]
    fn however_it_is_cut_it_is_told_the_same(said in said(), cuts in prop::collection::vec(0..2048usize, 0..6)) {
        let (bytes, expected) = said;
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % bytes.len()).collect();
        cuts.sort_unstable();
        cuts.push(bytes.len());
        let (mut seen, mut wanted, mut told) = (0, 0, None);
        for end in cuts {
            if end < wanted {
                continue;
            }
            match classify(&bytes[..end], seen) {
                Ok(spoken) => {
                    told = Some(spoken);
                    break;
                }
                Err(More(more)) => {
                    prop_assert!(more > end && more <= bytes.len(), "{more} are wanted after {end} of {}", bytes.len());
                    (seen, wanted) = (end, more);
                }
            }
        }
        prop_assert_eq!(told, Some(expected));
    }
}

/// What a client may say, and what that is.
fn said() -> impl Strategy<Value = (Vec<u8>, Spoken)> {
    prop_oneof![
        ("[A-Z]{1,10}", "/[ -~]{0,300}").prop_filter_map("not the preface", |(method, path)| {
            let line = format!("{method} {path} HTTP/1.1\r\n");
            (method != "PRI").then(|| (line.into_bytes(), Spoken::Http1))
        }),
        ("[A-Z]{1,10}", "[a-z]{1,300}")
            .prop_map(|(command, key)| (format!("{command} {key}\r\n").into_bytes(), Spoken::Other)),
        Just((PREFACE.to_vec(), Spoken::Http2)),
        (16..PREFACE.len()).prop_map(|cut| {
            let mut bytes = PREFACE[..cut].to_vec();
            bytes.push(b'x');
            (bytes, Spoken::Other)
        }),
        ("[a-z]{1,60}\\.[a-z]{2,5}", 1..200usize).prop_map(|(name, size)| {
            let bytes = cut_into_records(&client_hello(&name, &["h2"]), size);
            (bytes, Spoken::Tls(ClientHello { server_name: Some(name), alpn: vec!["h2".into()] }))
        }),
    ]
}

fn tell(bytes: &[u8]) -> Option<Spoken> {
    classify(bytes, 0).ok()
}

/// The same handshake message in records of `size` bytes.
fn cut_into_records(hello: &[u8], size: usize) -> Vec<u8> {
    let records = hello[5..].chunks(size).flat_map(|part| {
        let len = u16::try_from(part.len()).expect("short").to_be_bytes();
        [&[0x16, 3, 1][..], &len, part].concat()
    });
    records.collect()
}

fn client_hello(name: &str, alpn: &[&str]) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).expect("a host name");
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).expect("valid");
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes).expect("memory");
    }
    bytes
}

use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::http::HeaderMap;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::config::HttpCheck;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// An application that answers each connection with bytes, and remembers the heads that it got.
struct App {
    port: NonZeroU16,
    connections: Arc<AtomicUsize>,
    heads: Arc<std::sync::Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl App {
    /// `answer` makes an answer of a head; with `hold` the connection then stays open.
    async fn start(answer: impl Fn(&str) -> Vec<u8> + Send + 'static, hold: bool) -> Self {
        let (listener, port) = listen().await;
        let connections = Arc::new(AtomicUsize::new(0));
        let heads: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
        let (count, log) = (Arc::clone(&connections), Arc::clone(&heads));
        let task = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let head = head(&mut stream).await;
                // Who reads no more of it is right.
                let _ = stream.write_all(&answer(&head)).await;
                log.lock().expect("no test thread panics with it").push(head);
                if hold {
                    held.push(stream);
                }
            }
        });
        Self { port, connections, heads, task }
    }

    async fn answering(answer: &'static str) -> Self {
        Self::start(move |_| answer.into(), false).await
    }

    fn http(&self, target: &str) -> Check {
        http(self.port, target, false)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("no test thread panics with it").clone()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen() -> (TcpListener, NonZeroU16) {
    let listener = TcpListener::bind((LOCALHOST, 0)).await.expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    (listener, NonZeroU16::new(port).expect("a bound port"))
}

async fn head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).expect("text")
}

fn http(port: NonZeroU16, target: &str, tls: bool) -> Check {
    let target = target.parse().expect("a path");
    Check::Http(HttpCheck { port, target, tls, headers: HeaderMap::new() })
}

async fn asked(check: Check) -> (u16, String) {
    asked_within(check, Duration::from_secs(20)).await
}

async fn asked_within(check: Check, timeout: Duration) -> (u16, String) {
    let probes = Probes::new(&[Probe { name: "app".into(), check, timeout }], LOCALHOST);
    let verdict = probes.ask("app").await.expect("there is one");
    (verdict.status.as_u16(), verdict.reason)
}

#[tokio::test]
async fn the_application_s_own_status_decides() {
    for (answer, verdict) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200),
        ("HTTP/1.0 204 No Content\r\n\r\n", 200),
        ("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\nuntil the end", 200),
        ("HTTP/1.1 304 Not Modified\r\n\r\n", 200),
        ("HTTP/1.1 302 Found\r\n\r\n", 200),
        ("HTTP/1.1 302 Found\r\nlocation: http://elsewhere.example/\r\n\r\n", 200),
        ("HTTP/1.1 404 Not Found\r\n\r\n", 404),
        ("HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", 500),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", 503),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", 503),
        ("HTTP/1.1 302 Found\r\nlocation: http://[\r\n\r\n", 503),
        ("220 a greeting\r\n", 503),
        ("", 503),
    ] {
        let app = App::answering(answer).await;
        let (status, reason) = asked(app.http("/")).await;
        assert_eq!(status, verdict, "{answer:?}: {reason}");
    }
    let (listener, port) = listen().await;
    drop(listener);
    let (status, reason) = asked(http(port, "/", false)).await;
    assert_eq!(status, 503);
    assert!(reason.contains(&format!("127.0.0.1:{port}")) && reason.contains("refused"), "{reason}");
}

#[tokio::test]
async fn the_request_says_what_is_declared() {
    let app = App::answering("HTTP/1.1 200 OK\r\n\r\n").await;
    asked(app.http("/ready?full=1&x=%2F")).await;
    let mut headers = HeaderMap::new();
    for (name, value) in
        [("host", "web.example"), ("x-key", "a"), ("user-agent", "mine"), ("connection", "x-key")]
    {
        headers.append(name, value.parse().expect("a value"));
    }
    headers.append("x-key", "b".parse().expect("a value"));
    let target = "/".parse().expect("a path");
    asked(Check::Http(HttpCheck { port: app.port, target, tls: false, headers })).await;
    let own = format!(
        "GET /ready?full=1&x=%2F HTTP/1.1\r\nhost: 127.0.0.1:{}\r\nuser-agent: kube-probe/tulle-{}\r\naccept: */*\r\n\
         connection: close\r\n\r\n",
        app.port,
        env!("CARGO_PKG_VERSION")
    );
    let given = "GET / HTTP/1.1\r\naccept: */*\r\nconnection: close\r\nhost: web.example\r\nx-key: a\r\nx-key: b\r\n\
                 user-agent: mine\r\n\r\n";
    assert_eq!(app.heads(), [own.as_str(), given]);
}

#[tokio::test]
async fn redirects_at_the_application_lead_on_and_end_somewhere() {
    let well = App::answering("HTTP/1.1 200 OK\r\n\r\n").await;
    let ill = App::answering("HTTP/1.1 500 X\r\n\r\n").await;
    for (target, verdict) in [(&well, 200), (&ill, 500)] {
        let location = format!("http://127.0.0.1:{}/there?x", target.port);
        let app = App::start(
            move |_| format!("HTTP/1.1 307 X\r\nlocation: {location}\r\n\r\n").into_bytes(),
            false,
        );
        let (status, reason) = asked(app.await.http("/")).await;
        assert_eq!(status, verdict, "{reason}");
        assert!(target.heads()[0].starts_with("GET /there?x HTTP/1.1"));
    }
    let circle = App::answering("HTTP/1.1 301 X\r\nlocation: /\r\n\r\n").await;
    let (status, reason) = asked(circle.http("/")).await;
    assert_eq!((status, circle.connections.load(Ordering::Relaxed)), (503, 11), "{reason}");
}

#[tokio::test]
async fn an_answer_without_end_costs_little() {
    const HUGE: usize = 64 << 20;
    let huge =
        |start: &'static str| App::start(move |_| [start.as_bytes(), &vec![b'x'; HUGE]].concat(), true);
    let body = huge("HTTP/1.1 200 OK\r\n\r\n").await;
    assert_eq!(asked(body.http("/")).await.0, 200, "a body is not waited for");
    let header = huge("HTTP/1.1 200 OK\r\nx: ").await;
    assert_eq!(asked(header.http("/")).await, (503, "a response head that is too large".into()));
}

#[tokio::test]
async fn who_does_not_answer_in_time_fails() {
    let limit = Duration::from_millis(50);
    for answer in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n"] {
        let app = App::start(move |_| answer.into(), true).await;
        let verdict = asked_within(app.http("/"), limit).await;
        assert_eq!(verdict, (503, "no answer within 50ms".into()), "{answer:?}");
    }
    let silent = App::start(|_| Vec::new(), true).await;
    let grpc = asked_within(Check::Grpc(silent.port, String::new()), limit).await;
    assert_eq!(grpc, (503, "no answer within 50ms".into()));
}

#[tokio::test]
async fn tcp_asks_whether_the_application_listens() {
    let (listener, port) = listen().await;
    assert_eq!(asked(Check::Tcp(port)).await.0, 200);
    drop(listener);
    let (status, reason) = asked(Check::Tcp(port)).await;
    assert!(status == 503 && reason.contains("refused"), "{status} {reason}");
}

#[tokio::test]
async fn who_speaks_no_grpc_fails_its_probe() {
    let app = App::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(asked(Check::Grpc(app.port, "shop.Cart".into())).await.0, 503);
}

#[tokio::test]
async fn https_takes_any_certificate_of_either_version() {
    let key = rcgen::generate_simple_self_signed(["other.example".into()]).expect("a certificate");
    for version in [&TLS12, &TLS13] {
        let (listener, port) = listen().await;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let config = rustls::ServerConfig::builder_with_provider(provider.into())
            .with_protocol_versions(&[version])
            .expect("it has suites")
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                key.signing_key.serialize_der().try_into().expect("a key"),
            );
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config.expect("a certificate and its key")));
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a client");
            let mut stream = acceptor.accept(stream).await.expect("a handshake");
            head(&mut stream).await;
            say(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        });
        let (status, reason) = asked(http(port, "/", true)).await;
        assert_eq!(status, 200, "{version:?}: {reason}");
        server.await.expect("it answers");
    }
    let (listener, port) = listen().await;
    let plain = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        say(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        stream
    });
    let (status, reason) = asked(http(port, "/", true)).await;
    plain.await.expect("it answers");
    assert!(status == 503 && reason.contains("TLS"), "{status} {reason}");
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) {
    stream.write_all(bytes).await.expect("the client is there");
    stream.flush().await.expect("the client is there");
}

#[tokio::test]
async fn however_many_ask_the_application_is_asked_once() {
    let (listener, port) = listen().await;
    let probe = Probe { name: "app".into(), check: http(port, "/", false), timeout: Duration::from_secs(20) };
    let probes = Arc::new(Probes::new(&[probe], LOCALHOST));
    assert_eq!(probes.ask("other").await, None);
    let asking: Vec<_> = (0..100)
        .map(|_| {
            let probes = Arc::clone(&probes);
            tokio::spawn(async move { probes.ask("app").await.expect("there is one") })
        })
        .collect();
    let (mut stream, _) = listener.accept().await.expect("a client");
    // Who has hung up meanwhile takes nothing from the others.
    asking[0].abort();
    head(&mut stream).await;
    say(&mut stream, b"HTTP/1.1 418 X\r\ncontent-length: 0\r\n\r\n").await;
    let mut answered = 0;
    for asked in asking {
        let Ok(verdict) = asked.await else { continue };
        assert_eq!(verdict.status, StatusCode::IM_A_TEAPOT);
        answered += 1;
    }
    assert_eq!(answered, 99);
    // And the next who asks later gets news.
    tokio::time::sleep(REUSE).await;
    let (news, client) = tokio::join!(probes.ask("app"), async {
        let (mut stream, _) = listener.accept().await.expect("nobody else has connected");
        head(&mut stream).await;
        say(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    });
    let () = client;
    assert_eq!(news.expect("there is one").status, StatusCode::OK);
}

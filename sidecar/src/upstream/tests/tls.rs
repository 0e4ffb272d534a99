//! Connections over mesh TLS, and what a new certificate means for them.

use std::cell::{Cell, OnceCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tulle_mesh::model::DownstreamTls;

use crate::http::body::Body;
use crate::http::server::testing::{Serve, local, ok, options};
use crate::http::server::{Interim, serve_http1, serve_http2};
use crate::io::{Prefixed, Stream};
use crate::tls::testing::Authority;
use crate::tls::{Alpn, Material, accept};
use crate::upstream::testing::{Upstream, post};
use crate::upstream::{ConnectError, HttpVersion, SendError, SendOptions, connect};
use crate::worker::drain::{Drain, Phase};

const WEB: &str = "spiffe://mesh.test/ns/shop/sa/web";
const CART: &str = "spiffe://mesh.test/ns/shop/sa/cart";

/// An echo behind mesh TLS, in whichever HTTP is agreed on.
async fn echo(material: Arc<Material>) -> SocketAddr {
    speaking(material, &["h2", "http/1.1"]).await
}

/// The same in what is agreed on of `alpn`.
async fn speaking(material: Arc<Material>, alpn: &'static [&'static str]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::task::spawn_local(async move {
        loop {
            let (socket, client) = listener.accept().await.expect("listening");
            let material = Arc::clone(&material);
            tokio::task::spawn_local(async move {
                let tls = DownstreamTls {
                    require_client_certificate: true,
                    alpn: alpn.iter().map(|id| (*id).into()).collect(),
                };
                let socket = Prefixed::new(Bytes::new(), socket);
                let Ok(accepted) = accept(socket, &material, &tls, client).await else { return };
                let stream = Stream::TlsServer(Box::new(accepted.stream));
                let handler = Serve(|request: Request<Body>, _: Interim| async { ok(request.into_body()) });
                let (options, drain) = (options(), Drain::default());
                match accepted.alpn {
                    Some(Alpn::Http2) => serve_http2(stream, &handler, &options, &drain).await,
                    _ => serve_http1(stream, &handler, &options, &drain).await,
                }
            });
        }
    });
    address
}

/// Sends a request with `material`; says who answered.
async fn send(upstream: &Upstream, material: Option<&Arc<Material>>) -> Result<String, SendError> {
    let proven = OnceCell::new();
    let options = SendOptions {
        cluster: &upstream.cluster,
        tls: material,
        version: upstream.version,
        interim: &Interim::default(),
        proven: &proven,
    };
    let answer = Box::pin(upstream.pools.send(&upstream.endpoint, post("hello"), options)).await?;
    let body = answer.response.into_body().collect().await.expect("whole").to_bytes();
    assert_eq!(body, "hello");
    Ok(proven.get().expect("an identity").to_string())
}

#[tokio::test]
async fn connections_are_shared_under_one_certificate_only() {
    local(async {
        let ca = Authority::new("root");
        let address = echo(ca.material(CART)).await;
        for version in [HttpVersion::Http1, HttpVersion::Http2] {
            let upstream = Upstream::meshed(address, version, CART);
            let connections = &upstream.cluster.state.series.connections;
            let (first, second) = (ca.material(WEB), ca.material(WEB));
            for (material, count) in [(&first, 1), (&first, 1), (&second, 2), (&second, 2), (&first, 3)] {
                assert_eq!(send(&upstream, Some(material)).await.expect("an answer"), CART);
                assert_eq!(connections.value(), count, "{version:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn nothing_is_sent_to_another_or_without_a_certificate() {
    local(async {
        let ca = Authority::new("root");
        let address = echo(ca.material("spiffe://mesh.test/ns/shop/sa/stock")).await;
        let web = ca.material(WEB);
        for version in [HttpVersion::Http1, HttpVersion::Http2] {
            let upstream = Upstream::meshed(address, version, CART);
            let result = send(&upstream, Some(&web)).await;
            assert!(matches!(result, Err(SendError::Connect(ConnectError::Identity { .. }))), "{result:?}");
            let result = send(&upstream, None).await;
            assert!(matches!(result, Err(SendError::Connect(ConnectError::NoCertificate))), "{result:?}");
            assert_eq!(upstream.cluster.state.series.tls_failures.value(), 1);
        }
    })
    .await;
}

#[tokio::test]
async fn a_drain_closes_an_idle_connection_with_the_proof_that_nothing_was_processed() {
    local(Box::pin(async {
        let ca = Authority::new("root");
        let (web, cart) = (ca.material(WEB), ca.material(CART));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (drain, handled) = (Rc::new(Drain::default()), Rc::new(Cell::new(0)));
        let (draining, count) = (Rc::clone(&drain), Rc::clone(&handled));
        tokio::task::spawn_local(async move {
            let (socket, client) = listener.accept().await.expect("listening");
            let tls = DownstreamTls { require_client_certificate: true, alpn: Vec::new() };
            let accepted = accept(Prefixed::new(Bytes::new(), socket), &cart, &tls, client).await;
            let stream = Stream::TlsServer(Box::new(accepted.expect("a member").stream));
            let handler = Serve(|_: Request<Body>, _: Interim| async {
                count.set(count.get() + 1);
                ok(Body::Empty)
            });
            serve_http1(stream, &handler, &options(), &draining).await;
        });
        let upstream = Upstream::meshed(address, HttpVersion::Http1, CART);
        let connected = connect(&upstream.cluster, &upstream.endpoint, Some(&web), None).await;
        let mut stream = connected.unwrap_or_else(|error| panic!("{error}")).stream;
        let post = b"POST / HTTP/1.1\r\nhost: cart\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(post).await.expect("open");
        let mut part = [0; 4096];
        let len = stream.read(&mut part).await.expect("an answer");
        assert!(part[..len].starts_with(b"HTTP/1.1 200"));

        // Whoever sends a request just now reads this as its answer.
        drain.advance(Phase::Closing);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an orderly end");
        let answer = answer.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 503"), "{answer}");
        for part in ["x-tulle-outcome: not-processed", "connection: close"] {
            assert!(answer.contains(part), "{part} in {answer}");
        }
        assert_eq!(handled.get(), 1);
    }))
    .await;
}

#[tokio::test]
async fn a_handshake_that_came_too_late_is_made_again_for_bytes() {
    local(async {
        let ca = Authority::new("root");
        let (web, cart) = (ca.material(WEB), ca.material(CART));
        for (greetings, alpn, arrives, expected) in [
            (2, None, true, 3),
            // Some are simply not in the mesh.
            (3, None, false, 3),
            // And a server of HTTP never speaks first.
            (1, Some(Alpn::Http1), false, 1),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let address = listener.local_addr().expect("bound");
            let (cart, accepted) = (Arc::clone(&cart), Rc::new(Cell::new(0)));
            let count = Rc::clone(&accepted);
            tokio::task::spawn_local(async move {
                loop {
                    let (mut socket, client) = listener.accept().await.expect("listening");
                    count.set(count.get() + 1);
                    if count.get() <= greetings {
                        // As a sidecar passes on what its server says, to a client that it takes for one without TLS.
                        socket.write_all(b"220 ready\r\n").await.expect("open");
                        // The server makes nothing of the handshake.
                        let _ = socket.read(&mut [0; 4096]).await;
                        continue;
                    }
                    let tls = DownstreamTls { require_client_certificate: true, alpn: Vec::new() };
                    let socket = Prefixed::new(Bytes::new(), socket);
                    let Ok(mut accepted) = accept(socket, &cart, &tls, client).await else { continue };
                    accepted.stream.write_all(b"220 ready\r\n").await.expect("open");
                }
            });
            let upstream = Upstream::meshed(address, HttpVersion::Http1, CART);
            let (cluster, endpoint) = (&upstream.cluster, &upstream.endpoint);
            match connect(cluster, endpoint, Some(&web), alpn).await {
                Ok(mut connection) if arrives => {
                    let mut greeting = [0; 11];
                    connection.stream.read_exact(&mut greeting).await.expect("a greeting");
                    assert_eq!(&greeting, b"220 ready\r\n");
                }
                Err(ConnectError::Tls(why)) if !arrives => assert!(why.contains("not_tls"), "{why}"),
                other => panic!("{:?} after {greetings}", other.map(|connection| connection.alpn)),
            }
            assert_eq!(accepted.get(), expected);
        }
    })
    .await;
}

#[tokio::test]
async fn a_peer_without_http_2_gets_the_request_in_http_1() {
    local(async {
        let ca = Authority::new("root");
        for alpn in [&["http/1.1"][..], &[]] {
            let address = speaking(ca.material(CART), alpn).await;
            let upstream = Upstream::meshed(address, HttpVersion::Http2, CART);
            let web = ca.material(WEB);
            // One connection to find out, one to use.
            for _ in 0..3 {
                assert_eq!(send(&upstream, Some(&web)).await.expect("an answer"), CART);
                assert_eq!(upstream.cluster.state.series.connections.value(), 2, "{alpn:?}");
            }
        }
    })
    .await;
}

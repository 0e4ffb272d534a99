//! Answers that take their time, and what their end says.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tulle_mesh::model::{Timeouts, UpstreamProtocol};

use super::app::{App, Say};
use super::harness::{Mesh, Setup, get, grpc};
use crate::http::body::{Body, BodyError};
use crate::http::server::{Handler, Interim, Reply, ServerOptions, serve_http1, serve_http2};
use crate::io::Stream;
use crate::listener::testing::on_a_worker;
use crate::worker::drain::Drain;

const COUNT: &str = "http_client_request_duration_seconds_count";

type Frames = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, BodyError>>>>;

/// A gRPC server that sends a message and then this status.
struct Grpc(&'static str);

impl Handler for Grpc {
    type Body = Frames;

    async fn handle(&self, _request: Request<Body>, _interim: Interim) -> Reply<Frames> {
        let trailers =
            HeaderMap::from_iter([("grpc-status".parse().expect("valid"), HeaderValue::from_static(self.0))]);
        let frames = vec![Ok(Frame::data(Bytes::from_static(b"message"))), Ok(Frame::trailers(trailers))];
        let mut response = Response::new(StreamBody::new(stream::iter(frames)));
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        Reply { response, tunnel: None, close: false }
    }
}

/// A proxy in front of a gRPC server.
async fn in_front_of(server: Grpc) -> Mesh {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let mut setup = Setup::new(&[listener.local_addr().expect("bound")]);
    setup.cluster.protocol = UpstreamProtocol::Http2;
    let server = Rc::new(server);
    tokio::task::spawn_local(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let server = server.clone();
            tokio::task::spawn_local(async move {
                serve_http2(Stream::from(socket), &*server, &ServerOptions::default(), &Drain::default())
                    .await;
            });
        }
    });
    setup.build()
}

fn over_http2() -> Request<Body> {
    let mut request = grpc();
    *request.version_mut() = Version::HTTP_2;
    request
}

#[test]
fn the_status_of_a_call_is_that_of_its_trailers() {
    on_a_worker(async {
        for (status, failures) in [("0", 0), ("7", 0), ("14", 1)] {
            let mesh = in_front_of(Grpc(status)).await;
            let got = mesh.send(over_http2()).await;
            assert_eq!((got.status.as_u16(), got.body), (200, Ok("message".into())));
            let label = format!("rpc_grpc_status_code=\"{status}\"");
            assert_eq!(mesh.metric(COUNT, &[&label]), 1, "{status}");
            assert_eq!(mesh.metric("tulle_upstream_attempt_failures_total", &["cart"]), failures, "{status}");
        }
    });
}

#[test]
fn an_endpoint_that_is_unavailable_in_its_trailers_is_ejected_and_one_that_denies_is_not() {
    on_a_worker(async {
        for (status, ejections) in [("14", 1), ("7", 0)] {
            let (bad, good) = (in_front_of(Grpc(status)).await, in_front_of(Grpc("0")).await);
            let address = |mesh: &Mesh| mesh.cluster.endpoints.iter().next().expect("one").address;
            let mut setup = Setup::new(&[address(&bad), address(&good)]);
            setup.cluster.protocol = UpstreamProtocol::Http2;
            let mesh = setup.build();
            for _ in 0..20 {
                assert_eq!(mesh.send(over_http2()).await.status, 200);
            }
            assert_eq!(mesh.metric("tulle_upstream_ejections_total", &["cart"]), ejections, "{status}");
        }
    });
}

#[test]
fn a_stream_ends_with_its_timeouts_which_are_recorded() {
    on_a_worker(async {
        let limit = Some(Duration::from_secs(1));
        let none = Timeouts::default();
        for (timeouts, told) in [
            (Timeouts { idle: limit, ..none }, "connection_read_timeout"),
            (Timeouts { max_stream: limit, ..none }, "http_response_timeout"),
            (Timeouts { request: limit, ..none }, "http_response_timeout"),
        ] {
            let app =
                App::new(|_| Say::Raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".into())).await;
            let mut setup = Setup::new(&[app.address]);
            setup.forward().timeouts = timeouts.clone();
            let mesh = setup.build();
            let got = mesh.send(get()).await;
            assert_eq!((got.status.as_u16(), got.body), (200, Err(BodyError::Idle)));
            assert_eq!(mesh.metric(COUNT, &[told]), 1, "{timeouts:?}");
        }
    });
}

#[test]
fn what_an_upgraded_connection_carries_is_counted_with_its_request() {
    on_a_worker(async {
        let switched =
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: chat\r\nconnection: upgrade\r\n\r\nhello";
        let app = App::new(|_| Say::Raw(switched.into())).await;
        let mesh = Rc::new(Setup::new(&[app.address]).build());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
        let (socket, _) = listener.accept().await.expect("a client");
        let serving = tokio::task::spawn_local({
            let mesh = mesh.clone();
            async move {
                let (options, drain) = (ServerOptions::default(), Drain::default());
                serve_http1(Stream::from(socket), &*mesh.proxy, &options, &drain).await;
            }
        });
        let head = "GET /chat HTTP/1.1\r\nhost: cart.shop\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n";
        client.write_all(head.as_bytes()).await.expect("open");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nhello") {
            client.read_buf(&mut answer).await.expect("open");
        }
        assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", answer.escape_ascii());
        client.write_all(b"twelve bytes").await.expect("open");
        client.shutdown().await.expect("open");
        assert_eq!(client.read_buf(&mut answer).await.ok(), Some(0), "the other side closes too");
        serving.await.expect("no panic");
        assert_eq!(mesh.metric(COUNT, &["http_response_status_code=\"101\""]), 1);
        assert_eq!(mesh.metric("http_client_request_body_bytes_total", &["cart"]), 12);
        assert_eq!(mesh.metric("http_client_response_body_bytes_total", &["cart"]), 5);
    });
}

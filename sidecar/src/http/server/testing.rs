//! A server on loopback with a handler of a test, and a client that speaks raw bytes.

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use tulle_mesh::model::{Http2, Http10};

use super::{Handler, Interim, Reply, ServerOptions, serve_http1, serve_http2};
use crate::http::body::Body;
use crate::http::h1::request::HeadLimits;
use crate::io::Stream;
use crate::worker::drain::Drain;

/// A handler made of a function.
pub(crate) struct Serve<F>(pub(crate) F);

impl<F, R> Handler for Serve<F>
where
    F: Fn(Request<Body>, Interim) -> R,
    R: Future<Output = Reply<Body>>,
{
    type Body = Body;

    fn handle(&self, request: Request<Body>, interim: Interim) -> impl Future<Output = Reply<Body>> {
        (self.0)(request, interim)
    }
}

/// An answer with this body.
pub(crate) fn ok(body: Body) -> Reply<Body> {
    Reply { response: Response::new(body), tunnel: None, close: false }
}

/// An answer with this text.
pub(crate) fn text(text: impl Into<Bytes>) -> Reply<Body> {
    ok(Body::Full(text.into()))
}

/// Short timeouts and small limits.
pub(crate) fn options() -> ServerOptions {
    ServerOptions {
        idle_timeout: Some(Duration::from_secs(60)),
        stream_idle_timeout: Some(Duration::from_secs(30)),
        head_timeout: Duration::from_secs(10),
        close_timeout: Duration::from_secs(1),
        head: HeadLimits { bytes: 32 * 1024, fields: 20 },
        http2: streams(100),
        http_10: Http10 { accepted: true, default_host: None },
    }
}

/// So many streams at once on a connection.
pub(crate) fn streams(most: u32) -> Http2 {
    Http2 { streams: Some(most), ..Http2::default() }
}

/// Runs a test where tasks can be local.
pub(crate) async fn local<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(3000), LocalSet::new().run_until(test)).await.expect("in time")
}

/// Which protocol a test's server speaks.
#[derive(Clone, Copy)]
pub(crate) enum Speak {
    Http1,
    Http2,
}

/// A server for any number of connections, and what drains it.
pub(crate) async fn server<H: Handler + 'static>(
    speak: Speak,
    handler: H,
    options: ServerOptions,
) -> (SocketAddr, Rc<Drain>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let drain = Rc::new(Drain::default());
    let shared = (Rc::new(handler), Rc::new(options), Rc::clone(&drain));
    tokio::task::spawn_local(async move {
        loop {
            let (socket, _) = listener.accept().await.expect("listening");
            socket.set_nodelay(true).expect("open");
            let (handler, options, drain) = shared.clone();
            tokio::task::spawn_local(async move {
                let stream = Stream::from(socket);
                match speak {
                    Speak::Http1 => serve_http1(stream, &*handler, &options, &drain).await,
                    Speak::Http2 => serve_http2(stream, &*handler, &options, &drain).await,
                }
            });
        }
    });
    (address, drain)
}

/// An HTTP/1 server with a handler made of a function.
pub(crate) async fn http1<F, R>(handler: F) -> SocketAddr
where
    F: Fn(Request<Body>, Interim) -> R + 'static,
    R: Future<Output = Reply<Body>> + 'static,
{
    server(Speak::Http1, Serve(handler), options()).await.0
}

/// Sends `bytes` and reads until the server closes.
pub(crate) async fn talk(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut client = Client::connect(address).await;
    client.send(bytes).await;
    client.rest().await
}

/// The client's end of a connection.
pub(crate) struct Client(pub(crate) TcpStream);

impl Client {
    /// Connects.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.expect("a listener");
        socket.set_nodelay(true).expect("open");
        Self(socket)
    }

    /// Sends bytes.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.expect("open");
    }

    /// Reads up to and including `end`.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        let mut read = Vec::new();
        while !read.ends_with(end.as_bytes()) {
            match self.0.read_u8().await {
                Ok(byte) => read.push(byte),
                Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&read)),
            }
        }
        String::from_utf8(read).expect("text")
    }

    /// Reads until the server closes.
    pub(crate) async fn rest(&mut self) -> String {
        let mut read = Vec::new();
        self.0.read_to_end(&mut read).await.expect("an orderly end");
        String::from_utf8(read).expect("text")
    }
}

//! A gRPC channel: one HTTP/2 connection that is there already.
//!
//! In: a stream, and the calls of tonic's clients. Out: their answers. It never reconnects, balances or queues, so that
//! whoever uses it decides when and how to connect again.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tower::Service;

/// A channel; its clones share the connection, which closes with the last of them.
#[derive(Clone)]
pub(crate) struct Channel {
    requests: SendRequest<Body>,
    authority: Authority,
}

/// How often a quiet connection is asked whether it lives, and how long the answer may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeepAlive {
    /// From the last frame to the question.
    pub(crate) interval: Duration,
    /// From the question on.
    pub(crate) timeout: Duration,
}

impl Channel {
    /// Begins HTTP/2 on `stream`, whose other end is `authority`.
    ///
    /// # Errors
    /// When the stream breaks.
    pub(crate) async fn over<S>(
        stream: S,
        authority: Authority,
        keep_alive: Option<KeepAlive>,
    ) -> Result<Self, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new());
        if let Some(KeepAlive { interval, timeout }) = keep_alive {
            http.keep_alive_interval(interval).keep_alive_timeout(timeout).keep_alive_while_idle(true);
        }
        let (requests, connection) = http.handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // The calls have the error as well.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a gRPC connection broke");
            }
        });
        Ok(Self { requests, authority })
    }

    /// Whether no call can be made any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.requests.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // tonic's clients know the path alone.
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(self.authority.clone());
        *request.uri_mut() = Uri::from_parts(parts).expect("a URI with scheme, authority and path");
        Box::pin(self.requests.send_request(request))
    }
}

//! A gRPC channel: one HTTP/2 connection that is there already.
//!
//! In: a stream, and the calls of tonic's clients. Out: their answers. It never reconnects, balances or queues, so that
//! whoever uses it decides when and how to connect again. hyper's client would do but for its pings: it asks at one pace
//! for ever, and servers of gRPC end the connection of who asks so while nothing is said.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::{Connection, ResponseFuture, SendRequest};
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use crate::http::body::BodyError;
use crate::http::h2::ping::{KeepAlive, Pace, Restraint};
use crate::http::h2::recv::RecvBody;
use crate::http::h2::send::{SendBody, SendFailure};
use crate::http::h2::{CONNECTION_WINDOW, STREAM_WINDOW, reset_reason};

/// The largest head of an answer, in bytes, as HTTP/2 counts them.
const MAX_HEAD: u32 = 64 * 1024;

/// A channel; its clones share the connection, which closes with the last of them and of their calls.
#[derive(Clone)]
pub(crate) struct Channel {
    requests: SendRequest<Bytes>,
    authority: Authority,
    state: Arc<State>,
}

/// What calls and the task that drives the connection know of each other.
#[derive(Default)]
struct State {
    /// The server has said something on a call since this was asked last.
    heard: AtomicBool,
    /// No call can be made any more.
    closed: AtomicBool,
}

/// How a server is asked whether it lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    /// How often.
    pub(crate) pace: Pace,
    /// No more often than any server of gRPC bears it.
    pub(crate) restrained: bool,
}

impl Channel {
    /// Begins HTTP/2 on `stream`, whose other end is `authority`, and which ends when that no longer answers as `watch` asks
    /// it; `None`: it is not asked.
    ///
    /// # Errors
    /// When the stream breaks.
    pub(crate) async fn over<S>(
        stream: S,
        authority: Authority,
        watch: Option<Watch>,
    ) -> Result<Self, h2::Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD)
            .enable_push(false);
        let (requests, connection) = builder.handshake(stream).await?;
        let state = Arc::new(State::default());
        tokio::spawn(drive(connection, watch, Arc::clone(&state)));
        Ok(Self { requests, authority, state })
    }

    /// Whether no call can be made any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.closed.load(Ordering::Relaxed)
    }
}

/// Reads and writes the frames of a connection until it ends: with the server, with its last call once nobody can make
/// another, or with a server that no longer answers.
async fn drive<S>(mut connection: Connection<S, Bytes>, watch: Option<Watch>, state: Arc<State>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut keep_alive = watch.zip(connection.ping_pong()).map(|(watch, ping_pong)| {
        (KeepAlive::new(ping_pong, watch.pace), watch.restrained.then(|| Restraint::new(Instant::now())))
    });
    let ended = poll_fn(|cx| {
        if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
            return Poll::Ready(ended.map_err(|error| error.to_string()));
        }
        let Some((keep_alive, restraint)) = &mut keep_alive else { return Poll::Pending };
        let mut may = |now| {
            let heard = state.heard.swap(false, Ordering::Relaxed);
            restraint.as_mut().is_none_or(|restraint| restraint.may(now, heard, true))
        };
        keep_alive.poll(cx, &mut may).map(|()| Err("the server does not answer".into()))
    })
    .await;
    state.closed.store(true, Ordering::Relaxed);
    // The calls have the error as well.
    if let Err(error) = ended {
        tracing::debug!(%error, "a gRPC connection broke");
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Answer>;
    type Error = h2::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.requests.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        // tonic's clients know the path alone.
        let mut parts = std::mem::take(&mut head.uri).into_parts();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(self.authority.clone());
        head.uri = Uri::from_parts(parts).expect("a URI with scheme, authority and path");
        let begun = self.requests.send_request(Request::from_parts(head, ()), false);
        let state = Arc::clone(&self.state);
        Box::pin(async move {
            let (response, stream) = begun?;
            tokio::spawn(upload(SendBody::new(stream), body));
            answer(response, state).await
        })
    }
}

/// Sends the messages of a call for as long as there are any and the server takes them. Whoever makes the call ends them.
async fn upload(mut stream: SendBody, body: Body) {
    let mut body = pin!(body.map_err(|_| BodyError::Truncated));
    // What the server does not take any more, its answer tells about.
    if let Err(SendFailure::Body(error)) = poll_fn(|cx| stream.poll(cx, body.as_mut())).await {
        stream.reset(reset_reason(&error));
    }
}

async fn answer(response: ResponseFuture, state: Arc<State>) -> Result<Response<Answer>, h2::Error> {
    let (head, stream) = response.await?.into_parts();
    state.heard.store(true, Ordering::Relaxed);
    let recv = RecvBody::new(stream, &head.headers);
    Ok(Response::from_parts(head, Answer { recv, state }))
}

/// What a server says on a call.
pub(crate) struct Answer {
    recv: RecvBody,
    state: Arc<State>,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = self.recv.poll_frame(cx);
        if let Poll::Ready(Some(Ok(_))) = &frame {
            self.state.heard.store(true, Ordering::Relaxed);
        }
        frame.map_err(|error| match error {
            BodyError::Reset(code) => {
                Status::unavailable(format!("the stream was reset: {}", h2::Reason::from(code)))
            }
            _ => Status::unavailable("the connection broke"),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.recv.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.recv.size_hint()
    }
}

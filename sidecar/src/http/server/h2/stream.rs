//! One request of an HTTP/2 connection.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, HeaderValue, SEC_WEBSOCKET_ACCEPT};
use http::{Method, Request, Response, StatusCode, Version};
use tokio::time::Instant;

use super::body::StreamBody;
use super::request::check;
use crate::http::body::{Body, BodyError};
use crate::http::h1::framing::status_is_bodiless;
use crate::http::h2::recv::RecvBody;
use crate::http::h2::send::{SendBody, SendFailure};
use crate::http::h2::{reset_reason, strip_connection_fields};
use crate::http::server::idle::Idle;
use crate::http::server::{Handler, Interim, Reply, ServerOptions, Timer};
use crate::http::upgrade::TunnelEnd;

/// What the parts of a request's handling share.
pub(in crate::http::server) struct Stream {
    respond: RefCell<SendResponse<Bytes>>,
    /// When a frame last moved, in either direction.
    moved: Cell<Instant>,
    idle: Cell<Idle>,
}

/// Answers a request. Returns early when the client resets the stream.
pub(super) async fn serve_stream<H: Handler>(
    handler: &H,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    options: &ServerOptions,
) {
    let (head, recv) = request.into_parts();
    let method = head.method.clone();
    let stream = Rc::new(Stream::new(respond, options.stream_idle_timeout));
    if let Err(refusal) = check(&head, options.head.fields) {
        stream.send_head(refusal.response(), true);
        return;
    }
    // A CONNECT has no body: what follows is the tunnel's.
    let (body, tunnel_recv) = if method == Method::CONNECT {
        (Body::Empty, Some(recv))
    } else if recv.is_end_stream() {
        (Body::Empty, None)
    } else {
        let recv = RecvBody::new(recv, &head.headers);
        (Body::Http2Request(StreamBody::new(recv, Rc::clone(&stream))), None)
    };
    let request = Request::from_parts(head, body);
    let Some(reply) = stream.handle(handler, request).await else { return };
    let Reply { response, tunnel, .. } = reply;
    let (mut head, body) = response.into_parts();
    head.version = Version::HTTP_2;
    strip_connection_fields(&mut head.headers);

    if let (Some(tunnel), Some(recv)) = (tunnel, tunnel_recv) {
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            // What opens a tunnel in HTTP/2 (RFC 8441 section 5).
            head.status = StatusCode::OK;
            head.headers.remove(SEC_WEBSOCKET_ACCEPT);
        }
        if let Some(send) = stream.send_head(Response::from_parts(head, ()), false) {
            tunnel.run(TunnelEnd::http2(send, recv), options.stream_idle_timeout).await;
        }
        drop(body);
        return;
    }

    if head.status == StatusCode::NO_CONTENT {
        // It has no content, and so no length of it (RFC 9110 section 8.6).
        head.headers.remove(CONTENT_LENGTH);
    }
    let bodiless = method == Method::HEAD || status_is_bodiless(head.status);
    let ended = bodiless || http_body::Body::is_end_stream(&body);
    if !ended
        && !head.headers.contains_key(CONTENT_LENGTH)
        && let Some(length) = http_body::Body::size_hint(&body).exact()
    {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let sent = stream.send_head(Response::from_parts(head, ()), ended);
    if let (Some(send), false) = (sent, ended) {
        stream.send_body(SendBody::new(send), body).await;
    }
}

impl Stream {
    fn new(respond: SendResponse<Bytes>, idle_timeout: Option<Duration>) -> Self {
        Self {
            respond: RefCell::new(respond),
            moved: Cell::new(Instant::now()),
            idle: Cell::new(Idle::of_listener(idle_timeout)),
        }
    }

    /// A frame has moved.
    pub(super) fn moved(&self) {
        self.moved.set(Instant::now());
    }

    /// When a frame last moved, in either direction.
    pub(super) fn last_moved(&self) -> Instant {
        self.moved.get()
    }

    /// How long none of the client's may be waited for; `None`: however long.
    pub(super) fn reading_timeout(&self) -> Option<Duration> {
        self.idle.get().reading()
    }

    pub(in crate::http::server) fn set_idle_timeout(&self, limit: Option<Duration>) {
        self.idle.set(self.idle.get().of_route(limit));
    }

    /// Sends an interim response.
    pub(in crate::http::server) fn interim(&self, mut response: Response<()>) {
        strip_connection_fields(response.headers_mut());
        *response.version_mut() = Version::HTTP_2;
        // A stream that was reset takes none, and needs none.
        let _ = self.respond.borrow_mut().send_informational(response);
    }

    /// Runs the handler; `None` when the client has reset the stream.
    async fn handle<H: Handler>(
        self: &Rc<Self>,
        handler: &H,
        request: Request<Body>,
    ) -> Option<Reply<H::Body>> {
        let mut handling = pin!(handler.handle(request, Interim::http2(Rc::clone(self))));
        poll_fn(|cx| {
            if self.respond.borrow_mut().poll_reset(cx).is_ready() {
                return Poll::Ready(None);
            }
            handling.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// Sends a head; `None` when the stream is gone.
    fn send_head(&self, response: Response<()>, end: bool) -> Option<SendStream<Bytes>> {
        self.idle.set(self.idle.get().answered());
        self.respond.borrow_mut().send_response(response, end).ok()
    }

    /// Sends a body. Whichever way it ends, the stream is ended or reset by then. A client that does not take it has as
    /// long as the stream may be idle.
    async fn send_body<B>(&self, mut send: SendBody, body: B)
    where
        B: http_body::Body<Data = Bytes, Error = BodyError>,
    {
        let mut body = pin!(body);
        let mut timer = None;
        let mut sent = 0;
        let failed = poll_fn(|cx| {
            if let Poll::Ready(sent) = send.poll(cx, body.as_mut()) {
                return Poll::Ready(match sent {
                    Err(SendFailure::Body(error)) => Some(error),
                    Ok(()) | Err(SendFailure::Peer) => None,
                });
            }
            if sent != send.sent() {
                sent = send.sent();
                self.moved();
            }
            let Some(idle) = self.idle.get().writing().filter(|_| send.is_blocked()) else {
                return Poll::Pending;
            };
            let timer = timer.get_or_insert_with(|| Timer::new(idle));
            let blocked = timer.poll(cx, self.last_moved() + idle);
            blocked.map(|()| Some(BodyError::Idle))
        })
        .await;
        if let Some(error) = failed {
            // A reset takes back what its stream was given and the connection has not written yet: the head, even. It
            // is written in the connection's next turn.
            tokio::task::yield_now().await;
            send.reset(reset_reason(&error));
        }
    }
}

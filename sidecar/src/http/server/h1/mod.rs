//! An HTTP/1 connection.
//!
//! In: a stream. Out: one request after the other, each answered before the next is looked at; what a client sends ahead
//! stays in the buffer. The connection is one future. While a handler runs, it alone reads the request's body, through a
//! [`RequestBody`] that shares the connection's state; the connection itself only watches for the client to go away.

mod exchange;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, Method, Request, Response, Version};
use tokio::time::Instant;
use tulle_mesh::model::Http10;

pub(super) use self::exchange::Exchange;
pub(crate) use self::exchange::RequestBody;
use super::timer::Timer;
use super::{Handler, Interim, Reply, ServerOptions};
use crate::http::body::{Body, BodyError};
use crate::http::h1::encode::{Encoder, ResponseContext, write_response};
use crate::http::h1::framing::{Framing, status_is_bodiless};
use crate::http::h1::request::{RequestHead, RequestReader};
use crate::http::h1::transport::WRITE_HIGH_WATER;
use crate::http::headers::Outcome;
use crate::http::refusal::Refusal;
use crate::http::upgrade::{Tunnel, TunnelEnd};
use crate::io::Stream;
use crate::worker::drain::{Drain, Phase};

/// How much of a request that nobody wants to read is read anyway, to keep the connection.
const MAX_DISCARD: u64 = 64 * 1024;
/// How long a new connection is kept for its first request when the sidecar goes away: the client may have sent it
/// already, and could not know that it was not processed.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// Serves a connection until either side closes it, or a drain does.
pub(crate) async fn serve<H: Handler>(stream: Stream, handler: &H, options: &ServerOptions, drain: &Drain) {
    let mut connection = Connection {
        exchange: Rc::new(RefCell::new(Exchange::new(stream, options.stream_idle_timeout))),
        timer: Timer::new(options.head_timeout),
        reader: RequestReader::default(),
        options,
        drain,
        is_new: true,
    };
    loop {
        let after = match connection.next_request().await {
            Next::Request(head) => connection.answer(head, handler).await,
            Next::Refused(refusal) => connection.refuse(refusal).await,
            Next::Closed => After::Close,
        };
        match after {
            After::NextRequest => {}
            After::Linger => return connection.linger().await,
            After::Close => return,
            After::Reset => return connection.reset(),
        }
    }
}

struct Connection<'a> {
    exchange: Rc<RefCell<Exchange>>,
    timer: Timer,
    reader: RequestReader,
    options: &'a ServerOptions,
    drain: &'a Drain,
    /// It has not brought a request yet.
    is_new: bool,
}

/// What came of waiting for a request.
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once")]
enum Next {
    Request(RequestHead),
    Refused(Refusal),
    Closed,
}

/// What becomes of the connection.
enum After {
    /// It is used again.
    NextRequest,
    /// It is closed, but not before the client has read what was sent.
    Linger,
    /// There is nobody at the other end, or nothing left to say.
    Close,
    /// The client must not take what it got for all.
    Reset,
}

/// What of a request its answer depends on.
struct Asked {
    method: Method,
    version: Version,
    keep_alive: bool,
}

/// Why an answer did not arrive whole.
enum Cut {
    /// The client went away or takes nothing more.
    Client,
    /// The body failed, or was not as long as announced.
    Body,
}

impl Connection<'_> {
    async fn next_request(&mut self) -> Next {
        let Self { exchange, timer, reader, options, drain, is_new } = self;
        let patience = if std::mem::take(is_new) { FIRST_REQUEST } else { Duration::ZERO };
        let mut closing = pin!(drain.reached(Phase::Closing));
        let mut since = Instant::now();
        let mut started = !exchange.borrow().transport.read.is_empty();
        poll_fn(|cx| {
            let transport = &mut exchange.borrow_mut().transport;
            loop {
                match reader.take(&mut transport.read, options.head) {
                    Ok(Some(head)) => return Poll::Ready(of_version(head, &options.http_10)),
                    Ok(None) => {}
                    Err(refusal) => return Poll::Ready(Next::Refused(refusal)),
                }
                match transport.poll_fill(cx) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::Closed),
                    Poll::Ready(Ok(_)) if started => {}
                    Poll::Ready(Ok(_)) => {
                        started = true;
                        since = Instant::now();
                    }
                    Poll::Pending => break,
                }
            }
            if started {
                return timer
                    .poll(cx, since + options.head_timeout)
                    .map(|()| Next::Refused(Refusal::HEAD_TIMEOUT));
            }
            transport.shrink();
            let is_closing = drain.phase() >= Phase::Closing || closing.as_mut().poll(cx).is_ready();
            let limit = if is_closing { Some(patience) } else { options.idle_timeout };
            match limit {
                Some(limit) => timer.poll(cx, since + limit).map(|()| match transport.stream() {
                    // A sidecar may have sent a request just now, and could not know what became of it. It takes this for
                    // the answer; one that did not drops the connection at the sight of it.
                    Some(Stream::TlsServer(_)) => Next::Refused(Refusal::CLOSED),
                    _ => Next::Closed,
                }),
                None => Poll::Pending,
            }
        })
        .await
    }

    async fn answer<H: Handler>(&mut self, head: RequestHead, handler: &H) -> After {
        let RequestHead { request, framing, keep_alive, expects_continue } = head;
        let mut asked = Asked { method: request.method().clone(), version: request.version(), keep_alive };
        let number = self.exchange.borrow_mut().begin(framing, asked.version, expects_continue);
        let Some(reply) = self.handle(handler, request, framing, number).await else { return After::Close };
        let (parts, body) = reply.response.into_parts();
        let head = Response::from_parts(parts, ());
        asked.keep_alive &= !reply.close && self.drain.phase() == Phase::Running;
        match reply.tunnel {
            Some(tunnel) => self.tunnel(&head, tunnel, &asked, body).await,
            None => self.respond(&head, &asked, body).await,
        }
    }

    /// Runs the handler; `None` when the client went away.
    async fn handle<H: Handler>(
        &mut self,
        handler: &H,
        request: Request<()>,
        framing: Framing,
        number: u64,
    ) -> Option<Reply<H::Body>> {
        let interim = match request.version() {
            Version::HTTP_11 => Interim::http1(Rc::clone(&self.exchange), number),
            _ => Interim::default(),
        };
        let request = request.map(|()| match framing {
            Framing::Empty => Body::Empty,
            _ => Body::Http1Request(RequestBody::new(Rc::clone(&self.exchange), number)),
        });
        let mut handling = pin!(handler.handle(request, interim));
        poll_fn(|cx| {
            if self.exchange.borrow_mut().poll_gone(cx).is_ready() {
                return Poll::Ready(None);
            }
            if let Poll::Ready(reply) = handling.as_mut().poll(cx) {
                return Poll::Ready(Some(reply));
            }
            if let Poll::Ready(Err(_)) = self.exchange.borrow_mut().poll_flush(cx) {
                return Poll::Ready(None);
            }
            self.check_body(cx);
            Poll::Pending
        })
        .await
    }

    /// Gives the request's body up when its reader has waited for too long.
    fn check_body(&mut self, cx: &mut Context<'_>) {
        let exchange = &mut *self.exchange.borrow_mut();
        if let Some(due) = exchange.body_due()
            && self.timer.poll(cx, due).is_ready()
        {
            exchange.fail_body(BodyError::Idle);
        }
    }

    /// Sends an answer.
    async fn respond<B>(&mut self, head: &Response<()>, asked: &Asked, body: B) -> After
    where
        B: http_body::Body<Data = Bytes, Error = BodyError>,
    {
        let length = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        let (encoder, keep_alive) = {
            let exchange = &mut *self.exchange.borrow_mut();
            let keep_alive = asked.keep_alive && exchange.may_keep_alive(MAX_DISCARD);
            let Asked { method, version, .. } = asked;
            let context = ResponseContext { method, version: *version, length, keep_alive, tunnel: false };
            exchange.end_interim();
            write_response(&mut exchange.transport.write, head, context)
        };
        let bodiless = asked.method == Method::HEAD || status_is_bodiless(head.status());
        match self.send_body(encoder, body, bodiless).await {
            Ok(()) if keep_alive && self.discard_request().await => After::NextRequest,
            // To the client, a mere close would be this body's end.
            Err(Cut::Body) if encoder == Encoder::UntilClose => After::Reset,
            Ok(()) | Err(Cut::Body) => After::Linger,
            Err(Cut::Client) => After::Close,
        }
    }

    /// Sends the head that is queued and a body after it, together as far as the body is at hand.
    async fn send_body<B>(&mut self, encoder: Encoder, body: B, bodiless: bool) -> Result<(), Cut>
    where
        B: http_body::Body<Data = Bytes, Error = BodyError>,
    {
        let mut body = pin!(body);
        let ended = bodiless || body.is_end_stream();
        let mut outgoing = Outgoing { encoder, trailers: None, ended, cut: false, bodiless, finished: false };
        poll_fn(|cx| {
            loop {
                let starved = outgoing.poll_body(cx, body.as_mut(), &self.exchange).is_pending();
                match self.exchange.borrow_mut().poll_flush(cx) {
                    Poll::Ready(Ok(())) if outgoing.cut => return Poll::Ready(Err(Cut::Body)),
                    Poll::Ready(Ok(())) if outgoing.finished => return Poll::Ready(Ok(())),
                    Poll::Ready(Ok(())) if starved => break,
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Cut::Client)),
                    Poll::Pending => break,
                }
            }
            self.check_body(cx);
            let exchange = &mut *self.exchange.borrow_mut();
            if exchange.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Cut::Client));
            }
            match exchange.write_due() {
                Some(due) => self.timer.poll(cx, due).map(|()| Err(Cut::Client)),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Sends the head that opens a tunnel, and carries bytes until both sides have ended.
    async fn tunnel<B>(&mut self, head: &Response<()>, tunnel: Tunnel, asked: &Asked, body: B) -> After {
        {
            let Asked { method, version, .. } = asked;
            let context =
                ResponseContext { method, version: *version, length: None, keep_alive: false, tunnel: true };
            let exchange = &mut *self.exchange.borrow_mut();
            exchange.end_interim();
            write_response(&mut exchange.transport.write, head, context);
        }
        let flushed = poll_fn(|cx| self.exchange.borrow_mut().poll_flush(cx)).await;
        let taken = self.exchange.borrow_mut().transport.take();
        if let (Ok(()), Some((stream, read))) = (flushed, taken) {
            tunnel.run(TunnelEnd::http1(stream, read), self.options.stream_idle_timeout).await;
        }
        drop(body);
        After::Close
    }

    /// Reads what is left of a request, so that the next can follow; `false` when that is too much or takes too long.
    async fn discard_request(&mut self) -> bool {
        let Self { exchange, timer, options, .. } = self;
        if exchange.borrow().request_is_read() {
            return true;
        }
        let due = Instant::now() + options.close_timeout;
        let mut left = MAX_DISCARD;
        poll_fn(|cx| match exchange.borrow_mut().poll_discard(cx, &mut left) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => timer.poll(cx, due).map(|()| false),
        })
        .await
    }

    /// Answers a request that is not worth a handler.
    async fn refuse(&mut self, refusal: Refusal) -> After {
        let asked = Asked { method: Method::GET, version: Version::HTTP_11, keep_alive: false };
        self.exchange.borrow_mut().begin(Framing::Empty, asked.version, false);
        let mut response = refusal.response();
        if refusal == Refusal::CLOSED {
            Outcome::NotProcessed.write(response.headers_mut());
        }
        self.respond(&response, &asked, Body::Empty).await
    }

    /// Closes in a way that lets the client read all that was sent: to close with something unread would be a reset, and
    /// might take back what is on its way.
    async fn linger(self) {
        let Self { exchange, mut timer, options, .. } = self;
        let due = Instant::now() + options.close_timeout;
        let mut left = MAX_DISCARD;
        poll_fn(|cx| {
            let exchange = &mut *exchange.borrow_mut();
            if let Poll::Ready(Err(_)) = exchange.transport.poll_shutdown(cx) {
                return Poll::Ready(());
            }
            match exchange.poll_discard_all(cx, &mut left) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => timer.poll(cx, due),
            }
        })
        .await;
    }

    fn reset(self) {
        if let Some((stream, _)) = self.exchange.borrow_mut().transport.take() {
            stream.reset();
        }
    }
}

/// The request, unless it is of a version that is not served.
fn of_version(mut head: RequestHead, http_10: &Http10) -> Next {
    if head.request.version() == Version::HTTP_10 {
        if !http_10.accepted {
            return Next::Refused(Refusal::HTTP_10);
        }
        if let Some(host) = &http_10.default_host {
            head.request.headers_mut().entry(HOST).or_insert_with(|| host.clone());
        }
    }
    Next::Request(head)
}

/// An answer's body on its way into the write buffer.
struct Outgoing {
    encoder: Encoder,
    trailers: Option<HeaderMap>,
    /// The body has ended.
    ended: bool,
    /// The body failed.
    cut: bool,
    /// The body's end is written.
    finished: bool,
    bodiless: bool,
}

impl Outgoing {
    /// Writes as much of `body` as there is and as the buffer should hold. Pending when the body has to be waited for.
    fn poll_body<B>(
        &mut self,
        cx: &mut Context<'_>,
        mut body: Pin<&mut B>,
        exchange: &RefCell<Exchange>,
    ) -> Poll<()>
    where
        B: http_body::Body<Data = Bytes, Error = BodyError>,
    {
        while !self.ended && !self.cut && exchange.borrow().transport.write.len() < WRITE_HIGH_WATER {
            match body.as_mut().poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.ended = body.is_end_stream();
                    match frame.into_data() {
                        Ok(data) => {
                            let out = &mut exchange.borrow_mut().transport.write;
                            self.cut = self.encoder.data(out, data).is_err();
                        }
                        Err(frame) => {
                            self.trailers = frame.into_trailers().ok();
                            self.ended |= self.trailers.is_some();
                        }
                    }
                }
                Poll::Ready(Some(Err(_))) => self.cut = true,
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.ended && !self.cut && !self.finished {
            self.finished = true;
            let out = &mut exchange.borrow_mut().transport.write;
            self.cut = !self.bodiless && self.encoder.end(out, self.trailers.as_ref()).is_err();
        }
        Poll::Ready(())
    }
}

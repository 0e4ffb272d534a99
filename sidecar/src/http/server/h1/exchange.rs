//! What a connection and the body of its current request share.
//!
//! Both are polled by the connection's task, never at the same time; no borrow outlives a poll. A body that outlives its
//! request finds another exchange's number and reads nothing more.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, Version};
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use crate::http::body::BodyError;
use crate::http::h1::decode::{Decoded, Decoder};
use crate::http::h1::encode::write_interim;
use crate::http::h1::framing::Framing;
use crate::http::h1::transport::Transport;
use crate::http::server::idle::Idle;
use crate::io::Stream;

/// How much is read ahead only to see whether the client is still there.
const WATCH_LIMIT: usize = 16 * 1024;

/// A connection's bytes, and where its current request stands.
pub(crate) struct Exchange {
    pub(super) transport: Transport,
    decoder: Decoder,
    /// Which request of the connection it is, from 1.
    number: u64,
    /// Interim responses can be sent.
    interim: bool,
    /// The client waits for 100.
    expects_continue: bool,
    /// Somebody holds the request's body.
    has_reader: bool,
    /// Waits for more of the body.
    waiting: Option<Waker>,
    failed: Option<BodyError>,
    /// When a byte last moved, or the waiting began.
    progress: Instant,
    /// How long nothing may move, and how long for this request.
    idle_timeout: Option<Duration>,
    idle: Idle,
}

impl Exchange {
    pub(super) fn new(stream: Stream, idle_timeout: Option<Duration>) -> Self {
        Self {
            transport: Transport::new(stream),
            decoder: Decoder::Done,
            number: 0,
            interim: false,
            expects_continue: false,
            has_reader: false,
            waiting: None,
            failed: None,
            progress: Instant::now(),
            idle_timeout,
            idle: Idle::of_listener(idle_timeout),
        }
    }

    /// Begins with a request whose head was read, and gives it a number.
    pub(super) fn begin(&mut self, framing: Framing, version: Version, expects_continue: bool) -> u64 {
        self.decoder = Decoder::new(framing);
        self.number += 1;
        self.idle = Idle::of_listener(self.idle_timeout);
        self.interim = version == Version::HTTP_11;
        self.expects_continue = expects_continue;
        self.waiting = None;
        self.failed = None;
        self.number
    }

    /// Queues an interim response of exchange `number`.
    pub(in crate::http::server) fn interim(&mut self, number: u64, response: &Response<()>) {
        if self.interim && self.number == number {
            // One is enough: the client may have been told already, when its body was first asked for.
            if response.status() == StatusCode::CONTINUE && !std::mem::take(&mut self.expects_continue) {
                return;
            }
            write_interim(&mut self.transport.write, response);
        }
    }

    /// In exchange `number` nothing may move for so long.
    pub(in crate::http::server) fn set_idle_timeout(&mut self, number: u64, limit: Option<Duration>) {
        if self.number == number {
            self.idle = self.idle.of_route(limit);
        }
    }

    /// From now on there are none: the answer itself begins.
    pub(super) fn end_interim(&mut self) {
        self.interim = false;
        self.idle = self.idle.answered();
    }

    /// Sends what is queued.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.transport.write.sent();
        let result = self.transport.poll_flush(cx);
        if self.transport.write.sent() != sent {
            self.progress = Instant::now();
        }
        result
    }

    /// Ready when the client has gone. Reads ahead a little, and wakes whoever waits for it.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.transport.read.len() < WATCH_LIMIT {
            match ready!(self.transport.poll_fill(cx)) {
                Ok(0) | Err(_) => {
                    self.fail_body(BodyError::Truncated);
                    return Poll::Ready(());
                }
                Ok(_) => {
                    self.progress = Instant::now();
                    self.wake_reader(cx.waker());
                }
            }
        }
        Poll::Pending
    }

    /// When the body's reader has waited for too long.
    pub(super) fn body_due(&self) -> Option<Instant> {
        self.waiting.as_ref()?;
        Some(self.progress + self.idle.reading()?)
    }

    /// When the client has not taken what is queued for too long.
    pub(super) fn write_due(&self) -> Option<Instant> {
        if self.transport.write.is_empty() { None } else { Some(self.progress + self.idle.writing()?) }
    }

    /// Gives the request's body up.
    pub(super) fn fail_body(&mut self, error: BodyError) {
        if !self.decoder.is_done() && self.failed.is_none() {
            self.failed = Some(error);
        }
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }

    /// Whether the request was read to its end.
    pub(super) fn request_is_read(&self) -> bool {
        self.decoder.is_done()
    }

    /// Whether the connection may be used again after the current request, of which nobody reads more than is still
    /// being read, or `limit` bytes.
    pub(super) fn may_keep_alive(&self, limit: u64) -> bool {
        let short = self.decoder.remaining().is_some_and(|remaining| remaining <= limit);
        self.failed.is_none() && !self.expects_continue && (self.has_reader || short)
    }

    /// Reads and throws away what is left of the request: `true` at its end, `false` where that does not come.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>, left: &mut u64) -> Poll<bool> {
        if self.failed.is_some() || self.expects_continue {
            return Poll::Ready(false);
        }
        loop {
            match self.decoder.decode(&mut self.transport.read) {
                Ok(Decoded::End | Decoded::Trailers(_)) => return Poll::Ready(true),
                Ok(Decoded::Data(data)) => match left.checked_sub(data.len() as u64) {
                    Some(rest) => *left = rest,
                    None => return Poll::Ready(false),
                },
                Ok(Decoded::More) => match ready!(self.transport.poll_fill(cx)) {
                    Ok(0) | Err(_) => return Poll::Ready(false),
                    Ok(_) => {}
                },
                Err(_) => return Poll::Ready(false),
            }
        }
    }

    /// Reads and throws away all that comes; ready at the end, or after `left` bytes.
    pub(super) fn poll_discard_all(&mut self, cx: &mut Context<'_>, left: &mut u64) -> Poll<()> {
        loop {
            self.transport.read.clear();
            match ready!(self.transport.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(count) => match left.checked_sub(count as u64) {
                    Some(rest) => *left = rest,
                    None => return Poll::Ready(()),
                },
            }
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(error) = &self.failed {
            return Poll::Ready(Some(Err(error.clone())));
        }
        loop {
            match self.decoder.decode(&mut self.transport.read) {
                Ok(Decoded::Data(data)) => {
                    self.expects_continue = false;
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Decoded::Trailers(trailers)) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(Decoded::End) => return Poll::Ready(None),
                Ok(Decoded::More) => {}
                Err(reason) => return self.fail_now(BodyError::Protocol(reason)),
            }
            if self.expects_continue && self.interim {
                self.expects_continue = false;
                self.transport.write.put_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                // The connection finds out, right after this poll, if that fails or does not go through at once.
                let _ = self.transport.poll_flush(cx);
            }
            match self.transport.poll_fill(cx) {
                Poll::Ready(Ok(0) | Err(_)) => return self.fail_now(BodyError::Truncated),
                Poll::Ready(Ok(_)) => self.progress = Instant::now(),
                Poll::Pending => {
                    self.wait(cx.waker());
                    return Poll::Pending;
                }
            }
        }
    }

    fn fail_now(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.failed = Some(error.clone());
        Poll::Ready(Some(Err(error)))
    }

    fn wait(&mut self, waker: &Waker) {
        match &mut self.waiting {
            Some(waiting) => waiting.clone_from(waker),
            None => {
                self.progress = Instant::now();
                self.waiting = Some(waker.clone());
            }
        }
    }

    /// Wakes the body's reader if it waits as part of another task (or sub-task) than the one being polled.
    fn wake_reader(&mut self, current: &Waker) {
        if let Some(waker) = self.waiting.take()
            && !waker.will_wake(current)
        {
            waker.wake();
        }
    }
}

/// The body of a request that came over HTTP/1.
pub(crate) struct RequestBody {
    exchange: Rc<RefCell<Exchange>>,
    number: u64,
}

impl RequestBody {
    pub(super) fn new(exchange: Rc<RefCell<Exchange>>, number: u64) -> Self {
        exchange.borrow_mut().has_reader = true;
        Self { exchange, number }
    }

    /// As [`http_body::Body::poll_frame`]. An error is given again and again.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let exchange = &mut *self.exchange.borrow_mut();
        if exchange.number != self.number {
            return Poll::Ready(Some(Err(BodyError::Truncated)));
        }
        exchange.poll_body(cx)
    }

    /// As [`http_body::Body::is_end_stream`].
    pub(crate) fn is_end_stream(&self) -> bool {
        let exchange = self.exchange.borrow();
        exchange.number == self.number && exchange.decoder.is_done()
    }

    /// As [`http_body::Body::size_hint`].
    pub(crate) fn size_hint(&self) -> SizeHint {
        let exchange = self.exchange.borrow();
        match exchange.decoder.remaining() {
            Some(remaining) if exchange.number == self.number => SizeHint::with_exact(remaining),
            _ => SizeHint::default(),
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let exchange = &mut *self.exchange.borrow_mut();
        if exchange.number == self.number {
            exchange.has_reader = false;
            exchange.waiting = None;
        }
    }
}

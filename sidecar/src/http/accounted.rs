//! The body of an answer, as the client gets it: the one wrapper that counts, times out and reports.
//!
//! In: a body, and the exchange that it ends. Out: the same frames. When the last is through, when something fails or when
//! the client goes away, the exchange is told how it ended, and with that it reports.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::body::{Body, BodyError};
use super::exchange::{Exchange, Problem};
use super::respond;
use crate::error::body_details;

/// A body whose end is reported.
pub(crate) struct Accounted {
    body: Body,
    /// Until the end.
    exchange: Option<Box<Exchange>>,
    /// The client gets no body, whatever there is.
    bodiless: bool,
    limits: Option<Box<Limits>>,
}

/// The timers of a route that has them.
struct Limits {
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
    /// How much of the request had come when the idle timer was set.
    request_bytes: u64,
    whole: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl Accounted {
    /// Wraps the body of the answer of `exchange`. `idle` and `whole` limit the time without a frame in either direction,
    /// and that of the whole stream from the arrival of the request on.
    pub(super) fn new(
        body: Body,
        exchange: Box<Exchange>,
        bodiless: bool,
        idle: Option<Duration>,
        whole: Option<Duration>,
    ) -> Self {
        let timer =
            |limit: Duration, from: Instant| (limit, Box::pin(tokio::time::sleep_until(from + limit)));
        let limits = (idle.is_some() || whole.is_some()).then(|| {
            let idle = idle.map(|limit| timer(limit, Instant::now()));
            let whole = whole.map(|limit| timer(limit, exchange.begun.into()));
            Box::new(Limits { idle, request_bytes: exchange.body.bytes(), whole })
        });
        Self { body, exchange: Some(exchange), bodiless, limits }
    }

    fn finish(&mut self, problem: Option<Problem>, blamed: bool) {
        if let Some(mut exchange) = self.exchange.take() {
            exchange.finish(problem, blamed);
        }
        self.limits = None;
    }
}

impl Limits {
    fn poll(&mut self, cx: &mut Context<'_>, request_bytes: u64) -> Option<Problem> {
        let mut over = |timer: &mut Option<(Duration, Pin<Box<Sleep>>)>| {
            let (limit, sleep) = timer.as_mut()?;
            sleep.as_mut().poll(cx).is_ready().then_some(*limit)
        };
        let idle = loop {
            let idle = over(&mut self.idle);
            if idle.is_none() || request_bytes == self.request_bytes {
                break idle;
            }
            // The client has sent something meanwhile.
            self.request_bytes = request_bytes;
            if let Some((limit, sleep)) = &mut self.idle {
                sleep.as_mut().reset(Instant::now() + *limit);
            }
        };
        let (name, limit) = match idle {
            Some(limit) => ("idle", limit),
            None => ("maxStreamDuration", over(&mut self.whole)?),
        };
        Some(("connection_read_timeout", format!("the timeout {name}={limit:?} is over")))
    }

    fn moved(&mut self) {
        if let Some((limit, sleep)) = &mut self.idle {
            sleep.as_mut().reset(Instant::now() + *limit);
        }
    }
}

impl http_body::Body for Accounted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let next = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(next) => next,
            Poll::Pending => {
                let sent = this.exchange.as_ref().map_or(0, |exchange| exchange.body.bytes());
                let over = this.limits.as_mut().and_then(|limits| limits.poll(cx, sent));
                let Some(problem) = over else { return Poll::Pending };
                this.body = Body::Empty;
                this.finish(Some(problem), false);
                return Poll::Ready(Some(Err(BodyError::Idle)));
            }
        };
        if let Some(limits) = &mut this.limits {
            limits.moved();
        }
        match &next {
            Some(Ok(frame)) => {
                if let Some(exchange) = &mut this.exchange {
                    if let Some(data) = frame.data_ref() {
                        exchange.response_bytes += data.len() as u64;
                    } else if let Some(trailers) = frame.trailers_ref() {
                        exchange.grpc_status = respond::grpc_status(trailers);
                    }
                }
                if this.body.is_end_stream() {
                    this.finish(None, false);
                }
            }
            Some(Err(error)) => {
                let details = format!("the response's body: {}", body_details(error));
                this.finish(Some(("http_response_incomplete", details)), true);
            }
            None => this.finish(None, false),
        }
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Accounted {
    fn drop(&mut self) {
        let whole = self.bodiless || self.body.is_end_stream();
        let gone = || ("http_request_error", "the client went away before the end".to_owned());
        self.finish((!whole).then(gone), false);
    }
}

//! The body of an answer, as the client gets it: the one wrapper that counts, times out and reports.
//!
//! In: a body, and the exchange that it ends. Out: the same frames. When the last is through, when something fails or when
//! the client goes away, the exchange is told how it ended, and with that it reports.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tulle_mesh::model::RouteAction;

use super::body::{Body, BodyError};
use super::deadline::{self, Deadline, Named};
use super::exchange::Exchange;
use super::pace::Pace;
use super::problem::Problem;
use super::respond;
use crate::error::body_details;
use crate::retry::replay::Replay;

/// A body whose end is reported.
pub(crate) struct Accounted {
    body: Body,
    /// Until the end.
    exchange: Option<Box<Exchange>>,
    /// The client gets no body, whatever there is.
    bodiless: bool,
    timers: Timers,
    /// It goes no faster than this.
    pace: Option<Box<Pace>>,
}

/// Most answers are there at once, and need none.
enum Timers {
    /// Nothing had to be waited for so far.
    Unset,
    /// There are no limits, or the answer is over.
    Unlimited,
    Set(Box<Limits>),
}

/// How long an answer may take. `None` and zero: as long as it does.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StreamLimits {
    /// Without a frame in either direction.
    pub(super) idle: Option<Duration>,
    /// Without a frame of the answer, once the request is there.
    pub(super) attempt_idle: Option<Duration>,
    /// From the end of the request to that of the answer.
    pub(super) answer: Option<Duration>,
    /// Until when, and by what name.
    pub(super) until: Option<(std::time::Instant, Named)>,
}

impl StreamLimits {
    /// As the route of `exchange` has them.
    pub(super) fn of(exchange: &Exchange) -> Self {
        let Some((routes, route)) = exchange.routes.as_ref().zip(exchange.route) else {
            return Self::default();
        };
        let RouteAction::Forward(forward) = &routes.table.route(route).action else { return Self::default() };
        let timeouts = deadline::timeouts(&forward.timeouts, &routes.settings);
        let deadline = Deadline::new(&exchange.request.headers, &timeouts, exchange.grpc, exchange.begun);
        Self {
            idle: timeouts.idle,
            attempt_idle: forward.retry.as_ref().and_then(|policy| policy.per_try_idle_timeout),
            answer: deadline.request(),
            until: deadline.until(),
        }
    }
}

/// The timers of a route that has them.
struct Limits {
    idle: Option<Timer>,
    /// How much of the request had come when the idle timer was set.
    request_bytes: u64,
    /// Both are set once the request is there.
    answer: Option<Timer>,
    attempt_idle: Option<Timer>,
    unset: Option<AfterRequest>,
    until: Option<(&'static str, Timer)>,
}

/// Limits that hold from the end of the request on.
#[derive(Clone, Copy)]
struct AfterRequest {
    answer: Option<Duration>,
    attempt_idle: Option<Duration>,
}

/// A limit, and the wait for it.
type Timer = (Duration, Pin<Box<Sleep>>);

fn timer(limit: Duration, from: Instant) -> Timer {
    (limit, Box::pin(sleep_until(from + limit)))
}

impl Accounted {
    /// Wraps the body of the answer of `exchange`.
    pub(super) fn new(body: Body, mut exchange: Box<Exchange>, bodiless: bool) -> Self {
        let pace = if bodiless { None } else { exchange.take_pace().map(Box::new) };
        Self { body, exchange: Some(exchange), bodiless, timers: Timers::Unset, pace }
    }

    /// The next frame, as soon as there is one.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let next = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(next) => next,
            Poll::Pending => {
                let Some(problem) = self.poll_limits(cx) else { return Poll::Pending };
                self.body = Body::Empty;
                self.finish(Some(problem), false);
                return Poll::Ready(Some(Err(BodyError::Idle)));
            }
        };
        if let Timers::Set(limits) = &mut self.timers {
            limits.moved();
        }
        match &next {
            Some(Ok(frame)) => {
                if let Some(exchange) = &mut self.exchange {
                    if let Some(data) = frame.data_ref() {
                        exchange.response_bytes += data.len() as u64;
                    } else if let Some(trailers) = frame.trailers_ref() {
                        exchange.grpc_status = respond::grpc_status(trailers);
                    }
                }
                if self.body.is_end_stream() {
                    self.finish(None, false);
                }
            }
            Some(Err(error)) => {
                let details = format!("the response's body: {}", body_details(error));
                let flags = match error {
                    BodyError::Truncated => "UC",
                    BodyError::Reset(_) => "UR",
                    BodyError::Protocol(_) => "UPE",
                    BodyError::Idle => "SI",
                };
                self.finish(Some(Problem::new("http_response_incomplete", flags, details)), true);
            }
            None => self.finish(None, false),
        }
        Poll::Ready(next)
    }

    /// While a frame is waited for: what has taken too long.
    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Option<Problem> {
        let exchange = self.exchange.as_ref()?;
        if matches!(self.timers, Timers::Unset) {
            self.timers = Limits::set(&StreamLimits::of(exchange), exchange.body.bytes());
        }
        match &mut self.timers {
            Timers::Set(limits) => limits.poll(cx, &exchange.body),
            _ => None,
        }
    }

    /// How many bytes wait for their time.
    fn held(&self) -> u64 {
        self.pace.as_ref().map_or(0, |pace| pace.held())
    }

    fn finish(&mut self, problem: Option<Problem>, blamed: bool) {
        if let Some(mut exchange) = self.exchange.take() {
            exchange.finish(problem, blamed);
        }
        self.timers = Timers::Unlimited;
    }
}

impl Limits {
    fn set(limits: &StreamLimits, request_bytes: u64) -> Timers {
        let some = |timeout: Option<Duration>| timeout.filter(|timeout| !timeout.is_zero());
        let idle = some(limits.idle);
        let after = AfterRequest { answer: some(limits.answer), attempt_idle: some(limits.attempt_idle) };
        let unset = (after.answer.is_some() || after.attempt_idle.is_some()).then_some(after);
        if idle.is_none() && unset.is_none() && limits.until.is_none() {
            return Timers::Unlimited;
        }
        let until =
            limits.until.map(|(end, (name, limit))| (name, (limit, Box::pin(sleep_until(end.into())))));
        let idle = idle.map(|limit| timer(limit, Instant::now()));
        Timers::Set(Box::new(Self { idle, request_bytes, answer: None, attempt_idle: None, unset, until }))
    }

    fn poll(&mut self, cx: &mut Context<'_>, request: &Replay) -> Option<Problem> {
        if let Some(unset) = self.unset
            && let Poll::Ready(ended) = request.poll_ended(cx)
        {
            self.unset = None;
            self.answer = unset.answer.map(|limit| timer(limit, ended.into()));
            self.attempt_idle = unset.attempt_idle.map(|limit| timer(limit, Instant::now()));
        }
        let mut over = |timer: Option<&mut Timer>| {
            let (limit, sleep) = timer?;
            sleep.as_mut().poll(cx).is_ready().then_some(*limit)
        };
        let request_bytes = request.bytes();
        let idle = loop {
            let idle = over(self.idle.as_mut());
            if idle.is_none() || request_bytes == self.request_bytes {
                break idle;
            }
            // The client has sent something meanwhile.
            self.request_bytes = request_bytes;
            if let Some((limit, sleep)) = &mut self.idle {
                sleep.as_mut().reset(Instant::now() + *limit);
            }
        };
        let (token, flags, name, limit) = if let Some(limit) = idle {
            ("connection_read_timeout", "SI", "idle", limit)
        } else if let Some(limit) = over(self.attempt_idle.as_mut()) {
            ("connection_read_timeout", "SI", "perTryIdle", limit)
        } else if let Some(limit) = over(self.answer.as_mut()) {
            ("http_response_timeout", "UT", "request", limit)
        } else {
            let (name, timer) = self.until.as_mut()?;
            ("http_response_timeout", "DT", *name, over(Some(timer))?)
        };
        Some(Problem::new(token, flags, format!("the timeout {name}={limit:?} is over")))
    }

    fn moved(&mut self) {
        for (limit, sleep) in [&mut self.idle, &mut self.attempt_idle].into_iter().flatten() {
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
        let Some(mut pace) = this.pace.take() else { return this.poll_next(cx) };
        let next = pace.poll(cx, |cx| this.poll_next(cx));
        this.pace = Some(pace);
        next
    }

    fn is_end_stream(&self) -> bool {
        self.held() == 0 && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (left, held) = (self.body.size_hint(), self.held());
        let mut hint = SizeHint::new();
        hint.set_lower(left.lower().saturating_add(held));
        if let Some(upper) = left.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }
}

impl Drop for Accounted {
    fn drop(&mut self) {
        let whole = self.bodiless || self.body.is_end_stream();
        let gone = || {
            let details = "the client went away before the end".to_owned();
            Problem::new("http_request_error", "DC", details)
        };
        self.finish((!whole).then(gone), false);
    }
}

//! A request's body that can be sent again.
//!
//! In: the client's body. Out: one body per attempt, each from the beginning: what earlier attempts have read is kept
//! while it streams, up to [`MAX_REPLAY`] bytes. A longer body is passed on without being kept, and the request can't
//! be tried again once some of it is gone. It is also where the request's bytes are counted and its end is seen.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use smallvec::SmallVec;

use crate::http::body::{Body, BodyError};

/// The longest body that is kept for another attempt, in bytes.
pub(crate) const MAX_REPLAY: usize = 64 * 1024;

/// The body of one request, for all of its attempts. A handle: clones share it.
#[derive(Clone)]
pub(crate) struct Replay(Rc<RefCell<Shared>>);

struct Shared {
    source: Body,
    /// What has been read, while it is kept.
    kept: SmallVec<[Bytes; 2]>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    /// `false` once something that was read is not kept.
    complete: bool,
    /// Keep what is read from now on.
    keeping: bool,
    bytes: u64,
    end: Option<End>,
    /// Who waits for the end.
    waiting: Option<Waker>,
}

/// How a request's body ended.
#[derive(Clone)]
struct End {
    at: Instant,
    error: Option<BodyError>,
}

/// The body of one attempt.
pub(crate) struct Attempt {
    shared: Rc<RefCell<Shared>>,
    /// How many of the kept pieces it has read.
    read: usize,
    trailers_read: bool,
}

impl Replay {
    /// Takes the client's body. `now`: when a request without a body ended.
    pub(crate) fn new(source: Body, now: Instant) -> Self {
        let end = source.is_end_stream().then_some(End { at: now, error: None });
        Self(Rc::new(RefCell::new(Shared {
            source,
            kept: SmallVec::new(),
            kept_bytes: 0,
            trailers: None,
            complete: true,
            keeping: true,
            bytes: 0,
            end,
            waiting: None,
        })))
    }

    /// Whether the body can be sent again from its beginning.
    pub(crate) fn is_kept(&self) -> bool {
        self.0.borrow().complete
    }

    /// The body for another attempt: from its beginning while it is kept, else what is left of it.
    pub(crate) fn body(&self) -> Body {
        if self.0.borrow().is_empty() {
            return Body::Empty;
        }
        Body::Replay(Attempt { shared: self.0.clone(), read: 0, trailers_read: false })
    }

    /// The whole body where it has ended and was kept, with a copy of its trailers.
    pub(crate) fn whole(&self) -> Option<Self> {
        let shared = self.0.borrow();
        let ended = shared.end.as_ref().is_some_and(|end| end.error.is_none());
        (shared.complete && ended).then(|| {
            Self(Rc::new(RefCell::new(Shared {
                source: Body::Empty,
                kept: shared.kept.clone(),
                kept_bytes: shared.kept_bytes,
                trailers: shared.trailers.clone(),
                complete: true,
                keeping: true,
                bytes: shared.bytes,
                end: shared.end.clone(),
                waiting: None,
            })))
        })
    }

    /// Stops keeping what is read from now on, and forgets what was kept: nothing will be sent again.
    pub(crate) fn release(&self) {
        let mut shared = self.0.borrow_mut();
        shared.keeping = false;
        shared.forget();
    }

    /// How many bytes have come from the client.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.borrow().bytes
    }

    /// When the last byte had come; `None` while more may come.
    pub(crate) fn ended(&self) -> Option<Instant> {
        self.0.borrow().end.as_ref().map(|end| end.at)
    }

    /// Waits for the last byte: when it had come.
    pub(crate) fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<Instant> {
        let mut shared = self.0.borrow_mut();
        match &shared.end {
            Some(end) => Poll::Ready(end.at),
            None => {
                shared.waiting = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Shared {
    fn is_empty(&self) -> bool {
        self.end.is_some() && self.bytes == 0 && self.trailers.is_none() && self.source.is_end_stream()
    }

    fn forget(&mut self) {
        self.complete = self.bytes == 0;
        self.kept.clear();
        self.kept_bytes = 0;
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(End { error, .. }) = &self.end {
            return Poll::Ready(error.clone().map(Err));
        }
        let next = match Pin::new(&mut self.source).poll_frame(cx) {
            Poll::Ready(next) => next,
            Poll::Pending => return Poll::Pending,
        };
        match &next {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.keep(data);
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.trailers = Some(trailers.clone());
                }
                if self.source.is_end_stream() {
                    self.finish(None);
                }
            }
            Some(Err(error)) => self.finish(Some(error.clone())),
            None => self.finish(None),
        }
        Poll::Ready(next)
    }

    fn keep(&mut self, data: &Bytes) {
        self.bytes += data.len() as u64;
        if self.complete && self.keeping && self.kept_bytes + data.len() <= MAX_REPLAY {
            self.kept_bytes += data.len();
            self.kept.push(data.clone());
        } else {
            self.forget();
        }
    }

    fn finish(&mut self, error: Option<BodyError>) {
        self.end = Some(End { at: Instant::now(), error });
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }
}

impl http_body::Body for Attempt {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut shared = this.shared.borrow_mut();
        if let Some(piece) = shared.kept.get(this.read) {
            this.read += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if shared.end.is_some() && !this.trailers_read && shared.trailers.is_some() {
            this.trailers_read = true;
            return Poll::Ready(shared.trailers.clone().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let next = shared.poll_source(cx);
        // What came just now was kept behind what this attempt has read, or is not kept at all.
        this.read = shared.kept.len();
        this.trailers_read = shared.trailers.is_some();
        next
    }

    fn is_end_stream(&self) -> bool {
        let shared = self.shared.borrow();
        let ended = shared.end.as_ref().is_some_and(|end| end.error.is_none());
        ended && self.read >= shared.kept.len() && (self.trailers_read || shared.trailers.is_none())
    }

    fn size_hint(&self) -> SizeHint {
        let shared = self.shared.borrow();
        let kept: u64 = shared.kept.iter().skip(self.read).map(|piece| piece.len() as u64).sum();
        let rest = shared.source.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(kept + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(kept + upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::future::poll_fn;

    /// A body in pieces, one for each call of the attempt before it.
    fn source(size: usize) -> Replay {
        Replay::new(Body::Full(vec![7; size].into()), Instant::now())
    }

    async fn read(body: Body) -> Result<usize, BodyError> {
        body.collect().await.map(|whole| whole.to_bytes().len())
    }

    #[tokio::test]
    async fn a_short_body_can_be_sent_any_number_of_times() {
        let replay = source(MAX_REPLAY);
        assert_eq!(replay.ended(), None);
        for _ in 0..3 {
            assert!(replay.is_kept());
            let body = replay.body();
            assert_eq!(body.size_hint().exact(), Some(MAX_REPLAY as u64));
            assert_eq!(read(body).await, Ok(MAX_REPLAY));
        }
        assert_eq!(replay.bytes(), MAX_REPLAY as u64);
        assert!(replay.ended().is_some() && replay.whole().is_some());
    }

    #[tokio::test]
    async fn a_long_body_is_sent_once_and_whole() {
        let replay = source(MAX_REPLAY + 1);
        assert_eq!(read(replay.body()).await, Ok(MAX_REPLAY + 1));
        assert!(!replay.is_kept() && replay.whole().is_none());
        assert_eq!(replay.0.borrow().kept_bytes, 0);
    }

    #[tokio::test]
    async fn an_attempt_that_stops_in_the_middle_loses_nothing() {
        let replay = source(10);
        let mut first = replay.body();
        poll_fn(|cx| Pin::new(&mut first).poll_frame(cx)).await.expect("a frame").expect("no error");
        drop(first);
        assert_eq!(read(replay.body()).await, Ok(10));
    }

    #[tokio::test]
    async fn what_was_released_is_not_sent_again_but_what_is_left_goes_on() {
        let replay = source(10);
        let body = replay.body();
        replay.release();
        assert_eq!(read(body).await, Ok(10));
        assert!(!replay.is_kept());
    }

    #[tokio::test]
    async fn no_body_is_no_work() {
        let replay = Replay::new(Body::Empty, Instant::now());
        assert!(matches!(replay.body(), Body::Empty));
        poll_fn(|cx| replay.poll_ended(cx)).await;
    }
}

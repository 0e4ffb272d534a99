//! Answers that go no faster than they may (an injected fault).
//!
//! In: frames, or what comes after a switch of protocols. Out: the same bytes in slices of a sixteenth of a second's worth, as Envoy
//! has them, and the trailers behind the last.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep_until};

use super::body::BodyError;
use super::fault::Suffering;

/// How fast an answer goes, and what of its body has to wait.
pub(super) struct Pace {
    /// Bytes a second.
    rate: u64,
    held: Bytes,
    /// When the next slice may go.
    next: Instant,
    sleep: Pin<Box<Sleep>>,
    /// Until the end the fault goes on.
    _suffering: Suffering,
}

/// What the next of a body is.
type Next = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

impl Pace {
    /// So many KiB a second.
    pub(super) fn new(kib: u64, suffering: Suffering) -> Self {
        let now = Instant::now();
        let rate = kib.saturating_mul(1024).max(1);
        Self { rate, held: Bytes::new(), next: now, sleep: Box::pin(sleep_until(now)), _suffering: suffering }
    }

    /// The next slice of a body whose next frame is what `poll` gives.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> Next) -> Next {
        if self.held.is_empty() {
            match ready!(poll(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.held = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                other => return Poll::Ready(other),
            }
        }
        let most = ready!(self.poll_turn(cx));
        let slice = self.held.split_to(self.held.len().min(most));
        self.went(slice.len());
        Poll::Ready(Some(Ok(Frame::data(slice))))
    }

    /// When more may go, how many bytes of it.
    pub(super) fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        if self.next > Instant::now() {
            self.sleep.as_mut().reset(self.next);
            ready!(self.sleep.as_mut().poll(cx));
        }
        Poll::Ready(usize::try_from((self.rate / SLICES).max(1)).unwrap_or(usize::MAX))
    }

    /// So many bytes of a turn have gone.
    pub(super) fn went(&mut self, bytes: usize) {
        let now = Instant::now();
        // What was not used is lost after a second.
        let since = self.next.max(now.checked_sub(Duration::from_secs(1)).unwrap_or(now));
        self.next = since + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
    }

    /// How many bytes wait.
    pub(super) fn held(&self) -> u64 {
        self.held.len() as u64
    }
}

/// In a second.
const SLICES: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::fault::Active;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn a_body_takes_as_long_as_its_bytes() {
        let active = Active::default();
        let mut pace = Pace::new(1, active.begin(None).expect("unlimited"));
        let begun = Instant::now();
        let mut frames = vec![Frame::data(Bytes::from(vec![b'x'; 2048]))].into_iter();
        let (mut slices, mut bytes) = (0, 0);
        while let Some(frame) = poll_fn(|cx| pace.poll(cx, |_| Poll::Ready(frames.next().map(Ok)))).await {
            let data = frame.expect("whole").into_data().expect("bytes");
            slices += 1;
            bytes += data.len();
        }
        assert_eq!((slices, bytes, pace.held()), (32, 2048, 0));
        let took = begun.elapsed();
        assert!(took > Duration::from_millis(1900) && took < Duration::from_millis(2100), "{took:?}");
        assert!(active.begin(Some(1)).is_none());
        drop(pace);
        assert!(active.begin(Some(1)).is_some());
    }
}

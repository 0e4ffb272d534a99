//! One timer for all deadlines of a connection, moved as seldom as possible.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// A timer whose deadline may be another at each poll. Deadlines mostly move away from now: the timer is left where it
/// is until it fires, and only then moved to where the deadline has got to.
pub(crate) struct Timer(Pin<Box<Sleep>>);

impl Timer {
    /// A timer that first fires after `duration` at the latest.
    pub(crate) fn new(duration: Duration) -> Self {
        Self(Box::pin(sleep(duration)))
    }

    /// Ready when `due` has passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        if due < self.0.deadline() {
            self.0.as_mut().reset(due);
        }
        loop {
            ready!(self.0.as_mut().poll(cx));
            if due <= self.0.deadline() {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_may_move_in_both_directions() {
        let start = Instant::now();
        let mut timer = Timer::new(Duration::from_secs(60));
        poll_fn(|cx| timer.poll(cx, start + Duration::from_secs(10))).await;
        assert_eq!(start.elapsed().as_secs(), 10);
        poll_fn(|cx| timer.poll(cx, start + Duration::from_secs(30))).await;
        assert_eq!(start.elapsed().as_secs(), 30);
    }
}

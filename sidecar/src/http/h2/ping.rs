//! Finds out that the other end of an idle connection is gone.

use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::Instant;

use crate::http::server::Timer;

const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Pings the peer now and then.
pub(crate) struct KeepAlive {
    ping_pong: PingPong,
    timer: Timer,
    due: Instant,
    waiting: bool,
}

impl KeepAlive {
    /// Keeps the connection of `ping_pong` alive.
    pub(crate) fn new(ping_pong: PingPong) -> Self {
        Self { ping_pong, timer: Timer::new(INTERVAL), due: Instant::now() + INTERVAL, waiting: false }
    }

    /// Ready when the peer does not answer.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.waiting {
                match self.ping_pong.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.waiting = false;
                        self.due = Instant::now() + INTERVAL;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => return self.timer.poll(cx, self.due),
                }
            }
            if self.timer.poll(cx, self.due).is_pending() {
                return Poll::Pending;
            }
            if self.ping_pong.send_ping(Ping::opaque()).is_err() {
                return Poll::Ready(());
            }
            self.waiting = true;
            self.due = Instant::now() + TIMEOUT;
        }
    }
}

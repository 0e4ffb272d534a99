//! Finds out that the other end of a connection is gone, though its host may answer.

use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::Instant;

use crate::http::server::Timer;

/// How often a peer is asked, and how long the answer may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// From an answer to the next question.
    pub(crate) interval: Duration,
    /// From the question on.
    pub(crate) timeout: Duration,
}

impl Pace {
    /// For peers on the path of requests.
    pub(crate) const CALM: Self =
        Self { interval: Duration::from_secs(30), timeout: Duration::from_secs(10) };
}

/// Pings the peer now and then.
pub(crate) struct KeepAlive {
    ping_pong: PingPong,
    pace: Pace,
    timer: Timer,
    due: Instant,
    waiting: bool,
}

impl KeepAlive {
    /// Keeps the connection of `ping_pong` alive.
    pub(crate) fn new(ping_pong: PingPong, pace: Pace) -> Self {
        let timer = Timer::new(pace.interval);
        Self { ping_pong, pace, timer, due: Instant::now() + pace.interval, waiting: false }
    }

    /// Ready when the peer does not answer. `may`: whether it may be pinged at this time; it is asked each time that it
    /// would be.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, mut may: impl FnMut(Instant) -> bool) -> Poll<()> {
        loop {
            if self.waiting {
                match self.ping_pong.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.waiting = false;
                        self.due = Instant::now() + self.pace.interval;
                    }
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => return self.timer.poll(cx, self.due),
                }
            }
            if self.timer.poll(cx, self.due).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if !may(now) {
                self.due = now + self.pace.interval;
                continue;
            }
            if self.ping_pong.send_ping(Ping::opaque()).is_err() {
                return Poll::Ready(());
            }
            self.waiting = true;
            self.due = now + self.pace.timeout;
        }
    }
}

/// When a server may be pinged, as gRPC has it (gRFC A8): while a call waits for something, and twice at the most until the
/// server has said something on one of them, but for once in five minutes. Servers of gRPC end the connection, and every
/// call on it, of who pings them more often.
pub(crate) struct Restraint {
    /// Since the server said something.
    pings: u32,
    last: Instant,
}

/// Pings until the server has said something.
const MOST: u32 = 2;
/// The time between two more: what servers allow, five minutes, and some for the way.
const RARE: Duration = Duration::from_secs(330);

impl Restraint {
    /// Of a connection that began with a ping at `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Self { pings: 1, last: now }
    }

    /// Whether a ping may be sent at `now`, which is then taken to be sent. `heard`: the server has said something on a
    /// call since this was asked last; `waits`: a call waits for something.
    pub(crate) fn may(&mut self, now: Instant, heard: bool, waits: bool) -> bool {
        if heard {
            self.pings = 0;
        }
        let may = waits && (self.pings < MOST || now.saturating_duration_since(self.last) >= RARE);
        if may {
            (self.pings, self.last) = (self.pings.saturating_add(1), now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seconds at which a server is pinged that is asked for each interval of `seconds`, where it says something at
    /// those of `heard` and a call waits in those that `waits` is true of.
    fn pinged(seconds: u64, heard: &[u64], waits: impl Fn(u64) -> bool) -> Vec<u64> {
        let begun = Instant::now();
        let mut restraint = Restraint::new(begun);
        let times = (30..=seconds).step_by(30);
        times
            .filter(|at| {
                let heard = heard.iter().any(|heard| *heard > at - 30 && heard <= at);
                restraint.may(begun + Duration::from_secs(*at), heard, waits(*at))
            })
            .collect()
    }

    #[test]
    fn a_silent_call_costs_two_pings_and_then_one_in_five_minutes_and_a_half() {
        assert_eq!(
            pinged(1200, &[], |_| true),
            [30, 360, 690, 1020],
            "the first was sent as the connection began"
        );
        assert_eq!(pinged(600, &[10], |_| true), [30, 60, 390]);
        assert_eq!(pinged(300, &[10, 100, 101], |_| true), [30, 60, 120, 150]);
    }

    #[test]
    fn who_waits_for_nothing_pings_nobody() {
        assert_eq!(pinged(1200, &[10, 500], |_| false), [0; 0]);
        assert_eq!(pinged(600, &[10], |at| at > 200), [210, 240, 570]);
    }
}

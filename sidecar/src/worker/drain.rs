//! How a worker's connections learn that the sidecar goes away.
//!
//! A drain has steps. First ([`Phase::Lame`]) peers are told to go elsewhere, but whatever they still send is
//! served: HTTP/1 answers carry `Connection: close`, HTTP/2 connections send GOAWAY. Some time later
//! ([`Phase::Closing`]) connections without a request in flight are closed. What is in flight is cut only by the end of
//! the process ([`Phase::Over`]).

use std::cell::Cell;

use tokio::sync::Notify;

/// How far a drain has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// There is none.
    #[default]
    Running,
    /// Peers are told to go elsewhere, and still served.
    Lame,
    /// Connections are closed as soon as nothing is in flight on them.
    Closing,
    /// The process ends, and what is still in flight with it.
    Over,
}

/// One worker's view of the drain.
#[derive(Default)]
pub(crate) struct Drain {
    phase: Cell<Phase>,
    changed: Notify,
}

impl Drain {
    /// How far it has come.
    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Waits until it has come at least as far as `phase`. Cancel-safe.
    pub(crate) async fn reached(&self, phase: Phase) {
        while self.phase.get() < phase {
            // A waiter made before a change is woken by it, polled or not; nothing runs between the two lines.
            self.changed.notified().await;
        }
    }

    /// Goes on to `phase`; there is no way back.
    pub(crate) fn advance(&self, phase: Phase) {
        if phase > self.phase.get() {
            self.phase.set(phase);
            self.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn waiters_wake_at_their_phase_and_not_before() {
        let drain = Drain::default();
        let mut lame = Box::pin(drain.reached(Phase::Lame));
        let mut closing = Box::pin(drain.reached(Phase::Closing));
        assert!(lame.as_mut().now_or_never().is_none());
        assert!(closing.as_mut().now_or_never().is_none());

        drain.advance(Phase::Lame);
        assert!(lame.as_mut().now_or_never().is_some());
        assert!(closing.as_mut().now_or_never().is_none());

        drain.advance(Phase::Closing);
        drain.advance(Phase::Lame);
        assert_eq!(drain.phase(), Phase::Closing);
        assert!(closing.now_or_never().is_some());
        assert!(drain.reached(Phase::Lame).now_or_never().is_some());
    }
}

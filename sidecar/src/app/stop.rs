//! How the sidecar goes away.
//!
//! In: SIGTERM, SIGINT or `POST /drain`. Out: the phases of the drain, for the workers; and the end, when nothing is open
//! any more, the grace period is over, or a second signal says that it is urgent.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::config::Drain;
use crate::worker::drain::Phase;

/// What starts the drain, and how far it has come.
pub(crate) struct Stop {
    asked: Notify,
    phase: watch::Sender<Phase>,
}

impl Stop {
    /// Nothing has been asked for yet.
    pub(crate) fn new(phase: watch::Sender<Phase>) -> Self {
        Self { asked: Notify::new(), phase }
    }

    /// Starts the drain; again, it does nothing.
    pub(crate) fn ask(&self) {
        self.asked.notify_one();
    }

    /// How far the drain has come.
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until the sidecar shall go away, and takes it through the phases of its drain. `connections` counts those
    /// that are open.
    pub(super) async fn run(&self, settings: Drain, signals: &mut Signals, connections: impl Fn() -> usize) {
        tokio::select! {
            name = signals.next() => tracing::info!("draining because of {name}; a second signal ends the sidecar at once"),
            () = self.asked.notified() => tracing::info!("draining because the admin interface was told so"),
        }
        let drained = async {
            let start = Instant::now();
            self.phase.send_replace(Phase::Lame);
            sleep(settings.lame_duck).await;
            self.phase.send_replace(Phase::Closing);
            let end = start + settings.grace_period;
            if timeout_at(end, closed(&connections)).await.is_err() {
                tracing::warn!(
                    connections = connections(),
                    "the grace period is over; what is still open is cut"
                );
            }
        };
        tokio::select! {
            () = drained => {}
            name = signals.next() => {
                tracing::warn!(connections = connections(), "ended at once because of a second signal ({name})");
            }
        }
        self.phase.send_replace(Phase::Over);
    }
}

/// Waits until there are no connections.
async fn closed(connections: impl Fn() -> usize) {
    while connections() > 0 {
        sleep(LOOK_AGAIN).await;
    }
}

/// The workers are not made to report their last connection for this one moment of a process's life.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The signals that end the sidecar.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on the signals don't end the process by themselves.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Runs `future` for as long as `limit` allows.
pub(super) async fn at_most(limit: Duration, future: impl Future<Output = ()>) {
    if timeout(limit, future).await.is_err() {
        tracing::warn!("spans that were not exported within {limit:?} are lost");
    }
}

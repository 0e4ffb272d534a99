//! Follows the state folder while the control plane runs, so that a step of a [rotation](super::rotation) takes effect by
//! itself.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Authority;

/// A step writes several files; they are read together.
const SETTLE: Duration = Duration::from_millis(50);

/// How often the folder is read where the system can't watch it, or misses something.
const POLL: Duration = Duration::from_secs(10);

/// Reads the roots again whenever they change, until `stop`. A folder that can't be used leaves the roots as they were.
pub async fn follow(authority: Arc<Authority>, stop: CancellationToken) {
    let (notice, mut notices) = mpsc::channel(1);
    // Held to the end: without a watcher nobody else keeps the channel open.
    let watcher = watcher(&authority, notice.clone());
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            noticed = timeout(POLL, notices.recv()) => {
                if noticed.is_ok() {
                    sleep(SETTLE).await;
                    while notices.try_recv().is_ok() {}
                }
            }
        }
        let reloaded = authority.reload();
        tell(&authority, reloaded);
    }
    drop(watcher);
}

/// Says in the log what became of roots that were read again: whether they changed.
pub(super) fn tell(authority: &Authority, changed: Result<bool, impl Display>) {
    match changed {
        Ok(true) => {
            let roots: Vec<_> =
                authority.bundle().borrow().roots.iter().map(|root| root.id.clone()).collect();
            tracing::info!(?roots, "the trusted roots changed");
        }
        Ok(false) => {}
        Err(error) => tracing::error!(%error, "the roots stay as they are"),
    }
}

fn watcher(authority: &Authority, notice: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let notified = move |event: notify::Result<notify::Event>| {
        // Reading the folder makes access events of its own.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            // A full channel already says that there is something to read.
            let _ = notice.try_send(());
        }
    };
    let watched = notify::recommended_watcher(notified).and_then(|mut watcher| {
        watcher.watch(authority.dir(), RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    watched
        .inspect_err(
            |error| tracing::warn!(%error, "can't watch the state folder; it is read from time to time"),
        )
        .ok()
}

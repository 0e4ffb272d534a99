//! Watching a folder.
//!
//! In: the system's notices of changes. Out: a new [`Loaded`] after each change that matters. Editors that save by
//! renaming, and mounted ConfigMaps that are switched by a link, are noticed like any other change. Where the system
//! can't watch, or does not see everything (links that lead elsewhere, network file systems), the folder is read again
//! from time to time.

use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Loaded, ManifestsSource};

/// Changes that follow each other within this time are read together.
const SETTLE: Duration = Duration::from_millis(50);
/// A folder that never comes to rest is read at least this often.
const SETTLE_AT_MOST: Duration = Duration::from_millis(500);
/// How often the folder is read when it is watched.
const POLL_WATCHED: Duration = Duration::from_secs(10);
/// How often the folder is read when it can't be watched.
const POLL: Duration = Duration::from_secs(1);

impl ManifestsSource {
    /// Keeps `sender` up to date with the folder until all its receivers are gone. The value there is replaced only
    /// when an object or a problem has changed. Reading blocks for the time of the file system; with a folder on a slow
    /// one, give this future a thread of its own.
    pub async fn watch(mut self, sender: watch::Sender<Arc<Loaded>>) {
        let (notice, mut notices) = mpsc::channel(1);
        // Held to the end: without a watcher nobody else keeps the channel open.
        let watcher = self.watcher(notice.clone());
        let poll = if watcher.is_some() { POLL_WATCHED } else { POLL };
        // What changed between the first reading and the start of watching is seen now.
        self.publish(&sender);
        loop {
            tokio::select! {
                () = sender.closed() => return,
                noticed = timeout(poll, notices.recv()) => {
                    if let Ok(Some(())) = noticed {
                        settle(&mut notices).await;
                    }
                }
            }
            self.publish(&sender);
        }
    }

    fn watcher(&self, notice: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
        let notified = move |event: notify::Result<notify::Event>| {
            // Reading the folder makes access events of its own.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                // A full channel already says that there is something to read.
                let _ = notice.try_send(());
            }
        };
        let result = notify::recommended_watcher(notified).and_then(|mut watcher| {
            watcher.watch(&self.folder, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        match result {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(folder = %self.folder.display(), %error, "can't watch the folder; reading it every second");
                None
            }
        }
    }

    fn publish(&mut self, sender: &watch::Sender<Arc<Loaded>>) {
        let loaded = self.reload();
        sender.send_if_modified(|current| {
            let changed = !loaded.same(current);
            if changed {
                *current = Arc::new(loaded);
            }
            changed
        });
    }
}

async fn settle(notices: &mut mpsc::Receiver<()>) {
    let end = Instant::now() + SETTLE_AT_MOST;
    loop {
        let quiet = (Instant::now() + SETTLE).min(end);
        tokio::select! {
            () = sleep_until(quiet) => return,
            more = notices.recv() => {
                if more.is_none() || Instant::now() >= end {
                    return;
                }
            }
        }
    }
}

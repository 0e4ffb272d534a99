//! What all workers serve from.
//!
//! In: the snapshots as they are published, whether they suffice for traffic, and how far each worker has come. Out: the
//! newest that no worker is still behind of. What the sidecar says of itself is this: who has read it and then sends a
//! request finds it so.

use std::sync::Arc;

use tokio::sync::watch;

use crate::snapshot::Snapshot;
use crate::worker;
use crate::xds::{Handle, Readiness};

/// What all workers serve from.
#[derive(Clone, Default)]
pub(crate) struct InForce {
    /// The configuration.
    pub(crate) snapshot: Arc<Snapshot>,
    /// Whether it suffices for traffic.
    pub(crate) readiness: Readiness,
}

/// Follows `handle`: what it publishes is in force once each of the workers has `installed` it or something newer.
pub(super) fn follow(handle: &Handle, installed: Vec<watch::Receiver<u64>>) -> watch::Receiver<InForce> {
    let (sender, in_force) = watch::channel(InForce::default());
    let (snapshots, readiness) = (handle.snapshots.clone(), handle.readiness.clone());
    tokio::spawn(run(snapshots, readiness, installed, sender));
    in_force
}

async fn run(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    mut readiness: watch::Receiver<Readiness>,
    mut installed: Vec<watch::Receiver<u64>>,
    in_force: watch::Sender<InForce>,
) {
    loop {
        // In this order: what is said of a snapshot comes after it.
        let readiness_then = *readiness.borrow_and_update();
        let snapshot = snapshots.borrow_and_update().clone();
        worker::all_serve(&mut installed, snapshot.generation).await;
        in_force.send_replace(InForce { snapshot, readiness: readiness_then });
        let changed = tokio::select! {
            changed = snapshots.changed() => changed,
            changed = readiness.changed() => changed,
            () = in_force.closed() => return,
        };
        if changed.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::task::yield_now;

    use super::*;

    fn snapshot(generation: u64) -> Arc<Snapshot> {
        Arc::new(Snapshot { generation, ..Snapshot::default() })
    }

    #[tokio::test]
    async fn a_snapshot_is_in_force_when_the_last_worker_has_it() {
        let (newest, snapshots) = watch::channel(snapshot(0));
        let (ready, readiness) = watch::channel(Readiness::default());
        let (workers, installed): (Vec<_>, Vec<_>) = (0..2).map(|_| watch::channel(0)).unzip();
        let (sender, mut in_force) = watch::channel(InForce::default());
        tokio::spawn(run(snapshots, readiness, installed, sender));
        in_force.changed().await.expect("it follows");

        let all = Readiness { certificate: true, configuration: true };
        newest.send_replace(snapshot(1));
        ready.send_replace(all);
        workers[0].send_replace(1);
        for _ in 0..100 {
            yield_now().await;
            assert!(in_force.changed().now_or_never().is_none(), "one worker is still behind");
        }
        // It need not have had each of them.
        newest.send_replace(snapshot(2));
        workers[1].send_replace(2);
        in_force.changed().await.expect("it follows");
        assert_eq!((in_force.borrow().snapshot.generation, in_force.borrow().readiness), (1, all));
        workers[0].send_replace(2);
        in_force.changed().await.expect("it follows");
        assert_eq!(in_force.borrow().snapshot.generation, 2);
        // One that has ended holds nothing up.
        drop(workers);
        newest.send_replace(snapshot(3));
        in_force.changed().await.expect("it follows");
        assert_eq!(in_force.borrow().snapshot.generation, 3);
    }
}

//! The threads of the workers, and what connects them to the control thread and to each other.

use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use super::drain::Phase;
use super::{Load, OpenConnection, Shared, Worker};
use crate::listener::{self, Acceptor, Detached, Place};
use crate::snapshot::Snapshot;

/// Where a worker takes over connections that another has accepted.
#[derive(Clone)]
pub(crate) struct Seat {
    /// How many connections it has.
    pub(crate) load: Load,
    connections: UnboundedSender<(Detached, OpenConnection)>,
}

impl Seat {
    /// A seat, and what is handed over to it.
    pub(crate) fn new() -> (Self, Handed) {
        let (connections, handed) = unbounded_channel();
        (Self { load: Load::default(), connections }, handed)
    }

    /// Hands a connection over; it counts as the worker's load at once.
    pub(crate) fn give(&self, connection: Detached) {
        // A worker that is gone takes no connections; its own end closes this one.
        let _ = self.connections.send((connection, self.load.open()));
    }
}

/// The running workers.
pub(crate) struct Spawned {
    threads: Vec<JoinHandle<io::Result<()>>>,
    /// The load of each.
    pub(crate) loads: Vec<Load>,
    /// The generation of the snapshot that each serves from.
    pub(crate) installed: Vec<watch::Receiver<u64>>,
}

impl Spawned {
    /// The number of open downstream connections of all workers.
    pub(crate) fn connections(&self) -> usize {
        self.loads.iter().map(Load::connections).sum()
    }

    /// Waits for the workers' end, which comes with [`Phase::Over`].
    ///
    /// # Errors
    /// The first error that kept a worker from starting.
    pub(crate) fn join(self) -> io::Result<()> {
        self.threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a worker has panicked"))))
            .fold(Ok(()), io::Result::and)
    }
}

/// What a worker hears from the control thread.
#[derive(Clone)]
pub(crate) struct Signals {
    /// The newest snapshot.
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    /// How far the drain has come.
    pub(crate) drain: watch::Receiver<Phase>,
}

/// Starts `number` workers. The first of them accepts the connections of all `listeners`, and keeps those for which no
/// other worker has fewer.
///
/// # Errors
/// When the system gives no thread.
pub(crate) fn spawn(
    number: usize,
    listeners: Listeners,
    shared: Shared,
    signals: &Signals,
) -> io::Result<Spawned> {
    let (seats, receivers): (Vec<Seat>, Vec<Handed>) = (0..number).map(|_| Seat::new()).unzip();
    let loads = seats.iter().map(|seat| seat.load.clone()).collect();
    let mut listeners = Some(listeners);
    let (mut threads, mut installed) = (Vec::new(), Vec::new());
    for (id, connections) in receivers.into_iter().enumerate() {
        let (shared, signals) = (shared.clone(), signals.clone());
        let role = Role { accept: listeners.take().map(|listeners| (listeners, seats.clone())), connections };
        let (installs, generation) = watch::channel(0);
        installed.push(generation);
        let thread = std::thread::Builder::new().name(format!("worker-{id}"));
        threads.push(thread.spawn(move || run(id, role, shared, signals, installs))?);
    }
    Ok(Spawned { threads, loads, installed })
}

/// Waits until all workers serve from the snapshot of this generation, or a newer one. `installed` is [`Spawned`]'s.
pub(crate) async fn all_serve(installed: &mut [watch::Receiver<u64>], generation: u64) {
    for worker in installed {
        // A worker that has ended serves nothing that could differ.
        let _ = worker.wait_for(|installed| *installed >= generation).await;
    }
}

/// Connections that others have accepted for a worker.
pub(crate) type Handed = UnboundedReceiver<(Detached, OpenConnection)>;

/// Sockets that listen, and what for.
pub(crate) type Listeners = Vec<(TcpListener, Arc<Place>)>;

/// What one worker has to do with accepting.
struct Role {
    /// Where it accepts, and the seats of all workers; for the first one alone.
    accept: Option<(Listeners, Vec<Seat>)>,
    /// What others have accepted for it.
    connections: Handed,
}

fn run(
    id: usize,
    role: Role,
    shared: Shared,
    signals: Signals,
    installed: watch::Sender<u64>,
) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(work(id, role, shared, signals, installed))
}

async fn work(
    id: usize,
    role: Role,
    shared: Shared,
    signals: Signals,
    installed: watch::Sender<u64>,
) -> io::Result<()> {
    let Signals { mut snapshots, mut drain } = signals;
    let snapshot = snapshots.borrow_and_update().clone();
    let generation = snapshot.generation;
    let worker = Worker::new(id, shared, snapshot);
    installed.send_replace(generation);
    if let Some((listeners, seats)) = role.accept {
        for (listener, place) in listeners {
            let is_inbound = place.is_inbound();
            let acceptor = Acceptor::new(listener, place, worker.clone(), seats.clone())?;
            let worker = worker.clone();
            tokio::task::spawn_local(async move {
                if is_inbound {
                    tokio::select! {
                        // To be refused proves to a peer that nothing was processed: it goes elsewhere.
                        () = worker.drain.reached(Phase::Closing) => {}
                        () = acceptor.run() => {}
                    }
                } else {
                    // The application may still need connections for what it has in flight.
                    acceptor.run().await;
                }
            });
        }
    }
    tokio::task::spawn_local(take_over(role.connections, worker.clone()));
    tokio::task::spawn_local({
        let worker = worker.clone();
        async move {
            while snapshots.changed().await.is_ok() {
                let newest = snapshots.borrow_and_update().clone();
                let generation = newest.generation;
                worker.install(newest);
                installed.send_replace(generation);
            }
        }
    });
    loop {
        let phase = *drain.borrow_and_update();
        worker.drain.advance(phase);
        // A control thread that is gone can't end the worker any more.
        if phase == Phase::Over || drain.changed().await.is_err() {
            // The runtime ends with this future, and every connection with it.
            return Ok(());
        }
    }
}

async fn take_over(mut connections: Handed, worker: Rc<Worker>) {
    while let Some((connection, open)) = connections.recv().await {
        match connection.attach() {
            Ok(accepted) => listener::serve(&worker, accepted, open),
            Err(error) => tracing::warn!(%error, "can't serve a connection"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::listener::testing::{
        Role as For, TcpChain, connect, listener, on_a_worker, outbound, place, server,
    };
    use crate::worker::testing::shared;

    #[test]
    fn connections_are_spread_evenly_and_end_with_the_workers() {
        on_a_worker(async {
            let (echo, server) = server().await;
            let (shared, _demands) = shared();
            let snapshot = outbound("db:1", listener(&shared.telemetry.metrics, vec![TcpChain::to(&[echo])]));
            let (_snapshots, snapshots) = watch::channel(Arc::new(snapshot));
            let (phase, drain) = watch::channel(Phase::Running);
            let (socket, place) = place(For::Service("db:1".into()));
            let address = place.address;
            let signals = Signals { snapshots, drain };
            let workers = spawn(3, vec![(socket, place)], shared, &signals).expect("threads");

            let mut clients = Vec::new();
            for _ in 0..9 {
                let mut client = connect(address).await;
                let (mut accepted, _) = server.accept().await.expect("the sidecar connects");
                // Each is carried, whichever worker has it.
                client.write_all(b"x").await.expect("open");
                assert_eq!(accepted.read_u8().await.expect("a byte"), b'x');
                clients.push((client, accepted));
            }
            let loads: Vec<usize> = workers.loads.iter().map(Load::connections).collect();
            assert_eq!(loads, [3, 3, 3]);

            clients.truncate(4);
            let deadline = Instant::now() + Duration::from_secs(5);
            while workers.connections() != 4 {
                assert!(Instant::now() < deadline, "{} are counted, 4 are open", workers.connections());
                tokio::task::yield_now().await;
            }

            // A drain alone cuts nothing; the end does.
            phase.send_replace(Phase::Closing);
            let (client, accepted) = &mut clients[0];
            accepted.write_all(b"y").await.expect("open");
            assert_eq!(client.read_u8().await.expect("a byte"), b'y');
            phase.send_replace(Phase::Over);
            workers.join().expect("no worker failed");
            assert!(clients[0].0.read_u8().await.is_err());
        });
    }
}

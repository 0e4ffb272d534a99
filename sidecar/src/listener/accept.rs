//! Accepts connections, and gives each to the worker that has the fewest.
//!
//! A socket that stays is registered with this thread's reactor; one that goes to another worker is not, so that the
//! other registers it with its own.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::connection::{Accepted, serve};
use super::place::Place;
use crate::worker::{Seat, Worker};

/// Accepts the connections of one place, on the first worker.
pub(crate) struct Acceptor {
    listener: AsyncFd<TcpListener>,
    place: Arc<Place>,
    worker: Rc<Worker>,
    seats: Vec<Seat>,
}

impl Acceptor {
    /// Registers the listener of `place` with the reactor of `worker`, whose seat is the one of its number in `seats`.
    ///
    /// # Errors
    /// When the reactor does not take it.
    pub(crate) fn new(
        listener: TcpListener,
        place: Arc<Place>,
        worker: Rc<Worker>,
        seats: Vec<Seat>,
    ) -> io::Result<Self> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe for the sake of types whose descriptor may change"
        )]
        let listener = AsyncFd::with_interest(listener, Interest::READABLE)?;
        Ok(Self { listener, place, worker, seats })
    }

    /// Accepts until it is dropped.
    pub(crate) async fn run(self) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            match self.listener.async_io(Interest::READABLE, TcpListener::accept).await {
                Ok((socket, peer)) => {
                    pause = SHORTEST_PAUSE;
                    self.seat(socket, peer);
                }
                Err(error) if is_of_one_connection(&error) => {
                    tracing::debug!(%error, "a connection was gone before it was accepted");
                }
                Err(error) => {
                    // Most likely out of file descriptors, which only time (or a higher limit) heals.
                    tracing::error!(%error, listener = %self.place.address, "can't accept connections; trying again in {pause:?}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn seat(&self, socket: TcpStream, peer: SocketAddr) {
        if let Err(error) = socket.set_nonblocking(true) {
            return tracing::debug!(%error, "a connection was gone before it was served");
        }
        let accepted = Accepted::new(socket, peer, self.place.clone());
        let here = &self.seats[self.worker.id];
        match self.seats.iter().min_by_key(|seat| seat.load.connections()) {
            Some(seat) if seat.load.connections() < here.load.connections() => seat.give(accepted),
            _ => serve(&self.worker, accepted, here.load.open()),
        }
    }
}

const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Whether an error of `accept` is that of the connection rather than of the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkDown,
        NetworkUnreachable, TimedOut,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | NetworkDown
            | NetworkUnreachable
            | TimedOut
    )
}

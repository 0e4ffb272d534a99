//! Accepts connections, and gives each to the worker that has the fewest.
//!
//! A socket that stays is registered with this thread's reactor once and for all; one that goes to another worker is
//! taken off it, so that the other registers it with its own.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::connection::{Accepted, serve};
use super::original::{self, Arrival};
use super::place::Place;
use crate::io::Stream;
use crate::redirect::probe::Direction;
use crate::worker::{Seat, Worker};

/// Accepts the connections of one place, on the first worker.
pub(crate) struct Acceptor {
    listener: TcpListener,
    place: Arc<Place>,
    worker: Rc<Worker>,
    seats: Vec<Seat>,
}

impl Acceptor {
    /// Registers the listener of `place`, which does not block, with the reactor of `worker`, whose seat is the one of
    /// its number in `seats`.
    ///
    /// # Errors
    /// When the reactor does not take it.
    pub(crate) fn new(
        listener: std::net::TcpListener,
        place: Arc<Place>,
        worker: Rc<Worker>,
        seats: Vec<Seat>,
    ) -> io::Result<Self> {
        let listener = TcpListener::from_std(listener)?;
        Ok(Self { listener, place, worker, seats })
    }

    /// Accepts until it is dropped.
    pub(crate) async fn run(self) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            match self.listener.accept().await {
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
        let destination = match original::arrival(&socket, &self.place, &self.worker.own) {
            Ok(Arrival::To(destination)) => destination,
            Ok(Arrival::Probe(direction)) => {
                tokio::task::spawn_local(prove(socket, direction));
                return;
            }
            Err(refusal) => {
                if self.worker.refusals.count(refusal) {
                    tracing::warn!(client = %peer, listener = %self.place.address, "refused a connection: {refusal}");
                }
                return Stream::from(socket).reset();
            }
        };
        let accepted = Accepted::new(socket, peer, self.place.clone(), destination);
        let here = &self.seats[self.worker.id];
        match self.seats.iter().min_by_key(|seat| seat.load.connections()) {
            Some(seat) if seat.load.connections() < here.load.connections() => match accepted.detach() {
                Ok(detached) => seat.give(detached),
                Err(error) => tracing::debug!(%error, "a connection was gone before it was served"),
            },
            _ => serve(&self.worker, accepted, here.load.open()),
        }
    }
}

/// Answers a probe of the redirection.
async fn prove(mut socket: TcpStream, direction: Direction) {
    // A prober that is gone by now needs no answer. The line fits into the socket's buffer: nobody is waited for.
    let _ = socket.write_all(direction.answer()).await;
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

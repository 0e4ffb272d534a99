//! The HTTP/2 connections to one endpoint.
//!
//! In: a slot that wants a stream. Out: a place on a connection with room for it. Requests that find no connection wait for
//! the one that is being made; if that fails, it fails for all of them. Where the cluster limits both connections and the streams
//! of each, they wait for a stream to end. Each connection is driven by one task.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::Ping;
use h2::client::{Builder, Connection, SendRequest};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tulle_mesh::identity::SpiffeId;

use super::first::{First, Watched};
use crate::balance::{Cluster, Endpoint, Limit, Permit};
use crate::http::h2::ping::{KeepAlive, Pace, Restraint};
use crate::http::h2::{CONNECTION_WINDOW, MAX_FRAME, SEND_BUFFER, STREAM_WINDOW};
use crate::tls::Alpn;
use crate::upstream::open::Open;
use crate::upstream::pool::{Slot, permit};
use crate::upstream::{ConnectError, DEFAULT_CONNECT_TIMEOUT, SendError};

/// Connections per endpoint and worker, where a cluster does not say how many streams one may carry. When all of them carry what
/// their peer allows, streams wait.
const MAX_CONNECTIONS: usize = 8;
/// The largest head of a response, in bytes, as HTTP/2 counts them.
const MAX_HEAD: u32 = 256 * 1024;

/// The HTTP/2 connections of a slot.
#[derive(Default)]
pub(crate) struct Multiplexed {
    connections: RefCell<Vec<Rc<Shared>>>,
    /// A request is making a connection.
    connecting: Cell<bool>,
    /// How many times one was begun.
    attempts: Cell<u64>,
    /// The last attempt that failed, and how.
    failed: RefCell<Option<(u64, SendError)>>,
    /// An attempt has ended.
    settled: Notify,
    /// Who waits for a stream to end.
    ended: Rc<Open>,
}

/// A connection, as its streams see it.
struct Shared {
    sender: SendRequest<Bytes>,
    peer: Option<SpiffeId>,
    /// All streams that it was ever given.
    served: Cell<u32>,
    idle_since: Cell<Instant>,
    state: Rc<State>,
    ended: Rc<Open>,
}

/// What a connection's streams and the task that drives it know of each other.
#[derive(Default)]
struct State {
    /// Streams of this worker on it.
    streams: Cell<usize>,
    /// The endpoint has said something on one of them since this was asked last.
    heard: Cell<bool>,
    /// It takes no more streams.
    closed: Cell<bool>,
}

/// A stream's place on a connection.
pub(crate) struct Lease(Rc<Shared>);

/// A place on a connection of `slot`, made if need be.
pub(super) async fn lease(slot: &Slot, endpoint: &Endpoint, cluster: &Cluster) -> Result<Lease, SendError> {
    let pool = &slot.multiplexed;
    let mut pending = None;
    loop {
        if let Some(lease) = pool.pick(slot.max_requests.get(), slot.max_streams.get()) {
            return Ok(lease);
        }
        if pending.is_none() {
            pending = Some(permit(cluster, Limit::PendingRequests)?);
        }
        if pool.connecting.get() {
            let attempt = pool.attempts.get();
            pool.settled.notified().await;
            if let Some((failed, error)) = &*pool.failed.borrow()
                && *failed == attempt
                && !pool.waits(error, slot.max_streams.get())
            {
                return Err(duplicate(error));
            }
            continue;
        }
        let attempt = Attempt::begin(pool);
        // Boxed: it is seldom needed, and large.
        match Box::pin(connect(slot, endpoint, cluster)).await {
            Ok(shared) => pool.connections.borrow_mut().push(Rc::new(shared)),
            Err(error) => {
                *pool.failed.borrow_mut() = Some((pool.attempts.get(), duplicate(&error)));
                drop(attempt);
                if pool.waits(&error, slot.max_streams.get()) {
                    pool.ended.wait().await;
                    continue;
                }
                // One that is full is better than none.
                return pool.least_loaded().ok_or(error);
            }
        }
    }
}

impl Multiplexed {
    /// A place on a connection that has room; `None` when one more connection should be made. One that has carried
    /// `most` streams takes no more, nor does one that carries `at_once`.
    fn pick(&self, most: u32, at_once: usize) -> Option<Lease> {
        let connections = &mut *self.connections.borrow_mut();
        connections.retain(|connection| !connection.state.closed.get() && connection.served.get() < most);
        let with_room = connections.iter().find(|connection| connection.has_room(at_once));
        if with_room.is_none() && connections.len() >= MAX_CONNECTIONS && at_once == usize::MAX {
            return least_loaded(connections);
        }
        with_room.map(Lease::new)
    }

    /// Whether a stream that ends is to be waited for, where there may be no more connections: one of those that there are
    /// carries the `at_once` that it may.
    fn waits(&self, error: &SendError, at_once: usize) -> bool {
        let is_full = |connection: &Rc<Shared>| connection.state.streams.get() >= at_once;
        matches!(error, SendError::Overflow(_)) && self.connections.borrow().iter().any(is_full)
    }

    fn least_loaded(&self) -> Option<Lease> {
        least_loaded(&self.connections.borrow())
    }

    /// Lets go of connections that have idled for `limit`.
    pub(in crate::upstream) fn sweep(&self, now: Instant, limit: Duration) {
        self.connections.borrow_mut().retain(|connection| {
            let idle = connection.state.streams.get() == 0 && now - connection.idle_since.get() >= limit;
            !idle && !connection.state.closed.get()
        });
    }

    /// Lets go of all connections; each ends with its last stream.
    pub(in crate::upstream) fn clear(&self) {
        self.connections.borrow_mut().clear();
    }
}

impl Shared {
    fn has_room(&self, at_once: usize) -> bool {
        self.state.streams.get() < self.sender.current_max_send_streams().min(at_once)
    }
}

impl Lease {
    fn new(connection: &Rc<Shared>) -> Self {
        connection.state.streams.set(connection.state.streams.get() + 1);
        connection.served.set(connection.served.get().saturating_add(1));
        Self(Rc::clone(connection))
    }

    /// Opens streams on the connection.
    pub(super) fn sender(&self) -> SendRequest<Bytes> {
        self.0.sender.clone()
    }

    /// Whom the endpoint proved to be.
    pub(in crate::upstream) fn peer(&self) -> Option<&SpiffeId> {
        self.0.peer.as_ref()
    }

    /// Notes that the endpoint has said something on the stream. What a tunnel carries is not noted.
    pub(super) fn heard(&self) {
        self.0.state.heard.set(true);
    }

    /// The connection takes no more streams.
    pub(super) fn close(self) {
        self.0.state.closed.set(true);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let streams = &self.0.state.streams;
        streams.set(streams.get() - 1);
        if streams.get() == 0 {
            self.0.idle_since.set(Instant::now());
        }
        self.0.ended.freed();
    }
}

/// Marks that a request is making a connection. At its end, however it comes about, others look again.
struct Attempt<'a>(&'a Multiplexed);

impl<'a> Attempt<'a> {
    fn begin(pool: &'a Multiplexed) -> Self {
        pool.connecting.set(true);
        pool.attempts.set(pool.attempts.get() + 1);
        Self(pool)
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.0.connecting.set(false);
        self.0.settled.notify_waiters();
    }
}

fn least_loaded(connections: &[Rc<Shared>]) -> Option<Lease> {
    let open = connections.iter().filter(|connection| !connection.state.closed.get());
    open.min_by_key(|connection| connection.state.streams.get()).map(Lease::new)
}

async fn connect(slot: &Slot, endpoint: &Endpoint, cluster: &Cluster) -> Result<Shared, SendError> {
    // As for HTTP/1: the first one is allowed in any case.
    let permit = match slot.multiplexed.connections.borrow().is_empty() {
        true => {
            cluster.room(Limit::Connections).unwrap_or_else(|_| cluster.permit_anyway(Limit::Connections))
        }
        // Who gets none waits, or shares one: that is no refusal.
        false => cluster.room(Limit::Connections).map_err(SendError::Overflow)?,
    };
    let connection = slot.connect(endpoint, cluster, Alpn::Http2).await?;
    match connection.alpn {
        Some(Alpn::Http2) => slot.ability.spoken(),
        Some(Alpn::Http1) => return Err(SendError::Connect(ConnectError::NotHttp2 { answered: true })),
        // Over TLS, who does not negotiate speaks HTTP/1.1, as in Envoy.
        None if endpoint.tls.is_some() => {
            return Err(SendError::Connect(ConnectError::NotHttp2 { answered: true }));
        }
        None => {}
    }
    let (stream, first) = Watched::new(connection.stream);
    let http2 = &cluster.model.http2;
    let handshake = Builder::new()
        .initial_window_size(http2.stream_window.unwrap_or(STREAM_WINDOW))
        .initial_connection_window_size(http2.connection_window.unwrap_or(CONNECTION_WINDOW))
        .max_frame_size(MAX_FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEAD)
        .enable_push(false)
        .handshake(stream)
        .await;
    let (sender, mut driven) = handshake.map_err(|error| not_begun(error, &first))?;
    let limit = cluster.model.connect_timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT);
    let keep_alive = timeout(limit, settle(&mut driven, &first)).await;
    let keep_alive = keep_alive.map_err(|_| SendError::Connect(ConnectError::Timeout(limit)))??;
    // Over mTLS that is nearly always a sidecar, which may hang though its host answers. Applications are not pinged.
    let keep_alive = endpoint.tls.is_some().then_some(keep_alive);
    slot.ability.spoken();
    let state = Rc::<State>::default();
    tokio::task::spawn_local(drive(driven, keep_alive, Rc::clone(&state), permit));
    Ok(Shared {
        sender,
        peer: connection.peer,
        served: Cell::new(0),
        idle_since: Cell::new(Instant::now()),
        state,
        ended: Rc::clone(&slot.multiplexed.ended),
    })
}

/// Waits for the peer's settings, which come before anything else that it sends: only then is it known how many streams it
/// takes, and that it speaks HTTP/2 at all. So a peer that doesn't has not seen anything of a request.
async fn settle(connection: &mut Connection<Watched, Bytes>, first: &First) -> Result<KeepAlive, SendError> {
    let mut ping_pong = connection.ping_pong().ok_or(NOT_SENT)?;
    ping_pong.send_ping(Ping::opaque()).map_err(|error| not_begun(error, first))?;
    poll_fn(|cx| match Pin::new(&mut *connection).poll(cx) {
        Poll::Ready(Ok(())) => Poll::Ready(Err(not_begun(h2::Reason::NO_ERROR.into(), first))),
        Poll::Ready(Err(error)) => Poll::Ready(Err(not_begun(error, first))),
        Poll::Pending => {
            ping_pong.poll_pong(cx).map(|pong| pong.map(drop).map_err(|error| not_begun(error, first)))
        }
    })
    .await?;
    Ok(KeepAlive::new(ping_pong, Pace::CALM))
}

/// Reads and writes the frames of a connection until it ends: with the peer, or with its last stream once nobody can open
/// another, or with a peer that no longer answers.
async fn drive(
    mut connection: Connection<Watched, Bytes>,
    mut keep_alive: Option<KeepAlive>,
    state: Rc<State>,
    _permit: Permit,
) {
    let mut restraint = Restraint::new(Instant::now());
    let mut may = |now| restraint.may(now, state.heard.take(), state.streams.get() > 0);
    poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => {
            keep_alive.as_mut().map_or(Poll::Pending, |keep_alive| keep_alive.poll(cx, &mut may))
        }
    })
    .await;
    state.closed.set(true);
}

/// A connection on which HTTP/2 did not come about. Nothing of a request was sent.
fn not_begun(error: h2::Error, first: &First) -> SendError {
    if first.is_foreign() {
        return SendError::Connect(ConnectError::NotHttp2 { answered: true });
    }
    if first.is_missing() {
        return SendError::Connect(ConnectError::NotHttp2 { answered: false });
    }
    let error = if error.is_io() {
        error.into_io().unwrap_or_else(|| std::io::ErrorKind::ConnectionReset.into())
    } else {
        let reason = format!("the endpoint did not get as far as its HTTP/2 settings: {error}");
        std::io::Error::new(std::io::ErrorKind::InvalidData, reason)
    };
    SendError::Connect(ConnectError::Io(error))
}

const NOT_SENT: SendError = SendError::NotProcessed("the connection ended before the request was sent");

/// An error of a connection for another request that waited for it.
fn duplicate(error: &SendError) -> SendError {
    match error {
        SendError::Connect(error) => SendError::Connect(error.duplicate()),
        SendError::Overflow(limit) => SendError::Overflow(*limit),
        _ => NOT_SENT,
    }
}

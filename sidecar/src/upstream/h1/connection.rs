//! An HTTP/1.1 connection to an endpoint.

use std::mem::MaybeUninit;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use tokio::time::Instant;
use tulle_mesh::identity::SpiffeId;

use crate::http::h1::head::HeadEnd;
use crate::http::h1::transport::Transport;
use crate::upstream::connect;
use crate::upstream::open::Opened;

/// A connection, in use or idle.
pub(crate) struct Connection {
    pub(super) transport: Transport,
    pub(super) head_end: HeadEnd,
    /// Whom the endpoint proved to be.
    pub(super) peer: Option<SpiffeId>,
    /// Since when nothing is asked of it.
    pub(in crate::upstream) idle_since: Instant,
    /// How long it may idle, as the server said.
    pub(in crate::upstream) idle_hint: Option<Duration>,
    /// How many requests it has carried.
    pub(in crate::upstream) served: u32,
    /// Counts it among its endpoint's and its cluster's.
    pub(super) opened: Opened,
}

impl Connection {
    /// A connection that was just made.
    pub(in crate::upstream) fn new(connection: connect::Connection, opened: Opened) -> Self {
        Self {
            transport: Transport::new(connection.stream),
            head_end: HeadEnd::default(),
            peer: connection.peer,
            idle_since: Instant::now(),
            idle_hint: None,
            served: 0,
            opened,
        }
    }

    /// Notes what the server says in Keep-Alive.
    pub(super) fn heed(&mut self, headers: &HeaderMap) {
        let Some(value) = headers.get(HeaderName::from_static("keep-alive")) else { return };
        let timeout = value.to_str().ok().and_then(|value| {
            let parameters = value.split(',').filter_map(|part| part.trim().split_once('='));
            let mut timeouts = parameters.filter(|(name, _)| name.trim().eq_ignore_ascii_case("timeout"));
            timeouts.next()?.1.trim().parse::<u64>().ok()
        });
        // A second less: the server counts from when it sent, and a request is under way for a while.
        self.idle_hint = timeout.map(|seconds| Duration::from_secs(seconds.saturating_sub(1)));
    }

    /// From now on nothing is asked of it.
    pub(in crate::upstream) fn rest(&mut self) {
        self.idle_since = Instant::now();
        self.transport.shrink();
    }

    /// Whether the peer has neither closed it nor sent anything that was not asked for. With `peek`, the system itself is
    /// asked; else what the runtime knows has to do.
    pub(in crate::upstream) fn is_idle(&mut self, cx: &mut Context<'_>, peek: bool) -> bool {
        if !matches!(self.transport.poll_fill(cx), Poll::Pending) {
            return false;
        }
        let Some(stream) = self.transport.stream() else { return false };
        if !peek {
            return true;
        }
        let mut byte = [MaybeUninit::uninit(); 1];
        // The socket never blocks. Over TLS, a byte that comes now is most likely the alert that closes.
        let peeked = socket2::SockRef::from(stream.socket()).peek(&mut byte);
        peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

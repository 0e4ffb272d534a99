//! Which connection a request gets.
//!
//! In: an endpoint and what to speak. Out: the connection that was used last and is still good, or a new one. Connections
//! are kept apart by endpoint, protocol and the certificate with which they were made. Each second a look is taken at
//! those that idle: what the peer closed, what is too old, and what belongs to an endpoint or a certificate of yesterday is
//! let go.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use http::Request;
use tokio::time::Instant;
use tulle_mesh::model::UpstreamProtocol;
use tulle_mesh::route::RequestView;

use super::ability::Ability;
use super::open::{Open, Opened};
use super::{Answer, HttpVersion, SendError, SendOptions, connect, h1, h2};
use crate::balance::{Cluster, Endpoint, EndpointStats, Limit, Permit};
use crate::http::body::Body;
use crate::snapshot::Snapshot;
use crate::tls::{Alpn, Material};

/// Without a setting of the cluster, an HTTP/1 connection idles for this long: less than what servers are wont to allow
/// (nginx 75 s), so that it is rarely they who close it.
const HTTP1_IDLE: Duration = Duration::from_secs(60);
/// Without a setting of the cluster, an HTTP/2 connection idles for this long. The kernel watches whether its other end is
/// there.
const HTTP2_IDLE: Duration = Duration::from_secs(300);
/// Idle HTTP/1 connections per endpoint.
const MAX_IDLE: usize = 64;
/// A connection that idled for longer is asked whether it is still open with a system call of its own: the runtime may
/// not have heard yet that the peer closed it.
const PEEK_AFTER: Duration = Duration::from_millis(100);
/// How long it is remembered after what time an endpoint closes idle connections.
const REMEMBER: Duration = Duration::from_secs(600);
const SWEEP: Duration = Duration::from_secs(1);

/// One worker's connections to endpoints.
#[derive(Default)]
pub(crate) struct Pools {
    slots: RefCell<HashMap<(u64, HttpVersion), Rc<Slot>>>,
    sweeping: Cell<bool>,
}

/// The connections to one endpoint in one protocol, with one certificate.
pub(super) struct Slot {
    /// With what they were made; `None`: in plaintext.
    material: Option<Arc<Material>>,
    /// Gone when no configuration holds the endpoint any more.
    endpoint: RefCell<Weak<EndpointStats>>,
    /// No connection comes back here.
    retired: Cell<bool>,
    /// Whether the endpoint speaks the protocol, as far as that was seen.
    pub(super) ability: Ability,
    /// [`Duration::MAX`]: never.
    idle_timeout: Cell<Duration>,
    /// After how many requests a connection takes no more; [`u32::MAX`]: never.
    pub(super) max_requests: Cell<u32>,
    /// How many streams a connection of HTTP/2 may carry at once, where its peer allows more.
    pub(super) max_streams: Cell<usize>,
    /// After what idle time the endpoint was seen to close a connection, and when that was.
    closes_after: Cell<Option<(Duration, Instant)>>,
    /// The HTTP/1 connections.
    open: Rc<Open>,
    /// Those of them that idle, the last used last.
    #[expect(clippy::vec_box, reason = "they come boxed and go boxed")]
    idle: RefCell<Vec<Box<h1::Connection>>>,
    /// The HTTP/2 connections.
    pub(super) multiplexed: h2::Multiplexed,
}

impl Pools {
    /// Lets go of idle connections to endpoints that are in no configuration any more, or that were made with another
    /// certificate than that of `snapshot`; those in use end when their last request does.
    pub(crate) fn retain(&self, snapshot: &Snapshot) {
        self.slots.borrow_mut().retain(|_, slot| {
            let current = match (&slot.material, &snapshot.tls) {
                (Some(used), Some(current)) => Arc::ptr_eq(used, current),
                (used, _) => used.is_none(),
            };
            let keep = current && slot.endpoint.borrow().strong_count() > 0;
            if !keep {
                slot.retire();
            }
            keep
        });
    }

    /// Sends `request` to `endpoint` and waits for the response's head. Cancel-safe: dropping the future gives the
    /// connection up (HTTP/1) or resets the stream (HTTP/2).
    ///
    /// An upgrade (a request with Upgrade, or CONNECT with `:protocol`) is sent over HTTP/1 whatever the client speaks: not
    /// every server takes it over HTTP/2. Where the cluster says HTTP/2, only one whose settings say so is asked in it. An
    /// endpoint that does not speak the version gets the request in the other one, unless its cluster says HTTP/1: that is
    /// found out before anything of the request is sent in HTTP/2, and by a proof that nothing of it was understood in
    /// HTTP/1.
    ///
    /// # Errors
    /// See [`SendError`], which tells what may have happened to the request.
    pub(crate) fn send(
        self: &Rc<Self>,
        endpoint: &Arc<Endpoint>,
        request: Request<Body>,
        options: SendOptions<'_>,
    ) -> impl Future<Output = Result<Answer, SendError>> {
        let upgrade = h1::is_upgrade(&request);
        let told = options.cluster.model.protocol;
        let switches = upgrade && told != UpstreamProtocol::Http2;
        let wanted = if switches { HttpVersion::Http1 } else { options.version };
        let (version, mut slot) = self.spoken(endpoint, wanted, &options);
        // Not an async function: it would hold the request twice.
        async move {
            if version == HttpVersion::Http2 {
                match h2::ready(&slot, endpoint, options.cluster).await {
                    Ok((_, sender))
                        if upgrade
                            && !sender.is_extended_connect_protocol_enabled()
                            && !self.slot(endpoint, HttpVersion::Http1, &options).ability.is_refused() => {}
                    Ok(place) => {
                        if wanted == HttpVersion::Http1 {
                            // It still is who it was, and need not be tried in HTTP/1 again.
                            self.note(endpoint, wanted, Ability::refused);
                        }
                        options.prove(place.0.peer());
                        return h2::send(place, request, upgrade, options.interim).await;
                    }
                    Err(error) => {
                        if !slot.ability.gives_way(&error, told, is_grpc(&request)) {
                            return Err(error);
                        }
                    }
                }
                slot = self.slot(endpoint, HttpVersion::Http1, &options);
            }
            let converted = wanted == HttpVersion::Http2;
            if converted && is_grpc(&request) {
                return Err(SendError::Version("the endpoint speaks only HTTP/1.1, and gRPC needs HTTP/2"));
            }
            let sent = h1::send(slot, endpoint, request, options).await;
            let lost =
                matches!(sent, Err(SendError::Connect(_) | SendError::Reset(_) | SendError::NotProcessed(_)));
            if converted && lost {
                // Perhaps it is another application that is about to listen there.
                self.note(endpoint, HttpVersion::Http2, Ability::forget);
            }
            sent
        }
    }

    /// The version to speak, and its connections: the wanted one, unless only the other is known to be of use.
    fn spoken(
        self: &Rc<Self>,
        endpoint: &Endpoint,
        wanted: HttpVersion,
        options: &SendOptions<'_>,
    ) -> (HttpVersion, Rc<Slot>) {
        let slot = self.slot(endpoint, wanted, options);
        if slot.ability.is_refused() && options.cluster.model.protocol != UpstreamProtocol::Http1 {
            let other = self.slot(endpoint, wanted.other(), options);
            if !other.ability.is_refused() {
                return (wanted.other(), other);
            }
        }
        (wanted, slot)
    }

    fn note(&self, endpoint: &Endpoint, version: HttpVersion, note: fn(&Ability)) {
        if let Some(slot) = self.slots.borrow().get(&(endpoint.id, version)) {
            note(&slot.ability);
        }
    }

    fn slot(
        self: &Rc<Self>,
        endpoint: &Endpoint,
        version: HttpVersion,
        options: &SendOptions<'_>,
    ) -> Rc<Slot> {
        self.start_sweeping();
        let material = endpoint.tls.as_ref().and(options.tls);
        let idle = options.cluster.model.idle_timeout;
        let idle = match (idle, version) {
            (Some(Duration::ZERO), _) => Duration::MAX,
            (Some(idle), _) => idle,
            (None, HttpVersion::Http1) => HTTP1_IDLE,
            (None, HttpVersion::Http2) => HTTP2_IDLE,
        };
        let max_requests = options.cluster.model.max_requests_per_connection.unwrap_or(u32::MAX);
        let max_streams = options.cluster.model.http2.streams.map_or(usize::MAX, |most| most as usize);
        let slots = &mut *self.slots.borrow_mut();
        if let Some(slot) = slots.get(&(endpoint.id, version)) {
            if slot.material.as_ref().map(Arc::as_ptr) == material.map(Arc::as_ptr) {
                slot.idle_timeout.set(idle);
                slot.max_requests.set(max_requests);
                slot.max_streams.set(max_streams);
                if !std::ptr::eq(slot.endpoint.borrow().as_ptr(), Arc::as_ptr(&endpoint.stats)) {
                    *slot.endpoint.borrow_mut() = Arc::downgrade(&endpoint.stats);
                }
                return Rc::clone(slot);
            }
            slot.retire();
        }
        let slot = Rc::new(Slot {
            material: material.cloned(),
            endpoint: RefCell::new(Arc::downgrade(&endpoint.stats)),
            retired: Cell::new(false),
            ability: Ability::default(),
            idle_timeout: Cell::new(idle),
            max_requests: Cell::new(max_requests),
            max_streams: Cell::new(max_streams),
            closes_after: Cell::new(None),
            open: Rc::default(),
            idle: RefCell::default(),
            multiplexed: h2::Multiplexed::default(),
        });
        slots.insert((endpoint.id, version), Rc::clone(&slot));
        slot
    }

    /// Starts the one task that looks after idle connections, for as long as the pools live.
    fn start_sweeping(self: &Rc<Self>) {
        if self.sweeping.replace(true) {
            return;
        }
        let pools = Rc::downgrade(self);
        tokio::task::spawn_local(async move {
            let mut ticks = tokio::time::interval(SWEEP);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(pools) = pools.upgrade() else { return };
                pools.sweep();
            }
        });
    }

    fn sweep(&self) {
        let (now, today) = (Instant::now(), SystemTime::now());
        self.slots.borrow_mut().retain(|_, slot| {
            let valid = slot.material.as_ref().is_none_or(|material| material.is_valid(today));
            let keep = valid && slot.endpoint.borrow().strong_count() > 0;
            if keep {
                slot.sweep(now);
            } else {
                slot.retire();
            }
            keep
        });
    }
}

impl Slot {
    /// A connection that idles and is still open, or a new one.
    pub(super) async fn http1(
        &self,
        endpoint: &Endpoint,
        cluster: &Cluster,
    ) -> Result<Box<h1::Connection>, SendError> {
        if let Some(connection) = poll_fn(|cx| Poll::Ready(self.take_idle(cx))).await {
            return Ok(connection);
        }
        let _pending = permit(cluster, Limit::PendingRequests)?;
        let opened = loop {
            // One is allowed in any case to an endpoint that has none, as in Envoy: requests could wait there for ever.
            match cluster.room(Limit::Connections) {
                Ok(permit) => break Opened::new(&self.open, permit),
                Err(_) if self.open.is_empty() => {
                    break Opened::new(&self.open, cluster.permit_anyway(Limit::Connections));
                }
                Err(_) => self.open.wait().await,
            }
            if let Some(connection) = poll_fn(|cx| Poll::Ready(self.take_idle(cx))).await {
                return Ok(connection);
            }
        };
        let connection = self.connect(endpoint, cluster, Alpn::Http1).await?;
        Ok(Box::new(h1::Connection::new(connection, opened)))
    }

    /// Makes a connection.
    pub(super) async fn connect(
        &self,
        endpoint: &Endpoint,
        cluster: &Cluster,
        alpn: Alpn,
    ) -> Result<connect::Connection, SendError> {
        // Boxed: with its handshake it is many times as large as an exchange, and it is seldom needed.
        let connecting = Box::pin(connect::connect(cluster, endpoint, self.material.as_ref(), Some(alpn)));
        connecting.await.map_err(SendError::Connect)
    }

    /// Takes a connection back after an exchange.
    pub(super) fn put(&self, mut connection: Box<h1::Connection>) {
        let idle = &mut *self.idle.borrow_mut();
        connection.served += 1;
        if !self.retired.get() && idle.len() < MAX_IDLE && connection.served < self.max_requests.get() {
            connection.rest();
            idle.push(connection);
            self.open.freed();
        }
    }

    fn take_idle(&self, cx: &mut Context<'_>) -> Option<Box<h1::Connection>> {
        let now = Instant::now();
        loop {
            let mut connection = self.idle.borrow_mut().pop()?;
            let age = now - connection.idle_since;
            if age >= self.limit(&connection, now) {
                continue;
            }
            if connection.is_idle(cx, age >= PEEK_AFTER) {
                return Some(connection);
            }
            self.learn(age, now);
        }
    }

    /// How long `connection` may idle: by our setting, by what the server said, and by what it was seen to do.
    fn limit(&self, connection: &h1::Connection, now: Instant) -> Duration {
        let limit = self.idle_timeout.get();
        let limit = connection.idle_hint.map_or(limit, |hint| limit.min(hint));
        match self.closes_after.get() {
            Some((age, seen)) if now - seen < REMEMBER => limit.min(age),
            _ => limit,
        }
    }

    /// The endpoint has closed a connection that idled for `age`: next time it shall be us.
    fn learn(&self, age: Duration, now: Instant) {
        // Younger ones are closed by a restart or a limit on requests, not for idling.
        if age > SWEEP {
            self.closes_after.set(Some((age - SWEEP, now)));
        }
    }

    fn sweep(&self, now: Instant) {
        // Nobody waits for these reads: they only ask.
        let mut cx = Context::from_waker(Waker::noop());
        self.idle.borrow_mut().retain_mut(|connection| {
            let age = now - connection.idle_since;
            if age >= self.limit(connection, now) {
                return false;
            }
            let open = connection.is_idle(&mut cx, false);
            if !open {
                self.learn(age, now);
            }
            open
        });
        self.idle.borrow_mut().shrink_to(4);
        self.multiplexed.sweep(now, self.idle_timeout.get());
    }

    fn retire(&self) {
        self.retired.set(true);
        self.idle.borrow_mut().clear();
        self.multiplexed.clear();
    }
}

fn is_grpc(request: &Request<Body>) -> bool {
    RequestView::new(request.method(), "", "/", request.headers()).is_grpc()
}

/// Counts one more of what `limit` limits.
pub(super) fn permit(cluster: &Cluster, limit: Limit) -> Result<Permit, SendError> {
    cluster.permit(limit).map_err(SendError::Overflow)
}

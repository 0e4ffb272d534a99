//! One connection, from its arrival to the hands that carry it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderValue;
use tokio::net::TcpStream;
use tulle_mesh::authorize::{Facts, Verdict};
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{DownstreamTls, TrafficDirection};

use super::place::{Place, Role};
use super::refusal::Refusal;
use crate::detect::PATIENCE;
use crate::io::{Prefixed, Stream};
use crate::snapshot::{Chain, Current};
use crate::tcp::Session;
use crate::tls::{self, Alpn};
use crate::worker::drain::Phase;
use crate::worker::{OpenConnection, Worker};

/// A connection that was accepted: `Socket` is registered with this worker's reactor or, on its way to another worker,
/// with none.
pub(crate) struct Accepted<Socket = TcpStream> {
    socket: Socket,
    client: SocketAddr,
    place: Arc<Place>,
    destination: SocketAddr,
    start: SystemTime,
    begun: Instant,
}

/// A connection on its way to another worker.
pub(crate) type Detached = Accepted<std::net::TcpStream>;

impl Accepted {
    /// A connection that arrived at `place` just now, on its way to `destination`.
    pub(crate) fn new(
        socket: TcpStream,
        client: SocketAddr,
        place: Arc<Place>,
        destination: SocketAddr,
    ) -> Self {
        Self { socket, client, place, destination, start: SystemTime::now(), begun: Instant::now() }
    }

    /// Takes the socket off this worker's reactor.
    ///
    /// # Errors
    /// When the system does not let go of it.
    pub(crate) fn detach(self) -> io::Result<Detached> {
        let Self { socket, client, place, destination, start, begun } = self;
        Ok(Accepted { socket: socket.into_std()?, client, place, destination, start, begun })
    }
}

impl Detached {
    /// Registers the socket with the reactor of the calling worker.
    ///
    /// # Errors
    /// When the reactor does not take it.
    pub(crate) fn attach(self) -> io::Result<Accepted> {
        let Self { socket, client, place, destination, start, begun } = self;
        Ok(Accepted { socket: TcpStream::from_std(socket)?, client, place, destination, start, begun })
    }
}

/// Serves a connection on `worker` until its end.
pub(crate) fn serve(worker: &Rc<Worker>, accepted: Accepted, open: OpenConnection) {
    let Accepted { socket, client, place, destination, start, begun } = accepted;
    let connection =
        Connection { worker: worker.clone(), place, client, direct: client, destination, start, begun };
    tokio::task::spawn_local(async move {
        match &connection.place.role {
            Role::Proxy => connection.forward_proxy(socket).await,
            Role::Service(name) => connection.outbound(socket, name).await,
            Role::CapturedOutbound => connection.captured(socket).await,
            Role::Inbound | Role::CapturedInbound => connection.inbound(socket).await,
        }
        drop(open);
    });
}

/// The facts of a connection, known from its arrival.
pub(super) struct Connection {
    pub(super) worker: Rc<Worker>,
    pub(super) place: Arc<Place>,
    pub(super) client: SocketAddr,
    /// The other end of the connection itself; another where a proxy in front tells who the client is.
    pub(super) direct: SocketAddr,
    /// The address that the client dialled.
    pub(super) destination: SocketAddr,
    start: SystemTime,
    begun: Instant,
}

/// A connection whose bytes can be carried, and what is known of its client.
pub(super) struct Opened {
    pub(super) stream: Stream,
    pub(super) identity: Option<SpiffeId>,
    pub(super) server_name: Option<Arc<str>>,
    /// What is told of the client's certificate, where that is more than the identity.
    pub(super) certificate: Option<HeaderValue>,
    /// The client's TLS, where that is told.
    pub(super) tls_facts: Option<Box<tls::ClientTls>>,
    /// What ALPN chose.
    pub(super) alpn: Option<Alpn>,
}

impl Opened {
    /// A client of which nothing is known.
    pub(super) fn plaintext(stream: Prefixed) -> Self {
        Self {
            stream: Stream::Tcp(stream),
            identity: None,
            certificate: None,
            tls_facts: None,
            server_name: None,
            alpn: None,
        }
    }
}

impl Connection {
    pub(super) fn direction(&self) -> TrafficDirection {
        match self.place.is_inbound() {
            true => TrafficDirection::Inbound,
            false => TrafficDirection::Outbound,
        }
    }

    /// The same connection, whose client is another where one is told.
    pub(super) fn of(&self, client: Option<SocketAddr>) -> Self {
        Self {
            worker: self.worker.clone(),
            place: self.place.clone(),
            client: client.unwrap_or(self.client),
            ..*self
        }
    }

    /// Where a captured connection was going, or one to a local port that stands for an address.
    pub(super) fn original(&self) -> Option<SocketAddr> {
        match &self.place.role {
            Role::CapturedOutbound | Role::CapturedInbound => Some(self.destination),
            Role::Service(name) => name.parse().ok(),
            Role::Proxy | Role::Inbound => None,
        }
    }

    /// The connection as one of bytes.
    pub(super) fn session<'a>(&'a self, identity: Option<&'a SpiffeId>) -> Session<'a> {
        Session {
            worker: &self.worker,
            direction: self.direction(),
            client: self.client,
            original: self.original(),
            identity,
            start: self.start,
            begun: self.begun,
        }
    }

    /// Ends mesh TLS here where the chain says so.
    pub(super) async fn open(
        &self,
        stream: Prefixed,
        tls: Option<&DownstreamTls>,
        server_name: Option<Arc<str>>,
        current: &Current,
    ) -> Result<Opened, Refusal> {
        let Some(settings) = tls else {
            return Ok(Opened { server_name, ..Opened::plaintext(stream) });
        };
        let material = current.tls.as_ref().ok_or(Refusal::NoCertificate)?;
        let handshake = tls::accept(stream, material, settings, self.client);
        match tokio::time::timeout(PATIENCE, handshake).await {
            Ok(Ok(accepted)) => {
                let asked = accepted.stream.get_ref().1.server_name().map(Arc::from);
                let stream = Stream::TlsServer(Box::new(accepted.stream));
                let (identity, alpn) = (accepted.peer, accepted.alpn);
                Ok(Opened { stream, identity, certificate: None, tls_facts: None, server_name: asked, alpn })
            }
            // The reason was logged where it is known best.
            Ok(Err(_)) => Err(Refusal::Handshake),
            Err(_) => Err(Refusal::Silent),
        }
    }

    /// Asks the policies for connections.
    pub(super) fn authorize(
        &self,
        chain: &Chain,
        tls: bool,
        identity: Option<&SpiffeId>,
        server_name: Option<&str>,
    ) -> Result<(), Refusal> {
        if chain.authorizer.is_empty() {
            return Ok(());
        }
        let facts = Facts {
            tls,
            peer: identity,
            source_ip: self.direct.ip(),
            connection_ip: self.client.ip(),
            remote_ip: self.client.ip(),
            destination: self.destination,
            server_name,
            request: None,
        };
        for hit in chain.authorizer.audits(&facts) {
            tracing::info!(client = %self.client, destination = %self.destination, ?hit, "audited a connection");
            self.worker.audits.count(hit.effect);
        }
        match chain.authorizer.check(&facts) {
            Verdict::Allowed { .. } => Ok(()),
            Verdict::Denied { set, by } => {
                tracing::info!(client = %self.client, destination = %self.destination, set, policy = by,
                    peer = identity.map(SpiffeId::as_str), "denied a connection");
                Err(Refusal::Denied)
            }
        }
    }

    /// Counts that the connection is not carried, and logs it unless there are too many.
    pub(super) fn refused(&self, refusal: Refusal) {
        if self.worker.refusals.count(refusal) {
            tracing::warn!(client = %self.client, destination = %self.destination, "refused a connection: {refusal}");
        }
    }

    /// Waits for `done`, but no longer than `limit`, nor until connections without work are closed for the sidecar's
    /// end; `None` then.
    pub(super) async fn while_idle<F: Future>(&self, limit: Duration, done: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = done => Some(output),
            () = self.worker.drain.reached(Phase::Closing) => None,
            () = tokio::time::sleep(limit) => None,
        }
    }
}

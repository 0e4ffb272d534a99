//! The story of one request, from its arrival to the last byte of its answer.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::TrafficDirection;

use crate::worker::Worker;

/// The facts of a downstream connection.
pub(crate) struct Downstream {
    /// Which side of the application it is on.
    pub(crate) direction: TrafficDirection,
    /// The client's address.
    pub(crate) peer: SocketAddr,
    /// The address that the client dialled.
    pub(crate) local: SocketAddr,
    /// Whom the client proved to be, over mesh TLS.
    pub(crate) identity: Option<SpiffeId>,
    /// The SNI of its ClientHello.
    pub(crate) server_name: Option<Arc<str>>,
    /// Where its requests go.
    pub(crate) target: Target,
}

/// Where the requests of a connection go.
pub(crate) enum Target {
    /// To one outbound listener, by name.
    Service(Arc<str>),
    /// To the service that each request names (forward proxy).
    Authority,
    /// To the application, through the chain with this index of the inbound listener of this address.
    Application {
        /// The listener's address.
        address: SocketAddr,
        /// The index of its chain.
        chain: usize,
    },
}

/// Handles the requests of one connection.
pub(crate) struct Proxy {
    worker: Rc<Worker>,
    downstream: Rc<Downstream>,
}

impl Proxy {
    /// A handler for the requests of `downstream`.
    pub(crate) fn new(worker: Rc<Worker>, downstream: Rc<Downstream>) -> Self {
        Self { worker, downstream }
    }
}

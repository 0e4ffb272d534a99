//! Port 15012: the CA and the discovery service behind one TLS endpoint.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tulle_mesh::identity::{IdentityError, SpiffeId};

use crate::ca::Authority;
use crate::ca::issuer::IssueError;
use crate::ca::service::CertificateService;
use crate::metrics::Metrics;
use crate::tls::{Accept, ServerTls};
use crate::xds::hub::Hub;
use crate::xds::proxies::Proxies;
use crate::xds::server::{DiscoveryService, Limits};

/// The namespace and service account of the control plane's own identity.
pub const IDENTITY: (&str, &str) = ("tulle-system", "tulle-control-plane");

/// How often an idle connection is probed, and how long its answer may take: a peer that vanished without a word must
/// not stay in the list of proxies.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// How long connections may take to close when the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// The most requests at one time on a connection. A sidecar needs two.
const MAX_STREAMS_PER_CONNECTION: u32 = 100;

/// The services, and what they need.
pub struct Services {
    /// Issues certificates, and says who is calling.
    pub authority: Arc<Authority>,
    /// What is pushed.
    pub hub: Hub,
    /// Where connected proxies are recorded.
    pub proxies: Arc<Proxies>,
    /// Where everything is counted.
    pub metrics: Arc<Metrics>,
    /// Limits on streams.
    pub limits: Limits,
    /// DNS names and IP addresses under which the control plane is reached, besides those of this host.
    pub hosts: Vec<String>,
}

impl Services {
    /// Serves connections of `listener` until `stop`, then for a short while those that are open.
    ///
    /// # Errors
    /// When no certificate can be made for the names, or the server fails as a whole.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> Result<(), GrpcError> {
        let (namespace, account) = IDENTITY;
        let identity = SpiffeId::workload(self.authority.trust_domain(), namespace, account)
            .map_err(GrpcError::Identity)?;
        let mut hosts: Vec<_> = ["localhost", "127.0.0.1", "::1"].map(String::from).into();
        hosts.push(format!("{account}.{namespace}"));
        hosts.push(format!("{account}.{namespace}.svc"));
        if let Ok(address) = listener.local_addr().map(|address| address.ip())
            && !address.is_unspecified()
        {
            hosts.push(address.to_string());
        }
        hosts.extend(self.hosts);
        let mut unique = std::collections::HashSet::new();
        hosts.retain(|host| unique.insert(host.clone()));

        let tls =
            ServerTls::new(Arc::clone(&self.authority), identity, hosts).map_err(GrpcError::Certificate)?;
        let (accept, connections) = Accept::new(listener, &self.authority);
        let accepting = tokio::spawn(tls.run(accept, stop.clone()));
        let discovery = DiscoveryService::new(
            self.hub,
            Arc::clone(&self.authority),
            self.proxies,
            Arc::clone(&self.metrics),
            self.limits,
            stop.clone(),
        );
        let served = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE.0))
            .http2_keepalive_timeout(Some(KEEPALIVE.1))
            .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
            .add_service(discovery.into_service())
            .add_service(CertificateService::new(self.authority, self.metrics))
            .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop.clone().cancelled_owned());
        tokio::pin!(served);
        let ended = tokio::select! {
            ended = &mut served => ended,
            () = async { stop.cancelled().await; tokio::time::sleep(GRACE).await } => Ok(()),
        };
        // Without a server nobody takes the connections, so this ends whatever happened.
        stop.cancel();
        let accepted = accepting.await;
        ended.map_err(|e| GrpcError::Serve(io::Error::other(e)))?;
        accepted.map_err(|e| GrpcError::Serve(e.into()))
    }
}

/// Why the endpoint does not serve.
#[derive(Debug)]
#[non_exhaustive]
pub enum GrpcError {
    /// The trust domain can't have an identity for the control plane.
    Identity(IdentityError),
    /// The control plane's own certificate can't be made; most likely a name can't stand in one.
    Certificate(IssueError),
    /// The server failed.
    Serve(io::Error),
}

impl fmt::Display for GrpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(error) => error.fmt(f),
            Self::Certificate(error) => {
                write!(
                    f,
                    "can't make the control plane's own certificate: {error}; check the values of --name"
                )
            }
            Self::Serve(error) => write!(f, "the gRPC server failed: {error}"),
        }
    }
}

impl std::error::Error for GrpcError {}

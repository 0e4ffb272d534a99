//! End-to-end tests: real control plane, real sidecars, real clients and servers, on loopback.

mod admin;
mod bad_input;
mod balancing;
mod configuration;
mod convert;
mod destinations;
mod detection;
mod dns;
mod flood;
mod grpc;
mod hostile;
mod http1;
mod http2;
mod hygiene;
mod identity;
mod peers;
mod policy;
mod resilience;
mod rollout;
mod routing;
mod servers;
mod tcp;
mod telemetry;
mod timeouts;
mod tls_routes;

use std::net::SocketAddr;

use tulle_cli::local::Sidecar;
use tulle_tests::{TestMesh, Workload};

/// A client's sidecar and a server's: the application behind `echo.shop:80`.
pub(crate) struct Pair {
    pub(crate) mesh: TestMesh,
    pub(crate) client: Sidecar,
    pub(crate) server: Sidecar,
}

impl Pair {
    /// With `app` behind the server, and what its service says of its protocol.
    pub(crate) async fn start(app: SocketAddr, protocol: &str) -> Self {
        Self::of(Workload::new("echo").app(app).protocol(protocol)).await
    }

    /// With `app` behind the server, of whose protocol nothing is told.
    pub(crate) async fn start_untold(app: SocketAddr) -> Self {
        Self::of(Workload::new("echo").app(app)).await
    }

    async fn of(server: Workload) -> Self {
        let mesh = TestMesh::start().await;
        let server = mesh.workload(server).await;
        let client = mesh.workload(Workload::new("client").port("echo.shop:80")).await;
        Self { mesh, client, server }
    }

    /// The client's local port for `echo.shop:80`.
    pub(crate) fn port(&self) -> SocketAddr {
        self.client.ports["echo.shop:80"]
    }

    /// The client's forward proxy, as `http_proxy` has it.
    pub(crate) fn proxy(&self) -> String {
        format!("http://{}", self.client.proxy)
    }
}

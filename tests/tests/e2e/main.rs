//! End-to-end tests: real control plane, real sidecars, real clients and servers.
//!
//! On loopback, each workload at ports of its own; and with `TULLE_TEST_HOSTS=1`, as root, on hosts in network namespaces,
//! where no application has a setting that speaks of the mesh. A test that can't run there by its nature says so.

mod admin;
mod bad_input;
mod balancing;
mod configuration;
mod convert;
mod destinations;
mod detection;
mod dns;
mod features;
mod flood;
mod gateway;
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

use tokio::process::Command;
use tulle_cli::local::Sidecar;
use tulle_tests::hosts::on_hosts;
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

    /// The client's forward proxy, as `http_proxy` has it; empty where redirection takes its place.
    pub(crate) fn proxy(&self) -> String {
        if on_hosts() { String::new() } else { format!("http://{}", self.client.proxy) }
    }

    /// A program as the client's application would run it.
    pub(crate) async fn beside(&self, program: Command) -> Command {
        self.mesh.beside("client", program).await
    }

    /// All ways to `echo.shop:80`: its own port, and the forward proxy, which serves all destinations.
    pub(crate) fn ways(&self) -> Vec<SocketAddr> {
        let proxy = (!on_hosts()).then_some(self.client.proxy);
        [self.port()].into_iter().chain(proxy).collect()
    }
}

//! The clusters of the application behind this sidecar, which nobody sends: only the sidecar knows how to reach it.

use std::sync::Arc;
use std::time::Duration;

use tulle_mesh::address::ClusterName;
use tulle_mesh::model::{self, Discovery, HostPort, LoadAssignment};

use super::build::{assignment, endpoint};
use crate::balance::Cluster;
use crate::config::MeshPort;
use crate::telemetry::Telemetry;

/// How long a connection to the application may take: it is on this machine.
const APP_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The application behind one port of the settings: one endpoint.
pub(super) fn fixed(telemetry: &Telemetry, port: &MeshPort) -> Arc<Cluster> {
    let name = ClusterName::Inbound { port: port.listen.port() }.to_string();
    let host = HostPort { host: String::new(), port: port.app.port() };
    let endpoints = assignment(vec![endpoint(&host, port.app.ip())]);
    cluster(telemetry, name, Discovery::Static(endpoints.clone()), Some(&endpoints))
}

/// The application behind a captured connection: it is at the address that the peer dialled.
pub(super) fn dialled(telemetry: &Telemetry, name: &str) -> Arc<Cluster> {
    cluster(telemetry, name.to_owned(), Discovery::OriginalDestination, None)
}

/// In plaintext, and nothing but the connection is limited.
fn cluster(
    telemetry: &Telemetry,
    name: String,
    discovery: Discovery,
    endpoints: Option<&LoadAssignment>,
) -> Arc<Cluster> {
    let series = telemetry.metrics.cluster(&name.as_str().into());
    let model = model::Cluster {
        name,
        alias: None,
        discovery,
        load_balancer: model::LoadBalancer::RoundRobin,
        connect_timeout: Some(APP_CONNECT_TIMEOUT),
        idle_timeout: None,
        max_requests_per_connection: None,
        limits: model::Limits::default(),
        // One endpoint, and who is served is not for the sidecar to decide.
        outlier_detection: None,
        tls: None,
        protocol: model::UpstreamProtocol::Downstream,
        http2: model::Http2::default(),
        ignores_localities: false,
        panic: model::Panic::LAST_RESORT,
        sessions: model::SessionHealth::default(),
        keepalive: model::Keepalive::Own,
        happy_eyeballs: model::HappyEyeballs::default(),
    };
    Cluster::build(Arc::new(model), endpoints, None, series)
}

//! The end-to-end suite on hosts: with `TULLE_TEST_HOSTS=1` each workload of a [`TestMesh`] has a host of its own.
//!
//! In: the workloads of a test that was written for loopback. Out: the same handles, whose addresses are wires to the
//! hosts. What a test does at a service's local port is done, on its host, to the service itself; its application answers
//! on the application's host; what a test does to a mesh port is done by a host that is not in the mesh. Between the
//! hosts there is nothing but redirection and the sidecars.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use serde_json::json;
use tulle_cli::local::Sidecar;

use super::host::Host;
use super::mesh::{Member, redirect};
use super::wire::Wire;
use crate::{TestMesh, Workload};

/// Set to anything, it puts every mesh that a test starts on hosts.
pub const ON_HOSTS: &str = "TULLE_TEST_HOSTS";

/// The host that is in no mesh.
const STRANGER: &str = "stranger";

/// The hosts of a test's workloads, and the wires to them, which end with the mesh.
#[derive(Debug, Default)]
pub(super) struct Placed {
    hosts: Mutex<HashMap<String, Host>>,
    wires: Mutex<Vec<Wire>>,
}

impl TestMesh {
    /// The host of a workload: the same one each time that the workload is started.
    pub(crate) async fn host_of(&self, workload: &str) -> Host {
        let hosts = || self.hosts().placed.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = hosts().get(workload) {
            return host.clone();
        }
        let host = self.host(workload);
        if workload != STRANGER {
            redirect(&host).await;
        }
        hosts().insert(workload.into(), host.clone());
        host
    }

    /// Starts a workload's sidecar on its host, and has its application answer there.
    pub(crate) async fn place(&self, workload: &Workload) -> Sidecar {
        let host = self.host_of(&workload.name).await;
        let mut config = workload.config.clone();
        config.entry("outbound").or_insert_with(|| json!({ "proxy": "127.0.0.1:0" }));
        let mut wires = Vec::new();
        if let Some(url) = &workload.otlp {
            config.insert("otlp".into(), json!({ "endpoint": url }));
            let collector = url.strip_prefix("http://").and_then(|address| address.parse().ok());
            let collector: SocketAddr = collector.expect("a test's collector is an address");
            wires.extend(Wire::out_of(&host, collector, collector));
        }
        let app = workload.app.map(|app| (app, SocketAddr::from((Ipv6Addr::UNSPECIFIED, app.port()))));
        // A workload that is started again has these already.
        wires.extend(app.and_then(|(app, everywhere)| Wire::out_of(&host, everywhere, app).ok()));

        let meshed = self.sidecar_on(&host, Member { account: workload.name.clone(), config }).await;
        let proxy = meshed.process.started["listening"]["proxy"].as_str().and_then(|text| text.parse().ok());
        let proxy = Wire::to(&host, proxy.expect("its configuration has a proxy")).await;
        let mut sidecar = Sidecar {
            proxy: proxy.address,
            ports: Default::default(),
            inbound: Vec::new(),
            admin: meshed.admin,
            health: meshed.health,
            process: meshed.process,
        };
        wires.push(proxy);
        wires.extend(meshed.wires);
        for service in &workload.ports {
            let (name, port) = service.rsplit_once(':').expect("a service is named with its port");
            let target = (virtual_address(name), port.parse().expect("a number"));
            let wire = Wire::to(&host, target.into()).await;
            sidecar.ports.insert(service.clone(), wire.address);
            wires.push(wire);
        }
        if let Some((_, everywhere)) = app {
            let target = SocketAddr::from((host.v4, everywhere.port()));
            let wire = Wire::to(&self.host_of(STRANGER).await, target).await;
            sidecar.inbound.push(wire.address);
            wires.push(wire);
        }
        self.hosts().placed.wires.lock().unwrap_or_else(PoisonError::into_inner).extend(wires);
        sidecar
    }
}

/// The virtual address of a service of the test's namespace.
pub(crate) fn virtual_address(service: &str) -> Ipv4Addr {
    let name = service.split('.').next().unwrap_or_default();
    let [a, b] = name.bytes().fold(1_u16, |sum, byte| sum.wrapping_mul(31) ^ u16::from(byte)).to_be_bytes();
    Ipv4Addr::new(10, 96, a, b.max(1))
}

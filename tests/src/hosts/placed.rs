//! The end-to-end suite on hosts: with `TULLE_TEST_HOSTS=1` each workload of a [`TestMesh`] has a host of its own.
//!
//! In: the workloads of a test that was written for loopback. Out: the same handles, whose addresses are wires to the
//! hosts. What a test does at a service's local port is done, on its host, to the service itself, whose address the host's
//! resolver tells; its application answers on the application's host; what a test does to a mesh port is done by a host
//! that is not in the mesh. Between the hosts there is nothing but redirection and the sidecars.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::chown;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tulle_cli::local::Sidecar;

use super::host::Host;
use super::lookup::{NAME_SERVER, lookup};
use super::mesh::{Hosts, Member, SIDECAR_UID, redirect_with};
use super::wire::Wire;
use crate::{LIMIT, TestMesh, Workload, wait_for};

/// Set to anything, it puts every mesh that a test starts on hosts.
const ON_HOSTS: &str = "TULLE_TEST_HOSTS";

/// The host that is in no mesh.
const STRANGER: &str = "stranger";

/// Where a sidecar answers queries for names.
const RESOLVER: &str = "127.0.0.1:15053";

/// Whether tests that are written for loopback run on hosts.
pub fn on_hosts() -> bool {
    std::env::var_os(ON_HOSTS).is_some()
}

/// Ends a test that can't run on hosts by its nature, where it would, and says why.
#[macro_export]
macro_rules! only_on_loopback {
    ($reason:literal) => {
        if $crate::hosts::on_hosts() {
            println!("not on hosts: {}", $reason);
            return;
        }
    };
}

/// The hosts of a test's workloads, and the wires to them, which end with the mesh.
#[derive(Debug, Default)]
pub(super) struct Placed {
    hosts: Mutex<HashMap<String, Host>>,
    wires: Mutex<Vec<Wire>>,
    /// What a workload's mesh port is on its host, by the wire to it.
    endpoints: Mutex<HashMap<SocketAddr, SocketAddr>>,
}

impl Hosts {
    /// Where the mesh knows the application whose mesh port a test reaches at `wire`.
    pub(crate) fn endpoint(&self, wire: SocketAddr) -> SocketAddr {
        locked(&self.placed.endpoints)[&wire]
    }
}

impl TestMesh {
    /// The host of a workload: the same one each time that the workload is started.
    pub(crate) async fn host_of(&self, workload: &str) -> Host {
        let hosts = || locked(&self.hosts().placed.hosts);
        if let Some(host) = hosts().get(workload) {
            return host.clone();
        }
        let host = self.host(workload);
        if workload != STRANGER {
            host.resolver(&format!("nameserver {NAME_SERVER}\n"));
            redirect_with(&host, &["--dns-port", "15053"]).await;
        }
        hosts().insert(workload.into(), host.clone());
        host
    }

    /// Starts a workload's sidecar on its host, and has its application answer there.
    pub(crate) async fn place(&self, workload: &Workload) -> Sidecar {
        let host = self.host_of(&workload.name).await;
        let mut wires = Vec::new();
        let mut config = workload.config.clone();
        config.entry("dns").or_insert_with(|| json!({ "listen": RESOLVER }));
        if let Some(url) = &workload.otlp {
            config.insert("otlp".into(), json!({ "endpoint": url }));
            let collector = url.strip_prefix("http://").expect("a test's collector has no TLS");
            self.stand_in_on_host(&workload.name, address(collector)).await;
        }
        // A control plane that the test plays is on this machine.
        let played = config.get("controlPlane").and_then(|played| played["address"].as_str());
        if let Some(played) = played {
            self.stand_in_on_host(&workload.name, address(played)).await;
        }
        config.values().for_each(give);
        let app = workload.app.map(|app| (app, SocketAddr::from((Ipv6Addr::UNSPECIFIED, app.port()))));
        // A workload that is started again has this already.
        wires.extend(app.and_then(|(app, everywhere)| Wire::out_of(&host, everywhere, app).ok()));

        let meshed = self.sidecar_on(&host, Member { account: workload.name.clone(), config }).await;
        let mut sidecar = Sidecar {
            // It has none.
            proxy: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            ports: Default::default(),
            inbound: Vec::new(),
            admin: meshed.admin,
            health: meshed.health,
            process: meshed.process,
        };
        wires.extend(meshed.wires);
        for service in &workload.ports {
            let port = self.wire_to(&workload.name, service).await;
            sidecar.ports.insert(service.clone(), port);
        }
        if let Some((_, everywhere)) = app {
            let target = SocketAddr::from((host.v4, everywhere.port()));
            let wire = Wire::to(&self.host_of(STRANGER).await, target).await;
            locked(&self.hosts().placed.endpoints).insert(wire.address, target);
            sidecar.inbound.push(wire.address);
            wires.push(wire);
        }
        locked(&self.hosts().placed.wires).extend(wires);
        sidecar
    }

    /// Has an application of this machine answer at the same address of a workload's host.
    pub(crate) async fn stand_in_on_host(&self, workload: &str, app: SocketAddr) {
        let wire = Wire::out_of(&self.host_of(workload).await, app, app);
        // A workload that is started again has it already.
        locked(&self.hosts().placed.wires).extend(wire.ok());
    }

    /// Has an application answer on the host that is in no mesh, and says which address that has.
    pub(crate) async fn outside_on_host(&self, app: SocketAddr) -> Ipv4Addr {
        let host = self.host_of(STRANGER).await;
        let wire = Wire::out_of(&host, (host.v4, app.port()).into(), app).expect("the port is free");
        locked(&self.hosts().placed.wires).push(wire);
        host.v4
    }

    /// A port here that stands for a service (`cart.shop:80`) as a workload's host knows it.
    pub(crate) async fn wire_to(&self, workload: &str, service: &str) -> SocketAddr {
        let (name, port) = service.rsplit_once(':').expect("a service is named with its port");
        let (name, port) = (name.to_owned(), port.parse().expect("a number"));
        let host = self.host_of(workload).await;
        let wire = Wire::into(&host, move |host| service_address(host, name.clone(), port)).await;
        let address = wire.address;
        locked(&self.hosts().placed.wires).push(wire);
        address
    }
}

/// What a program on a host would dial for a service, once its name is known there.
async fn service_address(host: Host, name: String, port: u16) -> io::Result<SocketAddr> {
    let known = wait_for(LIMIT, || lookup(&host, &name)).await;
    known.map(|ip| (ip, port).into()).map_err(io::Error::other)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

/// What a configuration names is the sidecar's: a copy of it would be, on a host of its own.
fn give(value: &Value) {
    match value {
        Value::Object(fields) => fields.values().for_each(give),
        Value::String(path) if Path::new(path).is_absolute() && Path::new(path).exists() => {
            chown(path, Some(SIDECAR_UID), Some(SIDECAR_UID)).expect("root may");
        }
        _ => {}
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

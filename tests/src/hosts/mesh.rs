//! A mesh of hosts: the control plane on one of its own, and on each other one a workload with redirection and a sidecar.
//!
//! In: a network and what runs on its hosts. Out: hosts whose applications speak as if there were no mesh. A sidecar gets
//! what a user would copy to its host, a root and a token, and nothing else of the control plane's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Map, Value, json};
use tulle_cli::local::{LocalMesh, Process, Samples, metrics, ready};

use super::host::Host;
use super::network::Network;
use super::placed::Placed;
use super::wire::Wire;
use crate::{LIMIT, NAMESPACE, TRUST_DOMAIN, TestMesh, binaries, output_of, wait_for};

/// The user that sidecars run as: redirection leaves its connections alone.
pub const SIDECAR_UID: u32 = 2102;
/// Where a sidecar tells its health and its metrics.
const HEALTH: u16 = 15020;
/// Where a sidecar is administered, on its host's loopback.
const ADMIN: u16 = 15000;
/// Where the control plane serves sidecars.
const XDS: u16 = 15012;

/// Where the parts of a mesh of hosts are.
pub struct Hosts {
    /// Its network.
    pub network: Network,
    /// The control plane's host.
    pub control: Host,
    /// From here to where the control plane serves sidecars, and to its HTTP API.
    wires: [Wire; 2],
    /// How often a sidecar was started; each gets a configuration and a log of its own.
    started: AtomicU32,
    pub(super) placed: Placed,
}

/// What a sidecar is told of its workload, beyond its host.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its service account.
    pub account: String,
    /// Put over the configuration file as it would be: top-level fields replace.
    pub config: Map<String, Value>,
}

/// A running sidecar on a host.
#[derive(Debug)]
pub struct Meshed {
    /// The host.
    pub host: Host,
    /// The sidecar.
    pub process: Process,
    /// Health and metrics, from here.
    pub health: SocketAddr,
    /// The admin interface, from here.
    pub admin: SocketAddr,
    pub(super) wires: [Wire; 2],
}

impl TestMesh {
    /// A mesh without workloads, whose control plane is on a host of its own.
    pub async fn on_hosts() -> Self {
        Self::on_hosts_with(TRUST_DOMAIN, &[]).await
    }

    /// As [`TestMesh::on_hosts`], with a trust domain and more flags for the control plane.
    pub async fn on_hosts_with(trust_domain: &str, flags: &[&str]) -> Self {
        let network = Network::new();
        let control = network.host("control");
        let folder = crate::test_folder();
        open(folder.path());
        let mut mesh = control_plane(&control, folder.path(), trust_domain, flags).await;
        // Sidecars that a test gives files of the control plane's may reach them; each file keeps its own rights.
        std::fs::set_permissions(&mesh.state, PermissionsExt::from_mode(0o711)).expect("the folder is ours");
        let wires = [Wire::to(&control, mesh.xds()).await, Wire::to(&control, mesh.http()).await];
        reach_through(&mut mesh, &wires);
        let hosts = Hosts { network, control, wires, started: AtomicU32::new(0), placed: Placed::default() };
        Self { mesh, folder, hosts: Some(hosts) }
    }

    /// Starts the control plane of hosts again.
    pub(crate) async fn restart_on_host(&mut self) {
        let trust_domain = self.mesh.trust_domain().to_owned();
        let hosts = self.hosts();
        let mut mesh = control_plane(&hosts.control, self.folder.path(), &trust_domain, &[]).await;
        reach_through(&mut mesh, &hosts.wires);
        self.mesh = mesh;
    }

    /// Where its parts are.
    ///
    /// # Panics
    /// When it is not one of hosts.
    pub fn hosts(&self) -> &Hosts {
        self.hosts.as_ref().expect("it was started with `TestMesh::on_hosts`")
    }

    /// A host outside of the mesh: without redirection, without a sidecar.
    pub fn host(&self, name: &str) -> Host {
        self.hosts().network.host(name)
    }

    /// Makes a host, redirects its traffic, starts a sidecar on it, and waits until that is ready.
    pub async fn join(&self, name: &str) -> Meshed {
        self.join_as(&self.host(name), Member::of(name)).await
    }

    /// Redirects a host's traffic, starts a sidecar on it, and waits until that is ready.
    pub async fn join_as(&self, host: &Host, member: Member) -> Meshed {
        redirect(host).await;
        let meshed = self.sidecar_on(host, member).await;
        meshed.ready().await;
        meshed
    }

    /// Starts a sidecar on a host, whatever else is there.
    pub async fn sidecar_on(&self, host: &Host, member: Member) -> Meshed {
        let number = self.hosts().started.fetch_add(1, Ordering::Relaxed);
        let folder = self.folder.path().join(format!("{}-{number}", host.name));
        std::fs::create_dir(&folder).expect("nobody else has this name");
        let token = self.mesh.token(NAMESPACE, &member.account).unwrap_or_else(|error| panic!("{error}"));
        let copy = |from: &Path, to: &str| {
            let to = folder.join(to);
            std::fs::copy(from, &to).expect("both folders are there");
            chown(&to, Some(SIDECAR_UID), Some(SIDECAR_UID)).expect("root may");
            to
        };
        let control = SocketAddr::from((self.hosts().control.v4, XDS));
        let mut config = json!({
            "workload": { "namespace": NAMESPACE, "serviceAccount": member.account, "name": host.name },
            "trustDomain": self.mesh.trust_domain(),
            "controlPlane": {
                "address": control.to_string(),
                "rootFile": copy(&self.mesh.state.join("root.pem"), "root.pem"),
                "tokenFile": copy(&token, "token"),
            },
            "capture": {},
            "workers": 1,
        });
        config.as_object_mut().expect("it is written as an object above").extend(member.config);
        let path = folder.join("sidecar.yaml");
        std::fs::write(&path, config.to_string()).expect("the folder is ours");
        open(&folder);

        let mut command = host.command(SIDECAR_UID, &binaries().sidecar);
        command.args(["run", "--config"]).arg(&path);
        // The first of a host has the name that it would have without hosts.
        let name = format!("sidecar-{}", host.name);
        let again = self.mesh.logs.join(format!("{name}.log")).exists();
        let name = if again { format!("{name}-{number}") } else { name };
        let process = Process::start(&name, command, &self.mesh.logs).await;
        let process = process.unwrap_or_else(|error| panic!("{error}"));
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let wires = [Wire::to(host, loopback(HEALTH)).await, Wire::to(host, loopback(ADMIN)).await];
        let [health, admin] = wires.each_ref().map(|wire| wire.address);
        Meshed { host: host.clone(), process, health, admin, wires }
    }

    /// A Workload for a host: what selects it (`app`), and its ports by name.
    pub fn workload_on(&self, host: &Host, app: &str, ip: impl Into<IpAddr>, ports: &[(&str, u16)]) {
        self.workload_at(host, app, &[ip.into()], ports);
    }

    /// As [`TestMesh::workload_on`], with several addresses.
    pub fn workload_at(&self, host: &Host, app: &str, ips: &[IpAddr], ports: &[(&str, u16)]) {
        let ports: Vec<_> = ports.iter().map(|(name, port)| json!({ "name": name, "port": port })).collect();
        let workload = json!({
            "apiVersion": "tulle.dev/v1alpha1",
            "kind": "Workload",
            "metadata": { "name": host.name, "namespace": NAMESPACE, "labels": { "app": app } },
            "spec": { "address": ips[0], "addresses": ips, "serviceAccount": host.name, "ports": ports },
        });
        self.manifest(&format!("workload-{}.yaml", host.name), &workload.to_string());
    }

    /// A Service: its virtual addresses, none for those that the mesh gives, and its ports: name, number, and the name of
    /// the workload's port that is meant.
    pub fn service(&self, name: &str, addresses: &[IpAddr], ports: &[(&str, u16, &str)]) {
        let ports: Vec<_> = ports
            .iter()
            .map(|(name, port, target)| json!({ "name": name, "port": port, "targetPort": target }))
            .collect();
        let mut spec = json!({ "selector": { "app": name }, "ports": ports });
        if let Some(first) = addresses.first() {
            spec["clusterIP"] = json!(first.to_string());
            spec["clusterIPs"] = addresses.iter().map(ToString::to_string).collect();
        }
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": spec,
        });
        self.manifest(&format!("service-{name}.yaml"), &service.to_string());
    }
}

impl Member {
    /// One with a service account, and nothing else that is not the default.
    pub fn of(account: &str) -> Self {
        Self { account: account.into(), config: Map::new() }
    }

    /// A top-level field of its sidecar's configuration file.
    #[must_use]
    pub fn config(mut self, field: &str, value: Value) -> Self {
        self.config.insert(field.into(), value);
        self
    }
}

impl Meshed {
    /// Waits until it is ready.
    pub async fn ready(&self) {
        let ready = wait_for(LIMIT, || ready(self.health)).await;
        ready.unwrap_or_else(|reason| panic!("{}: {reason}\n{}", self.process.name, self.process.log()));
    }

    /// Its metrics now.
    pub async fn metrics(&self) -> Samples {
        metrics(self.health).await.unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Redirects a host's traffic to the sidecar that will be there.
pub async fn redirect(host: &Host) {
    redirect_with(host, &[]).await;
}

/// As [`redirect`], with more options.
pub async fn redirect_with(host: &Host, options: &[&str]) {
    let mut command = host.command(0, &binaries().sidecar);
    command.arg("init").args(options);
    let output = output_of(command).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A control plane on its host.
async fn control_plane(control: &Host, folder: &Path, trust_domain: &str, flags: &[&str]) -> LocalMesh {
    let listen = format!("0.0.0.0:{XDS}");
    let flags = [&["--listen", listen.as_str(), "--http", "127.0.0.1:15014"], flags].concat();
    let place = |command| control.place(0, &command);
    let mesh = LocalMesh::start_at(binaries(), folder, trust_domain, &flags, place).await;
    mesh.unwrap_or_else(|error| panic!("{error}"))
}

/// From here both of its addresses are reached through wires.
fn reach_through(mesh: &mut LocalMesh, wires: &[Wire; 2]) {
    for (field, wire) in ["xds", "http"].into_iter().zip(wires) {
        mesh.control_plane.started[field] = json!(wire.address.to_string());
    }
}

/// Lets every user of this machine look into a folder.
fn open(folder: &Path) {
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).expect("the folder is ours");
}

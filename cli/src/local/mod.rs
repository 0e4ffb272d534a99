//! A mesh of real processes on this machine: one control plane, and a sidecar beside each workload.
//!
//! In: a folder of manifests and the workloads to put sidecars beside. Out: running processes and their addresses. All
//! listen on loopback, on ports that the kernel gives; all end when their handles are dropped. The demo and the
//! end-to-end tests stand on it; it starts the same binaries that a user would.

mod process;
mod scrape;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use tokio::process::Command;
use tulle_control_plane::ca::tokens;

pub use process::{Process, StartError};
pub use scrape::{Sample, Samples, fetch, request};

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `tulle-control-plane`
    pub control_plane: PathBuf,
    /// `tulle-sidecar`
    pub sidecar: PathBuf,
}

impl Binaries {
    /// The programs in a folder.
    ///
    /// # Errors
    /// Names the program that is not there.
    pub fn in_folder(folder: &Path) -> Result<Self, String> {
        let find = |name: &str| {
            let path = folder.join(name);
            path.is_file().then(|| path.clone()).ok_or_else(|| {
                format!("{} is missing; build it with `cargo build --workspace --bins`", path.display())
            })
        };
        Ok(Self { control_plane: find("tulle-control-plane")?, sidecar: find("tulle-sidecar")? })
    }

    /// The programs beside the one that runs now.
    ///
    /// # Errors
    /// As [`Binaries::in_folder`].
    pub fn beside_this() -> Result<Self, String> {
        let this = std::env::current_exe().map_err(|error| format!("this program's path: {error}"))?;
        Self::in_folder(this.parent().unwrap_or(Path::new(".")))
    }
}

/// A control plane, and what its sidecars need.
#[derive(Debug)]
pub struct LocalMesh {
    /// The control plane.
    pub control_plane: Process,
    /// Its manifests.
    pub manifests: PathBuf,
    /// Where processes keep what must outlive them.
    pub state: PathBuf,
    /// Where their logs are.
    pub logs: PathBuf,
    binaries: Binaries,
    trust_domain: String,
}

/// A workload to put a sidecar beside.
#[derive(Clone, Debug, Default)]
pub struct SidecarSpec {
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Its name.
    pub name: String,
    /// Where its application serves; each gets a mesh port, in this order.
    pub apps: Vec<SocketAddr>,
    /// Services (`cart.shop:80`) that get a local port each.
    pub ports: Vec<String>,
    /// The trace collector's URL.
    pub otlp: Option<String>,
    /// Put over the configuration file as it would be: top-level fields replace.
    pub config: Map<String, Value>,
}

/// A running sidecar.
#[derive(Debug)]
pub struct Sidecar {
    /// The process.
    pub process: Process,
    /// The forward proxy.
    pub proxy: SocketAddr,
    /// The local port of each service.
    pub ports: BTreeMap<String, SocketAddr>,
    /// The mesh port of each application, in the order of [`SidecarSpec::apps`].
    pub inbound: Vec<SocketAddr>,
    /// The admin interface.
    pub admin: SocketAddr,
    /// Health and metrics.
    pub health: SocketAddr,
}

impl LocalMesh {
    /// Starts a control plane in `folder`, which it uses for state and logs, on the manifests in `folder/manifests`.
    ///
    /// # Errors
    /// When a folder can't be made or the control plane does not start.
    pub async fn start(binaries: Binaries, folder: &Path, trust_domain: &str) -> Result<Self, StartError> {
        Self::start_with(binaries, folder, trust_domain, &[]).await
    }

    /// As [`LocalMesh::start`], with more flags for the control plane.
    ///
    /// # Errors
    /// As [`LocalMesh::start`].
    pub async fn start_with(
        binaries: Binaries,
        folder: &Path,
        trust_domain: &str,
        flags: &[&str],
    ) -> Result<Self, StartError> {
        Self::start_at(binaries, folder, trust_domain, flags, |command| command).await
    }

    /// As [`LocalMesh::start_with`], with a control plane that runs in the place where `place` puts its command.
    ///
    /// # Errors
    /// As [`LocalMesh::start`].
    pub async fn start_at(
        binaries: Binaries,
        folder: &Path,
        trust_domain: &str,
        flags: &[&str],
        place: impl FnOnce(Command) -> Command,
    ) -> Result<Self, StartError> {
        let [manifests, state, logs] = ["manifests", "state", "logs"].map(|name| folder.join(name));
        for path in [&manifests, &logs] {
            std::fs::create_dir_all(path)
                .map_err(|error| StartError::new("the mesh", format!("{}: {error}", path.display())))?;
        }
        let mut command = Command::new(&binaries.control_plane);
        command.arg("--manifests").arg(&manifests).arg("--state").arg(&state);
        command.args(["--trust-domain", trust_domain]);
        for address in ["--listen", "--http"] {
            if !flags.contains(&address) {
                command.args([address, "127.0.0.1:0"]);
            }
        }
        command.args(flags);
        let control_plane = Process::start("control-plane", place(command), &logs).await?;
        Ok(Self { control_plane, manifests, state, logs, binaries, trust_domain: trust_domain.into() })
    }

    /// The trust domain of its identities.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Where sidecars connect to.
    pub fn xds(&self) -> SocketAddr {
        address(&self.control_plane.started["xds"]).expect("the control plane says where it listens")
    }

    /// The control plane's HTTP API.
    pub fn http(&self) -> SocketAddr {
        address(&self.control_plane.started["http"]).expect("the control plane says where it listens")
    }

    /// Writes a join token to a file that only this user can read, and gives its path.
    ///
    /// # Errors
    /// When the state folder has no CA yet, or the file can't be written.
    pub fn token(&self, namespace: &str, service_account: &str) -> Result<PathBuf, String> {
        let ttl = Duration::from_secs(3600);
        let token = tokens::mint(&self.state, namespace, service_account, ttl, SystemTime::now())
            .map_err(|error| error.to_string())?;
        let path = self.state.join(format!("{namespace}.{service_account}.token"));
        write_private(&path, &token).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }

    /// Starts a sidecar.
    ///
    /// # Errors
    /// When it can't get a token or does not start.
    pub async fn sidecar(&self, spec: &SidecarSpec) -> Result<Sidecar, StartError> {
        let name = format!("sidecar-{}", spec.name);
        let token = self
            .token(&spec.namespace, &spec.service_account)
            .map_err(|reason| StartError::new(&name, reason))?;
        self.sidecar_with_token(spec, &token).await
    }

    /// Starts a sidecar that proves itself with the token in a file.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn sidecar_with_token(&self, spec: &SidecarSpec, token: &Path) -> Result<Sidecar, StartError> {
        let name = format!("sidecar-{}", spec.name);
        let mut config = json!({
            "workload": {
                "namespace": spec.namespace,
                "serviceAccount": spec.service_account,
                "name": spec.name,
            },
            "trustDomain": self.trust_domain,
            "controlPlane": {
                "address": self.xds().to_string(),
                "rootFile": self.state.join("root.pem"),
                "tokenFile": token,
            },
            "outbound": {
                // All programs share one machine, which may be busy with starting them.
                "demandTimeout": "20s",
                "proxy": "127.0.0.1:0",
                "ports": spec.ports.iter()
                    .map(|service| json!({ "listen": "127.0.0.1:0", "service": service }))
                    .collect::<Vec<_>>(),
            },
            "inbound": spec.apps.iter()
                .map(|app| json!({ "listen": "127.0.0.1:0", "app": app.to_string() }))
                .collect::<Vec<_>>(),
            "admin": "127.0.0.1:0",
            "health": "127.0.0.1:0",
            "workers": 1,
        });
        let fields = config.as_object_mut().expect("it is written as an object above");
        if let Some(otlp) = &spec.otlp {
            fields.insert("otlp".into(), json!({ "endpoint": otlp }));
        }
        fields.extend(spec.config.clone());
        let path = self.state.join(format!("{name}.yaml"));
        std::fs::write(&path, config.to_string())
            .map_err(|error| StartError::new(&name, format!("{}: {error}", path.display())))?;

        let mut command = Command::new(&self.binaries.sidecar);
        command.args(["run", "--config"]).arg(&path);
        let process = Process::start(&name, command, &self.logs).await?;
        Sidecar::of(process)
    }
}

impl Sidecar {
    /// A sidecar by its process, with a forward proxy.
    ///
    /// # Errors
    /// When the process does not say where it listens.
    pub fn of(process: Process) -> Result<Self, StartError> {
        let listening = &process.started["listening"];
        let fail = || {
            StartError::new(&process.name, format!("it does not say where it listens: {}", process.started))
        };
        let one = |field: &str| address(&listening[field]).ok_or_else(fail);
        let many = |field: &str| -> Vec<(String, SocketAddr)> {
            let entries = listening[field].as_array().into_iter().flatten();
            entries
                .filter_map(|entry| {
                    let of = entry.get("service").or(entry.get("app"))?;
                    Some((of.as_str()?.to_owned(), address(&entry["address"])?))
                })
                .collect()
        };
        Ok(Self {
            proxy: one("proxy")?,
            admin: one("admin")?,
            health: one("health")?,
            ports: many("ports").into_iter().collect(),
            inbound: many("inbound").into_iter().map(|(_, address)| address).collect(),
            process,
        })
    }

    /// Waits until it is ready: it holds a certificate and has applied its first configuration.
    ///
    /// # Errors
    /// With what is missing when it is not ready within `limit`.
    pub async fn ready(&self, limit: Duration) -> Result<(), String> {
        let ready = wait_for(limit, || ready(self.health)).await;
        ready.map_err(|reason| format!("{} is not ready: {reason}", self.process.name))
    }

    /// Its metrics now.
    ///
    /// # Errors
    /// When they can't be fetched.
    pub async fn metrics(&self) -> Result<Samples, String> {
        metrics(self.health).await
    }
}

/// Whether the sidecar whose health is told at an address is ready.
///
/// # Errors
/// With what it says is missing.
pub async fn ready(health: SocketAddr) -> Result<(), String> {
    match fetch(&format!("http://{health}/ready")).await? {
        (200, _) => Ok(()),
        (status, body) => Err(format!("{status} {body}")),
    }
}

/// The metrics of the sidecar whose health is told at an address.
///
/// # Errors
/// When they can't be fetched.
pub async fn metrics(health: SocketAddr) -> Result<Samples, String> {
    let (_, text) = fetch(&format!("http://{health}/metrics")).await?;
    Ok(Samples::parse(&text))
}

/// Asks `check` again and again until it holds.
///
/// # Errors
/// What it said last when it does not hold within `limit`.
pub async fn wait_for<T, F>(limit: Duration, mut check: impl FnMut() -> F) -> Result<T, String>
where
    F: Future<Output = Result<T, String>>,
{
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        match check().await {
            Ok(value) => return Ok(value),
            Err(reason) if tokio::time::Instant::now() >= deadline => {
                return Err(format!("{reason} (after {limit:?})"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn address(value: &Value) -> Option<SocketAddr> {
    value.as_str()?.parse().ok()
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

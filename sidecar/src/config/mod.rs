//! What the sidecar is told at its start.
//!
//! In: a YAML file, the environment (`TULLE_*`) and flags, each overriding the one before. Out: a [`Config`] in which
//! every value is valid and every default filled in. Nothing is read again later, and no secret is held: keys and
//! tokens are named by their files.

mod args;
mod capture;
mod dns;
mod file;
mod own;
mod probe;
mod value;
mod workers;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tulle_mesh::address::ServicePort;
use tulle_mesh::identity::TrustDomain;

pub use args::{Arguments, Command, Settings};
pub use capture::Capture;
pub use dns::Dns;
pub(crate) use own::global_addresses;
pub use probe::{Check, HttpCheck, Probe, ProbeList};
pub use value::{
    ControlAddress, DomainName, Endpoint, LocalPort, LogLevel, LoopbackAddr, MeshPort, NameServer,
    OwnAddress, Span, ValueError,
};

/// How the sidecar runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Whom it serves.
    pub workload: Workload,
    /// The root of trust of its identity.
    pub trust_domain: TrustDomain,
    /// Where its configuration comes from.
    pub control_plane: ControlPlane,
    /// Its certificate from files, or `None` to get one from the control plane's CA.
    pub identity: Option<IdentityFiles>,
    /// What the application's own connections meet.
    pub outbound: Outbound,
    /// What peers' connections meet.
    pub inbound: Vec<MeshPort>,
    /// Where redirected connections arrive; `None`: only connections that are made to the sidecar are carried.
    pub capture: Option<Capture>,
    /// The resolver for the application; `None`: it has none.
    pub dns: Option<Dns>,
    /// The admin interface; always on loopback.
    pub admin: SocketAddr,
    /// Health and metrics, for everyone; 0.0.0.0 stands for all addresses of both families.
    pub health: SocketAddr,
    /// Probes of the application that the health port answers.
    pub probes: Vec<Probe>,
    /// Where the last good configuration outlives a restart; `None`: nowhere. Keys and certificates are never on disk.
    pub state_dir: Option<PathBuf>,
    /// How many threads carry traffic; at least 1.
    pub workers: usize,
    /// Where spans go; `None`: nowhere.
    pub otlp: Option<Endpoint>,
    /// How it goes away.
    pub drain: Drain,
    /// What it says about itself.
    pub log: Log,
}

/// The workload that the sidecar serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// The service account that it runs as.
    pub service_account: String,
    /// Its own name, as a pod's; unique within the namespace.
    pub name: String,
}

/// The control plane's address, and how both ends prove themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlane {
    /// Its host and port.
    pub address: ControlAddress,
    /// The name in its certificate.
    pub server_name: String,
    /// The certificate authority of its certificate, in PEM.
    pub root_file: PathBuf,
    /// The token by which the workload proves itself when it has no certificate.
    pub token_file: Option<PathBuf>,
}

/// A certificate that something else renews (SPIRE's agent, cert-manager).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The certificate chain, leaf first, in PEM.
    pub certificate_file: PathBuf,
    /// Its key, in PEM.
    pub key_file: PathBuf,
    /// The trust bundle, in PEM.
    pub bundle_file: PathBuf,
}

/// What the application's own connections meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// The forward proxy; `None`: there is none, which is the default with capture.
    pub proxy: Option<SocketAddr>,
    /// Local ports, each of which stands for one service.
    pub ports: Vec<LocalPort>,
    /// What happens to destinations that the mesh does not know.
    pub policy: OutboundPolicy,
    /// How long a connection or request waits for configuration that is asked for on its behalf.
    pub demand_timeout: Duration,
    /// How long another host may leave what was sent to it over HTTP unacknowledged until it is taken for dead; zero: as
    /// the system has it.
    pub dead_peer_timeout: Duration,
}

/// What happens to destinations that the mesh does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum OutboundPolicy {
    /// They are connected to as they are.
    #[default]
    AllowAny,
    /// They are refused.
    RegistryOnly,
}

/// How the sidecar goes away on SIGTERM, SIGINT or `POST /drain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// The longest that what is in flight may still take.
    pub grace_period: Duration,
    /// How long of it new connections are still served, while peers learn that the workload is going.
    pub lame_duck: Duration,
}

/// What the sidecar says about itself, on standard error.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// What is said.
    pub level: LogLevel,
    /// How a line is written.
    pub format: LogFormat,
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl Config {
    /// Reads the file that `settings` name, and puts the environment and flags (which `settings` hold) above it.
    ///
    /// # Errors
    /// The first fault, naming the file and line or the flag, the field, and what would be right.
    pub fn load(settings: &Settings) -> Result<Self, ConfigError> {
        let file = match &settings.config {
            Some(path) => file::read(path)?,
            None => file::File::default(),
        };
        Self::combine(file, settings)
    }

    fn combine(file: file::File, flags: &Settings) -> Result<Self, ConfigError> {
        let missing = |field, flag, fix| ConfigError::Missing { field, flag, fix };
        let file::File { workload, control_plane, identity, outbound, capture, drain, log, .. } = file;
        let capture = Capture::combine(capture, flags)?;

        let address = flags.control_plane.clone().or(control_plane.address).ok_or_else(|| {
            missing(
                "controlPlane.address",
                "--control-plane",
                "the control plane's host and port, such as tulle-control-plane.tulle-system:15012",
            )
        })?;
        let control_plane = ControlPlane {
            server_name: flags
                .control_plane_name
                .clone()
                .or(control_plane.server_name)
                .unwrap_or_else(|| address.host().to_owned()),
            address,
            root_file: flags.root_file.clone().or(control_plane.root_file).ok_or_else(|| {
                missing(
                    "controlPlane.rootFile",
                    "--root-file",
                    "the PEM file with the root that signs the control plane's certificate",
                )
            })?,
            token_file: flags.token_file.clone().or(control_plane.token_file),
        };

        let grace_period = flags.grace_period.or(drain.grace_period).unwrap_or(Span(DEFAULT_GRACE)).0;
        let lame_duck =
            flags.lame_duck.or(drain.lame_duck).map_or(DEFAULT_LAME_DUCK.min(grace_period), |span| span.0);
        if lame_duck > grace_period {
            return Err(ConfigError::Conflict {
                field: "drain.lameDuck",
                reason: format!("{lame_duck:?} is longer than drain.gracePeriod, {grace_period:?}"),
                fix: "make it shorter, or the grace period longer",
            });
        }

        let config = Self {
            workload: Workload {
                namespace: flags.namespace.clone().or(workload.namespace).ok_or_else(|| {
                    missing(
                        "workload.namespace",
                        "--namespace",
                        "the namespace of the workload beside this sidecar",
                    )
                })?,
                service_account: flags.service_account.clone().or(workload.service_account).ok_or_else(
                    || {
                        missing(
                            "workload.serviceAccount",
                            "--service-account",
                            "the service account that the workload runs as",
                        )
                    },
                )?,
                name: flags.name.clone().or(workload.name).ok_or_else(|| {
                    missing(
                        "workload.name",
                        "--name",
                        "the workload's own name, unique in its namespace, such as the pod's",
                    )
                })?,
            },
            trust_domain: flags.trust_domain.clone().or(file.trust_domain).unwrap_or_else(|| {
                DEFAULT_TRUST_DOMAIN.parse().expect("the default trust domain is a valid one")
            }),
            control_plane,
            identity: identity.map(|files| IdentityFiles {
                certificate_file: files.certificate_file,
                key_file: files.key_file,
                bundle_file: files.bundle_file,
            }),
            outbound: Outbound {
                proxy: match flags.proxy.or(outbound.proxy) {
                    Some(address) => Some(address.get()),
                    None => capture.is_none().then_some(DEFAULT_PROXY),
                },
                ports: if flags.ports.is_empty() { outbound.ports } else { flags.ports.clone() },
                policy: flags.outbound_policy.or(outbound.policy).unwrap_or_default(),
                demand_timeout: flags
                    .demand_timeout
                    .or(outbound.demand_timeout)
                    .unwrap_or(Span(DEFAULT_DEMAND_TIMEOUT))
                    .0,
                dead_peer_timeout: flags
                    .dead_peer_timeout
                    .or(outbound.dead_peer_timeout)
                    .unwrap_or(Span(DEFAULT_DEAD_PEER_TIMEOUT))
                    .0,
            },
            inbound: if flags.inbound.is_empty() { file.inbound } else { flags.inbound.clone() },
            capture,
            dns: Dns::combine(file.dns, flags),
            admin: flags.admin.or(file.admin).map_or(DEFAULT_ADMIN, LoopbackAddr::get),
            health: flags.health.or(file.health.map(|address| address.0)).unwrap_or(DEFAULT_HEALTH),
            probes: probe::combine(file.probes, flags)?,
            state_dir: flags.state_dir.clone().or(file.state_dir),
            workers: flags
                .workers
                .or(file.workers)
                .map_or_else(workers::default_workers, |number| usize::from(number.get())),
            otlp: flags.otlp.clone().or(file.otlp.and_then(|otlp| otlp.endpoint)),
            drain: Drain { grace_period, lame_duck },
            log: Log {
                level: flags.log_level.clone().or(log.level).unwrap_or_default(),
                format: flags.log_format.or(log.format).unwrap_or_default(),
            },
        };
        config.check_addresses()?;
        Ok(config)
    }

    /// Two listeners on one address would fail when they are bound; here the message can name both.
    fn check_addresses(&self) -> Result<(), ConfigError> {
        if self.capture.is_some() && !self.inbound.is_empty() {
            return Err(ConfigError::Conflict {
                field: "inbound",
                reason: "with capture, peers reach the application on its own ports".into(),
                fix: "remove these, or turn capture off",
            });
        }
        let capture = self.capture.iter().flat_map(|capture| {
            let outbound = capture.outbound_addresses().map(|address| ("capture.outbound", address));
            outbound
                .into_iter()
                .chain(capture.inbound_addresses().map(|address| ("capture.inbound", address)))
        });
        let proxy = self.outbound.proxy.map(|address| ("outbound.proxy", address));
        let ports = self.outbound.ports.iter().map(|port| ("outbound.ports", port.listen));
        let inbound = self.inbound.iter().map(|port| ("inbound", port.listen));
        let single = [("admin", self.admin), ("health", self.health)];
        let dns = self.dns.iter().map(|dns| ("dns.listen", dns.listen));
        let all: Vec<_> = capture.chain(proxy).chain(single).chain(ports).chain(inbound).chain(dns).collect();
        for (index, (field, address)) in all.iter().enumerate() {
            if let Some((other, _)) = all[..index].iter().find(|(_, other)| collide(*address, *other)) {
                return Err(ConfigError::Conflict {
                    field,
                    reason: format!("{address} is already the address of {other}"),
                    fix: "give each listener an address of its own",
                });
            }
        }
        self.dns.as_ref().map_or(Ok(()), Dns::check)?;
        let mut services: Vec<&ServicePort> = self.outbound.ports.iter().map(|port| &port.service).collect();
        services.sort_unstable();
        if let Some(twice) = services.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ConfigError::Conflict {
                field: "outbound.ports",
                reason: format!("{} has two local ports", twice[0]),
                fix: "keep one of them",
            });
        }
        Ok(())
    }
}

/// Whether two listeners can't both be had: a wildcard takes the port on every address of its family.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let wildcard = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || wildcard && a.is_ipv4() == b.is_ipv4())
}

const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
const DEFAULT_PROXY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15001);
const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15000);
/// Health and metrics, where nothing else is said.
pub(crate) const DEFAULT_HEALTH: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 15020);
const DEFAULT_DEMAND_TIMEOUT: Duration = Duration::from_secs(2);
/// Linkerd's, too.
const DEFAULT_DEAD_PEER_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_GRACE: Duration = Duration::from_secs(30);
const DEFAULT_LAME_DUCK: Duration = Duration::from_secs(5);

/// Why the sidecar can't start as it was told. The fault is always the user's.
#[derive(Debug)]
pub enum ConfigError {
    /// The file can't be read.
    Read {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// The file is not what it should be.
    Parse {
        /// Its path.
        path: PathBuf,
        /// The line, from 1; 0 where none is known.
        line: u32,
        /// The column, from 1; 0 where none is known.
        column: u32,
        /// The path of the field; `.` for the document itself.
        field: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A field without a default is nowhere set.
    Missing {
        /// Its path in the file.
        field: &'static str,
        /// Its flag.
        flag: &'static str,
        /// What to set it to.
        fix: &'static str,
    },
    /// Two settings exclude each other.
    Conflict {
        /// The path of one of them in the file.
        field: &'static str,
        /// Why.
        reason: String,
        /// What to do.
        fix: &'static str,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, error } => {
                write!(f, "{}: {error}; check --config (TULLE_CONFIG)", path.display())
            }
            Self::Parse { path, line: 0, field, reason, .. } => {
                write!(f, "{}: {field}: {reason}", path.display())
            }
            Self::Parse { path, line, column, field, reason } => {
                write!(f, "{}:{line}:{column}: {field}: {reason}", path.display())
            }
            Self::Missing { field, flag, fix } => {
                let variable = args::variable(flag);
                write!(f, "{field} is missing; set it in the file, with {flag} or in {variable}: {fix}")
            }
            Self::Conflict { field, reason, fix } => write!(f, "{field}: {reason}; {fix}"),
        }
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests;

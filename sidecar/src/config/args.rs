//! The command line, and the environment in its place: each flag `--some-name` is also `TULLE_SOME_NAME`, and one whose
//! name ends in `port` is `TULLE_SOME_PORTS`: for a Service `tulle-some`, Kubernetes sets `TULLE_SOME_PORT=tcp://...` in
//! every container of its namespace.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use tulle_mesh::identity::TrustDomain;

use super::probe::ProbeList;
use super::value::{
    ControlAddress, DomainName, Endpoint, LocalPort, LogLevel, LoopbackAddr, MeshPort, NameServer,
    OwnAddress, Span,
};
use super::{LogFormat, OutboundPolicy};
use crate::app::AwaitSettings;
use crate::redirect::{InitSettings, ValidateSettings};

/// The proxy of the Tulle service mesh that runs beside each workload.
#[derive(Debug, Parser)]
#[command(name = "tulle-sidecar", version, max_term_width = 100)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Carry the workload's traffic until told to stop.
    Run(Box<Settings>),
    /// Say what is wrong with the configuration, or print nothing.
    CheckConfig(Box<Settings>),
    /// Redirect this network namespace's TCP to the sidecar, or stop doing so.
    Init(Box<InitSettings>),
    /// Wait until the sidecar beside is ready.
    Await(AwaitSettings),
    /// Show that redirection works, in both directions and for IPv4 and IPv6.
    Validate(ValidateSettings),
}

/// Settings from flags and the environment; each overrides the file's.
#[derive(Clone, Debug, Default, Args)]
pub struct Settings {
    /// The YAML file with the settings that are not given here.
    #[arg(long, env = "TULLE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The workload's namespace.
    #[arg(long, env = "TULLE_NAMESPACE")]
    pub namespace: Option<String>,
    /// The service account that the workload runs as.
    #[arg(long, env = "TULLE_SERVICE_ACCOUNT")]
    pub service_account: Option<String>,
    /// The workload's own name, such as the pod's.
    #[arg(long, env = "TULLE_NAME")]
    pub name: Option<String>,
    /// The root of trust of the workload's identity [default: cluster.local].
    #[arg(long, env = "TULLE_TRUST_DOMAIN")]
    pub trust_domain: Option<TrustDomain>,

    /// The control plane's host and port.
    #[arg(long, env = "TULLE_CONTROL_PLANE", value_name = "HOST:PORT")]
    pub control_plane: Option<ControlAddress>,
    /// The name in the control plane's certificate [default: its host].
    #[arg(long, env = "TULLE_CONTROL_PLANE_NAME", value_name = "HOST")]
    pub control_plane_name: Option<String>,
    /// The PEM file with the root that signs the control plane's certificate.
    #[arg(long, env = "TULLE_ROOT_FILE", value_name = "FILE")]
    pub root_file: Option<PathBuf>,
    /// The file with the token by which the workload proves itself.
    #[arg(long, env = "TULLE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// The forward proxy for the workload's own requests [default: 127.0.0.1:15001; with --capture: none].
    #[arg(long, env = "TULLE_PROXY", value_name = "ADDRESS")]
    pub proxy: Option<LoopbackAddr>,
    /// A local port that stands for a service, as 127.0.0.1:9001=cart.shop:80; may be given several times.
    #[arg(long = "port", env = "TULLE_PORTS", value_name = "ADDRESS=SERVICE", value_delimiter = ',')]
    pub ports: Vec<LocalPort>,
    /// What happens to destinations that the mesh does not know [default: AllowAny].
    #[arg(long, env = "TULLE_OUTBOUND_POLICY", value_name = "POLICY")]
    pub outbound_policy: Option<OutboundPolicy>,
    /// How long traffic waits for configuration that it needs [default: 2s].
    #[arg(long, env = "TULLE_DEMAND_TIMEOUT", value_name = "TIME")]
    pub demand_timeout: Option<Span>,
    /// How long another host may leave a request unacknowledged until it is taken for dead; 0s: as the system has it
    /// [default: 30s].
    #[arg(long, env = "TULLE_DEAD_PEER_TIMEOUT", value_name = "TIME")]
    pub dead_peer_timeout: Option<Span>,
    /// A port for peers and the application behind it, as 10.0.0.7:8080=127.0.0.1:8080; may be given several times.
    #[arg(long, env = "TULLE_INBOUND", value_name = "ADDRESS=APP", value_delimiter = ',')]
    pub inbound: Vec<MeshPort>,

    /// Take the connections that `tulle-sidecar init` redirects [default: false].
    #[arg(long, env = "TULLE_CAPTURE", value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true")]
    pub capture: Option<bool>,
    /// The port to which the workload's own connections are redirected [default: 15001].
    #[arg(long, env = "TULLE_CAPTURE_OUTBOUND", value_name = "PORT")]
    pub capture_outbound: Option<u16>,
    /// The port to which connections of peers are redirected [default: 15006].
    #[arg(long, env = "TULLE_CAPTURE_INBOUND", value_name = "PORT")]
    pub capture_inbound: Option<u16>,
    /// An address of the workload; may be given several times [default: all addresses of this host that peers can
    /// reach].
    #[arg(long = "address", env = "TULLE_ADDRESS", value_name = "IP", value_delimiter = ',')]
    pub addresses: Vec<OwnAddress>,

    /// Resolve names for the application on this address, over UDP and TCP; 127.0.0.1:15053 is the usual one, and
    /// takes `[::1]` with it [default: no resolver].
    #[arg(long, env = "TULLE_DNS", value_name = "ADDRESS")]
    pub dns: Option<LoopbackAddr>,
    /// A name server for names outside of the mesh, as 10.0.0.2 or 10.0.0.2:53; may be given several times [default:
    /// those of /etc/resolv.conf].
    #[arg(long, env = "TULLE_DNS_UPSTREAM", value_name = "SERVER", value_delimiter = ',')]
    pub dns_upstream: Vec<NameServer>,
    /// The end of Services' names, as the control plane has it [default: cluster.local].
    #[arg(long, env = "TULLE_CLUSTER_DOMAIN", value_name = "NAME")]
    pub cluster_domain: Option<DomainName>,

    /// The admin interface, on loopback [default: 127.0.0.1:15000].
    #[arg(long, env = "TULLE_ADMIN", value_name = "ADDRESS")]
    pub admin: Option<LoopbackAddr>,
    /// Health and metrics; 0.0.0.0 takes the addresses of IPv6 with it [default: 0.0.0.0:15020].
    #[arg(long, env = "TULLE_HEALTH", value_name = "ADDRESS")]
    pub health: Option<SocketAddr>,
    /// Probes of the application that the health port answers at /probe/NAME, as a JSON list: [{"name": "web/readiness",
    /// "timeout": "1s", "http": {"port": 8080, "path": "/ready"}}]; `tcp` and `grpc` are the other ways to ask [default:
    /// none].
    #[arg(long, env = "TULLE_PROBES", value_name = "JSON")]
    pub probes: Option<ProbeList>,
    /// The folder in which the last good configuration outlives a restart; keys and certificates are never on disk.
    #[arg(long, env = "TULLE_STATE_DIR", value_name = "FOLDER")]
    pub state_dir: Option<PathBuf>,
    /// The number of threads that carry traffic [default: the CPU limit, at most 2].
    #[arg(long, env = "TULLE_WORKERS")]
    pub workers: Option<NonZeroU16>,
    /// The OTLP gRPC endpoint that gets the spans.
    #[arg(long, env = "TULLE_OTLP", value_name = "URL")]
    pub otlp: Option<Endpoint>,
    /// The longest that requests in flight may take after a signal to stop [default: 30s].
    #[arg(long, env = "TULLE_GRACE_PERIOD", value_name = "TIME")]
    pub grace_period: Option<Span>,
    /// How long new connections are still served after a signal to stop [default: 5s].
    #[arg(long, env = "TULLE_LAME_DUCK", value_name = "TIME")]
    pub lame_duck: Option<Span>,
    /// What is logged, as info or info,tulle_sidecar::xds=debug [default: info].
    #[arg(long, env = "TULLE_LOG_LEVEL", value_name = "FILTER")]
    pub log_level: Option<LogLevel>,
    /// How the log is written [default: text].
    #[arg(long, env = "TULLE_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// The flag's variable in the environment.
pub(super) fn variable(flag: &str) -> String {
    let name = format!("TULLE_{}", flag.trim_start_matches('-').replace('-', "_").to_ascii_uppercase());
    if name.ends_with("_PORT") { name + "S" } else { name }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_flag_has_its_variable() {
        let mut command = Arguments::command();
        command.build();
        let subcommands = command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help");
        for argument in subcommands.flat_map(clap::Command::get_arguments) {
            let flag = argument.get_long().expect("a flag");
            let set = argument.get_env().and_then(|name| name.to_str());
            assert!(flag == "help" || set == Some(variable(flag).as_str()), "{flag}: {set:?}");
            assert!(!set.is_some_and(is_of_a_service), "{flag}: Kubernetes sets {set:?}");
        }
        command.debug_assert();
    }

    /// Whether Kubernetes sets a variable for a Service of some name: `X_PORT`, `X_SERVICE_HOST`, `X_SERVICE_PORT_NAME`,
    /// `X_PORT_80_TCP_ADDR`.
    fn is_of_a_service(variable: &str) -> bool {
        let words: Vec<&str> = variable.split('_').collect();
        words.windows(2).any(|pair| matches!(pair, ["SERVICE", "HOST" | "PORT"]))
            || words.iter().skip(1).enumerate().any(|(at, word)| {
                *word == "PORT" && words.get(at + 2).is_none_or(|next| next.parse::<u16>().is_ok())
            })
    }
}

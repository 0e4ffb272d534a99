//! What the control plane is told when it starts: flags, or environment variables of the same meaning.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use tulle_mesh::identity::TrustDomain;
use tulle_mesh::model::PerMillion;

use crate::ca::LEAF_LIFETIME;
use crate::inject::args::InjectArgs;
use crate::world::VirtualRange;

/// The control plane of a Tulle mesh.
///
/// It reads Kubernetes objects (Services, routes, policies, workloads) from a folder or a cluster's API server, watches it, and serves what
/// follows from them to sidecars, to Envoy and to gRPC over xDS. It also certifies every workload's identity.
///
/// When it is ready it prints one line of JSON with the addresses that it listens on:
/// {"ready":true,"xds":"127.0.0.1:15012","http":"127.0.0.1:15014"}. Everything else it says goes to standard error.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "tulle-control-plane",
    version,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// How to serve.
    #[command(flatten)]
    pub serve: Option<Args>,
    /// How sidecars are injected. In a group of their own within the others, the parser could not tell whether any of those
    /// were given.
    #[command(flatten)]
    pub inject: InjectArgs,
    /// Something else than serving.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// How to serve.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// The folder of manifests (*.yaml, *.yml, *.json); changes take effect at once.
    #[arg(
        long,
        value_name = "DIR",
        env = "TULLE_MANIFESTS",
        required_unless_present = "kubernetes",
        conflicts_with = "kubernetes"
    )]
    pub manifests: Option<PathBuf>,
    /// The folder that keeps the CA's root, the key of join tokens and virtual addresses; made if it is missing. Copy its
    /// root.pem to whoever connects. In a cluster none is used: the CA is a Secret, and no virtual addresses are given.
    #[arg(
        long,
        value_name = "DIR",
        env = "TULLE_STATE",
        required_unless_present = "kubernetes",
        conflicts_with = "kubernetes"
    )]
    pub state: Option<PathBuf>,
    /// Use a Kubernetes API server: that of the cluster that this pod runs in, or that of --kubeconfig.
    #[arg(long, env = "TULLE_KUBERNETES")]
    pub kubernetes: bool,
    /// The kubeconfig to use instead of the pod's service account.
    #[arg(long, value_name = "FILE", env = "TULLE_KUBECONFIG", conflicts_with = "manifests")]
    pub kubeconfig: Option<PathBuf>,
    /// The context in the kubeconfig, where that is not its current one.
    #[arg(long, value_name = "NAME", env = "TULLE_CONTEXT", requires = "kubeconfig")]
    pub context: Option<String>,
    /// The namespace that the control plane keeps its own objects in: the Secret of its CA, its Lease.
    #[arg(long, value_name = "NAME", env = "TULLE_NAMESPACE", default_value = "tulle-system")]
    pub namespace: String,
    /// Sign with an intermediate CA that somebody else keeps in this Secret, of type kubernetes.io/tls and in the control
    /// plane's namespace, as cert-manager does: tls.crt, tls.key, and ca.crt with every root that the mesh trusts. Each
    /// change takes effect at once.
    #[arg(
        long,
        value_name = "NAME",
        env = "TULLE_CA_SECRET",
        requires = "kubernetes",
        conflicts_with_all = ["ca_folder", "manifests"]
    )]
    pub ca_secret: Option<String>,
    /// The same, from the files tls.crt, tls.key and ca.crt of a folder.
    #[arg(long, value_name = "DIR", env = "TULLE_CA_FOLDER")]
    pub ca_folder: Option<PathBuf>,
    /// Where xDS and the CA are served, over TLS. Port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT", env = "TULLE_LISTEN", default_value = "0.0.0.0:15012")]
    pub listen: SocketAddr,
    /// Where the HTTP API and metrics are served, in plain text: keep it on the loopback, or behind something that
    /// authenticates. Port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT", env = "TULLE_HTTP", default_value = "127.0.0.1:15014")]
    pub http: SocketAddr,
    /// Where the admission webhooks are served, over TLS; in a cluster alone. Port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT", env = "TULLE_WEBHOOK", default_value = "0.0.0.0:15017")]
    pub webhook: SocketAddr,
    /// How sidecars are injected; in a cluster alone. Its flags are [`Cli::inject`].
    #[arg(skip)]
    pub inject: InjectArgs,
    /// The first part of every identity: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT.
    #[arg(long, value_name = "NAME", env = "TULLE_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: TrustDomain,
    /// The last part of every Service's name: SERVICE.NAMESPACE.svc.CLUSTER-DOMAIN.
    #[arg(long, value_name = "NAME", env = "TULLE_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// From which networks Services without a cluster IP get virtual addresses, one of each. An address that was given is
    /// never moved while its network stays.
    #[arg(
        long, value_name = "NETWORK", env = "TULLE_VIRTUAL_ADDRESSES", value_delimiter = ',',
        default_values = ["240.240.0.0/16", "2001:2::/48"]
    )]
    pub virtual_addresses: Vec<VirtualRange>,
    /// A DNS name or IP address under which sidecars reach the control plane, for its certificate. May be repeated, or
    /// hold several with commas between them.
    #[arg(long = "name", value_name = "NAME", env = "TULLE_NAMES", value_delimiter = ',')]
    pub names: Vec<String>,
    /// Which part of the requests that arrive without a sampling decision is traced, in percent, where no
    /// TelemetryPolicy says.
    #[arg(
        long, value_name = "PERCENT", env = "TULLE_TRACE_SAMPLING", default_value = "1", value_parser = percent
    )]
    pub trace_sampling: PerMillion,
    /// How long a sidecar's certificate lives, such as 24h or 90m; it is renewed at half of that. At most 24h.
    #[arg(
        long, value_name = "DURATION", env = "TULLE_LEAF_LIFETIME", default_value = "24h", value_parser = leaf_lifetime
    )]
    pub leaf_lifetime: Duration,
    /// How log lines are written. What is logged is told by TULLE_LOG, for example "debug" or "tulle_control_plane=debug".
    #[arg(long, value_name = "FORMAT", env = "TULLE_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Where the cluster is.
#[derive(Clone, Debug, ClapArgs)]
pub struct ClusterArgs {
    /// Use a Kubernetes API server: that of the cluster that this pod runs in, or that of --kubeconfig.
    #[arg(long, env = "TULLE_KUBERNETES")]
    pub kubernetes: bool,
    /// The kubeconfig to use instead of the pod's service account.
    #[arg(long, value_name = "FILE", env = "TULLE_KUBECONFIG", conflicts_with = "state")]
    pub kubeconfig: Option<PathBuf>,
    /// The context in the kubeconfig, where that is not its current one.
    #[arg(long, value_name = "NAME", env = "TULLE_CONTEXT", requires = "kubeconfig")]
    pub context: Option<String>,
    /// The namespace that the control plane keeps its own objects in: the Secret of its CA, its Lease.
    #[arg(long, value_name = "NAME", env = "TULLE_NAMESPACE", default_value = "tulle-system")]
    pub namespace: String,
}

impl Args {
    /// Where the cluster is. The parser can't tell whether flags were given at all where they are in a group of their own.
    pub fn cluster(&self) -> ClusterArgs {
        ClusterArgs {
            kubernetes: self.kubernetes,
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            namespace: self.namespace.clone(),
        }
    }
}

fn percent(text: &str) -> Result<PerMillion, String> {
    match text.parse::<f64>() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => {
            Ok(PerMillion((percent * 10_000.0).round() as u32))
        }
        _ => Err("write a number from 0 to 100".into()),
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Something else than serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Replace the CA's root without an outage, in three steps.
    ///
    /// `prepare` adds a root that everybody trusts and that does not sign yet; `switch` lets it sign; `retire` drops the
    /// old one. Run `retire` when GET /api/v1/proxies shows the new root for every proxy. A control plane that runs on
    /// the same folder or in the same cluster follows by itself.
    RotateRoot {
        /// The step.
        step: Step,
        /// The folder that keeps the CA's root.
        #[arg(
            long,
            value_name = "DIR",
            env = "TULLE_STATE",
            required_unless_present = "kubernetes",
            conflicts_with = "kubernetes"
        )]
        state: Option<PathBuf>,
        /// Where the cluster is whose Secret keeps it.
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Delete pods that were made before the CNI plugin was on their node, so that their owners make them again.
    ///
    /// Such a pod's init container tulle-validate ends with exit code 95. Pods without an owner are not deleted: an Event
    /// tells of them.
    Repair {
        /// The namespace of the plugin's own pods.
        #[arg(long, value_name = "NAME", env = "POD_NAMESPACE", default_value = "tulle-cni")]
        namespace: String,
        /// The kubeconfig to use instead of the pod's service account.
        #[arg(long, value_name = "FILE", env = "TULLE_KUBECONFIG")]
        kubeconfig: Option<PathBuf>,
        /// The context in the kubeconfig, where that is not its current one.
        #[arg(long, value_name = "NAME", env = "TULLE_CONTEXT", requires = "kubeconfig")]
        context: Option<String>,
        /// How log lines are written.
        #[arg(long, value_name = "FORMAT", env = "TULLE_LOG_FORMAT", default_value = "text")]
        log_format: LogFormat,
    },
}

/// A step of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// Trust a new root.
    Prepare,
    /// Sign with it.
    Switch,
    /// Stop to trust the old one.
    Retire,
}

/// From one second, below which nobody could renew in time, to a day.
fn leaf_lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = text.parse::<crate::kinds::Duration>()?.get();
    if (Duration::from_secs(1)..=LEAF_LIFETIME).contains(&lifetime) {
        Ok(lifetime)
    } else {
        Err(format!("{text} is not between 1s and 24h"))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_are_sound_and_have_their_defaults() {
        Cli::command().debug_assert();
        let cli =
            Cli::try_parse_from(["x", "--manifests", "m", "--state", "s", "--name", "a,b", "--name", "c"])
                .expect("valid");
        let args = cli.serve.expect("to serve");
        assert_eq!(args.listen.port(), 15012);
        assert!(args.http.ip().is_loopback());
        assert_eq!(args.trust_domain.as_str(), "cluster.local");
        assert_eq!(args.trace_sampling, PerMillion::percent(1));
        assert_eq!(args.names, ["a", "b", "c"]);
        assert_eq!(args.leaf_lifetime, LEAF_LIFETIME);
        assert_eq!(args.virtual_addresses.len(), 2);
    }

    #[test]
    fn a_cluster_needs_no_folder() {
        let cli =
            Cli::try_parse_from(["x", "--kubernetes", "--kubeconfig", "k", "--context", "c"]).expect("valid");
        let args = cli.serve.expect("to serve");
        assert!(args.kubernetes && args.manifests.is_none() && args.state.is_none());
        assert_eq!(args.cluster().namespace, "tulle-system");
        Cli::try_parse_from(["x", "rotate-root", "prepare", "--kubernetes"]).expect("valid");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (flags, word) in [
            (vec!["x"], "--manifests"),
            (vec!["x", "--manifests", "m"], "--state"),
            (vec!["x", "--kubernetes", "--manifests", "m"], "--kubernetes"),
            (vec!["x", "--manifests", "m", "--state", "s", "--kubeconfig", "k"], "--kubeconfig"),
            (vec!["x", "rotate-root", "prepare", "--state", "s", "--kubeconfig", "k"], "--kubeconfig"),
            (vec!["x", "rotate-root", "prepare"], "--state"),
            (vec!["x", "--manifests", "m", "--state", "s", "--listen", "15012"], "--listen"),
            (vec!["x", "--manifests", "m", "--state", "s", "--trust-domain", "A_B!"], "trust domain"),
            (vec!["x", "--manifests", "m", "--state", "s", "--trace-sampling", "101"], "0 to 100"),
            (vec!["x", "--manifests", "m", "--state", "s", "--virtual-addresses", "10.0.0.1"], "network"),
            (vec!["x", "rotate-root", "back", "--state", "s"], "prepare"),
            (vec!["x", "--manifests", "m", "--state", "s", "--ca-secret", "c"], "--manifests"),
        ] {
            let error = Cli::try_parse_from(flags).expect_err("not valid");
            assert!(error.to_string().contains(word), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}

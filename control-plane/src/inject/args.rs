//! The flags for [`Settings`]: those of the control plane, whose webhook injects, and of `tulle inject`.

use clap::{Args, ValueEnum};
use tulle_mesh::identity::TrustDomain;

use super::{Redirection, Settings, Trust};

/// How sidecars are injected.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Injection")]
pub struct InjectArgs {
    /// The image of the sidecar, which also redirects traffic.
    #[arg(long, value_name = "IMAGE", env = "TULLE_SIDECAR_IMAGE", default_value_t = Settings::default().image)]
    pub sidecar_image: String,
    /// When it is pulled [default: as Kubernetes does].
    #[arg(long, value_name = "POLICY", env = "TULLE_SIDECAR_PULL_POLICY")]
    pub sidecar_pull_policy: Option<PullPolicy>,
    /// The host and port under which pods reach the control plane.
    #[arg(
        long, value_name = "HOST:PORT", env = "TULLE_CONTROL_PLANE_ADDRESS",
        default_value_t = Settings::default().control_plane
    )]
    pub control_plane_address: String,
    /// Who redirects the traffic of pods: an init container with the capability NET_ADMIN, or the CNI plugin.
    #[arg(long, value_name = "WHO", env = "TULLE_REDIRECTION", default_value = "init")]
    pub redirection: RedirectionArg,
    /// Where pods find the roots that they trust: in a ConfigMap of their namespace, or in a ClusterTrustBundle, which the API
    /// server and the kubelets have to serve.
    #[arg(long, value_name = "WHERE", env = "TULLE_TRUST_BUNDLE", default_value = "config-map")]
    pub trust_bundle: TrustArg,
    /// Inject the sidecar as a container beside the application's, for Kubernetes before 1.29, which has no native
    /// sidecars.
    #[arg(long, env = "TULLE_CLASSIC_SIDECAR")]
    pub classic_sidecar: bool,
    /// What sidecars log.
    #[arg(long, value_name = "FILTER", env = "TULLE_SIDECAR_LOG_LEVEL", default_value = "info")]
    pub sidecar_log_level: String,
    /// The OTLP gRPC endpoint that gets the spans of sidecars [default: none].
    #[arg(long, value_name = "URL", env = "TULLE_SIDECAR_OTLP")]
    pub sidecar_otlp: Option<String>,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// Where the node has none.
    IfNotPresent,
    /// Not at all.
    Never,
}

/// Who redirects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RedirectionArg {
    /// An init container.
    Init,
    /// The CNI plugin.
    Cni,
}

/// Where roots are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TrustArg {
    /// In a ConfigMap of each namespace.
    ConfigMap,
    /// In one object of the cluster.
    ClusterTrustBundle,
}

impl Default for InjectArgs {
    fn default() -> Self {
        let settings = Settings::default();
        Self {
            sidecar_image: settings.image,
            sidecar_pull_policy: None,
            control_plane_address: settings.control_plane,
            redirection: RedirectionArg::Init,
            trust_bundle: TrustArg::ConfigMap,
            classic_sidecar: false,
            sidecar_log_level: settings.log_level,
            sidecar_otlp: None,
        }
    }
}

impl InjectArgs {
    /// The settings that follow, in a mesh of this trust domain and cluster domain, whose control plane is in this
    /// namespace.
    pub fn settings(&self, trust_domain: &TrustDomain, cluster_domain: &str, namespace: &str) -> Settings {
        Settings {
            namespace: namespace.into(),
            image: self.sidecar_image.clone(),
            pull_policy: self.sidecar_pull_policy.map(|policy| format!("{policy:?}")),
            control_plane: self.control_plane_address.clone(),
            trust_domain: trust_domain.to_string(),
            cluster_domain: cluster_domain.into(),
            redirection: match self.redirection {
                RedirectionArg::Init => Redirection::Init,
                RedirectionArg::Cni => Redirection::Cni,
            },
            trust: match self.trust_bundle {
                TrustArg::ConfigMap => Trust::ConfigMap,
                TrustArg::ClusterTrustBundle => Trust::ClusterTrustBundle,
            },
            native: !self.classic_sidecar,
            log_level: self.sidecar_log_level.clone(),
            otlp: self.sidecar_otlp.clone(),
            ..Settings::default()
        }
    }
}

//! The connection to a Kubernetes API server: made once, shared by all that need it (source, proofs of identity, CA).
//!
//! In: a service account's files in the pod, or a kubeconfig. Out: a client, and the namespace that the control plane
//! keeps its own objects in.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

/// How long a connection to the API server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Who writes objects, as server-side apply has it.
pub(crate) const FIELD_MANAGER: &str = "tulle-control-plane";

/// A cluster.
#[derive(Clone)]
pub struct Cluster {
    /// Talks to the API server. Cheap to clone.
    pub client: Client,
    /// Where the control plane keeps its own objects.
    pub namespace: String,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Makes a client with the kubeconfig at a path (and its context of a name, else its current one); without a path,
    /// with what a pod is given. Nothing is asked yet: an API server that is away is waited for by who needs it.
    ///
    /// # Errors
    /// When the files are missing or can't be used.
    pub async fn connect(
        kubeconfig: Option<&Path>,
        context: Option<&str>,
        namespace: &str,
    ) -> Result<Self, ConnectError> {
        let config = match kubeconfig {
            None => Config::incluster().map_err(|error| ConnectError::new(None, &error))?,
            Some(path) => {
                let read =
                    Kubeconfig::read_from(path).map_err(|error| ConnectError::new(Some(path), &error))?;
                configure(read, context).await.map_err(|error| ConnectError::new(Some(path), &error))?
            }
        };
        let client = client(config).map_err(|error| ConnectError::new(kubeconfig, &error))?;
        Ok(Self { client, namespace: namespace.into() })
    }

    /// The same for a user, whose kubeconfig is where kubectl looks for it when no path is given: `$KUBECONFIG`, then
    /// `~/.kube/config`.
    ///
    /// # Errors
    /// When there is none, or it can't be used.
    pub async fn connect_as_user(
        kubeconfig: Option<&Path>,
        context: Option<&str>,
        namespace: &str,
    ) -> Result<Self, ConnectError> {
        if kubeconfig.is_some() {
            return Self::connect(kubeconfig, context, namespace).await;
        }
        let failed = |error: &dyn std::error::Error| ConnectError {
            kubeconfig: Some("of $KUBECONFIG or ~/.kube/config".into()),
            reason: with_causes(error),
        };
        let read = Kubeconfig::read().map_err(|error| failed(&error))?;
        let config = configure(read, context).await.map_err(|error| failed(&error))?;
        let client = client(config).map_err(|error| failed(&error))?;
        Ok(Self { client, namespace: namespace.into() })
    }
}

async fn configure(kubeconfig: Kubeconfig, context: Option<&str>) -> Result<Config, KubeconfigError> {
    let options = KubeConfigOptions { context: context.map(Into::into), ..KubeConfigOptions::default() };
    Config::from_custom_kubeconfig(kubeconfig, &options).await
}

fn client(mut config: Config) -> Result<Client, kube::Error> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config)
}

/// No client can be made. The fault is the operator's.
#[derive(Debug)]
pub struct ConnectError {
    kubeconfig: Option<PathBuf>,
    reason: String,
}

impl ConnectError {
    fn new(kubeconfig: Option<&Path>, error: &dyn std::error::Error) -> Self {
        Self { kubeconfig: kubeconfig.map(Into::into), reason: with_causes(error) }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = &self.reason;
        match &self.kubeconfig {
            Some(path) => {
                write!(f, "can't use the kubeconfig {}: {reason}; check --kubeconfig", path.display())
            }
            None => {
                write!(f, "not in a pod with a service account: {reason}; outside of one give --kubeconfig")
            }
        }
    }
}

impl std::error::Error for ConnectError {}

/// An error with all its causes: the outermost alone does not say what failed.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let causes = std::iter::successors(error.source(), |error| error.source());
    for cause in causes.map(ToString::to_string) {
        // Many repeat their cause themselves.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Pauses between attempts: ever longer ones, with chance in them.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    failures: u32,
}

impl Pause {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    /// How long to wait now.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = Self::FIRST * 2_u32.saturating_pow(self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        pause.min(Self::LONGEST).mul_f64(0.75 + fastrand::f64() / 2.0)
    }

    /// After a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

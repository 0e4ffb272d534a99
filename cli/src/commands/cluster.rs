//! A cluster that a command looks into, with the user's own rights.
//!
//! In: a kubeconfig, found as kubectl finds it. Out: a client, and what the cluster's control plane was told of the mesh.

use std::path::PathBuf;

use clap::Args;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use tulle_control_plane::inject::webhook::SERVICE;
use tulle_control_plane::kubernetes::Cluster;
use tulle_control_plane::world::MeshSettings;

use super::manifests::MeshArgs;
use crate::output::Failure;

/// Which cluster.
#[derive(Clone, Debug, Args)]
pub(super) struct ClusterArgs {
    /// The kubeconfig of the cluster; without it $KUBECONFIG, then ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// The context in the kubeconfig, where that is not its current one.
    #[arg(long, value_name = "NAME")]
    pub(super) context: Option<String>,
    /// The namespace of the control plane.
    #[arg(long, value_name = "NAME", env = "TULLE_NAMESPACE", default_value = "tulle-system")]
    pub(super) system_namespace: String,
}

impl ClusterArgs {
    /// Whether a cluster is meant where it could be a mesh on this machine: a flag says so, or the user has a kubeconfig.
    pub(super) fn is_meant(&self) -> bool {
        let home = || {
            let home = std::env::var_os("HOME").map(PathBuf::from);
            home.is_some_and(|home| home.join(".kube/config").is_file())
        };
        let given = self.kubeconfig.is_some() || self.context.is_some();
        given || std::env::var_os("KUBECONFIG").is_some_and(|files| !files.is_empty()) || home()
    }

    /// Makes a client; nothing is asked yet.
    ///
    /// # Errors
    /// When there is no kubeconfig, or it can't be used.
    pub(super) async fn connect(&self) -> Result<Cluster, Failure> {
        let (kubeconfig, context) = (self.kubeconfig.as_deref(), self.context.as_deref());
        let cluster = Cluster::connect_as_user(kubeconfig, context, &self.system_namespace).await;
        cluster.map_err(Failure::usage)
    }
}

/// The Deployment of a cluster's control plane, if there is one.
///
/// # Errors
/// When it can't be asked for.
pub(super) async fn deployment(cluster: &Cluster) -> Result<Option<Deployment>, kube::Error> {
    Api::namespaced(cluster.client.clone(), &cluster.namespace).get_opt(SERVICE).await
}

/// What a cluster's control plane was told of the mesh, but for what the user says otherwise. Where it can't be asked, the
/// defaults.
pub(super) async fn settings(cluster: &Cluster, mesh: &MeshArgs) -> Result<MeshSettings, Failure> {
    let deployment = deployment(cluster).await.ok().flatten();
    let told = |flag: &str| deployment.as_ref().and_then(|deployment| argument(deployment, flag));
    let mut mesh = mesh.clone();
    if let (None, Some(told)) = (&mesh.trust_domain, told("--trust-domain=")) {
        mesh.trust_domain = Some(told.parse().map_err(Failure::new)?);
    }
    mesh.cluster_domain = mesh.cluster_domain.or(told("--cluster-domain="));
    Ok(mesh.settings())
}

/// The control plane's image.
pub(super) fn image(deployment: &Deployment) -> Option<&str> {
    let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
    pod.containers.first()?.image.as_deref()
}

/// The value of a flag of the control plane.
fn argument(deployment: &Deployment, flag: &str) -> Option<String> {
    let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
    let arguments = pod.containers.iter().flat_map(|container| container.args.iter().flatten());
    arguments.filter_map(|argument| argument.strip_prefix(flag)).next_back().map(Into::into)
}

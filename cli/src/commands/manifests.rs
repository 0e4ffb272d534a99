//! The objects that commands look at, and the mesh that is made of them: from manifests, or from a cluster.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use tulle_control_plane::source::manifests::once::{self, Input};
use tulle_control_plane::source::{Loaded, Objects, Problem, kubernetes};
use tulle_control_plane::world::{MeshSettings, World};
use tulle_mesh::identity::TrustDomain;
use tulle_mesh::model::PerMillion;

use super::cluster::{self, ClusterArgs};
use crate::output::Failure;

/// What objects don't say of the mesh.
#[derive(Clone, Debug, Args)]
pub(super) struct MeshArgs {
    /// The mesh's trust domain; where it is not given, that of the cluster's control plane, or cluster.local.
    #[arg(long, value_name = "NAME", env = "TULLE_TRUST_DOMAIN")]
    pub(super) trust_domain: Option<TrustDomain>,
    /// The end of all Services' names; where it is not given, that of the cluster's control plane, or cluster.local.
    #[arg(long, value_name = "NAME")]
    pub(super) cluster_domain: Option<String>,
}

/// The trust domain and the cluster domain where nobody says otherwise.
const DEFAULT: &str = "cluster.local";
/// The control plane's namespace, as everything that installs it has it.
const SYSTEM: &str = "tulle-system";

impl MeshArgs {
    /// With the defaults for what is not said.
    pub(super) fn settings(&self) -> MeshSettings {
        MeshSettings {
            trust_domain: self.trust_domain(),
            cluster_domain: self.cluster_domain.clone().unwrap_or_else(|| DEFAULT.into()),
            namespace: SYSTEM.into(),
            sampling: PerMillion(0),
            // What was chosen, and when, only a control plane knows.
            virtual_ranges: Vec::new(),
        }
    }

    fn trust_domain(&self) -> TrustDomain {
        self.trust_domain.clone().unwrap_or_else(|| DEFAULT.parse().expect("it has the form of one"))
    }
}

/// What objects make.
pub(super) struct Manifests {
    /// The objects.
    pub(super) objects: Objects,
    /// The mesh.
    pub(super) world: World,
    /// Its trust domain.
    pub(super) trust_domain: TrustDomain,
    /// What could not be read.
    unread: Vec<Problem>,
}

impl Manifests {
    /// Reads manifests, where `-` is standard input, and builds the mesh that a control plane would build from them.
    ///
    /// # Errors
    /// When a path can't be read at all. What is wrong with objects is in [`Self::problems`].
    pub(super) fn load(files: &[PathBuf], mesh: &MeshArgs) -> Result<Self, Failure> {
        let mut inputs = Vec::new();
        for path in files {
            inputs.push(match path.as_os_str() == "-" {
                false => Input::Path(path.clone()),
                true => {
                    let mut text = String::new();
                    let read = std::io::stdin().read_to_string(&mut text);
                    read.map_err(|error| Failure::usage(format!("standard input: {error}")))?;
                    Input::Text { name: "<stdin>".into(), text }
                }
            });
        }
        let loaded = once::load(&inputs).map_err(Failure::usage)?;
        Ok(Self::build(loaded, &mesh.settings()))
    }

    /// Reads a cluster, and builds the mesh that its control plane builds.
    ///
    /// # Errors
    /// When there is no kubeconfig, or the API server does not answer.
    pub(super) async fn read(cluster: &ClusterArgs, mesh: &MeshArgs) -> Result<Self, Failure> {
        let cluster = cluster.connect().await?;
        let loaded = kubernetes::once::load(&cluster.client).await.map_err(Failure::new)?;
        Ok(Self::build(loaded, &cluster::settings(&cluster, mesh).await?))
    }

    fn build(loaded: Loaded, settings: &MeshSettings) -> Self {
        let world = World::build(&loaded.objects, settings);
        let trust_domain = settings.trust_domain.clone();
        Self { world, objects: loaded.objects, trust_domain, unread: loaded.problems }
    }

    /// All that is wrong, sorted by place.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.unread.iter().chain(self.world.problems()).cloned().collect();
        problems.sort();
        problems.dedup();
        problems
    }
}

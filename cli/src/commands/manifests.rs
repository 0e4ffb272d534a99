//! The manifests that offline commands read, and the mesh that is made of them.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use tulle_control_plane::source::manifests::once::{self, Input};
use tulle_control_plane::source::{Objects, Problem};
use tulle_control_plane::world::{MeshSettings, World};
use tulle_mesh::identity::TrustDomain;
use tulle_mesh::model::PerMillion;

use crate::output::Failure;

/// What manifests don't say of the mesh.
#[derive(Debug, Args)]
pub(super) struct MeshArgs {
    /// The mesh's trust domain.
    #[arg(long, value_name = "NAME", env = "TULLE_TRUST_DOMAIN", default_value = "cluster.local")]
    pub(super) trust_domain: TrustDomain,
    /// The end of all Services' names.
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub(super) cluster_domain: String,
}

/// What manifests make.
pub(super) struct Manifests {
    /// The objects.
    pub(super) objects: Objects,
    /// The mesh.
    pub(super) world: World,
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
        let settings = MeshSettings {
            trust_domain: mesh.trust_domain.clone(),
            cluster_domain: mesh.cluster_domain.clone(),
            sampling: PerMillion(0),
            // What was chosen, and when, only a control plane knows.
            virtual_ranges: Vec::new(),
        };
        let world = World::build(&loaded.objects, &settings);
        Ok(Self { world, objects: loaded.objects, unread: loaded.problems })
    }

    /// All that is wrong, sorted by place.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.unread.iter().chain(self.world.problems()).cloned().collect();
        problems.sort();
        problems.dedup();
        problems
    }
}

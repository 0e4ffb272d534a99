//! The last good configuration on disk, so that a sidecar that restarts serves at once, control plane or not.
//!
//! In: accepted resources as they were received, and the names that traffic and the resolver asked for. Out: the same after a restart. It
//! holds no secret. A file that is broken, or another workload's, is ignored with a warning.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use prost::Message;
use tulle_mesh::xds::Kind;

use super::cache::Cache;

const FILE: &str = "configuration.snapshot";
/// Changes with the form of what follows: this line, the SHA-256 of the body, the body.
const MAGIC: &[u8] = b"tulle-sidecar configuration 1\n";
/// Secrets are not among them.
const KINDS: [Kind; 5] = [Kind::Cluster, Kind::Endpoint, Kind::Route, Kind::Listener, Kind::Dns];

/// Where the last good configuration is.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
    /// Whose it is.
    workload: String,
}

/// The body of the file.
#[derive(Clone, PartialEq, Message)]
struct Body {
    #[prost(string, tag = "1")]
    workload: String,
    /// The names that traffic asked for.
    #[prost(string, repeated, tag = "2")]
    demanded: Vec<String>,
    /// One for each type, as if the control plane had sent it.
    #[prost(message, repeated, tag = "3")]
    responses: Vec<DeltaDiscoveryResponse>,
    /// The names that the resolver asked for.
    #[prost(string, repeated, tag = "4")]
    names: Vec<String>,
}

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// Listeners, by traffic.
    pub(super) listeners: Vec<Arc<str>>,
    /// Names, by the resolver.
    pub(super) names: Vec<Arc<str>>,
}

impl Disk {
    /// In `folder`, for `workload`.
    pub(crate) fn new(folder: &Path, workload: String) -> Self {
        Self { path: folder.join(FILE), workload }
    }

    /// Writes what `cache` holds in place of what is there, whole or not at all.
    ///
    /// # Errors
    /// When the folder can't be written to; what was there stays.
    pub(crate) fn save<'a>(
        &self,
        cache: &Cache,
        demanded: impl Iterator<Item = &'a Arc<str>>,
        names: impl Iterator<Item = &'a Arc<str>>,
    ) -> Result<(), DiskError> {
        let responses = KINDS.iter().map(|kind| DeltaDiscoveryResponse {
            type_url: kind.type_url().into(),
            resources: resources(cache, *kind),
            ..Default::default()
        });
        let body = Body {
            workload: self.workload.clone(),
            demanded: demanded.map(ToString::to_string).collect(),
            responses: responses.collect(),
            names: names.map(ToString::to_string).collect(),
        }
        .encode_to_vec();
        self.replace(&body).map_err(|error| self.error(error.to_string()))
    }

    fn replace(&self, body: &[u8]) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let new = self.path.with_extension("new");
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(MAGIC)?;
        file.write_all(digest(&SHA256, body).as_ref())?;
        file.write_all(body)?;
        drop(file);
        fs::rename(&new, &self.path)
    }

    /// Puts what is on disk into `cache`, and returns what had been asked for; `None` where there is
    /// nothing yet.
    ///
    /// # Errors
    /// When the file is unreadable, broken, or another workload's; `cache` is as it was.
    pub(crate) fn load(&self, cache: &mut Cache) -> Result<Option<Asked>, DiskError> {
        let content = match fs::read(&self.path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.error(error.to_string())),
        };
        let body = content
            .strip_prefix(MAGIC)
            .and_then(|rest| rest.split_at_checked(SHA256_OUTPUT_LEN))
            .filter(|(sum, body)| digest(&SHA256, body).as_ref() == *sum)
            .and_then(|(_, body)| Body::decode(body).ok())
            .ok_or_else(|| self.error("it is damaged or of another version".into()))?;
        if body.workload != self.workload {
            return Err(self.error(format!("it is that of {}", body.workload)));
        }
        for response in body.responses {
            let Some(kind) = Kind::from_type_url(&response.type_url) else { continue };
            let names = response.resources.iter().map(|resource| resource.name.as_str().into()).collect();
            if let Err(problems) = cache.apply(kind, response, &names) {
                tracing::warn!("{}: left out: {}", self.path.display(), problems.join("; "));
            }
        }
        let shared = |names: Vec<String>| names.into_iter().map(Arc::from).collect();
        Ok(Some(Asked { listeners: shared(body.demanded), names: shared(body.names) }))
    }

    fn error(&self, reason: String) -> DiskError {
        DiskError { path: self.path.clone(), reason }
    }
}

fn resources(cache: &Cache, kind: Kind) -> Vec<Resource> {
    let held = cache.held(kind).map(|(name, held)| Resource {
        name: name.to_string(),
        aliases: held.aliases.iter().map(ToString::to_string).collect(),
        version: held.version.clone(),
        resource: Some(held.raw.clone()),
        ..Default::default()
    });
    held.collect()
}

/// Why the configuration on disk can't be used or written. The sidecar works without.
#[derive(Debug)]
pub(crate) struct DiskError {
    /// The file.
    path: PathBuf,
    /// What is wrong.
    reason: String,
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stateDir: {}: {}", self.path.display(), self.reason)
    }
}

impl std::error::Error for DiskError {}

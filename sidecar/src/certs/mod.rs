//! A workload's certificate in a folder, for those that speak the mesh's mTLS without a sidecar: Envoy and gRPC.
//!
//! In: who the workload is, and its proof for the control plane. Out: key, chain and trust bundle as files
//! (`folder`), once or for as long as the program runs, renewed as a sidecar renews its own. The key is made here; it
//! goes nowhere but into its file.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tulle_mesh::identity::{IdentityError, SpiffeId, TrustDomain};

use self::folder::{Folder, FolderError};
use crate::app::LogControl;
use crate::config::{ControlPlane, IdentityFiles, Log, LogFormat, LogLevel, Workload};
use crate::telemetry::{self, metrics::Registry};
use crate::tls::{self, ControlPlaneError, Material, RenewError, Rotation, keep_issued, renew_once, stamp};
use crate::xds::{Heard, follow_bundle};

mod folder;

/// How long the trust bundle may take where it is waited for.
const BUNDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Gets a workload's certificates.
pub struct Certificates {
    workload: Workload,
    identity: SpiffeId,
    control_plane: tls::ControlPlane,
    rotation: Mutex<Rotation>,
}

impl Certificates {
    /// Prepares to get them. Nothing is sent yet.
    ///
    /// # Errors
    /// When the names make no identity, or the control plane's root can't be read.
    pub fn new(
        workload: Workload,
        trust_domain: &TrustDomain,
        control_plane: ControlPlane,
    ) -> Result<Self, CertificatesError> {
        let identity = SpiffeId::workload(trust_domain, &workload.namespace, &workload.service_account)
            .map_err(Problem::Identity)?;
        let control_plane = tls::ControlPlane::new(control_plane, trust_domain);
        let bundle = control_plane.configured_bundle().map_err(Problem::ControlPlane)?;
        let Workload { namespace, name, .. } = workload.clone();
        let metrics = Registry::new(&telemetry::Workload { instance: name.clone(), namespace, name });
        let rotation = Mutex::new(Rotation::new(bundle, &metrics));
        Ok(Self { workload, identity, control_plane, rotation })
    }

    /// Gets a new certificate and writes it into a folder. Returns what it says, for people.
    ///
    /// # Errors
    /// When there is none, or the folder can't be written; what it held stays.
    pub async fn write_once(&self, path: &Path) -> Result<String, CertificatesError> {
        let folder = Folder::open(path).map_err(Problem::Folder)?;
        let held = self.take(&folder.files());
        renew_once(&self.control_plane, &self.identity, held.as_deref(), &self.rotation)
            .await
            .map_err(Problem::Renew)?;
        let (heard, mut news) = watch::channel(Heard::Nothing);
        let bundle = async {
            match news.wait_for(|heard| *heard != Heard::Nothing).await.map(|heard| heard.clone()) {
                Ok(Heard::Closed(reason)) => Err(Problem::Bundle(reason)),
                _ => Ok(()),
            }
        };
        tokio::select! {
            () = follow_bundle(&self.control_plane, &self.workload, &self.rotation, &heard) => {}
            heard = timeout(BUNDLE_TIMEOUT, bundle) => {
                heard.unwrap_or_else(|_| Err(Problem::Bundle("it does not send one".into())))?;
            }
        }
        self.write(&folder)
    }

    /// Keeps the certificates in a folder fresh, for ever; those that it holds already are the first. What happens is logged on
    /// standard error.
    ///
    /// # Errors
    /// When the folder can't be written. That the control plane is away is none: it is asked again.
    pub async fn keep(&self, path: &Path) -> Result<(), CertificatesError> {
        let folder = Folder::open(path).map_err(Problem::Folder)?;
        LogControl::start(&Log { level: LogLevel::default(), format: LogFormat::default() });
        self.take(&folder.files());
        let (heard, mut news) = watch::channel(Heard::Nothing);
        let mut material = self.rotation().watch();
        let renew = async {
            tokio::join!(
                keep_issued(&self.control_plane, &self.identity, &self.rotation),
                follow_bundle(&self.control_plane, &self.workload, &self.rotation, &heard)
            )
        };
        let write = async {
            // A leaf is written with the bundle that the control plane has beside it.
            let _ = news.wait_for(|heard| *heard == Heard::Bundle).await;
            loop {
                if material.borrow_and_update().is_some() {
                    tracing::info!("{}", self.write(&folder)?);
                }
                if material.changed().await.is_err() {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            _ = renew => Ok(()),
            written = write => written,
        }
    }

    /// What another run has left is as good as a new one, if it is this workload's.
    fn take(&self, files: &IdentityFiles) -> Option<Arc<Material>> {
        let mut rotation = self.rotation();
        let taken = tls::read(files).ok().and_then(|(leaf, bundle)| {
            leaf.identity().is_some_and(|identity| identity == self.identity).then_some((leaf, bundle))
        });
        let (leaf, bundle) = taken?;
        if let Err(error) = rotation.renew(leaf, Some(bundle)) {
            tracing::info!("what the folder holds is of no use: {error}");
        }
        rotation.current()
    }

    fn write(&self, folder: &Folder) -> Result<String, CertificatesError> {
        let rotation = self.rotation();
        if let (Some(leaf), Some(material)) = (rotation.leaf(), rotation.current()) {
            folder.write(leaf, rotation.bundle()).map_err(Problem::Folder)?;
            let until = stamp(material.leaf.not_after);
            return Ok(format!("wrote the certificate of {}, valid until {until}", material.identity));
        }
        Ok("there is no certificate yet".into())
    }

    /// A panic while the lock was held leaves at worst the leaf of before in force.
    fn rotation(&self) -> std::sync::MutexGuard<'_, Rotation> {
        self.rotation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there are no certificates in the folder.
#[derive(Debug)]
pub struct CertificatesError(Problem);

#[derive(Debug)]
enum Problem {
    /// Namespace and service account make no identity.
    Identity(IdentityError),
    /// What is needed to reach the control plane is missing or broken.
    ControlPlane(ControlPlaneError),
    /// The control plane gave no certificate.
    Renew(RenewError),
    /// The control plane gave no trust bundle; its stream's end.
    Bundle(String),
    /// The folder can't be used.
    Folder(FolderError),
}

impl From<Problem> for CertificatesError {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl fmt::Display for CertificatesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Problem::Identity(error) => error.fmt(f),
            Problem::ControlPlane(error) => error.fmt(f),
            Problem::Renew(error) => error.fmt(f),
            Problem::Bundle(reason) => write!(f, "no trust bundle from the control plane: {reason}"),
            Problem::Folder(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CertificatesError {}

//! Keeps the workload's certificate fresh.
//!
//! In: the CA, or files that something else renews; and trust bundles as they arrive. Out: a new [`Material`] each time
//! that leaf or bundle change, for the next snapshot. Connections of the old one live on. A leaf is renewed at half of
//! its life; when renewing fails for so long that it expires, the join token takes over, so that a long outage heals by
//! itself.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::sleep;
use tulle_mesh::identity::SpiffeId;

use super::certificate::{CertificateFacts, Leaf, TrustBundle, stamp};
use super::control_plane::{ControlPlane, ControlPlaneError, Proof};
use super::failures::Failures;
use super::issue::{IssueError, issue};
use super::material::{Material, MaterialError};
use crate::backoff::Backoff;
use crate::config::IdentityFiles;
use crate::telemetry::metrics::{Gauge, Registry};

/// How often files are looked at.
pub(crate) const FILE_CHECK: Duration = Duration::from_secs(5);
/// The longest sleep at once: the clock may be set while we wait.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// The leaf and the bundle in force, and the material that they make.
pub(crate) struct Rotation {
    leaf: Option<Leaf>,
    bundle: TrustBundle,
    generation: u64,
    current: watch::Sender<Option<Arc<Material>>>,
    failures: Arc<Failures>,
    expiry: Arc<Gauge>,
}

impl Rotation {
    /// Starts with a bundle and without a leaf.
    pub(crate) fn new(bundle: TrustBundle, metrics: &Registry) -> Self {
        let expiry = metrics.gauge(
            "tulle_certificate_not_after_seconds",
            "Until when the workload's certificate is valid, in Unix time; 0 without one.",
            &[],
        );
        let failures = Arc::new(Failures::new(metrics));
        Self { leaf: None, bundle, generation: 0, current: watch::Sender::new(None), failures, expiry }
    }

    /// Follows what is in force.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Arc<Material>>> {
        self.current.subscribe()
    }

    /// What is in force; `None` until the first leaf.
    pub(crate) fn current(&self) -> Option<Arc<Material>> {
        self.current.borrow().clone()
    }

    /// The leaf in force; `None` until the first.
    pub(crate) fn leaf(&self) -> Option<&Leaf> {
        self.leaf.as_ref()
    }

    /// What is trusted.
    pub(crate) fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// Takes a new leaf, and with it a new bundle where one came along.
    ///
    /// # Errors
    /// When they don't make a usable whole; what was in force stays.
    pub(crate) fn renew(&mut self, leaf: Leaf, bundle: Option<TrustBundle>) -> Result<(), MaterialError> {
        let bundle = bundle.unwrap_or_else(|| self.bundle.clone());
        let material = self.material(&leaf, &bundle)?;
        self.leaf = Some(leaf);
        self.bundle = bundle;
        self.put(material);
        Ok(())
    }

    /// Takes a new bundle. Sessions that began under the old one are not resumed.
    ///
    /// # Errors
    /// When a root is broken; the old bundle stays in force.
    pub(crate) fn trust(&mut self, bundle: TrustBundle) -> Result<(), MaterialError> {
        if bundle == self.bundle {
            return Ok(());
        }
        let material = self.leaf.as_ref().map(|leaf| self.material(leaf, &bundle)).transpose()?;
        self.bundle = bundle;
        if let Some(material) = material {
            self.put(material);
        }
        Ok(())
    }

    fn material(&self, leaf: &Leaf, bundle: &TrustBundle) -> Result<Material, MaterialError> {
        Material::new(leaf, bundle, self.generation + 1, &self.failures)
    }

    fn put(&mut self, material: Material) {
        self.generation = material.generation;
        let not_after = material.leaf.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.expiry.set(i64::try_from(not_after.as_secs()).unwrap_or(i64::MAX));
        tracing::info!(
            identity = %material.identity,
            serial = material.leaf.serial,
            expires = stamp(material.leaf.not_after),
            roots = material.roots.len(),
            generation = material.generation,
            "certificate and trust bundle in force"
        );
        self.current.send_replace(Some(Arc::new(material)));
    }
}

/// Gets certificates for `identity` from the control plane's CA, for ever.
pub(crate) async fn keep_issued(
    control_plane: &ControlPlane,
    identity: &SpiffeId,
    rotation: &Mutex<Rotation>,
) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    loop {
        let material = lock(rotation).current();
        if let Some(material) = &material {
            wait_until(renewal_time(material, SystemTime::now(), fastrand::f64())).await;
        }
        while let Err(error) = renew_once(control_plane, identity, material.as_deref(), rotation).await {
            let pause = backoff.next(fastrand::f64());
            let expires = material.as_ref().map(|m| stamp(m.leaf.not_after));
            tracing::warn!(
                expires = expires.as_deref().unwrap_or("no certificate is held"),
                retry_in_ms = pause.as_millis(),
                "no new certificate: {error}"
            );
            sleep(pause).await;
        }
        backoff.reset();
    }
}

/// Gets one certificate. A valid leaf proves who we are. Where it does not (expired, or its root is no longer trusted), the
/// token does.
///
/// # Errors
/// When there is none; what was in force stays.
pub(crate) async fn renew_once(
    control_plane: &ControlPlane,
    identity: &SpiffeId,
    material: Option<&Material>,
    rotation: &Mutex<Rotation>,
) -> Result<(), RenewError> {
    let bundle = lock(rotation).bundle().clone();
    let by = async |proof| -> Result<Leaf, RenewError> {
        let session = control_plane.connect(&bundle, proof).await.map_err(RenewError::Connect)?;
        issue(&session, identity).await.map_err(RenewError::Issue)
    };
    let leaf = match material.filter(|material| material.is_valid(SystemTime::now())) {
        Some(material) => match by(Proof::Certificate(material)).await {
            Err(error) if control_plane.has_token() => {
                tracing::info!("the certificate did not get us a new one, so the token is tried: {error}");
                by(Proof::Token).await?
            }
            result => result?,
        },
        None => by(Proof::Token).await?,
    };
    lock(rotation).renew(leaf, None).map_err(RenewError::Material)
}

/// Half of what is left of a leaf's life, give or take a tenth, so that the workloads of a mesh don't all come at once.
/// `random` is uniform over 0..1.
fn renewal_time(material: &Material, now: SystemTime, random: f64) -> SystemTime {
    let left = material.leaf.not_after.duration_since(now).unwrap_or_default();
    now + left.mul_f64(0.5 * (0.9 + 0.2 * random))
}

/// Waits by the wall clock, which may jump.
async fn wait_until(time: SystemTime) {
    while let Ok(left) = time.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        sleep(left.min(MAX_SLEEP)).await;
    }
}

/// Reads the certificate from files, and again whenever they change, for ever. Files that are caught half-written are
/// read again once they are whole.
pub(crate) async fn keep_read(files: &IdentityFiles, rotation: &Mutex<Rotation>, pause: Duration) {
    let mut seen = None;
    loop {
        let now = fingerprint(files);
        if seen.as_ref() != Some(&now) {
            let renewed = read(files).and_then(|(leaf, bundle)| {
                lock(rotation).renew(leaf, Some(bundle)).map_err(RenewError::Material)
            });
            if let Err(error) = renewed {
                tracing::warn!("the workload's certificate stays as it was: {error}");
            }
            seen = Some(now);
        }
        sleep(pause).await;
    }
}

/// A panic while the lock was held leaves at worst the leaf of before in force.
fn lock(rotation: &Mutex<Rotation>) -> MutexGuard<'_, Rotation> {
    rotation.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The contents decide, not the dates, which a mounted volume may set as it likes.
fn fingerprint(files: &IdentityFiles) -> [Option<Vec<u8>>; 3] {
    [&files.certificate_file, &files.key_file, &files.bundle_file].map(|path| {
        std::fs::read(path)
            .ok()
            .map(|content| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &content).as_ref().into())
    })
}

/// Reads a certificate, its key and a trust bundle from files.
///
/// # Errors
/// When one of them is missing or broken, or the certificate has expired.
pub(crate) fn read(files: &IdentityFiles) -> Result<(Leaf, TrustBundle), RenewError> {
    let load = |field, path: &Path| {
        std::fs::read(path).map_err(|e| RenewError::File { field, path: path.into(), reason: e.to_string() })
    };
    let certificate = load("identity.certificateFile", &files.certificate_file)?;
    let key = load("identity.keyFile", &files.key_file)?;
    let bundle = load("identity.bundleFile", &files.bundle_file)?;
    let broken = |field, path: &PathBuf| {
        let path = path.clone();
        move |reason| RenewError::File { field, path, reason }
    };
    let leaf = Leaf::from_pem(&certificate, &key)
        .map_err(broken("identity.certificateFile", &files.certificate_file))?;
    in_time(&leaf).map_err(broken("identity.certificateFile", &files.certificate_file))?;
    let bundle = TrustBundle::from_pem(&bundle).map_err(broken("identity.bundleFile", &files.bundle_file))?;
    Ok((leaf, bundle))
}

/// A leaf that every peer would refuse is not taken: one that is held may still be good.
fn in_time(leaf: &Leaf) -> Result<(), String> {
    // What can't be read at all is refused with its own reason when it is put in force.
    let facts = leaf.chain.first().and_then(|leaf| CertificateFacts::read(leaf).ok());
    match facts.filter(|facts| facts.not_after <= SystemTime::now()) {
        Some(facts) => {
            let end = stamp(facts.not_after);
            Err(format!("it expired at {end}; see to it that what renews it does"))
        }
        None => Ok(()),
    }
}

/// Why there is no new leaf.
#[derive(Debug)]
pub(crate) enum RenewError {
    /// The CA was not reached.
    Connect(ControlPlaneError),
    /// The CA gave none.
    Issue(IssueError),
    /// What it gave, or what the files hold, makes no usable whole.
    Material(MaterialError),
    /// A file is missing or broken.
    File {
        /// The field that names it.
        field: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl fmt::Display for RenewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => error.fmt(f),
            Self::Issue(error) => error.fmt(f),
            Self::Material(error) => error.fmt(f),
            Self::File { field, path, reason } => write!(f, "{field}: {}: {reason}", path.display()),
        }
    }
}

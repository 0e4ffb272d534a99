//! A new root without an outage, in three steps on the state folder (in a cluster: on the Secret), each safe to repeat and to be interrupted:
//!
//! 1. [`prepare`] adds a root. Every sidecar gets it in its bundle; the old one still signs.
//! 2. [`switch`] lets the new root sign. Leaves of both are trusted; each sidecar moves over as it renews.
//! 3. [`retire`] drops the old root. Whoever still holds a leaf of it is cut off, so this step comes last, when
//!    `GET /api/v1/proxies` shows the new root for each proxy, or one [`LEAF_LIFETIME`](super::LEAF_LIFETIME) after the switch.
//!
//! A control plane that runs sees the change by itself.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use tulle_mesh::identity::TrustDomain;

use super::store::Store;
use super::{BACKDATE, CaError, issuer};
use crate::args::Step;

/// How long a root lives.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Does a step on a store; says what was done.
pub(super) fn step(store: &Store, step: Step, now: SystemTime) -> Result<String, CaError> {
    Ok(match step {
        Step::Prepare => format!("the root {} is trusted now", prepare_in(store, now)?),
        Step::Switch => format!("the root {} signs now", switch_in(store)?),
        Step::Retire => format!("no longer trusted: {}", retire_in(store)?.join(", ")),
    })
}

/// Does a step on a state folder; says what was done.
///
/// # Errors
/// When the folder holds no CA or can't be written, or the step is not possible now.
pub fn step_in_folder(dir: &Path, which: Step, now: SystemTime) -> Result<String, CaError> {
    let store = Store::existing(dir)?;
    let _lock = store.lock()?;
    step(&store, which, now)
}

/// Adds a root that is trusted but does not sign yet; yields its id. A root that was prepared before is taken.
///
/// # Errors
/// When the folder holds no CA or can't be written.
pub fn prepare(dir: &Path, now: SystemTime) -> Result<String, CaError> {
    let store = Store::existing(dir)?;
    let _lock = store.lock()?;
    prepare_in(&store, now)
}

pub(super) fn prepare_in(store: &Store, now: SystemTime) -> Result<String, CaError> {
    let signing = signing(store)?;
    if let Some(prepared) = store.root_ids()?.into_iter().find(|id| *id != signing) {
        return Ok(prepared);
    }
    make_root(store, &trust_domain(store, &signing)?, now)
}

/// Lets the prepared root sign; yields its id.
///
/// # Errors
/// When no root is prepared, or the folder can't be written.
pub fn switch(dir: &Path) -> Result<String, CaError> {
    let store = Store::existing(dir)?;
    let _lock = store.lock()?;
    switch_in(&store)
}

pub(super) fn switch_in(store: &Store) -> Result<String, CaError> {
    let dir = store.dir();
    let signing = signing(store)?;
    let mut others = store.root_ids()?.into_iter().filter(|id| *id != signing);
    match (others.next(), others.next()) {
        (Some(prepared), None) => store.set_signing(&prepared).map(|()| prepared),
        (None, _) => Err(CaError::Rotation {
            reason: format!("{} holds no other root than {signing}: run `prepare` first", dir.display()),
        }),
        (Some(_), Some(_)) => Err(CaError::Rotation {
            reason: format!("{} holds more than two roots: run `retire` first", dir.display()),
        }),
    }
}

/// Drops every root but the one that signs; yields the ids of those dropped.
///
/// # Errors
/// When the folder holds no CA or can't be written.
pub fn retire(dir: &Path) -> Result<Vec<String>, CaError> {
    let store = Store::existing(dir)?;
    let _lock = store.lock()?;
    retire_in(&store)
}

pub(super) fn retire_in(store: &Store) -> Result<Vec<String>, CaError> {
    let signing = signing(store)?;
    let old: Vec<_> = store.root_ids()?.into_iter().filter(|id| *id != signing).collect();
    for id in &old {
        store.remove_root(id)?;
    }
    Ok(old)
}

/// The trust domain of the folder's CA.
pub(super) fn trust_domain(store: &Store, root: &str) -> Result<TrustDomain, CaError> {
    let path = store.dir().join("roots").join(root);
    let certificate = super::Root::parse(store.root_certificate(root)?, &path)?;
    issuer::trust_domain(&certificate.der)
        .and_then(|domain| domain.parse().ok())
        .ok_or_else(|| CaError::Damaged { path, reason: "it names no trust domain".into() })
}

/// The id of the root that signs.
pub(super) fn signing(store: &Store) -> Result<String, CaError> {
    let chosen = store.signing()?;
    match (chosen, store.root_ids()?.as_slice()) {
        (_, []) => Err(CaError::Empty { dir: store.dir().into() }),
        (Some(id), _) => Ok(id),
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(CaError::Signing { dir: store.dir().into(), chosen: None }),
    }
}

/// Makes a root and keeps it; yields its id.
pub(super) fn make_root(
    store: &Store,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<String, CaError> {
    let crypto = |reason: String| CaError::Crypto { reason };
    let failed = |e: rcgen::Error| crypto(e.to_string());
    let key = KeyPair::generate().map_err(failed)?;
    let serial = issuer::serial().map_err(crypto)?;
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ROOT_LIFETIME).into();
    // Roots of one mesh must differ in name, or a verifier tries them all.
    let mark: String = serial.to_bytes().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Tulle");
    params.distinguished_name.push(DnType::CommonName, format!("{trust_domain} root {mark}"));
    params.serial_number = Some(serial);
    let uri = format!("spiffe://{trust_domain}");
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().map_err(failed)?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(failed)?;
    let id = issuer::fingerprint(certificate.der());
    store.add_root(&id, &certificate.pem(), &key.serialize_pem())?;
    Ok(id)
}

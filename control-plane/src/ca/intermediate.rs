//! An intermediate CA that somebody else has made, such as cert-manager: its root's key is never here.
//!
//! In: a Secret of type `kubernetes.io/tls` or a folder, with `tls.crt` (the intermediate, then those above it but the
//! root), `tls.key`, and `ca.crt` (every root that the mesh trusts), and each of its changes. Out: an [`Authority`] that
//! signs with it. What could not sign certificates that peers believe is never taken: it is said, and the last that could
//! stays in force. A key never reaches an error or a log.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::runtime::watcher::watch_object;
use rcgen::{Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tulle_mesh::identity::{SpiffeId, TrustDomain};
use tulle_mesh::pem;

use super::store::Store;
use super::{Authority, Bundle, CaError, Root, Roots, issuer};
use crate::health::Health;
use crate::kubernetes::{Cluster, Pause, with_causes};

/// The intermediate, then those above it, in PEM.
const CHAIN: &str = "tls.crt";
/// The intermediate's key, in PEM.
const KEY: &str = "tls.key";
/// Every trusted root, in PEM.
const ROOTS: &str = "ca.crt";

/// How often a folder is read.
const POLL: Duration = Duration::from_secs(2);

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Where the intermediate is.
#[derive(Clone, Debug)]
pub enum Place {
    /// A Secret in the control plane's namespace.
    Secret(Cluster, String),
    /// A folder, such as a mounted Secret.
    Folder(PathBuf),
}

/// Follows an intermediate; ends when dropped.
pub struct Intermediate {
    place: String,
    states: mpsc::Receiver<State>,
    task: JoinHandle<()>,
    health: Arc<Health>,
}

/// The files, or why there are none.
type State = Result<BTreeMap<String, Vec<u8>>, String>;

impl Drop for Intermediate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Intermediate {
    /// Begins to follow a place.
    pub fn follow(place: Place, health: Arc<Health>) -> Self {
        let (sender, states) = mpsc::channel(1);
        let (name, task) = match place {
            Place::Secret(cluster, name) => {
                let place = format!("Secret {}/{name}", cluster.namespace);
                (place, tokio::spawn(follow_secret(cluster, name, sender)))
            }
            Place::Folder(folder) => {
                let place = format!("folder {}", folder.display());
                (place, tokio::spawn(follow_folder(folder, sender)))
            }
        };
        Self { place: name, states, task, health }
    }

    /// Waits until there is one that can sign. `state`: keeps the key for join tokens, beside a root that is not used;
    /// without it nobody can make any.
    ///
    /// # Errors
    /// When the state folder can't be used.
    pub async fn open(
        &mut self,
        state: Option<&Path>,
        trust_domain: &TrustDomain,
    ) -> Result<Authority, CaError> {
        let roots = self.next(trust_domain).await;
        let Some(folder) = state else {
            let store = Store::of_secret(&self.place, BTreeMap::new());
            return Authority::with_roots(store, trust_domain, roots);
        };
        let authority = Authority::open(folder, trust_domain, SystemTime::now())?;
        authority.store.set_bundle(&roots.bundle.pem())?;
        authority.replace(roots);
        Ok(authority)
    }

    /// Lets an authority sign with each that follows, without end.
    pub async fn keep(mut self, authority: Arc<Authority>) {
        loop {
            let roots = self.next(authority.trust_domain()).await;
            let (bundle, signing) = (roots.bundle.clone(), roots.signing.id.clone());
            if let Err(error) = authority.store.set_bundle(&bundle.pem()) {
                tracing::error!(%error, "the trust bundle can't be kept");
            }
            if authority.replace(roots) {
                let roots: Vec<_> = bundle.roots.iter().map(|root| root.id.clone()).collect();
                tracing::info!(signing, ?roots, "the certificate authority changed");
            }
        }
    }

    /// The next that can sign. What can't is told.
    async fn next(&mut self, trust_domain: &TrustDomain) -> Roots {
        loop {
            // Who tells ends only with this.
            let Some(state) = self.states.recv().await else { return std::future::pending().await };
            let failed = |reason| CaError::Intermediate { place: self.place.clone(), reason };
            let read = state.and_then(|files| read(&files, trust_domain, SystemTime::now())).map_err(failed);
            match read {
                Ok(roots) => {
                    self.health.note("CA", None);
                    return roots;
                }
                Err(error) => {
                    tracing::error!(%error, "the certificate authority stays as it is");
                    self.health.note("CA", Some(error.to_string()));
                }
            }
        }
    }
}

async fn follow_secret(cluster: Cluster, name: String, sender: mpsc::Sender<State>) {
    let api: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let mut states = std::pin::pin!(watch_object(api, &name));
    let mut pause = Pause::default();
    while let Some(state) = states.next().await {
        let state = match state {
            Ok(Some(secret)) => {
                Ok(secret.data.into_iter().flatten().map(|(name, bytes)| (name, bytes.0)).collect())
            }
            Ok(None) => Err("there is no such Secret".to_owned()),
            Err(error) => Err(format!("it can't be read: {}", with_causes(&error))),
        };
        let failed = state.is_err();
        if sender.send(state).await.is_err() {
            return;
        }
        if failed {
            sleep(pause.next()).await;
        } else {
            pause.reset();
        }
    }
}

async fn follow_folder(folder: PathBuf, sender: mpsc::Sender<State>) {
    let mut before = None;
    loop {
        let reading = folder.clone();
        let state = tokio::task::spawn_blocking(move || read_folder(&reading)).await;
        let state = state.unwrap_or_else(|error| Err(error.to_string()));
        if before.as_ref() != Some(&state) {
            before = Some(state.clone());
            if sender.send(state).await.is_err() {
                return;
            }
        }
        sleep(POLL).await;
    }
}

fn read_folder(folder: &Path) -> State {
    let read = |name: &str| {
        let path = folder.join(name);
        let size = std::fs::metadata(&path).map_err(|error| format!("{name} can't be read: {error}"))?.len();
        if size > MAX_FILE {
            return Err(format!("{name} has {size} bytes, which no certificate has"));
        }
        let bytes = std::fs::read(&path).map_err(|error| format!("{name} can't be read: {error}"))?;
        Ok((name.to_owned(), bytes))
    };
    [CHAIN, KEY, ROOTS].into_iter().map(read).collect()
}

/// Makes roots of the files, if certificates that they sign are believed.
fn read(
    files: &BTreeMap<String, Vec<u8>>,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<Roots, String> {
    let chain = certificates(files, CHAIN)?;
    let roots = certificates(files, ROOTS).map_err(|reason| {
        format!("{reason}; put every root there that the mesh is to trust (cert-manager does, where its issuer tells it)")
    })?;
    let key = files.get(KEY).ok_or_else(|| format!("it has no {KEY}"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| format!("{KEY} holds no private key in PEM"))?;
    let key = KeyPair::try_from(&key).map_err(|_| {
        format!("{KEY} is of a kind that can't sign: use ECDSA P-256 or P-384, Ed25519, or RSA")
    })?;
    let signing = chain.first().cloned().ok_or_else(|| format!("{CHAIN} holds no certificate"))?;
    if !issuer::is_ca(&signing.der) {
        return Err(format!(
            "the first certificate of {CHAIN} is no CA's; ask for one that is (cert-manager: `isCA: true`)"
        ));
    }
    let issuer = Issuer::from_ca_cert_der(&signing.der, key)
        .map_err(|error| format!("{CHAIN} and {KEY} can't sign: {error}"))?;
    let is_root = |certificate: &Root| roots.iter().any(|root| root.id == certificate.id);
    let intermediates = chain.into_iter().filter(|certificate| !is_root(certificate)).collect();
    let bundle = Bundle { roots: sorted(roots.clone()).into() };
    let made = Roots { bundle, signing, intermediates, issuer };
    try_it(&made, trust_domain, now)?;
    Ok(made)
}

/// Signs a certificate, and verifies it as a peer does.
fn try_it(roots: &Roots, trust_domain: &TrustDomain, now: SystemTime) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("it can't sign: {error}");
    let identity = SpiffeId::workload(trust_domain, "trial", "trial").map_err(|error| failed(&error))?;
    let key = KeyPair::generate().map_err(|error| failed(&error))?;
    let leaf = issuer::sign(roots, &identity, &[], &key, super::LEAF_LIFETIME, now)
        .map_err(|error| failed(&error))?;
    let mut trusted = RootCertStore::empty();
    for root in roots.bundle.roots.iter() {
        trusted.add(root.der.clone()).map_err(|error| format!("{ROOTS} holds what is no root: {error}"))?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let peer = WebPkiClientVerifier::builder_with_provider(Arc::new(trusted), provider).build();
    let now = now.duration_since(SystemTime::UNIX_EPOCH).map_err(|error| failed(&error))?;
    let verified = peer.map_err(|error| failed(&error))?.verify_client_cert(
        &leaf.der,
        &leaf.intermediates,
        UnixTime::since_unix_epoch(now),
    );
    verified.map(drop).map_err(|error| {
        format!(
            "what it signs is not believed: {error}; {KEY} must be of the first certificate of {CHAIN}, and that lead to a \
             root in {ROOTS}"
        )
    })
}

fn certificates(files: &BTreeMap<String, Vec<u8>>, name: &str) -> Result<Vec<Root>, String> {
    let bytes = files.get(name).ok_or_else(|| format!("it has no {name}"))?;
    let unreadable = || format!("{name} holds something else than certificates in PEM");
    let mut all = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(bytes) {
        let der = certificate.map_err(|_| unreadable())?.into_owned();
        let pem = pem::encode("CERTIFICATE", &der);
        all.push(Root::new(der, pem).ok_or_else(unreadable)?);
    }
    if all.is_empty() { Err(format!("{name} holds no certificate")) } else { Ok(all) }
}

fn sorted(mut roots: Vec<Root>) -> Vec<Root> {
    roots.sort_by(|a, b| a.id.cmp(&b.id));
    roots.dedup_by(|a, b| a.id == b.id);
    roots
}

#[cfg(test)]
mod tests;

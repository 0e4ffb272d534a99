//! The certificate authority: it gives every workload a short-lived certificate for the identity that it proved.
//!
//! In: the state folder (see `store`) or, in a cluster, a Secret ([`secret`]), or an intermediate that somebody else has
//! made ([`intermediate`]); and certificate requests over the API that Istio's CA also speaks ([`service`]). Out: leaf certificates, and the trust bundle, whose every change is told to who [subscribed].
//! A certificate never says anything that the caller did not prove: the identity comes from its token or from the
//! certificate that it renews, the request gives nothing but the public key. Private keys never leave this module.
//!
//! [subscribed]: Authority::bundle

pub mod cluster_bundle;
pub mod distribute;
pub mod follow;
pub mod intermediate;
pub mod issuer;
pub mod review;
pub mod rotation;
pub mod secret;
pub mod service;
mod store;
pub mod tokens;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rcgen::{Issuer, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::watch;
use tulle_mesh::identity::{SpiffeId, TrustDomain};

use self::issuer::{IssueError, Leaf};
use self::review::Reviewer;
use self::store::Store;
use self::tokens::TokenKey;

/// How long a leaf lives where the caller asks for nothing else, and at most.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// How far before now a certificate starts to be valid, for peers whose clock is behind.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// The authority of one trust domain. Shared by everything that issues or verifies.
pub struct Authority {
    store: Store,
    trust_domain: TrustDomain,
    token_key: TokenKey,
    /// Replaced whole when the state folder changes; held only to clone the `Arc`.
    roots: RwLock<Arc<Roots>>,
    bundle: watch::Sender<Bundle>,
    leaf_lifetime: Duration,
    /// In a cluster: who proves the tokens of service accounts.
    reviewer: Option<Reviewer>,
}

/// The roots at one moment.
struct Roots {
    bundle: Bundle,
    /// The one that signs; or the intermediate that does.
    signing: Root,
    /// What is between a leaf and a root: nothing, or the intermediate and those above it.
    intermediates: Vec<Root>,
    issuer: Issuer<'static, KeyPair>,
}

/// A CA certificate, of a trusted root or of an intermediate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The first 16 hex digits of the SHA-256 of the certificate.
    pub id: String,
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// The certificate, in PEM.
    pub pem: String,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// All roots that are trusted, sorted by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Never empty.
    pub roots: Arc<[Root]>,
}

impl Bundle {
    /// All certificates, one after the other.
    pub fn pem(&self) -> String {
        self.roots.iter().map(|root| root.pem.as_str()).collect()
    }
}

impl Authority {
    /// Loads the authority of a state folder, and makes one where the folder has none.
    ///
    /// # Errors
    /// When the folder can't be written, a key can be read by others, a file is damaged, or the folder belongs to
    /// another trust domain.
    pub fn open(dir: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        let store = Store::create(dir)?;
        let _lock = store.lock()?;
        Self::fill(&store, trust_domain, now)?;
        Self::load(store, trust_domain)
    }

    /// Makes a root and a key for join tokens where there are none.
    fn fill(store: &Store, trust_domain: &TrustDomain, now: SystemTime) -> Result<(), CaError> {
        if store.root_ids()?.is_empty() {
            let id = rotation::make_root(store, trust_domain, now)?;
            store.set_signing(&id)?;
        }
        TokenKey::load_or_make(store).map(drop)
    }

    /// Whether the roots of a store can be used; writes its bundle.
    fn check(store: &Store, trust_domain: &TrustDomain) -> Result<(), CaError> {
        Roots::load(store, trust_domain).map(drop)
    }

    fn load(store: Store, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        let roots = Roots::load(&store, trust_domain)?;
        Self::with_roots(store, trust_domain, roots)
    }

    /// With these roots, whatever the store has; it keeps the key for join tokens.
    fn with_roots(store: Store, trust_domain: &TrustDomain, roots: Roots) -> Result<Self, CaError> {
        let token_key = TokenKey::load_or_make(&store)?;
        Ok(Self {
            bundle: watch::Sender::new(roots.bundle.clone()),
            roots: RwLock::new(Arc::new(roots)),
            trust_domain: trust_domain.clone(),
            token_key,
            store,
            leaf_lifetime: LEAF_LIFETIME,
            reviewer: None,
        })
    }

    /// Lets the certificates of workloads live for `lifetime` instead of [`LEAF_LIFETIME`].
    #[must_use]
    pub fn with_leaf_lifetime(self, lifetime: Duration) -> Self {
        Self { leaf_lifetime: lifetime, ..self }
    }

    /// Lets the tokens of service accounts prove identities.
    #[must_use]
    pub fn with_reviewer(self, reviewer: Reviewer) -> Self {
        Self { reviewer: Some(reviewer), ..self }
    }

    /// Who proves the tokens of service accounts, in a cluster.
    pub fn reviewer(&self) -> Option<&Reviewer> {
        self.reviewer.as_ref()
    }

    /// The trust domain whose identities it certifies.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The key that join tokens are checked with.
    pub fn token_key(&self) -> &TokenKey {
        &self.token_key
    }

    /// The state folder.
    pub fn dir(&self) -> &Path {
        self.store.dir()
    }

    /// The trust bundle, and every later one.
    pub fn bundle(&self) -> watch::Receiver<Bundle> {
        self.bundle.subscribe()
    }

    /// Reads the roots again after a step of a [`rotation`]. Says whether anything changed.
    ///
    /// # Errors
    /// As [`Authority::open`]; the roots stay as they were.
    pub fn reload(&self) -> Result<bool, CaError> {
        let _lock = self.store.lock()?;
        self.adopt(&self.store)
    }

    /// Takes the roots of a store. Says whether anything changed.
    fn adopt(&self, store: &Store) -> Result<bool, CaError> {
        Roots::load(store, &self.trust_domain).map(|roots| self.replace(roots))
    }

    /// Takes other roots. Says whether anything changed.
    fn replace(&self, roots: Roots) -> bool {
        let old = self.roots();
        if (&old.bundle, &old.signing, &old.intermediates)
            == (&roots.bundle, &roots.signing, &roots.intermediates)
        {
            return false;
        }
        let bundle = roots.bundle.clone();
        *self.roots.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(roots);
        self.bundle.send_replace(bundle);
        true
    }

    /// Certifies the key of a request for the identity that its sender proved. `lifetime` is cut to
    /// what the authority gives; `None` takes all of it.
    ///
    /// # Errors
    /// When the request is malformed, its key is too weak, or it asks for another identity.
    pub fn certify(
        &self,
        identity: &SpiffeId,
        csr_pem: &str,
        lifetime: Option<Duration>,
        now: SystemTime,
    ) -> Result<Leaf, IssueError> {
        let key = issuer::check_request(csr_pem, identity)?;
        let lifetime = lifetime.unwrap_or(self.leaf_lifetime).min(self.leaf_lifetime);
        issuer::sign(&self.roots(), identity, &[], &key, lifetime, now)
    }

    /// Makes a key and a certificate for the control plane itself, which also names the hosts it is reached by.
    ///
    /// # Errors
    /// When a name can't stand in a certificate.
    pub fn certify_self(
        &self,
        identity: &SpiffeId,
        hosts: &[String],
        now: SystemTime,
    ) -> Result<(Leaf, KeyPair), IssueError> {
        let key = KeyPair::generate().map_err(IssueError::signing)?;
        let leaf = issuer::sign(&self.roots(), identity, hosts, &key, LEAF_LIFETIME, now)?;
        Ok((leaf, key))
    }

    fn roots(&self) -> Arc<Roots> {
        Arc::clone(&self.roots.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("dir", &self.dir()).finish_non_exhaustive()
    }
}

impl Roots {
    fn load(store: &Store, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        let mut roots = Vec::new();
        for id in store.root_ids()? {
            let root = Root::parse(store.root_certificate(&id)?, &store.dir().join("roots").join(&id))?;
            let found = issuer::trust_domain(&root.der);
            if found.as_deref() != Some(trust_domain.as_str()) {
                let found = found.unwrap_or_default();
                let (dir, asked) = (store.dir().into(), trust_domain.clone());
                return Err(CaError::TrustDomain { dir, found, asked });
            }
            roots.push(root);
        }
        let chosen = store.signing()?;
        let signing = match (&chosen, roots.as_slice()) {
            (Some(id), _) => roots.iter().find(|root| root.id == *id),
            // The folder was left between its first root and the choice of it.
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        let Some(signing) = signing.cloned() else {
            return Err(CaError::Signing { dir: store.dir().into(), chosen });
        };
        let path = store.root_key_path(&signing.id);
        let damaged = |e: rcgen::Error| CaError::Damaged { path: path.clone(), reason: e.to_string() };
        let key = KeyPair::from_pem(&store.root_key(&signing.id)?).map_err(damaged)?;
        let issuer = Issuer::from_ca_cert_der(&signing.der, key).map_err(damaged)?;
        let bundle = Bundle { roots: roots.into() };
        store.set_bundle(&bundle.pem())?;
        Ok(Self { bundle, signing, intermediates: Vec::new(), issuer })
    }
}

impl Root {
    fn parse(pem: String, path: &Path) -> Result<Self, CaError> {
        let damaged = |reason: String| CaError::Damaged { path: path.into(), reason };
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| damaged(e.to_string()))?;
        Self::new(der, pem).ok_or_else(|| damaged("it is not an X.509 certificate".into()))
    }

    fn new(der: CertificateDer<'static>, pem: String) -> Option<Self> {
        let (_, not_after) = issuer::validity(&der)?;
        Some(Self { id: issuer::fingerprint(&der), der, pem, not_after })
    }
}

/// Why the state folder can't be used. The fault is the operator's; trying again does not help.
#[derive(Debug)]
#[non_exhaustive]
pub enum CaError {
    /// A file or folder can't be made.
    Unwritable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file or folder can't be read.
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A key may be read by others than its owner.
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file does not hold what it should.
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The folder holds no CA yet.
    Empty {
        /// The folder.
        dir: PathBuf,
    },
    /// What should be an intermediate can't sign.
    Intermediate {
        /// The Secret or folder.
        place: String,
        /// Why.
        reason: String,
    },
    /// The Secret can't be read or written.
    Secret {
        /// Which, and what the API server says.
        reason: String,
    },
    /// The folder belongs to another trust domain.
    TrustDomain {
        /// The folder.
        dir: PathBuf,
        /// The trust domain of its root.
        found: String,
        /// The one that was asked for.
        asked: TrustDomain,
    },
    /// The root that should sign does not exist.
    Signing {
        /// The folder.
        dir: PathBuf,
        /// The root that is named in the file `signing`, where there is one.
        chosen: Option<String>,
    },
    /// A step of a rotation is not possible now.
    Rotation {
        /// Why.
        reason: String,
    },
    /// A key or a root could not be made.
    Crypto {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for CaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unwritable { path, error } => write!(
                f,
                "can't write {}: {error}; give --state a folder that this user may write",
                path.display()
            ),
            Self::Unreadable { path, error } => write!(
                f,
                "can't read {}: {error}; give --state a folder whose files belong to this user",
                path.display()
            ),
            Self::Exposed { path, mode } => write!(
                f,
                "others may read the private key {} (mode {mode:04o}): run `chmod 0600 {}`, and think about a new root",
                path.display(),
                path.display()
            ),
            Self::Damaged { path, reason } => {
                write!(f, "{} is damaged: {reason}; restore it from a backup", path.display())
            }
            Self::Empty { dir } => write!(
                f,
                "{} holds no certificate authority; start `tulle-control-plane --state {}` once, or name its folder",
                dir.display(),
                dir.display()
            ),
            Self::TrustDomain { dir, found, asked } => write!(
                f,
                "the root in {} is for trust domain {found:?}, not {:?}; give --trust-domain {found} or another --state",
                dir.display(),
                asked.as_str()
            ),
            Self::Signing { dir, chosen: Some(id) } => write!(
                f,
                "{} names the root {id}, which is not in {}; restore it from a backup",
                dir.join("signing").display(),
                dir.join("roots").display()
            ),
            Self::Signing { dir, chosen: None } => write!(
                f,
                "{} holds several roots, but no file `signing` that names the one that signs; write its id there",
                dir.display()
            ),
            Self::Intermediate { place, reason } => {
                write!(f, "{place} can't be the mesh's certificate authority: {reason}")
            }
            Self::Rotation { reason } | Self::Secret { reason } => f.write_str(reason),
            Self::Crypto { reason } => write!(f, "can't make a key: {reason}"),
        }
    }
}

impl std::error::Error for CaError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unwritable { error, .. } | Self::Unreadable { error, .. } => Some(error),
            _ => None,
        }
    }
}

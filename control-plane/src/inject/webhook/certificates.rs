//! Keeps the webhooks' certificate authority in a Secret, which all replicas share, and what each serves up to date.
//!
//! In: the API server. Out: the server's settings and the bundle that the API server must be told, both as they change.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use rustls::ServerConfig;
use tokio::sync::watch;

use super::authority::{AuthorityError, Roots};

/// The Secret that keeps the authority.
pub const SECRET: &str = "tulle-webhook-ca";
/// The entry of that Secret with the certificates, in PEM.
pub const CERTIFICATES: &str = "ca.crt";
const KEYS: &str = "ca.key";

/// How often the Secret is looked at.
const INTERVAL: Duration = Duration::from_secs(600);
/// How long to wait after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// How often two replicas may get in each other's way.
const ATTEMPTS: usize = 5;

/// What comes out.
pub struct Certificates {
    /// What the server shows; `None` until there is a certificate.
    pub tls: watch::Sender<Option<Arc<ServerConfig>>>,
    /// The roots in PEM; empty until there are some.
    pub bundle: watch::Sender<String>,
}

impl Certificates {
    /// Keeps both up to date, for a server of these names and addresses, for as long as it is polled.
    pub async fn keep(self, client: Client, namespace: &str, names: &[String]) {
        let secrets = Api::<Secret>::namespaced(client, namespace);
        let mut renewal = SystemTime::UNIX_EPOCH;
        let mut held = String::new();
        loop {
            let now = SystemTime::now();
            let pause = match shared(&secrets, now).await {
                Ok(roots) => {
                    let bundle = roots.certificates();
                    self.bundle.send_if_modified(|old| {
                        let changed = *old != bundle;
                        if changed {
                            old.clone_from(&bundle);
                        }
                        changed
                    });
                    // With other roots the certificate may be one that nobody trusts.
                    if now >= renewal || held != bundle {
                        match roots.serve(names, now) {
                            Ok((tls, next)) => {
                                self.tls.send_replace(Some(tls));
                                (renewal, held) = (next, bundle);
                            }
                            Err(error) => tracing::error!(%error, "the webhooks get no certificate"),
                        }
                    }
                    INTERVAL
                }
                Err(error) => {
                    tracing::error!(%error, "the webhooks' certificate authority can't be used");
                    RETRY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }
}

/// The roots in the Secret, made or renewed where it is time to.
async fn shared(secrets: &Api<Secret>, now: SystemTime) -> Result<Roots, SecretError> {
    for _ in 0..ATTEMPTS {
        let kept = secrets.get_opt(SECRET).await?;
        let (roots, changed) = match kept.as_ref().and_then(|secret| secret.data.as_ref()) {
            None => (Roots::new(now)?, true),
            Some(data) => {
                let entry = |key: &str| data.get(key).map(|bytes| bytes.0.as_slice()).unwrap_or_default();
                Roots::read(entry(CERTIFICATES), entry(KEYS))?.renewed(now)?
            }
        };
        if !changed {
            return Ok(roots);
        }
        let data = BTreeMap::from([
            (CERTIFICATES.to_owned(), ByteString(roots.certificates().into_bytes())),
            (KEYS.to_owned(), ByteString(roots.keys().into_bytes())),
        ]);
        let stored = match kept {
            None => {
                let metadata = ObjectMeta { name: Some(SECRET.into()), ..ObjectMeta::default() };
                let secret = Secret { metadata, data: Some(data), ..Secret::default() };
                secrets.create(&PostParams::default(), &secret).await
            }
            // Its resourceVersion goes with it: who was faster wins.
            Some(secret) => {
                let secret = Secret { data: Some(data), ..secret };
                secrets.replace(SECRET, &PostParams::default(), &secret).await
            }
        };
        match stored {
            Ok(_) => return Ok(roots),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(SecretError::Contended)
}

/// Why the authority can't be used.
#[derive(Debug)]
enum SecretError {
    Api(Box<kube::Error>),
    Authority(AuthorityError),
    Contended,
}

impl From<kube::Error> for SecretError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

impl From<AuthorityError> for SecretError {
    fn from(error: AuthorityError) -> Self {
        Self::Authority(error)
    }
}

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api(error) => write!(f, "Secret {SECRET}: {error}"),
            Self::Authority(error) => {
                write!(f, "Secret {SECRET}: {error}; delete it, and it is made anew")
            }
            Self::Contended => write!(f, "Secret {SECRET} is changed by others all the time"),
        }
    }
}

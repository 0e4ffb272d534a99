//! The authority of a cluster: its state is a Secret.
//!
//! In: the Secret, from the API server, and each of its changes. Out: an [`Authority`] that follows it. Whichever control
//! plane is first makes the Secret, all others take what is there; a step of a rotation replaces it only as it was read. Its
//! content never reaches an error or a log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use kube::runtime::watcher::watch_object;
use tokio::sync::watch;
use tokio::time::sleep;
use tulle_mesh::identity::TrustDomain;

use super::follow::tell;
use super::store::Store;
use super::{Authority, CaError, distribute, rotation};
use crate::args::Step;
use crate::health::Health;
use crate::kubernetes::{Cluster, Pause, with_causes};

/// The Secret's name.
pub const NAME: &str = "tulle-ca";

/// How often a step is tried again when somebody else changed the Secret meanwhile.
const ATTEMPTS: usize = 10;

/// Loads the authority of a cluster, and makes one where it has none. While the API server does not answer, it waits, and
/// says so to `health`.
///
/// # Errors
/// When the Secret is damaged or belongs to another trust domain.
pub async fn open(
    cluster: &Cluster,
    trust_domain: &TrustDomain,
    health: &Health,
) -> Result<Authority, CaError> {
    let api = api(cluster);
    let bundles: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let mut pause = Pause::default();
    loop {
        let reason = match api.get_opt(NAME).await {
            Ok(Some(secret)) => {
                health.note("CA", None);
                return Authority::load(store(cluster, &secret), trust_domain);
            }
            Ok(None) => match bundles.get_opt(distribute::NAME).await {
                Ok(None) => match create(cluster, &api, trust_domain).await? {
                    Ok(_) => continue,
                    // Somebody else was faster.
                    Err(kube::Error::Api(status)) if status.code == 409 => continue,
                    Err(error) => with_causes(&error),
                },
                // There was a root: no pod that trusts it would believe another.
                Ok(Some(_)) => format!(
                    "it is gone: restore it from a backup; or, for a new root, which no pod that runs believes, delete \
                     ConfigMap {}/{}",
                    cluster.namespace,
                    distribute::NAME
                ),
                Err(error) => with_causes(&error),
            },
            Err(error) => with_causes(&error),
        };
        tracing::warn!(secret = %name(cluster), reason, "can't read the CA; trying again");
        health.note("CA", Some(format!("Secret {}: {reason}", name(cluster))));
        sleep(pause.next()).await;
    }
}

/// Takes each change of the Secret, without end. One that is damaged leaves the roots as they were; one that is gone is
/// written back by who leads, as it was last.
pub async fn follow(cluster: Cluster, authority: Arc<Authority>, mut leads: watch::Receiver<bool>) {
    let api = api(&cluster);
    let mut states = std::pin::pin!(watch_object(api.clone(), NAME));
    let mut pause = Pause::default();
    let mut last = authority.store.held();
    let mut gone = false;
    loop {
        let leading = *leads.borrow_and_update();
        let state = tokio::select! {
            state = states.next() => state,
            changed = leads.changed() => if changed.is_err() { return } else { continue },
            () = sleep(pause.next()), if gone && leading => {
                match api.create(&PostParams::default(), &secret(&cluster, &last)).await {
                    Ok(_) => tracing::warn!(secret = %name(&cluster), "it was gone, and is written back"),
                    // Somebody has restored it; its watch says so.
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    Err(error) => {
                        tracing::error!(error = with_causes(&error), "can't write the CA's Secret back");
                        continue;
                    }
                }
                gone = false;
                continue;
            }
        };
        let adopted = match state {
            Some(Ok(Some(secret))) => {
                gone = false;
                let store = store(&cluster, &secret);
                let adopted = authority.adopt(&store);
                if adopted.is_ok() {
                    last = store.held();
                }
                adopted
            }
            Some(Ok(None)) => {
                gone = true;
                continue;
            }
            Some(Err(error)) => {
                tracing::debug!(error = with_causes(&error), "can't follow the CA's Secret");
                sleep(pause.next()).await;
                continue;
            }
            None => return,
        };
        pause.reset();
        tell(&authority, adopted);
    }
}

/// Does a step of a rotation; says what was done.
///
/// # Errors
/// When there is no CA yet, the step is not possible now, or the API server refuses.
pub async fn rotate(cluster: &Cluster, step: Step, now: SystemTime) -> Result<String, CaError> {
    let api = api(cluster);
    let failed = |error: kube::Error| CaError::Secret {
        reason: format!("can't change Secret {}: {}", name(cluster), with_causes(&error)),
    };
    for _ in 0..ATTEMPTS {
        let Some(mut secret) = api.get_opt(NAME).await.map_err(failed)? else {
            let reason = format!("there is no Secret {}: start a control plane once", name(cluster));
            return Err(CaError::Secret { reason });
        };
        let store = store(cluster, &secret);
        let said = rotation::step(&store, step, now)?;
        secret.data = Some(data(&store.held()));
        match api.replace(NAME, &PostParams::default(), &secret).await {
            Ok(_) => return Ok(said),
            // Somebody else was faster: the step is done on what they left.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(CaError::Secret { reason: format!("Secret {} changes all the time; try again", name(cluster)) })
}

async fn create(
    cluster: &Cluster,
    api: &Api<Secret>,
    trust_domain: &TrustDomain,
) -> Result<Result<Secret, kube::Error>, CaError> {
    let store = Store::of_secret(&name(cluster), BTreeMap::new());
    Authority::fill(&store, trust_domain, SystemTime::now())?;
    // The bundle is written on the way.
    Authority::check(&store, trust_domain)?;
    let made = api.create(&PostParams::default(), &secret(cluster, &store.held())).await;
    if made.is_ok() {
        tracing::info!(secret = %name(cluster), "made a new root");
    }
    Ok(made)
}

fn secret(cluster: &Cluster, files: &BTreeMap<String, String>) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            namespace: Some(cluster.namespace.clone()),
            labels: Some(BTreeMap::from([("app.kubernetes.io/part-of".into(), "tulle".into())])),
            ..ObjectMeta::default()
        },
        data: Some(data(files)),
        type_: Some("tulle.dev/ca".into()),
        ..Secret::default()
    }
}

fn api(cluster: &Cluster) -> Api<Secret> {
    Api::namespaced(cluster.client.clone(), &cluster.namespace)
}

fn name(cluster: &Cluster) -> String {
    format!("{}/{NAME}", cluster.namespace)
}

fn store(cluster: &Cluster, secret: &Secret) -> Store {
    let files = secret.data.iter().flatten().filter_map(|(key, value)| {
        let path = match key.strip_prefix("roots.").and_then(|rest| rest.split_once('.')) {
            Some((id, file)) => format!("roots/{id}/{file}"),
            None => key.clone(),
        };
        Some((path, String::from_utf8(value.0.clone()).ok()?))
    });
    Store::of_secret(&format!("Secret {}", name(cluster)), files.collect())
}

fn data(files: &BTreeMap<String, String>) -> BTreeMap<String, ByteString> {
    files.iter().map(|(path, text)| (path.replace('/', "."), ByteString(text.clone().into_bytes()))).collect()
}

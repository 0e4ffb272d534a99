//! The webhooks: whether the API server knows whom to trust, that can be trusted still, and a pod comes back with a
//! sidecar.

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::PostParams;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tulle_control_plane::inject::webhook::{certificates, configuration};
use tulle_control_plane::inject::{INJECT_LABEL, SIDECAR};
use tulle_control_plane::kubernetes::Cluster;

use super::identity::ends;
use super::report::Report;

/// Where the pod would be.
const NAMESPACE: &str = "default";

/// Checks them.
pub(super) async fn check(cluster: &Cluster, report: &mut Report) {
    report.section("webhooks");
    let trusted = authority(cluster, report).await;
    let client = || cluster.client.clone();
    configured(
        Api::<MutatingWebhookConfiguration>::all(client()),
        "MutatingWebhookConfiguration",
        &trusted,
        report,
    )
    .await;
    configured(
        Api::<ValidatingWebhookConfiguration>::all(client()),
        "ValidatingWebhookConfiguration",
        &trusted,
        report,
    )
    .await;
    injects(cluster, report).await;
}

/// The certificates that the control plane has for its webhooks, where the user may know them.
async fn authority(cluster: &Cluster, report: &mut Report) -> Option<String> {
    let name = certificates::SECRET;
    let what = format!("the Secret {name} has the webhooks' authority");
    let secrets = Api::<Secret>::namespaced(cluster.client.clone(), &cluster.namespace);
    match secrets.get_opt(name).await {
        Ok(Some(secret)) => {
            let held = secret.data.and_then(|mut data| data.remove(certificates::CERTIFICATES));
            let held = held.and_then(|held| String::from_utf8(held.0).ok()).unwrap_or_default();
            valid(&what, &held, report);
            Some(held)
        }
        Ok(None) => {
            report.fail(what, "there is none", "the control plane makes it: look at its log");
            None
        }
        Err(error) => {
            report.untold(what, &error);
            None
        }
    }
}

/// Whether certificates can be read and used for a while.
fn valid(what: &str, pem: &str, report: &mut Report) {
    let hint = "restart the control plane; if that does not help, delete the Secret, and it makes another";
    match ends(pem) {
        Err(reason) => report.fail(what, reason, hint),
        Ok(end) if end < SystemTime::now() => report.fail(what, "its certificates have expired", hint),
        Ok(_) => report.pass(what),
    }
}

/// Whether a configuration has the bundle that it should have.
async fn configured<T>(api: Api<T>, kind: &str, trusted: &Option<String>, report: &mut Report)
where
    T: Clone + DeserializeOwned + std::fmt::Debug + serde::Serialize,
{
    let name = configuration::NAME;
    let what = format!("{kind} {name}: the API server trusts the control plane");
    let found = match api.get_opt(name).await {
        Ok(Some(found)) => serde_json::to_value(found).unwrap_or_default(),
        Ok(None) => {
            return report.fail(what, "there is none", "tulle install | kubectl apply -f -");
        }
        Err(error) => return report.untold(what, &error),
    };
    let hint = "the control plane puts it in: look at its log, and whether it may patch the configuration";
    for webhook in found["webhooks"].as_array().into_iter().flatten() {
        let webhook_name = webhook["name"].as_str().unwrap_or_default();
        match (bundle(webhook), trusted) {
            (None, _) => return report.fail(what, format!("{webhook_name} has no caBundle"), hint),
            (Some(bundle), Some(trusted)) if bundle != *trusted => {
                let reason = format!("the caBundle of {webhook_name} is not that of the control plane");
                return report.fail(what, reason, hint);
            }
            (Some(bundle), _) => match ends(&bundle) {
                Ok(end) if end > SystemTime::now() => {}
                Ok(_) => {
                    return report.fail(what, format!("the caBundle of {webhook_name} has expired"), hint);
                }
                Err(reason) => {
                    return report.fail(what, format!("the caBundle of {webhook_name}: {reason}"), hint);
                }
            },
        }
    }
    report.pass(what);
}

fn bundle(webhook: &Value) -> Option<String> {
    let text = webhook["clientConfig"]["caBundle"].as_str().filter(|text| !text.is_empty())?;
    String::from_utf8(STANDARD.decode(text).ok()?).ok()
}

/// Whether a pod that wants a sidecar gets one: the API server is asked to make one, and not to keep it.
async fn injects(cluster: &Cluster, report: &mut Report) {
    let what = "a pod that asks for a sidecar gets one (a dry run)";
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "tulle-check", "namespace": NAMESPACE, "labels": { INJECT_LABEL: "enabled" },
        },
        "spec": {
            "containers": [{
                "name": "app", "image": "none",
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    });
    let Ok(pod) = serde_json::from_value::<Pod>(pod) else { return };
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    match Api::<Pod>::namespaced(cluster.client.clone(), NAMESPACE).create(&dry_run, &pod).await {
        Ok(made) => {
            let spec = made.spec.unwrap_or_default();
            let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
            if containers.any(|container| container.name == SIDECAR) {
                report.pass(what);
            } else {
                let hint = "the API server could not ask the control plane, or did not like its answer: see both logs";
                report.fail(what, "it was made without", hint);
            }
        }
        Err(kube::Error::Api(status)) if status.code == 500 => {
            let hint =
                "the API server could not ask the control plane: see whether its Service has endpoints";
            report.fail(what, status.message, hint);
        }
        Err(kube::Error::Api(status)) => {
            let hint = "this could not be checked: another rule of the cluster is in the way";
            report.warn(what, format!("in the namespace {NAMESPACE}: {}", status.message), hint);
        }
        Err(error) => report.untold(what, &error),
    }
}

//! Namespaces and pods: who takes part, and who should and has no sidecar yet.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use tulle_control_plane::ca::cluster_bundle;
use tulle_control_plane::inject::{INJECT_LABEL, SIDECAR, TRUST_VOLUME};
use tulle_control_plane::kubernetes::Cluster;

use super::report::Report;

/// Checks them.
pub(super) async fn check(cluster: &Cluster, report: &mut Report) {
    report.section("pods");
    let what = "namespaces take part";
    let client = || cluster.client.clone();
    let labelled = ListParams::default().labels(&format!("{INJECT_LABEL}=enabled"));
    let namespaces = match Api::<Namespace>::all(client()).list(&labelled).await {
        Ok(namespaces) => namespaces,
        Err(error) => return report.untold(what, &error),
    };
    let names: Vec<String> = namespaces.iter().map(ResourceExt::name_any).collect();
    if names.is_empty() {
        let hint = format!("kubectl label namespace NAME {INJECT_LABEL}=enabled");
        return report.warn(what, format!("none has the label {INJECT_LABEL}=enabled"), hint);
    }
    report.pass(format!("{what}: {}", names.join(", ")));

    let what = "their pods have sidecars that are ready";
    let (mut with, mut without, mut unready) = (0, BTreeMap::new(), Vec::new());
    let mut of_the_cluster = Vec::new();
    for namespace in &names {
        let pods = match Api::<Pod>::namespaced(client(), namespace).list(&ListParams::default()).await {
            Ok(pods) => pods,
            Err(error) => return report.untold(what, &error),
        };
        for pod in pods.iter().filter(|pod| wants(pod)) {
            if mounts_cluster_bundle(pod) {
                of_the_cluster.push(format!("{namespace}/{}", pod.name_any()));
            }
            match sidecar_ready(pod) {
                None => *without.entry(namespace.as_str()).or_insert(0) += 1,
                Some(true) => with += 1,
                Some(false) => unready.push(format!("{namespace}/{}", pod.name_any())),
            }
        }
    }
    if !without.is_empty() {
        let counts: Vec<String> =
            without.iter().map(|(namespace, count)| format!("{count} in {namespace}")).collect();
        let hint =
            "restart their workloads (kubectl rollout restart); `tulle analyze` says of each why it has none";
        report.warn(what, format!("without: {}", counts.join(", ")), hint);
    }
    if !unready.is_empty() {
        let hint = "kubectl describe pod; the log of the container tulle-sidecar says what it waits for";
        report.warn(what, format!("not ready: {}", unready.join(", ")), hint);
    }
    if without.is_empty() && unready.is_empty() {
        report.pass(format!("{what}: {with} of {with}"));
    }
    if !of_the_cluster.is_empty() {
        cluster_bundle(cluster, &of_the_cluster, report).await;
    }
}

/// Whether what some pods mount is there: a kubelet waits for it without end, and says so in an Event of the pod alone.
async fn cluster_bundle(cluster: &Cluster, pods: &[String], report: &mut Report) {
    let what = "the ClusterTrustBundle that pods mount is there";
    match cluster_bundle::exists(&cluster.client).await {
        Ok(true) => report.pass(what),
        Ok(false) => {
            let reason = format!("it is not, and these can't start: {}", pods.join(", "));
            let hint = "serve the kind (API server and kubelets: --feature-gates=ClusterTrustBundle=true and its API), or \
                 inject with --trust-bundle config-map, which is the default";
            report.fail(what, reason, hint);
        }
        Err(error) => report.untold(what, &error),
    }
}

/// Whether its trust bundle is to be that of the whole cluster. What the volume is a projection of says nothing: an API server
/// that does not know the kind takes it out.
fn mounts_cluster_bundle(pod: &Pod) -> bool {
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.any(|volume| volume.name == TRUST_VOLUME && volume.projected.is_some())
}

/// Whether a pod runs, and has not said no for itself.
fn wants(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let ended = matches!(phase, Some("Succeeded" | "Failed")) || pod.metadata.deletion_timestamp.is_some();
    let host = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    !ended && !host && pod.labels().get(INJECT_LABEL).is_none_or(|value| value != "disabled")
}

/// Whether its sidecar is ready; `None` where it has none.
fn sidecar_ready(pod: &Pod) -> Option<bool> {
    let spec = pod.spec.as_ref()?;
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    containers.find(|container| container.name == SIDECAR)?;
    let status = pod.status.clone().unwrap_or_default();
    let statuses = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    Some(statuses.filter(|status| status.name == SIDECAR).any(|status| status.ready))
}

//! The control plane: whether it runs, is reached, and one of its replicas leads.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::ListParams;
use tulle_control_plane::inject::webhook::SERVICE;
use tulle_control_plane::kubernetes::Cluster;
use tulle_control_plane::leader::LEASE;

use super::report::Report;
use crate::commands::cluster;

/// How far the clock here and those of the cluster may be apart.
const CLOCKS: SignedDuration = SignedDuration::from_secs(10);

/// Checks it.
pub(super) async fn check(cluster: &Cluster, report: &mut Report) {
    report.section("control plane");
    let what = format!("the Deployment {SERVICE} is in {}", cluster.namespace);
    match cluster::deployment(cluster).await {
        Ok(Some(deployment)) => {
            replicas(&deployment, report);
            version(&deployment, report);
        }
        Ok(None) => report.fail(
            what,
            "there is none",
            "install it: tulle install | kubectl apply -f -; or name its namespace with --system-namespace",
        ),
        Err(error) => report.untold(what, &error),
    }
    reached(cluster, report).await;
    leads(cluster, report).await;
}

/// Whether all replicas are ready, and of what was applied last.
fn replicas(deployment: &Deployment, report: &mut Report) {
    let status = deployment.status.clone().unwrap_or_default();
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let ready = status.ready_replicas.unwrap_or(0);
    let what = format!("{wanted} of {wanted} replicas are ready");
    let hint =
        format!("kubectl describe pods -l tulle.dev/component=control-plane, and their logs ({SERVICE})");
    let behind = status.updated_replicas.unwrap_or(0) < wanted
        || status.observed_generation.unwrap_or(0) < deployment.metadata.generation.unwrap_or(0);
    match ready {
        0 => report.fail(what, "none is: sidecars keep what they have, new pods get none", hint),
        _ if ready < wanted => report.warn(what, format!("{ready} are"), hint),
        _ if behind => report.warn(what, "a rollout is under way", "check again when it is done"),
        _ => report.pass(what),
    }
}

fn version(deployment: &Deployment, report: &mut Report) {
    let own = env!("CARGO_PKG_VERSION");
    let what = format!("it is of this program's version, {own}");
    let image = cluster::image(deployment).unwrap_or_default();
    let tag = image.split('@').next().and_then(|name| name.rsplit('/').next()?.split_once(':'));
    match tag.map(|(_, tag)| tag.trim_start_matches('v')) {
        Some(tag) if tag == own => report.pass(what),
        Some(tag) if tag.starts_with(|first: char| first.is_ascii_digit()) => {
            report.warn(
                what,
                format!("its image is {image}"),
                "use the `tulle` of that version, or upgrade it",
            );
        }
        // A tag of the user's own says nothing.
        _ => report.pass(format!("its image is {image}")),
    }
}

/// Whether its Service leads anywhere.
async fn reached(cluster: &Cluster, report: &mut Report) {
    let what = "its Service has endpoints that are ready";
    let slices = Api::<EndpointSlice>::namespaced(cluster.client.clone(), &cluster.namespace);
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={SERVICE}"));
    let slices = match slices.list(&of_service).await {
        Ok(slices) => slices,
        Err(error) => return report.untold(what, &error),
    };
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let ready = endpoints.filter(|endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    });
    match ready.count() {
        0 => report.fail(what, "it has none", "sidecars can't reach it: see whether its pods are ready"),
        _ => report.pass(what),
    }
}

/// Whether one replica writes what all would write.
async fn leads(cluster: &Cluster, report: &mut Report) {
    let what = format!("one replica holds the Lease {LEASE}");
    let leases = Api::<Lease>::namespaced(cluster.client.clone(), &cluster.namespace);
    let lease = match leases.get_opt(LEASE).await {
        Ok(lease) => lease,
        Err(error) => return report.untold(what, &error),
    };
    let spec = lease.and_then(|lease| lease.spec).unwrap_or_default();
    let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
    let hint =
        "status is not written, and new namespaces get no trust bundle: look at the control plane's log";
    let (Some(holder), Some(renewed)) = (holder, spec.renew_time) else {
        return report.fail(what, "nobody does", hint);
    };
    let lasts = SignedDuration::from_secs(spec.lease_duration_seconds.unwrap_or(0).into());
    let age = Timestamp::now().duration_since(renewed.0);
    if age > lasts + CLOCKS {
        let reason = format!("{holder} has not renewed it for {} s", age.as_secs());
        return report.fail(what, reason, hint);
    }
    report.pass(what);
}

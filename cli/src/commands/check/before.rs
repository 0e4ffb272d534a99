//! Before the installation: whether the user may make what is installed, and what is there already.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::Value;
use tulle_control_plane::inject::INJECT_LABEL;
use tulle_control_plane::inject::webhook::configuration::NAME;
use tulle_control_plane::kubernetes::Cluster;

use super::kubernetes::{definitions, gateway};
use super::report::Report;
use crate::commands::{cluster, install};
use crate::output::Failure;

/// The label of Pod Security's level.
const LEVEL: &str = "pod-security.kubernetes.io/enforce";

/// Other meshes, by a part of the names of their injectors.
const OTHERS: [&str; 5] = ["istio", "linkerd", "consul", "kuma", "osm-"];

/// Checks whether an installation would succeed.
///
/// # Errors
/// When this program's own manifests can't be read.
pub(super) async fn check(cluster: &Cluster, report: &mut Report) -> Result<(), Failure> {
    let manifests = install::manifests()?;
    report.section("rights");
    rights(cluster, &manifests, report).await;
    grants(cluster, &manifests, report).await;
    report.section("kinds");
    gateway(cluster, report).await;
    report.section("what is there already");
    earlier(cluster, report).await?;
    webhooks(cluster, report).await;
    levels(cluster, report).await;
    Ok(())
}

/// Whether the user may apply each of the manifests.
async fn rights(cluster: &Cluster, manifests: &[Value], report: &mut Report) {
    let wanted: BTreeSet<(String, String, String)> = manifests.iter().map(resource).collect();
    let reviews = Api::<SelfSubjectAccessReview>::all(cluster.client.clone());
    let what = "you may create and change all that is installed";
    let mut refused: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (group, resource, namespace) in &wanted {
        for verb in ["get", "create", "patch"] {
            let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let attributes = ResourceAttributes {
                group: text(group),
                resource: text(resource),
                namespace: text(namespace),
                verb: text(verb),
                ..ResourceAttributes::default()
            };
            let spec =
                SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
            let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
            match reviews.create(&PostParams::default(), &review).await {
                Ok(answer) if answer.status.as_ref().is_some_and(|status| status.allowed) => {}
                Ok(_) => {
                    let place = if namespace.is_empty() { String::new() } else { format!(" in {namespace}") };
                    let group = if group.is_empty() { String::new() } else { format!(".{group}") };
                    refused.entry(format!("{resource}{group}{place}")).or_default().push(verb);
                }
                Err(error) => return report.untold(what, &error),
            }
        }
    }
    if refused.is_empty() {
        return report.pass(format!("{what}: {} kinds of objects", wanted.len()));
    }
    for (resource, verbs) in refused {
        let reason = format!("you may not {}", verbs.join(", "));
        report.fail(
            format!("you may apply {resource}"),
            reason,
            "install as who may: cluster-admin, for one",
        );
    }
}

/// The group, the plural name and the namespace of an object.
fn resource(object: &Value) -> (String, String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = text(&object["apiVersion"]);
    let group = version.split_once('/').map(|(group, _)| group.to_owned()).unwrap_or_default();
    let kind = text(&object["kind"]).to_ascii_lowercase();
    let plural = match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{kind}s"),
    };
    (group, plural, text(&object["metadata"]["namespace"]))
}

/// Whether the user may give the control plane its rights: nobody may give what they don't have, unless they are let.
async fn grants(cluster: &Cluster, manifests: &[Value], report: &mut Report) {
    let what = "you may give the control plane its rights";
    let roles = Api::<ClusterRole>::all(cluster.client.clone());
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    for role in manifests.iter().filter(|object| object["kind"] == "ClusterRole") {
        let Ok(role) = serde_json::from_value::<ClusterRole>(role.clone()) else { continue };
        match roles.create(&dry_run, &role).await {
            Ok(_) => {}
            // It is judged before it is found to be there.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(kube::Error::Api(status)) if status.code == 403 => {
                return report.fail(
                    what,
                    status.message,
                    "install as who has these rights, or the right to escalate",
                );
            }
            Err(error) => return report.untold(what, &error),
        }
    }
    report.pass(what);
}

/// An installation that is there already.
async fn earlier(cluster: &Cluster, report: &mut Report) -> Result<(), Failure> {
    let what = "there is no earlier installation";
    let namespace = &cluster.namespace;
    match cluster::deployment(cluster).await {
        Ok(None) => report.pass(format!("{what} in {namespace}")),
        Ok(Some(deployment)) => {
            let image = cluster::image(&deployment).unwrap_or("an unknown image");
            let reason = format!("{namespace} has a control plane of {image}");
            report.warn(
                what,
                reason,
                "what you apply replaces it: sidecars stay connected; `tulle check` looks into it",
            );
        }
        Err(error) => report.untold(what, &error),
    }
    let what = "Tulle's kinds are not there, or of this version";
    let Some(definitions) = definitions(cluster, report, what).await? else { return Ok(()) };
    let other = definitions.into_iter().filter(|(_, found)| found.as_ref().is_some_and(|found| !found.same));
    let other: Vec<_> = other.map(|(name, _)| name).collect();
    if other.is_empty() {
        report.pass(what);
    } else {
        let hint =
            "they are replaced; `tulle check -f` on your objects says what this version would not take";
        report.warn(what, format!("of another version: {}", other.join(", ")), hint);
    }
    Ok(())
}

/// Webhooks that would be replaced, or that inject too.
async fn webhooks(cluster: &Cluster, report: &mut Report) {
    let client = &cluster.client;
    let all = ListParams::default();
    let what = format!("the webhooks' name {NAME:?} is free, or this mesh's");
    let mutating = Api::<MutatingWebhookConfiguration>::all(client.clone()).list(&all).await;
    let validating = Api::<ValidatingWebhookConfiguration>::all(client.clone()).list(&all).await;
    let (mutating, validating) = match (mutating, validating) {
        (Ok(mutating), Ok(validating)) => (mutating.items, validating.items),
        (Err(error), _) | (_, Err(error)) => return report.untold(what, &error),
    };
    let of_mutating = mutating.iter().filter(|found| found.name_any() == NAME);
    let of_validating = validating.iter().filter(|found| found.name_any() == NAME);
    let configs = of_mutating
        .flat_map(|found| found.webhooks.iter().flatten().map(|webhook| &webhook.client_config))
        .chain(
            of_validating
                .flat_map(|found| found.webhooks.iter().flatten().map(|webhook| &webhook.client_config)),
        );
    let foreign: BTreeSet<String> =
        configs.filter_map(|config| owner(config).filter(|owner| *owner != cluster.namespace)).collect();
    match foreign.into_iter().next() {
        None => report.pass(what),
        Some(owner) => report.fail(
            what,
            format!("it is that of an installation in {owner}"),
            "uninstall that one first: a cluster has one control plane",
        ),
    }
    let what = "no other mesh injects sidecars";
    let others: Vec<String> = mutating
        .iter()
        .map(ResourceExt::name_any)
        .filter(|name| OTHERS.iter().any(|other| name.contains(other)))
        .collect();
    if others.is_empty() {
        report.pass(what);
    } else {
        let hint = "keep them apart: a namespace that has the label of both gets pods that don't work";
        report.warn(what, format!("there is {}", others.join(", ")), hint);
    }
}

/// Where the server of a webhook is: its Service's namespace, or none where it is told by URL.
fn owner(config: &WebhookClientConfig) -> Option<String> {
    config.service.as_ref().map(|service| service.namespace.clone())
}

/// Whether Pod Security lets the control plane's pods be, and those with an init container that redirects.
async fn levels(cluster: &Cluster, report: &mut Report) {
    let what = "Pod Security's levels let pods of the mesh be";
    let namespaces = match Api::<Namespace>::all(cluster.client.clone()).list(&ListParams::default()).await {
        Ok(namespaces) => namespaces,
        Err(error) => return report.untold(what, &error),
    };
    let level =
        |namespace: &Namespace| namespace.labels().get(LEVEL).filter(|level| *level != "privileged").cloned();
    let system = namespaces.iter().find(|namespace| namespace.name_any() == cluster.namespace);
    let own = match system {
        None => format!("{} is made with the level restricted", cluster.namespace),
        Some(found) => {
            let level = level(found).unwrap_or_else(|| "privileged".into());
            format!(
                "{} has the level {level}, and the control plane's pods pass restricted",
                cluster.namespace
            )
        }
    };
    let strict: Vec<String> = namespaces
        .iter()
        .filter(|namespace| namespace.labels().get(INJECT_LABEL).is_some_and(|value| value == "enabled"))
        .filter_map(|namespace| Some(format!("{} ({})", namespace.name_any(), level(namespace)?)))
        .collect();
    report.pass(format!("Pod Security: {own}"));
    if strict.is_empty() {
        report.pass(what);
    } else {
        let reason = format!("an init container with NET_ADMIN may not be in {}", strict.join(", "));
        let hint = "let the CNI plugin redirect: tulle install --set redirection=cni";
        report.warn(what, reason, hint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_manifest_names_a_resource_as_the_api_server_does() {
        let manifests = install::manifests().expect("they are a part of this program");
        let resources: BTreeSet<String> = manifests
            .iter()
            .map(resource)
            .map(|(group, resource, namespace)| format!("{group}/{resource} {namespace}"))
            .collect();
        for resource in [
            "/namespaces ",
            "/services tulle-system",
            "apps/deployments tulle-system",
            "networking.k8s.io/networkpolicies tulle-system",
            "admissionregistration.k8s.io/mutatingwebhookconfigurations ",
            "apiextensions.k8s.io/customresourcedefinitions ",
            "rbac.authorization.k8s.io/roles tulle-system",
        ] {
            assert!(resources.contains(resource), "{resource}: {resources:?}");
        }
    }
}

//! What of the Gateway API the mesh can do, told on the XMesh objects that name it as their controller (GEP-3949).
//!
//! The conformance suite reads the list from there. A name is in it only if a test of this repository shows the feature.

use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Client, Error};
use serde_json::{Value, json};

use super::document::CONTROLLER;
use super::writer::now;

/// The features, sorted, by their names in the Gateway API's package `features`.
pub const SUPPORTED: [&str; 36] = [
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteSchemeRedirect",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
];

/// Writes the list to every XMesh of ours that has another one. Where the kind is not served there is nothing to write.
///
/// # Errors
/// When the API server does not answer, or refuses.
pub(super) async fn publish(client: &Client) -> Result<(), Error> {
    let kind = GroupVersionKind::gvk("gateway.networking.x-k8s.io", "v1alpha1", "XMesh");
    let resource = ApiResource::from_gvk_with_plural(&kind, "xmeshes");
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let meshes = match api.list(&ListParams::default()).await {
        Ok(meshes) => meshes,
        Err(Error::Api(response)) if response.code == 404 => return Ok(()),
        Err(error) => return Err(error),
    };
    for mesh in meshes.items.iter().filter(|mesh| mesh.data["spec"]["controllerName"] == CONTROLLER) {
        let Some(status) = status(&mesh.data["status"], mesh.metadata.generation.unwrap_or_default(), &now())
        else {
            continue;
        };
        let patch = json!({
            "metadata": { "resourceVersion": mesh.metadata.resource_version },
            "status": status,
        });
        let name = mesh.metadata.name.as_deref().unwrap_or_default();
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    }
    Ok(())
}

/// The status of an XMesh, or `None` where `before` says the same.
fn status(before: &Value, generation: i64, now: &str) -> Option<Value> {
    let features: Vec<_> = SUPPORTED.iter().map(|name| json!({ "name": name })).collect();
    let known = before["conditions"].as_array().into_iter().flatten();
    let accepted = known.clone().find(|condition| condition["type"] == "Accepted");
    let accepted = accepted.filter(|condition| condition["status"] == "True");
    let same = accepted.is_some_and(|condition| condition["observedGeneration"] == generation);
    if same && before["supportedFeatures"] == json!(features) {
        return None;
    }
    let since = accepted.and_then(|condition| condition["lastTransitionTime"].as_str()).unwrap_or(now);
    let condition = json!({
        "type": "Accepted",
        "status": "True",
        "reason": "Accepted",
        "message": "",
        "observedGeneration": generation,
        "lastTransitionTime": since,
    });
    let others = known.filter(|condition| condition["type"] != "Accepted").cloned();
    let conditions: Vec<Value> = others.chain([condition]).collect();
    Some(json!({ "conditions": conditions, "supportedFeatures": features }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_sorted_and_written_once() {
        assert!(SUPPORTED.is_sorted());
        let written = status(&Value::Null, 1, "then").expect("nothing was there");
        assert_eq!(written["supportedFeatures"][0], json!({ "name": "GRPCRoute" }));
        assert_eq!(status(&written, 1, "now"), None);
        let newer = status(&written, 2, "now").expect("another generation");
        assert_eq!(newer["conditions"][0]["lastTransitionTime"], "then");
    }
}

//! What the manifests allow is what is needed: each permission is used, and none is missing.
//!
//! The programs run with the rights of their service accounts and do all that they can do; then the API server's audit log
//! is put beside the rules.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::process::Command;
use tulle_control_plane::ca::tokens::AUDIENCE;
use tulle_tests::apiserver::{ApiServer, CLUSTER_TRUST_BUNDLES, Channel};
use tulle_tests::{TRUST_DOMAIN, binaries, curl, output_of};

use crate::client::{connect, create};
use crate::installed::manifests;
use crate::plane::{Plane, SYSTEM, trust_bundle, until};
use crate::repair;

/// Who runs with which rights.
const ACCOUNTS: [(&str, &str); 2] = [(SYSTEM, "tulle-control-plane"), ("tulle-cni", "tulle-cni-repair")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_permission_is_used_and_none_is_missing() {
    let api = ApiServer::start_with(&CLUSTER_TRUST_BUNDLES).await;
    api.install_gateway_api(Channel::Experimental).await;
    api.kubectl(&["apply", "-k", &manifests("base")]).await;
    // An authority without content is filled, not made.
    api.kubectl(&["-n", SYSTEM, "create", "secret", "generic", "tulle-webhook-ca"]).await;
    let account = api.kubeconfig_of(SYSTEM, "tulle-control-plane").await;
    let (first, second) = tokio::join!(Plane::start_as(&account, &[]), Plane::start_as(&account, &[]));
    objects_are_reported(&api).await;
    tokens_are_proven(&api, &first).await;
    pods_are_reviewed(&api, &second).await;
    rotate(&account).await;
    until(async || {
        // Two writers of one Lease, until the second write of the one that leads.
        let lease = api.get(SYSTEM, "lease", "tulle-control-plane").await;
        let spec = &lease["spec"];
        if spec["renewTime"] == spec["acquireTime"] {
            Err(format!("it is not renewed: {lease}"))
        } else {
            Ok(())
        }
    })
    .await;
    // One that does not lead tells how far its sidecars are, and one that follows it hears of it.
    api_has(&api, "configmap", "tulle-control-plane-replicas").await;
    repair::a_pod_is_made_again(&api).await;

    for (namespace, account) in ACCOUNTS {
        let user = format!("system:serviceaccount:{namespace}:{account}");
        // Some of it, such as the signs of life of a replica, takes its time.
        until(async || match unused(&api, namespace, account).await {
            unused if unused.is_empty() => Ok(()),
            unused => Err(format!("{user} may, and does not: {unused:#?}")),
        })
        .await;
        let refused: Vec<_> = api
            .audited()
            .into_iter()
            .filter(|event| event["user"]["username"] == *user && event["responseStatus"]["code"] == 403)
            .map(|event| event["requestURI"].to_string())
            .collect();
        assert!(refused.is_empty(), "{user} may not, and tries: {refused:?}");
    }
    needless_permissions_are_noticed(&api).await;
    for plane in [first, second] {
        let log = plane.process.log();
        assert!(!log.contains("orbidden"), "{log}");
    }
    // With several replicas nothing more is allowed.
    let rules = async |folder: &str| {
        let all = api.kubectl(&["kustomize", &manifests(folder)]).await;
        let kept = all.split("\n---\n").filter(|document| document.contains("rbac.authorization.k8s.io/v1"));
        kept.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let base = rules("base").await;
    assert_eq!(base.len(), 4);
    assert_eq!(rules("ha").await, base);
}

/// A permission, or a use of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Permission {
    verb: String,
    group: String,
    resource: String,
    /// Where: `Some` of a Role, and of a request for one namespace.
    namespace: Option<String>,
    /// Of which object; `None` of all.
    name: Option<String>,
}

impl Permission {
    /// Whether it is what allowed a request, and no smaller one would have.
    fn covers(&self, used: &Self) -> bool {
        let place = match &self.namespace {
            Some(namespace) => used.namespace.as_ref() == Some(namespace),
            // What is only done in the control plane's own namespace belongs into a Role.
            None => used.namespace.as_deref() != Some(SYSTEM),
        };
        let name = self.name.is_none() || self.name == used.name;
        place
            && name
            && (&self.verb, &self.group, &self.resource) == (&used.verb, &used.group, &used.resource)
    }
}

/// What a service account may do and has not done.
async fn unused(api: &ApiServer, namespace: &str, account: &str) -> Vec<Permission> {
    let used = used(&api.audited(), &format!("system:serviceaccount:{namespace}:{account}"));
    let granted = granted(api, namespace, account).await.into_iter();
    granted.filter(|granted| !used.iter().any(|used| granted.covers(used))).collect()
}

/// What this test is for: a verb more, a kind that nothing reads, and a right in all namespaces to what is done in one.
async fn needless_permissions_are_noticed(api: &ApiServer) {
    let (namespace, account) = ACCOUNTS[0];
    let before = granted(api, namespace, account).await;
    let rule = |group: &str, resource: &str, verb: &str| json!({ "apiGroups": [group], "resources": [resource], "verbs": [verb] });
    let rules = [
        rule("", "services", "get"),
        rule("gateway.networking.k8s.io", "referencegrants", "list"),
        rule("coordination.k8s.io", "leases", "update"),
    ];
    let metadata = json!({ "name": "needless" });
    let group = "rbac.authorization.k8s.io";
    let api_version = format!("{group}/v1");
    let role =
        json!({ "apiVersion": api_version, "kind": "ClusterRole", "metadata": metadata, "rules": rules });
    let binding = json!({
        "apiVersion": api_version, "kind": "ClusterRoleBinding", "metadata": metadata,
        "roleRef": { "apiGroup": group, "kind": "ClusterRole", "name": "needless" },
        "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": namespace }],
    });
    api.apply(&format!("{role}\n---\n{binding}")).await;
    let more: BTreeSet<_> = &granted(api, namespace, account).await - &before;
    assert_eq!(more.len(), rules.len(), "{more:#?}");
    assert_eq!(unused(api, namespace, account).await.into_iter().collect::<BTreeSet<_>>(), more);
}

/// What a service account has done.
fn used(events: &[Value], user: &str) -> BTreeSet<Permission> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let own = events.iter().filter(|event| event["user"]["username"] == *user);
    own.filter(|event| event["responseStatus"]["code"] != 403 && event["objectRef"].is_object())
        .flat_map(|event| {
            let object = &event["objectRef"];
            let resource = match object["subresource"].as_str() {
                Some(part) => format!("{}/{part}", text(&object["resource"])),
                None => text(&object["resource"]),
            };
            let done = Permission {
                verb: text(&event["verb"]),
                group: text(&object["apiGroup"]),
                resource,
                namespace: object["namespace"].as_str().map(str::to_owned),
                name: object["name"].as_str().map(str::to_owned),
            };
            // Server-side apply of what is not there asks for both.
            let made = (done.verb == "patch" && event["responseStatus"]["code"] == 201)
                .then(|| Permission { verb: "create".into(), ..done.clone() });
            [Some(done), made].into_iter().flatten()
        })
        .collect()
}

/// What the cluster allows a service account, but for what it allows everybody.
async fn granted(api: &ApiServer, namespace: &str, account: &str) -> BTreeSet<Permission> {
    let list = async |kind: &str| {
        let text = api.kubectl(&["get", kind, "-A", "-o", "json"]).await;
        let list: Value = serde_json::from_str(&text).expect("JSON");
        list["items"].as_array().cloned().unwrap_or_default()
    };
    let mut granted = BTreeSet::new();
    for (bindings, roles) in [("clusterrolebindings", "clusterroles"), ("rolebindings", "roles")] {
        let roles = list(roles).await;
        for binding in list(bindings).await {
            let subjects = binding["subjects"].as_array().into_iter().flatten();
            if !subjects
                .into_iter()
                .any(|subject| subject["name"] == account && subject["namespace"] == namespace)
            {
                continue;
            }
            let place = binding["metadata"]["namespace"].as_str().map(str::to_owned);
            let role = roles.iter().find(|role| {
                role["metadata"]["name"] == binding["roleRef"]["name"]
                    && role["metadata"]["namespace"] == binding["metadata"]["namespace"]
            });
            let rules = role.expect("it is bound")["rules"].as_array().into_iter().flatten();
            granted.extend(rules.flat_map(|rule| permissions(rule, place.as_ref())));
        }
    }
    assert!(!granted.is_empty(), "{account} has no rights");
    granted
}

fn permissions(rule: &Value, namespace: Option<&String>) -> Vec<Permission> {
    let strings = |field: &str| -> Vec<String> {
        let values = rule[field].as_array().into_iter().flatten();
        values.map(|value| value.as_str().expect("a string").to_owned()).collect()
    };
    let mut names: Vec<_> = strings("resourceNames").into_iter().map(Some).collect();
    if names.is_empty() {
        names.push(None);
    }
    let mut all = Vec::new();
    for verb in strings("verbs") {
        assert_ne!(verb, "*");
        for group in strings("apiGroups") {
            for resource in strings("resources") {
                assert_ne!(resource, "*");
                all.extend(names.iter().map(|name| Permission {
                    verb: verb.clone(),
                    group: group.clone(),
                    resource: resource.clone(),
                    namespace: namespace.cloned(),
                    name: name.clone(),
                }));
            }
        }
    }
    all
}

/// One of each kind that has a status, which is written.
async fn objects_are_reported(api: &ApiServer) {
    api.make_namespace("shop").await;
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: cart, namespace: shop}\nspec: {ports: [{port: 80}]}\n";
    let mesh = "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XMesh\nmetadata: {name: tulle}\nspec: \
                {controllerName: tulle.dev/mesh}\n";
    let mut manifests = format!("{service}---\n{mesh}");
    let routes = [
        ("v1", "HTTPRoute", ""),
        ("v1", "GRPCRoute", ""),
        ("v1alpha2", "TCPRoute", ""),
        ("v1", "TLSRoute", "hostnames: [cart.example], "),
    ];
    for (version, kind, more) in routes {
        manifests += &format!(
            "---\napiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: cart, namespace: shop}}\n\
             spec: {{{more}parentRefs: [{{group: '', kind: Service, name: cart, port: 80}}], rules: [{{backendRefs: \
             [{{name: cart, port: 80}}]}}]}}\n"
        );
    }
    let policies = [
        ("BackendTrafficPolicy", ""),
        ("InboundPolicy", ""),
        ("AuthorizationPolicy", ", action: ALLOW, rules: [{}]"),
        ("TelemetryPolicy", ""),
    ];
    for (kind, more) in policies {
        manifests += &format!(
            "---\napiVersion: tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: cart, namespace: shop}}\nspec: \
             {{targetRefs: [{{group: '', kind: Service, name: cart}}]{more}}}\n"
        );
    }
    // The API server asks for a webhook that nothing leads to here, and goes on.
    until(async || api.try_apply(&manifests).await).await;
}

/// A pod's token is proven.
async fn tokens_are_proven(api: &ApiServer, plane: &Plane) {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "cart", "namespace": "shop" },
        "spec": { "nodeName": "n1", "containers": [{ "name": "cart", "image": "cart" }] },
    });
    api.apply(&pod.to_string()).await;
    let token = api.token("shop", "default", AUDIENCE, Some("cart")).await;
    let channel = connect(plane, &trust_bundle(api, "shop").await).await;
    let identity = format!("spiffe://{TRUST_DOMAIN}/ns/shop/sa/default");
    create(channel, Some(&token), &identity).await.expect("it is a pod's token");
}

/// Pods that get no sidecar, twice for the same reason, and one in a namespace that the control plane has not heard of.
async fn pods_are_reviewed(api: &ApiServer, plane: &Plane) {
    api.kubectl(&["label", "namespace", "shop", "tulle.dev/inject=enabled"]).await;
    let address = plane.process.started["webhook"].as_str().expect("it says where it listens").to_owned();
    let review = async |namespace: &str| {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": "node", "namespace": namespace, "labels": { "tulle.dev/inject": "enabled" } },
            "spec": { "hostNetwork": true, "containers": [{ "name": "app", "image": "app" }] },
        });
        let review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "1",
                "kind": { "group": "", "version": "v1", "kind": "Pod" },
                "name": "node",
                "namespace": namespace,
                "object": pod,
            },
        });
        let mut command = curl();
        command.args([
            "--insecure",
            "--header",
            "content-type: application/json",
            "--data",
            &review.to_string(),
        ]);
        command.arg(format!("https://{address}/inject"));
        let output = output_of(command).await;
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for _ in 0..2 {
        until(async || match review("shop").await {
            answer if answer.contains("hostNetwork") => Ok(()),
            answer => Err(format!("{answer:?}")),
        })
        .await;
    }
    until(async || match review("nobody-made-it").await {
        answer if answer.contains("not found") => Ok(()),
        answer => Err(format!("{answer:?}")),
    })
    .await;
}

async fn rotate(account: &Path) {
    let account: PathBuf = account.into();
    let mut command = Command::new(&binaries().control_plane);
    command.args(["rotate-root", "prepare", "--kubernetes", "--kubeconfig"]).arg(account);
    let output = output_of(command).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn api_has(api: &ApiServer, kind: &str, name: &str) {
    until(async || api.try_kubectl(&["-n", SYSTEM, "get", kind, name]).await).await;
}

//! A hostile tenant: somebody who may do everything in one namespace, and nothing in others.

use std::collections::BTreeMap;

use serde_json::json;
use tonic::Code;
use tonic::transport::Channel as Connection;
use tulle_control_plane::ca::tokens::AUDIENCE;
use tulle_control_plane::xds::Kind;
use tulle_tests::TRUST_DOMAIN;
use tulle_tests::apiserver::{ApiServer, Channel};

use crate::client::{Stream, connect, create};
use crate::plane::{Plane, SYSTEM, objects, trust_bundle, until};

/// The pod of the shop.
const ADDRESS: &str = "10.0.0.1";

/// Whatever the tenant makes, the shop's sidecars are sent what they were sent before, to the byte; the tenant gets no
/// identity of the shop, and sees nothing of who may call it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_changes_nothing_of_another() {
    let api = ApiServer::start().await;
    api.install_gateway_api(Channel::Experimental).await;
    api.install_tulle().await;
    for namespace in [SYSTEM, "shop", "evil"] {
        api.make_namespace(namespace).await;
    }
    api.apply(TENANT).await;
    api.apply(SHOP).await;
    let status = json!({
        "phase": "Running", "podIP": ADDRESS, "podIPs": [{ "ip": ADDRESS }],
        "conditions": [{ "type": "Ready", "status": "True" }],
    });
    api.patch_status("shop", "pod", "cart", &status).await;
    let plane = Plane::start(&api).await;
    let channel = connect(&plane, &trust_bundle(&api, "shop").await).await;
    let cluster_ip =
        api.get("shop", "service", "cart").await["spec"]["clusterIP"].as_str().expect("one").to_owned();
    let token = api.token("shop", "default", AUDIENCE, Some("cart")).await;
    let before = until(async || {
        let seen = seen(&channel, &token, &cluster_ip).await;
        let missing: Vec<_> = seen.iter().filter(|(_, version)| version.is_empty()).collect();
        if missing.is_empty() { Ok(seen.clone()) } else { Err(format!("nobody has {missing:?}")) }
    })
    .await;

    let attacks = ATTACKS.replace("CLUSTER_IP", &cluster_ip).replace("ADDRESS", ADDRESS);
    mallory(&api, &attacks).await.expect("the tenant may do this in the own namespace");
    for (manifest, reason) in [
        (
            format!(
                "{SERVICE}{{name: taker, namespace: evil}}\nspec: {{clusterIP: {cluster_ip}, ports: [{{port: 80}}]}}\n"
            ),
            "already allocated",
        ),
        (format!("{SERVICE}{{name: cart, namespace: shop}}\nspec: {{ports: [{{port: 80}}]}}\n"), "forbidden"),
    ] {
        let refused = mallory(&api, &manifest).await.expect_err(reason);
        assert!(refused.contains(reason), "{refused}");
    }
    until(async || {
        let told = objects(plane.http()).await.to_string();
        let all = [
            "10.0.0.1 is the address of Pod shop/cart",
            "is the address of Service shop/cart",
            "\"thief-2\"",
        ];
        match all.iter().find(|part| !told.contains(**part)) {
            None => Ok(()),
            Some(part) => Err(format!("{part} is not in {told}")),
        }
    })
    .await;
    // It holds for clients of the tenant's namespace alone. A backend elsewhere needs no grant in a mesh: who may call it
    // is told by the policies there, whatever route led to it.
    until(async || {
        let route = api.get("evil", "httproute", "steal").await["status"]["parents"].to_string();
        if route.contains("\"reason\":\"Accepted\"") { Ok(()) } else { Err(route) }
    })
    .await;
    assert_eq!(seen(&channel, &token, &cluster_ip).await, before);

    let own = api.token("evil", "default", AUDIENCE, Some("thief")).await;
    let identity = |namespace: &str| format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/default");
    create(channel.clone(), Some(&own), &identity("evil")).await.expect("that it is");
    let refused = create(channel.clone(), Some(&own), &identity("shop")).await.expect_err("that it is not");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let inbound = format!("tulle/inbound/{ADDRESS}");
    let mut stream = Stream::open(channel.clone(), &own, "thief", Kind::Listener, &[&inbound]).await;
    assert_eq!(stream.next().await.removed_resources, [inbound]);
}

/// What a sidecar of the shop is sent, by the name that it asks for: versions, which are hashes of all bytes.
async fn seen(channel: &Connection, token: &str, cluster_ip: &str) -> BTreeMap<String, String> {
    let whole = "cart.shop.svc.cluster.local";
    let asked = [
        (Kind::Listener, format!("{whole}:80")),
        (Kind::Listener, "cart:80".into()),
        (Kind::Listener, format!("{cluster_ip}:80")),
        (Kind::Listener, format!("{ADDRESS}:8080")),
        (Kind::Listener, format!("{ADDRESS}:9999")),
        (Kind::Listener, format!("tulle/inbound/{ADDRESS}")),
        (Kind::Route, format!("outbound|80||{whole}")),
        (Kind::Cluster, format!("outbound|80||{whole}")),
        (Kind::Endpoint, format!("outbound|80||{whole}")),
        (Kind::Dns, whole.into()),
    ];
    let mut seen = BTreeMap::new();
    for (kind, name) in asked {
        let mut stream = Stream::open(channel.clone(), token, "cart", kind, &[&name]).await;
        let response = stream.next().await;
        let versions: Vec<_> = response
            .resources
            .iter()
            .map(|resource| format!("{} {}", resource.name, resource.version))
            .collect();
        seen.insert(format!("{kind} {name}"), versions.join(", "));
    }
    seen
}

/// `kubectl apply` as the tenant.
async fn mallory(api: &ApiServer, manifests: &str) -> Result<String, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("manifests.yaml");
    std::fs::write(&file, manifests).expect("it can be written");
    api.try_kubectl(&["--as=mallory", "apply", "--filename", &file.display().to_string()]).await
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: ";

/// Everything, in one namespace.
const TENANT: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: tenant, namespace: evil}
rules: [{apiGroups: ['*'], resources: ['*'], verbs: ['*']}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: tenant, namespace: evil}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: tenant}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: mallory}]
";

const SHOP: &str = "
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart, tulle.dev/tls: mesh}}
spec: {nodeName: n1, containers: [{name: app, image: app, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: cart-1, namespace: shop, labels: {kubernetes.io/service-name: cart}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}]
ports: [{name: http, port: 8080}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: cart, port: 80}]
  rules: [{backendRefs: [{name: cart, port: 80}]}]
";

/// A route and policies for what is another's, Services and endpoints that lead there, a pod and Workloads that say they
/// are there.
const ATTACKS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: steal, namespace: evil}
spec:
  parentRefs: [{group: '', kind: Service, name: cart, namespace: shop, port: 80}]
  rules: [{backendRefs: [{name: cart, namespace: shop, port: 80}, {name: thief, port: 8080}]}]
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: grant, namespace: evil}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: evil}]
  to: [{group: '', kind: Service}]
---
apiVersion: tulle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: close, namespace: evil}
spec: {targetRefs: [{group: '', kind: Service, name: cart}], action: DENY, rules: [{}]}
---
apiVersion: tulle.dev/v1alpha1
kind: InboundPolicy
metadata: {name: open, namespace: evil}
spec: {targetRefs: [{group: '', kind: Service, name: cart}], mtls: {mode: Disabled}}
---
apiVersion: v1
kind: Service
metadata: {name: thief, namespace: evil}
spec: {clusterIP: None, externalIPs: [ADDRESS, CLUSTER_IP], ports: [{name: http, port: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: thief-1, namespace: evil, labels: {kubernetes.io/service-name: thief}}
addressType: IPv4
endpoints: [{addresses: [ADDRESS], hostname: cart, conditions: {ready: true}}]
ports: [{name: http, port: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: cart-2, namespace: evil, labels: {kubernetes.io/service-name: cart}}
addressType: IPv4
endpoints: [{addresses: [10.9.9.9], conditions: {ready: true}}]
ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: evil}
spec: {type: ExternalName, externalName: cart.shop.svc.cluster.local, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: thief, namespace: evil, labels: {app: cart, tulle.dev/tls: mesh}}
spec: {nodeName: n1, hostname: cart, subdomain: shop, containers: [{name: app, image: app}]}
---
apiVersion: tulle.dev/v1alpha1
kind: Workload
metadata: {name: thief-1, namespace: evil, labels: {app: cart}}
spec: {address: ADDRESS, serviceAccount: default, ports: [{name: http, port: 8080}]}
---
apiVersion: tulle.dev/v1alpha1
kind: Workload
metadata: {name: thief-2, namespace: evil, labels: {app: cart}}
spec: {address: CLUSTER_IP, serviceAccount: default, ports: [{name: http, port: 80}]}
";

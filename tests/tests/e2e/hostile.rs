//! A control plane that sends garbage: the sidecar says what is wrong with it, and serves on.

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use envoy_types::pb::google::protobuf::Any;
use serde_json::json;
use tulle_mesh::xds::Kind;
use tulle_tests::{
    App, HostileControlPlane, LIMIT, NAMESPACE, TestMesh, Workload, exchange, fetch, wait_for,
};

use crate::bad_input::{Validity, certificate};

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
const CLUSTER: &str = "outbound|80||echo.shop.svc.cluster.local";
const LISTENER: &str = "echo.shop.svc.cluster.local:80";

#[tokio::test]
async fn garbage_is_rejected_by_name_and_takes_nothing_down() {
    let app = App::fixed(200, "").await;
    let mesh = TestMesh::start().await;
    let _server = mesh.workload(Workload::new("echo").app(app.address).protocol("http")).await;
    let root = std::fs::read_to_string(mesh.mesh.state.join("root.pem")).expect("it was written");
    let control_plane =
        format!("spiffe://{}/ns/tulle-system/sa/tulle-control-plane", tulle_tests::TRUST_DOMAIN);
    let (leaf, key) = certificate(&mesh, &control_plane, Validity::Now);
    let token = mesh.mesh.token(NAMESPACE, "client").expect("a token");
    let token = std::fs::read_to_string(token).expect("it was written");
    let hostile = HostileControlPlane::start(mesh.mesh.xds(), &root, (&leaf, &key), &token).await;
    let client = Workload::new("client")
        .port("echo.shop:80")
        .config(
            "controlPlane",
            json!({ "address": hostile.address.to_string(), "rootFile": mesh.mesh.state.join("root.pem") }),
        )
        .config("identity", crate::bad_input::files(&mesh, "client", Validity::Now));
    let client = mesh.workload(client).await;
    let port = client.ports["echo.shop:80"];
    assert_eq!(exchange(port, GET).await.status(), 200);

    for (kind, name) in [
        (Kind::Listener, LISTENER),
        (Kind::Route, CLUSTER),
        (Kind::Cluster, CLUSTER),
        (Kind::Endpoint, CLUSTER),
    ] {
        let other = if kind == Kind::Cluster { Kind::Listener } else { Kind::Cluster };
        for (what, (url, value)) in [
            ("no protobuf", (kind.type_url(), vec![0xff; 40])),
            ("another type", (other.type_url(), Vec::new())),
            ("empty", (kind.type_url(), Vec::new())),
        ] {
            let resource = Resource {
                name: name.into(),
                version: "forged".into(),
                resource: Some(Any { type_url: url.into(), value }),
                ..Default::default()
            };
            let response = DeltaDiscoveryResponse {
                type_url: kind.type_url().into(),
                resources: vec![resource],
                ..Default::default()
            };
            let nack = hostile.say(response).await;
            let nack = nack.unwrap_or_else(|| panic!("{what} is taken for {name}"));
            assert!(nack.contains(name), "{what}: {nack}");
            assert_eq!(exchange(port, GET).await.status(), 200, "after {what} for {name}: {nack}");
        }
    }
    let (_, config) = fetch(&format!("http://{}/config", client.admin)).await.expect("it answers");
    let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    let rejected = config["sync"]["types"].to_string();
    assert!(rejected.contains("\"rejected\":{\"outbound|80||echo.shop.svc.cluster.local\":"), "{rejected}");
    let metrics = client.metrics().await.expect("it answers");
    let count = metrics.sum("tulle_xds_responses_total", &[("outcome", "rejected")]);
    assert!(count >= 12.0, "{count} rejections: {metrics:?}");

    // What the true control plane says is still taken.
    mesh.manifest(
        "route.yaml",
        &format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: echo, namespace: {NAMESPACE}}}\n\
             spec:\n  parentRefs: [{{group: \"\", kind: Service, name: echo}}]\n  rules:\n  \
             - filters: [{{type: RequestRedirect, requestRedirect: {{hostname: elsewhere, statusCode: 302}}}}]\n"
        ),
    );
    let followed = || async {
        match exchange(port, GET).await.status() {
            302 => Ok(()),
            status => Err(format!("the change is not in force: {status}")),
        }
    };
    wait_for(LIMIT, followed).await.unwrap_or_else(|error| panic!("{error}"));
}

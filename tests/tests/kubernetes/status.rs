//! The status of objects, as a real API server keeps it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tulle_control_plane::ca::Authority;
use tulle_control_plane::metrics::Metrics;
use tulle_control_plane::source::ManifestsSource;
use tulle_control_plane::status::Board;
use tulle_control_plane::status::features::SUPPORTED;
use tulle_control_plane::status::writer::StatusWriter;
use tulle_control_plane::virtual_addresses::Kept;
use tulle_control_plane::world::MeshSettings;
use tulle_control_plane::xds::hub::Hub;
use tulle_control_plane::xds::proxies::Proxies;
use tulle_control_plane::xds::resources::Resources;
use tulle_mesh::model::PerMillion;
use tulle_tests::apiserver::{ApiServer, Channel};
use tulle_tests::wait_for;

/// Long enough for an API server on a machine that has much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// A control plane's writer, and what it writes about.
struct Writer<'a> {
    api: &'a ApiServer,
    namespace: String,
    board: Arc<Board>,
    resources: Arc<Resources>,
    hub: Hub,
    leader: watch::Sender<bool>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    folder: tempfile::TempDir,
}

impl<'a> Writer<'a> {
    async fn start(api: &'a ApiServer) -> Self {
        let namespace = api.namespace("status").await;
        let folder = tempfile::tempdir().expect("a folder");
        let settings = MeshSettings {
            trust_domain: "cluster.local".parse().expect("valid"),
            cluster_domain: "cluster.local".into(),
            namespace: "tulle-system".into(),
            sampling: PerMillion(0),
            virtual_ranges: Vec::new(),
        };
        let state = folder.path().join("state");
        let authority = Authority::open(&state, &settings.trust_domain, SystemTime::now()).expect("it opens");
        let kept = Kept::open(&state).expect("it opens");
        let resources = Arc::new(Resources::new(settings, authority.bundle(), Some(kept)));
        let board = Arc::new(Board::new(Arc::new(Metrics::new()), Arc::new(Proxies::default())));
        let config = Kubeconfig::read_from(&api.kubeconfig).expect("it is written");
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
        let (leader, leads) = watch::channel(false);
        let stop = CancellationToken::new();
        let writer = StatusWriter {
            client: Client::try_from(config.expect("a kubeconfig")).expect("a client"),
            board: Arc::clone(&board),
            statuses: Arc::default(),
            leader: leads,
            stop: stop.clone(),
        };
        let hub = Hub::new(Arc::clone(&resources) as Arc<_>);
        Self { api, namespace, board, resources, hub, leader, stop, task: tokio::spawn(writer.run()), folder }
    }

    /// Applies manifests, and lets the control plane read what the API server has then.
    async fn apply(&self, manifests: &str) {
        self.api.apply(&manifests.replace("NAMESPACE", &self.namespace)).await;
        self.read().await;
    }

    async fn read(&self) {
        let kinds = "services,httproutes,grpcroutes,inboundpolicies,backendtrafficpolicies";
        let text = self.api.kubectl(&["-n", &self.namespace, "get", kinds, "-o", "yaml"]).await;
        let manifests = self.folder.path().join("manifests");
        std::fs::create_dir_all(&manifests).expect("it can be made");
        std::fs::write(manifests.join("objects.yaml"), text).expect("it can be written");
        let (_, loaded) = ManifestsSource::load(&manifests).expect("it can be read");
        let update = self.resources.update(&loaded);
        self.hub.publish(update.changed.clone());
        self.board.publish(&loaded, update, self.hub.published());
    }

    async fn get(&self, kind: &str, name: &str) -> Value {
        self.api.get(&self.namespace, kind, name).await
    }

    /// Waits until an object's status shows something.
    async fn until(&self, kind: &str, name: &str, shows: impl Fn(&Value) -> bool) -> Value {
        let look = || async {
            let object = self.get(kind, name).await;
            if shows(&object["status"]) { Ok(object) } else { Err(object["status"].to_string()) }
        };
        wait_for(PATIENCE, look).await.unwrap_or_else(|status| panic!("{kind} {name}: {status}"))
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.expect("it ends");
    }
}

const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: NAMESPACE}
spec: {selector: {app: cart}, ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: NAMESPACE}
spec:
  parentRefs: [{group: '', kind: Service, name: cart, port: 80}, {name: gateway}]
  rules: [{backendRefs: [{name: cart, port: 80}]}]
---
apiVersion: tulle.dev/v1alpha1
kind: InboundPolicy
metadata: {name: strict, namespace: NAMESPACE}
spec: {targetRefs: [{kind: Service, name: cart}], mtls: {mode: Strict}}
---
apiVersion: tulle.dev/v1alpha1
kind: InboundPolicy
metadata: {name: younger, namespace: NAMESPACE}
spec: {targetRefs: [{kind: Service, name: cart}]}
";

fn condition<'a>(entry: &'a Value, kind: &str) -> &'a Value {
    let conditions = entry["conditions"].as_array().unwrap_or_else(|| panic!("{entry}"));
    conditions
        .iter()
        .find(|condition| condition["type"] == kind)
        .unwrap_or_else(|| panic!("no {kind}: {entry}"))
}

fn ours<'a>(status: &'a Value, list: &str) -> Option<&'a Value> {
    status[list].as_array()?.iter().find(|entry| entry["controllerName"] == "tulle.dev/mesh")
}

/// A server with all kinds, for the tests of this file.
async fn server() -> &'static ApiServer {
    let api = ApiServer::shared().await;
    api.install_gateway_api(Channel::Experimental).await;
    api.install_tulle().await;
    api
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_writes_what_became_of_each_object_beside_what_others_say() {
    let api = server().await;
    let writer = Writer::start(api).await;
    writer.apply(SHOP).await;
    let foreign = json!({
        "parentRef": { "name": "gateway" },
        "controllerName": "example.com/gateway",
        "conditions": [{
            "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    });
    api.patch_status(&writer.namespace, "httproute", "split", &json!({ "parents": [foreign] })).await;
    assert!(ours(&writer.get("httproute", "split").await["status"], "parents").is_none(), "nobody leads");

    writer.leader.send_replace(true);
    let route = writer.until("httproute", "split", |status| ours(status, "parents").is_some()).await;
    let entry = ours(&route["status"], "parents").expect("waited for");
    let reference = &entry["parentRef"];
    assert_eq!(
        (&reference["group"], &reference["name"], &reference["port"]),
        (&json!(""), &json!("cart"), &json!(80))
    );
    for (kind, reason) in
        [("Accepted", "Accepted"), ("ResolvedRefs", "ResolvedRefs"), ("tulle.dev/Programmed", "Programmed")]
    {
        let found = condition(entry, kind);
        assert_eq!((&found["status"], &found["reason"]), (&json!("True"), &json!(reason)));
        assert_eq!(found["observedGeneration"], route["metadata"]["generation"]);
    }
    let parents = route["status"]["parents"].as_array().expect("a list");
    assert_eq!((parents.len(), &parents[0]["controllerName"]), (2, &foreign["controllerName"]));

    let policy = writer.until("inboundpolicy", "strict", |status| ours(status, "ancestors").is_some()).await;
    let entry = ours(&policy["status"], "ancestors").expect("waited for");
    assert_eq!(condition(entry, "Programmed")["status"], "True");
    let loser = writer.until("inboundpolicy", "younger", |status| ours(status, "ancestors").is_some()).await;
    let entry = ours(&loser["status"], "ancestors").expect("waited for");
    assert_eq!(condition(entry, "Accepted")["reason"], "Conflicted");
    assert_eq!(condition(entry, "Programmed")["reason"], "Overridden");

    // A change of one condition leaves the time of the others; another generation is observed.
    writer.apply(&SHOP.replace("backendRefs: [{name: cart", "backendRefs: [{name: gone")).await;
    let lost = |status: &Value| {
        ours(status, "parents").is_some_and(|entry| condition(entry, "ResolvedRefs")["status"] == "False")
    };
    let changed = writer.until("httproute", "split", lost).await;
    let entry = ours(&changed["status"], "parents").expect("waited for");
    assert_eq!(condition(entry, "ResolvedRefs")["reason"], "BackendNotFound");
    assert_eq!(condition(entry, "Accepted")["observedGeneration"], changed["metadata"]["generation"]);
    assert_ne!(changed["metadata"]["generation"], route["metadata"]["generation"]);
    let before = ours(&route["status"], "parents").expect("waited for");
    assert_eq!(
        condition(entry, "Accepted")["lastTransitionTime"],
        condition(before, "Accepted")["lastTransitionTime"]
    );

    // It neither answers its own writes, nor writes what is there already.
    writer.read().await;
    let version = writer.get("httproute", "split").await["metadata"]["resourceVersion"].clone();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(writer.get("httproute", "split").await["metadata"]["resourceVersion"], version);

    // A route that leaves the mesh takes our entry with it, and nobody else's.
    writer.apply(&SHOP.replace("{group: '', kind: Service, name: cart, port: 80}, ", "")).await;
    let left = writer.until("httproute", "split", |status| ours(status, "parents").is_none()).await;
    assert_eq!(left["status"]["parents"].as_array().map(Vec::len), Some(1));
    writer.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_write_to_one_object_lose_nothing() {
    let api = server().await;
    let writer = Writer::start(api).await;
    writer.apply(SHOP).await;
    writer.leader.send_replace(true);
    writer.until("httproute", "split", |status| ours(status, "parents").is_some()).await;
    for round in 0..5 {
        // Another controller reads, changes and writes its own entry, as fast as it can, while ours has news.
        let name = if round % 2 == 0 { "gone" } else { "cart" };
        let manifests = SHOP.replace("backendRefs: [{name: cart", &format!("backendRefs: [{{name: {name}"));
        writer.apply(&manifests).await;
        let wrote = || async {
            let route = writer.get("httproute", "split").await;
            let mut parents = route["status"]["parents"].as_array().cloned().unwrap_or_default();
            parents.retain(|entry| entry["controllerName"] == "tulle.dev/mesh");
            parents.push(json!({
                "parentRef": { "name": "gateway" },
                "controllerName": "example.com/gateway",
                "conditions": [{
                    "type": "Accepted", "status": "True", "reason": "Accepted", "message": format!("{round}"),
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            }));
            let patch = json!({
                "metadata": { "resourceVersion": route["metadata"]["resourceVersion"] },
                "status": { "parents": parents },
            });
            let (namespace, patch) = (&writer.namespace, patch.to_string());
            let place = [
                "-n",
                namespace,
                "patch",
                "httproute",
                "split",
                "--subresource=status",
                "--type=merge",
                "-p",
            ];
            api.try_kubectl(&[&place[..], &[patch.as_str()]].concat()).await.map(drop)
        };
        wait_for(PATIENCE, wrote).await.unwrap_or_else(|error| panic!("{error}"));
        let wanted = if name == "gone" { "False" } else { "True" };
        let both = |status: &Value| {
            let own = ours(status, "parents").map(|entry| &condition(entry, "ResolvedRefs")["status"]);
            let other = status["parents"].as_array().into_iter().flatten().any(|entry| {
                entry["controllerName"] == "example.com/gateway"
                    && entry["conditions"][0]["message"] == format!("{round}")
            });
            own.is_some_and(|status| status == wanted) && other
        };
        writer.until("httproute", "split", both).await;
    }
    writer.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_features_of_the_mesh_are_told_where_its_object_is() {
    let api = server().await;
    api.apply(
        "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XMesh\nmetadata: {name: tulle}\n\
         spec: {controllerName: tulle.dev/mesh}\n---\n\
         apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XMesh\nmetadata: {name: other}\n\
         spec: {controllerName: example.com/mesh}\n",
    )
    .await;
    let writer = Writer::start(api).await;
    writer.leader.send_replace(true);
    let told = |status: &Value| status["supportedFeatures"].as_array().map(Vec::len) == Some(SUPPORTED.len());
    writer.until("xmesh", "tulle", told).await;
    let other = writer.get("xmesh", "other").await;
    assert!(other["status"]["supportedFeatures"].is_null(), "{other}");
    writer.end().await;
}

//! What goes wrong between an API server and a control plane, and objects as large as they may be.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tulle_control_plane::ca::tokens::AUDIENCE;
use tulle_control_plane::xds::Kind;
use tulle_tests::apiserver::{ApiServer, Channel};

use crate::client::{Stream, connect};
use crate::plane::{Plane, SYSTEM, knows, metrics, trust_bundle, until};

/// A way to an API server that can be cut.
struct Bridge {
    address: SocketAddr,
    open: Arc<Semaphore>,
    task: tokio::task::JoinHandle<()>,
}

impl Bridge {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let open = Arc::new(Semaphore::new(1));
        let is_open = Arc::clone(&open);
        let task = tokio::spawn(async move {
            let mut carried = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((mut near, _)) = accepted else { return };
                        if is_open.available_permits() > 0 {
                            carried.spawn(async move {
                                let mut far = TcpStream::connect(target).await?;
                                copy_bidirectional(&mut near, &mut far).await.map(drop)
                            });
                        }
                    }
                    () = tokio::time::sleep(std::time::Duration::from_millis(20)) => {
                        if is_open.available_permits() == 0 {
                            carried.abort_all();
                        }
                        while carried.try_join_next().is_some() {}
                    }
                }
            }
        });
        Self { address, open, task }
    }

    /// Ends all connections and refuses more.
    fn cut(&self) {
        self.open.forget_permits(1);
    }

    fn mend(&self) {
        self.open.add_permits(1);
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A watch that breaks goes on where it was. One whose place etcd has forgotten meanwhile (410 Gone) lists anew, once, and
/// misses nothing: neither what was made nor what was deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_etcd_has_forgotten_is_listed_anew() {
    let mut api = ApiServer::start().await;
    for namespace in [SYSTEM, "shop"] {
        api.make_namespace(namespace).await;
    }
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{port: 80}}]}}\n"
        )
    };
    api.apply(&service("old")).await;
    let bridge = Bridge::to(api.address).await;
    let folder = tempfile::tempdir().expect("a folder");
    let through = folder.path().join("kubeconfig");
    let kubeconfig = std::fs::read_to_string(&api.kubeconfig).expect("it is written");
    std::fs::write(&through, kubeconfig.replace(&api.address.to_string(), &bridge.address.to_string()))
        .expect("the folder can be written");
    let plane = Plane::start_as(&through, &[]).await;
    knows(plane.http(), "Service", "old").await;
    let count = async |name: &str| metrics(plane.http()).await.sum(name, &[("kind", "Service")]);
    let failing = async |wanted: f64| {
        until(async || match count("tulle_control_plane_source_failing").await {
            found if found == wanted => Ok(()),
            found => Err(format!("source_failing is {found}")),
        })
        .await;
    };
    let lists = async || count("tulle_control_plane_source_lists_total").await;
    let before = lists().await;

    bridge.cut();
    failing(1.0).await;
    bridge.mend();
    failing(0.0).await;
    api.apply(&service("between")).await;
    knows(plane.http(), "Service", "between").await;
    assert_eq!(lists().await, before, "the watch goes on where it was");

    bridge.cut();
    failing(1.0).await;
    api.kubectl(&["-n", "shop", "delete", "service", "old"]).await;
    api.apply(&service("new")).await;
    api.compact().await;
    // The server itself remembers for a while what it has told.
    api.kill();
    api.restart().await;
    bridge.mend();
    knows(plane.http(), "Service", "new").await;
    let known = crate::plane::objects(plane.http()).await.to_string();
    assert!(!known.contains("\"old\"") && known.contains("\"between\""), "{known}");
    failing(0.0).await;
    assert_eq!(lists().await, before + 1.0, "listed once");
    assert!(!plane.process.log().contains("panicked"));
}

/// Names as long as the API server takes them, and a route of a megabyte, arrive whole, and their status is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_objects_may_be_as_large_as_they_can_be() {
    let api = ApiServer::start().await;
    api.install_gateway_api(Channel::Experimental).await;
    api.install_tulle().await;
    api.make_namespace(SYSTEM).await;
    let label = |letter: &str| letter.repeat(63);
    // A name of 253 characters is one of labels.
    let name = |letter: &str| [label(letter), label(letter), label(letter), letter.repeat(61)].join(".");
    let (namespace, service, account) = (label("n"), label("s"), name("a"));
    api.make_namespace(&namespace).await;
    let value = "v".repeat(1000);
    let matches: Vec<Value> = (0..8)
        .map(|at| {
            let headers: Vec<_> =
                (0..15).map(|header| json!({ "name": format!("x-{at}-{header}"), "value": value })).collect();
            json!({ "headers": headers })
        })
        .collect();
    let rules: Vec<_> = (0..8)
        .map(|at| {
            let backend = json!({ "name": service, "port": 80 });
            json!({ "name": format!("{at}{}", &name("r")[1..]), "matches": matches, "backendRefs": [backend] })
        })
        .collect();
    let meta = |name: &str| json!({ "name": name, "namespace": namespace });
    let objects = [
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta(&account) }),
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": meta(&name("p")),
            "spec": {
                "serviceAccountName": account, "nodeName": "n1", "containers": [{ "name": "app", "image": "app" }],
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": meta(&service),
            "spec": { "ports": [{ "name": "http", "port": 80 }] },
        }),
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": meta(&name("h")),
            "spec": {
                "parentRefs": [{ "group": "", "kind": "Service", "name": service, "port": 80 }],
                "rules": rules,
            },
        }),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    for (at, object) in objects.iter().enumerate() {
        let file = folder.path().join(format!("{at}.json"));
        std::fs::write(&file, object.to_string()).expect("it can be written");
        // Server-side: the annotation of the other way would be larger than annotations may be.
        api.kubectl(&["apply", "--server-side", &format!("--filename={}", file.display())]).await;
    }
    assert!(objects[3].to_string().len() > 900_000);

    let plane = Plane::start(&api).await;
    until(async || {
        let route = api.get(&namespace, "httproute", &name("h")).await;
        let status = &route["status"]["parents"][0]["conditions"];
        if status.to_string().matches("\"True\"").count() == 3 { Ok(()) } else { Err(format!("{status}")) }
    })
    .await;
    let token = api.token(&namespace, &account, AUDIENCE, Some(&name("p"))).await;
    let channel = connect(&plane, &trust_bundle(&api, &namespace).await).await;
    let listener = format!("{service}.{namespace}.svc.cluster.local:80");
    let mut stream = Stream::open(channel.clone(), &token, "n", Kind::Listener, &[&listener]).await;
    assert_eq!(stream.next().await.resources.len(), 1);
    let routes = format!("outbound|80||{service}.{namespace}.svc.cluster.local");
    let mut stream = Stream::open(channel, &token, "n", Kind::Route, &[&routes]).await;
    let routes = stream.next().await;
    let size: usize = routes
        .resources
        .iter()
        .filter_map(|resource| resource.resource.as_ref())
        .map(|any| any.value.len())
        .sum();
    assert!(size > 900_000, "{size} bytes of {listener}: {:?}", routes.removed_resources);
}

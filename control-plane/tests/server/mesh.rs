//! From manifests to sidecars: the program reads a folder, and its clients get what follows from it.

use tulle_control_plane::xds::Kind::{self, Cluster, Endpoint, Listener, Route};
use tulle_mesh::model::{self, Protocol, RouteSource};
use tulle_mesh::xds::Resource;

use super::program::Program;
use super::support::DeltaStream;

const CART: &str = "cart.shop.svc.cluster.local:80";
const CLUSTER: &str = "outbound|80||cart.shop.svc.cluster.local";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  clusterIP: 10.9.0.1
  selector: {app: cart}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

fn workload(name: &str, address: &str) -> String {
    format!(
        "
apiVersion: tulle.dev/v1alpha1
kind: Workload
metadata: {{name: {name}, namespace: shop, labels: {{app: cart}}}}
spec: {{address: {address}, serviceAccount: cart, ports: [{{name: http, port: 8080}}]}}
"
    )
}

/// A route to `backend` for clients in `namespace`.
fn route(namespace: &str, name: &str, backend: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  parentRefs: [{{group: '', kind: Service, name: cart, namespace: shop}}]
  rules: [{{backendRefs: [{{name: {backend}, namespace: shop, port: 80}}]}}]
"
    )
}

/// The next response, which must hold one resource of this kind.
async fn one(stream: &mut DeltaStream, kind: Kind) -> Resource {
    let response = stream.next().await;
    assert_eq!(response.type_url, kind.type_url(), "{response:?}");
    assert_eq!(response.resources.len(), 1, "{response:?}");
    let any = response.resources[0].resource.as_ref().unwrap();
    assert_eq!(response.resources[0].version, tulle_mesh::xds::version(&any.value));
    Resource::decode(&any.type_url, &any.value).unwrap()
}

async fn listener(stream: &mut DeltaStream) -> model::Listener {
    let Resource::Listener(listener) = one(stream, Listener).await else { panic!("a listener") };
    listener
}

fn routes_of(listener: &model::Listener) -> &str {
    let Protocol::Http(http) = &listener.chains[0].protocol else { panic!("HTTP: {listener:?}") };
    let RouteSource::Named(name) = &http.routes else { panic!("by name: {listener:?}") };
    name
}

async fn addresses(stream: &mut DeltaStream) -> Vec<String> {
    let Resource::Endpoint(assignment) = one(stream, Endpoint).await else { panic!("endpoints") };
    let text = |endpoint: &model::Endpoint| match &endpoint.address {
        model::EndpointAddress::Socket(address) => address.to_string(),
        model::EndpointAddress::Pipe(path) => path.clone(),
    };
    assert!(assignment.endpoints().all(|endpoint| {
        endpoint.identity.as_ref().unwrap().as_str() == "spiffe://cluster.local/ns/shop/sa/cart"
    }));
    assignment.endpoints().map(text).collect()
}

#[tokio::test]
async fn a_client_finds_a_service_by_all_its_names_and_follows_its_endpoints() {
    let program = Program::start(&[("cart.yaml", SERVICE), ("one.yaml", &workload("one", "10.1.0.1"))]).await;
    let mut web = program.delta("shop", "web").await;
    web.subscribe(Listener, &["cart:80", "cart.shop:80", "10.9.0.1:80", CART, "nobody:80"]).await;
    let (response, names, removed) = web.next_names().await;
    assert_eq!(names, [format!("{CART} [\"10.9.0.1:80\", \"cart.shop:80\", \"cart:80\"]")]);
    assert_eq!(removed, ["nobody:80"]);
    let any = response.resources[0].resource.as_ref().unwrap();
    let Resource::Listener(listener) = Resource::decode(&any.type_url, &any.value).unwrap() else { panic!() };
    assert_eq!(routes_of(&listener), CLUSTER);
    web.subscribe(Route, &[CLUSTER]).await;
    one(&mut web, Route).await;
    web.subscribe(Cluster, &[CLUSTER]).await;
    one(&mut web, Cluster).await;
    web.subscribe(Endpoint, &[CLUSTER]).await;
    assert_eq!(addresses(&mut web).await, ["10.1.0.1:8080"]);

    program.write("two.yaml", &workload("two", "10.1.0.2"));
    assert_eq!(addresses(&mut web).await, ["10.1.0.1:8080", "10.1.0.2:8080"]);
    program.remove("one.yaml");
    assert_eq!(addresses(&mut web).await, ["10.1.0.2:8080"]);
    web.silent().await; // Nothing else changed.

    program.write("nobody.yaml", &SERVICE.replace("cart", "nobody").replace("10.9.0.1", "10.9.0.2"));
    assert_eq!(web.next_names().await.1, ["nobody.shop.svc.cluster.local:80 [\"nobody:80\"]"]);
    // An address that moves to another Service means that one.
    program.write("cart.yaml", &SERVICE.replace("10.9.0.1", "10.9.0.3"));
    web.drain().await;
    web.subscribe(Listener, &["10.9.0.1:80", "10.9.0.3:80"]).await;
    let (_, names, removed) = web.next_names().await;
    assert_eq!(names.len(), 1);
    assert!(names[0].contains("10.9.0.3:80"), "{names:?}");
    assert_eq!(removed, ["10.9.0.1:80"]);
    program.end().await;
}

#[tokio::test]
async fn an_inbound_listener_follows_who_runs_there() {
    let program = Program::start(&[("cart.yaml", SERVICE), ("one.yaml", &workload("one", "10.1.0.1"))]).await;
    let name = "tulle/inbound/10.1.0.1:8080";
    let mut cart = program.delta("shop", "cart").await;
    cart.subscribe(Listener, &[name]).await;
    assert_eq!(listener(&mut cart).await.direction, model::TrafficDirection::Inbound);
    let mut web = program.delta("shop", "web").await;
    web.subscribe(Listener, &[name]).await;
    assert_eq!(web.next_names().await.2, [name], "as if it did not exist");
    let captured = "tulle/inbound/10.1.0.1";
    let mut capturing = program.delta("shop", "cart").await;
    capturing.subscribe(Listener, &[captured]).await;
    assert_eq!(listener(&mut capturing).await.name, captured);
    web.subscribe(Listener, &[captured]).await;
    assert_eq!(web.next_names().await.2, [captured]);
    let mut all_of_cart = program.delta("shop", "cart").await;
    all_of_cart.subscribe(Listener, &["*"]).await;
    let (_, all, _) = all_of_cart.next_names().await;
    assert!(all.contains(&name.to_owned()) && !all.contains(&captured.to_owned()), "{all:?}");
    let mut envoy = program.delta("shop", "web").await;
    envoy.subscribe(Listener, &["*"]).await;
    let (_, all, _) = envoy.next_names().await;
    assert!(all.contains(&CART.to_owned()) && !all.contains(&name.to_owned()), "{all:?}");

    let moved = workload("one", "10.1.0.1").replace("serviceAccount: cart", "serviceAccount: web");
    program.write("one.yaml", &moved);
    assert_eq!(cart.next_names().await.2, [name]);
    assert_eq!(capturing.next_names().await.2, [captured]);
    assert_eq!(web.next_names().await.1, [captured, name]);
    program.end().await;
}

#[tokio::test]
async fn a_consumer_route_is_for_its_own_namespace() {
    let program = Program::start(&[("cart.yaml", SERVICE), ("one.yaml", &workload("one", "10.1.0.1"))]).await;
    let mut shop = program.delta("shop", "web").await;
    let mut other = program.delta("other", "web").await;
    for stream in [&mut shop, &mut other] {
        stream.subscribe(Listener, &["cart.shop:80"]).await;
        assert_eq!(routes_of(&listener(stream).await), CLUSTER);
    }
    program.write("route.yaml", &route("other", "mine", "cart"));
    let changed = listener(&mut other).await;
    assert_eq!(changed.name, CART);
    let own = routes_of(&changed).to_owned();
    assert_ne!(own, CLUSTER);
    other.subscribe(Route, &[&own]).await;
    one(&mut other, Route).await;
    shop.silent().await;
    program.remove("route.yaml");
    let (back, gone) = (other.next().await, other.next().await);
    assert_eq!((back.type_url.as_str(), back.resources.len()), (Listener.type_url(), 1));
    assert_eq!((gone.type_url.as_str(), gone.removed_resources), (Route.type_url(), vec![own]));
    program.end().await;
}

#[tokio::test]
async fn a_bad_object_is_reported_and_takes_nothing_down() {
    let cart = [("cart.yaml", SERVICE), ("one.yaml", &workload("one", "10.1.0.1"))];
    let missing = route("shop", "missing", "nothing");
    let program = Program::start(&[cart[0], cart[1], ("missing.yaml", &missing)]).await;
    let objects = program.objects().await.objects;
    let route = objects.iter().find(|object| object.kind == "HTTPRoute").unwrap();
    let resolved =
        route.parents[0].conditions.iter().find(|condition| condition.kind == "ResolvedRefs").unwrap();
    assert!(!resolved.status && resolved.reason == "BackendNotFound", "{resolved:?}");
    assert_eq!(route.parents[0].parent, "Service shop/cart");
    let problem = &route.problems[0];
    assert!(problem.reason.contains("nothing") && problem.file.as_ref().unwrap().ends_with("missing.yaml"));
    assert!(problem.line.unwrap() > 1, "{problem:?}");

    let mut web = program.delta("shop", "web").await;
    web.subscribe(Endpoint, &[CLUSTER]).await;
    assert_eq!(addresses(&mut web).await, ["10.1.0.1:8080"]);
    program.write("one.yaml", "kind: Workload\n  metadata: [broken");
    let broken = program
        .until(|objects| {
            objects
                .problems
                .iter()
                .find(|p| p.file.as_ref().is_some_and(|f| f.ends_with("one.yaml")))
                .cloned()
        })
        .await;
    assert!(broken.severity == "error" && broken.line.is_some(), "{broken:?}");
    program.write("two.yaml", &workload("two", "10.1.0.2"));
    assert_eq!(addresses(&mut web).await, ["10.1.0.1:8080", "10.1.0.2:8080"], "the last good version stays");
    let text = program.get("/metrics").await.1;
    assert!(text.contains("tulle_control_plane_problems 2"), "{text}");
    program.write("one.yaml", &workload("one", "10.1.0.9"));
    let mut healed = addresses(&mut web).await;
    healed.sort();
    assert_eq!(healed, ["10.1.0.2:8080", "10.1.0.9:8080"]);
    program.until(|objects| objects.problems.is_empty().then_some(())).await;
    program.end().await;
}

#[tokio::test]
async fn a_route_is_programmed_once_every_sidecar_has_acknowledged_it() {
    let mine = route("shop", "mine", "cart");
    let program = Program::start(&[("cart.yaml", SERVICE), ("route.yaml", &mine)]).await;
    let programmed = async |reason: &str| {
        program
            .until(|objects| {
                let route = objects.objects.iter().find(|object| object.kind == "HTTPRoute")?;
                let mut conditions = route.parents.first()?.conditions.iter();
                let found = conditions.find(|condition| condition.kind == "tulle.dev/Programmed")?;
                (found.reason == reason).then(|| (found.status, found.message.clone()))
            })
            .await
    };
    assert!(programmed("Programmed").await.0, "nobody has to acknowledge it");
    let mut web = program.delta("shop", "web").await;
    web.subscribe(Listener, &[CART]).await;
    let sent = web.next().await;
    let (status, message) = programmed("Reconciling").await;
    assert!(!status && message == "1 connected sidecar has not acknowledged it yet", "{message}");
    web.ack(&sent).await;
    assert!(programmed("Programmed").await.0);

    web.subscribe(Route, &[CLUSTER]).await;
    let sent = web.next().await;
    web.nack(&sent, &format!("{CLUSTER}: routes[0] is too long")).await;
    let (status, message) = programmed("PartiallyProgrammed").await;
    assert!(!status && message.ends_with(": routes[0] is too long"), "{message}");

    // What is rejected once may be good in its next version.
    program.write("route.yaml", &mine.replace("rules: [{", "rules: [{name: better, "));
    let sent = web.next().await;
    web.ack(&sent).await;
    assert!(programmed("Programmed").await.0);
    program.end().await;
}

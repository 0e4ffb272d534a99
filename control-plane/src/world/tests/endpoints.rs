use tulle_mesh::model::{Discovery, Endpoint, EndpointAddress, Health, UpstreamProtocol};

use super::support::{problems, service, workload, world};
use crate::world::World;

fn endpoints(world: &World, cluster: &str) -> Vec<Endpoint> {
    world.assignment(cluster).unwrap_or_else(|| panic!("{cluster} is unknown")).endpoints().cloned().collect()
}

fn text(endpoint: &Endpoint) -> String {
    let EndpointAddress::Socket(address) = endpoint.address else { panic!("not a socket") };
    let identity = endpoint.identity.as_ref().map(|id| id.path().to_owned()).unwrap_or_default();
    let meshed = if endpoint.meshed { "meshed" } else { "plain" };
    format!("{address} {meshed} {identity} {}", endpoint.workload)
}

fn pod(name: &str, ip: &str, ready: &str, containers: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: cart}}}}\n\
         spec: {{serviceAccountName: cart, containers: [{containers}]}}\n\
         status: {{phase: Running, podIP: {ip}, conditions: [{{type: Ready, status: '{ready}'}}]}}\n"
    )
}

const APP: &str = "{name: app, image: x, ports: [{name: web, containerPort: 8080}]}";
const SIDECAR: &str = "{name: tulle-sidecar, image: x, ports: [{containerPort: 15006}]}";

#[test]
fn without_slices_ready_pods_and_workloads_of_the_selector_are_taken() {
    let world = world(&format!(
        "{}{}{}{}{}{}",
        service("shop", "cart", "ports: [{name: http, port: 80, targetPort: web}]"),
        pod("meshed", "10.0.0.1", "True", &format!("{APP}, {SIDECAR}")),
        pod("plain", "10.0.0.2", "True", APP),
        pod("starting", "10.0.0.3", "False", APP),
        workload("shop", "vm", "cart", "192.0.2.1", 8080, 25001).replace("name: http", "name: web"),
        workload("other", "vm", "cart", "192.0.2.2", 8080, 25001).replace("name: http", "name: web"),
    ));
    assert_eq!(problems(&world), Vec::<String>::new());
    let found = endpoints(&world, "outbound|80||cart.shop.svc.cluster.local");
    assert_eq!(
        found.iter().map(text).collect::<Vec<_>>(),
        [
            "10.0.0.1:8080 meshed /ns/shop/sa/cart shop/meshed",
            "10.0.0.2:8080 plain  shop/plain",
            "192.0.2.1:25001 meshed /ns/shop/sa/cart shop/vm",
        ]
    );
}

#[test]
fn slices_decide_about_pods_and_carry_zones_and_health() {
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
        metadata: {name: cart-1, namespace: shop, labels: {kubernetes.io/service-name: cart}}\n\
        addressType: IPv4\nports: [{name: http, port: 8080, protocol: TCP}]\nendpoints:\n\
        - {addresses: [10.0.0.1], conditions: {ready: true}, zone: a}\n\
        - {addresses: [10.0.0.4], conditions: {ready: false, serving: true, terminating: true}, zone: b}\n\
        - {addresses: [10.0.0.5], conditions: {ready: false}}\n";
    let world = world(&format!(
        "{}{}{}{}{slice}",
        service("shop", "cart", "ports: [{name: http, port: 80, targetPort: web}]"),
        pod("meshed", "10.0.0.1", "True", &format!("{APP}, {SIDECAR}")),
        pod("unlisted", "10.0.0.2", "True", APP),
        workload("shop", "vm", "cart", "192.0.2.1", 8080, 25001).replace("name: http", "name: web"),
    ));
    let assignment = world.assignment("outbound|80||cart.shop.svc.cluster.local").expect("made");
    let seen: Vec<_> = assignment
        .localities
        .iter()
        .flat_map(|place| {
            place.endpoints.iter().map(|at| (place.locality.zone.as_str(), text(at), at.health))
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("", "192.0.2.1:25001 meshed /ns/shop/sa/cart shop/vm".into(), Health::Healthy),
            ("a", "10.0.0.1:8080 meshed /ns/shop/sa/cart shop/meshed".into(), Health::Healthy),
            ("b", "10.0.0.4:8080 plain  ".into(), Health::Draining),
        ]
    );
}

#[test]
fn a_port_without_mtls_is_plaintext_for_its_clients_too() {
    let policy = "---\napiVersion: tulle.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: p, namespace: shop}\n\
        spec: {targetRefs: [{kind: Service, name: cart}], ports: [{port: 9090, mtls: {mode: Disabled}}]}\n";
    let two = workload("shop", "vm", "cart", "192.0.2.1", 8080, 25001)
        .replace("meshPort: 25001}]", "meshPort: 25001}, {name: metrics, port: 9090, meshPort: 25002}]");
    let world = world(&format!(
        "{}{two}{policy}",
        service(
            "shop",
            "cart",
            "ports: [{name: http, port: 80, targetPort: http}, {name: http-metrics, port: 90, targetPort: metrics}]"
        ),
    ));
    let of = |port| {
        endpoints(&world, &format!("outbound|{port}||cart.shop.svc.cluster.local"))
            .iter()
            .map(text)
            .collect::<Vec<_>>()
    };
    assert_eq!(of(80), ["192.0.2.1:25001 meshed /ns/shop/sa/cart shop/vm"]);
    assert_eq!(of(90), ["192.0.2.1:25002 plain  shop/vm"]);
}

#[test]
fn an_external_name_is_looked_up_and_gets_plaintext() {
    let world = world(
        "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\n\
         spec: {type: ExternalName, externalName: db.example.com., ports: [{name: tcp, port: 5432}]}\n",
    );
    let cluster = world.cluster("outbound|5432||db.shop.svc.cluster.local").expect("made");
    let Discovery::StrictDns(hosts, _) = &cluster.discovery else { panic!("{:?}", cluster.discovery) };
    assert_eq!((hosts[0].host.as_str(), hosts[0].port), ("db.example.com", 5432));
    assert_eq!(cluster.tls, None);
    assert!(world.assignment(&cluster.name).is_none());
}

#[test]
fn a_workload_can_be_dialled_directly_with_its_identity_pinned() {
    let world = world(&format!(
        "{}{}",
        service("shop", "cart", "ports: [{name: grpc, port: 80, targetPort: http}]"),
        workload("shop", "vm", "cart", "192.0.2.1", 8080, 25001),
    ));
    let found = endpoints(&world, "outbound|25001||192.0.2.1");
    assert_eq!(
        found.iter().map(text).collect::<Vec<_>>(),
        ["192.0.2.1:25001 meshed /ns/shop/sa/cart shop/vm"]
    );
    let cluster = world.cluster("outbound|25001||192.0.2.1").expect("made");
    assert_eq!(cluster.protocol, UpstreamProtocol::Http2);
    assert_eq!(cluster.tls.as_ref().map(|tls| tls.sni.as_str()), Some("outbound_.25001_._.192-0-2-1.ip"));
    let key = world.resolve("192.0.2.1:25001", "").expect("known");
    assert_eq!(world.listener(&key).expect("made").name, "192.0.2.1:25001");
}

#[test]
fn an_endpoint_with_a_host_name_has_a_name_of_its_own() {
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
        metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: cart}}\n\
        addressType: IPv4\nports: [{name: tcp, port: 8080}]\nendpoints: [{addresses: [10.0.0.1], hostname: cart-0}]\n";
    let world = world(&format!(
        "{}{}{slice}",
        service("shop", "cart", "clusterIP: None, ports: [{name: tcp, port: 80, targetPort: 8080}]"),
        pod("cart-0", "10.0.0.1", "True", &format!("{APP}, {SIDECAR}")),
    ));
    let key = world.resolve("cart-0.cart.shop.svc.cluster.local:8080", "").expect("known");
    assert_eq!(&*key, "10.0.0.1:8080");
}

#[test]
fn a_service_without_a_selector_stands_before_the_pods_of_its_slices() {
    let manual = "---\napiVersion: v1\nkind: Service\nmetadata: {name: manual, namespace: shop}\n\
        spec: {ports: [{name: tcp, port: 90, targetPort: 8080}]}\n\
        ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
        metadata: {name: manual-1, namespace: shop, labels: {kubernetes.io/service-name: manual}}\n\
        addressType: IPv4\nports: [{name: tcp, port: 8080}]\nendpoints: [{addresses: [10.0.0.1]}]\n";
    let world =
        world(&format!("{}{manual}", pod("meshed", "10.0.0.1", "True", &format!("{APP}, {SIDECAR}"))));
    let found = endpoints(&world, "outbound|90||manual.shop.svc.cluster.local");
    assert_eq!(
        found.iter().map(text).collect::<Vec<_>>(),
        ["10.0.0.1:8080 meshed /ns/shop/sa/cart shop/meshed"]
    );
    let inbound = world.listener("tulle/inbound/10.0.0.1:8080").expect("made");
    let names = &inbound.chains[0].matches.server_names;
    assert!(names.contains(&"outbound_.90_._.manual.shop.svc.cluster.local".to_owned()), "{names:?}");
}

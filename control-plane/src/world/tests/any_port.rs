//! Ports of a workload's address that no manifest names: one listener and one cluster for all of them.

use tulle_mesh::model::{Cluster, Discovery, EndpointAddress, Protocol, TrafficDirection};

use super::policies::policy;
use super::support::{listener, load, problems, service, settings, workload, world};
use crate::world::World;

const DIALLED: &str = "10.0.0.1:2525";
const SHOP: &str = "targetRefs: [{kind: Namespace, name: shop}]";

#[test]
fn each_port_of_a_workload_s_address_is_the_workload_s_over_mtls() {
    let world = shop(8080, "");
    for name in [DIALLED, "10.0.0.1:1", "10.0.0.1:65535"] {
        let any = listener(&world, name, "elsewhere");
        assert_eq!((any.name.as_str(), any.direction), ("10.0.0.1:0", TrafficDirection::Outbound), "{name}");
        assert_eq!(any.address, None, "it is no place to listen on");
        let carried: Vec<_> =
            any.chains.iter().map(|chain| matches!(chain.protocol, Protocol::Http(_))).collect();
        assert_eq!(carried, [true, false, false], "the first bytes decide");
    }
    let cluster = any_port(&world);
    assert_eq!(cluster.discovery, Discovery::OriginalDestination);
    let tls = cluster.tls.as_ref().expect("mTLS");
    assert!(!tls.only_meshed_endpoints, "never in plaintext");
    // What the workload's sidecar takes for mesh TLS on these ports.
    assert_eq!(tls.sni, "outbound_.0_._.10-0-0-1.ip");
    let [pinned] = &tls.subject_alt_names[..] else { panic!("one may answer: {tls:?}") };
    assert!(pinned.matches("spiffe://mesh.test/ns/shop/sa/cart"));
    assert!(!pinned.matches("spiffe://mesh.test/ns/shop/sa/cart2"));
    // What is declared is as it was.
    assert_eq!(world.resolve("10.0.0.1:8080", "").as_deref(), Some("10.0.0.1:8080"));
    assert_eq!(world.resolve("10.0.0.2:2525", ""), None, "nobody is known there");
}

#[test]
fn where_nothing_is_redirected_only_declared_ports_are_the_workload_s() {
    for (why, manifests) in [
        (
            "the sidecar serves on a port of its own",
            workload("shop", "cart-1", "cart", "10.0.0.1", 8080, 25001),
        ),
        (
            "loopback",
            workload("shop", "cart-1", "cart", "127.0.0.1", 8080, 8080).replace("10.0.0.1", "127.0.0.1"),
        ),
        (
            "two workloads share the address",
            workload("shop", "cart-1", "cart", "10.0.0.1", 8080, 8080)
                + &workload("shop", "web-1", "web", "10.0.0.1", 8081, 8081),
        ),
        (
            "no sidecar",
            workload("shop", "cart-1", "cart", "10.0.0.1", 8080, 8080)
                .replace("ports:", "meshed: false, ports:"),
        ),
    ] {
        let world = world(&manifests);
        assert_eq!(problems(&world), Vec::<String>::new());
        assert_eq!(world.resolve(DIALLED, ""), None, "{why}");
        assert!(!world.listeners().keys().any(|key| key.ends_with(":0")), "{why}");
    }
}

#[test]
fn a_service_s_address_has_the_service_s_ports_alone() {
    let clash = service("shop", "cart", "clusterIP: 10.0.0.1, ports: [{port: 80, targetPort: http}]");
    let world = world(&(clash + &workload("shop", "cart-1", "cart", "10.0.0.1", 8080, 8080)));
    assert_eq!(world.resolve(DIALLED, ""), None);
    assert_eq!(world.resolve("10.0.0.1:80", "").as_deref(), Some("cart.shop.svc.cluster.local:80"));
}

#[test]
fn ports_that_redirection_leaves_alone_are_reached_as_they_are() {
    let manifests = workload("shop", "cart-1", "cart", "10.0.0.1", 8080, 8080);
    let world = world(&manifests.replace("ports:", "skipInboundPorts: [22, 8080], ports:"));
    assert_eq!(problems(&world), Vec::<String>::new());
    // The sidecar's own are among them.
    for port in [22, 15000, 15001, 15006, 15020] {
        assert_eq!(world.resolve(&format!("10.0.0.1:{port}"), ""), None, "{port}");
    }
    assert_eq!(world.resolve("10.0.0.1:23", "").as_deref(), Some("10.0.0.1:0"));
    // One that is declared is known, and nothing more.
    let assignment = world.assignment("outbound|8080||10.0.0.1").expect("made");
    let endpoint = assignment.endpoints().next().expect("one");
    assert_eq!(endpoint.address, EndpointAddress::Socket("10.0.0.1:8080".parse().expect("valid")));
    assert_eq!((endpoint.meshed, &endpoint.identity), (false, &None));
}

#[test]
fn a_pod_s_annotation_names_the_ports_that_redirection_leaves_alone() {
    let world = world(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: cart-1\n  namespace: shop\n  labels: {tulle.dev/tls: mesh}\n  annotations:\n    \
         tulle.dev/skip-inbound-ports: '22, 9000-9010'\n\
         spec: {serviceAccountName: cart, containers: [{name: cart, image: cart}]}\n\
         status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}\n",
    );
    for (name, known) in [
        ("10.0.0.1:22", None),
        ("10.0.0.1:9000", None),
        ("[fd00::1]:9010", None),
        ("10.0.0.1:9011", Some("10.0.0.1:0")),
        ("[fd00::1]:23", Some("[fd00::1]:0")),
    ] {
        assert_eq!(world.resolve(name, "").as_deref(), known, "{name}");
    }
}

#[test]
fn peers_speak_as_the_workload_s_policy_asks_on_ports_that_nobody_declares() {
    let disabled = policy("InboundPolicy", "p", &format!("{SHOP}, mtls: {{mode: Disabled}}"));
    assert_eq!(shop(8080, &disabled).resolve(DIALLED, ""), None);
    // A port that a policy names is known by it.
    let named = format!(
        "{SHOP}, ports: [{{port: 2525, protocol: TCP}}, {{port: 2526, mtls: {{mode: Disabled}}, protocol: TCP}}]"
    );
    let world = shop(8080, &policy("InboundPolicy", "p", &named));
    for (name, meshed) in [("10.0.0.1:2525", true), ("10.0.0.1:2526", false)] {
        let own = listener(&world, name, "");
        assert_eq!((own.name.as_str(), own.chains.len()), (name, 1), "bytes, whatever they are");
        let cluster = format!("outbound|{}||10.0.0.1", &name["10.0.0.1:".len()..]);
        let assignment = world.assignment(&cluster).expect("made");
        assert_eq!(assignment.endpoints().next().map(|endpoint| endpoint.meshed), Some(meshed), "{name}");
    }
    assert_eq!(world.resolve("10.0.0.1:2527", "").as_deref(), Some("10.0.0.1:0"));
}

#[test]
fn an_address_that_another_workload_takes_over_is_pinned_to_that_one() {
    let before = workload("shop", "cart-1", "cart", "10.0.0.1", 8080, 8080);
    let mut world = World::build(&load(&before).objects, &settings());
    let after = workload("shop", "web-1", "web", "10.0.0.1", 8080, 8080);
    let changes = world.update(&load(&after).objects, &settings());
    assert!(changes.clusters.updated.contains("outbound|0||10.0.0.1"));
    let tls = any_port(&world).tls.clone().expect("mTLS");
    assert!(tls.subject_alt_names[0].matches("spiffe://mesh.test/ns/shop/sa/web"));
    // A port that becomes known gets its own listener, and whoever dialled it before hears of that.
    let skipping = after.replace("ports:", "skipInboundPorts: [2525], ports:");
    assert!(world.update(&load(&skipping).objects, &settings()).names, "a name means another than before");
    assert_eq!(world.resolve(DIALLED, ""), None);
}

/// Service `cart`, one workload behind it at an address of its own, and policies.
fn shop(port: u16, policies: &str) -> World {
    world(&format!(
        "{}{}{policies}",
        service("shop", "cart", "ports: [{name: http, port: 80, targetPort: http}]"),
        workload("shop", "cart-1", "cart", "10.0.0.1", port, port),
    ))
}

fn any_port(world: &World) -> &Cluster {
    world.cluster("outbound|0||10.0.0.1").expect("made")
}

use std::net::SocketAddr;

use tulle_mesh::address::{captured_listener, parse_captured_listener};
use tulle_mesh::model::{Action, Authorization, ChainMatch, DnsRecords, FilterChain, Protocol};

use super::policies::policy;
use super::support::{problems, service, workload, world};
use crate::world::World;

const CAPTURED: &str = "tulle/inbound/10.0.0.1";
const SHOP: &str = "targetRefs: [{kind: Namespace, name: shop}]";

#[test]
fn each_known_port_has_the_chains_of_its_own_listener_and_the_others_are_detected() {
    let world = shop(&[]);
    let captured = world.listener(CAPTURED).expect("made");
    assert_eq!(captured.address, None);
    assert_eq!(
        names(&world),
        "8080-mtls-http 8080-plaintext-http mtls-http mtls-tcp plaintext-http plaintext-tcp own-tls"
    );
    let own = &world.listener("tulle/inbound/10.0.0.1:8080").expect("made").chains;
    let of_port = captured.chains.iter().filter(|chain| chain.matches.destination_port == Some(8080));
    for (chain, own) in of_port.zip(own) {
        let matches = ChainMatch { destination_port: None, ..chain.matches.clone() };
        let name = chain.name.trim_start_matches("8080-").to_owned();
        assert_eq!(&FilterChain { name, matches, ..chain.clone() }, own);
    }
    let bytes = captured.chains.iter().find(|chain| chain.name == "plaintext-tcp").expect("it is there");
    let Protocol::Tcp(proxy) = &bytes.protocol else { panic!("bytes") };
    assert_eq!(proxy.backends, [("inbound|0||".to_owned(), 1)]);
    let mesh = captured.chains.iter().find(|chain| chain.name == "mtls-tcp").expect("it is there");
    assert_eq!(mesh.matches.server_names, ["*._.10-0-0-1.ip"]);
}

#[test]
fn the_workload_s_mode_holds_for_ports_that_nobody_declares() {
    let strict = policy("InboundPolicy", "p", &format!("{SHOP}, mtls: {{mode: Strict}}"));
    assert_eq!(names(&shop(&[strict])), "8080-mtls-http mtls-http mtls-tcp");
    let disabled = policy("InboundPolicy", "p", &format!("{SHOP}, mtls: {{mode: Disabled}}"));
    assert_eq!(names(&shop(&[disabled])), "8080-plaintext-http plaintext-http plaintext-tcp own-tls");
    let exception = format!(
        "{SHOP}, mtls: {{mode: Strict}}, ports: [{{port: 9999, mtls: {{mode: Permissive}}, protocol: TCP}}]"
    );
    assert_eq!(
        names(&shop(&[policy("InboundPolicy", "p", &exception)])),
        "8080-mtls-http 9999-mtls-tcp 9999-plaintext-tcp mtls-http mtls-tcp"
    );
}

#[test]
fn a_rule_for_a_port_that_nobody_declares_holds_there_and_nowhere_else() {
    let deny = "targetRefs: [{group: core, kind: Namespace, name: shop}], enforcementLevel: Network, action: DENY, \
                rules: [{networkAttributes: {ports: [9999]}}]";
    let world = shop(&[policy("AuthorizationPolicy", "deny", deny)]);
    let captured = world.listener(CAPTURED).expect("made");
    for chain in &captured.chains {
        let denies = |set: &Authorization| set.action == Action::Deny && !set.policies.is_empty();
        let denied = chain.authorization.iter().any(denies);
        assert_eq!(denied, chain.matches.destination_port == Some(9999), "{}", chain.name);
    }
    assert!(names(&world).contains("9999-plaintext-tcp"), "{}", names(&world));
}

#[test]
fn shared_addresses_and_loopback_have_no_listener_for_all_ports() {
    let world = world(&format!(
        "{}{}{}{}",
        workload("shop", "a", "cart", "10.0.0.1", 8080, 25001),
        workload("shop", "b", "web", "10.0.0.1", 8080, 25002),
        workload("shop", "c", "cart", "127.0.0.1", 8080, 25001),
        workload("shop", "d", "cart", "10.0.0.2", 8080, 8080),
    ));
    let all = world.listeners().keys().filter_map(|key| parse_captured_listener(key));
    assert_eq!(all.map(|ip| ip.to_string()).collect::<Vec<_>>(), ["10.0.0.2"]);
    let cart = "spiffe://mesh.test/ns/shop/sa/cart".parse().expect("valid");
    assert!(world.inbound_of(&cart).any(|key| **key == *"tulle/inbound/10.0.0.2"), "only its own may see it");
}

/// Service `cart`, one workload behind it at an address of its own, and policies.
fn shop(policies: &[String]) -> World {
    world(&format!(
        "{}{}{}",
        service("shop", "cart", "ports: [{name: http, port: 80, targetPort: http}]"),
        workload("shop", "cart-1", "cart", "10.0.0.1", 8080, 8080),
        policies.concat()
    ))
}

fn names(world: &World) -> String {
    let chains = &world.listener(CAPTURED).expect("made").chains;
    chains.iter().map(|chain| chain.name.as_str()).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_workload_is_reached_at_each_of_its_addresses() {
    let workload = workload("shop", "db-0", "db", "10.1.0.1", 5432, 5432)
        .replace("address: 10.1.0.1", "address: 10.1.0.1, addresses: ['fd00::1', 10.1.0.1]");
    let world = world(&format!(
        "{workload}{}{}",
        service("shop", "db", "clusterIP: 10.96.0.1, ports: [{port: 80, targetPort: http}]"),
        service("shop", "all", "clusterIP: None, ports: [{port: 80}]").replace("app: all", "app: db"),
    ));
    assert_eq!(problems(&world), Vec::<String>::new());
    let assignment = world.assignment("outbound|80||db.shop.svc.cluster.local").expect("made");
    assert_eq!(assignment.endpoints().count(), 1, "a workload gets one share, however many addresses it has");
    let all = world.dns().get("all.shop.svc.cluster.local").expect("made");
    let both = ["10.1.0.1", "fd00::1"].map(|ip| ip.parse().expect("an address"));
    assert_eq!(all.records, DnsRecords::Addresses(both.to_vec()));
    for ip in both {
        assert!(world.listener(&captured_listener(ip)).is_some(), "{ip}");
        let direct = SocketAddr::new(ip, 5432).to_string();
        let key = world.resolve(&direct, "").expect("an address means itself");
        assert!(world.listener(&key).is_some(), "{direct}");
    }
}

use std::net::IpAddr;

use tulle_mesh::model::{DnsName, DnsRecords};

use super::support::{assert_survives_the_wire, load, problems, service, settings, workload, world};
use crate::world::{MeshSettings, VirtualAddresses, World};

#[test]
fn a_service_resolves_by_each_of_its_names() {
    let world = world(&format!(
        "{}{}{}",
        service("shop", "cart", "clusterIPs: [10.96.0.1, 'fd00::1'], ports: [{port: 80, name: http}]"),
        service("books", "cart", "clusterIP: 10.96.0.2, ports: [{port: 80}]"),
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: bank, namespace: shop}\n\
         spec: {type: ExternalName, externalName: Bank.Example.}\n",
    ));
    assert_eq!(problems(&world), Vec::<String>::new());
    for (name, namespace, expected) in [
        ("cart.shop.svc.cluster.local", "", Some("10.96.0.1 fd00::1")),
        ("Cart.Shop.svc.", "", Some("10.96.0.1 fd00::1")),
        ("cart.shop", "books", Some("10.96.0.1 fd00::1")),
        ("cart", "shop", Some("10.96.0.1 fd00::1")),
        ("cart", "books", Some("10.96.0.2")),
        ("cart", "elsewhere", None),
        ("bank.shop", "", Some("-> bank.example")),
        ("_http._tcp.cart.shop", "", Some("0 1 80 cart.shop.svc.cluster.local")),
        ("_http._tcp.cart", "shop", Some("0 1 80 cart.shop.svc.cluster.local")),
        ("_http._tcp.cart.shop.svc.cluster.local", "", Some("0 1 80 cart.shop.svc.cluster.local")),
        ("_https._tcp.cart.shop", "", None),
        ("_http._udp.cart.shop", "", None),
        ("cart.shop.shop.svc.cluster.local", "shop", None),
        ("example.com", "shop", None),
        ("", "shop", None),
        ("_", "shop", None),
    ] {
        assert_eq!(answer(&world, name, namespace).as_deref(), expected, "{name} in {namespace:?}");
    }
    for key in world.dns().keys() {
        assert_eq!(world.resolve_dns(key, "").as_ref(), Some(key), "a name means itself");
    }
}

#[test]
fn a_headless_service_resolves_to_its_endpoints_and_each_has_a_name() {
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {name: q-1, namespace: shop, labels: {kubernetes.io/service-name: queue}}\n\
         addressType: IPv4\nports: [{name: amqp, port: 5672}]\nendpoints:\n\
         - {addresses: [10.0.0.1], hostname: queue-0}\n- {addresses: [10.0.0.2], conditions: {ready: true}}\n\
         - {addresses: [10.0.0.3], conditions: {ready: false}}\n";
    let world = world(&format!(
        "{}{slice}{}{}{}",
        service("shop", "queue", "clusterIP: None, ports: [{port: 5672, name: amqp}]"),
        service("shop", "db", "clusterIP: None, ports: [{port: 5432, name: pg, targetPort: http}]"),
        workload("shop", "db-0", "db", "10.1.0.1", 5432, 5432),
        service("shop", "empty", "clusterIP: None, ports: [{port: 1, name: x}]"),
    ));
    for (name, expected) in [
        ("queue.shop", Some("10.0.0.1 10.0.0.2")),
        ("queue-0.queue.shop.svc.cluster.local", Some("10.0.0.1")),
        ("10-0-0-2.queue.shop.svc.cluster.local", Some("10.0.0.2")),
        ("10-0-0-3.queue.shop.svc.cluster.local", None),
        (
            "_amqp._tcp.queue.shop",
            Some(
                "0 1 5672 queue-0.queue.shop.svc.cluster.local, 0 1 5672 10-0-0-2.queue.shop.svc.cluster.local",
            ),
        ),
        ("db.shop", Some("10.1.0.1")),
        ("db-0.db.shop.svc.cluster.local", Some("10.1.0.1")),
        ("_pg._tcp.db.shop", Some("0 1 5432 db-0.db.shop.svc.cluster.local")),
        ("empty.shop", None),
        ("_x._tcp.empty.shop", None),
    ] {
        assert_eq!(answer(&world, name, "shop").as_deref(), expected, "{name}");
    }
    // What a client then dials by that name is the endpoint.
    let dialled = world.resolve("db-0.db.shop.svc.cluster.local:5432", "shop");
    assert_eq!(dialled.as_deref(), Some("10.1.0.1:5432"));
}

#[test]
fn a_service_without_an_address_gets_virtual_ones_that_stay() {
    let settings = MeshSettings {
        virtual_ranges: ["240.240.0.0/16", "2001:2::/48"].map(|range| range.parse().expect("valid")).into(),
        ..settings()
    };
    let manifests = |names: &[&str]| {
        let all = names.iter().map(|name| service("shop", name, "ports: [{port: 80, name: http}]"));
        load(&format!(
            "{}{}",
            all.collect::<String>(),
            workload("shop", "cart-1", "cart", "10.0.0.1", 80, 81)
        ))
    };
    let mut world = World::default();
    world.update(&manifests(&["cart"]).objects, &settings);
    assert_survives_the_wire(&world);
    let cart = answer(&world, "cart", "shop").expect("it has addresses");
    let [v4, v6] = *cart.split(' ').collect::<Vec<_>>() else { panic!("{cart}") };
    assert!(v4.starts_with("240.240.") && v6.starts_with("2001:2::"), "{cart}");
    // They are its addresses for whoever dials them, too.
    for dialled in [format!("{v4}:80"), format!("[{v6}]:80")] {
        let key = world.resolve(&dialled, "").expect("an alias");
        assert_eq!(&*key, "cart.shop.svc.cluster.local:80");
        let listener = world.listener(&key).expect("resolved");
        assert_eq!(listener.address.map(|address| address.ip()), v4.parse::<IpAddr>().ok());
    }

    let before = world.virtual_addresses().clone();
    let changes = world.update(&manifests(&["cart", "stock", "web"]).objects, &settings);
    assert_eq!(answer(&world, "cart", "shop"), Some(cart.clone()));
    assert!(changes.names && changes.dns.updated.contains("web.shop.svc.cluster.local"));
    assert!(!changes.dns.updated.contains("cart.shop.svc.cluster.local"));

    // After a restart, with another Service that asks for the very address in its object.
    let claimed = service("shop", "thief", &format!("clusterIP: {v4}, ports: [{{port: 80}}]"));
    let both = load(&format!("{}{claimed}", service("shop", "cart", "ports: [{port: 80, name: http}]")));
    let mut restarted = World::with_virtual_addresses(before);
    restarted.update(&both.objects, &settings);
    assert_eq!(answer(&restarted, "cart", "shop"), Some(cart.clone()));
    assert_eq!(answer(&restarted, "thief", "shop"), None);
    let problems = problems(&restarted);
    assert!(problems.iter().any(|text| text.contains("shop/cart") && text.contains(v4)), "{problems:?}");

    // Where no range is given, none are.
    let none = World::build(&manifests(&["cart"]).objects, &super::support::settings());
    assert_eq!(answer(&none, "cart", "shop"), None);
    assert_eq!(none.virtual_addresses(), &VirtualAddresses::default());
}

#[test]
fn what_stands_for_a_name_outside_has_an_address_of_its_own_where_its_ports_are_told() {
    let settings = MeshSettings {
        virtual_ranges: ["240.240.0.0/16", "2001:2::/48"].map(|range| range.parse().expect("valid")).into(),
        ..settings()
    };
    let external = |name: &str, rest: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{type: ExternalName, {rest}}}\n"
        )
    };
    let manifests = [
        external("bank", "externalName: bank.example, ports: [{port: 443, name: https}]"),
        external("any", "externalName: any.example"),
        external("alias", "externalName: Cart.shop.svc.cluster.local., ports: [{port: 80}]"),
        service("shop", "cart", "ports: [{port: 80, name: http}]"),
    ];
    let all = load(&manifests.concat());
    let world = World::build(&all.objects, &settings);
    assert_eq!(problems(&world), Vec::<String>::new());
    let bank = answer(&world, "bank", "shop").expect("it has addresses");
    let [v4, v6] = *bank.split(' ').collect::<Vec<_>>() else { panic!("{bank}") };
    for dialled in [format!("{v4}:443"), format!("[{v6}]:443")] {
        let key = world.resolve(&dialled, "").expect("an alias");
        assert_eq!(&*key, "bank.shop.svc.cluster.local:443");
    }
    // All ports may be meant, and another Service has an address already.
    assert_eq!(answer(&world, "any", "shop").as_deref(), Some("-> any.example"));
    assert_eq!(answer(&world, "alias", "shop").as_deref(), Some("-> cart.shop.svc.cluster.local"));
    // Where addresses are a cluster's matter, it is a name as its DNS has it.
    let plain = World::build(&all.objects, &super::support::settings());
    assert_eq!(answer(&plain, "bank", "shop").as_deref(), Some("-> bank.example"));
}

fn answer(world: &World, name: &str, namespace: &str) -> Option<String> {
    let key = world.resolve_dns(name, namespace)?;
    let DnsName { records, .. } = &**world.dns().get(&key).expect("resolved");
    Some(match records {
        DnsRecords::Addresses(all) => join(all.iter().map(ToString::to_string), " "),
        DnsRecords::Alias(host) => format!("-> {host}"),
        DnsRecords::Services(all) => {
            join(all.iter().map(|to| format!("{} {} {} {}", to.priority, to.weight, to.port, to.host)), ", ")
        }
    })
}

fn join(all: impl Iterator<Item = String>, between: &str) -> String {
    all.collect::<Vec<_>>().join(between)
}

use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::config::route::v3::route::Action;

use super::{Shown, envoy, grpc, id, pinned, service, workload};
use crate::xds::Kind;

const CART: &str = "cart.shop.svc.cluster.local:80";
const CART_CLUSTER: &str = "outbound|80||cart.shop.svc.cluster.local";
const INBOUND: &str = "tulle/inbound/10.0.0.1:8080";

/// `cart` and a database, each with one workload; `cart` is at a virtual address of loopback.
fn shop() -> String {
    [
        service("cart", "127.240.0.1", "{name: http, port: 80, targetPort: http}"),
        service("db", "10.96.0.2", "{name: tcp, port: 5432, targetPort: tcp}"),
        workload("cart", "cart", "address: 10.0.0.1, ports: [{name: http, port: 8080}]"),
        workload("db", "db", "address: 10.0.0.2, ports: [{name: tcp, port: 5432}]"),
    ]
    .concat()
}

#[test]
fn a_grpc_client_gets_the_listener_of_any_name_of_a_port_that_carries_http() {
    let shown = Shown::new(&shop());
    for name in [CART, "cart.shop:80", "cart:80", "cart.shop.svc:80"] {
        let listener = shown.listener(name, &grpc("web")).unwrap_or_else(|| panic!("{name}"));
        assert!(listener.api_listener.is_some() && listener.filter_chains.is_empty(), "{name}");
    }
    for (name, why) in [
        ("db.shop:5432", "it carries bytes"),
        ("cart.shop:81", "there is no such port"),
        ("stock.shop:80", "there is no such Service"),
        ("127.240.0.1_80", "only Envoy binds it"),
    ] {
        assert!(shown.listener(name, &grpc("web")).is_none(), "{name}: {why}");
    }
}

#[test]
fn a_grpc_server_gets_the_mtls_of_its_own_port_alone() {
    let shown = Shown::new(&shop());
    let listener = shown.listener(INBOUND, &grpc("cart")).expect("its own");
    let [chain] = listener.filter_chains.as_slice() else { panic!("{:?}", listener.filter_chains) };
    assert!(chain.transport_socket.is_some(), "never plaintext, even where that is allowed");
    assert_eq!(chain.filter_chain_match, None);
    assert!(listener.listener_filters.is_empty(), "gRPC takes none");
    // At all addresses it is the one at its own.
    let any = shown.listener("tulle/inbound/0.0.0.0:8080", &grpc("cart")).expect("its own");
    assert_eq!(any.filter_chains, listener.filter_chains);
    for (name, account) in [
        (INBOUND, "web"),
        ("tulle/inbound/0.0.0.0:8080", "web"),
        ("tulle/inbound/0.0.0.0:8081", "cart"),
        ("tulle/inbound/10.0.0.2:5432", "db"),
    ] {
        assert!(shown.listener(name, &grpc(account)).is_none(), "{name} for {account}");
    }
}

#[test]
fn a_port_at_all_addresses_is_nobody_s_while_two_would_be_treated_differently() {
    let other = workload("cart-2", "cart", "address: 10.0.0.3, ports: [{name: http, port: 8080}]");
    let both = shop() + &other;
    let shown = Shown::new(&both);
    let everywhere = "tulle/inbound/[::]:8080";
    assert!(shown.listener(everywhere, &grpc("cart")).is_some(), "both are alike");
    // A limit for what stands behind the Service holds for one of them alone.
    let limit = "---\napiVersion: tulle.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: few, namespace: shop}\n\
                 spec: {targetRefs: [{kind: Service, name: cart}], concurrencyLimit: {min: 1, max: 2}}\n";
    shown.update(&(both + limit));
    assert!(shown.listener(everywhere, &grpc("cart")).is_none());
    assert!(shown.listener(INBOUND, &grpc("cart")).is_some());
}

#[test]
fn a_cluster_names_the_identities_of_its_endpoints_and_changes_with_them() {
    let shown = Shown::new(&shop());
    let clients = [grpc("web"), envoy("web", None, None)];
    for client in &clients {
        let cluster = shown.cluster(CART_CLUSTER, client).expect("made");
        assert_eq!(pinned(&cluster), [id("cart")]);
    }
    let second = workload("second", "other", "address: 10.0.0.4, ports: [{name: http, port: 8080}]");
    let second = second.replace("labels: {app: second}", "labels: {app: cart}");
    let changed = shown.update(&(shop() + &second));
    assert!(changed.contains(&(Kind::Cluster, CART_CLUSTER.into())), "{changed:?}");
    for client in &clients {
        assert_eq!(pinned(&shown.cluster(CART_CLUSTER, client).expect("made")), [id("cart"), id("other")]);
    }
    // Another endpoint with an identity that is there already is no news of the cluster.
    let third = second.replace("10.0.0.4", "10.0.0.5").replace("name: second", "name: third");
    let changed = shown.update(&(shop() + &second + &third));
    assert!(changed.contains(&(Kind::Endpoint, CART_CLUSTER.into())), "{changed:?}");
    assert!(!changed.contains(&(Kind::Cluster, CART_CLUSTER.into())), "{changed:?}");
}

#[test]
fn a_timeout_is_a_bound_on_calls_to_grpc_and_a_timeout_to_envoy() {
    let limit = "---\napiVersion: tulle.dev/v1alpha1\nkind: BackendTrafficPolicy\nmetadata: {name: quick, namespace: shop}\n\
                 spec: {targetRefs: [{kind: Service, name: cart}], timeouts: {request: 5s}}\n";
    let shown = Shown::new(&(shop() + limit));
    let limits = |client: crate::xds::Client| {
        let routes: RouteConfiguration = shown.find(Kind::Route, CART_CLUSTER, &client).expect("made");
        let Some(Action::Route(action)) = routes.virtual_hosts[0].routes[0].action.clone() else {
            panic!("{routes:?}")
        };
        let bound = action.max_stream_duration.map(|limits| limits.grpc_timeout_header_max.is_some());
        (action.timeout.map(|timeout| timeout.seconds), bound)
    };
    assert_eq!(limits(grpc("web")), (Some(5), Some(true)));
    assert_eq!(limits(envoy("web", None, None)), (Some(5), None), "beside which it would hold no timeout");
}

#[test]
fn grpc_speaks_plaintext_only_where_no_endpoint_has_an_identity() {
    let plain = shop().replace("address: 10.0.0.1", "meshed: false, address: 10.0.0.1");
    let shown = Shown::new(&plain);
    let cluster = shown.cluster(CART_CLUSTER, &grpc("web")).expect("made");
    assert_eq!((cluster.transport_socket, cluster.transport_socket_matches.len()), (None, 0));
    let shown = Shown::new(&shop());
    let cluster = shown.cluster(CART_CLUSTER, &grpc("web")).expect("made");
    assert!(cluster.transport_socket.is_some(), "for all endpoints");
}

#[test]
fn an_envoy_binds_services_of_loopback_and_the_workload_that_it_names() {
    let shown = Shown::new(&shop());
    assert_eq!(shown.names(Kind::Listener, &envoy("web", None, None)), ["127.240.0.1_80"]);
    let own = envoy("cart", Some("10.0.0.1"), None);
    assert_eq!(shown.names(Kind::Listener, &own), ["127.240.0.1_80", INBOUND]);
    let bound = shown.listener("127.240.0.1_80", &own).expect("made");
    assert!(bound.api_listener.is_none(), "Envoy passes over it");
    assert_eq!(bound.bind_to_port, None);
    assert!(shown.listener(INBOUND, &own).is_some_and(|listener| listener.address.is_some()));
    // Whoever is not the workload learns nothing of who may call it, whatever its node says.
    let other = envoy("web", Some("10.0.0.1"), None);
    assert_eq!(shown.names(Kind::Listener, &other), ["127.240.0.1_80"]);
    assert!(shown.listener(INBOUND, &other).is_none());
    assert!(shown.listener("10.96.0.2_5432", &own).is_none(), "that address is not on this machine");
}

#[test]
fn the_application_beside_an_envoy_is_on_loopback_behind_its_mesh_port() {
    let shown = Shown::new(&shop().replace("port: 8080}", "port: 8080, meshPort: 25001}"));
    let own = envoy("cart", Some("10.0.0.1"), None);
    assert!(shown.names(Kind::Cluster, &own).contains(&"inbound|25001||".to_owned()));
    let cluster = shown.cluster("inbound|25001||", &own).expect("made");
    assert_eq!(
        cluster.cluster_discovery_type,
        Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32))
    );
    let endpoints = cluster.load_assignment.expect("static").endpoints;
    let Some(HostIdentifier::Endpoint(app)) = &endpoints[0].lb_endpoints[0].host_identifier else {
        panic!("{endpoints:?}");
    };
    let text = format!("{:?}", app.address);
    assert!(text.contains("127.0.0.1") && text.contains("8080"), "{text}");
    for other in [envoy("web", Some("10.0.0.1"), None), envoy("cart", None, None), grpc("cart")] {
        assert!(shown.cluster("inbound|25001||", &other).is_none());
        assert!(!shown.names(Kind::Cluster, &other).iter().any(|name| name.starts_with("inbound")));
    }
}

#[test]
fn who_takes_a_workload_s_place_is_told_of_its_application() {
    let shown = Shown::new(&shop());
    let changed = shown.update(&shop().replace("serviceAccount: cart", "serviceAccount: other"));
    assert!(changed.contains(&(Kind::Cluster, "inbound|8080||".into())), "{changed:?}");
    assert!(changed.contains(&(Kind::Listener, INBOUND.into())), "{changed:?}");
    assert!(shown.cluster("inbound|8080||", &envoy("other", Some("10.0.0.1"), None)).is_some());
    assert!(shown.cluster("inbound|8080||", &envoy("cart", Some("10.0.0.1"), None)).is_none());
}

#[test]
fn grpc_looks_an_outside_name_up_in_the_one_way_that_it_knows() {
    let outside = "apiVersion: v1\nkind: Service\nmetadata: {name: out, namespace: shop}\n\
                   spec: {type: ExternalName, externalName: example.com, ports: [{name: http, port: 80}]}\n";
    let shown = Shown::new(outside);
    let discovery = |client| {
        shown
            .cluster("outbound|80||out.shop.svc.cluster.local", &client)
            .expect("made")
            .cluster_discovery_type
    };
    let kind = |kind: DiscoveryType| Some(ClusterDiscoveryType::Type(kind as i32));
    assert_eq!(discovery(grpc("web")), kind(DiscoveryType::LogicalDns));
    assert_eq!(discovery(envoy("web", None, None)), kind(DiscoveryType::StrictDns));
}

use std::collections::BTreeSet;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use envoy_types::pb::envoy::config::core::v3::address::Address;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use prost::Message;
use tulle_mesh::xds::client::OutboundPolicy::{self, AllowAny, RegistryOnly};

use super::{Shown, envoy, grpc, id, pinned, service, workload};
use crate::xds::{Client, Kind};

/// `cart` with two addresses and one workload of two; `web`, whose workload skips a port.
fn shop() -> String {
    [
        service("cart", "10.96.0.1, 'fd96::1'", "{name: http, port: 80, targetPort: http}"),
        workload(
            "cart",
            "cart",
            "address: 10.0.0.1, addresses: ['fd00::1'], ports: [{name: http, port: 8080}]",
        ),
        workload(
            "web",
            "web",
            "address: 10.0.0.2, ports: [{name: http, port: 9090}], skipInboundPorts: [22]",
        ),
    ]
    .concat()
}

fn cart(policy: OutboundPolicy) -> Client {
    envoy("cart", Some("10.0.0.1"), Some(policy))
}

#[test]
fn it_gets_a_listener_for_each_address_that_the_mesh_knows_and_two_that_bind() {
    let shown = Shown::new(&shop());
    let names = [
        "10.0.0.1_8080",
        "10.0.0.2_22",
        "10.0.0.2_9090",
        "10.96.0.1_80",
        "fd00::1_8080",
        "fd96::1_80",
        "virtualInbound",
        "virtualOutbound",
    ];
    assert_eq!(shown.names(Kind::Listener, &cart(AllowAny)), names);
    for name in names {
        let listener = shown.listener(name, &cart(AllowAny)).unwrap_or_else(|| panic!("{name}"));
        let binds = listener.bind_to_port.is_none_or(|binds| binds.value);
        assert_eq!(binds, name.starts_with("virtual"), "{name}");
        assert!(listener.api_listener.is_none(), "{name}");
        let (at, port) = name.rsplit_once('_').unwrap_or(("", ""));
        let bound = addresses(&listener);
        assert!(
            name.starts_with("virtual") || bound == [(at.to_owned(), port.parse().expect("a port"))],
            "{bound:?}"
        );
    }
    // What nobody lists is not there either, and is nothing for others.
    for name in ["10.0.0.2_2525", "10.0.0.9_80", "tulle/inbound/10.0.0.1", "10.96.0.1_81", "10.0.0.2_0"] {
        assert!(shown.listener(name, &cart(AllowAny)).is_none(), "{name}");
    }
    for other in [envoy("cart", Some("10.0.0.1"), None), grpc("cart")] {
        assert!(shown.listener("virtualOutbound", &other).is_none());
        assert!(shown.listener("10.96.0.1_80", &other).is_none());
        assert!(shown.cluster("PassthroughCluster", &other).is_none());
    }
}

#[test]
fn the_virtual_listeners_listen_for_the_families_of_the_workload() {
    let shown = Shown::new(&shop());
    let both = |name: &str| addresses(&shown.listener(name, &cart(AllowAny)).expect("made"));
    assert_eq!(both("virtualOutbound"), [("127.0.0.1".to_owned(), 15001), ("::1".to_owned(), 15001)]);
    assert_eq!(both("virtualInbound"), [("0.0.0.0".to_owned(), 15006), ("::".to_owned(), 15006)]);
    let nobody = envoy("client", None, Some(AllowAny));
    let one = addresses(&shown.listener("virtualOutbound", &nobody).expect("made"));
    assert_eq!(one, [("127.0.0.1".to_owned(), 15001)]);
}

#[test]
fn the_outbound_one_pins_workloads_passes_the_unknown_on_as_told_and_never_to_itself() {
    let shown = Shown::new(&shop());
    for (policy, unknown) in [(AllowAny, "PassthroughCluster"), (RegistryOnly, "BlackHoleCluster")] {
        let listener = shown.listener("virtualOutbound", &cart(policy)).expect("made");
        assert_eq!(listener.use_original_dst.map(|on| on.value), Some(true));
        let first = &listener.listener_filters[0].name;
        assert_eq!(first, "envoy.filters.listener.original_dst", "a server may speak first");
        let chains: Vec<_> = listener.filter_chains.iter().map(chain).collect();
        for (port, cluster) in
            [(15000, unknown), (15020, unknown), (15001, "BlackHoleCluster"), (15006, "BlackHoleCluster")]
        {
            assert!(chains.contains(&(None, Some(port), cluster.into())), "{port}: {chains:?}");
        }
        assert!(chains.contains(&(None, None, unknown.into())), "{chains:?}");
        // Its own address is never dialled through it.
        let to: BTreeSet<_> = chains.iter().filter_map(|(ip, ..)| ip.clone()).collect();
        assert_eq!(to, BTreeSet::from(["10.0.0.2/32".to_owned()]));
        assert!(chains.iter().any(|(ip, _, cluster)| ip.is_some() && cluster == "outbound|0||10.0.0.2"));
        // Ports that the peer's redirection leaves alone.
        let left = shown.listener("10.0.0.2_22", &cart(policy)).expect("made");
        assert_eq!(chain(&left.filter_chains[0]), (None, None, unknown.into()));
    }
    let cluster = shown.cluster("outbound|0||10.0.0.2", &cart(AllowAny)).expect("made");
    assert_eq!(pinned(&cluster), [id("web")]);
}

#[test]
fn the_inbound_one_takes_what_was_going_to_its_own_workload_alone() {
    let shown = Shown::new(&shop());
    let listener = shown.listener("virtualInbound", &cart(AllowAny)).expect("made");
    assert!(listener.use_original_dst.is_none_or(|hands_over| !hands_over.value));
    assert_eq!(listener.listener_filters[0].name, "envoy.filters.listener.original_dst");
    let (itself, rest) = listener.filter_chains.split_first().expect("chains");
    assert_eq!(chain(itself), (None, Some(15006), "BlackHoleCluster".into()));
    let to: BTreeSet<_> = rest.iter().map(|one| chain(one).0).collect();
    assert_eq!(to, BTreeSet::from([Some("10.0.0.1/32".to_owned()), Some("fd00::1/128".to_owned())]));
    // Who only says that it is there gets nothing of it.
    let thief = envoy("web", Some("10.0.0.1"), Some(AllowAny));
    let listener = shown.listener("virtualInbound", &thief).expect("made");
    assert_eq!(listener.filter_chains.len(), 1, "nothing is taken");
}

#[test]
fn under_strict_nothing_in_plaintext_gets_in() {
    let strict = "---\napiVersion: tulle.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: mtls, namespace: shop}\n\
                  spec: {targetRefs: [{kind: Namespace, name: shop}], mtls: {mode: Strict}}\n";
    let plaintext = |shown: &Shown| {
        let listener = shown.listener("virtualInbound", &cart(AllowAny)).expect("made");
        let own = listener.filter_chains.into_iter().skip(1);
        own.filter(|chain| chain.transport_socket.is_none()).count()
    };
    let shown = Shown::new(&shop());
    assert!(plaintext(&shown) > 0);
    let changed = shown.update(&(shop() + strict));
    assert!(changed.contains(&(Kind::Listener, "virtualInbound".into())), "{changed:?}");
    assert_eq!(plaintext(&shown), 0);
}

#[test]
fn its_clusters_lead_to_where_connections_were_going_or_nowhere() {
    let shown = Shown::new(&shop());
    let own = |client: &Client| -> Vec<String> {
        let names = shown.names(Kind::Cluster, client).into_iter();
        names.filter(|name| !name.starts_with("outbound")).collect()
    };
    let all = ["BlackHoleCluster", "PassthroughCluster", "inbound|0||", "inbound|8080||"];
    assert_eq!(own(&cart(AllowAny)), all);
    for name in all {
        let cluster = shown.cluster(name, &cart(AllowAny)).unwrap_or_else(|| panic!("{name}"));
        let kind =
            if name == "BlackHoleCluster" { DiscoveryType::Static } else { DiscoveryType::OriginalDst };
        assert_eq!(cluster.cluster_discovery_type, Some(ClusterDiscoveryType::Type(kind as i32)), "{name}");
    }
    let nobody = envoy("client", None, Some(AllowAny));
    assert_eq!(own(&nobody), ["BlackHoleCluster", "PassthroughCluster"]);
    assert!(shown.cluster("inbound|8080||", &nobody).is_none());
}

#[test]
fn to_itself_it_speaks_plaintext_and_others_never_do() {
    let shown = Shown::new(&shop());
    let name = "outbound|80||cart.shop.svc.cluster.local";
    let meshed =
        |client: &Client| format!("{:?}", shown.endpoints(name, client).expect("made")).contains("tlsMode");
    assert!(!meshed(&cart(AllowAny)));
    for other in
        [envoy("web", Some("10.0.0.2"), Some(AllowAny)), envoy("cart", Some("10.0.0.1"), None), grpc("web")]
    {
        assert!(meshed(&other), "{other:?}");
    }
}

#[test]
fn every_listener_that_changes_is_told_by_the_name_that_it_has_here() {
    let shown = Shown::new(&shop());
    let listeners = |changed: BTreeSet<(Kind, String)>| -> BTreeSet<String> {
        let names = changed.into_iter().filter(|(kind, _)| *kind == Kind::Listener);
        names.map(|(_, name)| name).filter(|name| name.contains('_') || name.starts_with("virtual")).collect()
    };
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(listeners(shown.update(&shop())), set(&[]), "nothing changed");
    // A second address of a Service, of which its listener knows nothing.
    let moved = shop().replace("'fd96::1'", "'fd96::2'");
    assert_eq!(listeners(shown.update(&moved)), set(&["fd96::1_80", "fd96::2_80"]));
    // Another port that redirection leaves alone.
    let skipped = moved.replace("[22]", "[23]");
    assert_eq!(listeners(shown.update(&skipped)), set(&["10.0.0.2_22", "10.0.0.2_23"]));
    // Another identity for the workload.
    let other = listeners(shown.update(&skipped.replace("serviceAccount: cart", "serviceAccount: other")));
    assert!(other.contains("virtualInbound") && other.contains("virtualOutbound"), "{other:?}");
    // Another kind of port, and then none.
    let bytes = listeners(shown.update(&skipped.replace("name: http, port: 80,", "name: tcp-a, port: 80,")));
    assert!(bytes.contains("10.96.0.1_80") && bytes.contains("fd96::2_80"), "{bytes:?}");
    let gone = listeners(shown.update(""));
    for name in ["10.96.0.1_80", "fd96::2_80", "10.0.0.2_9090", "virtualOutbound", "virtualInbound"] {
        assert!(gone.contains(name), "{name}: {gone:?}");
    }
    assert_eq!(shown.names(Kind::Listener, &cart(AllowAny)), ["virtualInbound", "virtualOutbound"]);
}

/// All addresses of a listener.
fn addresses(listener: &Listener) -> Vec<(String, u32)> {
    use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
    let more = listener.additional_addresses.iter().filter_map(|more| more.address.as_ref());
    let all = listener.address.iter().chain(more).map(|address| match &address.address {
        Some(Address::SocketAddress(socket)) => match socket.port_specifier {
            Some(PortSpecifier::PortValue(port)) => (socket.address.clone(), port),
            _ => panic!("{socket:?}"),
        },
        other => panic!("{other:?}"),
    });
    all.collect()
}

/// The prefix and the port that a chain is for, and the cluster that it leads to; empty where routes say.
fn chain(chain: &FilterChain) -> (Option<String>, Option<u32>, String) {
    let matches = chain.filter_chain_match.clone().unwrap_or_default();
    let prefix = matches.prefix_ranges.first().map(|range| {
        let length = range.prefix_len.expect("it is always written").value;
        format!("{}/{length}", range.address_prefix)
    });
    let last = chain.filters.last().expect("each chain ends in one");
    let Some(ConfigType::TypedConfig(config)) = &last.config_type else { panic!("{last:?}") };
    let cluster = match last.name.as_str() {
        "envoy.filters.network.tcp_proxy" => {
            let proxy = TcpProxy::decode(&*config.value).expect("its own type");
            match proxy.cluster_specifier {
                Some(ClusterSpecifier::Cluster(cluster)) => cluster,
                other => panic!("{other:?}"),
            }
        }
        _ => String::new(),
    };
    (prefix, matches.destination_port.map(|port| port.value), cluster)
}

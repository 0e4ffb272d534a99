use tulle_mesh::model::{FilterChain, Protocol, TcpProxy, TrafficDirection};

use super::*;

#[test]
fn the_most_specific_condition_wins_step_by_step() {
    let chains = listener([
        chain(|m| m.transport = Some(Transport::Tls)),
        chain(|m| m.server_names = vec!["*.shop".into()]),
        chain(|m| m.server_names = vec!["cart.shop".into()]),
        chain(|m| m.server_names = vec!["*.cart.shop".into()]),
        chain(|m| m.destination_port = Some(8080)),
        chain(|_| {}),
    ]);
    for (port, transport, name, expected) in [
        (80, Transport::Plaintext, None, Some(5)),
        (80, Transport::Tls, None, Some(0)),
        (80, Transport::Tls, Some("other.org"), Some(0)),
        (80, Transport::Tls, Some("a.shop"), Some(1)),
        (80, Transport::Tls, Some("cart.shop"), Some(2)),
        (80, Transport::Tls, Some("a.cart.shop"), Some(3)),
        (80, Transport::Tls, Some(".shop"), Some(0)),
        // The port comes first, and there is no way back from it.
        (8080, Transport::Tls, Some("cart.shop"), Some(4)),
    ] {
        let facts = Facts { ends: to(port), transport, server_name: name, protocols: &[] };
        assert_eq!(choose(&chains, &facts), expected, "{facts:?}");
    }
}

#[test]
fn strict_has_no_chain_for_plaintext_and_permissive_one_for_each() {
    let tls = |m: &mut ChainMatch| {
        m.transport = Some(Transport::Tls);
        m.server_names = vec!["outbound_.8080_._.cart.shop".into()];
    };
    let strict = listener([chain(tls)]);
    let permissive = listener([
        chain(|m| {
            tls(m);
            m.application_protocols = vec!["h2".into(), "http/1.1".into()];
        }),
        chain(tls),
        chain(|m| m.application_protocols = vec!["http/1.1".into(), "h2c".into()]),
        chain(|_| {}),
    ]);
    let mesh = Some("outbound_.8080_._.cart.shop");
    for (transport, name, protocols, in_strict, in_permissive) in [
        (Transport::Plaintext, None, &[][..], None, Some(3)),
        (Transport::Plaintext, None, &["h2c"], None, Some(2)),
        (Transport::Tls, Some("cart.shop"), &["h2"], None, Some(3)),
        (Transport::Tls, mesh, &["h2"], Some(0), Some(0)),
        (Transport::Tls, mesh, &[], Some(0), Some(1)),
        (Transport::Tls, mesh, &["other"], Some(0), Some(1)),
    ] {
        let facts = Facts { ends: to(8080), transport, server_name: name, protocols };
        assert_eq!(choose(&strict, &facts), in_strict, "strict {facts:?}");
        assert_eq!(choose(&permissive, &facts), in_permissive, "permissive {facts:?}");
    }
}

#[test]
fn the_client_s_favourite_protocol_decides() {
    let chains = listener([
        chain(|m| m.application_protocols = vec!["http/1.1".into()]),
        chain(|m| m.application_protocols = vec!["h2".into()]),
    ]);
    let facts = |protocols| Facts { ends: to(1), transport: Transport::Tls, server_name: None, protocols };
    assert_eq!(choose(&chains, &facts(&["h2", "http/1.1"])), Some(1));
    assert_eq!(choose(&chains, &facts(&["http/1.1", "h2"])), Some(0));
    assert_eq!(choose(&chains, &facts(&["h3"])), None);
}

#[test]
fn bytes_are_looked_at_only_where_they_matter() {
    let early = |chains: &[FilterChain], port| undisputed(&listener(chains.to_vec()), &to(port));
    assert_eq!(early(&[chain(|_| {})], 80), Early::Takes(0));
    let by_port = [chain(|m| m.destination_port = Some(80)), chain(|_| {})];
    assert_eq!(early(&by_port, 80), Early::Takes(0));
    assert_eq!(early(&by_port, 81), Early::Takes(1));
    assert_eq!(early(&by_port[..1], 81), Early::Refused);
    let tls = chain(|m| m.transport = Some(Transport::Tls));
    assert_eq!(early(&[chain(|_| {}), tls], 80), Early::Disputed);
    assert_eq!(early(&[chain(|m| m.application_protocols = vec!["h2c".into()])], 80), Early::Disputed);
}

#[test]
fn who_the_client_is_decides_after_all_else() {
    let local = |m: &mut ChainMatch| m.source_type = Some(SourceType::SameIpOrLoopback);
    let chains = [
        chain(|m| m.source_ranges = vec![net("10.0.0.0/8")]),
        chain(|m| m.source_ranges = vec![net("10.1.0.0/16"), net("fd00::/8")]),
        chain(|m| {
            m.source_ranges = vec![net("10.1.0.0/16")];
            m.source_ports = vec![7, 8];
        }),
        chain(local),
        chain(|m| m.direct_source_ranges = vec![net("192.168.0.0/16")]),
        chain(|m| m.destination_ranges = vec![net("10.9.0.0/16")]),
    ];
    let chains = listener(chains);
    for (direct, source, destination, expected) in [
        ("10.2.0.1:9", "10.2.0.1:9", "10.0.0.1:80", Early::Takes(0)),
        ("10.1.0.1:9", "10.1.0.1:9", "10.0.0.1:80", Early::Takes(1)),
        ("[::ffff:10.1.0.1]:9", "[::ffff:10.1.0.1]:9", "10.0.0.1:80", Early::Takes(1)),
        ("[fd00::1]:8", "[fd00::1]:8", "[fd00::2]:80", Early::Takes(1)),
        ("10.1.0.1:8", "10.1.0.1:8", "10.0.0.1:80", Early::Takes(2)),
        ("11.1.0.1:8", "11.1.0.1:8", "10.0.0.1:80", Early::Refused),
        // Of 127.0.0.0/8 the one address is of the host.
        ("127.0.0.1:9", "127.0.0.1:9", "10.0.0.1:80", Early::Takes(3)),
        ("127.0.0.2:9", "127.0.0.2:9", "10.0.0.1:80", Early::Refused),
        ("10.0.0.1:9", "10.0.0.1:9", "10.0.0.1:80", Early::Takes(3)),
        // A proxy in front: its own address comes before the one that it tells.
        ("192.168.0.1:9", "10.1.0.1:8", "10.0.0.1:80", Early::Takes(4)),
        ("192.168.0.1:9", "10.1.0.1:8", "10.9.0.1:80", Early::Takes(5)),
    ] {
        let ends = Ends { destination: at(destination), direct: at(direct), source: at(source) };
        assert_eq!(undisputed(&chains, &ends), expected, "{ends:?}");
    }
}

#[test]
fn what_is_not_looked_for_is_undisputed() {
    let tls = chain(|m| m.transport = Some(Transport::Tls));
    let named = chain(|m| m.server_names = vec!["a.shop".into()]);
    let plaintext = chain(|m| m.transport = Some(Transport::Plaintext));
    let http = chain(|m| m.application_protocols = vec!["http/1.1".into()]);
    let of = |[tls_inspector, http_inspector]: [bool; 2], chains: [&FilterChain; 3]| Listener {
        tls_inspector,
        http_inspector,
        ..listener(chains.map(Clone::clone))
    };
    for (chains, looks, expected) in [
        ([&tls, &named, &plaintext], [true, false], Early::Disputed),
        ([&tls, &named, &plaintext], [false, true], Early::Takes(2)),
        ([&tls, &http, &plaintext], [false, true], Early::Disputed),
        ([&tls, &http, &plaintext], [false, false], Early::Takes(2)),
        ([&tls, &http, &named], [false, false], Early::Refused),
    ] {
        assert_eq!(undisputed(&of(looks, chains), &to(80)), expected, "{looks:?}");
    }
}

#[test]
fn the_default_takes_what_has_lost_its_way() {
    let of_port = chain(|m| {
        m.destination_port = Some(80);
        m.server_names = vec!["a.shop".into()];
    });
    let other = chain(|_| {});
    let with = |chains: Vec<FilterChain>| Listener { has_default: true, ..listener(chains) };
    let named =
        |name| Facts { ends: to(80), transport: Transport::Tls, server_name: Some(name), protocols: &[] };
    let all = with(vec![of_port.clone(), other.clone(), other]);
    // A chain for the port is there, so that the one for all ports is out.
    assert_eq!(choose(&all, &named("a.shop")), Some(0));
    assert_eq!(choose(&all, &named("b.shop")), Some(2));
    assert_eq!(undisputed(&all, &to(81)), Early::Takes(1));
    assert_eq!(undisputed(&with(vec![of_port.clone(), chain(|_| {})]), &to(81)), Early::Takes(1));
    assert_eq!(undisputed(&with(vec![of_port]), &to(81)), Early::Takes(0));
}

/// Somebody's connection to a port.
fn to(port: u16) -> Ends {
    let client = at("10.2.0.7:4000");
    Ends { destination: SocketAddr::new(at("10.0.0.1:0").ip(), port), direct: client, source: client }
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a range")
}

fn listener(chains: impl Into<Vec<FilterChain>>) -> Listener {
    Listener::new("test", TrafficDirection::Inbound, chains.into())
}

fn chain(set: impl FnOnce(&mut ChainMatch)) -> FilterChain {
    let mut matches = ChainMatch::default();
    set(&mut matches);
    FilterChain {
        name: "test".into(),
        matches,
        tls: None,
        authorization: Vec::new(),
        protocol: Protocol::Tcp(TcpProxy::new(vec![("c".into(), 1)])),
    }
}

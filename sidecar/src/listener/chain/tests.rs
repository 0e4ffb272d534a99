use tulle_mesh::model::{Protocol, TcpProxy};

use super::*;

#[test]
fn the_most_specific_condition_wins_step_by_step() {
    let chains = [
        chain(|m| m.transport = Some(Transport::Tls)),
        chain(|m| m.server_names = vec!["*.shop".into()]),
        chain(|m| m.server_names = vec!["cart.shop".into()]),
        chain(|m| m.server_names = vec!["*.cart.shop".into()]),
        chain(|m| m.destination_port = Some(8080)),
        chain(|_| {}),
    ];
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
        let facts = Facts { port, transport, server_name: name, protocols: &[] };
        assert_eq!(choose(&chains, &facts), expected, "{facts:?}");
    }
}

#[test]
fn strict_has_no_chain_for_plaintext_and_permissive_one_for_each() {
    let tls = |m: &mut ChainMatch| {
        m.transport = Some(Transport::Tls);
        m.server_names = vec!["outbound_.8080_._.cart.shop".into()];
    };
    let strict = [chain(tls)];
    let permissive = [
        chain(|m| {
            tls(m);
            m.application_protocols = vec!["h2".into(), "http/1.1".into()];
        }),
        chain(tls),
        chain(|m| m.application_protocols = vec!["http/1.1".into(), "h2c".into()]),
        chain(|_| {}),
    ];
    let mesh = Some("outbound_.8080_._.cart.shop");
    for (transport, name, protocols, in_strict, in_permissive) in [
        (Transport::Plaintext, None, &[][..], None, Some(3)),
        (Transport::Plaintext, None, &["h2c"], None, Some(2)),
        (Transport::Tls, Some("cart.shop"), &["h2"], None, Some(3)),
        (Transport::Tls, mesh, &["h2"], Some(0), Some(0)),
        (Transport::Tls, mesh, &[], Some(0), Some(1)),
        (Transport::Tls, mesh, &["other"], Some(0), Some(1)),
    ] {
        let facts = Facts { port: 8080, transport, server_name: name, protocols };
        assert_eq!(choose(&strict, &facts), in_strict, "strict {facts:?}");
        assert_eq!(choose(&permissive, &facts), in_permissive, "permissive {facts:?}");
    }
}

#[test]
fn the_client_s_favourite_protocol_decides() {
    let chains = [
        chain(|m| m.application_protocols = vec!["http/1.1".into()]),
        chain(|m| m.application_protocols = vec!["h2".into()]),
    ];
    let facts = |protocols| Facts { port: 1, transport: Transport::Tls, server_name: None, protocols };
    assert_eq!(choose(&chains, &facts(&["h2", "http/1.1"])), Some(1));
    assert_eq!(choose(&chains, &facts(&["http/1.1", "h2"])), Some(0));
    assert_eq!(choose(&chains, &facts(&["h3"])), None);
}

#[test]
fn bytes_are_looked_at_only_where_they_matter() {
    assert_eq!(undisputed(&[chain(|_| {})], 80), Some(0));
    let by_port = [chain(|m| m.destination_port = Some(80)), chain(|_| {})];
    assert_eq!(undisputed(&by_port, 80), Some(0));
    assert_eq!(undisputed(&by_port, 81), Some(1));
    assert_eq!(undisputed(&[chain(|_| {}), chain(|m| m.transport = Some(Transport::Tls))], 80), None);
    assert_eq!(undisputed(&[chain(|m| m.application_protocols = vec!["h2c".into()])], 80), None);
}

fn chain(set: impl FnOnce(&mut ChainMatch)) -> FilterChain {
    let mut matches = ChainMatch::default();
    set(&mut matches);
    FilterChain {
        name: "test".into(),
        matches,
        tls: None,
        authorization: Vec::new(),
        protocol: Protocol::Tcp(TcpProxy {
            backends: vec![("c".into(), 1)],
            idle_timeout: None,
            access_log: None,
        }),
    }
}

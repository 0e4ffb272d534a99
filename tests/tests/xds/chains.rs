//! Which filter chain takes a connection: by where it goes, what it begins with and who it is from.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tulle_tests::oracle::{Hello, Oracle, Outcome, Way, chain, manager_of, typed};

use crate::generate::{self, Generator};

/// A connection manager that says to all which one it is.
fn says(name: &str) -> Value {
    let answer = json!({ "status": 200, "body": { "inline_string": name } });
    let route = json!({ "match": { "prefix": "/" }, "direct_response": answer });
    let host = json!({ "name": "all", "domains": ["*"], "routes": [route] });
    manager_of(&[host], json!({ "http_protocol_options": { "accept_http_10": true } }))
}

/// Chains by what they say, whom they are for, and whether they end TLS.
fn chains(of: &[(String, Value, bool)]) -> Vec<Value> {
    let numbered = of.iter().enumerate().map(|(index, (says_this, matches, tls))| {
        chain(&index.to_string(), matches.clone(), tls.then_some(false), &says(says_this))
    });
    numbered.collect()
}

/// Such chains, each of which says its place.
fn numbered(of: &[(Value, bool)]) -> Vec<Value> {
    let named = of.iter().enumerate();
    let named = named.map(|(index, (matches, tls))| (format!("chain {index}"), matches.clone(), *tls));
    chains(&named.collect::<Vec<_>>())
}

fn default_chain() -> Value {
    json!({ "default_filter_chain": chain("default", json!({}), None, &says("default")) })
}

/// Which chain has answered bytes; else with which status, or that none has.
fn who(answer: &str) -> String {
    let named = |at: usize| answer[at..].chars().take("chain 0".len()).collect::<String>();
    let status = || answer.strip_prefix("HTTP/1.1 ").map_or("0", |rest| &rest[..3]).to_owned();
    answer.find("chain ").or_else(|| answer.find("default")).map_or_else(status, named)
}

fn is_named(answer: &str) -> bool {
    answer.contains("chain ") || answer.contains("default")
}

/// Which chain has answered; else that none has, or how it has refused.
fn taken(outcome: &Outcome) -> String {
    match outcome.received.status {
        200 => outcome.received.body.clone(),
        status => status.to_string(),
    }
}

/// What a proxy in front says is read, TLS is seen, or HTTP in plaintext is known.
fn inspected(proxied: bool, tls: bool, http: bool) -> Value {
    let filter = |name: &str, kind: &str, config: Value| {
        json!({ "name": format!("envoy.filters.listener.{name}"),
            "typed_config": typed(&format!("envoy.extensions.filters.listener.{name}.v3.{kind}"), config) })
    };
    let proxy = json!({ "allow_requests_without_proxy_protocol": true });
    let mut filters = Vec::new();
    if tls {
        filters.push(filter("tls_inspector", "TlsInspector", json!({})));
    }
    if http {
        filters.push(filter("http_inspector", "HttpInspector", json!({})));
    }
    if proxied {
        filters.insert(0, filter("proxy_protocol", "ProxyProtocol", proxy));
    }
    json!({ "listener_filters": filters })
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: h.test\r\n\r\n";
const OLD: &[u8] = b"GET / HTTP/1.0\r\nhost: h.test\r\n\r\n";
/// HTTP/2 with prior knowledge: the preface, settings, and a request for `/` at h.test.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\
    \0\0\0\x04\0\0\0\0\0\
    \0\0\x0b\x01\x05\0\0\0\x01\x82\x86\x84\x41\x06h.test";
const NO_HTTP: &[u8] = b"\0\x01\x02\x03\r\n\r\n";

#[tokio::test]
async fn generated_chains_take_what_envoys_take() {
    let (seed, sets) = generate::seed(60);
    let mut generator = Generator::new(seed);
    let mut oracle = Oracle::start().await;
    let sources = oracle.source_ports();
    let ports = oracle.inbound_ports();
    let (mut answered, mut by_default, mut closed, mut refused, mut differ) = (0, 0, 0, 0, Vec::new());
    for index in 0..sets {
        let matches = generator.chains(ports, sources);
        let mut more = inspected(index % 3 == 0, index % 7 > 1, index % 5 < 3);
        if index % 2 == 0 {
            more["default_filter_chain"] = default_chain()["default_filter_chain"].take();
        }
        let errors = oracle.offer_peers(&chains(&matches), more.clone()).await;
        let [envoy, tulle] = errors.each_ref().map(|error| !error.is_empty());
        if envoy || tulle {
            refused += 1;
            if envoy != tulle {
                differ.push(format!("{matches:?}\n{errors:?}"));
            }
            continue;
        }
        for _ in 0..12 {
            let way = generator.way(sources, index % 3 == 0);
            let said = generator.pick(&[REQUEST, OLD, HTTP2, NO_HTTP]);
            let said = if way.tls.is_some() { REQUEST } else { said };
            let [envoy, tulle] = oracle.both_to_bytes(&way, said, is_named).await.map(|answer| who(&answer));
            match envoy.as_str() {
                "default" => by_default += 1,
                "0" => closed += 1,
                _ => answered += 1,
            }
            if envoy != tulle {
                differ.push(format!(
                    "{way:?} {}: envoy {envoy}, tulle {tulle}\n{matches:#?}\n{more}",
                    said.escape_ascii()
                ));
            }
        }
    }
    println!("{answered} by a chain, {by_default} by the default, {closed} closed; {refused} sets refused");
    let all = differ.len();
    differ.truncate(5);
    assert!(all == 0, "seed {seed}: {all} differ:\n{}", differ.join("\n\n"));
    // A few may all be of one kind.
    assert!(sets < 40 || (answered > 0 && by_default > 0 && closed > 0 && refused > 0));
}

#[tokio::test]
async fn the_more_specific_chain_wins_and_there_is_no_way_back() {
    let mut oracle = Oracle::start().await;
    let [port, other] = oracle.source_ports();
    let range = |prefix: &str, length: u32| json!([{ "address_prefix": prefix, "prefix_len": length }]);
    let of = [
        (json!({ "transport_protocol": "raw_buffer" }), false),
        (
            json!({ "transport_protocol": "raw_buffer", "source_prefix_ranges": range("127.0.0.0", 24) }),
            false,
        ),
        (
            json!({
                "transport_protocol": "raw_buffer",
                "source_prefix_ranges": range("127.0.0.2", 32),
                "source_ports": [port],
            }),
            false,
        ),
        (json!({ "transport_protocol": "tls", "application_protocols": ["h2"] }), true),
        (json!({ "transport_protocol": "tls", "server_names": ["*.test"] }), true),
        (json!({ "server_names": ["a.test"], "source_type": "EXTERNAL" }), true),
    ];
    oracle.peers(&numbered(&of)).await;
    let from = |ip: [u8; 4], port: u16| Way { from: SocketAddr::from((ip, port)), ..Way::default() };
    let tls = |server, alpn| Way { tls: Some(Hello { server, alpn, caller: None }), ..Way::default() };
    let http = &["http/1.1"][..];
    let cases = [
        (from([127, 0, 1, 1], 0), "chain 0"),
        (from([127, 0, 0, 1], 0), "chain 1"),
        // Its address leads to the chain of a port that it does not have, and the wider range is out then.
        (from([127, 0, 0, 2], other), "0"),
        (from([127, 0, 0, 2], port), "chain 2"),
        (tls(None, &["h2", "http/1.1"]), "chain 3"),
        (tls(None, http), "0"),
        (tls(Some("b.test"), &["h2", "http/1.1"]), "chain 4"),
        // 127.0.0.1 is of this host, so that the chain of its very name is not for it, and the wildcard's is out.
        (tls(Some("a.test"), http), "0"),
        (Way { from: SocketAddr::from(([127, 0, 0, 9], 0)), ..tls(Some("a.test"), http) }, "chain 5"),
    ];
    for (way, expected) in cases {
        let taken = oracle.both_by(&way, REQUEST, "ok").await.map(|outcome| taken(&outcome));
        assert_eq!(taken, [expected; 2], "{way:?}");
    }
}

/// Plaintext is of an application protocol only where the listener looks for it, and HTTP/1.0 is one of its own.
#[tokio::test]
async fn plaintext_has_a_protocol_where_it_is_looked_for() {
    let mut oracle = Oracle::start().await;
    let plaintext = |protocols: &[&str]| {
        let mut condition = json!({ "transport_protocol": "raw_buffer" });
        if !protocols.is_empty() {
            condition["application_protocols"] = json!(protocols);
        }
        (condition, false)
    };
    let of = [plaintext(&["http/1.0"]), plaintext(&["http/1.1"]), plaintext(&["h2c"]), plaintext(&[])];
    let said = [REQUEST, OLD, HTTP2, NO_HTTP, b"GET key\r\n\r\n"];
    for (http, expected) in [
        (true, ["chain 1", "chain 0", "chain 2", "400", "400"]),
        (false, ["chain 3", "chain 3", "chain 3", "400", "400"]),
    ] {
        let errors = oracle.offer_peers(&numbered(&of), inspected(false, true, http)).await;
        assert_eq!(errors, ["", ""]);
        for (said, expected) in said.into_iter().zip(expected) {
            let answers = oracle.both_to_bytes(&Way::default(), said, is_named).await;
            let who = answers.each_ref().map(|answer| who(answer));
            assert_eq!(who, [expected; 2], "{http} {}: {answers:?}", said.escape_ascii());
        }
        // Beside a chain for what is no HTTP there need be none.
        let errors = oracle.offer_peers(&numbered(&of[..1]), inspected(false, true, http)).await;
        assert_eq!(errors, ["", ""]);
        let answers = oracle.both_to_bytes(&Way::default(), OLD, is_named).await;
        assert_eq!(answers.map(|answer| who(&answer)), [if http { "chain 0" } else { "0" }; 2]);
    }
}

/// Where a listener does not look for TLS, all is plaintext to its conditions, and the chain that is chosen ends TLS or does not.
#[tokio::test]
async fn tls_is_told_from_plaintext_where_it_is_looked_for() {
    let mut oracle = Oracle::start().await;
    let of = [
        (json!({ "transport_protocol": "tls" }), true),
        (json!({ "server_names": ["a.test"] }), true),
        (json!({ "application_protocols": ["http/1.1"] }), true),
        (json!({ "transport_protocol": "raw_buffer", "source_type": "EXTERNAL" }), true),
        (json!({ "transport_protocol": "raw_buffer" }), false),
    ];
    let offered = &["http/1.1"][..];
    let tls = |server, alpn| Some(Hello { server, alpn, caller: None });
    let far = SocketAddr::from(([127, 0, 0, 9], 0));
    let near = Way::default().from;
    for (of, seen, unseen) in [
        (
            &of[..],
            ["chain 0", "chain 1", "chain 0", "chain 4", "400"],
            ["0", "0", "chain 3", "chain 4", "400"],
        ),
        (&of[3..], ["0", "0", "0", "chain 1", "400"], ["0", "0", "chain 0", "chain 1", "400"]),
        (&of[2..3], ["chain 0", "chain 0", "chain 0", "0", "0"], ["0"; 5]),
    ] {
        // Looking for HTTP finds none in a ClientHello. What it does find goes the way of the chain that shows which change is in
        // force, and that one is for another client.
        let [a, b, c, _, e] = unseen;
        let plaintext = [a, b, c, "0", e];
        for (looks, http, expected) in [(true, false, seen), (false, false, unseen), (false, true, plaintext)]
        {
            let errors = oracle.offer_peers(&numbered(of), inspected(false, looks, http)).await;
            assert_eq!(errors, ["", ""]);
            let ways = [
                (near, tls(None, offered), REQUEST),
                (near, tls(Some("a.test"), offered), REQUEST),
                (far, tls(Some("b.test"), offered), REQUEST),
                (near, None, REQUEST),
                (near, None, NO_HTTP),
            ];
            for ((from, tls, said), expected) in ways.into_iter().zip(expected) {
                let way = Way { from, tls, ..Way::default() };
                let answers = oracle.both_to_bytes(&way, said, is_named).await;
                let who = answers.each_ref().map(|answer| who(answer));
                assert_eq!(who, [expected; 2], "{looks} {http} {way:?} of {}: {answers:?}", of.len());
            }
        }
    }
}

#[tokio::test]
async fn chains_of_which_none_is_more_specific_are_refused() {
    let mut oracle = Oracle::start().await;
    let range = |prefix: &str| json!([{ "address_prefix": prefix, "prefix_len": 24 }]);
    let twice = |condition: Value| vec![condition.clone(), condition];
    for conditions in [
        twice(json!({})),
        twice(json!({ "destination_port": 7 })),
        vec![
            json!({ "server_names": ["a.test", "b.test"] }),
            json!({ "server_names": ["c.test", "B.test"] }),
        ],
        vec![json!({ "prefix_ranges": range("10.0.0.1") }), json!({ "prefix_ranges": range("10.0.0.2") })],
        vec![json!({ "source_ports": [7, 8] }), json!({ "source_ports": [8] })],
        vec![json!({ "server_names": ["a.test", "a.test"] })],
        vec![json!({ "server_names": ["a.*.test"] })],
        vec![json!({ "source_ports": [0] })],
        vec![json!({ "source_prefix_ranges": [{ "address_prefix": "nowhere", "prefix_len": 8 }] })],
        vec![json!({ "address_suffix": "1" })],
    ] {
        let of: Vec<_> = conditions.iter().map(|condition| (condition.clone(), false)).collect();
        let [envoy, tulle] = oracle.offer_peers(&numbered(&of), json!({})).await;
        assert!(!envoy.is_empty(), "{conditions:?}");
        let last = format!("filter_chains[{}].filter_chain_match", conditions.len() - 1);
        assert!(tulle.contains(&last), "{conditions:?}: {tulle}");
    }
    // What differs in one respect is fine, and so is a default chain beside one for all.
    for conditions in [
        vec![json!({ "source_ports": [7] }), json!({ "source_ports": [8] }), json!({})],
        vec![json!({ "source_type": "EXTERNAL" }), json!({ "source_type": "SAME_IP_OR_LOOPBACK" })],
        vec![json!({ "transport_protocol": "tls" }), json!({ "transport_protocol": "raw_buffer" })],
        vec![json!({})],
    ] {
        let of: Vec<_> = conditions.iter().map(|condition| (condition.clone(), false)).collect();
        let errors = oracle.offer_peers(&numbered(&of), default_chain()).await;
        assert_eq!(errors, ["", ""], "{conditions:?}");
    }
}

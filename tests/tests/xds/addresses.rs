//! Which of several addresses is dialled: those of a name, and those of one endpoint.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};
use tulle_tests::oracle::{Oracle, cluster, endpoints, route_configuration};

use crate::shares::upstream;

const REQUESTS: usize = 12;

/// A request to the cluster of its path.
fn request(cluster: &str) -> String {
    format!("GET /{cluster} HTTP/1.1\r\nhost: h.test\r\n\r\n")
}

fn routes(clusters: &[String]) -> Value {
    let route =
        |name: &String| json!({ "match": { "path": format!("/{name}") }, "route": { "cluster": name } });
    let routes: Vec<_> = clusters.iter().map(route).collect();
    route_configuration("routes", &[json!({ "name": "h", "domains": ["h.test"], "routes": routes })])
}

fn socket(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

/// Who answers a few requests, with either.
async fn answering(oracle: &Oracle, cluster: &str) -> [BTreeSet<String>; 2] {
    let mut answering = [BTreeSet::new(), BTreeSet::new()];
    for _ in 0..REQUESTS {
        let outcomes = oracle.both(request(cluster).as_bytes(), "ok").await;
        for (outcome, all) in outcomes.iter().zip(&mut answering) {
            all.insert(upstream(outcome));
        }
    }
    answering
}

#[tokio::test]
async fn a_name_leads_to_addresses_of_the_family_that_is_asked_for() {
    let mut oracle = Oracle::start().await;
    let upstreams = oracle.upstreams_of_both_families(["v4", "v6"]).await;
    let mut resources = Vec::new();
    let mut names = Vec::new();
    let cases = [
        ("V4_ONLY", ["v4"].as_slice()),
        ("V6_ONLY", &["v6"]),
        ("AUTO", &["v6"]),
        ("V4_PREFERRED", &["v4"]),
        ("ALL", &["v4", "v6"]),
    ];
    for (family, _) in &cases {
        let mut named = cluster(
            family,
            json!({
                "type": "STRICT_DNS",
                "dns_lookup_family": family,
                "load_assignment": { "cluster_name": family, "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": {
                    "socket_address": { "address": "localhost", "port_value": upstreams[0].address.port() },
                } } }] }] },
            }),
        );
        named.as_object_mut().expect("a message").remove("eds_cluster_config");
        resources.push(named);
        names.push((*family).to_owned());
    }
    resources.push(routes(&names));
    oracle.push(resources).await;
    for (family, expected) in cases {
        let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(answering(&oracle, family).await, [expected.clone(), expected], "{family}");
    }
}

#[tokio::test]
async fn an_endpoint_s_other_addresses_are_tried_when_the_first_refuses() {
    let mut oracle = Oracle::start().await;
    let [v4, v6] = oracle.upstreams_of_both_families(["v4", "v6"]).await;
    let good = oracle.upstreams[0].address;
    // Nobody has a port that only connections are made from.
    let refusing = SocketAddr::from(([127, 0, 0, 1], oracle.source_ports()[0]));
    let refusing_v6 = SocketAddr::new(v6.address.ip(), refusing.port());
    let first = |family: &str, count: u32| json!({ "happy_eyeballs_config": { "first_address_family_version": family, "first_address_family_count": count } });
    let cases = [
        (vec![refusing, good], json!({}), "a"),
        (vec![good, refusing], json!({}), "a"),
        (vec![refusing, refusing, refusing_v6, good], json!({}), "a"),
        // By turns: the one of the other family is second, wherever it stands.
        (vec![refusing, v4.address, v6.address], json!({}), "v6"),
        (vec![v4.address, v6.address], first("V6", 1), "v6"),
        (vec![refusing_v6, v4.address, v6.address], first("V6", 2), "v6"),
        (vec![refusing_v6, v4.address, v6.address], first("V6", 1), "v4"),
        (vec![refusing, refusing_v6], json!({}), "503"),
    ];
    let mut resources = Vec::new();
    let mut names = Vec::new();
    for (index, (addresses, options, _)) in cases.iter().enumerate() {
        let name = format!("several{index}");
        resources.push(cluster(&name, json!({ "upstream_connection_options": options })));
        let mut assignment = endpoints(&name, &addresses[..1]);
        assignment["endpoints"][0]["lb_endpoints"][0]["endpoint"]["additional_addresses"] =
            addresses[1..].iter().map(|address| json!({ "address": socket(*address) })).collect();
        resources.push(assignment);
        names.push(name);
    }
    resources.push(routes(&names));
    oracle.push(resources).await;
    for (name, (addresses, options, expected)) in names.iter().zip(&cases) {
        let outcomes = oracle.both(request(name).as_bytes(), "ok").await;
        assert_eq!(outcomes.map(|outcome| upstream(&outcome)), [*expected; 2], "{addresses:?} {options}");
    }
}

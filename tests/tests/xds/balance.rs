//! Which endpoints share a cluster's requests: by health, by locality, by weight, and by how they do beside the others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tulle_tests::LIMIT;
use tulle_tests::oracle::{Oracle, cluster, endpoints, route_configuration};

use crate::compare::Tally;
use crate::shares::{check, upstream};

/// What `a`, `b` and `c` are, by locality: its weight, its priority, and of each endpoint its upstream, health and weight.
type Places = Vec<(Option<u32>, u32, Vec<(usize, &'static str, u32)>)>;

/// Of each upstream, or status, which part of the requests it gets.
type Shares = Vec<(&'static str, f64)>;

fn assignment(name: &str, places: &Places, addresses: &[SocketAddr]) -> Value {
    let mut resource = endpoints(name, &[]);
    let place = |(index, (weight, priority, members)): (usize, &(Option<u32>, u32, Vec<_>))| {
        let member = |(upstream, health, weight): &(usize, &str, u32)| {
            let address = addresses[*upstream];
            let address = json!({ "address": address.ip().to_string(), "port_value": address.port() });
            json!({
                "health_status": health,
                "load_balancing_weight": weight,
                "endpoint": { "address": { "socket_address": address } },
            })
        };
        let mut place = json!({
            "locality": { "zone": format!("z{index}") },
            "priority": priority,
            "lb_endpoints": members.iter().map(member).collect::<Vec<_>>(),
        });
        if let Some(weight) = weight {
            place["load_balancing_weight"] = json!(weight);
        }
        place
    };
    resource["endpoints"] = places.iter().enumerate().map(place).collect();
    resource
}

/// A cluster's settings, its endpoints, and who gets which share.
fn clusters() -> Vec<(Value, Places, Shares)> {
    let one = |health: [&'static str; 3]| {
        vec![(Some(1), 0, (0..3).map(|index| (index, health[index], 1)).collect())]
    };
    let below = |percent: u32| json!({ "healthy_panic_threshold": { "value": percent } });
    let settings = |common: Value| json!({ "common_lb_config": common });
    let fails = json!({ "zone_aware_lb_config": { "fail_traffic_on_panic": true } });
    let weighted = json!({ "locality_weighted_lb_config": {} });
    let thirds = || vec![("a", 1.0 / 3.0), ("b", 1.0 / 3.0), ("c", 1.0 / 3.0)];
    let (up, down) = ("HEALTHY", "UNHEALTHY");
    let one_left = || one([up, down, down]);
    let two_zones = |near: Option<u32>, far: Option<u32>| {
        vec![(near, 0, vec![(0, up, 1)]), (far, 0, vec![(1, up, 1), (2, up, 1)])]
    };
    let heavy = || vec![(Some(1), 0, vec![(0, up, 3), (1, up, 1), (2, up, 1)])];
    let priorities = |health: [&'static str; 3]| {
        vec![(Some(1), 0, vec![(0, health[0], 1), (1, health[1], 1)]), (Some(1), 1, vec![(2, health[2], 1)])]
    };
    vec![
        (json!({}), one([up, up, down]), vec![("a", 0.5), ("b", 0.5)]),
        (json!({}), one_left(), thirds()),
        (settings(below(0)), one_left(), vec![("a", 1.0)]),
        (settings(below(33)), one_left(), vec![("a", 1.0)]),
        (settings(below(34)), one_left(), thirds()),
        (settings(below(100)), one([up, up, down]), thirds()),
        (json!({}), one([up, "DRAINING", "DRAINING"]), vec![("a", 1.0)]),
        (json!({}), one([down, "DRAINING", "DRAINING"]), thirds()),
        (json!({}), one(["DRAINING"; 3]), thirds()),
        (json!({}), one([down; 3]), thirds()),
        (settings(below(0)), one([down; 3]), vec![("503", 1.0)]),
        (settings(fails.clone()), one_left(), vec![("503", 1.0)]),
        (settings(fails), one([up, up, down]), vec![("a", 0.5), ("b", 0.5)]),
        (json!({}), two_zones(Some(9), Some(1)), thirds()),
        (settings(weighted.clone()), two_zones(Some(9), Some(1)), vec![("a", 0.9), ("b", 0.05), ("c", 0.05)]),
        (settings(weighted.clone()), two_zones(Some(1), None), vec![("a", 1.0)]),
        (settings(weighted), two_zones(None, None), thirds()),
        (json!({}), heavy(), vec![("a", 0.6), ("b", 0.2), ("c", 0.2)]),
        (json!({ "lb_policy": "LEAST_REQUEST" }), heavy(), vec![("a", 0.6), ("b", 0.2), ("c", 0.2)]),
        (json!({ "lb_policy": "RANDOM" }), heavy(), thirds()),
        (json!({}), priorities([up, down, up]), vec![("b", 0.0), ("a", 0.7), ("c", 0.3)]),
        (json!({}), priorities([down, down, up]), vec![("c", 1.0)]),
        (json!({}), priorities([down, down, down]), thirds()),
        (json!({}), priorities([up, up, down]), vec![("a", 0.5), ("b", 0.5)]),
    ]
}

#[tokio::test]
async fn health_localities_and_weights_share_as_with_envoy() {
    let mut oracle = Oracle::start().await;
    let addresses: Vec<_> = oracle.upstreams.iter().map(|upstream| upstream.address).collect();
    let cases = clusters();
    let (mut resources, mut routes) = (Vec::new(), Vec::new());
    for (index, (settings, places, _)) in cases.iter().enumerate() {
        let name = format!("shared{index}");
        resources.push(cluster(&name, settings.clone()));
        resources.push(assignment(&name, places, &addresses));
        routes.push(json!({ "match": { "path": format!("/{index}") }, "route": { "cluster": name } }));
    }
    let host = json!({ "name": "h", "domains": ["h.test"], "routes": routes });
    resources.push(route_configuration("routes", &[host]));
    oracle.push(resources).await;
    for (index, (settings, places, expected)) in cases.iter().enumerate() {
        let request = format!("GET /{index} HTTP/1.1\r\nhost: h.test\r\n\r\n");
        let mut shares = [BTreeMap::new(), BTreeMap::new()];
        for _ in 0..100 {
            for (outcome, shares) in oracle.both(request.as_bytes(), "ok").await.iter().zip(&mut shares) {
                *shares.entry(upstream(outcome)).or_insert(0) += 1;
            }
        }
        for (side, got) in ["envoy", "tulle"].iter().zip(&shares) {
            check(&format!("{side} {settings} {places:?}"), expected, got);
        }
    }
}

/// By how they do beside the others, whether `b`, which always fails, is left out.
fn compared() -> Vec<(Value, bool)> {
    let rate = |factor: u32, hosts: u32, volume: u32| {
        json!({
            "success_rate_stdev_factor": factor,
            "success_rate_minimum_hosts": hosts,
            "success_rate_request_volume": volume,
        })
    };
    let share = |threshold: u32, hosts: u32, volume: u32| {
        json!({
            "enforcing_success_rate": 0,
            "enforcing_failure_percentage": 100,
            "failure_percentage_threshold": threshold,
            "failure_percentage_minimum_hosts": hosts,
            "failure_percentage_request_volume": volume,
        })
    };
    vec![
        (rate(1000, 3, 2), true),
        // Of three, none can be further than 1.41 deviations from the mean.
        (rate(1500, 3, 2), false),
        (rate(1000, 4, 2), false),
        (rate(1000, 3, 60_000), false),
        (share(100, 3, 2), true),
        (share(50, 4, 2), false),
        (share(50, 3, 60_000), false),
    ]
}

#[tokio::test]
async fn endpoints_are_compared_at_the_end_of_each_interval_as_with_envoy() {
    const INTERVAL: Duration = Duration::from_secs(2);
    let mut oracle = Oracle::start().await;
    let addresses: Vec<_> = oracle.upstreams.iter().map(|upstream| upstream.address).collect();
    let cases = compared();
    let (mut resources, mut routes) = (Vec::new(), Vec::new());
    for (index, (rule, _)) in cases.iter().enumerate() {
        let name = format!("compared{index}");
        let mut rule = rule.clone();
        rule["enforcing_consecutive_5xx"] = json!(0);
        rule["max_ejection_percent"] = json!(100);
        rule["interval"] = json!(format!("{}s", INTERVAL.as_secs()));
        // Longer than the test lasts.
        rule["base_ejection_time"] = json!("300s");
        resources.push(cluster(&name, json!({ "outlier_detection": rule })));
        resources.push(endpoints(&name, &addresses));
        routes.push(json!({ "match": { "path": format!("/{index}") }, "route": { "cluster": name } }));
    }
    let host = json!({ "name": "h", "domains": ["h.test"], "routes": routes });
    resources.push(route_configuration("routes", &[host]));
    oracle.push(resources).await;
    let begun = Instant::now();
    loop {
        let mut met = vec![[false; 2]; cases.len()];
        for (index, met) in met.iter_mut().enumerate() {
            let request = format!("GET /{index} HTTP/1.1\r\nhost: h.test\r\n\r\n");
            for _ in 0..9 {
                let outcomes = oracle.both(request.as_bytes(), "500@b").await;
                for (outcome, met) in outcomes.iter().zip(met.iter_mut()) {
                    *met |= outcome.received.status == 500;
                }
            }
        }
        let out: Vec<_> = met.iter().map(|met| met.map(|met| !met)).collect();
        for ((rule, expected), out) in cases.iter().zip(&out) {
            assert!(*expected || *out == [false; 2], "{rule}: {out:?}");
        }
        let all = cases.iter().zip(&out).all(|((_, expected), out)| *out == [*expected; 2]);
        if all && begun.elapsed() > INTERVAL * 2 {
            return;
        }
        assert!(begun.elapsed() < LIMIT, "{cases:?}: {out:?}");
    }
}

#[tokio::test]
async fn a_part_of_the_requests_is_dropped_as_by_envoy() {
    let mut oracle = Oracle::start().await;
    let address = oracle.upstreams[0].address;
    let cases =
        [(100, "HUNDRED", 1.0), (30, "HUNDRED", 0.3), (2_000, "TEN_THOUSAND", 0.2), (0, "MILLION", 0.0)];
    let (mut resources, mut routes) = (Vec::new(), Vec::new());
    for (index, (numerator, denominator, _)) in cases.iter().enumerate() {
        let name = format!("dropping{index}");
        let mut assignment = endpoints(&name, &[address]);
        let part = json!({ "numerator": numerator, "denominator": denominator });
        assignment["policy"] =
            json!({ "drop_overloads": [{ "category": "throttle", "drop_percentage": part }] });
        resources.push(cluster(&name, json!({})));
        resources.push(assignment);
        routes.push(json!({ "match": { "path": format!("/{index}") }, "route": { "cluster": name } }));
    }
    let host = json!({ "name": "h", "domains": ["h.test"], "routes": routes });
    resources.push(route_configuration("routes", &[host]));
    oracle.push(resources).await;
    let mut tally = Tally::default();
    for (index, (numerator, denominator, share)) in cases.iter().enumerate() {
        let request = format!("GET /{index} HTTP/1.1\r\nhost: h.test\r\n\r\n");
        let mut shares = [BTreeMap::new(), BTreeMap::new()];
        for _ in 0..100 {
            let outcomes = oracle.both(request.as_bytes(), "ok").await;
            for (outcome, shares) in outcomes.iter().zip(&mut shares) {
                *shares.entry(upstream(outcome)).or_insert(0) += 1;
            }
            // Where chance decides, they differ now and then.
            if outcomes[0].received.status == outcomes[1].received.status {
                tally.compare(&format!("{numerator} {denominator}"), outcomes);
            }
        }
        for (side, got) in ["envoy", "tulle"].iter().zip(&shares) {
            check(&format!("{side} {numerator} {denominator}"), &[("503", *share), ("a", 1.0 - share)], got);
        }
    }
    tally.end(&["local replies"]);
}

#[tokio::test]
async fn a_rule_is_enforced_as_often_as_it_says() {
    const CLUSTERS: usize = 80;
    let mut oracle = Oracle::start().await;
    let addresses = [0, 1].map(|index| oracle.upstreams[index].address);
    let rule = |percent: u32| {
        json!({
            "consecutive_5xx": 1,
            "enforcing_consecutive_5xx": percent,
            "enforcing_success_rate": 0,
            "max_ejection_percent": 100,
            "interval": "300s",
            "base_ejection_time": "300s",
        })
    };
    let (mut resources, mut routes) = (Vec::new(), Vec::new());
    for (group, percent) in [20, 60].into_iter().enumerate() {
        for index in 0..CLUSTERS {
            let name = format!("enforced{group}-{index}");
            resources.push(cluster(&name, json!({ "outlier_detection": rule(percent) })));
            resources.push(endpoints(&name, &addresses));
            let path = format!("/{group}/{index}");
            routes.push(json!({ "match": { "path": path }, "route": { "cluster": name } }));
        }
    }
    let host = json!({ "name": "h", "domains": ["h.test"], "routes": routes });
    resources.push(route_configuration("routes", &[host]));
    oracle.push(resources).await;
    for (group, share) in [0.2, 0.6].into_iter().enumerate() {
        // Each endpoint gets one of two requests, as long as both are in. `b` fails once.
        let mut out = [BTreeMap::new(), BTreeMap::new()];
        for again in [false, true] {
            for index in 0..CLUSTERS {
                let request =
                    format!("POST /{group}/{index} HTTP/1.1\r\nhost: h.test\r\ncontent-length: 2\r\n\r\nhi");
                let mut met = [false; 2];
                for _ in 0..2 {
                    let outcomes = oracle.both(request.as_bytes(), "500@b").await;
                    for (outcome, met) in outcomes.iter().zip(&mut met) {
                        *met |= outcome.received.status == 500;
                    }
                }
                for (met, out) in met.iter().zip(&mut out).filter(|_| again) {
                    *out.entry(if *met { "in" } else { "out" }.to_owned()).or_insert(0) += 1;
                }
            }
        }
        for (side, got) in ["envoy", "tulle"].iter().zip(&out) {
            check(&format!("{side} {share}"), &[("out", share), ("in", 1.0 - share)], got);
        }
    }
}

/// Where endpoints come by EDS, the older field may not ask for it: a policy of load balancing may.
#[tokio::test]
async fn hashing_by_hostname_is_refused_where_envoy_refuses_it() {
    let mut oracle = Oracle::start().await;
    let hashing = json!({ "consistent_hashing_lb_config": { "use_hostname_for_hashing": true } });
    let name = "hashed";
    let more = json!({ "lb_policy": "RING_HASH", "common_lb_config": hashing });
    let routes = json!([{ "match": { "prefix": "/" }, "route": { "cluster": name } }]);
    let host = json!({ "name": "h", "domains": ["h.test"], "routes": routes });
    let hosts = [tulle_tests::oracle::all_clusters(), host];
    let resources = vec![
        tulle_tests::oracle::cluster(name, more),
        tulle_tests::oracle::route_configuration("routes", &hosts),
    ];
    let answers = oracle.offer(resources).await;
    let errors = answers.iter().filter(|answered| answered.kind.ends_with(".Cluster"));
    let errors: Vec<_> = errors.map(|answered| (&*answered.agent, &*answered.error)).collect();
    let [(_, theirs), (_, ours)] = errors[..] else { panic!("{errors:?}") };
    assert!(theirs.contains("Cannot use hostname for consistent hashing"), "{errors:?}");
    assert!(ours.contains("hashed") && ours.contains("use_hostname_for_hashing"), "{errors:?}");
}

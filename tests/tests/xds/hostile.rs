//! A control plane that has lost its mind: whatever it says, the sidecar stays up, in bounds, and serves.
//!
//! After each attack the control plane moves endpoints as a good one does, and traffic follows: so the sidecar lives, hears, and
//! what was good before has stayed in force.

use envoy_types::pb::envoy::config::cluster::v3 as cluster_pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::address::Address as AddressKind;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint_pb;
use envoy_types::pb::envoy::config::route::v3 as route_pb;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatcher;
use envoy_types::pb::google::protobuf::{Any, Duration, UInt32Value};
use prost::{Message, Name};
use tulle_tests::oracle::{Oracle, endpoints};
use tulle_tests::{LIMIT, wait_for};

use crate::generate;

/// The most memory that the sidecar may ever have had, in KiB. The longest of these responses has 28 MB: it is read whole, and
/// its resources stand beside it until they are refused. What is decoded has 300,000 parts at most, each a structure of some
/// hundred bytes. The rest is the program.
const MEMORY: u64 = 256 * 1024;

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

/// A response with resources of a type, each with its name on the wire.
fn response(type_url: &str, resources: Vec<(&str, Any)>) -> Vec<u8> {
    let resources = resources.into_iter().map(|(name, resource)| Resource {
        name: name.into(),
        version: fastrand::u64(..).to_string(),
        resource: Some(resource),
        ..Resource::default()
    });
    let response = DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: "hostile".into(),
        resources: resources.collect(),
        ..DeltaDiscoveryResponse::default()
    };
    response.encode_to_vec()
}

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: format!("type.googleapis.com/{}", M::full_name()), value: message.encode_to_vec() }
}

fn bytes(type_url: &str, value: impl Into<Vec<u8>>) -> Any {
    Any { type_url: type_url.into(), value: value.into() }
}

fn cluster(change: impl FnOnce(&mut cluster_pb::Cluster)) -> Any {
    let mut cluster = cluster_pb::Cluster { name: "a".into(), ..Default::default() };
    change(&mut cluster);
    any(&cluster)
}

fn many_endpoints(count: u32) -> Any {
    let endpoint = |number: u32| {
        let address = core::SocketAddress {
            address: std::net::Ipv4Addr::from(0x0a00_0000 + number).to_string(),
            port_specifier: Some(PortSpecifier::PortValue(80)),
            ..Default::default()
        };
        let endpoint = endpoint_pb::Endpoint {
            address: Some(core::Address { address: Some(AddressKind::SocketAddress(address)) }),
            ..Default::default()
        };
        endpoint_pb::LbEndpoint {
            host_identifier: Some(endpoint_pb::lb_endpoint::HostIdentifier::Endpoint(endpoint)),
            ..Default::default()
        }
    };
    any(&endpoint_pb::ClusterLoadAssignment {
        cluster_name: "a".into(),
        endpoints: vec![endpoint_pb::LocalityLbEndpoints {
            lb_endpoints: (0..count).map(endpoint).collect(),
            ..Default::default()
        }],
        ..Default::default()
    })
}

fn routes(change: impl FnOnce(&mut route_pb::RouteMatch, &mut route_pb::RouteAction)) -> Any {
    let mut matches = route_pb::RouteMatch {
        path_specifier: Some(PathSpecifier::Prefix("/".into())),
        ..Default::default()
    };
    let mut action = route_pb::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster("a".into())),
        ..Default::default()
    };
    change(&mut matches, &mut action);
    let route =
        route_pb::Route { r#match: Some(matches), action: Some(Action::Route(action)), ..Default::default() };
    let host = route_pb::VirtualHost {
        name: "h".into(),
        domains: vec!["*".into()],
        routes: vec![route],
        ..Default::default()
    };
    any(&route_pb::RouteConfiguration {
        name: "routes".into(),
        virtual_hosts: vec![host],
        ..Default::default()
    })
}

fn regex(text: &str) -> Any {
    let regex = RegexMatcher { regex: text.into(), ..Default::default() };
    routes(|matches, _| matches.path_specifier = Some(PathSpecifier::SafeRegex(regex)))
}

fn timeout(seconds: i64, nanos: i32) -> Any {
    routes(|_, action| action.timeout = Some(Duration { seconds, nanos }))
}

/// What is bad in itself: each must be refused, and none of it may be in force.
fn bad_responses() -> Vec<(&'static str, Vec<u8>)> {
    let good = routes(|_, _| {});
    let zero = route_pb::WeightedCluster {
        clusters: vec![route_pb::weighted_cluster::ClusterWeight {
            name: "b".into(),
            weight: Some(UInt32Value { value: 0 }),
            ..Default::default()
        }],
        ..Default::default()
    };
    let mut deep = any(&core::Metadata::default());
    for _ in 0..2_000 {
        deep = bytes(CLUSTER, deep.encode_to_vec());
    }
    let mut invalid = cluster(|_| {}).value;
    // Field 1 with bytes that are not UTF-8.
    invalid.extend([0x0a, 0x02, 0xff, 0xfe]);
    vec![
        (
            "a truncated resource",
            response(ROUTES, vec![("routes", bytes(ROUTES, &good.value[..good.value.len() - 3]))]),
        ),
        (
            "a resource of another type",
            response(ROUTES, vec![("routes", bytes(CLUSTER, good.value.clone()))]),
        ),
        (
            "a resource that is another",
            response(ROUTES, vec![("routes", bytes(ROUTES, cluster(|_| {}).value))]),
        ),
        ("no type at all", response("", vec![("routes", bytes("", ""))])),
        (
            "a type that nobody asked for",
            response("type.googleapis.com/x.Y", vec![("a", bytes("type.googleapis.com/x.Y", "x"))]),
        ),
        ("another name within", response(CLUSTER, vec![("a", cluster(|cluster| cluster.name = "b".into()))])),
        ("names twice", response(CLUSTER, vec![("x", cluster(|_| {})), ("x", cluster(|_| {}))])),
        ("no name", response(CLUSTER, vec![("", cluster(|cluster| cluster.name = String::new()))])),
        (
            "control characters",
            response(
                CLUSTER,
                vec![("a\0\r\n\u{1b}[2J", cluster(|cluster| cluster.name = "a\0\r\n\u{1b}[2J".into()))],
            ),
        ),
        ("bytes that are not UTF-8", response(CLUSTER, vec![("a", bytes(CLUSTER, invalid))])),
        (
            "a very long name",
            response(CLUSTER, vec![("a", cluster(|cluster| cluster.name = "a".repeat(1 << 20)))]),
        ),
        ("a message in a message in a message", response(CLUSTER, vec![("a", deep)])),
        ("a million endpoints", response(ENDPOINTS, vec![("a", many_endpoints(1_000_000))])),
        (
            "a million empty endpoints",
            response(
                ENDPOINTS,
                vec![(
                    "a",
                    bytes(ENDPOINTS, [b"\x0a\x01a".to_vec(), [0x12, 0x00].repeat(1_000_000)].concat()),
                )],
            ),
        ),
        (
            "weights that are zero",
            response(
                ROUTES,
                vec![(
                    "routes",
                    routes(|_, action| {
                        action.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(zero))
                    }),
                )],
            ),
        ),
        ("a negative duration", response(ROUTES, vec![("routes", timeout(-1, 0))])),
        ("a duration of ages", response(ROUTES, vec![("routes", timeout(i64::MAX, i32::MAX))])),
        ("a duration that is none", response(ROUTES, vec![("routes", timeout(1, -1))])),
        (
            "a connect timeout of ages",
            response(
                CLUSTER,
                vec![(
                    "a",
                    cluster(|cluster| {
                        cluster.connect_timeout = Some(Duration { seconds: i64::MAX, nanos: 0 })
                    }),
                )],
            ),
        ),
        ("an expression that is none", response(ROUTES, vec![("routes", regex("(((("))])),
        (
            "an expression that blows up",
            response(ROUTES, vec![("routes", regex("((a{1,1000}){1,1000}){1,1000}"))]),
        ),
        ("an expression without end", response(ROUTES, vec![("routes", regex(&"(".repeat(200_000)))])),
    ]
}

/// Those of them that nobody asked for.
const PASSED_OVER: [&str; 2] = ["no name", "control characters"];

#[tokio::test]
async fn what_is_bad_in_itself_is_refused_and_the_good_stays() {
    let mut oracle = Oracle::start().await;
    for (attack, message) in bad_responses() {
        let rejected = rejections(&oracle).len();
        oracle.ads.say(&[message], 1).await;
        let refused = || async {
            let now = rejections(&oracle).len();
            if now > rejected || PASSED_OVER.contains(&attack) {
                Ok(())
            } else {
                Err("it is not refused".to_owned())
            }
        };
        wait_for(LIMIT, refused)
            .await
            .unwrap_or_else(|error| panic!("{attack}: {error}\n{}", oracle.sidecar.process.log()));
        still_serves(&mut oracle, attack).await;
    }
    in_bounds(&oracle);
}

#[tokio::test]
async fn messages_that_are_none_cost_a_stream_and_nothing_else() {
    let (seed, cases) = generate::seed(15);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut oracle = Oracle::start().await;
    let good = || response(ROUTES, vec![("routes", routes(|_, _| {}))]);
    for case in 0..cases {
        let mut message = good();
        let damage = random.u8(0..4);
        match damage {
            0 => message.truncate(random.usize(1..message.len())),
            1 => message = (0..random.usize(1..4000)).map(|_| random.u8(..)).collect(),
            2 => {
                let at = random.usize(..message.len());
                message[at] ^= 1 << random.u8(0..8);
            }
            _ => message.extend((0..random.usize(1..20)).map(|_| random.u8(..))),
        }
        oracle.ads.say(&[message], 1).await;
        if damage == 2 {
            // One bit may make sound routes of another meaning, which are obeyed until the others come again.
            oracle.ads.say(&[good()], 1).await;
            until_served(&oracle, &format!("seed {seed}, message {case}")).await;
        }
        still_serves(&mut oracle, &format!("seed {seed}, message {case}")).await;
    }
    in_bounds(&oracle);
}

#[tokio::test]
async fn who_stalls_in_the_middle_of_a_message_is_left() {
    let mut oracle = Oracle::start().await;
    for bytes in [3, 20_000] {
        let before = oracle.valve.opened();
        oracle.valve.shut_after(bytes);
        let long = response(ENDPOINTS, vec![("a", many_endpoints(40_000))]);
        oracle.ads.say(&[long], 1).await;
        let left = || async {
            // What was good before stays in force meanwhile.
            let [_, tulle] = oracle.both(b"GET /a HTTP/1.1\r\nhost: all.test\r\n\r\n", "ok").await;
            assert_eq!(tulle.received.status, 200, "after {bytes} bytes: {tulle}");
            let connections = oracle.valve.opened();
            if connections > before { Ok(()) } else { Err(format!("{connections} connections")) }
        };
        wait_for(LIMIT * 2, left).await.unwrap_or_else(|error| panic!("after {bytes} bytes: {error}"));
        still_serves(&mut oracle, &format!("a stall after {bytes} bytes")).await;
    }
    in_bounds(&oracle);
}

#[tokio::test]
async fn a_flood_is_drunk() {
    let mut oracle = Oracle::start().await;
    let flip = |seconds| {
        let cluster = cluster(|cluster| {
            cluster.connect_timeout = Some(Duration { seconds, nanos: 0 });
            let eds = core::ConfigSource {
                config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
                    Default::default(),
                )),
                ..Default::default()
            };
            cluster.cluster_discovery_type = Some(cluster_pb::cluster::ClusterDiscoveryType::Type(
                cluster_pb::cluster::DiscoveryType::Eds as i32,
            ));
            cluster.eds_cluster_config =
                Some(cluster_pb::cluster::EdsClusterConfig { eds_config: Some(eds), ..Default::default() });
        });
        response(CLUSTER, vec![("a", cluster)])
    };
    // One resource that is another each time, and thousands that nobody asked for.
    let strangers: Vec<_> = (0..2_000).map(|number| format!("stranger-{number}")).collect();
    let strangers =
        strangers.iter().map(|name| (name.as_str(), cluster(|cluster| cluster.name.clone_from(name))));
    let strangers = response(CLUSTER, strangers.collect());
    oracle.ads.say(&[flip(1), flip(2)], 2_000).await;
    oracle.ads.say(&[strangers], 50).await;
    still_serves(&mut oracle, "a flood").await;
    let config = oracle.sidecar_config().await;
    assert!(!config.to_string().contains("stranger"), "what nobody wants is not kept");
    in_bounds(&oracle);
}

#[tokio::test]
async fn references_that_lead_nowhere_or_in_a_circle_end() {
    let mut oracle = Oracle::start().await;
    let nowhere =
        routes(|_, action| action.cluster_specifier = Some(ClusterSpecifier::Cluster("nowhere".into())));
    let circle = routes(|_, action| {
        action.cluster_specifier = Some(ClusterSpecifier::Cluster("routes".into()));
        action.request_mirror_policies = vec![route_pb::route_action::RequestMirrorPolicy {
            cluster: "routes".into(),
            ..Default::default()
        }];
    });
    for (attack, resource) in [("nowhere", nowhere), ("a circle", circle)] {
        oracle.ads.say(&[response(ROUTES, vec![("routes", resource)])], 1).await;
        // It is as good as any other, and so is the next.
        let host = serde_json::json!({ "name": attack, "domains": [attack], "routes": [] });
        oracle.routes(&[host]).await;
        // What nothing referred to meanwhile was let go, and is asked for again.
        until_served(&oracle, attack).await;
        still_serves(&mut oracle, attack).await;
    }
    in_bounds(&oracle);
}

/// The NACKs of the sidecar.
fn rejections(oracle: &Oracle) -> Vec<String> {
    let log = oracle.sidecar.process.log();
    log.lines().filter(|line| line.contains("rejected a part of")).map(str::to_owned).collect()
}

/// Waits until the sidecar serves what it is told again.
async fn until_served(oracle: &Oracle, after: &str) {
    let served = || async {
        let [_, tulle] = oracle.both(b"GET /a HTTP/1.1\r\nhost: all.test\r\n\r\n", "ok").await;
        if tulle.received.status == 200 { Ok(()) } else { Err(tulle.to_string()) }
    };
    wait_for(LIMIT, served).await.unwrap_or_else(|error| panic!("after {after}: {error}"));
}

/// Moves an endpoint, and waits until the sidecar's requests go there.
async fn still_serves(oracle: &mut Oracle, after: &str) {
    for at in [1, 0] {
        let upstream = &oracle.upstreams[at];
        let (name, address) = (upstream.name.clone(), upstream.address);
        oracle.ads.set(vec![endpoints("a", &[address])]).await;
        let oracle = &*oracle;
        let moved = || async {
            let [_, tulle] = oracle.both(b"GET /a HTTP/1.1\r\nhost: all.test\r\n\r\n", "ok").await;
            assert_eq!(tulle.received.status, 200, "after {after}: {tulle}");
            let cluster = tulle.upstream.first().map(|(cluster, _)| cluster.clone());
            if cluster.as_ref() == Some(&name) { Ok(()) } else { Err(format!("{cluster:?}, not {name}")) }
        };
        wait_for(LIMIT, moved)
            .await
            .unwrap_or_else(|error| panic!("after {after}: {error}\n{}", oracle.sidecar.process.log()));
    }
}

fn in_bounds(oracle: &Oracle) {
    let pid = oracle.sidecar.process.id().expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel counts it");
    let most: u64 = most.trim().trim_end_matches(" kB").parse().expect("a number");
    println!("at most {most} KiB");
    assert!(most < MEMORY, "it has used {most} KiB");
}

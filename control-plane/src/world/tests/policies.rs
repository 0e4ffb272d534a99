use std::time::Duration;

use tulle_mesh::model::{
    AccessLogFormat, FilterChain, Format, HashPolicy, HttpConnection, HttpFilter, LoadBalancer, PerMillion,
    Protocol, RouteAction, Transport,
};

use super::support::{problems, routes, service, workload, world};
use crate::world::World;

const INBOUND: &str = "tulle/inbound/127.0.0.1:25001";

pub(super) fn policy(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

pub(super) const CART: &str = "targetRefs: [{kind: Service, name: cart}]";
const SHOP: &str = "targetRefs: [{kind: Namespace, name: shop}]";

/// Service `cart` on a port with that name, one workload behind it, and policies.
pub(super) fn with(port: &str, policies: &[String]) -> World {
    let world = world(&format!(
        "{}{}{}",
        service("shop", "cart", &format!("ports: [{{name: {port}, port: 80, targetPort: http}}]")),
        workload("shop", "cart-1", "cart", "127.0.0.1", 8080, 25001),
        policies.concat()
    ));
    assert_eq!(problems(&world), Vec::<String>::new());
    world
}

pub(super) fn chains(world: &World) -> &[FilterChain] {
    &world.listener(INBOUND).expect("made").chains
}

fn names(world: &World) -> Vec<&str> {
    chains(world).iter().map(|chain| chain.name.as_str()).collect()
}

fn http(chain: &FilterChain) -> &HttpConnection {
    match &chain.protocol {
        Protocol::Http(http) => http,
        Protocol::Tcp(_) => panic!("{} does not carry HTTP", chain.name),
    }
}

#[test]
fn modes_decide_which_connections_are_let_in() {
    let mode = |mode: &str| policy("InboundPolicy", "p", &format!("{SHOP}, mtls: {{mode: {mode}}}"));
    let cases = [
        ("http", vec![], "mtls-http plaintext-http"),
        ("http", vec![mode("Strict")], "mtls-http"),
        ("http", vec![mode("Disabled")], "plaintext-http"),
        ("tcp", vec![], "mtls-tcp plaintext-tcp"),
        ("tcp", vec![mode("Strict")], "mtls-tcp"),
        ("any", vec![], "mtls-http mtls-tcp plaintext-http plaintext-tcp own-tls"),
        ("any", vec![mode("Strict")], "mtls-http mtls-tcp"),
        ("any", vec![mode("Disabled")], "plaintext-http plaintext-tcp own-tls"),
    ];
    for (port, policies, expected) in cases {
        let world = world(&format!(
            "{}{}{}",
            service("shop", "cart", &format!("ports: [{{name: {port}, port: 80, targetPort: main}}]")),
            workload("shop", "cart-1", "cart", "127.0.0.1", 8080, 25001).replace("name: http", "name: main"),
            policies.concat()
        ));
        assert_eq!(names(&world).join(" "), expected, "{port} {policies:?}");
        for chain in chains(&world).iter().filter(|chain| chain.name.starts_with("mtls")) {
            assert_eq!(chain.matches.transport, Some(Transport::Tls));
            assert!(chain.tls.as_ref().is_some_and(|tls| tls.require_client_certificate), "{port}");
        }
    }
}

#[test]
fn the_mesh_s_tls_is_told_from_the_application_s_own_by_server_name() {
    let world = with("tcp", &[]);
    assert_eq!(
        chains(&world)[0].matches.server_names,
        ["outbound_.80_._.cart.shop.svc.cluster.local", "outbound_.25001_._.127-0-0-1.ip"]
    );
}

#[test]
fn a_policy_of_a_service_goes_before_one_of_its_namespace_field_by_field() {
    let world = with(
        "http",
        &[
            policy(
                "InboundPolicy",
                "all",
                &format!("{SHOP}, mtls: {{mode: Strict}}, rateLimit: {{total: {{count: 5}}}}"),
            ),
            policy(
                "InboundPolicy",
                "own",
                &format!("{CART}, rateLimit: {{perClient: {{count: 7, interval: 1m}}}}"),
            ),
        ],
    );
    assert_eq!(names(&world), ["mtls-http"], "the Service's policy says nothing about mTLS");
    let limits: Vec<_> = http(&chains(&world)[0])
        .filters
        .iter()
        .filter_map(|filter| match filter {
            HttpFilter::LocalRateLimit(limit) => {
                Some((limit.name.as_str(), limit.per_client, limit.bucket.burst, limit.bucket.fill_interval))
            }
            _ => None,
        })
        .collect();
    assert_eq!(limits, [("shop/own/per-client", true, 7, Duration::from_secs(60))]);
}

#[test]
fn exceptions_for_ports_hold_for_the_application_s_port() {
    let world = with(
        "http",
        &[policy(
            "InboundPolicy",
            "p",
            &format!(
                "{SHOP}, mtls: {{mode: Strict}}, ports: [{{port: 8080, mtls: {{mode: Permissive}}, protocol: TCP}}]"
            ),
        )],
    );
    assert_eq!(names(&world), ["mtls-tcp", "plaintext-tcp"]);
}

#[test]
fn rate_limits_for_single_clients_name_their_identities() {
    let spec = format!(
        "{CART}, rateLimit: {{total: {{count: 9}}, overrides: [{{clientRefs: [{{kind: ServiceAccount, name: batch}}, {{kind: ServiceAccount, name: etl, namespace: data}}], rate: {{count: 2}}}}]}}"
    );
    let world = with("http", &[policy("InboundPolicy", "p", &spec)]);
    let clients: Vec<_> = http(&chains(&world)[0])
        .filters
        .iter()
        .filter_map(|filter| match filter {
            HttpFilter::LocalRateLimit(limit) => Some(limit.clients.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(
        clients,
        [
            vec![],
            vec![
                "spiffe://mesh.test/ns/shop/sa/batch".to_owned(),
                "spiffe://mesh.test/ns/data/sa/etl".to_owned()
            ]
        ]
    );
}

#[test]
fn http_is_limited_by_concurrency_in_any_case() {
    let world = with("http", &[]);
    for chain in chains(&world) {
        assert!(matches!(http(chain).filters[..], [HttpFilter::AdaptiveConcurrency(_)]), "{}", chain.name);
    }
}

#[test]
fn the_concurrency_limit_moves_between_what_the_policy_says() {
    let bounds = |limit: &str| {
        let world =
            with("http", &[policy("InboundPolicy", "calm", &format!("{SHOP}, concurrencyLimit: {limit}"))]);
        match &http(&chains(&world)[0]).filters[..] {
            [HttpFilter::AdaptiveConcurrency(limit)] => (limit.min_concurrency, limit.max_concurrency),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(bounds("{min: 500, max: 2000}"), (500, 2000));
    assert_eq!(bounds("{min: 20}"), (20, 10_000));
}

#[test]
fn telemetry_holds_at_both_ends() {
    let world = with(
        "http",
        &[
            policy(
                "TelemetryPolicy",
                "all",
                &format!("{SHOP}, tracing: {{samplingRate: {{numerator: 25}}}}, accessLog: {{mode: JSON}}"),
            ),
            policy("TelemetryPolicy", "own", &format!("{CART}, accessLog: {{mode: Text, format: 'x'}}")),
        ],
    );
    let outbound = world.listener("cart.shop.svc.cluster.local:80").expect("made");
    for chain in chains(&world).iter().chain(&outbound.chains) {
        let http = http(chain);
        assert_eq!(
            http.tracing.as_ref().map(|tracing| tracing.random_sampling),
            Some(PerMillion::percent(25))
        );
        assert_eq!(
            http.access_log.as_ref().map(|log| &log.format),
            Some(&AccessLogFormat::Text(Format::lenient("x")))
        );
    }
    let off =
        with("http", &[policy("TelemetryPolicy", "p", &format!("{SHOP}, tracing: {{mode: Disabled}}"))]);
    assert_eq!(http(&chains(&off)[0]).tracing, None);
    let default = with("http", &[]);
    assert_eq!(
        http(&chains(&default)[0]).tracing.as_ref().map(|tracing| tracing.random_sampling.0),
        Some(10_000)
    );
    assert_eq!(http(&chains(&default)[0]).access_log, None);
}

#[test]
fn a_telemetry_policy_of_the_control_planes_namespace_holds_for_the_whole_mesh() {
    let mesh = "---\napiVersion: tulle.dev/v1alpha1\nkind: TelemetryPolicy\n\
                metadata: {name: mesh, namespace: tulle-system}\n\
                spec: {targetRefs: [{kind: Namespace, name: tulle-system}], accessLog: {mode: JSON}, \
                tracing: {samplingRate: {numerator: 50}, provider: {backendRef: {name: cart, namespace: shop, port: 80}}}}\n";
    let tracing = |more: &[String]| {
        let world = with("http", &[&[mesh.to_owned()], more].concat());
        let outbound = world.listener("cart.shop.svc.cluster.local:80").expect("made");
        let all: Vec<_> =
            chains(&world).iter().chain(&outbound.chains).map(|chain| http(chain).clone()).collect();
        assert!(all.iter().all(|http| http.access_log.is_some()), "{all:?}");
        all.into_iter()
            .map(|http| http.tracing.map(|tracing| (tracing.random_sampling, tracing.collector)))
            .collect::<Vec<_>>()
    };
    let collector = Some("outbound|80||cart.shop.svc.cluster.local".to_owned());
    for found in tracing(&[]) {
        assert_eq!(found, Some((PerMillion::percent(50), collector.clone())));
    }
    // What a narrower one says goes before; the rest stays.
    let narrow =
        policy("TelemetryPolicy", "p", &format!("{SHOP}, tracing: {{samplingRate: {{numerator: 25}}}}"));
    for found in tracing(&[narrow]) {
        assert_eq!(found, Some((PerMillion::percent(25), collector.clone())));
    }
    let off = policy("TelemetryPolicy", "p", &format!("{CART}, tracing: {{mode: Disabled}}"));
    assert!(tracing(&[off]).iter().all(Option::is_none));
}

#[test]
fn traffic_policies_shape_clusters() {
    let spec = format!(
        "{CART}, loadBalancer: {{algorithm: LeastRequest}}, connection: {{connectTimeout: 1s}}, \
         circuitBreaker: {{maxConnections: 3, maxPendingRequests: 4, maxConcurrentRequests: 5}}, \
         outlierDetection: {{consecutiveErrors: 2, successRate: {{minimumPercent: 0}}}}, \
         retryConstraint: {{budget: {{percent: 30}}, minRetryRate: {{count: 1, interval: 3s}}}}"
    );
    let name = "outbound|80||cart.shop.svc.cluster.local";
    let world = with("http", &[policy("BackendTrafficPolicy", "p", &spec)]);
    let cluster = world.cluster(name).expect("made");
    assert_eq!(cluster.load_balancer, LoadBalancer::LeastRequest { choices: 2, bias: 1.0 });
    assert_eq!(cluster.connect_timeout, Some(Duration::from_secs(1)));
    let limits = &cluster.limits;
    assert_eq!(
        (limits.max_connections, limits.max_pending_requests, limits.max_requests),
        (Some(3), Some(4), Some(5))
    );
    let budget = limits.retry_budget.as_ref().expect("given");
    assert_eq!((budget.percent, budget.min_per_second, budget.interval), (30.0, 1, Duration::from_secs(10)));
    let outlier = cluster.outlier_detection.as_ref().expect("given");
    assert_eq!(
        (outlier.consecutive_failures, &outlier.failure_percentage, outlier.max_ejection_percent),
        (2, &None, 50)
    );

    let plain = with("http", &[]);
    let cluster = plain.cluster(name).expect("made");
    assert_eq!(cluster.load_balancer, LoadBalancer::PeakEwma);
    assert_eq!(
        (&cluster.outlier_detection, &cluster.limits.retry_budget),
        (&Some(tulle_mesh::model::OutlierDetection::MESH), &None),
        "the mesh's rule, and the sidecar's default"
    );
    assert!(cluster.tls.as_ref().is_some_and(|tls| tls.only_meshed_endpoints));
}

#[test]
fn the_client_s_end_keeps_the_time_without_movement() {
    let idle = |settings: &str| {
        let spec = format!("{CART}, connection: {{{settings}}}");
        let world = with("any", &[policy("BackendTrafficPolicy", "p", &spec)]);
        let of = |chains: &[FilterChain]| {
            let each = chains.iter().map(|chain| match &chain.protocol {
                Protocol::Http(http) => (None, http.stream_idle_timeout.map(|idle| idle.as_secs())),
                Protocol::Tcp(tcp) => (tcp.idle_timeout.map(|idle| idle.as_secs()), None),
            });
            each.fold((None, None), |all, each: (Option<u64>, Option<u64>)| {
                (all.0.or(each.0), all.1.or(each.1))
            })
        };
        let RouteAction::Forward(forward) = &routes(&world, "cart.shop:80", "")[0].action else { panic!() };
        let cluster = world.cluster("outbound|80||cart.shop.svc.cluster.local").expect("made");
        let listener = world.listener("cart.shop.svc.cluster.local:80").expect("made");
        let secs = |time: Option<Duration>| time.map(|time| time.as_secs());
        ((secs(cluster.idle_timeout), secs(forward.timeouts.idle)), of(&listener.chains), of(chains(&world)))
    };
    // At the client's end, the cluster and the route; then the listeners of the client's end and of the server's.
    let hour = Some(3600);
    assert_eq!(idle(""), ((None, None), (None, hour), (None, hour)));
    assert_eq!(
        idle("idleTimeout: 5s, streamIdleTimeout: 6s"),
        ((Some(5), Some(6)), (Some(5), hour), (None, hour))
    );
    assert_eq!(
        idle("idleTimeout: 2h, streamIdleTimeout: 0s"),
        // The workload's port is one of HTTP by its name.
        ((Some(7200), Some(0)), (Some(7200), Some(0)), (None, Some(0)))
    );
}

#[test]
fn a_policy_of_a_port_goes_before_one_of_the_service() {
    let at = |port: &str, algorithm: &str| {
        format!("targetRefs: [{{kind: Service, name: cart{port}}}], loadBalancer: {{algorithm: {algorithm}}}")
    };
    let world = with(
        "http",
        &[
            policy("BackendTrafficPolicy", "a", &at("", "Random")),
            policy("BackendTrafficPolicy", "b", &at(", sectionName: http", "RoundRobin")),
        ],
    );
    let cluster = world.cluster("outbound|80||cart.shop.svc.cluster.local").expect("made");
    assert_eq!(cluster.load_balancer, LoadBalancer::RoundRobin);
}

#[test]
fn a_consistent_hash_reaches_routes_and_cluster() {
    let spec = format!(
        "{CART}, loadBalancer: {{algorithm: ConsistentHash, consistentHash: {{type: Header, header: {{name: X-User}}}}}}"
    );
    let world = with("http", &[policy("BackendTrafficPolicy", "p", &spec)]);
    let cluster = world.cluster("outbound|80||cart.shop.svc.cluster.local").expect("made");
    assert!(matches!(cluster.load_balancer, LoadBalancer::RingHash { .. }));
    let routes = routes(&world, "cart.shop:80", "");
    let RouteAction::Forward(forward) = &routes[0].action else { panic!("{routes:?}") };
    assert_eq!(
        forward.hash,
        [HashPolicy::Header { name: "x-user".parse().expect("a name"), rewrite: None, terminal: true }]
    );
}

#[test]
fn a_policy_with_a_fault_is_not_accepted_and_says_where() {
    let cart = service("shop", "cart", "ports: [{name: http, port: 80}]");
    for (kind, spec, message) in [
        (
            "BackendTrafficPolicy",
            "sessionPersistence: {sessionName: 'a b'}",
            "spec.sessionPersistence.sessionName: \"a b\" is not a cookie's name; correct the name",
        ),
        (
            "BackendTrafficPolicy",
            "loadBalancer: {algorithm: ConsistentHash}",
            "spec.loadBalancer.consistentHash: ConsistentHash needs to know what to hash; add consistentHash with a type",
        ),
        (
            "AuthorizationPolicy",
            "action: ALLOW, rules: [{http: {paths: [{type: Exact, value: /}]}}]",
            "spec.rules[0].http: conditions on requests need enforcementLevel: Application; \
             set it; until then the policy is taken as if it were",
        ),
    ] {
        // One target more than there is: that one says what is wrong with itself.
        let targets = "targetRefs: [{kind: Service, name: cart}, {kind: Service, name: missing}]";
        let workload = workload("shop", "cart-1", "cart", "127.0.0.1", 8080, 25001);
        let made = world(&format!("{cart}{workload}{}", policy(kind, "p", &format!("{targets}, {spec}"))));
        let (_, targets) =
            made.statuses.iter().find(|(object, _)| object.kind == kind).expect("it has targets");
        let said: Vec<_> = targets
            .iter()
            .map(|target| (target.conditions[0].reason, &*target.conditions[0].message))
            .collect();
        assert_eq!(said[0], ("Invalid", message), "{kind}: {:?}", problems(&made));
        assert_eq!(said[1].0, "TargetNotFound", "{kind}: {said:?}");
    }
}

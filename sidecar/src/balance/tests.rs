mod health;

use std::collections::HashMap;

use proptest::prelude::*;
use tulle_mesh::model::{
    Discovery, EndpointAddress, HashFunction, Hashing, Health, Limits, LoadAssignment, LoadBalancer,
    Locality, LocalityEndpoints,
};

use super::pick::NoEndpoint;
use super::set::Draws;
use super::*;
use crate::telemetry::metrics::ClusterSeries;

pub(crate) fn model(load_balancer: LoadBalancer) -> model::Cluster {
    model::Cluster {
        load_balancer,
        outlier_detection: Some(model::OutlierDetection::MESH),
        ..model::Cluster::new("outbound|80||cart.shop", Discovery::Eds("outbound|80||cart.shop".into()))
    }
}

const fn ring(min_size: u64) -> LoadBalancer {
    let hashing = Hashing { by_hostname: false, balance_factor: None };
    LoadBalancer::RingHash { min_size, max_size: 8 << 20, function: HashFunction::Xx, hashing }
}

fn endpoint(last: u8) -> model::Endpoint {
    model::Endpoint::new(EndpointAddress::Socket(SocketAddr::from(([10, 0, 0, last], 80))))
}

fn place(priority: u32, weight: u32, endpoints: Vec<model::Endpoint>) -> LocalityEndpoints {
    LocalityEndpoints { locality: Locality::default(), priority, weight, endpoints }
}

fn assignment(localities: Vec<LocalityEndpoints>) -> LoadAssignment {
    LoadAssignment { overprovisioning: None, name: String::new(), localities, drops: Vec::new() }
}

fn of(n: u8) -> LoadAssignment {
    assignment(vec![place(0, 1, (0..n).map(endpoint).collect())])
}

fn build(
    model: model::Cluster,
    endpoints: &LoadAssignment,
    previous: Option<&Arc<Cluster>>,
    now: Instant,
) -> Arc<Cluster> {
    let series = Arc::new(ClusterSeries::default());
    Cluster::build_at(&[], Arc::new(model), Some(endpoints), previous, series, now, 7)
}

/// How often each endpoint (by the last byte of its address) is picked.
fn shares(cluster: &Cluster, picks: u64, now: Instant, tried: &[u64]) -> HashMap<u8, u64> {
    let mut draws = Draws(42);
    let mut shares = HashMap::new();
    for _ in 0..picks {
        let pick = Pick { now, random: draws.next(), hash: None, tried };
        *shares.entry(last(cluster.pick(&pick).expect("has endpoints"))).or_default() += 1;
    }
    shares
}

fn last(endpoint: &Endpoint) -> u8 {
    match endpoint.address {
        SocketAddr::V4(address) => address.ip().octets()[3],
        SocketAddr::V6(_) => unreachable!("the tests use IPv4"),
    }
}

fn nth(cluster: &Cluster, n: u8) -> &Arc<Endpoint> {
    cluster.endpoints.iter().find(|e| last(e) == n).expect("exists")
}

fn fail(cluster: &Arc<Cluster>, n: u8, times: u32, now: Instant) {
    for _ in 0..times {
        cluster.begin(nth(cluster, n)).report(Outcome::Failure, now, 0);
    }
}

const ALL: [LoadBalancer; 5] = [
    LoadBalancer::PeakEwma,
    LoadBalancer::LeastRequest { choices: 2, bias: 1.0 },
    LoadBalancer::RoundRobin,
    LoadBalancer::Random,
    ring(1024),
];

#[test]
fn idle_equal_endpoints_share_equally_under_every_balancer() {
    let now = Instant::now();
    for balancer in ALL {
        let shares = shares(&build(model(balancer), &of(4), None, now), 8000, now, &[]);
        for n in 0..4 {
            assert!((1500..2500).contains(&shares[&n]), "{balancer:?}: {shares:?}");
        }
    }
}

#[test]
fn weights_are_followed() {
    let now = Instant::now();
    let mut endpoints = of(2);
    endpoints.localities[0].endpoints[0].weight = 3;
    for balancer in [LoadBalancer::RoundRobin, ring(4096)] {
        let shares = shares(&build(model(balancer), &endpoints, None, now), 8000, now, &[]);
        assert!((5600..6400).contains(&shares[&0]), "{balancer:?}: {shares:?}");
    }
    let random = shares(&build(model(LoadBalancer::Random), &endpoints, None, now), 8000, now, &[]);
    assert!((3600..4400).contains(&random[&0]), "chance alone, as with Envoy: {random:?}");
}

#[test]
fn a_slow_endpoint_gets_less_than_a_fifth_of_a_fast_ones_share() {
    let now = Instant::now();
    let cluster = build(model(LoadBalancer::PeakEwma), &of(5), None, now);
    for n in 0..5 {
        let latency = Duration::from_millis(if n == 0 { 100 } else { 10 });
        cluster.begin(nth(&cluster, n)).observe(latency, now);
    }
    let shares = shares(&cluster, 5000, now, &[]);
    assert!(shares.get(&0).copied().unwrap_or(0) * 5 < shares[&1], "{shares:?}");
}

#[test]
fn least_request_prefers_the_idle_one() {
    let now = Instant::now();
    let cluster = build(model(LoadBalancer::LeastRequest { choices: 2, bias: 1.0 }), &of(2), None, now);
    let held = cluster.begin(nth(&cluster, 0));
    assert_eq!(shares(&cluster, 10_000, now, &[]), HashMap::from([(1, 10_000)]), "both are always compared");
    drop(held);
    assert_eq!(nth(&cluster, 0).stats.in_flight(), 0);

    // Where weights differ, what is in flight counts against them.
    let mut endpoints = of(2);
    endpoints.localities[0].endpoints[0].weight = 3;
    for (bias, expected) in [(0.0, 7_500), (1.0, 6_000), (3.0, 2_727)] {
        let balancer = LoadBalancer::LeastRequest { choices: 2, bias };
        let cluster = build(model(balancer), &endpoints, None, now);
        assert!((7_000..8_000).contains(&shares(&cluster, 10_000, now, &[])[&0]), "both are idle");
        let _held = cluster.begin(nth(&cluster, 0));
        let busy = shares(&cluster, 10_000, now, &[])[&0];
        assert!(busy.abs_diff(expected) < 500, "{bias}: {busy}");
    }
}

#[test]
fn a_second_draw_is_of_the_others_by_their_weights() {
    for (weights, not) in [([1, 1, 1], 1), ([5, 1, 3], 0), ([5, 1, 3], 1), ([5, 1, 3], 2)] {
        let mut draws = Draws(42);
        let shares = super::set::Shares::new(weights.into_iter());
        let mut drawn = [0; 3];
        for _ in 0..10_000 {
            drawn[shares.draw_other(not, &mut draws).expect("there are others")] += 1;
        }
        let rest: u64 = weights.iter().sum::<u64>() - weights[not];
        for (index, count) in drawn.into_iter().enumerate() {
            let expected = if index == not { 0 } else { weights[index] * 10_000 / rest };
            // Six standard deviations.
            assert!(expected.abs_diff(count) <= if index == not { 0 } else { 300 }, "{weights:?}: {drawn:?}");
        }
    }
    let alone = super::set::Shares::new([7].into_iter());
    assert_eq!(alone.draw_other(0, &mut Draws(42)), None);
}

#[test]
fn what_was_tried_is_avoided_while_there_are_others() {
    let now = Instant::now();
    for balancer in ALL {
        let cluster = build(model(balancer), &of(3), None, now);
        let tried = [nth(&cluster, 0).id, nth(&cluster, 1).id];
        assert_eq!(shares(&cluster, 100, now, &tried), HashMap::from([(2, 100)]), "{balancer:?}");
        let cluster = build(model(balancer), &of(1), None, now);
        let tried = [nth(&cluster, 0).id];
        assert_eq!(shares(&cluster, 10, now, &tried), HashMap::from([(0, 10)]), "{balancer:?}");
        assert_eq!(cluster.state.series.panics.value(), 0);
    }
}

#[test]
fn an_ejected_endpoint_gets_nothing_and_then_one_probe() {
    let now = Instant::now();
    for balancer in ALL {
        let cluster = build(model(balancer), &of(4), None, now);
        fail(&cluster, 0, 5, now);
        assert_eq!(cluster.state.series.ejections.value(), 1);
        assert!(!shares(&cluster, 1000, now, &[]).contains_key(&0), "{balancer:?}");

        let due = now + Duration::from_millis(1300);
        assert_eq!(shares(&cluster, 1000, due, &[])[&0], 1, "{balancer:?}: one probe");
        cluster.begin(nth(&cluster, 0)).report(Outcome::Success, due, 0);
        let later = due + Duration::from_secs(100);
        assert!(shares(&cluster, 1000, later, &[])[&0] > 100, "{balancer:?}");
    }
}

#[test]
fn when_all_are_ejected_or_unhealthy_all_are_used_and_that_is_counted() {
    let now = Instant::now();
    let mut rule = model::OutlierDetection::MESH;
    rule.max_ejection_percent = 99;
    let wide = model::Cluster { outlier_detection: Some(rule), ..model(LoadBalancer::PeakEwma) };
    let cluster = build(wide.clone(), &of(3), None, now);
    (0..3).for_each(|n| fail(&cluster, n, 6, now));
    assert_eq!(shares(&cluster, 100, now, &[]).len(), 1, "the last one is not ejected");

    let smaller = assignment(vec![place(0, 1, vec![endpoint(0), endpoint(1)])]);
    let cluster = build(wide, &smaller, Some(&cluster), now);
    assert_eq!(shares(&cluster, 100, now, &[]).len(), 2);
    assert_eq!(cluster.state.series.panics.value(), 100);

    let mut unhealthy = of(2);
    unhealthy.localities[0].endpoints[0].health = Health::Unhealthy;
    unhealthy.localities[0].endpoints[1].health = Health::Draining;
    let cluster = build(model(LoadBalancer::PeakEwma), &unhealthy, None, now);
    assert_eq!(shares(&cluster, 100, now, &[]), HashMap::from([(1, 100)]), "draining before unhealthy");
    let cluster = build(model(LoadBalancer::PeakEwma), &of(0), None, now);
    let pick = Pick { now, random: 1, hash: None, tried: &[] };
    assert_eq!(cluster.pick(&pick).err(), Some(NoEndpoint));
}

#[test]
fn draining_and_unhealthy_endpoints_get_nothing_beside_healthy_ones() {
    let now = Instant::now();
    let mut endpoints = of(4);
    endpoints.localities[0].endpoints[0].health = Health::Unhealthy;
    endpoints.localities[0].endpoints[1].health = Health::Draining;
    for balancer in ALL {
        let shares = shares(&build(model(balancer), &endpoints, None, now), 500, now, &[]);
        assert_eq!(shares.len(), 2, "{balancer:?}: {shares:?}");
    }
}

#[test]
fn a_lower_priority_takes_what_the_upper_has_no_room_for() {
    let now = Instant::now();
    let mut upper: Vec<_> = (0..10).map(endpoint).collect();
    let lower = vec![endpoint(100)];
    let share_of_lower = |upper: &Vec<model::Endpoint>| {
        let both = assignment(vec![place(1, 1, lower.clone()), place(0, 1, upper.clone())]);
        let shares = shares(&build(model(LoadBalancer::PeakEwma), &both, None, now), 10_000, now, &[]);
        shares.get(&100).copied().unwrap_or(0)
    };
    upper[..2].iter_mut().for_each(|e| e.health = Health::Unhealthy);
    assert_eq!(share_of_lower(&upper), 0, "8 of 10 carry all of it");
    upper[..5].iter_mut().for_each(|e| e.health = Health::Unhealthy);
    assert!((2700..3300).contains(&share_of_lower(&upper)), "5 of 10 carry 70 %");
    let both = assignment(vec![place(1, 1, lower.clone()), place(0, 1, upper.clone())]);
    let strict = LoadAssignment { overprovisioning: Some(100), ..both };
    let shares = shares(&build(model(LoadBalancer::PeakEwma), &strict, None, now), 10_000, now, &[]);
    assert!((4700..5300).contains(&shares[&100]), "5 of 10 carry half where nobody stands in for others");
    upper.iter_mut().for_each(|e| e.health = Health::Unhealthy);
    assert_eq!(share_of_lower(&upper), 10_000);
}

#[test]
fn localities_share_by_weight() {
    let now = Instant::now();
    let near = place(0, 9, vec![endpoint(0)]);
    let far = place(0, 1, vec![endpoint(1), endpoint(2), endpoint(3)]);
    let cluster = build(model(LoadBalancer::PeakEwma), &assignment(vec![near, far]), None, now);
    let weighed = shares(&cluster, 10_000, now, &[]);
    assert!((8700..9300).contains(&weighed[&0]), "{weighed:?}");

    let near = place(0, 9, vec![endpoint(0)]);
    let far = place(0, 1, vec![endpoint(1), endpoint(2), endpoint(3)]);
    let alike = model::Cluster { ignores_localities: true, ..model(LoadBalancer::RoundRobin) };
    let cluster = build(alike, &assignment(vec![near, far]), None, now);
    assert_eq!(shares(&cluster, 400, now, &[])[&0], 100, "an endpoint is an endpoint, wherever it is");
}

#[test]
fn a_session_stays_where_it_is_told_to() {
    let now = Instant::now();
    let mut endpoints = vec![endpoint(0), endpoint(1), endpoint(2)];
    endpoints[1].health = Health::Draining;
    endpoints[2].health = Health::Unhealthy;
    let all = assignment(vec![place(0, 1, endpoints)]);
    let held = |healthy, draining, unhealthy| {
        let sessions = model::SessionHealth { healthy, draining, unhealthy };
        let cluster = build(model::Cluster { sessions, ..model(LoadBalancer::RoundRobin) }, &all, None, now);
        let pick = Pick { now, random: 1, hash: None, tried: &[] };
        [0, 1, 2].map(|n| {
            let address = nth(&cluster, n).address;
            let holds = cluster.holds(address);
            assert_eq!(cluster.pick_held(address, &pick).is_some(), holds);
            holds
        })
    };
    assert_eq!(held(true, false, false), [true, false, false]);
    assert_eq!(held(true, true, false), [true, true, false]);
    assert_eq!(held(false, false, true), [false, false, true]);
    assert_eq!(held(false, false, false), [false, false, false]);
}

#[test]
fn a_hash_keeps_its_endpoint_until_that_is_ejected() {
    let now = Instant::now();
    let cluster = build(model(ALL[4]), &of(5), None, now);
    let place = |key: u64| {
        let pick = Pick { now, random: key, hash: Some(hash(&key.to_le_bytes())), tried: &[] };
        last(cluster.pick(&pick).expect("has endpoints"))
    };
    let before: Vec<_> = (0..500).map(place).collect();
    assert_eq!(before, (0..500).map(place).collect::<Vec<_>>());
    fail(&cluster, 3, 5, now);
    for (before, after) in before.into_iter().zip((0..500).map(place)) {
        assert!(after != 3 && (before == 3 || before == after));
    }
}

#[test]
fn a_new_version_keeps_what_is_known_about_the_endpoints_that_stay() {
    let now = Instant::now();
    let first = build(model(LoadBalancer::PeakEwma), &of(3), None, now);
    let held = first.begin(nth(&first, 1));
    fail(&first, 1, 5, now);

    let mut next = of(3);
    next.localities[0].endpoints[1].weight = 2;
    next.localities[0].endpoints[2].identity = Some("spiffe://td/ns/a/sa/b".parse().expect("valid"));
    let second = build(model(LoadBalancer::PeakEwma), &next, Some(&first), now);
    assert!(Arc::ptr_eq(nth(&first, 0), nth(&second, 0)));
    assert_eq!(nth(&first, 1).id, nth(&second, 1).id);
    assert_eq!(nth(&second, 1).stats.in_flight(), 1);
    assert!(nth(&second, 1).stats.is_ejected(now));
    assert_ne!(nth(&first, 2).id, nth(&second, 2).id, "a recycled address is another endpoint");
    drop(held);
    assert_eq!(nth(&second, 1).stats.in_flight(), 0);
}

#[test]
fn a_new_endpoint_beside_others_gets_a_tenth_of_its_share_at_first() {
    let now = Instant::now();
    let first = build(model(LoadBalancer::PeakEwma), &of(4), None, now);
    let second = build(model(LoadBalancer::PeakEwma), &of(5), Some(&first), now);
    let at_first = shares(&second, 10_000, now, &[]).get(&4).copied().unwrap_or(0);
    assert!((100..450).contains(&at_first), "{at_first}");
    let later = shares(&second, 10_000, now + Duration::from_secs(31), &[])[&4];
    assert!((1600..2400).contains(&later), "{later}");
}

#[test]
fn limits_hold_and_are_given_back() {
    let now = Instant::now();
    let limits = Limits { max_requests: Some(2), max_retries: Some(1), ..Limits::default() };
    let cluster = build(model::Cluster { limits, ..model(LoadBalancer::PeakEwma) }, &of(1), None, now);
    let first = cluster.permit(Limit::Requests).expect("room");
    let _second = cluster.permit(Limit::Requests).expect("room");
    let reached = cluster.permit(Limit::Requests).err().expect("full");
    assert_eq!(reached.to_string(), "the limit maxConcurrentRequests=2 is reached");
    drop(first);
    assert!(cluster.permit(Limit::Requests).is_ok());
    let held = cluster.retry_permit(now);
    assert!(held.is_some() && cluster.retry_permit(now).is_none());
    drop(held);
    assert!(cluster.retry_permit(now).is_some());
    assert_eq!(cluster.state.series.retries.value(), 2);
    assert_eq!(cluster.state.series.retries_refused.value(), 1);
    assert!(cluster.permit(Limit::Connections).is_ok(), "no hidden limit");
}

#[test]
fn a_client_fault_or_a_refusal_ejects_nobody() {
    let now = Instant::now();
    let cluster = build(model(LoadBalancer::PeakEwma), &of(2), None, now);
    for _ in 0..100 {
        cluster.begin(nth(&cluster, 0)).report(Outcome::Success, now, 0);
        cluster.begin(nth(&cluster, 1)).report(Outcome::Refused, now, 0);
    }
    assert_eq!(cluster.state.series.ejections.value(), 0);
    assert!(shares(&cluster, 1000, now, &[])[&0] > 900, "who refuses gets less");
}

proptest! {
    #[test]
    fn no_sequence_of_outcomes_ejects_more_than_the_limit(
        n in 1u8..=20,
        percent in 1u32..100,
        steps in proptest::collection::vec((any::<u8>(), any::<bool>(), 0u64..2_000), 1..400),
    ) {
        let mut rule = model::OutlierDetection::MESH;
        rule.max_ejection_percent = percent;
        let model = model::Cluster { outlier_detection: Some(rule), ..model(LoadBalancer::PeakEwma) };
        let mut now = Instant::now();
        let cluster = build(model, &of(n), None, now);
        let most = (usize::from(n) * percent as usize / 100).max(1).min(usize::from(n) - 1);
        for (which, fails, step) in steps {
            now += Duration::from_millis(step / 4);
            let outcome = if fails { Outcome::Failure } else { Outcome::Success };
            cluster.begin(nth(&cluster, which % n)).report(outcome, now, u64::from(which) << 56);
            let out = cluster.endpoints.iter().filter(|e| e.stats.is_ejected(now)).count();
            prop_assert!(out <= most, "{out} of {n} are out");
            let pick = Pick { now, random: step, hash: None, tried: &[] };
            prop_assert!(!cluster.pick(&pick).expect("has endpoints").stats.is_ejected(now)
                || cluster.endpoints.iter().any(|e| e.stats.is_suspended()));
        }
    }
}

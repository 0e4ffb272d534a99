//! What becomes of requests where endpoints are unhealthy or ejected, and how localities weigh.

use super::*;

#[test]
fn in_a_panic_all_are_used_or_none() {
    let now = Instant::now();
    let with = |threshold, fails_requests, unhealthy: usize| {
        let mut endpoints = of(5);
        endpoints.localities[0].endpoints[..unhealthy].iter_mut().for_each(|e| e.health = Health::Unhealthy);
        let panic = model::Panic { threshold, fails_requests };
        (model::Cluster { panic, ..model(LoadBalancer::RoundRobin) }, endpoints)
    };
    let used = |threshold, unhealthy| {
        let (model, endpoints) = with(threshold, false, unhealthy);
        let cluster = build(model, &endpoints, None, now);
        (shares(&cluster, 100, now, &[]).len(), cluster.state.series.panics.value())
    };
    assert_eq!(used(50, 2), (3, 0));
    assert_eq!(used(50, 3), (5, 100), "2 of 5 are less than half");
    assert_eq!(used(40, 3), (2, 0));
    assert_eq!(used(50, 5), (5, 100));
    assert_eq!(used(1, 4), (1, 0));
    let (model, mut endpoints) = with(50, false, 0);
    endpoints.localities[0].endpoints[1..].iter_mut().for_each(|e| e.health = Health::Draining);
    let used = shares(&build(model, &endpoints, None, now), 100, now, &[]);
    assert_eq!(used.len(), 1, "those that end say nothing of the others");
    for (threshold, fails, unhealthy, refused) in
        [(0, false, 4, false), (0, false, 5, true), (50, true, 3, true), (50, true, 2, false)]
    {
        let (model, endpoints) = with(threshold, fails, unhealthy);
        let cluster = build(model, &endpoints, None, now);
        let pick = Pick { now, random: 1, hash: None, tried: &[] };
        assert_eq!(cluster.pick(&pick).is_err(), refused, "{threshold} {fails} {unhealthy}");
    }

    // Who is ejected is not usable either.
    let (mut model, endpoints) = with(50, false, 0);
    let rule = model::OutlierDetection { max_ejection_percent: 100, ..model::OutlierDetection::MESH };
    model.outlier_detection = Some(rule);
    let cluster = build(model, &endpoints, None, now);
    (0..2).for_each(|n| fail(&cluster, n, 5, now));
    assert_eq!(shares(&cluster, 100, now, &[]).len(), 3);
    fail(&cluster, 2, 5, now);
    assert_eq!(shares(&cluster, 100, now, &[]).len(), 5, "and while too many are, they are used");
}

#[test]
fn priorities_that_can_not_take_all_panic_one_by_one() {
    let now = Instant::now();
    let upper = (0..4).map(|n| model::Endpoint { health: Health::Unhealthy, ..endpoint(n) }).collect();
    let mut lower: Vec<_> = (10..14).map(endpoint).collect();
    lower[..2].iter_mut().for_each(|e| e.health = Health::Unhealthy);
    let both = assignment(vec![place(0, 1, upper), place(1, 1, lower)]);
    let panic = model::Panic { threshold: 50, fails_requests: false };
    let half = model::Cluster { panic, ..model(LoadBalancer::RoundRobin) };
    let used = shares(&build(half.clone(), &both, None, now), 1000, now, &[]);
    assert_eq!(used.len(), 2, "the lower one has just enough: {used:?}");
    let all = model::Cluster { panic: model::Panic { threshold: 60, ..panic }, ..half };
    let used = shares(&build(all, &both, None, now), 1000, now, &[]);
    assert_eq!(used.len(), 8, "{used:?}");
}

#[test]
fn ejections_move_load_to_other_places() {
    let now = Instant::now();
    let places = |upper: u32| {
        assignment(vec![
            place(0, 1, (0..4).map(endpoint).collect()),
            place(upper, 1, (10..14).map(endpoint).collect()),
        ])
    };
    let rule = model::OutlierDetection { max_ejection_percent: 100, ..model::OutlierDetection::MESH };
    let model = model::Cluster { outlier_detection: Some(rule), ..model(LoadBalancer::RoundRobin) };
    let here = |cluster: &Cluster| {
        let shares = shares(cluster, 10_000, now, &[]);
        shares.iter().filter(|(n, _)| **n < 10).map(|(_, count)| count).sum::<u64>()
    };
    let cluster = build(model.clone(), &places(1), None, now);
    assert_eq!(here(&cluster), 10_000);
    (0..2).for_each(|n| fail(&cluster, n, 5, now));
    assert!(here(&cluster).abs_diff(7_000) < 300, "two of four carry 70 %");
    let cluster = build(model, &places(0), None, now);
    (0..2).for_each(|n| fail(&cluster, n, 5, now));
    assert!(here(&cluster).abs_diff(4_118) < 300, "70 against 100");
}

#[test]
fn who_does_far_worse_than_the_others_is_ejected_when_the_interval_ends() {
    let now = Instant::now();
    let success_rate =
        model::SuccessRate { stdev_factor: 1900, minimum_requests: 10, minimum_hosts: 5, enforced: 100 };
    let rule = model::OutlierDetection {
        consecutive_failures: 0,
        failure_percentage: None,
        success_rate: Some(success_rate),
        ..model::OutlierDetection::MESH
    };
    let cluster = build(
        model::Cluster { outlier_detection: Some(rule), ..model(LoadBalancer::RoundRobin) },
        &of(6),
        None,
        now,
    );
    let ask = |now| {
        let pick = Pick { now, random: 3, hash: None, tried: &[] };
        cluster.pick(&pick).expect("has endpoints");
    };
    ask(now);
    for n in 0..6 {
        for turn in 0..20 {
            let failed = n == 5 && turn % 2 == 0;
            let outcome = if failed { Outcome::ServerError } else { Outcome::Success };
            cluster.begin(nth(&cluster, n)).report(outcome, now, 0);
        }
    }
    ask(now + Duration::from_secs(9));
    assert_eq!(cluster.state.series.ejections.value(), 0, "not before the end");
    let end = now + Duration::from_secs(10);
    ask(end);
    assert!(nth(&cluster, 5).stats.is_ejected(end));
    ask(end + Duration::from_secs(10));
    assert_eq!(cluster.state.series.ejections.value(), 1, "the next interval begins with nothing");
}

#[test]
fn localities_weigh_the_endpoints_of_a_ring() {
    let now = Instant::now();
    let places = |weights: [u32; 2]| {
        let [near, far] = weights;
        assignment(vec![
            place(0, near, vec![endpoint(0)]),
            place(0, far, vec![endpoint(1), endpoint(2), endpoint(3)]),
        ])
    };
    let ring = ring(8192);
    let table = LoadBalancer::Maglev { table_size: 65_537, hashing: Hashing::default() };
    for balancer in [ring, table] {
        let near = |weights, model| shares(&build(model, &places(weights), None, now), 10_000, now, &[])[&0];
        let weighed = near([9, 1], model(balancer));
        assert!((8700..9300).contains(&weighed), "{balancer:?}: {weighed}");
        let alike = model::Cluster { ignores_localities: true, ..model(balancer) };
        let shared = near([9, 1], alike);
        assert!((2200..2800).contains(&shared), "{balancer:?}: {shared}");
    }
    for balancer in [ring, LoadBalancer::RoundRobin] {
        let used = shares(&build(model(balancer), &places([0, 1]), None, now), 1000, now, &[]);
        assert!(!used.contains_key(&0), "{balancer:?}: who has no weight gets nothing");
        let used = shares(&build(model(balancer), &places([0, 0]), None, now), 1000, now, &[]);
        assert_eq!(used.len(), 4, "{balancer:?}: unless nobody has");
    }
}

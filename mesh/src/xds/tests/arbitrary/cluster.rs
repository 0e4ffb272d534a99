use super::*;
use crate::identity::SpiffeId;

pub(in super::super) fn assignment() -> BoxedStrategy<LoadAssignment> {
    let drop = (name(), fraction()).prop_map(|(category, fraction)| DropOverload { category, fraction });
    (name(), vec(locality(), 0..4), of(1..=u32::MAX), vec(drop, 0..3))
        .prop_map(|(name, mut localities, overprovisioning, drops)| {
            // Priorities leave no gap.
            for (index, group) in (0_u32..).zip(&mut localities) {
                group.priority = group.priority.min(index);
            }
            let mut next = 0;
            for group in &mut localities {
                group.priority = group.priority.min(next);
                next = next.max(group.priority + 1);
            }
            LoadAssignment { name, localities, overprovisioning, drops }
        })
        .boxed()
}

fn locality() -> BoxedStrategy<LocalityEndpoints> {
    (text(), text(), text(), 0..4_u32, 1..1000_u32, vec(endpoint(), 0..4))
        .prop_map(|(region, zone, sub_zone, priority, weight, endpoints)| LocalityEndpoints {
            locality: Locality { region, zone, sub_zone },
            priority,
            weight,
            endpoints,
        })
        .boxed()
}

fn endpoint() -> BoxedStrategy<Endpoint> {
    let address = prop_oneof![
        4 => socket().prop_map(EndpointAddress::Socket),
        1 => path().prop_map(EndpointAddress::Pipe),
    ];
    let health = select(vec![Health::Healthy, Health::Unhealthy, Health::Draining]);
    let identity =
        "spiffe://[a-z0-9.]{1,8}(/[a-zA-Z0-9_-]{1,8}){0,4}".prop_map(|uri| uri.parse::<SpiffeId>().unwrap());
    (address, health, 1..=u32::MAX, text(), any::<bool>(), of(identity), text(), vec(socket(), 0..3))
        .prop_map(|(address, health, weight, hostname, meshed, identity, workload, others)| Endpoint {
            additional_addresses: match address {
                EndpointAddress::Socket(_) => others,
                EndpointAddress::Pipe(_) => Vec::new(),
            },
            address,
            health,
            weight,
            hostname,
            meshed,
            identity,
            workload,
        })
        .boxed()
}

pub(in super::super) fn cluster() -> BoxedStrategy<Cluster> {
    let protocol =
        select(vec![UpstreamProtocol::Downstream, UpstreamProtocol::Http1, UpstreamProtocol::Http2]);
    (
        name(),
        discovery(),
        balancer(),
        of(positive()),
        (of(duration()), of(1..=u32::MAX)),
        limits(),
        of(outliers()),
        of(tls()),
        ((protocol, http2()), any::<[bool; 5]>(), 0..=100_u32, connections()),
    )
        .prop_map(
            |(
                name,
                discovery,
                load_balancer,
                connect_timeout,
                (idle_timeout, max_requests_per_connection),
                limits,
                outlier_detection,
                tls,
                (
                    (protocol, http2),
                    [ignores_localities, fails_requests, healthy, draining, unhealthy],
                    threshold,
                    (keepalive, happy_eyeballs),
                ),
            )| {
                // Where there is nothing to choose from, the balancer has no meaning and is not kept.
                let load_balancer = match discovery {
                    Discovery::OriginalDestination => LoadBalancer::PeakEwma,
                    _ => load_balancer,
                };
                Cluster {
                    alias: (name.len() % 2 == 0).then(|| format!("{name} alias")),
                    name,
                    discovery,
                    load_balancer,
                    connect_timeout,
                    idle_timeout,
                    max_requests_per_connection,
                    limits,
                    outlier_detection,
                    tls,
                    // It stands where HTTP/2 is spoken.
                    http2: if protocol == UpstreamProtocol::Http1 { Http2::default() } else { http2 },
                    protocol,
                    ignores_localities,
                    // Envoy has a field for it only where localities have no weights.
                    panic: Panic { threshold, fails_requests: fails_requests && ignores_localities },
                    sessions: SessionHealth { healthy, draining, unhealthy },
                    keepalive,
                    happy_eyeballs,
                }
            },
        )
        .boxed()
}

fn discovery() -> BoxedStrategy<Discovery> {
    let host = || (name(), port()).prop_map(|(host, port)| HostPort { host, port });
    prop_oneof![
        name().prop_map(Discovery::Eds),
        assignment().prop_map(Discovery::Static),
        (vec(host(), 0..3), family()).prop_map(|(hosts, family)| Discovery::StrictDns(hosts, family)),
        (host(), family()).prop_map(|(host, family)| Discovery::LogicalDns(host, family)),
        Just(Discovery::OriginalDestination),
    ]
    .boxed()
}

fn family() -> impl Strategy<Value = DnsFamily> {
    select(vec![
        DnsFamily::Auto,
        DnsFamily::V4Only,
        DnsFamily::V6Only,
        DnsFamily::V4Preferred,
        DnsFamily::All,
    ])
}

fn connections() -> impl Strategy<Value = (Keepalive, HappyEyeballs)> {
    let seconds = || of(1..=32_767_u16);
    let keepalive = prop_oneof![
        Just(Keepalive::Own),
        Just(Keepalive::Off),
        (seconds(), seconds(), of(1..=127_u8)).prop_map(|(time, interval, probes)| Keepalive::Probes {
            time,
            interval,
            probes
        }),
    ];
    let first = of(select(vec![IpFamily::V4, IpFamily::V6]));
    (keepalive, (first, 1..=u32::MAX).prop_map(|(first, count)| HappyEyeballs { first, count }))
}

fn balancer() -> impl Strategy<Value = LoadBalancer> {
    prop_oneof![
        Just(LoadBalancer::PeakEwma),
        (2..=u32::MAX, 0.0..8.0_f64).prop_map(|(choices, bias)| LoadBalancer::LeastRequest { choices, bias }),
        Just(LoadBalancer::RoundRobin),
        Just(LoadBalancer::Random),
        (0..=1024_u64, 1024..=8_388_608_u64, any::<bool>(), hashing()).prop_map(
            |(min_size, max_size, murmur, hashing)| LoadBalancer::RingHash {
                min_size,
                max_size,
                function: if murmur { HashFunction::Murmur2 } else { HashFunction::Xx },
                hashing,
            }
        ),
        (select(vec![2, 3, 65537, 5_000_011]), hashing())
            .prop_map(|(table_size, hashing)| LoadBalancer::Maglev { table_size, hashing }),
    ]
}

fn hashing() -> impl Strategy<Value = Hashing> {
    (any::<bool>(), of(100..=u32::MAX))
        .prop_map(|(by_hostname, balance_factor)| Hashing { by_hostname, balance_factor })
}

fn limits() -> impl Strategy<Value = Limits> {
    let budget = (0.0..=100.0_f64, any::<u32>(), positive())
        .prop_map(|(percent, min_per_second, interval)| RetryBudget { percent, min_per_second, interval });
    let limit = || of(any::<u32>());
    (limit(), limit(), limit(), limit(), of(budget)).prop_map(
        |(max_connections, max_pending_requests, max_requests, max_retries, retry_budget)| Limits {
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
            retry_budget,
        },
    )
}

fn outliers() -> impl Strategy<Value = OutlierDetection> {
    // A rule that is never enforced is none, and has no other parts.
    let row = || prop_oneof![Just((0, 0)), (1..=u32::MAX, 1..=100_u32),];
    let enforced = || of(1..=100_u32);
    let times = (positive(), positive(), positive(), duration());
    let local = (any::<bool>(), row(), enforced(), enforced());
    let rules = ((0..=100_u32, any::<[u32; 5]>()), enforced(), enforced(), local);
    (row(), row(), rules, times, 0..=100_u32, any::<bool>()).prop_map(
        |(
            (consecutive_failures, enforced_failures),
            (consecutive_gateway_failures, enforced_gateway_failures),
            ((threshold, numbers), share, rate, (split, local_row, local_share, local_rate)),
            (interval, base_ejection_time, max_ejection_time, max_ejection_time_jitter),
            max_ejection_percent,
            always_eject_one,
        )| {
            let [share_requests, share_hosts, stdev_factor, rate_requests, rate_hosts] = numbers;
            let by_share = |enforced| FailurePercentage {
                threshold,
                minimum_requests: share_requests,
                minimum_hosts: share_hosts,
                enforced,
            };
            let by_rate = |enforced| SuccessRate {
                stdev_factor,
                minimum_requests: rate_requests,
                minimum_hosts: rate_hosts,
                enforced,
            };
            OutlierDetection {
                consecutive_failures,
                enforced_failures,
                consecutive_gateway_failures,
                enforced_gateway_failures,
                failure_percentage: share.map(by_share),
                success_rate: rate.map(by_rate),
                interval,
                base_ejection_time,
                max_ejection_time,
                max_ejection_time_jitter,
                max_ejection_percent,
                always_eject_one,
                local: split.then(|| LocalOrigin {
                    consecutive_failures: local_row.0,
                    enforced_failures: local_row.1,
                    failure_percentage: local_share.map(by_share),
                    success_rate: local_rate.map(by_rate),
                }),
            }
        },
    )
}

fn tls() -> impl Strategy<Value = UpstreamTls> {
    let alpn = vec(select(vec!["h2".to_owned(), "http/1.1".to_owned()]), 0..3);
    (text(), vec(string_match(), 0..3), alpn, any::<bool>()).prop_map(
        |(sni, subject_alt_names, alpn, only_meshed_endpoints)| UpstreamTls {
            sni,
            subject_alt_names,
            alpn,
            only_meshed_endpoints,
        },
    )
}

use http::HeaderValue;

use super::route::{fault, mutations, upgrades};
use super::*;

pub(in super::super) fn listener() -> BoxedStrategy<Listener> {
    let direction = select(vec![TrafficDirection::Inbound, TrafficDirection::Outbound]);
    let proxied = select(vec![
        [true, true, true],
        [false, true, true],
        [false, true, false],
        [false, false, true],
        [true, false, false],
    ]);
    let proxied =
        proxied.prop_map(|[optional, version_1, version_2]| ProxyProtocol { optional, version_1, version_2 });
    let filters = (any::<bool>(), any::<bool>(), of(proxied));
    (name(), direction, of(socket()), vec(chain(), 1..4), any::<bool>(), filters)
        .prop_map(|(name, direction, address, mut chains, has_default, filters)| {
            let (tls_inspector, http_inspector, proxy_protocol) = filters;
            // No two chains have the same condition; the only one may have none.
            let single = chains.len() == 1;
            for (port, chain) in (1_u16..).zip(&mut chains) {
                if !single {
                    chain.matches.destination_port = Some(port);
                }
                // It stands beside a connection manager in a chain, which an outbound listener may not have.
                if let (TrafficDirection::Outbound, Protocol::Http(http)) = (direction, &mut chain.protocol)
                    && http.client_certificate == ClientCertificate::Identity
                {
                    http.client_certificate = ClientCertificate::Sanitize;
                }
            }
            if let Some(default) = chains.last_mut().filter(|_| has_default) {
                default.matches = ChainMatch::default();
            }
            Listener {
                name,
                direction,
                address,
                chains,
                has_default,
                tls_inspector,
                http_inspector,
                proxy_protocol,
            }
        })
        .boxed()
}

fn chain() -> BoxedStrategy<FilterChain> {
    let protocol = prop_oneof![http().prop_map(Protocol::Http), tcp().prop_map(Protocol::Tcp)];
    let tls = (any::<bool>(), vec(name(), 0..3))
        .prop_map(|(require_client_certificate, alpn)| DownstreamTls { require_client_certificate, alpn });
    let matches = prop_oneof![Just(ChainMatch::default()), chain_match()];
    (name(), matches, of(tls), vec(authorization(false), 0..2), protocol)
        .prop_map(|(name, matches, tls, authorization, protocol)| FilterChain {
            name,
            matches,
            tls,
            authorization,
            protocol,
        })
        .boxed()
}

fn chain_match() -> BoxedStrategy<ChainMatch> {
    let transport = select(vec![Transport::Tls, Transport::Plaintext]);
    let server_name = prop_oneof!["[a-z_]{1,8}(\\.[a-z]{1,8}){0,2}", "\\*\\.[a-z]{1,8}"];
    let source_type = select(vec![SourceType::SameIpOrLoopback, SourceType::External]);
    let ranges = || distinct(network().prop_map(|range| range.trunc()));
    let words = (of(port()), of(transport), distinct(name()), distinct(server_name));
    let ends = (ranges(), ranges(), of(source_type), ranges(), distinct(1..=u16::MAX));
    (words, ends)
        .prop_map(|((destination_port, transport, application_protocols, server_names), ends)| {
            let (destination_ranges, direct_source_ranges, source_type, source_ranges, source_ports) = ends;
            ChainMatch {
                destination_port,
                destination_ranges,
                transport,
                application_protocols,
                server_names,
                direct_source_ranges,
                source_type,
                source_ranges,
                source_ports,
            }
        })
        .boxed()
}

/// A few values, none of them twice.
fn distinct<T: Ord + std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    btree_set(of, 0..3).prop_map(|values| values.into_iter().collect())
}

fn http() -> BoxedStrategy<HttpConnection> {
    let routes = prop_oneof![
        3 => name().prop_map(RouteSource::Named),
        1 => route_configuration().prop_map(RouteSource::Inline),
    ];
    let timeouts = (of(duration()), of(duration()), of(duration()), of(duration()), of(duration()));
    let limits = (of((1..=8192_u32).prop_map(|kb| kb * 1024)), of(1..=u32::MAX), http2());
    let value = prop_oneof![
        name().prop_map(TagValue::Literal),
        (select(vec!["x-a", "x-b"]), "[a-z]{0,3}").prop_map(|(name, default)| TagValue::Header {
            name: http::HeaderName::from_static(name),
            default,
        }),
    ];
    let tag = (name(), value).prop_map(|(name, value)| CustomTag { name, value });
    let tracing = (fraction(), fraction(), fraction(), of(name()), vec(tag, 0..3)).prop_map(
        |(random_sampling, client_sampling, overall_sampling, collector, tags)| Tracing {
            random_sampling,
            client_sampling,
            overall_sampling,
            collector,
            tags,
        },
    );
    let underscores = select(vec![Underscores::Allow, Underscores::Reject, Underscores::Drop]);
    let forwarding = (any::<bool>(), any::<u32>(), any::<bool>()).prop_map(
        |(use_remote_address, trusted_hops, skip_append)| Forwarding {
            use_remote_address,
            trusted_hops,
            skip_append,
        },
    );
    let how = (paths(), underscores, forwarding, edge());
    (routes, filters(), timeouts, limits, how, of(tracing), of(access_log()))
        .prop_map(|(routes, filters, timeouts, limits, how, tracing, access_log)| {
            let (paths, underscores, forwarding, edge) = how;
            let (upgrades, http_10, request_ids, client_certificate, server) = edge;
            HttpConnection {
                routes,
                filters,
                idle_timeout: timeouts.0,
                max_stream_duration: timeouts.3,
                underscores,
                stream_idle_timeout: timeouts.1,
                request_headers_timeout: timeouts.2,
                close_timeout: timeouts.4,
                max_request_headers_bytes: limits.0,
                max_headers: limits.1,
                http2: limits.2,
                paths,
                forwarding,
                upgrades,
                http_10,
                request_ids,
                client_certificate,
                server,
                tracing,
                access_log,
            }
        })
        .boxed()
}

fn edge() -> impl Strategy<Value = (Vec<Upgrade>, Http10, RequestIds, ClientCertificate, ServerHeader)> {
    let header = || "[a-z]{1,8}".prop_map(|text| HeaderValue::from_str(&text).expect("letters"));
    let http_10 =
        (any::<bool>(), of(header())).prop_map(|(accepted, default_host)| Http10 { accepted, default_host });
    let request_ids = any::<[bool; 3]>().prop_map(|[generate, preserve_external, tell_client]| RequestIds {
        generate,
        preserve_external,
        tell_client,
    });
    let details = || {
        any::<[bool; 5]>().prop_map(|[certificate, chain, subject, uri, dns]| CertificateDetails {
            certificate,
            chain,
            subject,
            uri,
            dns,
        })
    };
    let client_certificate = prop_oneof![
        select(vec![
            ClientCertificate::Sanitize,
            ClientCertificate::Forward,
            ClientCertificate::Identity,
            ClientCertificate::AlwaysForward,
        ]),
        details().prop_map(ClientCertificate::Append),
        details().prop_map(ClientCertificate::Set),
    ];
    let server = prop_oneof![
        Just(ServerHeader::PassThrough),
        header().prop_map(ServerHeader::Overwrite),
        header().prop_map(ServerHeader::AddIfAbsent),
    ];
    (upgrades(), http_10, request_ids, client_certificate, server)
}

fn paths() -> BoxedStrategy<PathHandling> {
    use EscapedSlashes::{Keep, Redirect, Reject, Unescape};
    (any::<bool>(), any::<bool>(), select(vec![Keep, Redirect, Reject, Unescape]))
        .prop_map(|(normalize, merge_slashes, escaped_slashes)| PathHandling {
            normalize,
            merge_slashes,
            escaped_slashes,
        })
        .boxed()
}

fn filters() -> BoxedStrategy<Vec<HttpFilter>> {
    let concurrency = (1..100_u32, 0..1000_u32, positive()).prop_map(|(least, more, update_interval)| {
        AdaptiveConcurrency { min_concurrency: least, max_concurrency: least + more, update_interval }
    });
    let filter = prop_oneof![
        authorization(true).prop_map(HttpFilter::Authorization),
        rate_limit().prop_map(HttpFilter::LocalRateLimit),
        concurrency.prop_map(HttpFilter::AdaptiveConcurrency),
        Just(HttpFilter::Sessions),
        replaceable().prop_map(HttpFilter::Replaceable),
    ];
    vec(filter, 0..4)
        .prop_map(|mut filters| {
            // Sets are told apart by their names.
            for (index, filter) in filters.iter_mut().enumerate() {
                match filter {
                    HttpFilter::Authorization(set) => set.name = format!("{index}-{}", set.name),
                    HttpFilter::Replaceable(filter) => rename(filter, &format!("{index}-{}", filter.name)),
                    _ => {}
                }
            }
            // Of what a listener has but once, the first.
            let mut seen = Vec::new();
            filters.retain(|filter| {
                let kind = match filter {
                    HttpFilter::Authorization(_) | HttpFilter::LocalRateLimit(_) => return true,
                    HttpFilter::AdaptiveConcurrency(_) => 0,
                    HttpFilter::Sessions => 1,
                    HttpFilter::Replaceable(filter) => match filter.settings {
                        FilterSettings::Authorization(_) | FilterSettings::LocalRateLimit(_) => return true,
                        FilterSettings::AdaptiveConcurrency(_) => 0,
                        FilterSettings::Fault(_) => 2,
                        FilterSettings::Cors(_) => 3,
                    },
                };
                let first = !seen.contains(&kind);
                seen.push(kind);
                first
            });
            filters
        })
        .boxed()
}

fn replaceable() -> BoxedStrategy<ReplaceableFilter> {
    let settings = prop_oneof![4 => settings(), 1 => Just(FilterSettings::Cors(None))];
    (name(), any::<bool>(), settings)
        .prop_map(|(name, disabled, settings)| {
            let mut filter = ReplaceableFilter { name: String::new(), disabled, settings };
            rename(&mut filter, &name);
            filter
        })
        .boxed()
}

/// Sets have the name of their filter.
fn rename(filter: &mut ReplaceableFilter, name: &str) {
    name.clone_into(&mut filter.name);
    if let FilterSettings::Authorization(sets) = &mut filter.settings {
        sets.iter_mut().for_each(|set| name.clone_into(&mut set.name));
    }
}

/// Settings that a route may have, too.
pub(super) fn settings() -> BoxedStrategy<FilterSettings> {
    let sets = (of(authorization(true)), of(authorization(true))).prop_map(|(enforced, reported)| {
        let with =
            |set: Option<Authorization>, audit_only| set.map(|set| Authorization { audit_only, ..set });
        let sets = [with(enforced, false), with(reported, true)];
        FilterSettings::Authorization(sets.into_iter().flatten().collect())
    });
    let answer =
        (400..600_u16, any::<bool>(), mutations()).prop_map(|(status, resource_exhausted, headers)| {
            let headers = HeaderMutations { remove: Vec::new(), ..headers };
            RateLimitAnswer { status: status.try_into().expect("a status"), resource_exhausted, headers }
        });
    let shares = (fraction().prop_filter("switched on", |share| share.0 > 0), fraction());
    let limit = (name(), bucket(), answer, shares, mutations(), any::<(bool, bool)>(), of(descriptors()));
    let limit = limit.prop_map(|(name, bucket, answer, (enabled, enforced), changes, flags, descriptors)| {
        let not_enforced = HeaderMutations { remove: Vec::new(), ..changes };
        let (tell, per_connection) = flags;
        let descriptors = descriptors.map(Box::new);
        FilterSettings::LocalRateLimit(Some(LocalRateLimit {
            answer,
            enabled,
            enforced,
            not_enforced,
            tell,
            per_connection,
            descriptors,
            ..LocalRateLimit::new(name, bucket)
        }))
    });
    prop_oneof![sets, limit, fault().prop_map(FilterSettings::Fault)].boxed()
}

fn rate_limit() -> BoxedStrategy<LocalRateLimit> {
    let plain = (name(), bucket()).prop_map(|(name, bucket)| LocalRateLimit::new(name, bucket));
    let conditions = (vec(header_match(), 0..3), vec(text(), 0..3), any::<bool>());
    (plain, of(conditions))
        .prop_map(|(plain, conditions)| {
            let (applies_to, clients, per_client) = conditions.unwrap_or_default();
            LocalRateLimit { applies_to, clients, per_client, ..plain }
        })
        .boxed()
}

fn bucket() -> impl Strategy<Value = TokenBucket> {
    (1..=u32::MAX, 1..=u32::MAX, positive()).prop_map(|(burst, tokens_per_fill, fill_interval)| TokenBucket {
        burst,
        tokens_per_fill,
        fill_interval,
    })
}

fn descriptors() -> BoxedStrategy<RateDescriptors> {
    let entries = vec((name(), text()), 1..3);
    let buckets = vec((entries, bucket()), 1..3).prop_map(|buckets| {
        let bucket = |(index, (mut entries, bucket)): (usize, (Vec<(String, String)>, TokenBucket))| {
            // No two have the same.
            entries.push((format!("k{index}"), String::new()));
            DescriptorBucket { entries, bucket }
        };
        buckets.into_iter().enumerate().map(bucket).collect()
    });
    let of_host = select(vec![HostRules::Override, HostRules::Include, HostRules::Ignore]);
    let own = rate_limit_rules().prop_map(|rules| {
        let own = |rule| RateLimitRule { stage: 0, ..rule };
        rules.into_iter().map(own).collect()
    });
    (buckets, own, 0..=10_u32, of_host, 1..=u32::MAX, any::<bool>())
        .prop_map(|(buckets, rules, stage, of_host, most_open, and_default)| RateDescriptors {
            buckets,
            rules,
            stage,
            of_host,
            most_open,
            and_default,
        })
        .boxed()
}

pub(super) fn rate_limit_rules() -> BoxedStrategy<Vec<RateLimitRule>> {
    let query = (name(), of(string_match())).prop_map(|(name, value)| QueryMatch { name, value });
    let header = "x-[a-z]{1,5}|:path|:authority";
    let action = prop_oneof![
        Just(RateAction::SourceCluster),
        Just(RateAction::DestinationCluster),
        Just(RateAction::RemoteAddress),
        (0..=32_u8, 0..=128_u8).prop_map(|(v4, v6)| RateAction::MaskedRemoteAddress { v4, v6 }),
        (name(), name()).prop_map(|(key, value)| RateAction::GenericKey { key, value }),
        (header, name(), any::<bool>()).prop_map(|(name, key, optional)| RateAction::Header {
            name,
            key,
            optional
        }),
        (name(), name(), any::<bool>()).prop_map(|(name, key, optional)| RateAction::Query {
            name,
            key,
            optional
        }),
        (name(), name(), any::<bool>(), vec(header_match(), 0..2)).prop_map(
            |(key, value, expect, headers)| RateAction::HeadersMatch { key, value, expect, headers }
        ),
        (name(), name(), any::<bool>(), vec(query, 0..2)).prop_map(|(key, value, expect, query)| {
            RateAction::QueryMatches { key, value, expect, query }
        }),
    ];
    vec((0..=10_u32, vec(action, 1..3)), 0..3)
        .prop_map(|rules| {
            rules.into_iter().map(|(stage, actions)| RateLimitRule { stage, actions }).collect()
        })
        .boxed()
}

fn access_log() -> impl Strategy<Value = AccessLog> {
    let format = prop_oneof![
        Just(AccessLogFormat::Json),
        text().prop_map(|text| AccessLogFormat::Text(Format::lenient(text)))
    ];
    (format, of(log_filter().prop_map(Box::new))).prop_map(|(format, filter)| AccessLog { format, filter })
}

fn log_filter() -> impl Strategy<Value = LogFilter> {
    let comparison = || {
        (any::<u32>(), 0..4).prop_map(|(number, which)| match which {
            0 => Comparison::Equal(number),
            1 => Comparison::AtLeast(number),
            2 => Comparison::AtMost(number),
            _ => Comparison::Not(number),
        })
    };
    let flags = vec(select(vec!["UH", "NR", "UT"]).prop_map(str::to_owned), 0..3);
    let leaf = prop_oneof![
        comparison().prop_map(LogFilter::Status),
        comparison().prop_map(LogFilter::Duration),
        Just(LogFilter::NotHealthCheck),
        Just(LogFilter::Traced),
        fraction().prop_map(LogFilter::Fraction),
        header_match().prop_map(LogFilter::Header),
        flags.prop_map(LogFilter::Flags),
        (vec(0..=16_u32, 0..3), any::<bool>())
            .prop_map(|(statuses, exclude)| LogFilter::GrpcStatus { statuses, exclude }),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 1..3).prop_map(LogFilter::All),
            vec(inner, 1..3).prop_map(LogFilter::Any),
        ]
    })
}

fn tcp() -> impl Strategy<Value = TcpProxy> {
    let max_duration = (positive(), fraction()).prop_map(|(least, jitter)| MaxDuration { least, jitter });
    let backends = vec((name(), 1..1000_u32), 1..4);
    (backends, of(duration()), of(max_duration), 1..=u32::MAX, any::<bool>(), of(access_log())).prop_map(
        |(backends, idle_timeout, max_duration, max_connect_attempts, hashes_source_ip, access_log)| {
            TcpProxy {
                backends,
                idle_timeout,
                max_duration,
                max_connect_attempts,
                hashes_source_ip,
                access_log,
            }
        },
    )
}

/// A set for requests, or (without) for connections, which have neither headers nor a path.
fn authorization(requests: bool) -> BoxedStrategy<Authorization> {
    let action = select(vec![Action::Allow, Action::Deny, Action::Audit]);
    let policy = (vec(permission(requests), 1..3), vec(principal(requests), 1..3));
    let policies = proptest::collection::btree_map(name(), policy, 0..4).prop_map(|policies| {
        let policy = |(name, (permissions, principals))| Policy { name, permissions, principals };
        policies.into_iter().map(policy).collect()
    });
    (name(), action, policies, any::<bool>())
        .prop_map(|(name, action, policies, audit_only)| Authorization { name, action, policies, audit_only })
        .boxed()
}

fn permission(requests: bool) -> BoxedStrategy<Permission> {
    let of_request = prop_oneof![
        header_match().prop_map(Permission::Header),
        string_match().prop_map(Permission::UrlPath),
    ];
    let leaf = prop_oneof![
        if requests { of_request.boxed() } else { Just(Permission::Any).boxed() },
        Just(Permission::Any),
        port().prop_map(Permission::DestinationPort),
        (any::<u16>(), any::<u16>())
            .prop_map(|(one, other)| Permission::DestinationPortRange(one.min(other), one.max(other))),
        network().prop_map(Permission::DestinationIp),
        string_match().prop_map(Permission::RequestedServerName),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 1..3).prop_map(Permission::And),
            vec(inner.clone(), 1..3).prop_map(Permission::Or),
            inner.prop_map(|rule| Permission::Not(Box::new(rule))),
        ]
    })
    .boxed()
}

fn principal(requests: bool) -> BoxedStrategy<Principal> {
    let of_request =
        prop_oneof![header_match().prop_map(Principal::Header), string_match().prop_map(Principal::UrlPath)];
    let leaf = prop_oneof![
        if requests { of_request.boxed() } else { Just(Principal::Any).boxed() },
        Just(Principal::Any),
        of(string_match()).prop_map(Principal::Authenticated),
        network().prop_map(Principal::SourceIp),
        network().prop_map(Principal::ConnectionIp),
        network().prop_map(Principal::RemoteIp),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 1..3).prop_map(Principal::And),
            vec(inner.clone(), 1..3).prop_map(Principal::Or),
            inner.prop_map(|id| Principal::Not(Box::new(id))),
        ]
    })
    .boxed()
}

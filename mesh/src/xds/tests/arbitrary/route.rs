use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode};

use super::*;

pub(in super::super) fn route_configuration() -> BoxedStrategy<RouteConfiguration> {
    (name(), vec(virtual_host(), 0..3), header_changes(), any::<bool>())
        .prop_map(|(name, mut virtual_hosts, headers, specific_headers_last)| {
            // No domain may stand in two virtual hosts.
            for (index, host) in virtual_hosts.iter_mut().enumerate() {
                for (at, domain) in host.domains.iter_mut().enumerate() {
                    let unique = format!("h{index}x{at}.");
                    match domain {
                        Domain::Exact(host) => host.insert_str(0, &unique),
                        Domain::Suffix(suffix) => suffix.push_str(&unique),
                        Domain::Prefix(prefix) => prefix.insert_str(0, &unique),
                        Domain::Any if (index, at) == (0, 0) => {}
                        Domain::Any => *domain = Domain::Exact(unique),
                    }
                }
            }
            RouteConfiguration { name, virtual_hosts, headers, specific_headers_last }
        })
        .boxed()
}

fn virtual_host() -> BoxedStrategy<VirtualHost> {
    let host = "[a-z0-9.-]{1,12}(:[0-9]{1,5})?";
    let domain = prop_oneof![
        host.prop_map(Domain::Exact),
        host.prop_map(Domain::Suffix),
        host.prop_map(Domain::Prefix),
        Just(Domain::Any),
    ];
    let told = (any::<(bool, bool)>(), super::listener::rate_limit_rules());
    (name(), vec(domain, 1..4), vec(route(), 0..4), header_changes(), told)
        .prop_map(|(name, domains, routes, headers, ((endpoint, client), rate_limits))| VirtualHost {
            rate_limits,
            name,
            domains,
            routes,
            headers,
            tell_attempts: TellAttempts { endpoint, client },
        })
        .boxed()
}

fn route() -> BoxedStrategy<Route> {
    let plain = (name(), of(origin()), route_match(), action(), mutations(), mutations(), overrides());
    let plain =
        plain.prop_map(|(name, origin, matches, action, request_headers, response_headers, filters)| {
            let plain = Route::new(name, matches, action);
            Route { origin, request_headers, response_headers, filters, ..plain }
        });
    plain
        .prop_map(|mut route| {
            if let RouteAction::Forward(forward) = &mut route.action {
                let near = forward.backends.iter_mut().flat_map(|backend| &mut backend.filters);
                near.for_each(|near| inherit(near, &route.filters));
            }
            route
        })
        .boxed()
}

/// What is read of a backend's cross-origin rules has from its route what the backend does not say.
fn inherit(near: &mut Arc<FilterOverride>, far: &FilterOverrides) {
    let Some(far) = far.iter().find(|far| far.filter == near.filter) else { return };
    let (Some(FilterSettings::Cors(Some(near))), Some(FilterSettings::Cors(Some(far)))) =
        (&mut Arc::make_mut(near).settings, &far.settings)
    else {
        return;
    };
    if near.allow_origins.is_empty() {
        near.allow_origins.clone_from(&far.allow_origins);
    }
    for (near, far) in [
        (&mut near.allow_methods, &far.allow_methods),
        (&mut near.allow_headers, &far.allow_headers),
        (&mut near.expose_headers, &far.expose_headers),
        (&mut near.max_age, &far.max_age),
    ] {
        if near.is_empty() {
            near.clone_from(far);
        }
    }
}

fn origin() -> impl Strategy<Value = Origin> {
    (text(), text(), text(), any::<u32>(), any::<u32>())
        .prop_map(|(kind, namespace, name, rule, matched)| Origin { kind, namespace, name, rule, matched })
}

fn route_match() -> BoxedStrategy<RouteMatch> {
    let path = prop_oneof![
        path().prop_map(PathMatch::Exact),
        path().prop_map(PathMatch::Segments),
        path().prop_map(PathMatch::Prefix),
        Just(PathMatch::Prefix("/".into())),
        regex().prop_map(PathMatch::Regex),
    ];
    let query = (name(), of(string_match())).prop_map(|(name, value)| QueryMatch { name, value });
    (path, any::<bool>(), vec(header_match(), 0..3), vec(query, 0..2), any::<bool>(), of(fraction()))
        .prop_map(|(path, case_sensitive, headers, query, grpc, fraction)| RouteMatch {
            path,
            case_sensitive,
            headers,
            query,
            grpc,
            fraction,
        })
        .boxed()
}

fn action() -> BoxedStrategy<RouteAction> {
    let response = (status(), text()).prop_map(|(status, body)| DirectResponse { status, body });
    prop_oneof![
        4 => forward().prop_map(RouteAction::Forward),
        1 => redirect().prop_map(RouteAction::Redirect),
        1 => response.prop_map(RouteAction::Respond),
        1 => Just(RouteAction::NonForwarding),
    ]
    .boxed()
}

fn forward() -> BoxedStrategy<Forward> {
    let unknown = select(vec![
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::INTERNAL_SERVER_ERROR,
        StatusCode::NOT_FOUND,
    ]);
    let bounds = (duration(), duration(), any::<bool>())
        .prop_map(|(max, offset, limits_request)| GrpcTimeout { max, offset, limits_request });
    let timeouts = (duration(), of(duration()), of(duration()), of(bounds)).prop_map(
        |(request, idle, max_stream, grpc)| Timeouts {
            request: Some(request),
            idle,
            // Envoy's older fields are not heeded beside the newer one.
            max_stream: max_stream.filter(|_| grpc.is_none_or(|grpc| !grpc.limits_request)),
            grpc,
        },
    );
    let host = prop_oneof![name().prop_map(HostRewrite::Literal), Just(HostRewrite::Endpoint)];
    let mirror = (name(), fraction(), mirror_host(), vec(one_change(), 0..3)).prop_map(
        |(cluster, fraction, host, request_headers)| Mirror { cluster, fraction, host, request_headers },
    );
    (
        (backends(), split()),
        unknown,
        timeouts,
        of(retry()),
        of(rewrite()),
        (of(host), any::<bool>()),
        vec(mirror, 0..2),
        vec(hash(), 0..3),
        (of(session()), super::listener::rate_limit_rules(), any::<bool>(), upgrades()),
    )
        .prop_map(
            |(
                (backends, split),
                unknown_cluster_status,
                timeouts,
                retry,
                path_rewrite,
                (host_rewrite, tell_original_host),
                mirrors,
                hash,
                (session, rules, with_hosts, upgrades),
            )| {
                Forward {
                    rate_limits: RouteRateLimits { rules, with_hosts },
                    backends,
                    split,
                    unknown_cluster_status,
                    timeouts,
                    retry,
                    path_rewrite,
                    host_rewrite,
                    tell_original_host,
                    mirrors,
                    hash,
                    session,
                    upgrades,
                }
            },
        )
        .boxed()
}

fn split() -> BoxedStrategy<Split> {
    prop_oneof![
        4 => Just(Split::Random),
        1 => header_name().prop_map(Split::Header),
        1 => Just(Split::Hash),
    ]
    .boxed()
}

fn mirror_host() -> impl Strategy<Value = MirrorHost> {
    prop_oneof![Just(MirrorHost::Kept), Just(MirrorHost::Shadow), "[a-z.]{1,9}".prop_map(MirrorHost::Literal),]
}

/// Changes that are made one after the other.
fn one_change() -> BoxedStrategy<HeaderMutations> {
    let remove = header_name().prop_map(|name| HeaderMutations { remove: vec![name], change: Vec::new() });
    let add = mutations().prop_map(|mut changes| {
        changes.remove.clear();
        changes.change.truncate(1);
        changes
    });
    let add = add.prop_filter("nothing is changed", |changes| !changes.is_empty());
    prop_oneof![remove, add].boxed()
}

/// What is said of filters, in the order of their names.
fn overrides() -> BoxedStrategy<FilterOverrides> {
    let settings = prop_oneof![
        2 => super::listener::settings(),
        1 => cors().prop_map(|rules| FilterSettings::Cors(Some(rules))),
    ];
    vec(of(settings), 0..3)
        .prop_map(|said| {
            let said = said.into_iter().enumerate().map(|(index, mut settings)| {
                let filter = format!("filter{index}");
                if let Some(FilterSettings::Authorization(sets)) = &mut settings {
                    sets.iter_mut().for_each(|set| set.name.clone_from(&filter));
                }
                Arc::new(FilterOverride { filter, settings })
            });
            said.collect()
        })
        .boxed()
}

fn backends() -> BoxedStrategy<Vec<Backend>> {
    let host = of("[a-z.]{1,9}");
    let backend = (name(), 0..1000_u32, mutations(), mutations(), overrides(), host).prop_map(
        |(cluster, weight, request_headers, response_headers, filters, host_rewrite)| Backend {
            cluster,
            weight,
            request_headers,
            response_headers,
            host_rewrite,
            filters,
        },
    );
    let plain = name().prop_map(|cluster| Backend::new(cluster, 1));
    prop_oneof![
        plain.prop_map(|backend| vec![backend]),
        vec(backend, 1..4).prop_map(|mut backends| {
            backends[0].weight += 1;
            backends
        }),
    ]
    .boxed()
}

fn retry() -> BoxedStrategy<RetryPolicy> {
    let on = select(RetryOn::ALL.map(|(on, _)| on).to_vec());
    let reset = (header_name(), any::<bool>()).prop_map(|(name, is_time)| ResetHeader { name, is_time });
    let limited = (vec(reset, 1..3), positive()).prop_map(|(reset, max)| RateLimitedBackoff { reset, max });
    let headers = (vec(header_match(), 0..3), vec(header_match(), 0..3), of(limited));
    let on = (vec(on, 0..4), vec(100..600_u16, 0..3));
    let per_try = (of(duration()), of(duration()));
    (on, headers, 1..10_u32, per_try, positive(), duration())
        .prop_map(|((on, statuses), headers, attempts, per_try, backoff, longer)| RetryPolicy {
            headers: headers.0,
            request_headers: headers.1,
            rate_limited: headers.2,
            on,
            statuses,
            attempts,
            per_try_timeout: per_try.0,
            per_try_idle_timeout: per_try.1,
            backoff,
            max_backoff: backoff + longer,
        })
        .boxed()
}

fn rewrite() -> BoxedStrategy<PathRewrite> {
    let prefix = prop_oneof![Just("/".to_owned()), path(), path().prop_map(|path| path + "/")];
    let full = prop_oneof![path(), Just(r"/a\1\\b".to_owned())];
    prop_oneof![
        full.prop_map(PathRewrite::Full),
        prefix.prop_map(PathRewrite::Prefix),
        select(vec![("/a", "/b"), ("^/(.*)/(.*)$", r"/\2/\1"), ("x", r"\\")]).prop_map(
            |(pattern, replacement)| PathRewrite::Regex(Substitution::new(pattern, replacement).unwrap())
        ),
    ]
    .boxed()
}

fn hash() -> impl Strategy<Value = HashPolicy> {
    prop_oneof![
        (header_name(), any::<[bool; 2]>()).prop_map(|(name, [rewrites, terminal])| {
            let rewrite = rewrites.then(|| Substitution::new("^/(.*)$", r"\1").unwrap());
            HashPolicy::Header { name, rewrite, terminal }
        }),
        (name(), of(duration()), of(path()), vec((name(), "[a-z]{0,4}"), 0..3), any::<bool>()).prop_map(
            |(name, ttl, path, attributes, terminal)| HashPolicy::Cookie {
                name,
                ttl,
                path,
                attributes,
                terminal
            }
        ),
        (name(), any::<bool>()).prop_map(|(key, terminal)| HashPolicy::FilterState { key, terminal }),
        any::<bool>().prop_map(|terminal| HashPolicy::SourceIp { terminal }),
        (name(), any::<bool>()).prop_map(|(name, terminal)| HashPolicy::Query { name, terminal }),
    ]
}

fn session() -> impl Strategy<Value = Session> {
    let seconds = || (1..=u32::MAX / 16).prop_map(|seconds| Duration::from_secs(seconds.into()));
    let cookie = |permanent| move |(name, path)| SessionCarrier::Cookie { name, path, permanent };
    prop_oneof![
        ((name(), path()).prop_map(cookie(true)), seconds().prop_map(Some)),
        ((name(), path()).prop_map(cookie(false)), of(seconds())),
        (header_name().prop_map(SessionCarrier::Header), of(seconds())),
    ]
    .prop_map(|(carrier, lifetime)| Session { carrier, lifetime })
}

fn cors() -> BoxedStrategy<Cors> {
    let names = || "([A-Za-z*-]{1,8}(, ?)?){0,3}";
    let flags = any::<(bool, bool, bool)>();
    (vec(string_match(), 0..3), flags, names(), names(), names(), "[0-9]{0,4}", fraction())
        .prop_map(|(allow_origins, flags, allow_methods, allow_headers, expose_headers, max_age, enabled)| {
            let (allow_credentials, allow_private_network, forward_unmatched) = flags;
            Cors {
                enabled,
                allow_origins,
                allow_credentials,
                allow_methods,
                allow_headers,
                expose_headers,
                max_age,
                allow_private_network,
                forward_unmatched,
            }
        })
        .boxed()
}

fn redirect() -> BoxedStrategy<Redirect> {
    let status =
        select(vec![301, 302, 303, 307, 308]).prop_map(|status| StatusCode::from_u16(status).unwrap());
    let scheme = select(vec!["http".to_owned(), "https".to_owned()]);
    (of(scheme), of(name()), of(port()), of(rewrite()), status, any::<bool>())
        .prop_map(|(scheme, host, port, path, status, strip_query)| Redirect {
            scheme,
            host,
            port,
            path,
            status,
            strip_query,
        })
        .boxed()
}

pub(super) fn fault() -> BoxedStrategy<Fault> {
    let abort =
        (status(), of(any::<u32>())).prop_map(|(status, grpc_status)| FaultAbort { status, grpc_status });
    let parts = (of(part(positive())), of(part(abort)), of(part(1..=u64::MAX)));
    (parts, vec(header_match(), 0..2), text(), vec(name(), 0..2), of(any::<u32>()))
        .prop_map(|((delay, abort, rate), applies_to, cluster, nodes, max_active)| Fault {
            delay,
            abort,
            rate,
            applies_to,
            cluster,
            nodes,
            max_active,
        })
        .boxed()
}

fn part<T: std::fmt::Debug + 'static>(
    value: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<FaultPart<T>> {
    let whole = select(vec![Whole::Hundred, Whole::TenThousand, Whole::Million]);
    prop_oneof![
        (value, fraction()).prop_map(|(value, fraction)| FaultPart::fixed(value, fraction)),
        (any::<u32>(), whole).prop_map(|(most, of)| FaultPart::Asked(AskedShare { most, of })),
    ]
    .boxed()
}

fn header_changes() -> impl Strategy<Value = HeaderChanges> {
    (mutations(), mutations()).prop_map(|(request, response)| HeaderChanges { request, response })
}

/// Each protocol once.
pub(super) fn upgrades() -> impl Strategy<Value = Vec<Upgrade>> {
    let protocols = || select(vec!["websocket", Upgrade::CONNECT, Upgrade::ANY, "spdy/3.1"]);
    let upgrade = (protocols(), any::<bool>());
    vec(upgrade, 0..3).prop_map(|upgrades| {
        let mut upgrades: Vec<Upgrade> = upgrades
            .into_iter()
            .map(|(protocol, enabled)| Upgrade { enabled, ..Upgrade::to(protocol) })
            .collect();
        upgrades.sort_by(|a, b| a.protocol.cmp(&b.protocol));
        upgrades.dedup_by(|a, b| a.protocol == b.protocol);
        upgrades
    })
}

pub(super) fn mutations() -> BoxedStrategy<HeaderMutations> {
    let op = select(vec![HeaderOp::Append, HeaderOp::AddIfAbsent, HeaderOp::Set, HeaderOp::SetIfPresent]);
    // Visible ASCII with percent signs, and bytes that are not UTF-8.
    let value = vec(prop_oneof![0x20..0x7f_u8, Just(b'%'), 0x80..=0xff_u8], 0..8);
    let literal = value.prop_map(|value| HeaderValue::from_bytes(&value).unwrap().into());
    let operators = select(vec!["%PROTOCOL%", "a%%%REQ(x?:path):7%", "%START_TIME(%s)% %UPSTREAM_HOST%"]);
    let format = (operators, any::<bool>()).prop_map(|(text, keep_empty)| HeaderText::Format {
        format: Format::parse(text).unwrap(),
        keep_empty,
    });
    let value = prop_oneof![2 => literal, 1 => format];
    let change = (header_name(), value, op).prop_map(|(name, value, op)| HeaderMutation { name, value, op });
    prop_oneof![
        2 => Just(HeaderMutations::default()),
        1 => (vec(header_name(), 0..3), vec(change, 0..3))
            .prop_map(|(remove, change)| HeaderMutations { remove, change }),
    ]
    .boxed()
}

fn header_name() -> impl Strategy<Value = HeaderName> {
    "x-[a-z0-9-]{0,8}".prop_map(|name| name.parse().unwrap())
}

fn status() -> impl Strategy<Value = StatusCode> {
    (200..600_u16).prop_map(|status| StatusCode::from_u16(status).unwrap())
}

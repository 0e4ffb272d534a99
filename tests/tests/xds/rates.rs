//! Limits on the rate of requests in all their parts: shares, what is left, connections, and descriptors.

use serde_json::{Value, json};
use tulle_tests::oracle::{Oracle, Outcome, all_clusters, merged, route_configuration, typed};

use crate::compare::Tally;
use crate::shares::check;

/// A limit that counts all requests, and more settings.
fn limit(tokens: u32, more: Value) -> Value {
    let all = json!({ "default_value": { "numerator": 100 } });
    let fields = merged(
        json!({
            "stat_prefix": "limit",
            "token_bucket": bucket(tokens),
            "filter_enabled": all,
            "filter_enforced": all,
        }),
        more,
    );
    typed("envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit", fields)
}

fn bucket(tokens: u32) -> Value {
    json!({ "max_tokens": tokens, "tokens_per_fill": 1, "fill_interval": "600s" })
}

/// The filter and the router.
fn filters(limit: Value) -> Value {
    json!({ "http_filters": [
        { "name": "limit", "typed_config": limit },
        {
            "name": "envoy.filters.http.router",
            "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
        },
    ] })
}

fn host(routes: &[Value]) -> Value {
    json!({ "name": "h", "domains": ["h.test"], "routes": routes })
}

fn get(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: h.test\r\n{fields}\r\n")
}

/// Compares outcomes in which a clock may have gone on by some seconds.
pub(crate) fn compare(tally: &mut Tally, case: &str, [envoy, mut tulle]: [Outcome; 2]) {
    let reset = |outcome: &Outcome| {
        let found = outcome.received.headers.iter().find(|(name, _)| name == "x-ratelimit-reset");
        found.map(|(_, value)| value.clone())
    };
    if let (Some(theirs), Some(ours)) = (reset(&envoy), reset(&tulle)) {
        let [a, b] = [&theirs, &ours].map(|text| text.parse::<i64>().expect("a number"));
        let found = tulle.received.headers.iter_mut().find(|(name, _)| name == "x-ratelimit-reset");
        if (a - b).abs() <= 5 && (a == 0) == (b == 0) {
            found.expect("it is there").1 = theirs;
        }
    }
    tally.compare(&case, [envoy, tulle]);
}

#[tokio::test]
async fn a_share_of_requests_counts_and_a_share_is_refused() {
    const TIMES: usize = 300;
    let mut oracle = Oracle::start().await;
    oracle.routes(&[host(&[json!({ "match": { "prefix": "/" }, "route": { "cluster": "a" } })])]).await;
    let share = |numerator: u32, denominator: &str| json!({ "default_value": { "numerator": numerator, "denominator": denominator } });
    let told = json!([{ "header": { "key": "x-over", "value": "%PROTOCOL%" } }]);
    for (settings, refused) in [
        (json!({ "filter_enabled": share(50, "HUNDRED") }), 0.5),
        (json!({ "filter_enforced": share(2_500, "TEN_THOUSAND") }), 0.25),
        (
            json!({ "filter_enabled": share(500_000, "MILLION"), "filter_enforced": share(50, "HUNDRED") }),
            0.25,
        ),
        (json!({ "filter_enforced": share(0, "HUNDRED") }), 0.0),
    ] {
        let mut settings = settings;
        settings["request_headers_to_add_when_not_enforced"] = told.clone();
        oracle.manager(filters(limit(1, settings.clone()))).await;
        // It is the last.
        let first = oracle.both(get("/", "").as_bytes(), "ok").await;
        assert!(first.iter().all(|outcome| outcome.received.status == 200), "{settings}");
        let mut got = [std::collections::BTreeMap::new(), std::collections::BTreeMap::new()];
        for _ in 0..TIMES {
            let outcomes = oracle.both(get("/", "").as_bytes(), "ok").await;
            for (outcome, got) in outcomes.iter().zip(&mut got) {
                let over = outcome.upstream.first().map(|(_, seen)| seen.header("x-over").to_owned());
                let what = match over {
                    None => "refused".to_owned(),
                    Some(over) if over.is_empty() => "passed".into(),
                    Some(over) => format!("over by {over}"),
                };
                *got.entry(what).or_insert(0) += 1;
            }
        }
        let enabled = settings["filter_enabled"].is_null();
        let over = match refused {
            _ if !enabled && refused > 0.4 => 0.0,
            _ if !enabled => 0.25,
            refused => 1.0 - refused,
        };
        for (who, got) in ["envoy", "tulle"].into_iter().zip(&got) {
            check(&format!("{who} {settings}"), &[("refused", refused), ("over by HTTP/1.1", over)], got);
        }
    }
}

#[tokio::test]
async fn answers_tell_what_is_left() {
    let mut oracle = Oracle::start().await;
    let tell = json!({ "enable_x_ratelimit_headers": "DRAFT_VERSION_03" });
    let routes = [
        json!({ "match": { "path": "/said" }, "direct_response": { "status": 202 } }),
        json!({ "match": { "path": "/away" }, "redirect": { "path_redirect": "/x" } }),
        json!({ "match": { "path": "/nobody" }, "route": { "cluster": "unknown" } }),
        json!({
            "match": { "path": "/own" },
            "route": { "cluster": "a" },
            "typed_per_filter_config": { "limit": limit(2, tell.clone()) },
        }),
        json!({
            "match": { "path": "/silent" },
            "route": { "cluster": "a" },
            "typed_per_filter_config": { "limit": limit(1, json!({ "status": { "code": 503 } })) },
        }),
        json!({
            "match": { "prefix": "/" },
            "route": { "cluster": "a" },
            "response_headers_to_add": [{ "header": { "key": "x-route", "value": "%RESPONSE_CODE_DETAILS%" } }],
        }),
    ];
    oracle.routes(&[host(&routes)]).await;
    let mut tally = Tally::default();
    let more = json!({
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        "response_headers_to_add": [{ "header": { "key": "x-limited", "value": "yes" } }],
    });
    for settings in [more.clone(), json!({ "enable_x_ratelimit_headers": "OFF" })] {
        oracle.manager(filters(limit(6, settings.clone()))).await;
        for path in
            ["a", "said", "away", "nobody", "own", "own", "own", "silent", "silent", "b", "c", "d", "e"]
        {
            let outcomes = oracle.both(get(&format!("/{path}"), "").as_bytes(), "ok").await;
            compare(&mut tally, &format!("{settings}, {path}"), outcomes);
        }
        let grpc = "content-type: application/grpc\r\n";
        let outcomes = oracle.both(get("/f", grpc).as_bytes(), "ok").await;
        compare(&mut tally, &format!("{settings}, gRPC"), outcomes);
    }
    let mut passing = more;
    passing["filter_enforced"] = json!({ "default_value": { "numerator": 0 } });
    passing["request_headers_to_add_when_not_enforced"] = json!([
        { "header": { "key": "x-over", "value": "%REQ(x-user)%" } },
        { "header": { "key": "x-user", "value": "other" }, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD" },
    ]);
    oracle.manager(filters(limit(2, passing))).await;
    for number in 0..4 {
        let outcomes = oracle.both(get("/a", "x-user: me\r\n").as_bytes(), "ok").await;
        compare(&mut tally, &format!("let through, {number}"), outcomes);
    }
    tally.end(&["local replies", "when to come back"]);
}

#[tokio::test]
async fn connections_have_their_own_buckets() {
    let mut oracle = Oracle::start().await;
    oracle.routes(&[host(&[json!({ "match": { "prefix": "/" }, "route": { "cluster": "a" } })])]).await;
    let mut tally = Tally::default();
    for (settings, statuses) in [
        (json!({ "local_rate_limit_per_downstream_connection": true }), [[200, 200, 429, 429]; 2]),
        (
            json!({ "local_rate_limit_per_downstream_connection": false }),
            [[200, 200, 429, 429], [429, 429, 429, 429]],
        ),
    ] {
        let mut settings = settings;
        settings["enable_x_ratelimit_headers"] = json!("DRAFT_VERSION_03");
        oracle.manager(filters(limit(2, settings.clone()))).await;
        for (number, expected) in statuses.into_iter().enumerate() {
            let request = get("/", "");
            let [envoys, tulles] = oracle.both_in_turn(&[request.as_bytes(); 4]).await;
            let got: Vec<_> = tulles.iter().map(|outcome| outcome.received.status).collect();
            assert_eq!(got, expected, "{settings}, connection {number}");
            for (at, (envoy, tulle)) in envoys.into_iter().zip(tulles).enumerate() {
                compare(&mut tally, &format!("{settings}, connection {number}, {at}"), [envoy, tulle]);
            }
        }
    }
    tally.end(&["local replies", "when to come back"]);
}

/// Descriptors with a bucket each.
fn descriptors(buckets: &[(&[(&str, &str)], u32)]) -> Value {
    let descriptor = |(entries, tokens): &(&[(&str, &str)], u32)| {
        let entries: Vec<_> =
            entries.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
        json!({ "entries": entries, "token_bucket": bucket(*tokens) })
    };
    buckets.iter().map(descriptor).collect()
}

fn generic(value: &str) -> Value {
    json!({ "generic_key": { "descriptor_value": value } })
}

fn rules(rules: &[Value]) -> Value {
    rules.iter().map(|actions| json!({ "actions": actions })).collect()
}

#[tokio::test]
async fn descriptors_choose_buckets() {
    let mut oracle = Oracle::start().await;
    let buckets = descriptors(&[
        (&[("generic_key", "one")], 1),
        (&[("generic_key", "two")], 2),
        (&[("own", "key")], 1),
        (&[("generic_key", "pair"), ("user", "x")], 1),
        (&[("user", "root")], 3),
        (&[("user", "")], 1),
        (&[("header_match", "special")], 1),
        (&[("header_match", "plain")], 2),
        (&[("query_match", "asked")], 1),
        (&[("q", "1")], 1),
        (&[("path", "/path?q=7")], 1),
        (&[("destination_cluster", "b")], 2),
        (&[("remote_address", "127.0.0.1")], 2),
        (&[("masked_remote_address", "127.0.0.0/8")], 1),
    ]);
    let user = |optional: bool| json!({ "request_headers": { "header_name": "x-user", "descriptor_key": "user", "skip_if_absent": optional } });
    let when = json!([{ "name": "x-special", "present_match": true }]);
    let asked = json!([{ "name": "q", "string_match": { "exact": "yes" } }]);
    let per_path = [
        ("one", rules(&[json!([generic("one")])])),
        ("slowest", rules(&[json!([generic("two")]), json!([generic("one")]), json!([generic("unknown")])])),
        ("own", rules(&[json!([{ "generic_key": { "descriptor_key": "own", "descriptor_value": "key" } }])])),
        ("pair", rules(&[json!([generic("pair"), user(false)])])),
        ("optional", rules(&[json!([user(true), generic("two")])])),
        ("user", rules(&[json!([user(false)])])),
        (
            "special",
            rules(&[
                json!([{ "header_value_match": { "descriptor_value": "special", "headers": when } }]),
                json!([{ "header_value_match": { "descriptor_value": "plain", "headers": when, "expect_match": false } }]),
            ]),
        ),
        (
            "asked",
            rules(&[
                json!([{ "query_parameter_value_match": { "descriptor_value": "asked", "query_parameters": asked } }]),
                json!([{ "query_parameters": { "query_parameter_name": "q", "descriptor_key": "q" } }]),
            ]),
        ),
        (
            "path",
            rules(&[json!([{ "request_headers": { "header_name": ":path", "descriptor_key": "path" } }])]),
        ),
        ("cluster", rules(&[json!([{ "destination_cluster": {} }])])),
        ("address", rules(&[json!([{ "remote_address": {} }])])),
        ("masked", rules(&[json!([{ "masked_remote_address": { "v4_prefix_mask_len": 8 } }])])),
        ("source", rules(&[json!([{ "source_cluster": {} }, generic("x")])])),
        ("disabled", json!([{ "disable_key": "x", "actions": [generic("one")] }])),
        ("nothing", json!([])),
    ];
    let mut requests: Vec<(String, &str)> = Vec::new();
    for (path, _) in &per_path {
        for field in ["", "x-user: x\r\n", "x-user: root\r\n", "x-special: 1\r\n", "", "x-user: x\r\n"] {
            requests.push((format!("/{path}"), field));
        }
        for query in ["q=1", "q=yes", "q=7", "q=1", "q=yes", "q=7"] {
            requests.push((format!("/{path}?{query}"), ""));
        }
    }
    let weighted = |weights: [u32; 2]| {
        let cluster = |(name, weight)| json!({ "name": name, "weight": weight });
        let clusters: Vec<_> = ["a", "b"].into_iter().zip(weights).map(cluster).collect();
        json!({ "clusters": clusters })
    };
    let mut tally = Tally::default();
    for (settings, action) in [
        (json!({ "always_consume_default_token_bucket": false }), json!({ "cluster": "b" })),
        (json!({ "always_consume_default_token_bucket": true }), json!({ "cluster": "a" })),
        (
            json!({ "always_consume_default_token_bucket": false }),
            json!({ "weighted_clusters": weighted([0, 1]) }),
        ),
        (json!({}), json!({ "weighted_clusters": weighted([1, 0]) })),
    ] {
        let mut settings = settings;
        settings["descriptors"] = buckets.clone();
        settings["enable_x_ratelimit_headers"] = json!("DRAFT_VERSION_03");
        let route = |(path, rules): &(&str, Value)| {
            let mut action = action.clone();
            action["rate_limits"] = rules.clone();
            json!({ "match": { "path": format!("/{path}") }, "route": action })
        };
        oracle.routes(&[host(&per_path.iter().map(route).collect::<Vec<_>>())]).await;
        oracle.manager(filters(limit(100, settings.clone()))).await;
        for (target, fields) in &requests {
            let outcomes = oracle.both(get(target, fields).as_bytes(), "ok").await;
            compare(&mut tally, &format!("{action} {settings}: {target} {fields:?}"), outcomes);
        }
    }
    tally.end(&["local replies", "when to come back"]);
}

#[tokio::test]
async fn what_hosts_stages_and_filters_say_of_descriptors() {
    let mut oracle = Oracle::start().await;
    let of_stage = |stage: u32, value: &str| json!({ "stage": stage, "actions": [generic(value)] });
    let hosts: Vec<_> = [false, true]
        .into_iter()
        .map(|with_hosts| {
            let route = |path: &str, rules: Vec<Value>| {
                let mut action = json!({ "cluster": "a", "rate_limits": rules });
                if with_hosts {
                    action["include_vh_rate_limits"] = json!(true);
                }
                json!({ "match": { "path": path }, "route": action })
            };
            let name = if with_hosts { "with.test" } else { "h.test" };
            json!({
                "name": name,
                "domains": [name],
                "rate_limits": [of_stage(0, "host"), of_stage(2, "host-two")],
                "routes": [
                    route("/route", vec![of_stage(0, "route")]),
                    route("/later", vec![of_stage(2, "later")]),
                    route("/plain", vec![]),
                    { "match": { "path": "/said" }, "direct_response": { "status": 202 } },
                ],
            })
        })
        .chain([all_clusters()])
        .collect();
    oracle.push(vec![route_configuration("routes", &hosts)]).await;
    let buckets = descriptors(&[
        (&[("generic_key", "host")], 3),
        (&[("generic_key", "host-two")], 2),
        (&[("generic_key", "route")], 1),
        (&[("generic_key", "later")], 1),
        (&[("generic_key", "own")], 2),
    ]);
    let mut tally = Tally::default();
    for settings in [
        json!({}),
        json!({ "vh_rate_limits": "INCLUDE" }),
        json!({ "vh_rate_limits": "IGNORE" }),
        json!({ "stage": 2 }),
        json!({ "stage": 2, "vh_rate_limits": "INCLUDE" }),
        json!({ "rate_limits": [{ "actions": [generic("own")] }] }),
    ] {
        let mut settings = settings;
        settings["descriptors"] = buckets.clone();
        settings["always_consume_default_token_bucket"] = json!(false);
        settings["enable_x_ratelimit_headers"] = json!("DRAFT_VERSION_03");
        oracle.manager(filters(limit(5, settings.clone()))).await;
        for host in ["h.test", "with.test"] {
            for path in ["route", "later", "plain", "said", "nowhere", "route", "later", "plain"] {
                let request = format!("GET /{path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
                let outcomes = oracle.both(request.as_bytes(), "ok").await;
                compare(&mut tally, &format!("{settings}: {host} {path}"), outcomes);
            }
        }
    }
    tally.end(&["local replies", "when to come back"]);
}

#[tokio::test]
async fn open_values_have_buckets_within_bounds() {
    let mut oracle = Oracle::start().await;
    let user = json!([{ "request_headers": { "header_name": "x-user", "descriptor_key": "user" } }]);
    let action = json!({ "cluster": "a", "rate_limits": rules(&[user]) });
    oracle.routes(&[host(&[json!({ "match": { "prefix": "/" }, "route": action })])]).await;
    let mut tally = Tally::default();
    for (most, order) in [(json!(1), "aabba"), (json!(2), "aabbaab"), (json!(null), "abcabcdefghdefgh")] {
        let mut settings = json!({ "descriptors": descriptors(&[(&[("user", "")], 1)]) });
        if !most.is_null() {
            settings["max_dynamic_descriptors"] = most;
        }
        oracle.manager(filters(limit(100, settings.clone()))).await;
        for (at, user) in order.chars().enumerate() {
            let request = get("/", &format!("x-user: {user}\r\n"));
            let outcomes = oracle.both(request.as_bytes(), "ok").await;
            compare(&mut tally, &format!("{settings}: {user} at {at} of {order}"), outcomes);
        }
    }
    tally.end(&["local replies", "when to come back"]);
}

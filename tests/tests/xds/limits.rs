//! How much may be under way at once, and how often: circuit breakers, rate limits, endpoints that are left out.

use serde_json::{Value, json};
use tulle_tests::oracle::{
    Oracle, Outcome, cluster, endpoints, merged, route_configuration, speaking_http2, typed,
};

use crate::compare::Tally;
use crate::http2::behind;

/// A cluster's limits, how many requests come before the others, how many in all, and what the upstream does.
fn breakers() -> Vec<(Value, (usize, usize), &'static str)> {
    let retry = "503,slow";
    vec![
        (json!({ "max_connections": 1, "max_pending_requests": 1 }), (1, 5), "slow"),
        (json!({ "max_connections": 1, "max_pending_requests": 3 }), (1, 3), "slow"),
        (json!({ "max_connections": 2, "max_pending_requests": 2 }), (2, 7), "slow"),
        (json!({ "max_connections": 1 }), (1, 4), "slow"),
        (json!({ "max_requests": 2 }), (2, 5), "slow"),
        (json!({ "max_requests": 0 }), (0, 2), "ok"),
        (json!({ "max_connections": 3, "max_pending_requests": 3, "max_requests": 1 }), (1, 3), "slow"),
        (json!({ "max_retries": 0 }), (0, 3), retry),
        (json!({ "max_retries": 2 }), (0, 5), retry),
        (json!({ "max_retries": 5 }), (0, 5), retry),
        (json!({ "priority": "HIGH", "max_requests": 0 }), (0, 2), "ok"),
    ]
}

#[tokio::test]
async fn breakers_refuse_as_many_as_envoys_do() {
    let mut oracle = Oracle::start().await;
    let upstream = oracle.upstreams[0].address;
    let cases = breakers();
    let mut resources = Vec::new();
    let mut routes = Vec::new();
    for (index, (thresholds, ..)) in cases.iter().enumerate() {
        let name = format!("limited{index}");
        resources.push(cluster(&name, json!({ "circuit_breakers": { "thresholds": [thresholds] } })));
        resources.push(endpoints(&name, &[upstream]));
        let retry =
            json!({ "retry_on": "5xx", "num_retries": 1, "retry_back_off": { "base_interval": "0.001s" } });
        let action = json!({ "cluster": name, "retry_policy": retry });
        routes.push(json!({ "match": { "path": format!("/{index}") }, "route": action }));
    }
    resources.push(route_configuration(
        "routes",
        &[json!({ "name": "h", "domains": ["h.test"], "routes": routes })],
    ));
    oracle.push(resources).await;
    let mut tally = Tally::default();
    let oracle = &oracle;
    let all = cases.iter().enumerate().map(|(index, (thresholds, times, script))| async move {
        let request = format!("POST /{index} HTTP/1.1\r\nhost: h.test\r\ncontent-length: 2\r\n\r\nhi");
        (thresholds, *times, oracle.both_at_once(*times, request.as_bytes(), script).await)
    });
    for (thresholds, times, outcomes) in futures_util::future::join_all(all).await {
        compare_all(&mut tally, &format!("{thresholds} {times:?} at once"), outcomes);
    }
    tally.end(&["local replies"]);
}

/// Where connections are limited, and the streams of each, requests wait for a stream to end.
#[tokio::test]
async fn streams_wait_for_room_as_with_envoy() {
    let mut oracle = Oracle::start().await;
    let mut tally = Tally::default();
    let mut waited = 0;
    for (streams, thresholds, times) in [
        (1, json!({ "max_connections": 1 }), (1, 3)),
        (1, json!({ "max_connections": 1, "max_pending_requests": 1 }), (1, 4)),
        (2, json!({ "max_connections": 1, "max_pending_requests": 2 }), (2, 6)),
        (1, json!({ "max_connections": 2, "max_pending_requests": 2 }), (2, 6)),
        (2, json!({}), (2, 5)),
    ] {
        let options = json!({ "max_concurrent_streams": streams });
        let limits = json!({ "circuit_breakers": { "thresholds": [thresholds] } });
        let _two = behind(&mut oracle, &[json!({})], &merged(speaking_http2(options), limits)).await;
        let request = b"POST /x HTTP/1.1\r\nhost: h0.test\r\ncontent-length: 2\r\n\r\nhi";
        let outcomes = oracle.both_at_once(times, request, "slow:0").await;
        waited += outcomes[0].iter().filter(|outcome| outcome.received.status == 200).count() - times.0;
        compare_all(&mut tally, &format!("{streams} {thresholds} {times:?} at once"), outcomes);
    }
    assert!(waited > 5, "{waited} waited");
    tally.end(&["local replies"]);
}

fn compare_all(tally: &mut Tally, case: &str, [envoys, tulles]: [Vec<Outcome>; 2]) {
    for (envoy, tulle) in envoys.into_iter().zip(tulles) {
        tally.compare(&case, [envoy, tulle]);
    }
}

/// A connection manager with one filter before the router.
fn filtered(name: &str, filter: Value) -> Value {
    json!({ "http_filters": [
        { "name": name, "typed_config": filter },
        {
            "name": "envoy.filters.http.router",
            "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
        },
    ] })
}

#[tokio::test]
async fn a_rate_limit_answers_when_its_bucket_is_empty() {
    let mut oracle = Oracle::start().await;
    let host = json!({ "name": "h", "domains": ["h.test"], "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "a" } }] });
    oracle.routes(&[host]).await;
    let always = json!({ "default_value": { "numerator": 100 } });
    let never = json!({ "default_value": { "numerator": 0 } });
    let bucket = |tokens: u32| json!({ "max_tokens": tokens, "tokens_per_fill": 1, "fill_interval": "60s" });
    let limits = [
        json!({ "token_bucket": bucket(3), "filter_enabled": always, "filter_enforced": always }),
        json!({ "token_bucket": bucket(1), "filter_enabled": always, "filter_enforced": never }),
        json!({ "token_bucket": bucket(1), "filter_enabled": never, "filter_enforced": always }),
        json!({ "token_bucket": bucket(1) }),
        json!({ "token_bucket": bucket(2), "filter_enabled": always, "filter_enforced": always, "status": { "code": "TooManyRequests" } }),
    ];
    let mut tally = Tally::default();
    for (index, mut limit) in limits.into_iter().enumerate() {
        limit["stat_prefix"] = json!(format!("limit{index}"));
        let filter = typed("envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit", limit.clone());
        oracle.manager(filtered("limit", filter)).await;
        for number in 0..5 {
            let outcomes = oracle.both(b"GET / HTTP/1.1\r\nhost: h.test\r\n\r\n", "ok").await;
            tally.compare(&format!("{limit}, request {number}"), outcomes);
        }
    }
    tally.end(&["local replies", "when to come back"]);
}

/// How a cluster ejects, what the second of three upstreams does, and how many of 60 requests one after the other reach it.
fn outliers() -> Vec<(Value, &'static str, usize)> {
    let rule =
        |count: u32, percent: u32| json!({ "consecutive_5xx": count, "max_ejection_percent": percent });
    let gateway = |enforced: u32| {
        json!({
            "consecutive_gateway_failure": 3,
            "enforcing_consecutive_gateway_failure": enforced,
            "enforcing_consecutive_5xx": 0,
            "max_ejection_percent": 100,
        })
    };
    let always = |count: u32, percent: u32| {
        let mut rule = rule(count, percent);
        rule["always_eject_one_host"] = json!(true);
        rule
    };
    let both = json!({
        "consecutive_5xx": 5,
        "consecutive_gateway_failure": 2,
        "enforcing_consecutive_gateway_failure": 100,
        "max_ejection_percent": 100,
    });
    // What is no answer counts apart; that there was a connection is a success, as often as it is lost.
    let split = |answers: u32, local: u32| {
        let mut rule = rule(answers, 100);
        rule["split_external_local_origin_errors"] = json!(true);
        rule["consecutive_local_origin_failure"] = json!(local);
        rule["enforcing_local_origin_success_rate"] = json!(0);
        rule
    };
    vec![
        (Value::Null, "503@b", 20),
        (split(3, 2), "503@b", 3),
        (split(3, 2), "fin@b", 20),
        (split(3, 1), "fin@b", 1),
        (split(30, 1), "503@b", 20),
        (rule(3, 100), "503@b", 3),
        (rule(3, 100), "500@b", 3),
        (rule(5, 50), "503@b", 5),
        (rule(1, 34), "500@b", 1),
        (rule(3, 100), "404@b", 20),
        (rule(3, 100), "fin@b", 3),
        (rule(30, 100), "503@b", 20),
        (gateway(100), "503@b", 3),
        (gateway(100), "500@b", 20),
        (gateway(0), "503@b", 20),
        (both.clone(), "503@b", 2),
        (both, "500@b", 5),
        (rule(3, 10), "503@b", 20),
        (rule(3, 33), "503@b", 20),
        (always(3, 10), "503@b", 3),
        (rule(3, 0), "503@b", 20),
        (always(3, 0), "503@b", 3),
    ]
}

/// How often a case is tried, each time with a cluster of its own.
const ATTEMPTS: usize = 3;

#[tokio::test]
async fn failing_endpoints_are_left_out_as_with_envoy() {
    let mut oracle = Oracle::start().await;
    let addresses: Vec<_> = oracle.upstreams.iter().map(|upstream| upstream.address).collect();
    let cases = outliers();
    let mut resources = Vec::new();
    let mut routes = Vec::new();
    for (index, (detection, ..)) in cases.iter().enumerate() {
        let mut detection = detection.clone();
        if !detection.is_null() {
            detection["enforcing_success_rate"] = json!(0);
            // Longer than the test lasts.
            detection["interval"] = json!("300s");
            detection["base_ejection_time"] = json!("300s");
        }
        for attempt in 0..ATTEMPTS {
            let name = format!("watched{index}-{attempt}");
            resources.push(cluster(&name, json!({ "outlier_detection": detection })));
            resources.push(endpoints(&name, &addresses));
            let path = format!("/{index}/{attempt}");
            routes.push(json!({ "match": { "path": path }, "route": { "cluster": name } }));
        }
    }
    let host = json!({ "name": "h", "domains": ["h.test"], "routes": routes });
    resources.push(route_configuration("routes", &[host]));
    oracle.push(resources).await;
    for (index, (detection, script, expected)) in cases.iter().enumerate() {
        // An ejection takes effect in Envoy only after the next turns of two loops.
        let about = *expected..=expected + 2;
        let mut seen = Vec::new();
        while !seen.last().is_some_and(|reached: &[usize; 2]| reached.iter().all(|one| about.contains(one))) {
            // One that fails for another reason on a busy machine takes the place of the one that should be out.
            assert!(seen.len() < ATTEMPTS, "{detection} {script}: {seen:?}, not {expected}");
            let request = format!(
                "POST /{index}/{} HTTP/1.1\r\nhost: h.test\r\ncontent-length: 2\r\n\r\nhi",
                seen.len()
            );
            let mut reached = [0, 0];
            for _ in 0..60 {
                let outcomes = oracle.both(request.as_bytes(), script).await;
                for (outcome, reached) in outcomes.iter().zip(&mut reached) {
                    *reached += outcome.upstream.iter().filter(|(name, _)| name == "b").count();
                }
            }
            seen.push(reached);
        }
    }
}

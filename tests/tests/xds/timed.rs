//! How long a request may take: what calls of gRPC bring along, and what an attempt may take without a sign of life.

use bytes::Bytes;
use http::Request;
use serde_json::{Value, json};
use tulle_tests::oracle::Oracle;

use crate::compare::Tally;
use crate::http2::behind;

/// What a route says of time, and calls of it: what the call says itself, and what its upstream does. Where a limit that should
/// hold did not, the call would outlast the test.
fn calls() -> Vec<(Value, Vec<(&'static str, &'static str)>)> {
    let newer = |max_stream: Option<&str>, max: Option<&str>, offset: Option<&str>| {
        let limits = json!({
            "max_stream_duration": max_stream,
            "grpc_timeout_header_max": max,
            "grpc_timeout_header_offset": offset,
        });
        json!({ "max_stream_duration": limits })
    };
    let older = |timeout: &str, max: &str, offset: Option<&str>| json!({ "timeout": timeout, "max_grpc_timeout": max, "grpc_timeout_offset": offset });
    vec![
        (
            newer(None, Some("0.2s"), None),
            vec![("900S", "hang"), ("900S", "half"), ("900S", "grpc:0"), ("900S", "grpc:5")],
        ),
        (newer(None, Some("0s"), None), vec![("200m", "hang"), ("20S", "slow:0")]),
        (newer(None, Some("0s"), Some("899.8s")), vec![("900S", "hang"), ("900S", "grpc:0")]),
        (newer(None, Some("0s"), Some("900s")), vec![("900S", "hang"), ("20S", "slow:0")]),
        (newer(None, Some("0.3s"), Some("0.1s")), vec![("900S", "hang")]),
        // In place of the stream's limit, where there is one.
        (
            newer(Some("0.2s"), Some("20s"), None),
            vec![("", "hang"), ("20S", "slow:0"), ("900S", "slow:0"), ("200m", "hang")],
        ),
        (newer(Some("900s"), Some("0.2s"), None), vec![("900S", "hang"), ("", "slow:0")]),
        (newer(Some("0.2s"), None, None), vec![("", "hang"), ("20S", "hang")]),
        // In place of the route's.
        (older("0.2s", "0s", None), vec![("", "slow:0"), ("200m", "hang"), ("20S", "slow:0")]),
        (older("900s", "0.2s", None), vec![("", "hang"), ("900S", "hang"), ("900S", "grpc:0")]),
        (older("0s", "0s", Some("899.8s")), vec![("900S", "hang"), ("20S", "slow:0")]),
        (older("0s", "0.2s", Some("10s")), vec![("", "hang"), ("900S", "hang")]),
    ]
}

#[tokio::test]
async fn the_time_that_a_call_brings_along_is_bounded_as_by_envoy() {
    let mut oracle = Oracle::start().await;
    let cases = calls();
    let actions: Vec<_> = cases.iter().map(|(action, _)| action.clone()).collect();
    let _upstream = behind(&mut oracle, &actions, &json!({})).await;
    let mut tally = Tally::default();
    for (index, (action, calls)) in cases.iter().enumerate() {
        for (told, script) in calls {
            let request = Request::post(format!("http://h{index}.test/x")).header("te", "trailers");
            let request = request.header("content-type", "application/grpc");
            let request = if told.is_empty() { request } else { request.header("grpc-timeout", *told) };
            let request = request.body(Bytes::from_static(b"\0\0\0\0\x02hi")).expect("a valid request");
            let mut outcomes = oracle.both_over_http2(&request, script).await;
            if action["max_stream_duration"]["grpc_timeout_header_offset"] == "900s" {
                // Nothing is left: whether the call is on its way by the time that this is seen is up to chance.
                outcomes.iter_mut().for_each(|outcome| outcome.upstream.clear());
            }
            tally.compare(&format!("{action} {told:?} {script}"), outcomes);
        }
    }
    tally.end(&["local replies", "gRPC deadlines", "time that is left"]);
}

#[tokio::test]
async fn an_attempt_that_gives_no_sign_of_life_is_given_up_as_by_envoy() {
    let mut oracle = Oracle::start().await;
    let policies = ["5xx", "reset", "connect-failure"].map(|on| {
        json!({
            "retry_on": on,
            "num_retries": 1,
            "per_try_idle_timeout": "1s",
            "retry_back_off": { "base_interval": "0.001s" },
        })
    });
    let routes = policies.iter().enumerate().map(|(index, policy)| {
        let action = json!({ "cluster": "a", "timeout": "0s", "retry_policy": policy });
        json!({ "match": { "path": format!("/{index}") }, "route": action })
    });
    let routes: Vec<_> = routes.collect();
    oracle.routes(&[json!({ "name": "h", "domains": ["h.test"], "routes": routes })]).await;
    let mut tally = Tally::default();
    for (index, policy) in policies.iter().enumerate() {
        for script in
            ["ok", "hang", "hang,ok", "hang,503", "503,hang", "stall-head,ok", "stall", "stall-chunk"]
        {
            let head = "host: h.test\r\ncontent-length: 2\r\n\r\nhi";
            let request = format!("POST /{index} HTTP/1.1\r\n{head}");
            tally.compare(&format!("{policy} {script}"), oracle.both(request.as_bytes(), script).await);
        }
    }
    tally.end(&["local replies", "count of attempts"]);
}

/// A difference that is meant so: who sets a timeout means it. Envoy passes over it beside a `max_stream_duration`.
#[tokio::test]
async fn a_timeout_holds_beside_the_time_of_the_stream() {
    let mut oracle = Oracle::start().await;
    let action =
        json!({ "cluster": "a", "timeout": "0.1s", "max_stream_duration": { "max_stream_duration": "20s" } });
    let routes = json!([{ "match": { "prefix": "/" }, "route": action }]);
    oracle.routes(&[json!({ "name": "h", "domains": ["h.test"], "routes": routes })]).await;
    let [envoy, tulle] = oracle.both(b"GET / HTTP/1.1\r\nhost: h.test\r\n\r\n", "slow").await;
    assert_eq!((envoy.received.status, tulle.received.status), (200, 504));
}

//! What becomes of requests whose upstream speaks HTTP/2 and resets streams, says goodbye, or falls silent; and what gRPC's
//! clients are told of it.

use bytes::Bytes;
use http::Request;
use serde_json::{Value, json};
use tulle_tests::oracle::{Http2, Oracle, cluster, endpoints, merged, route_configuration, speaking_http2};

use crate::compare::Tally;

/// All codes of RFC 9113, section 7, and one that it does not know.
const CODES: std::ops::RangeInclusive<u32> = 0..=14;

/// An upstream that speaks HTTP/2 behind each of some actions, by the domain `h<index>.test`; `more`: what its cluster says besides.
pub(crate) async fn behind(oracle: &mut Oracle, actions: &[Value], more: &Value) -> Http2 {
    let upstream = oracle.http2_upstream("two").await;
    let fields = merged(speaking_http2(json!({})), more.clone());
    let host = |(index, action): (usize, &Value)| {
        let mut action = action.clone();
        action["cluster"] = json!("two");
        let domain = format!("h{index}.test");
        json!({ "name": domain, "domains": [domain], "routes": [{ "match": { "prefix": "/" }, "route": action }] })
    };
    let mut hosts = vec![tulle_tests::oracle::all_clusters()];
    hosts.extend(actions.iter().enumerate().map(host));
    let resources = vec![
        cluster("two", fields),
        endpoints("two", &[upstream.address]),
        route_configuration("routes", &hosts),
    ];
    oracle.push(resources).await;
    upstream
}

/// As many retries as there are: what a budget allows is another test's.
fn retries() -> Value {
    json!({ "circuit_breakers": { "thresholds": [{
        "retry_budget": { "budget_percent": { "value": 100 }, "min_retry_concurrency": 1000 },
    }] } })
}

fn request(method: &str, host: usize, fields: &[(&str, &str)], body: &'static str) -> Request<Bytes> {
    let mut request = Request::builder().method(method).uri(format!("http://h{host}.test/x"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Bytes::from_static(body.as_bytes())).expect("a valid request")
}

fn retry(on: &str) -> Value {
    let policy = json!({ "retry_on": on, "num_retries": 2, "retry_back_off": { "base_interval": "0.001s" } });
    json!({ "timeout": "0s", "retry_policy": policy })
}

/// Scripts with a code in place of `N`.
fn with_codes(words: &[&str]) -> Vec<String> {
    words.iter().flat_map(|word| CODES.map(|code| word.replace('N', &code.to_string()))).collect()
}

#[tokio::test]
async fn resets_are_passed_on_or_tried_again_as_by_envoy() {
    let mut oracle = Oracle::start().await;
    let actions = [json!({ "timeout": "0s" }), retry("reset"), retry("refused-stream"), retry("5xx")];
    let _upstream = behind(&mut oracle, &actions, &retries()).await;
    let mut tally = Tally::default();
    for (index, action) in actions.iter().enumerate() {
        for script in with_codes(&["reset:N", "reset:N,ok", "cut:N"]) {
            for (method, body) in [("GET", ""), ("POST", "body")] {
                let outcomes = oracle.both_over_http2(&request(method, index, &[], body), &script).await;
                tally.compare(&format!("{action} {method} {script}"), outcomes);
            }
        }
    }
    tally.end(&["local replies"]);
}

#[tokio::test]
async fn clients_of_http1_see_resets_as_through_envoy() {
    let mut oracle = Oracle::start().await;
    let _upstream = behind(&mut oracle, &[json!({ "timeout": "0s" })], &retries()).await;
    let mut tally = Tally::default();
    for script in with_codes(&["reset:N", "cut:N", "seen:N"]) {
        let request = "POST /x HTTP/1.1\r\nhost: h0.test\r\ncontent-length: 4\r\n\r\nbody";
        let outcomes = oracle.both(request.as_bytes(), &script).await;
        tally.compare(&script, outcomes);
    }
    tally.end(&["local replies"]);
}

#[tokio::test]
async fn who_says_goodbye_is_asked_no_more() {
    let mut oracle = Oracle::start().await;
    let actions = [json!({ "timeout": "0s" }), retry("reset"), retry("refused-stream")];
    let _upstream = behind(&mut oracle, &actions, &retries()).await;
    let mut tally = Tally::default();
    for (index, action) in actions.iter().enumerate() {
        let codes = with_codes(&["seen:N,ok", "seen:N"]);
        let others = ["last", "last,last", "fin", "fin,ok", "rst", "rst,ok", "ok", "503", "trailers"];
        for script in codes.into_iter().chain(others.map(str::to_owned)) {
            for (method, body) in [("GET", ""), ("POST", "body")] {
                let outcomes = oracle.both_over_http2(&request(method, index, &[], body), &script).await;
                tally.compare(&format!("{action} {method} {script}"), outcomes);
            }
        }
    }
    tally.end(&["local replies"]);
}

/// Where Envoy is told that an endpoint has not looked at a request and then closes, what it makes of that depends on which of the two
/// it sees first. So it is held to less than the sidecar: never two attempts where its policy has none.
#[tokio::test]
async fn what_nobody_has_looked_at_goes_elsewhere() {
    let mut oracle = Oracle::start().await;
    let actions = [json!({ "timeout": "0s" }), retry("refused-stream")];
    let _upstream = behind(&mut oracle, &actions, &retries()).await;
    for (index, action) in actions.iter().enumerate() {
        for script in with_codes(&["unseen:N,ok"]) {
            for (method, body) in [("GET", ""), ("POST", "body")] {
                let [envoy, tulle] =
                    oracle.both_over_http2(&request(method, index, &[], body), &script).await;
                let case = format!("{action} {method} {script}\n envoy\n{envoy} tulle\n{tulle}");
                assert_eq!((tulle.received.status, tulle.upstream.len()), (200, 2), "{case}");
                match (envoy.received.status, envoy.upstream.len()) {
                    (200, 2) => assert_eq!(index, 1, "{case}"),
                    (503, 1) => {}
                    _ => panic!("{case}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn clients_of_grpc_are_told_the_same_of_timeouts_and_resets() {
    let mut oracle = Oracle::start().await;
    let each = json!({
        "retry_on": "cancelled,deadline-exceeded,internal,resource-exhausted,unavailable",
        "num_retries": 2,
        "retry_back_off": { "base_interval": "0.001s" },
    });
    let per_try = json!({ "retry_on": "5xx", "num_retries": 1, "per_try_timeout": "0.2s", "retry_back_off": { "base_interval": "0.001s" } });
    let actions = [
        json!({ "timeout": "0s" }),
        json!({ "timeout": "0s", "retry_policy": each }),
        json!({ "timeout": "0.3s" }),
        json!({ "timeout": "5s", "retry_policy": per_try }),
        json!({ "timeout": "0s", "max_stream_duration": { "grpc_timeout_header_max": "0s" } }),
    ];
    let _upstream = behind(&mut oracle, &actions, &retries()).await;
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    let hurried = [fields[0], fields[1], ("grpc-timeout", "300m")];
    let mut tally = Tally::default();
    let mut ask = async |index: usize, fields: &[(&str, &str)], script: &str| {
        let outcomes =
            oracle.both_over_http2(&request("POST", index, fields, "\0\0\0\0\x02hi"), script).await;
        tally.compare(&format!("{} {fields:?} {script}", actions[index]), outcomes);
    };
    let statuses = (0..=16).flat_map(|status| [format!("grpc:{status}"), format!("only:{status}")]);
    let others = [
        "only:14,grpc:0",
        "only:8,only:4,grpc:0",
        "grpc:14,grpc:0",
        "503",
        "404",
        "ok",
        "fin",
        "rst",
        "last",
    ];
    let scripts: Vec<String> =
        statuses.chain(with_codes(&["reset:N", "cut:N"])).chain(others.map(str::to_owned)).collect();
    for index in 0..2 {
        for script in &scripts {
            ask(index, &fields, script).await;
        }
    }
    for script in ["hang", "half", "grpc:0", "hang,grpc:0"] {
        ask(2, &fields, script).await;
        ask(3, &fields, script).await;
        ask(4, &hurried, script).await;
    }
    tally.end(&[
        "local replies",
        "gRPC deadlines",
        "time that is left",
        "codes of resets",
        "unprocessed requests",
    ]);
}

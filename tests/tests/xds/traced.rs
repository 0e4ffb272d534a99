//! Which requests are traced: what the next hop is told, as the caller, the route's listener and chance have it.

use serde_json::json;
use tulle_tests::oracle::{Oracle, Outcome, cluster, endpoints, typed};

const PARENT: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-";

#[tokio::test]
async fn the_same_requests_are_sampled() {
    let mut oracle = Oracle::start().await;
    // Where spans would go; nobody is there.
    oracle.ads.set(vec![cluster("spans", json!({})), endpoints("spans", &[])]).await;
    let told = json!({ "header": { "key": "x-told", "value": "%REQ(traceparent)%" } });
    let route = |prefix: &str, to: &str| json!({ "match": { "prefix": prefix }, "route": { "cluster": to }, "response_headers_to_add": [told] });
    let host =
        json!({ "name": "h", "domains": ["h.test"], "routes": [route("/spans", "spans"), route("/", "a")] });
    oracle.routes(&[host]).await;
    // Envoy takes no tracer whose cluster is not there yet.
    oracle.both(b"GET /spans HTTP/1.1\r\nhost: h.test\r\n\r\n", "ok").await;

    let callers = [
        String::new(),
        "x-client-trace-id: mine\r\n".into(),
        format!("{PARENT}01\r\n"),
        format!("{PARENT}00\r\n"),
        format!("{PARENT}00\r\nx-client-trace-id: mine\r\n"),
    ];
    let mut sampled = 0;
    for shares in 0..8 {
        let percent = |bit: u32| json!({ "value": if shares & bit == 0 { 0 } else { 100 } });
        let tracer =
            json!({ "grpc_service": { "envoy_grpc": { "cluster_name": "spans" } }, "service_name": "h" });
        let tracing = json!({
            "client_sampling": percent(1),
            "random_sampling": percent(2),
            "overall_sampling": percent(4),
            "provider": {
                "name": "envoy.tracers.opentelemetry",
                "typed_config": typed("envoy.config.trace.v3.OpenTelemetryConfig", tracer),
            },
        });
        oracle.manager(json!({ "tracing": tracing })).await;
        for caller in &callers {
            let request = format!("GET / HTTP/1.1\r\nhost: h.test\r\n{caller}\r\n");
            let [envoy, tulle] = oracle.both(request.as_bytes(), "ok").await.map(|outcome| flag(&outcome));
            match caller.ends_with("-01\r\n") {
                // A difference that is kept: what the caller records is recorded on, so that no trace has holes. Envoy
                // decides anew, and leaves out what it would not have begun.
                true => assert_eq!(tulle, "01", "{tracing} {request:?}"),
                false => assert_eq!(envoy, tulle, "{tracing} {request:?}"),
            }
            sampled += u32::from(tulle == "01");
        }
    }
    assert_eq!(sampled, 8 + 5, "of 40");
}

/// Whether the upstream was told that the trace is recorded.
fn flag(outcome: &Outcome) -> String {
    let told = outcome.received.headers.iter().find(|(name, _)| name == "x-told");
    told.map_or_else(
        || format!("status {}", outcome.received.status),
        |(_, told)| told[told.len() - 2..].to_owned(),
    )
}

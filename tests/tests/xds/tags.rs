//! Attributes of spans that a listener asks for.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};
use tulle_cli::demo::traces::{Span, Traces};
use tulle_tests::oracle::{Oracle, cluster, endpoints, speaking_http2, typed};
use tulle_tests::{LIMIT, wait_for};

fn tracing(tags: &Value) -> Value {
    let tracer =
        json!({ "grpc_service": { "envoy_grpc": { "cluster_name": "spans" } }, "service_name": "h" });
    json!({
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": typed("envoy.config.trace.v3.OpenTelemetryConfig", tracer),
        },
        "custom_tags": tags,
        "spawn_upstream_span": true,
    })
}

#[tokio::test]
async fn spans_have_the_same_tags() {
    let (traces, url) = Traces::collect(None).await.expect("it listens");
    let at: SocketAddr = url.trim_start_matches("http://").parse().expect("an address");
    let mut oracle = Oracle::start().await;
    let spans = speaking_http2(json!({}));
    oracle.ads.set(vec![cluster("spans", spans), endpoints("spans", &[at])]).await;
    let route = |prefix: &str, to: &str| json!({ "match": { "prefix": prefix }, "route": { "cluster": to } });
    oracle.routes(&[json!({ "name": "h", "domains": ["h.test"], "routes": [route("/spans", "spans"), route("/", "a")] })]).await;
    // Envoy takes no tracer whose cluster is not there yet.
    oracle.both(b"GET /spans HTTP/1.1\r\nhost: h.test\r\n\r\n", "ok").await;
    let tags = json!([
        { "tag": "x.literal", "literal": { "value": "here" } },
        { "tag": "x.header", "request_header": { "name": "X-A" } },
        { "tag": "x.default", "request_header": { "name": "x-none", "default_value": "none" } },
        { "tag": "x.missing", "request_header": { "name": "x-none" } },
    ]);
    oracle.manager(json!({ "tracing": tracing(&tags) })).await;
    oracle.both(b"GET / HTTP/1.1\r\nhost: h.test\r\nx-a: one\r\nx-a: two\r\n\r\n", "ok").await;
    let expected: BTreeMap<String, String> =
        [("x.literal", "here"), ("x.header", "one"), ("x.default", "none")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    let own = |span: &Span| -> BTreeMap<String, String> {
        let own = span.attributes.iter().filter(|(name, _)| name.starts_with("x."));
        own.map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    // Of each a span of the request and one of its attempt.
    let all = || async {
        let spans = traces.spans();
        let tagged = spans.iter().filter(|span| own(span) == expected).count();
        if tagged >= 4 { Ok(()) } else { Err(format!("{spans:#?}")) }
    };
    wait_for(LIMIT, all).await.unwrap_or_else(|error| panic!("{error}"));
    // A request that tries whether a connection takes another has no header.
    let mut without = expected.clone();
    without.remove("x.header");
    let known = [BTreeMap::new(), without, expected];
    let wrong: Vec<_> = traces.spans().into_iter().filter(|span| !known.contains(&own(span))).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn a_tag_that_would_tell_a_secret_is_refused_by_name() {
    let mut oracle = Oracle::start().await;
    for (tag, words) in [
        (
            json!({ "tag": "t", "request_header": { "name": "Authorization" } }),
            "authorization holds credentials",
        ),
        (json!({ "tag": "t", "request_header": { "name": "cookie" } }), "cookie holds credentials"),
        (json!({ "tag": "t", "environment": { "name": "PATH" } }), "environment"),
    ] {
        let manager = tulle_tests::oracle::manager("routes", json!({ "tracing": { "custom_tags": [tag] } }));
        let listener = tulle_tests::oracle::listener("oracle.test:80", oracle.listener(), &manager);
        let answered = oracle.offer(vec![listener]).await;
        let tulle = answered.iter().find(|answered| answered.agent.starts_with("tulle")).expect("it answers");
        let place = "custom_tags[0]";
        assert!(tulle.error.contains(place) && tulle.error.contains(words), "{}", tulle.error);
    }
}

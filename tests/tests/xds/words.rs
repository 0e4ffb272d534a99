//! Command operators in the headers that routes add: what they stand for, in requests, in answers and in replies of the proxy's own.

use serde_json::{Value, json};
use tulle_tests::oracle::{
    CALLERS, Oracle, Outcome, all_clusters, chain, cluster, endpoints, manager_of, merged,
    route_configuration,
};

use crate::compare::Tally;

/// Values that both give alike, wherever they stand.
const TEXTS: [&str; 62] = [
    "%REQ(X-A)%",
    "%REQ(x-none)%",
    "%REQ(x-none?x-a)%",
    "%REQ(x-none?X-A):3%",
    "%REQ(x-a):0%",
    "%REQ(x-two)%",
    "%REQ(:METHOD)%",
    "%REQ(:path)%",
    "%REQ(:PATH):2%",
    "%REQ(:AUTHORITY)%",
    "%REQ(host)%",
    "%REQ(:SCHEME)%",
    "%REQ(x-bytes)%",
    "%RESP(x-cluster)%",
    "%RESP(x-none?x-cluster)%",
    "%RESP(:status)%",
    "%PROTOCOL%",
    "%START_TIME(%Z %z)%",
    "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
    "%DOWNSTREAM_LOCAL_ADDRESS%",
    "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%",
    "%DOWNSTREAM_LOCAL_PORT%",
    "%DOWNSTREAM_PEER_URI_SAN%",
    "%REQUESTED_SERVER_NAME%",
    "%UPSTREAM_HOST%",
    "%UPSTREAM_REMOTE_ADDRESS%",
    "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "%UPSTREAM_CLUSTER%",
    "%UPSTREAM_CLUSTER_RAW%",
    "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "%ROUTE_NAME%",
    "%RESPONSE_CODE%",
    "%RESPONSE_FLAGS%",
    "%HOSTNAME%",
    "%BYTES_RECEIVED%",
    "%BYTES_SENT%",
    "%TRACE_ID%",
    "100%%",
    "%%REQ(x-a)%%",
    "%%%REQ(x-a)%%%",
    "[%REQ(x-none)%]",
    "%REQ(x-none)%%REQ(x-a)%",
    "%REQ(x-none)%%RESP(x-none)%",
    "a %REQ(x-a)% b %PROTOCOL%, c",
    "%RESPONSE_CODE_DETAILS%",
    "%PATH%",
    "%PATH(NQ)%",
    "%PATH(WQ:PATH)%",
    "%PATH(NQ:ORIG)%",
    "%PATH(NQ:ORIG_OR_PATH):3%",
    "%PATH(:PATH)%",
    "%QUERY_PARAM(q)%",
    "%QUERY_PARAM(q):1%",
    "%QUERY_PARAM(none)%",
    "%DOWNSTREAM_TLS_VERSION%",
    "%DOWNSTREAM_TLS_CIPHER%",
    "%DOWNSTREAM_PEER_SUBJECT%",
    "%DOWNSTREAM_LOCAL_URI_SAN%",
    "%DOWNSTREAM_PEER_CERT_V_START%",
    "%DOWNSTREAM_PEER_FINGERPRINT_256%",
    "%DOWNSTREAM_PEER_DNS_SAN%",
];

#[tokio::test]
async fn operators_stand_for_the_same() {
    let mut oracle = Oracle::start().await;
    let added = |name: &str| -> Vec<Value> {
        let one = |(at, text): (usize, &&str)| json!({ "header": { "key": format!("x-{name}-{at}"), "value": text } });
        TEXTS.iter().enumerate().map(one).collect()
    };
    let route = |name: &str, action: Value| {
        merged(
            json!({ "name": name, "match": { "path": format!("/{name}") }, "response_headers_to_add": added("p") }),
            action,
        )
    };
    let forward = |more: Value| {
        let retry = json!({ "retry_on": "5xx", "num_retries": 1 });
        let action = merged(json!({ "cluster": "a", "retry_policy": retry }), more);
        json!({ "route": action, "request_headers_to_add": added("q") })
    };
    let mut unnamed = route("unnamed", forward(json!({})));
    unnamed.as_object_mut().expect("it is one").remove("name");
    let routes = [
        route("plain", forward(json!({}))),
        route(
            "written",
            forward(json!({ "prefix_rewrite": "/other", "host_rewrite_literal": "other.test" })),
        ),
        unnamed,
        route("said", json!({ "direct_response": { "status": 403, "body": { "inline_string": "no" } } })),
        route("sent", json!({ "redirect": { "path_redirect": "/elsewhere" } })),
        route("gone", json!({ "route": { "cluster": "nobody" } })),
    ];
    oracle.routes(&[json!({ "name": "h", "domains": ["h.test"], "routes": routes })]).await;
    let mut tally = Tally::default();
    for path in ["plain", "written", "unnamed", "said", "sent", "gone", "none"] {
        for (fields, script) in [
            ("x-a: aaaaa\r\nx-two: 1\r\nx-two: 2\r\nx-bytes: \u{fc}\r\n", "ok"),
            ("x-a: b\r\n", "503,ok"),
            ("", "503,404"),
        ] {
            let request = format!("GET /{path}?q=v HTTP/1.1\r\nhost: h.test\r\n{fields}\r\n");
            let outcomes = oracle.both(request.as_bytes(), script).await;
            tally.compare(&format!("{request:?} {script}"), outcomes);
        }
    }
    tally.end(&["local replies"]);
}

#[tokio::test]
async fn values_are_those_at_the_beginning_of_their_level() {
    let mut oracle = Oracle::start().await;
    let add = |name: &str, value: &str, action: &str| json!({ "header": { "key": name, "value": value }, "append_action": action });
    let (append, absent) = ("APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT");
    let (set, present) = ("OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS");
    let empty = |name: &str, action: &str| json!({ "header": { "key": name, "value": "%REQ(x-none)%" }, "append_action": action, "keep_empty_value": true });
    let lists = [
        vec![add("x-1", "v", append), add("x-2", "%REQ(x-1)%", append)],
        vec![add("x-a", "new", set), add("x-2", "%REQ(x-a)%", append)],
        vec![add("x-1", "a", append), add("x-1", "b", set), add("x-1", "c", append)],
        vec![add("x-1", "a", absent), add("x-1", "b", absent), add("x-1", "c", present)],
        vec![add("x-a", "a", absent), add("x-a", "%REQ(x-a)%%REQ(x-a)%", present)],
        vec![add("x-a", "%REQ(x-none)%", set), add("x-b", "%REQ(x-none)%", append)],
        vec![empty("x-a", set), empty("x-b", append), empty("x-b", append)],
        vec![add("x-gone", "%REQ(x-gone)%", append), add("x-3", "%REQ(x-gone)%", append)],
    ];
    let mut routes = Vec::new();
    for (at, list) in lists.iter().enumerate() {
        routes.push(json!({
            "match": { "path": format!("/{at}") },
            "request_headers_to_add": list,
            "request_headers_to_remove": ["x-gone"],
            "route": { "cluster": "a" },
        }));
    }
    let backend = json!({ "name": "a", "weight": 1, "request_headers_to_add": [add("x-1", "backend %REQ(x-3)%", append)],
        "response_headers_to_add": [add("x-1", "backend %RESP(x-3)%", append)], "response_headers_to_remove": ["x-cluster"] });
    routes.push(json!({
        "match": { "path": "/levels" },
        "request_headers_to_add": [add("x-2", "route %REQ(x-1)%", append)],
        "response_headers_to_add": [add("x-2", "route %RESP(x-1)% %REQ(x-2)%", append)],
        "route": { "weighted_clusters": { "clusters": [backend] } },
    }));
    let host = json!({
        "name": "h", "domains": ["h.test"], "routes": routes,
        "request_headers_to_add": [add("x-3", "host %REQ(x-2)%", append)], "request_headers_to_remove": ["x-b"],
        "response_headers_to_add": [add("x-3", "host %RESP(x-2)%", append)],
    });
    let mut tally = Tally::default();
    for specific_last in [false, true] {
        let mut routes = route_configuration("routes", &[host.clone(), all_clusters()]);
        routes["most_specific_header_mutations_wins"] = json!(specific_last);
        routes["request_headers_to_add"] = json!([add("x-4", "all %REQ(x-3)%", append)]);
        routes["response_headers_to_add"] = json!([add("x-4", "all %RESP(x-3)%", append)]);
        oracle.push(vec![routes]).await;
        for path in ["0", "1", "2", "3", "4", "5", "6", "7", "levels"] {
            let request = format!("GET /{path} HTTP/1.1\r\nhost: h.test\r\nx-a: old\r\nx-gone: x\r\n\r\n");
            let outcomes = oracle.both(request.as_bytes(), "ok").await;
            tally.compare(&format!("{specific_last} {path}"), outcomes);
        }
    }
    tally.end(&[]);
}

#[tokio::test]
async fn attempts_are_told() {
    let mut oracle = Oracle::start().await;
    let action = json!({ "cluster": "a", "retry_policy": { "retry_on": "5xx", "num_retries": 2 } });
    let routes = json!([
        { "match": { "path": "/said" }, "direct_response": { "status": 403 } },
        { "match": { "path": "/gone" }, "route": { "cluster": "nobody" } },
        { "match": { "prefix": "/" }, "route": action },
    ]);
    let host = |name: &str, endpoint: bool, client: bool| {
        json!({
            "name": name, "domains": [name], "routes": routes,
            "include_request_attempt_count": endpoint, "include_attempt_count_in_response": client,
        })
    };
    let hosts =
        [host("both.test", true, true), host("endpoint.test", true, false), host("client.test", false, true)];
    oracle.routes(&hosts).await;
    for name in ["both.test", "endpoint.test", "client.test"] {
        for (path, script) in [("/", "ok"), ("/", "503,500,ok"), ("/", "503"), ("/said", ""), ("/gone", "")] {
            let request = format!("POST {path} HTTP/1.1\r\nhost: {name}\r\ncontent-length: 0\r\n\r\n");
            let [envoy, tulle] = oracle.both(request.as_bytes(), script).await;
            let counts = |outcome: &Outcome| -> (Vec<String>, Option<String>) {
                let of =
                    |(_, seen): &(String, tulle_tests::Seen)| seen.header("x-envoy-attempt-count").to_owned();
                let mut told = outcome.received.headers.iter();
                let told = told.find(|(name, _)| name == "x-envoy-attempt-count");
                (outcome.upstream.iter().map(of).collect(), told.map(|(_, count)| count.clone()))
            };
            let (mut theirs, ours) = (counts(&envoy), counts(&tulle));
            if name == "client.test" {
                // A request that is a retry says so also where nobody asks it to: retries share one budget along a chain of hops.
                assert!(theirs.0.iter().all(String::is_empty));
                let counted =
                    (1..).map(|count: usize| if count > 1 { count.to_string() } else { String::new() });
                theirs.0 = counted.take(theirs.0.len()).collect();
            }
            assert_eq!(theirs, ours, "{name} {path} {script}");
        }
    }
}

#[tokio::test]
async fn times_and_ports_have_the_same_form() {
    let mut oracle = Oracle::start().await;
    let texts = [
        "%START_TIME%",
        "%START_TIME()%",
        "%START_TIME(%s.%3f)%",
        "%START_TIME(%Y/%m/%d %H:%M:%S %f %6f %E3S)%",
        "%START_TIME(%a %A %b %B %e %y %j %I %p %F %T %R %D %%)%",
        "%DOWNSTREAM_REMOTE_ADDRESS%",
        "%DOWNSTREAM_REMOTE_PORT%",
        "%DOWNSTREAM_DIRECT_REMOTE_PORT%",
        "%DURATION%",
    ];
    let added: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(at, text)| json!({ "header": { "key": format!("x-t-{at}"), "value": text } }))
        .collect();
    let route =
        json!({ "match": { "prefix": "/" }, "route": { "cluster": "a" }, "request_headers_to_add": added });
    oracle.routes(&[json!({ "name": "h", "domains": ["h.test"], "routes": [route] })]).await;
    let outcomes = oracle.both(b"GET / HTTP/1.1\r\nhost: h.test\r\n\r\n", "ok").await;
    // Digits differ; how many there are does not, but for ports and milliseconds.
    let form = |outcome: &Outcome| -> Vec<String> {
        let seen = &outcome.upstream[0].1;
        let value = |at: usize| seen.header(&format!("x-t-{at}")).to_owned();
        let letters = |text: String| text.replace(|c: char| c.is_ascii_digit(), "0");
        (0..texts.len())
            .map(|at| match at {
                0..4 => letters(value(at)),
                4 => value(at).replace(|c: char| c.is_ascii_digit(), ""),
                _ => letters(value(at)).replace("00", "0").replace("00", "0").replace("00", "0"),
            })
            .collect()
    };
    let [envoy, tulle] = outcomes.each_ref().map(form);
    assert_eq!(envoy, tulle);
}

#[tokio::test]
async fn what_envoy_refuses_is_refused() {
    let mut oracle = Oracle::start().await;
    for (text, field) in [
        ("%NO_SUCH%", "NO_SUCH"),
        ("%REQ%", "REQ"),
        ("%REQ(a?b?c)%", "REQ"),
        ("%PROTOCOL(x)%", "PROTOCOL"),
        ("%HOSTNAME:3%", "HOSTNAME"),
        ("50% off", "at byte 2"),
        ("%REQ(x", "at byte 0"),
    ] {
        let add = json!({ "header": { "key": "x", "value": text } });
        let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": "a" }, "request_headers_to_add": [add] });
        let host = json!({ "name": "h", "domains": ["h.test"], "routes": [route] });
        for answered in oracle.offer(vec![route_configuration("routes", &[host, all_clusters()])]).await {
            assert!(!answered.error.is_empty(), "{text}: {} takes it", answered.agent);
            if !answered.agent.starts_with("envoy") {
                let place = "virtual_hosts[0].routes[0].request_headers_to_add[0].header.value";
                assert!(
                    answered.error.contains(place) && answered.error.contains(field),
                    "{}",
                    answered.error
                );
            }
        }
    }
}

#[tokio::test]
async fn what_is_told_of_tls_is_the_same() {
    let mut oracle = Oracle::start().await;
    let texts = [
        "%DOWNSTREAM_TLS_VERSION%",
        "%DOWNSTREAM_PEER_SUBJECT%",
        "%DOWNSTREAM_PEER_ISSUER%",
        "%DOWNSTREAM_PEER_SERIAL%",
        "%DOWNSTREAM_PEER_FINGERPRINT_256%",
        "%DOWNSTREAM_PEER_URI_SAN%",
        "%DOWNSTREAM_PEER_DNS_SAN%",
        "%DOWNSTREAM_PEER_CERT%",
        "%DOWNSTREAM_PEER_CERT_V_START%",
        "%DOWNSTREAM_PEER_CERT_V_END(%F %T)%",
        "%DOWNSTREAM_LOCAL_URI_SAN%",
        "%REQUESTED_SERVER_NAME%",
    ];
    let add =
        |(at, text): (usize, &&str)| json!({ "header": { "key": format!("x-t-{at:02}"), "value": text } });
    let added: Vec<Value> = texts.iter().enumerate().map(add).collect();
    let route =
        json!({ "match": { "prefix": "/" }, "route": { "cluster": "a" }, "request_headers_to_add": added });
    let host = json!({ "name": "all", "domains": ["*"], "routes": [route] });
    let manager = manager_of(&[host], json!({}));
    oracle.peers(&[chain("all", json!({}), Some(false), &manager)]).await;
    for caller in [None, Some(CALLERS[0]), Some(CALLERS[2])] {
        let outcomes =
            oracle.both_as(caller, "a.test", b"GET / HTTP/1.1\r\nhost: h.test\r\n\r\n", "ok").await;
        let [theirs, ours] = outcomes.each_ref().map(|outcome| {
            let told = outcome.upstream[0].1.headers.iter().filter(|(name, _)| name.starts_with("x-t-"));
            told.cloned().collect::<Vec<_>>()
        });
        assert_eq!(theirs, ours, "{caller:?}");
        assert_eq!(ours.len() > 5, caller.is_some(), "{ours:?}");
    }
}

#[tokio::test]
async fn a_cluster_is_told_by_the_name_that_it_has_for_people() {
    let mut oracle = Oracle::start().await;
    let other = cluster("other", json!({ "alt_stat_name": "for people" }));
    let address = oracle.upstreams[0].address;
    oracle.ads.set(vec![other, endpoints("other", &[address])]).await;
    let add = |name: &str, text: &str| json!({ "header": { "key": name, "value": text } });
    let route = json!({
        "match": { "prefix": "/" },
        "route": { "cluster": "other" },
        "response_headers_to_add": [add("x-1", "%UPSTREAM_CLUSTER%"), add("x-2", "%UPSTREAM_CLUSTER_RAW%")],
    });
    oracle.routes_to(&json!({ "name": "h", "domains": ["h.test"], "routes": [route] })).await;
    let outcomes = oracle.both(b"GET / HTTP/1.1\r\nhost: h.test\r\n\r\n", "ok").await;
    for outcome in outcomes {
        for (name, value) in [("x-1", "for people"), ("x-2", "other")] {
            let told = (name.to_owned(), value.to_owned());
            assert!(outcome.received.headers.contains(&told), "{outcome}");
        }
    }
}

#[tokio::test]
async fn a_stream_is_called_as_its_request_is() {
    let mut oracle = Oracle::start().await;
    let told = json!({ "header": { "key": "x-told", "value": "%STREAM_ID%" } });
    let route =
        json!({ "match": { "prefix": "/" }, "route": { "cluster": "a" }, "request_headers_to_add": [told] });
    oracle.routes(&[json!({ "name": "h", "domains": ["h.test"], "routes": [route] })]).await;
    let request = b"GET / HTTP/1.1\r\nhost: h.test\r\nx-request-id: mine\r\n\r\n";
    let outcomes = oracle.both(request, "ok").await;
    assert_eq!(outcomes.each_ref().map(|outcome| outcome.upstream[0].1.header("x-told")), ["mine"; 2]);
}

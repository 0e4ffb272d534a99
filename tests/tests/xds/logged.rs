//! Access logs: of which requests there is a line, and what stands in it.

use serde_json::{Value, json};
use tulle_tests::oracle::{Oracle, typed};
use tulle_tests::{LIMIT, wait_for};

/// A log of lines that begin with `mark` and the request's path, of the requests that a filter lets through.
fn log(mark: &str, text: &str, filter: Option<&Value>) -> Value {
    let line = format!("{mark} %REQ(:PATH)% {text}\n");
    let format = json!({ "log_format": { "text_format_source": { "inline_string": line } } });
    let config = typed("envoy.extensions.access_loggers.stream.v3.StdoutAccessLog", format);
    let mut log = json!({ "name": "log", "typed_config": config });
    if let Some(filter) = filter {
        log["filter"] = filter.clone();
    }
    json!([log])
}

/// The lines of both that begin with `mark`, once both have one for the path `/last`, without that one.
async fn lines(oracle: &Oracle, mark: &str) -> [Vec<String>; 2] {
    let whole = || async {
        let lines = oracle.written().map(|text| {
            let lines = text.lines().filter(|line| line.split(' ').next() == Some(mark));
            lines.map(str::to_owned).collect::<Vec<_>>()
        });
        let last = format!("{mark} /last");
        match lines.iter().all(|lines| lines.iter().any(|line| line.starts_with(&last))) {
            true => Ok(lines.map(|mut lines| {
                // Nor those by which it is tried whether a connection takes another request.
                let again = format!("{mark} / ");
                lines.retain(|line| !line.starts_with(&last) && !line.starts_with(&again));
                lines.sort();
                lines
            })),
            false => Err(format!("{lines:?}")),
        }
    };
    wait_for(LIMIT, whole).await.unwrap_or_else(|error| panic!("{mark}: {error}"))
}

fn host() -> Value {
    json!({ "name": "h", "domains": ["h.test"], "routes": [
        { "match": { "path": "/said" }, "direct_response": { "status": 418 } },
        { "match": { "path": "/gone" }, "route": { "cluster": "nobody" } },
        { "match": { "path": "/none" }, "route": { "cluster": "empty" } },
        { "match": { "prefix": "/app" }, "route": { "cluster": "a" } },
        { "match": { "path": "/last" }, "route": { "cluster": "a" } },
    ] })
}

const REQUESTS: [(&str, &str, &str); 8] = [
    ("/app1", "x-a: 1\r\n", "ok"),
    ("/app2", "x-a: 2\r\n", "404"),
    ("/app3", "", "503"),
    ("/app4", "content-type: application/grpc\r\n", "200+grpc-status+5"),
    ("/app5", "", "fin"),
    ("/said", "", ""),
    ("/gone", "", ""),
    ("/nowhere", "", ""),
];

#[tokio::test]
async fn lines_are_of_the_same_requests() {
    let mut oracle = Oracle::start().await;
    oracle.routes(&[host()]).await;
    let compare = |op: &str, value: u32| json!({ "comparison": { "op": op, "value": { "default_value": value, "runtime_key": "r" } } });
    let status = |op: &str, value: u32| json!({ "status_code_filter": compare(op, value) });
    let header = |matcher: Value| json!({ "header_filter": { "header": matcher } });
    let share = |percent: u32| json!({ "runtime_filter": { "runtime_key": "r", "percent_sampled": { "numerator": percent } } });
    let flags = |flags: &[&str]| json!({ "response_flag_filter": { "flags": flags } });
    let last = header(json!({ "name": ":path", "string_match": { "exact": "/last" } }));
    let filters = [
        status("GE", 500),
        status("EQ", 404),
        status("LE", 404),
        json!({ "duration_filter": compare("GE", 60_000) }),
        json!({ "duration_filter": compare("GE", 0) }),
        json!({ "not_health_check_filter": {} }),
        json!({ "traceable_filter": {} }),
        share(0),
        share(100),
        header(json!({ "name": "x-a", "present_match": true })),
        header(json!({ "name": "x-a", "string_match": { "exact": "2" }, "invert_match": true })),
        flags(&[]),
        flags(&["NR"]),
        flags(&["UC", "NC"]),
        json!({ "grpc_status_filter": { "statuses": ["NOT_FOUND"] } }),
        json!({ "grpc_status_filter": { "statuses": ["UNKNOWN", "UNIMPLEMENTED"], "exclude": true } }),
        json!({ "and_filter": { "filters": [status("GE", 400), status("LE", 450)] } }),
        json!({ "or_filter": { "filters": [status("GE", 500), header(json!({ "name": "x-a", "present_match": true }))] } }),
    ];
    let mut counts = Vec::new();
    for (at, filter) in filters.iter().enumerate() {
        let mark = format!("filter{at}");
        // Both have written all before that one.
        let any = json!({ "or_filter": { "filters": [filter, last] } });
        oracle.manager(json!({ "access_log": log(&mark, "%RESPONSE_CODE%", Some(&any)) })).await;
        for (path, fields, script) in REQUESTS.iter().chain([&("/last", "", "ok")]) {
            let request =
                format!("POST {path} HTTP/1.1\r\nhost: h.test\r\ncontent-length: 0\r\n{fields}\r\n");
            oracle.both(request.as_bytes(), script).await;
        }
        let [theirs, ours] = lines(&oracle, &mark).await;
        assert_eq!(theirs, ours, "{filter}");
        counts.push(ours.len());
    }
    assert!(counts.contains(&0) && counts.contains(&REQUESTS.len()), "{counts:?}");
    assert!(counts.iter().filter(|count| (1..REQUESTS.len()).contains(count)).count() > 8, "{counts:?}");
}

#[tokio::test]
async fn lines_say_the_same() {
    let mut oracle = Oracle::start().await;
    oracle.routes(&[host()]).await;
    let texts = [
        "%REQ(:METHOD)% %REQ(X-A)% %REQ(X-NONE?X-A):1% %RESPONSE_CODE% %RESPONSE_FLAGS% %PROTOCOL%",
        "%BYTES_RECEIVED% %BYTES_SENT% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%",
        "%PATH(NQ)% %PATH(WQ:PATH)% %QUERY_PARAM(q)% %QUERY_PARAM(none)% %STREAM_ID% %REQ(X-REQUEST-ID)%",
        "%DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_PEER_SUBJECT% %REQUESTED_SERVER_NAME% %UPSTREAM_CLUSTER%",
    ];
    for (at, text) in texts.iter().enumerate() {
        let mark = format!("text{at}");
        oracle.manager(json!({ "access_log": log(&mark, text, None) })).await;
        for (path, fields, script) in REQUESTS.iter().chain([&("/last", "", "ok")]) {
            // What is not sent tells no length, as what the sidecar answers itself has a text of its own.
            let request = format!(
                "HEAD {path}?q=v&p HTTP/1.1\r\nhost: h.test\r\nx-request-id: mine\r\nx-forwarded-for: 7.7.7.7\r\n{fields}\r\n"
            );
            let script = if script.contains("grpc") { "ok" } else { script };
            oracle.both(request.as_bytes(), script).await;
        }
        let [theirs, ours] = lines(&oracle, &mark).await;
        assert_eq!(theirs, ours, "{text}");
        assert_eq!(ours.len(), REQUESTS.len());
    }
}

//! Paths that can be written in several ways: what policies, routes and the upstream see of them.

use serde_json::{Value, json};
use tulle_tests::oracle::Oracle;

use crate::compare::Tally;
use crate::generate;

/// What paths are put together from.
const PARTS: [&str; 34] = [
    "/", "/", "/", "/", "/a", "/b", "a", ".", ".", "..", "%2e", "%2E%2e", "%2f", "%2F", "%5c", "\\", "%41",
    "%7e", "%7E", "%20", "%zz", "%", "%2", "%c3%a9", "~", ";x=1", ":", "@", "|", "^", "{", "'", "[",
    "?q=/../",
];

#[tokio::test]
async fn paths_become_the_same() {
    let mut oracle = Oracle::start().await;
    let host = json!({ "name": "h", "domains": ["h.test"], "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "a" } }] });
    oracle.routes(&[host]).await;
    let (seed, cases) = generate::seed(80);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut tally = Tally::default();
    for how in settings() {
        oracle.manager(how.clone()).await;
        for _ in 0..cases {
            let request = get(&path(&mut random));
            let outcomes = oracle.both(request.as_bytes(), "ok").await;
            tally.compare(&format!("seed {seed}: {how} {request:?}"), outcomes);
        }
    }
    tally.end(&[]);

    oracle.manager(json!({ "normalize_path": true })).await;
    for (path, theirs, ours) in PARAMETERS {
        let [envoy, tulle] = oracle.both(get(path).as_bytes(), "ok").await;
        let seen = [envoy, tulle].map(|outcome| outcome.upstream[0].1.line.clone());
        assert_eq!(seen, [theirs, ours].map(|path| format!("GET {path} HTTP/1.1")), "{path}");
    }
}

/// What is meant to be otherwise than with Envoy: some servers take parameters off segments, and `..;x` for `..`. Envoy
/// takes it for that too, but not where the dots are escaped or follow a backslash, though it leaves neither as it is.
const PARAMETERS: [(&str, &str, &str); 3] = [
    ("/a/b/%2e%2e;x=1/c", "/a/b/..;x=1/c", "/a/c"),
    ("/a/%2e;x=1/c", "/a/.;x=1/c", "/a/c"),
    ("/a/b\\..;x=1/c", "/a/b/..;x=1/c", "/a/c"),
];

fn path(random: &mut fastrand::Rng) -> String {
    loop {
        let parts = random.usize(1..8);
        let path: String = (0..parts).map(|_| *random.choice(&PARTS).expect("there are some")).collect();
        let lower = path.to_ascii_lowercase();
        let has = |texts: &[&str]| texts.iter().any(|text| lower.contains(text));
        if !(has(&[".;", "%2e;"]) && has(&["%2e", "%5c", "\\"])) {
            return format!("/{path}");
        }
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: h.test\r\n\r\n")
}

/// What a listener may say of paths.
fn settings() -> impl Iterator<Item = Value> {
    let actions = ["KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD"];
    (0..16).map(move |number: usize| {
        json!({
            "normalize_path": number & 1 > 0,
            "merge_slashes": number & 2 > 0,
            "path_with_escaped_slashes_action": actions[number >> 2],
        })
    })
}

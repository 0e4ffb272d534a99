//! The table of metrics that users read is what sidecars say themselves.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tulle_tests::hosts::{Member, Meshed, redirect_with};
use tulle_tests::{LIMIT, fetch, wait_for};

use crate::captured::{connect, greeter, line};
use crate::{ECHO_URL, Pair, get};

/// What stands before the table.
const INTRODUCTION: &str = "\
# Metrics of a sidecar

`GET /metrics` on port 15020 answers in the text format of Prometheus. Names that begin with `http_` follow OpenTelemetry's semantic
conventions; `tulle_` begins those of the mesh itself. Histograms are in seconds, and come as `_bucket`, `_sum` and `_count`. A
series appears with its first event. Labels name both ends: `source_workload`, `source_principal`, `destination_service`,
`destination_workload`, `destination_principal`; principals are SPIFFE IDs that were proven over mTLS. A `reason` or an `outcome`
is one of a short list.

";

/// What a sidecar says of its metrics: by name, the type and the meaning.
async fn told(meshed: &Meshed) -> BTreeMap<String, (String, String)> {
    let (_, text) = fetch(&format!("http://{}/metrics", meshed.health)).await.expect("it answers");
    let mut told: BTreeMap<String, (String, String)> = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# ")) {
        match *line.splitn(3, ' ').collect::<Vec<_>>() {
            ["HELP", name, help] => told.entry(name.to_owned()).or_default().1 = help.to_owned(),
            ["TYPE", name, kind] => told.entry(name.to_owned()).or_default().0 = kind.to_owned(),
            _ => {}
        }
    }
    told
}

#[tokio::test]
async fn the_table_of_metrics_is_what_sidecars_say() {
    let pair = Pair::start().await;
    // One that has everything that can be had.
    let host = pair.mesh.host("all");
    redirect_with(&host, &["--dns-port", "15053"]).await;
    let member = Member::of("all")
        .config("dns", json!({ "listen": "127.0.0.1:15053" }))
        .config("otlp", json!({ "endpoint": "http://127.0.0.1:4317" }));
    let all = pair.mesh.sidecar_on(&host, member).await;
    all.ready().await;
    let _greeter = greeter(&pair.server.host, 2525).await;
    wait_for(LIMIT, || get(&host, ECHO_URL)).await.unwrap_or_else(|error| panic!("{error}"));
    let mut stream = connect(&host, pair.server.host.v4, 2525).await;
    assert_eq!(line(&mut stream).await, "220 ready");
    stream.shutdown().await.expect("open");
    drop(stream);

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sidecar/METRICS.md");
    let complete = || async {
        let mut told = told(&all).await;
        told.extend(self::told(&pair.server).await);
        let row = |(name, (kind, help)): (&String, &(String, String))| {
            let suffix = if kind == "counter" { "_total" } else { "" };
            format!("| `{name}{suffix}` | {kind} | {help} |\n")
        };
        let rows: String = told.iter().map(row).collect();
        let page = format!("{INTRODUCTION}| metric | type | what |\n| --- | --- | --- |\n{rows}");
        // Both kinds of traffic have been counted by both ends.
        let counted = ["http_client_request", "http_server_request", "tulle_tcp_connections"]
            .iter()
            .all(|prefix| told.keys().any(|name| name.starts_with(prefix)));
        if counted { Ok(page) } else { Err(page) }
    };
    let page = wait_for(LIMIT, complete).await.unwrap_or_else(|error| panic!("{error}"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &page).expect("it can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "{} is old: run this test with UPDATE=1\n{page}", path.display());
}

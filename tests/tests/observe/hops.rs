//! The bookshop's traces: every hop, as `tulle demo --jaeger` shows them.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;
use tulle_cli::demo::TRACED;
use tulle_tests::{LIMIT, binary, fetch, wait_for};

use crate::jaeger::{PROGRAM, traces, whole};

#[tokio::test]
#[ignore = "needs Jaeger: tests/observe"]
async fn the_demos_link_leads_to_traces_with_every_hop() {
    let mut demo = Command::new(binary("tulle"));
    demo.args(["demo", "--rate", "50", &format!("--jaeger={PROGRAM}")]);
    demo.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut demo = demo.spawn().expect("it is built");
    let mut lines = BufReader::new(demo.stdout.take().expect("it is piped")).lines();
    let link = async {
        while let Some(line) = lines.next_line().await.expect("it can be read") {
            if let Some((_, link)) = line.split_once("in Jaeger: ") {
                return link.to_owned();
            }
        }
        panic!("the demo ended before it gave a link");
    };
    let link = timeout(LIMIT * 3, link).await.expect("it starts in time");
    let (status, _) = fetch(&link).await.expect("somebody answers");
    assert_eq!(status, 200, "{link}");
    let query = link.split_once("/search").expect("the page of a search").0;

    // Those that are there when enough are; what is under way has time to end.
    let enough = || async {
        let found = traces(query, "customers").await;
        let retried = found.values().any(|trace| {
            trace.all("cart", "attempt").iter().any(|hop| hop.tag("http.request.resend_count") == "1")
        });
        if found.len() >= 40 && retried { Ok(found) } else { Err(format!("{} traces", found.len())) }
    };
    let found = wait_for(LIMIT * 2, enough).await.unwrap_or_else(|error| panic!("{error}"));
    for id in found.keys() {
        let trace = whole(query, id, 12).await;
        let mut services: Vec<_> = trace.spans.iter().map(|hop| hop.service.as_str()).collect();
        services.sort_unstable();
        services.dedup();
        let mut expected = TRACED.to_vec();
        expected.sort_unstable();
        assert_eq!(services, expected, "{trace:#?}");
        // Customers to web, web to cart and to recommend, cart to stock.
        for (client, server) in
            [("customers", "web"), ("cart", "stock"), ("web", "cart"), ("web", "recommend")]
        {
            let attempt = trace.all(client, "attempt").into_iter().find(|attempt| {
                attempt.tag("tulle.peer.principal").ends_with(&format!("/ns/shop/sa/{server}"))
            });
            let attempt = attempt.unwrap_or_else(|| panic!("{client} does not ask {server}: {trace:#?}"));
            let below = trace.below(attempt).next().expect("the peer's span");
            assert_eq!(
                below.tag("tulle.peer.principal"),
                format!("spiffe://bookshop.example/ns/shop/sa/{client}"),
                "{trace:#?}"
            );
            assert_eq!(below.tag("service.namespace"), "shop");
        }
        let request = trace.one("cart", "client");
        assert_eq!(request.tag("http.route"), "shop/stock#0:split", "{trace:#?}");
        // What a retry has mended is no failure.
        let attempts = trace.all("cart", "attempt");
        let last = attempts.last().expect("at least one");
        assert_eq!(
            request.tag("http.response.status_code"),
            last.tag("http.response.status_code"),
            "{trace:#?}"
        );
        assert_eq!(request.failed(), last.failed(), "{trace:#?}");
        // Each failure of stock is one at both ends, and is tried again.
        for attempt in attempts {
            let server = trace.below(attempt).next().expect("stock's span");
            let fails = attempt.tag("http.response.status_code") == "503";
            assert_eq!((attempt.failed(), server.failed()), (fails, fails), "{trace:#?}");
            assert_eq!(attempt.tag("error.type"), if fails { "503" } else { "" });
        }
        let call = trace.one("recommend", "server");
        assert_eq!((call.tag("rpc.grpc.status_code"), call.failed()), ("0", false), "{call:?}");
    }

    let id = demo.id().expect("it runs").to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().await.expect("kill").success());
    while let Ok(Ok(Some(_))) = timeout(LIMIT, lines.next_line()).await {}
    let status = timeout(LIMIT, demo.wait()).await.expect("it ends").expect("it can be waited for");
    assert!(status.success(), "{status}");
    assert!(fetch(query).await.is_err(), "Jaeger ends with the demo");
}

#[tokio::test]
async fn without_jaeger_the_demo_says_how_to_get_it() {
    let mut demo = Command::new(binary("tulle"));
    demo.args(["demo", "--jaeger=/no/such/jaeger"]);
    let output = tulle_tests::output_of(demo).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("download Jaeger 2"), "{said}");
}

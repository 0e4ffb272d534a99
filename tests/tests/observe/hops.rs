//! The bookshop's traces: every hop, as `tulle demo --jaeger` shows them.

use tokio::process::Command;
use tokio::time::timeout;
use tulle_cli::demo::TRACED;
use tulle_tests::{Demo, LIMIT, binary, fetch, wait_for};

use crate::jaeger::{PROGRAM, Trace, traces, whole};

#[tokio::test]
#[ignore = "needs Jaeger: tests/observe"]
async fn the_demos_link_leads_to_traces_with_every_hop() {
    let mut demo = Command::new(binary("tulle"));
    demo.args(["demo", "--rate", "20", &format!("--jaeger={PROGRAM}")]);
    let mut demo = Demo::start(demo);
    let link = async {
        while let Some(line) = demo.lines.next_line().await.expect("it can be read") {
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
        if found.len() >= 25 { Ok(found) } else { Err(format!("{} traces", found.len())) }
    };
    let found = wait_for(LIMIT * 2, enough).await.unwrap_or_else(|error| panic!("{error}"));
    let mut served = 0;
    for id in found.keys() {
        let trace = whole(query, id, 2).await;
        // Where the machine has no time for it, hops are refused and timed out: then they say so, and the rest is missing.
        if trace.one("customers", "client").tag("http.response.status_code") == "200" {
            every_hop(&trace);
            served += 1;
        }
        // Each failure of stock is one at both ends, and only the last is the request's.
        let attempts = trace.all("cart", "attempt");
        for attempt in &attempts {
            let status = attempt.tag("http.response.status_code");
            assert_eq!(attempt.failed(), status != "200", "{trace:#?}");
            if let Some(server) = trace.below(attempt).next().filter(|_| !status.is_empty()) {
                assert_eq!(server.failed(), status != "200", "{trace:#?}");
                assert_eq!(server.tag("http.response.status_code"), status, "{trace:#?}");
            }
        }
        if let Some(last) = attempts.last() {
            assert_eq!(trace.one("cart", "client").failed(), last.failed(), "{trace:#?}");
        }
    }
    assert!(served > 0, "of {} requests none was served", found.len());

    let status = demo.interrupt().await;
    assert!(status.success(), "{status}");
    assert!(fetch(query).await.is_err(), "Jaeger ends with the demo");
}

/// Customers ask web, web asks cart and recommend, cart asks stock, and each knows who is at the other end.
fn every_hop(trace: &Trace) {
    let mut services: Vec<_> = trace.spans.iter().map(|hop| hop.service.as_str()).collect();
    services.sort_unstable();
    services.dedup();
    let mut expected = TRACED.to_vec();
    expected.sort_unstable();
    assert_eq!(services, expected, "{trace:#?}");
    for (client, server) in [("customers", "web"), ("cart", "stock"), ("web", "cart"), ("web", "recommend")] {
        let identity = |account: &str| format!("spiffe://bookshop.example/ns/shop/sa/{account}");
        let attempts = trace.all(client, "attempt");
        // The last of several: what went before may have been given up.
        let attempt = attempts.iter().rev().find(|hop| hop.tag("tulle.peer.principal") == identity(server));
        let attempt = attempt.unwrap_or_else(|| panic!("{client} does not ask {server}: {trace:#?}"));
        let below = trace.below(attempt).next().expect("the peer's span");
        assert_eq!(below.tag("tulle.peer.principal"), identity(client), "{trace:#?}");
        assert_eq!(below.tag("service.namespace"), "shop");
    }
    assert_eq!(trace.one("cart", "client").tag("http.route"), "shop/stock#0:split", "{trace:#?}");
    let call = trace.all("recommend", "server").pop().expect("found above");
    assert_eq!((call.tag("rpc.grpc.status_code"), call.failed()), ("0", false), "{trace:#?}");
}

#[tokio::test]
async fn without_jaeger_the_demo_says_how_to_get_it() {
    let mut demo = Command::new(binary("tulle"));
    demo.args(["demo", "--jaeger=/no/such/jaeger"]);
    let output = tulle_tests::output_of(demo).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("download Jaeger 2"), "{said}");
}

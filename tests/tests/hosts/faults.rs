//! Links and processes that fail.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;
use tulle_tests::hosts::{APP_UID, Member};
use tulle_tests::{LIMIT, output_of, wait_for};

use crate::{ECHO_URL, Pair, get, refused, replica};

/// Which replicas answer in 20 requests, all of which must succeed.
async fn answering(pair: &Pair) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for _ in 0..20 {
        let answer = get(&pair.client.host, ECHO_URL).await.unwrap_or_else(|error| panic!("{error}"));
        names.insert(answer.split(' ').next().unwrap_or_default().to_owned());
    }
    names
}

/// Waits until just these replicas answer; no request may fail meanwhile.
async fn until_answering(pair: &Pair, expected: &[&str]) {
    let check = || async {
        let names = answering(pair).await;
        if names.iter().eq(expected) { Ok(()) } else { Err(format!("{names:?} answer, not {expected:?}")) }
    };
    wait_for(LIMIT * 2, check).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn while_a_link_is_cut_the_other_replica_answers() {
    let pair = Pair::start().await;
    // A request that is on its way when the link is cut gets no answer, and no refusal either: only a timeout ends it.
    pair.mesh.manifest(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: echo, namespace: shop}\nspec:\n  \
         parentRefs: [{group: \"\", kind: Service, name: echo}]\n  \
         rules:\n  - backendRefs: [{name: echo, port: 80}]\n    timeouts: {backendRequest: 1s}\n    \
         retry: {codes: [503, 504], attempts: 3, backoff: 1ms}\n---\n\
         apiVersion: tulle.dev/v1alpha1\nkind: BackendTrafficPolicy\nmetadata: {name: echo, namespace: shop}\nspec:\n  \
         targetRefs: [{kind: Service, name: echo}]\n  loadBalancer: {algorithm: RoundRobin}\n",
    );
    let (second, _app) = replica(&pair.mesh, "second").await;
    until_answering(&pair, &["echo", "second"]).await;
    second.host.cut();
    until_answering(&pair, &["echo"]).await;
    second.host.mend();
    until_answering(&pair, &["echo", "second"]).await;
}

#[tokio::test]
async fn a_request_on_a_link_that_is_cut_without_a_word_ends_in_bounded_time() {
    let pair = Pair::start().await;
    let server = &pair.server.host;
    // Reads requests and never answers.
    let script = "import socket, sys, threading
server = socket.create_server(('0.0.0.0', int(sys.argv[1])))
held = []
while True:
    held.append(server.accept()[0])
";
    let mut command = server.command(APP_UID, "/usr/bin/python3");
    command.args(["-c", script, "9000"]);
    let _mute = server.serve(command, 9000).await;
    let host = pair.mesh.host("caller");
    let member = Member::of("caller").config("outbound", json!({ "deadPeerTimeout": "2s" }));
    let caller = pair.mesh.join_as(&host, member).await;
    let working = wait_for(LIMIT, || get(&host, ECHO_URL)).await;
    working.unwrap_or_else(|error| panic!("{error}"));

    // One that was taken and is not answered yet; not even its application can tell that there is nobody any more.
    let post = |url: String| {
        let mut command = host.curl();
        command.args(["--data", "x", "--output", "/dev/null", "--write-out", "%{http_code}", &url]);
        async { String::from_utf8_lossy(&output_of(command).await.stdout).into_owned() }
    };
    let url = format!("http://{}:9000/", server.v4);
    let in_flight = tokio::spawn(post(url));
    let sent = || async {
        let open = caller.metrics().await.sum("tulle_upstream_connections_total", &[]);
        if open >= 2.0 { Ok(()) } else { Err(format!("{open} connections")) }
    };
    wait_for(LIMIT, sent).await.unwrap_or_else(|error| panic!("{error}"));
    server.cut();
    // And one that goes onto a connection that was kept.
    let begun = Instant::now();
    let (kept, in_flight) = tokio::join!(post(ECHO_URL.into()), in_flight);
    let took = begun.elapsed();
    let in_flight = in_flight.expect("no panic");
    for status in [kept, in_flight] {
        assert!(["502", "503", "504"].contains(&status.as_str()), "{status}");
    }
    assert!(took < Duration::from_secs(15), "{took:?}");
}

#[tokio::test]
async fn a_link_that_loses_packets_costs_no_request() {
    let pair = Pair::start().await;
    pair.server.host.lose(10).await;
    for _ in 0..20 {
        get(&pair.client.host, ECHO_URL).await.unwrap_or_else(|error| panic!("{error}"));
    }
}

#[tokio::test]
async fn traffic_goes_on_while_the_control_plane_is_cut_off() {
    let pair = Pair::start().await;
    let control = &pair.mesh.hosts().control;
    control.cut();
    for _ in 0..20 {
        get(&pair.client.host, ECHO_URL).await.unwrap_or_else(|error| panic!("{error}"));
    }
    // What is changed meanwhile comes into force afterwards.
    pair.mesh.manifest(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: echo, namespace: shop}\nspec:\n  \
         parentRefs: [{group: \"\", kind: Service, name: echo}]\n  \
         rules: [{filters: [{type: RequestRedirect, requestRedirect: {hostname: new.example, statusCode: 302}}]}]\n",
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(get(&pair.client.host, ECHO_URL).await.is_ok_and(|answer| answer.starts_with("echo ")));
    control.mend();
    let changed = || async {
        let answer = get(&pair.client.host, &format!("{ECHO_URL}/")).await;
        if answer.as_ref().is_ok_and(|text| text.is_empty()) { Ok(()) } else { Err(format!("{answer:?}")) }
    };
    wait_for(LIMIT * 3, changed).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn a_sidecar_that_is_gone_lets_nothing_pass_and_one_that_comes_back_goes_on() {
    let mut pair = Pair::start().await;
    let stranger = pair.mesh.host("stranger");
    pair.server.process.kill().await;
    let answer = get(&pair.client.host, ECHO_URL).await;
    assert!(answer.as_ref().is_err_and(|text| !text.contains("echo /")), "{answer:?}");
    // Not past it either, in plaintext: connections are still redirected.
    let app = format!("http://{}:8080/", pair.server.host.v4);
    assert!(get(&stranger, &app).await.is_err());

    let host = pair.server.host.clone();
    pair.server = pair.mesh.sidecar_on(&host, Member::of("echo")).await;
    pair.server.ready().await;
    pair.works().await;

    // The same at the client: its application is cut off, not let out in plaintext.
    pair.client.process.kill().await;
    assert!(get(&pair.client.host, ECHO_URL).await.is_err());
    assert!(get(&pair.client.host, &app).await.is_err());
    let host = pair.client.host.clone();
    pair.client = pair.mesh.sidecar_on(&host, Member::of("client")).await;
    pair.client.ready().await;
    pair.works().await;
    assert_eq!(refused(&pair.client, "loop").await, 0.0);
}

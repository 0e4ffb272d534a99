//! What applications behind an Envoy reach, and as whom.

use tulle_tests::hosts::Member;
use tulle_tests::{LIMIT, TestMesh, identity, wait_for};

use super::{Envoy, UNDECLARED, Wish, served, status, until};
use crate::captured::{connect, greeter, line, until_heard, until_refused};
use crate::{ECHO, ECHO_URL, Pair, echo, get, replica};

/// A host without an application, whose connections are redirected to an Envoy.
async fn client(mesh: &TestMesh, name: &str, options: &[&str]) -> Envoy {
    let host = mesh.host(name);
    mesh.workload_at(&host, name, &host.addresses(), &[]);
    mesh.knows("Workload", name).await;
    Envoy::start(mesh, &host, Wish { options, ..Wish::of(name) }).await
}

#[tokio::test]
async fn an_application_reaches_services_and_workloads_as_its_identity_and_the_link_shows_nothing() {
    let pair = Pair::start().await;
    let server = &pair.server.host;
    let _greeter = greeter(server, UNDECLARED).await;
    let web = client(&pair.mesh, "web", &[]).await;
    until(&web.host, ECHO_URL, 200).await;
    let link = web.host.capture("eth0").await;
    for (authority, path) in [
        (ECHO[0].to_string(), "four"),
        (format!("[{}]", ECHO[1]), "six"),
        (format!("{}:8080", server.v4), "direct"),
    ] {
        let url = format!("http://{authority}/the-secret-{path}");
        let answer = get(&web.host, &url).await.unwrap_or_else(|error| panic!("{url}: {error}\n{web:?}"));
        assert!(answer.starts_with(&format!("echo /the-secret-{path}\n")), "{answer}");
        let proven = format!("x-forwarded-client-cert: URI={}\n", identity("web"));
        assert!(answer.contains(&proven), "{answer}");
    }
    // A port that nobody declares, where the server speaks first.
    let mut stream = connect(&web.host, server.v4, UNDECLARED).await;
    assert_eq!(line(&mut stream).await, "220 ready");
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"EHLO the-secret\r\n").await.expect("open");
    assert_eq!(line(&mut stream).await, "250 EHLO the-secret");
    assert!(!link.end().await.contain("the-secret"));
    // It can't spoof who it is.
    let forged = ["--header", "x-forwarded-client-cert: URI=spiffe://other"];
    let (code, answer) = status(&web.host, ECHO_URL, &forged).await;
    assert!(code == 200 && !answer.contains("spiffe://other"), "{answer}");
    web.has_refused_nothing().await;
}

#[tokio::test]
async fn an_application_obeys_routes_as_behind_a_sidecar() {
    let pair = Pair::start().await;
    pair.mesh.service("other", &[[10, 96, 0, 17].into()], &[("http", 80, "http")]);
    let host = pair.mesh.host("other");
    let _app = echo(&host, 8080).await;
    pair.mesh.workload_on(&host, "other", host.v4, &[("http", 8080)]);
    let _other = pair.mesh.join_as(&host, Member::of("other")).await;
    let web = client(&pair.mesh, "web", &[]).await;
    pair.mesh.manifest(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: echo, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: echo, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /moved}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /there}, statusCode: 302}}]
  - matches: [{path: {type: PathPrefix, value: /other}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-way, value: other}]}}]
    backendRefs: [{name: other, port: 80}]
  - backendRefs: [{name: echo, port: 80}]
",
    );
    let moved = until(&web.host, &format!("{ECHO_URL}/moved/a"), 302).await;
    assert!(moved.to_ascii_lowercase().contains("/there\r\n"), "{moved}");
    for host in [&web.host, &pair.client.host] {
        let answered = || async {
            let answer = get(host, &format!("{ECHO_URL}/other/a")).await?;
            let same = answer.starts_with("other /other/a\n") && answer.contains("x-way: other\n");
            if same { Ok(()) } else { Err(answer) }
        };
        wait_for(LIMIT, answered).await.unwrap_or_else(|error| panic!("{host:?}: {error}"));
        let answer = get(host, &format!("{ECHO_URL}/a")).await.unwrap_or_else(|error| panic!("{error}"));
        assert!(answer.starts_with("echo /a\n") && !answer.contains("x-way"), "{answer}");
    }
    web.has_refused_nothing().await;
}

#[tokio::test]
async fn what_the_mesh_does_not_know_passes_or_is_refused_as_its_policy_says() {
    let mesh = TestMesh::on_hosts().await;
    let outside = mesh.host("outside");
    let (_http, _greeter) = (echo(&outside, 9000).await, greeter(&outside, UNDECLARED).await);
    mesh.service("echo", &ECHO, &[("http", 80, "http")]);
    let (_server, _app) = replica(&mesh, "echo").await;
    let any = client(&mesh, "any", &[]).await;
    let only = client(&mesh, "only", &["--outbound-policy", "RegistryOnly"]).await;
    for ip in outside.addresses() {
        let url = format!("http://{}/outside", std::net::SocketAddr::new(ip, 9000));
        let answer = until(&any.host, &url, 200).await;
        assert!(answer.contains("outside /outside\n") && !answer.contains("x-forwarded"), "{answer}");
        until_heard(&any.host, ip, UNDECLARED).await;

        assert_eq!(status(&only.host, &url, &[]).await, (0, String::new()), "{url}");
        until_refused(&only.host, ip, UNDECLARED).await;
    }
    // Health and metrics of a sidecar are no part of its mesh.
    let health = format!("http://{}:15020/live", _server.host.v4);
    assert_eq!(get(&any.host, &health).await.as_deref(), Ok("live\n"));
    assert_eq!(status(&only.host, &health, &[]).await.0, 0);
    // What the mesh knows is reached all the same.
    for envoy in [&any, &only] {
        until(&envoy.host, ECHO_URL, 200).await;
        envoy.has_refused_nothing().await;
    }
    // And who appears is no longer unknown.
    mesh.workload_on(&outside, "echo", outside.v4, &[("http", 9000)]);
    let known = || async {
        let url = format!("http://{}:9000/now", outside.v4);
        match status(&only.host, &url, &[]).await {
            // Nobody there takes mTLS.
            (503, _) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    };
    wait_for(LIMIT, known).await.unwrap_or_else(|error| panic!("{error}\n{only:?}"));
}

#[tokio::test]
async fn a_server_that_proves_to_be_someone_else_gets_nothing() {
    let mesh = TestMesh::on_hosts().await;
    mesh.service("echo", &ECHO, &[("http", 80, "http")]);
    let (imposter, _apps) = served(&mesh, "echo", "someone-else").await;
    let web = client(&mesh, "web", &[]).await;
    let link = web.host.capture("eth0").await;
    for (url, failures) in [
        (ECHO_URL.to_owned(), "outbound|80||echo.shop.svc.cluster.local".to_owned()),
        (format!("http://{}:8080", imposter.host.v4), format!("outbound|8080||{}", imposter.host.v4)),
    ] {
        let refused = || async {
            let answered = status(&web.host, &format!("{url}/the-secret"), &[]).await;
            let times = web.count(&format!("{failures}.ssl.fail_verify_san")).await;
            if answered.0 == 503 && times > 0 { Ok(()) } else { Err(format!("{times}: {answered:?}")) }
        };
        wait_for(LIMIT, refused).await.unwrap_or_else(|error| panic!("{url}: {error}\n{web:?}"));
    }
    until_refused(&web.host, imposter.host.v4, UNDECLARED).await;
    assert!(!link.end().await.contain("the-secret"));
}

#[tokio::test]
async fn ports_that_redirection_leaves_alone_are_reached_past_both_ends() {
    const SKIPPED: u16 = 2222;
    let mesh = TestMesh::on_hosts().await;
    let host = mesh.host("echo");
    let _greeters = [greeter(&host, SKIPPED).await, greeter(&host, UNDECLARED).await];
    let mut init = host.command(0, &tulle_tests::binaries().sidecar);
    init.args(["init", "--skip-inbound-ports", &SKIPPED.to_string()]);
    assert!(tulle_tests::output_of(init).await.status.success());
    let _sidecar = mesh.sidecar_on(&host, Member::of("echo")).await;
    crate::captured::tell_skipped(&mesh, &host, SKIPPED);
    crate::captured::make_strict(&mesh);
    let web = client(&mesh, "web", &[]).await;
    until_heard(&web.host, host.v4, SKIPPED).await;
    until_heard(&web.host, host.v4, UNDECLARED).await;
    web.has_refused_nothing().await;
}

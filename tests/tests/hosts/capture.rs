//! Applications with no setting at all, on hosts with redirection and sidecars.

use serde_json::json;
use tulle_tests::hosts::{Member, redirect};
use tulle_tests::{LIMIT, TestMesh, identity, wait_for};

use crate::{ECHO, ECHO_URL, Pair, echo, get, passed_through, refused_at_least, replica};

#[tokio::test]
async fn an_application_without_settings_reaches_a_service_and_the_link_shows_nothing_of_it() {
    let pair = Pair::start().await;
    let link = pair.server.host.capture("eth0").await;
    let loopback = pair.server.host.capture("lo").await;
    let client = &pair.client.host;
    let server = pair.server.host.v4;
    // The service by both families, and the workload itself.
    for (authority, path) in [
        (ECHO_URL[7..].to_owned(), "four"),
        ("[fd96::10]".into(), "six"),
        (format!("{server}:8080"), "direct"),
    ] {
        let url = format!("http://{authority}/the-secret-{path}");
        let answer = get(client, &url).await.unwrap_or_else(|error| panic!("{url}: {error}"));
        assert!(answer.starts_with(&format!("echo /the-secret-{path}\n")), "{answer}");
        let proven = format!("x-forwarded-client-cert: URI={}\n", identity("client"));
        assert!(answer.contains(&proven), "{answer}");
    }
    let (link, loopback) = (link.end().await, loopback.end().await);
    for path in ["four", "six", "direct"] {
        let secret = format!("the-secret-{path}");
        assert!(loopback.contain(&secret), "{secret}: the application reads plaintext on its own host");
        assert!(!link.contain(&secret), "{secret} can be read between the hosts");
    }
    assert!(!link.contain("the-secret"), "nor any part of it");
    assert_eq!(passed_through(&pair.client).await, 0.0);
}

#[tokio::test]
async fn what_the_mesh_does_not_know_passes_or_is_refused_and_is_counted() {
    let mesh = TestMesh::on_hosts().await;
    let outside = mesh.host("outside");
    let _app = echo(&outside, 9000).await;
    let any = mesh.join("any").await;
    let host = mesh.host("only");
    let member = Member::of("only").config("outbound", json!({ "policy": "RegistryOnly" }));
    let only = mesh.join_as(&host, member).await;
    for (count, ip) in (1_u8..).zip(outside.addresses()) {
        let url = format!("http://{}/outside", std::net::SocketAddr::new(ip, 9000));
        let answer = get(&any.host, &url).await.unwrap_or_else(|error| panic!("{url}: {error}"));
        assert!(answer.starts_with("outside /outside\n") && !answer.contains("x-forwarded"), "{answer}");
        let counted = || async {
            let now = passed_through(&any).await;
            if now == f64::from(count) { Ok(()) } else { Err(format!("{now} connections passed through")) }
        };
        wait_for(LIMIT, counted).await.unwrap_or_else(|error| panic!("{error}"));

        assert!(get(&only.host, &url).await.is_err());
        refused_at_least(&only, "unknown_destination", count.into()).await;
    }
}

#[tokio::test]
async fn an_application_reaches_itself_every_way_there_is() {
    let pair = Pair::start().await;
    let (host, server) = (&pair.server.host, pair.server.host.v4);
    let link = host.capture("eth0").await;
    for authority in [
        // Its own service, whose only endpoint is the workload itself.
        ECHO[0].to_string(),
        format!("[{}]", ECHO[1]),
        // Its own addresses, and loopback.
        format!("{server}:8080"),
        format!("[{}]:8080", host.v6),
        "127.0.0.1:8080".into(),
        "[::1]:8080".into(),
    ] {
        let url = format!("http://{authority}/itself");
        let answer = get(host, &url).await.unwrap_or_else(|error| panic!("{url}: {error}"));
        assert!(answer.starts_with("echo /itself\n"), "{url}: {answer}");
    }
    assert!(!link.end().await.contain("itself"), "none of it has left the host");
}

#[tokio::test]
async fn an_endpoint_of_a_headless_service_is_called_by_its_address() {
    let pair = Pair::start().await;
    let (second, _app) = replica(&pair.mesh, "second").await;
    pair.mesh.manifest(
        "service-echo.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: echo, namespace: shop}\nspec:\n  clusterIP: None\n  \
         selector: {app: echo}\n  ports: [{name: http, port: 8080, targetPort: http}]\n",
    );
    for meshed in [&pair.server, &second] {
        let url = format!("http://{}:8080/headless", meshed.host.v4);
        let answered = || async {
            let answer = get(&pair.client.host, &url).await?;
            if answer.contains(&identity("client")) { Ok(answer) } else { Err(answer) }
        };
        let answer = wait_for(LIMIT, answered).await.unwrap_or_else(|error| panic!("{url}: {error}"));
        assert!(answer.starts_with(&format!("{} /headless\n", meshed.host.name)), "{answer}");
    }
}

#[tokio::test]
async fn a_host_without_ipv6_gets_ipv4_alone() {
    let pair = Pair::start().await;
    let network = &pair.mesh.hosts().network;
    let old = pair.mesh.join_as(&network.host_without_ipv6("old"), Member::of("old")).await;
    let answer = wait_for(LIMIT, || get(&old.host, ECHO_URL)).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(answer.contains(&identity("old")), "{answer}");
}

#[tokio::test]
async fn without_redirection_a_sidecar_is_not_ready_and_says_why() {
    let mesh = TestMesh::on_hosts().await;
    let host = mesh.host("bare");
    let sidecar = mesh.sidecar_on(&host, Member::of("bare")).await;
    let says = || async {
        let (status, text) = tulle_tests::fetch(&format!("http://{}/ready", sidecar.health)).await?;
        assert_eq!(status, 503, "{text}");
        let all = ["inbound", "outbound", "IPv4", "IPv6", "tulle-sidecar init"];
        if all.iter().all(|word| text.contains(word)) { Ok(()) } else { Err(text) }
    };
    wait_for(LIMIT, says).await.unwrap_or_else(|error| panic!("{error}"));
    redirect(&host).await;
    sidecar.ready().await;
}

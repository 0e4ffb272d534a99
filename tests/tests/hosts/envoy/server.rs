//! Whom applications behind an Envoy serve, and what they learn of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::json;
use tulle_tests::{LIMIT, NAMESPACE, TestMesh, identity, wait_for};

use super::{UNDECLARED, served, status, until};
use crate::captured::{connect, line, make_strict, until_heard, until_refused};
use crate::refused::ask;
use crate::{ECHO, ECHO_URL, get, passed_through};

/// A mesh in which an Envoy serves `echo.shop`.
async fn mesh() -> TestMesh {
    let mesh = TestMesh::on_hosts().await;
    mesh.service("echo", &ECHO, &[("http", 80, "http")]);
    mesh
}

#[tokio::test]
async fn sidecars_and_envoys_reach_it_over_mtls_and_strangers_only_while_policy_lets_them() {
    let mesh = mesh().await;
    let (echo, _apps) = served(&mesh, "echo", "echo").await;
    let (other, _others) = served(&mesh, "other", "other").await;
    let web = mesh.join("web").await;
    let stranger = mesh.host("stranger");
    let server = &echo.host;
    let direct = format!("http://{}:8080", server.v4);

    until(&stranger, &direct, 200).await;
    let link = server.capture("eth0").await;
    for (client, name) in [(&web.host, "web"), (&other.host, "other")] {
        for url in [format!("{direct}/the-secret"), format!("http://[{}]:8080/the-secret", server.v6)] {
            until(client, &url, 200).await;
            let answer = get(client, &url).await.unwrap_or_else(|error| panic!("{error}"));
            assert!(answer.starts_with("echo /the-secret\n"), "{answer}");
            assert!(answer.contains(&format!("URI={}\n", identity(name))), "{answer}");
        }
        let mut stream = connect(client, server.v4, UNDECLARED).await;
        assert_eq!(line(&mut stream).await, "220 ready", "{name}");
    }
    assert!(!link.end().await.contain("the-secret"));
    assert_eq!(passed_through(&web).await, 0.0);
    // Nobody claims an identity without proving it.
    let forged = ["--header", "x-forwarded-client-cert: URI=spiffe://other"];
    let (code, answer) = status(&stranger, &direct, &forged).await;
    assert!(code == 200 && !answer.contains("spiffe"), "{answer}");
    until_heard(&stranger, server.v4, UNDECLARED).await;

    make_strict(&mesh);
    until_refused(&stranger, server.v4, 8080).await;
    until_refused(&stranger, server.v4, UNDECLARED).await;
    for client in [&web.host, &other.host] {
        until(client, &direct, 200).await;
        until_heard(client, server.v4, UNDECLARED).await;
    }
    echo.has_refused_nothing().await;
    other.has_refused_nothing().await;
}

#[tokio::test]
async fn who_is_not_named_by_a_policy_is_refused() {
    let mesh = mesh().await;
    let (echo, _apps) = served(&mesh, "echo", "echo").await;
    let (web, cart) = (mesh.join("web").await, mesh.join("cart").await);
    let stranger = mesh.host("stranger");
    until(&web.host, ECHO_URL, 200).await;
    let policy = json!({
        "apiVersion": "tulle.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "only-cart", "namespace": NAMESPACE },
        "spec": {
            "targetRefs": [{ "kind": "Service", "name": "echo" }],
            "action": "ALLOW",
            "enforcementLevel": "Application",
            "rules": [{ "sources": [{ "type": "ServiceAccount", "serviceAccount": { "name": "cart" } }] }],
        },
    });
    mesh.manifest("only.yaml", &policy.to_string());
    until(&web.host, ECHO_URL, 403).await;
    until(&cart.host, ECHO_URL, 200).await;
    until(&stranger, &format!("http://{}:8080", echo.host.v4), 403).await;
    echo.has_refused_nothing().await;
}

#[tokio::test]
async fn who_is_not_the_workload_s_identity_gets_nothing_from_a_sidecar() {
    let mesh = mesh().await;
    let (echo, _apps) = served(&mesh, "echo", "someone-else").await;
    let web = mesh.join("web").await;
    let link = echo.host.capture("eth0").await;
    let refused = || async {
        match status(&web.host, &format!("{ECHO_URL}/the-secret"), &[]).await {
            (503, text) if text.contains("someone-else") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    };
    wait_for(LIMIT, refused).await.unwrap_or_else(|error| panic!("{error}\n{echo:?}"));
    until_refused(&web.host, echo.host.v4, UNDECLARED).await;
    assert!(!link.end().await.contain("the-secret"));
}

#[tokio::test]
async fn nothing_loops_and_only_what_was_redirected_to_the_workload_is_taken() {
    let mesh = mesh().await;
    let (echo, _apps) = served(&mesh, "echo", "echo").await;
    let stranger = mesh.host("stranger");
    let server = &echo.host;
    until(&stranger, &format!("http://{}:8080", server.v4), 200).await;
    for ip in server.addresses() {
        assert_eq!(ask(&stranger, (ip, 15006).into()).await, "", "{ip}");
        // Its own ports, dialled by its own application.
        assert_eq!(ask(server, (ip, 15006).into()).await, "", "{ip}");
    }
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        for port in [15001, 15006] {
            assert_eq!(ask(server, (ip, port).into()).await, "", "{ip} {port}");
        }
    }
    // Ports of redirection on another host are no way into this one.
    assert_eq!(ask(server, (stranger.v4, 15006).into()).await, "");
    assert_eq!(ask(server, (stranger.v4, 15001).into()).await, "");
    assert!(echo.count("virtualInbound.downstream_cx_active").await < 5, "nothing goes round: {echo:?}");
    until(&stranger, &format!("http://{}:8080", server.v4), 200).await;
}

#[tokio::test]
async fn an_application_reaches_itself_every_way_there_is() {
    let mesh = mesh().await;
    let (echo, _apps) = served(&mesh, "echo", "echo").await;
    let server = &echo.host;
    let link = server.capture("eth0").await;
    for authority in [
        // Its own service, whose only endpoint is the workload itself.
        ECHO[0].to_string(),
        format!("[{}]", ECHO[1]),
        format!("{}:8080", server.v4),
        format!("[{}]:8080", server.v6),
        "127.0.0.1:8080".into(),
    ] {
        let answer = until(server, &format!("http://{authority}/itself"), 200).await;
        assert!(answer.contains("echo /itself\n"), "{authority}: {answer}");
    }
    assert!(!link.end().await.contain("itself"), "none of it has left the host");
    echo.has_refused_nothing().await;
}

//! Peers that are not who they have to be, at the inbound port of a real sidecar.

use std::net::SocketAddr;
use std::path::Path;

use tulle_cli::local::Sidecar;
use tulle_tests::{App, LIMIT, NAMESPACE, TestMesh, curl, exchange, identity, output_of, wait_for};

use crate::Pair;
use crate::bad_input::{Validity, certificate};

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn whoever_proves_nothing_is_refused_counted_and_named_and_nobody_else_notices() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    let foreign = TestMesh::start().await;
    let (folder, address) = (pair.mesh.folder.path(), pair.server.inbound[0]);
    let me = identity("client");

    // All is well with this one: what is wrong with the others is what is said to be.
    let good = write(folder, &certificate(&pair.mesh, &me, Validity::Now));
    assert_eq!(https(address, Some(&good)).await, "200");
    assert_eq!(app.seen().len(), 1);
    assert!(app.seen()[0].header("x-forwarded-client-cert").contains(&me), "{:?}", app.seen());

    for (reason, presented, leaf) in [
        ("expired", me.as_str(), Some(certificate(&pair.mesh, &me, Validity::Before))),
        ("unknown_issuer", &me, Some(certificate(&foreign, &me, Validity::Now))),
        (
            "wrong_trust_domain",
            "spiffe://other.example/ns/shop/sa/client",
            Some(certificate(&pair.mesh, "spiffe://other.example/ns/shop/sa/client", Validity::Now)),
        ),
        (
            "no_spiffe_id",
            "spiffe://test.example/ns//sa/client",
            Some(certificate(&pair.mesh, "spiffe://test.example/ns//sa/client", Validity::Now)),
        ),
        ("no_certificate", "nothing", None),
    ] {
        let files = leaf.as_ref().map(|leaf| write(folder, leaf));
        let before = failures(&pair.server, reason).await;
        assert_eq!(https(address, files.as_ref()).await, "000", "{reason}");
        let counted = || async {
            let count = failures(&pair.server, reason).await - before;
            if count == 1.0 { Ok(()) } else { Err(format!("{reason}: {count} counted")) }
        };
        wait_for(LIMIT, counted).await.unwrap_or_else(|error| panic!("{error}"));
        let log = pair.server.process.log();
        let line = log.lines().find(|line| line.contains("handshake failed") && line.contains(reason));
        let line = line.unwrap_or_else(|| panic!("{reason} is not in {log}"));
        assert!(line.contains(presented), "{line}");
        for secret in leaf.iter().flat_map(|(_, key)| key.lines()) {
            assert!(!log.contains(secret), "a key is a secret");
        }
        assert_eq!(exchange(pair.port(), GET).await.status(), 200, "after {reason}");
    }
    assert_eq!(app.seen().len(), 6, "nobody but the good ones came through");
}

#[tokio::test]
async fn plaintext_at_a_strict_port_is_counted_and_named() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    pair.mesh.manifest(
        "strict.yaml",
        &format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {{name: echo, namespace: {NAMESPACE}}}\n\
             spec:\n  targetRefs: [{{kind: Service, name: echo}}]\n  mtls: {{mode: Strict}}\n"
        ),
    );
    let refused = || async {
        let mut curl = curl();
        curl.arg(format!("http://{}/", pair.server.inbound[0]));
        if output_of(curl).await.status.success() {
            return Err("plaintext still comes in".to_owned());
        }
        let metrics = pair.server.metrics().await?;
        match metrics.sum("tulle_connections_refused_total", &[("reason", "no_chain")]) {
            0.0 => Err("it is not counted".to_owned()),
            _ => Ok(()),
        }
    };
    wait_for(LIMIT, refused).await.unwrap_or_else(|error| panic!("{error}"));
    let log = pair.server.process.log();
    assert!(log.contains("refused a connection") && log.contains("strict mTLS"), "{log}");
    assert_eq!(exchange(pair.port(), GET).await.status(), 200, "mTLS still passes");
}

/// How many handshakes have failed for a reason.
async fn failures(server: &Sidecar, reason: &str) -> f64 {
    let metrics = server.metrics().await.expect("it answers");
    metrics.sum("tulle_tls_handshake_failures_total", &[("side", "server"), ("reason", reason)])
}

/// A certificate and its key as files.
type Files = (std::path::PathBuf, std::path::PathBuf);

fn write(folder: &Path, (certificate, key): &(String, String)) -> Files {
    let files = (folder.join("peer.pem"), folder.join("peer.key"));
    std::fs::write(&files.0, certificate).expect("the folder can be written");
    std::fs::write(&files.1, key).expect("the folder can be written");
    files
}

/// The status that a client with such a certificate gets; `000` for none.
async fn https(address: SocketAddr, files: Option<&Files>) -> String {
    let mut curl = curl();
    // Whom it reaches is not the question here.
    curl.args(["--insecure", "--tlsv1.3", "--http1.1", "--write-out", "%{http_code}"]);
    if let Some((certificate, key)) = files {
        curl.arg("--cert").arg(certificate).arg("--key").arg(key);
    }
    curl.arg(format!("https://{address}/"));
    String::from_utf8_lossy(&output_of(curl).await.stdout).into_owned()
}

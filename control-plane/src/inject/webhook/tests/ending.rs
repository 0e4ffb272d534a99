//! The end of a replica, as an API server sees it that has not heard of it.

use std::net::SocketAddr;
use std::time::SystemTime;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::super::authority::Roots;
use super::*;

const NAME: &str = "tulle-control-plane.tulle-system.svc";

/// What is answered to a review over a connection of its own.
async fn post(address: SocketAddr, bundle: &str, body: &str) -> io::Result<String> {
    let mut roots = RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(der.expect("PEM")).expect("a root");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(address).await?;
    let name = NAME.try_into().expect("a name");
    let mut tls = TlsConnector::from(Arc::new(client)).connect(name, tcp).await?;
    let head = format!(
        "POST /inject HTTP/1.1\r\nhost: {NAME}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    tls.write_all(format!("{head}{body}").as_bytes()).await?;
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn reviews_are_answered_for_a_while_after_the_end_was_asked_for() {
    let roots = Roots::new(SystemTime::now()).expect("a root");
    let (server, _) = roots.serve(&[NAME.into()], SystemTime::now()).expect("a certificate");
    let (_keep, tls) = watch::channel(Some(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let stop = CancellationToken::new();
    let (webhook, _told) = webhook();
    let serving = tokio::spawn(webhook.serve(listener, tls, stop.clone()));

    stop.cancel();
    let body = review(("", "v1", "Pod"), "shop", &pod()).to_string();
    for _ in 0..3 {
        let answer = post(address, &roots.certificates(), &body).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("JSONPatch"), "{answer}");
    }
    let ended = timeout(LAME_DUCK * 2, serving).await.expect("it ends");
    ended.expect("no panic").expect("no error");
    assert!(post(address, &roots.certificates(), &body).await.is_err(), "it has ended");
}

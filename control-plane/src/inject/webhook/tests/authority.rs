//! Roots and what they sign, as years go by.

use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::client::ClientConnection;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::super::authority::{OVERLAP, Roots};
use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
const NAME: &str = "tulle-control-plane.tulle-system.svc";

/// Whether a client with this bundle shakes hands with that server.
fn trusts(bundle: &str, server: &Arc<ServerConfig>, name: &str) -> bool {
    let mut roots = RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(der.expect("PEM")).expect("a root");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(client), name.to_owned().try_into().expect("a name"))
        .expect("a client");
    let mut server = rustls::ServerConnection::new(Arc::clone(server)).expect("a server");
    while client.is_handshaking() {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("memory");
        server.read_tls(&mut bytes.as_slice()).expect("memory");
        if server.process_new_packets().is_err() {
            return false;
        }
        let mut bytes = Vec::new();
        server.write_tls(&mut bytes).expect("memory");
        client.read_tls(&mut bytes.as_slice()).expect("memory");
        if client.process_new_packets().is_err() {
            return false;
        }
    }
    true
}

#[test]
fn the_bundle_is_trusted_for_its_names_alone() {
    let now = SystemTime::now();
    let roots = Roots::new(now).expect("a root");
    let (server, renewal) = roots.serve(&[NAME.into()], now).expect("a certificate");
    assert!(renewal > now + 3 * DAY && renewal < now + 4 * DAY, "half of a week");
    assert!(trusts(&roots.certificates(), &server, NAME));
    assert!(!trusts(&roots.certificates(), &server, "kubernetes.default.svc"));
    let other = Roots::new(now).expect("a root");
    assert!(!trusts(&other.certificates(), &server, NAME));
}

#[test]
fn what_is_kept_is_read_again() {
    let now = SystemTime::now();
    let roots = Roots::new(now).expect("a root");
    let kept =
        Roots::read(roots.certificates().as_bytes(), roots.keys().as_bytes()).expect("what was written");
    assert_eq!(kept.certificates(), roots.certificates());
    let (server, _) = kept.serve(&[NAME.into()], now).expect("a certificate");
    assert!(trusts(&roots.certificates(), &server, NAME));
    for (certificates, keys) in [("", ""), ("x", "y"), (roots.certificates().as_str(), "")] {
        assert!(Roots::read(certificates.as_bytes(), keys.as_bytes()).is_err());
    }
}

#[test]
fn a_root_is_followed_by_another_that_is_known_before_it_signs() {
    let now = SystemTime::now();
    let followed = now - OVERLAP;
    let made = followed - 250 * DAY;
    let (roots, changed) = Roots::new(made).expect("a root").renewed(made + 100 * DAY).expect("as it is");
    assert!(!changed);
    let first = roots.certificates();

    let (roots, changed) = roots.renewed(followed).expect("a second root");
    assert!(changed && roots.certificates().starts_with(&first) && roots.certificates().len() > first.len());
    let (server, _) = roots.serve(&[NAME.into()], followed).expect("a certificate");
    assert!(trusts(&first, &server, NAME), "an API server may know the first alone");
    let (server, _) = roots.serve(&[NAME.into()], now).expect("a certificate");
    assert!(!trusts(&first, &server, NAME), "the second signs now");
    assert!(trusts(&roots.certificates(), &server, NAME));

    let (roots, changed) = roots.renewed(made + 366 * DAY).expect("the first is over");
    assert!(changed && !roots.certificates().contains(&first));
}

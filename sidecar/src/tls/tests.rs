//! Handshakes over a pipe: good ones, resumed ones, and every attack that must fail before a byte gets through.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::ExtendedKeyUsagePurpose;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tulle_mesh::address::ClusterName;
use tulle_mesh::model::{DownstreamTls, StringMatch};

use super::accept::Accepted;
use super::certificate::Leaf;
use super::connect::Connected;
use super::failures::Side;
use super::material::MaterialError;
use super::testing::{Authority, Request};
use super::verify::provider;
use super::*;
use crate::balance::EndpointTls;

const CART: &str = "spiffe://mesh.test/ns/shop/sa/cart";
const WEB: &str = "spiffe://mesh.test/ns/shop/sa/web";
const SNI: &str = "outbound_.80_._.cart.shop.svc.cluster.local";

fn address() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 7], 15006))
}

fn endpoint(identity: Option<&str>) -> EndpointTls {
    EndpointTls {
        server_name: SNI.into(),
        identity: identity.map(|id| id.parse().expect("an ID")),
        subject_alt_names: Arc::new([]),
    }
}

fn strict() -> DownstreamTls {
    DownstreamTls { require_client_certificate: true, alpn: vec!["h2".into(), "http/1.1".into()] }
}

type Ends = (Result<Connected<DuplexStream>, HandshakeError>, Result<Accepted<DuplexStream>, HandshakeError>);

async fn shake(client: &Material, server: &Material, pin: &EndpointTls, tls: &DownstreamTls) -> Ends {
    let (near, far) = duplex(1 << 16);
    tokio::join!(
        connect(near, client, pin, Some(Alpn::Http2), address()),
        accept(far, server, tls, address()),
    )
}

/// Sends a byte each way, so that session tickets arrive too.
async fn talk(client: &mut Connected<DuplexStream>, server: &mut Accepted<DuplexStream>) {
    let mut byte = [0];
    client.stream.write_all(b"a").await.expect("writes");
    server.stream.read_exact(&mut byte).await.expect("reads");
    server.stream.write_all(b"b").await.expect("writes");
    client.stream.read_exact(&mut byte).await.expect("reads");
    assert_eq!(&byte, b"b");
}

#[tokio::test]
async fn both_ends_learn_who_the_other_is() {
    let ca = Authority::new("root");
    let (web, cart) = (ca.material(WEB), ca.material(CART));
    let (client, server) = shake(&web, &cart, &endpoint(Some(CART)), &strict()).await;
    let (mut client, mut server) = (client.expect("connects"), server.expect("accepts"));
    assert_eq!(client.peer.as_str(), CART);
    assert_eq!(server.peer.as_ref().map(|id| id.as_str()), Some(WEB));
    assert_eq!(client.alpn, Some(Alpn::Http2));
    let (_, connection) = client.stream.get_ref();
    assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let group = connection.negotiated_key_exchange_group().expect("a group").name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(server.stream.get_ref().1.server_name(), Some(SNI));
    talk(&mut client, &mut server).await;
}

#[tokio::test]
async fn alpn_is_what_the_listener_and_the_client_share() {
    let ca = Authority::new("root");
    let (web, cart) = (ca.material(WEB), ca.material(CART));
    for (listener, offer, agreed) in [
        (vec![], None, None),
        (vec![], Some(Alpn::Http2), None),
        (vec!["http/1.1"], Some(Alpn::Http1), Some(Alpn::Http1)),
        (vec!["h2", "http/1.1"], None, None),
    ] {
        let tls = DownstreamTls {
            require_client_certificate: true,
            alpn: listener.into_iter().map(str::to_owned).collect(),
        };
        let (near, far) = duplex(1 << 16);
        let pin = endpoint(Some(CART));
        let (client, server) =
            tokio::join!(connect(near, &web, &pin, offer, address()), accept(far, &cart, &tls, address()),);
        assert_eq!(client.expect("connects").alpn, agreed);
        let server = server.expect("accepts").stream;
        assert_eq!(server.get_ref().1.alpn_protocol(), agreed.map(|alpn| alpn.as_str().as_bytes()));
    }
}

#[tokio::test]
async fn an_endpoint_with_another_identity_is_refused() {
    let ca = Authority::new("root");
    let (web, stock) = (ca.material(WEB), ca.material("spiffe://mesh.test/ns/shop/sa/stock"));
    let (client, _) = shake(&web, &stock, &endpoint(Some(CART)), &strict()).await;
    let error = client.err().expect("refused");
    assert_eq!(error.reason, Reason::WrongIdentity);
    assert_eq!(error.expected, CART);
    assert_eq!(error.presented.as_deref(), Some("spiffe://mesh.test/ns/shop/sa/stock"));
    assert_eq!(error.peer, address());
    assert_eq!(web.failures.value(Side::Client, Reason::WrongIdentity), 1);
}

#[tokio::test]
async fn without_a_pin_the_names_of_the_cluster_decide() {
    let ca = Authority::new("root");
    let (web, cart) = (ca.material(WEB), ca.material(CART));
    let mut pin = endpoint(None);
    pin.subject_alt_names = Arc::new([StringMatch::prefix("spiffe://mesh.test/ns/shop/")]);
    assert!(shake(&web, &cart, &pin, &strict()).await.0.is_ok());
    pin.subject_alt_names = Arc::new([StringMatch::exact(WEB)]);
    let error = shake(&web, &cart, &pin, &strict()).await.0.err().expect("refused");
    assert_eq!(error.reason, Reason::WrongIdentity);
    assert!(error.expected.contains(WEB), "{}", error.expected);
}

/// Every leaf that must not pass, whoever presents it.
fn bad_leaves() -> Vec<(Request, Reason)> {
    let good = || Request::workload(CART);
    vec![
        (Request { from: -7200, until: -60, ..good() }, Reason::Expired),
        (Request { from: 600, until: 7200, ..good() }, Reason::NotYetValid),
        (Request { ca: true, ..good() }, Reason::NotALeaf),
        (Request { uris: vec![CART.into(), WEB.into()], ..good() }, Reason::NoSpiffeId),
        (Request { uris: vec![], names: vec!["cart.shop".into()], ..good() }, Reason::NoSpiffeId),
        (Request { uris: vec!["https://mesh.test/cart".into()], ..good() }, Reason::NoSpiffeId),
        (Request { uris: vec!["spiffe://mesh.test".into()], ..good() }, Reason::NoSpiffeId),
        (
            Request { uris: vec!["spiffe://other.test/ns/shop/sa/cart".into()], ..good() },
            Reason::WrongTrustDomain,
        ),
        (Request { purposes: vec![ExtendedKeyUsagePurpose::CodeSigning], ..good() }, Reason::WrongPurpose),
    ]
}

#[tokio::test]
async fn a_server_with_a_bad_leaf_is_refused() {
    let ca = Authority::new("root");
    let web = ca.material(WEB);
    for (request, reason) in bad_leaves() {
        let error = connect_to(&web, server_config(&ca.leaf(&request), &[&TLS13])).await;
        assert_eq!(error.reason, reason, "{error}");
    }
    let foreign = Authority::new("foreign").leaf(&Request::workload(CART));
    let error = connect_to(&web, server_config(&foreign, &[&TLS13])).await;
    assert_eq!(error.reason, Reason::UnknownIssuer, "{error}");
    assert_eq!(error.presented.as_deref(), Some(CART));
    // A foreign root of the very same name.
    let double = Authority::new("root").leaf(&Request::workload(CART));
    let error = connect_to(&web, server_config(&double, &[&TLS13])).await;
    assert!(matches!(error.reason, Reason::UnknownIssuer | Reason::BadCertificate), "{error}");
}

#[tokio::test]
async fn a_client_with_a_bad_leaf_is_refused() {
    let ca = Authority::new("root");
    let cart = ca.material(CART);
    for (request, reason) in bad_leaves() {
        let error = accept_from(&cart, client_config(Some(&ca.leaf(&request)), &[&TLS13]), true).await;
        assert_eq!(error.reason, reason, "{error}");
    }
    let foreign = Authority::new("foreign").leaf(&Request::workload(WEB));
    let error = accept_from(&cart, client_config(Some(&foreign), &[&TLS13]), true).await;
    assert_eq!(error.reason, Reason::UnknownIssuer, "{error}");
    // A bad certificate is no better where none would do.
    let error = accept_from(&cart, client_config(Some(&foreign), &[&TLS13]), false).await;
    assert_eq!(error.reason, Reason::UnknownIssuer, "{error}");
}

#[tokio::test]
async fn a_validity_failure_names_both_clocks() {
    let ca = Authority::new("root");
    let late = ca.leaf(&Request { from: -7200, until: -60, ..Request::workload(CART) });
    let error = connect_to(&ca.material(WEB), server_config(&late, &[&TLS13])).await;
    let facts = CertificateFacts::read(&late.chain[0]).expect("reads");
    assert!(error.detail.contains(&certificate::stamp(facts.not_after)), "{}", error.detail);
    let year = &certificate::stamp(SystemTime::now())[..10];
    assert!(error.detail.contains(year) && error.detail.contains("our clock"), "{}", error.detail);
    assert!(error.validity.is_some_and(|window| window.contains(" to ")));
}

#[tokio::test]
async fn a_client_without_a_certificate_passes_only_where_none_is_required() {
    let ca = Authority::new("root");
    let cart = ca.material(CART);
    let error = accept_from(&cart, client_config(None, &[&TLS13]), true).await;
    assert_eq!(error.reason, Reason::NoCertificate, "{error}");

    let (near, far) = duplex(1 << 16);
    let tls = DownstreamTls { require_client_certificate: false, ..strict() };
    let connector = tokio_rustls::TlsConnector::from(client_config(None, &[&TLS13]));
    let (client, server) = tokio::join!(connector.connect(name(), near), accept(far, &cart, &tls, address()));
    assert!(client.is_ok());
    assert!(server.expect("accepts").peer.is_none());
}

#[test]
fn an_address_is_asked_for_by_a_name_that_tls_can_carry() {
    for cluster in ["outbound|0||10.0.0.1", "outbound|8080||::1", "outbound|8080||fd00::"] {
        let sni = cluster.parse::<ClusterName>().expect("valid").sni();
        let name = ServerName::try_from(sni.clone());
        assert!(matches!(name, Ok(ServerName::DnsName(_))), "{sni}: {name:?}");
    }
}

#[tokio::test]
async fn older_tls_and_plaintext_are_refused() {
    let ca = Authority::new("root");
    let (web, cart) = (ca.material(WEB), ca.material(CART));
    let leaf = ca.leaf(&Request::workload(WEB));
    let error = accept_from(&cart, client_config(Some(&leaf), &[&TLS12]), true).await;
    assert_eq!(error.reason, Reason::Protocol, "{error}");
    let error = connect_to(&web, server_config(&leaf, &[&TLS12])).await;
    assert!(matches!(error.reason, Reason::Protocol | Reason::RefusedByPeer), "{error}");

    let (mut near, far) = duplex(1 << 16);
    near.write_all(b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n").await.expect("writes");
    let error = accept(far, &cart, &strict(), address()).await.err().expect("refused");
    assert_eq!(error.reason, Reason::NotTls, "{error}");

    let (near, mut far) = duplex(1 << 16);
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("writes");
    let error = connect(near, &web, &endpoint(Some(CART)), None, address()).await.err().expect("refused");
    assert_eq!(error.reason, Reason::NotTls, "{error}");

    let (near, far) = duplex(1 << 16);
    drop(far);
    let error = connect(near, &web, &endpoint(Some(CART)), None, address()).await.err().expect("refused");
    assert_eq!(error.reason, Reason::Closed, "{error}");
}

#[tokio::test]
async fn a_session_is_resumed_with_its_identity_and_only_under_the_same_material() {
    let ca = Authority::new("root");
    let (web, cart) = (ca.material(WEB), ca.material(CART));
    let pin = endpoint(Some(CART));
    let (client, server) = shake(&web, &cart, &pin, &strict()).await;
    let (mut client, mut server) = (client.expect("connects"), server.expect("accepts"));
    talk(&mut client, &mut server).await;

    let (client, server) = shake(&web, &cart, &pin, &strict()).await;
    let (mut client, mut server) = (client.expect("connects"), server.expect("accepts"));
    assert_eq!(server.stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    assert_eq!(server.peer.as_ref().map(|id| id.as_str()), Some(WEB));
    assert_eq!(client.peer.as_str(), CART);
    talk(&mut client, &mut server).await;

    // The same session, but the address is now expected to be another workload's.
    let (client, _) = shake(&web, &cart, &endpoint(Some(WEB)), &strict()).await;
    assert_eq!(client.err().expect("refused").reason, Reason::WrongIdentity);

    // A renewed server takes no session of its old material, nor does a renewed client offer one.
    for (web, cart) in [(Arc::clone(&web), ca.material(CART)), (ca.material(WEB), Arc::clone(&cart))] {
        let (client, server) = shake(&web, &cart, &pin, &strict()).await;
        assert!(client.is_ok());
        let kind = server.expect("accepts").stream.get_ref().1.handshake_kind();
        assert_eq!(kind, Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test]
async fn a_resumed_session_ends_with_the_certificate() {
    let ca = Authority::new("root");
    let web = ca.material_of(&Request { until: 6, ..Request::workload(WEB) });
    let cart = ca.material(CART);
    let pin = endpoint(Some(CART));
    let (client, server) = shake(&web, &cart, &pin, &strict()).await;
    let (mut client, mut server) = (client.expect("connects"), server.expect("accepts"));
    talk(&mut client, &mut server).await;
    while web.is_valid(SystemTime::now()) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (_, server) = shake(&web, &cart, &pin, &strict()).await;
    assert_eq!(server.err().expect("refused").reason, Reason::Expired);
}

#[test]
fn material_refuses_what_peers_would_refuse() {
    let ca = Authority::new("root");
    let leaf = ca.leaf(&Request { uris: vec![], ..Request::workload(WEB) });
    assert!(matches!(Material::new(&leaf, &ca.bundle(), 1, &Arc::default()), Err(MaterialError::Leaf(_))));
    let (a, b) = (ca.leaf(&Request::workload(WEB)), ca.leaf(&Request::workload(WEB)));
    let mixed = Leaf::new(a.chain.clone(), b.key());
    assert!(matches!(Material::new(&mixed, &ca.bundle(), 1, &Arc::default()), Err(MaterialError::Key(_))));
    assert!(!format!("{a:?} {:?}", ca.material(WEB)).contains("PRIVATE"));
    assert!(TrustBundle::from_pem(b"").is_err());
    assert!(TrustBundle::from_pem(ca.pem().as_bytes()).is_ok_and(|bundle| bundle == ca.bundle()));
}

fn name() -> ServerName<'static> {
    ServerName::try_from(SNI).expect("a name")
}

/// What our client says to an attacker's server.
async fn connect_to(web: &Material, server: Arc<ServerConfig>) -> HandshakeError {
    let (near, far) = duplex(1 << 16);
    let acceptor = tokio_rustls::TlsAcceptor::from(server);
    let pin = endpoint(Some(CART));
    let (client, _) =
        tokio::join!(connect(near, web, &pin, Some(Alpn::Http2), address()), acceptor.accept(far));
    client.err().expect("refused")
}

/// What our server says to an attacker's client.
async fn accept_from(cart: &Material, client: Arc<ClientConfig>, required: bool) -> HandshakeError {
    let (near, far) = duplex(1 << 16);
    let connector = tokio_rustls::TlsConnector::from(client);
    let tls = DownstreamTls { require_client_certificate: required, ..strict() };
    let (_, server) = tokio::join!(connector.connect(name(), near), accept(far, cart, &tls, address()));
    server.err().expect("refused")
}

fn certified(leaf: &Leaf) -> Arc<SingleCertAndKey> {
    let key = CertifiedKey::from_der(leaf.chain.clone(), leaf.key(), provider()).expect("a key");
    Arc::new(SingleCertAndKey::from(key))
}

/// All cipher suites, so that TLS 1.2 is possible for whoever wants it.
fn lax() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn server_config(leaf: &Leaf, versions: &[&'static rustls::SupportedProtocolVersion]) -> Arc<ServerConfig> {
    Arc::new(
        ServerConfig::builder_with_provider(lax())
            .with_protocol_versions(versions)
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(certified(leaf)),
    )
}

fn client_config(
    leaf: Option<&Leaf>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(lax())
        .with_protocol_versions(versions)
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    Arc::new(match leaf {
        Some(leaf) => builder.with_client_cert_resolver(certified(leaf)),
        None => builder.with_no_client_auth(),
    })
}

/// Believes every server.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

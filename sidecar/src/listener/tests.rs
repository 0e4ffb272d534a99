mod captured;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tulle_mesh::model::{
    Action, Authorization, DownstreamTls, Permission, Policy, Principal, StringMatch, Transport,
};

use super::Place;
use super::refusal::Refusal;
use super::testing::*;
use crate::config::OutboundPolicy;
use crate::snapshot::{Listener, Snapshot};
use crate::telemetry::metrics::Registry;
use crate::tls::testing::Authority;
use crate::worker::Worker;
use crate::worker::testing::{worker, worker_with};

const SERVICE: &str = "db.shop:5432";
const CART: &str = "spiffe://td/ns/shop/sa/cart";
const WEB: &str = "spiffe://td/ns/shop/sa/web";

#[test]
fn a_server_may_speak_first_where_only_bytes_are_expected() {
    on_a_worker(async {
        let (database, server) = server().await;
        let (_worker, mut client) =
            application(|metrics| listener(metrics, vec![TcpChain::to(&[database])])).await;
        let (mut accepted, _) = server.accept().await.expect("the sidecar connects at once");
        accepted.write_all(b"hello").await.expect("open");
        assert_eq!(&read(&mut client, 5).await, b"hello");
    });
}

#[test]
fn a_server_may_speak_first_where_http_is_possible_too() {
    on_a_worker(async {
        let (database, server) = server().await;
        let (_worker, mut client) = application(|metrics| detecting(metrics, database)).await;
        let (mut accepted, _) =
            server.accept().await.expect("the sidecar connects while the client is silent");
        accepted.write_all(b"220 ready\r\n").await.expect("open");
        assert_eq!(&read(&mut client, 11).await, b"220 ready\r\n");
        client.write_all(b"EHLO me\r\n").await.expect("open");
        assert_eq!(&read(&mut accepted, 9).await, b"EHLO me\r\n");
    });
}

#[test]
fn a_client_that_speaks_late_loses_nothing_and_uses_the_same_connection() {
    on_a_worker(async {
        let (database, server) = server().await;
        let (_worker, mut client) = application(|metrics| detecting(metrics, database)).await;
        // It has been taken for silent by now.
        let (mut accepted, _) =
            server.accept().await.expect("the sidecar connects while the client is silent");
        client.write_all(b"\x00\x01binary").await.expect("open");
        client.shutdown().await.expect("open");
        let mut all = Vec::new();
        accepted.read_to_end(&mut all).await.expect("an orderly end");
        assert_eq!(all, b"\x00\x01binary");
        accepted.write_all(b"answer").await.expect("open");
        drop(accepted);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("an orderly end");
        assert_eq!(answer, b"answer");
    });
}

#[test]
fn what_a_client_says_chooses_its_chain() {
    on_a_worker(async {
        let ((http, http_server), (tls, tls_server), (rest, rest_server)) =
            (server().await, server().await, server().await);
        let chains = |metrics: &Registry| {
            let chains = vec![
                TcpChain::to(&[http])
                    .when(|m| m.application_protocols = vec!["http/1.1".into(), "h2c".into()]),
                TcpChain::to(&[tls]).when(|m| {
                    m.transport = Some(Transport::Tls);
                    m.server_names = vec!["*.example.org".into()];
                }),
                TcpChain::to(&[rest]),
            ];
            listener(metrics, chains)
        };
        let hello = client_hello("www.example.org");
        for (said, server) in [
            (&b"GET / HTTP/1.1\r\n"[..], &http_server),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &http_server),
            (&hello, &tls_server),
            (&client_hello("www.example.com"), &rest_server),
            (b"\x00\x00", &rest_server),
        ] {
            let (_worker, mut client) = application(chains).await;
            client.write_all(said).await.expect("open");
            let (mut accepted, _) = server.accept().await.expect("its chain's server");
            assert_eq!(read(&mut accepted, said.len()).await, said);
        }
    });
}

#[test]
fn an_endpoint_that_refuses_is_passed_over_and_a_chain_without_any_other_resets() {
    on_a_worker(async {
        let (database, server) = server().await;
        let dead = refusing().await;
        for _ in 0..4 {
            let endpoints = [dead, database];
            let (_worker, mut client) =
                application(|metrics| listener(metrics, vec![TcpChain::to(&endpoints)])).await;
            client.write_all(b"x").await.expect("open");
            let (mut accepted, _) = server.accept().await.expect("the other endpoint");
            assert_eq!(&read(&mut accepted, 1).await, b"x");
        }
        let (_worker, mut client) =
            application(|metrics| listener(metrics, vec![TcpChain::to(&[dead])])).await;
        assert_eq!(end(&mut client).await, Err(ErrorKind::ConnectionReset));
    });
}

#[test]
fn a_reset_of_the_server_reaches_the_client_as_one() {
    on_a_worker(async {
        let (database, server) = server().await;
        let (_worker, mut client) =
            application(|metrics| listener(metrics, vec![TcpChain::to(&[database])])).await;
        let (accepted, _) = server.accept().await.expect("the sidecar connects");
        crate::io::Stream::from(accepted).reset();
        assert_eq!(end(&mut client).await, Err(ErrorKind::ConnectionReset));
    });
}

#[test]
fn a_destination_that_the_mesh_does_not_know_passes_only_where_any_may() {
    on_a_worker(async {
        let (outside, server) = server().await;
        for policy in [OutboundPolicy::RegistryOnly, OutboundPolicy::AllowAny] {
            let name: Arc<str> = outside.to_string().into();
            let mut snapshot = Snapshot::default();
            snapshot.absent.insert(name.clone());
            let (worker, _demands) = worker_with(policy, snapshot);
            let mut client = arrive(&worker, place(Role::Service(name))).await;
            client.write_all(b"\x00").await.expect("open");
            if policy == OutboundPolicy::RegistryOnly {
                assert_eq!(end(&mut client).await, Err(ErrorKind::ConnectionReset));
                assert_eq!(worker.refusals.value(Refusal::NoListener), 1);
            } else {
                let (mut accepted, _) = server.accept().await.expect("the first connection");
                assert_eq!(&read(&mut accepted, 1).await, b"\x00");
            }
        }
    });
}

#[test]
fn nothing_is_forwarded_before_the_configuration_of_an_inbound_port_has_arrived() {
    on_a_worker(async {
        let (worker, _demands) = worker(Snapshot::default());
        let mut client = arrive(&worker, place(Role::Inbound)).await;
        assert_eq!(end(&mut client).await, Err(ErrorKind::ConnectionReset));
        assert_eq!(worker.refusals.value(Refusal::NoListener), 1);
    });
}

#[test]
fn strict_mutual_tls_lets_members_in_and_nobody_else() {
    on_a_worker(async {
        let (app, server) = server().await;
        let authority = Authority::new("mesh");
        let (worker, address) = strict(app, &authority, Vec::new()).await;

        let mut plain = connect(address).await;
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("open");
        assert_eq!(end(&mut plain).await, Err(ErrorKind::ConnectionReset));
        assert_eq!(worker.refusals.value(Refusal::NoChain), 1);

        let stranger = Authority::new("another mesh").material(CART);
        let mut tls = mesh_client(address, &stranger).await;
        if let Ok(stream) = &mut tls {
            // With TLS 1.3 a client learns of its refusal only by the next read.
            assert!(stream.read_u8().await.is_err());
        }
        // Whichever end refuses first, the server's handshake fails too.
        while worker.refusals.value(Refusal::Handshake) == 0 {
            tokio::task::yield_now().await;
        }

        let mut member = mesh_client(address, &authority.material(CART)).await.expect("a member");
        member.write_all(b"hello").await.expect("open");
        let (mut accepted, _) = server.accept().await.expect("the first connection that got so far");
        assert_eq!(&read(&mut accepted, 5).await, b"hello");
        accepted.write_all(b"answer").await.expect("open");
        let mut answer = [0; 6];
        member.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"answer");
        // Half-close goes through TLS in both directions.
        member.shutdown().await.expect("open");
        assert_eq!(end(&mut accepted).await, Ok(()));
    });
}

#[test]
fn a_server_that_speaks_first_is_not_heard_in_place_of_a_late_handshake() {
    on_a_worker(async {
        let (app, server) = server().await;
        let authority = Authority::new("mesh");
        let (worker, _) = worker(Snapshot::default());
        let (socket, place) = place(Role::Inbound);
        let address = place.address;
        let permissive = |metrics: &Registry| listener(metrics, vec![mesh_chain(app), TcpChain::to(&[app])]);
        let mut snapshot = inbound(address, permissive(&worker.telemetry.metrics));
        snapshot.tls = Some(authority.material("spiffe://td/ns/shop/sa/db"));
        worker.install(Arc::new(snapshot));
        accept(&worker, (socket, place));

        let mut member = loop {
            let member = connect(address).await;
            let (mut unused, _) =
                server.accept().await.expect("the sidecar connects while the client is silent");
            unused.write_all(b"220 ready").await.expect("open");
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            match handshake(member, address, &authority.material(CART)).await {
                // On a machine with too much to do it may be later still; sidecars connect again, too.
                Err(error) if error.reason == crate::tls::Reason::NotTls => {}
                member => break member.expect("a member"),
            }
        };
        let (mut accepted, _) = server.accept().await.expect("it has a connection of its own");
        accepted.write_all(b"220 ready").await.expect("open");
        let mut greeting = [0; 9];
        member.read_exact(&mut greeting).await.expect("a greeting");
        assert_eq!(&greeting, b"220 ready");

        // Who stays silent is no member, and hears the server a little later: by at most 50 ms, and whatever time the
        // machine has for it.
        let mut waits = Vec::new();
        for _ in 0..10 {
            let begun = std::time::Instant::now();
            let mut plain = connect(address).await;
            let (mut accepted, _) =
                server.accept().await.expect("the sidecar connects while the client is silent");
            accepted.write_all(b"220 ready").await.expect("open");
            assert_eq!(&read(&mut plain, 9).await, b"220 ready");
            waits.push(begun.elapsed());
        }
        assert!(waits.iter().any(|wait| wait.as_millis() < 500), "{waits:?}");
    });
}

#[test]
fn a_policy_decides_before_the_first_byte_reaches_the_application() {
    on_a_worker(async {
        let (app, server) = server().await;
        let authority = Authority::new("mesh");
        let only_web = Authorization {
            name: "test".into(),
            action: Action::Allow,
            policies: vec![Policy {
                name: "shop/web#0".into(),
                permissions: vec![Permission::Any],
                principals: vec![Principal::Authenticated(Some(StringMatch::exact(WEB)))],
            }],
            audit_only: false,
        };
        let (worker, address) = strict(app, &authority, vec![only_web]).await;

        let mut cart = mesh_client(address, &authority.material(CART)).await.expect("a member");
        cart.write_all(b"hello").await.expect("open");
        assert!(cart.read_u8().await.is_err());
        assert_eq!(worker.refusals.value(Refusal::Denied), 1);

        let mut web = mesh_client(address, &authority.material(WEB)).await.expect("a member");
        web.write_all(b"hello").await.expect("open");
        let (mut accepted, _) = server.accept().await.expect("the only connection that may");
        assert_eq!(&read(&mut accepted, 5).await, b"hello");
    });
}

#[test]
fn a_taken_address_is_named_with_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound");
    let message = super::place::listen("admin", address).expect_err("it is taken").to_string();
    for part in ["admin: ", &address.to_string(), "in use", "port 0"] {
        assert!(message.contains(part), "{part:?} in {message:?}");
    }
}

/// A client's connection to a local port of the service, under a listener.
async fn application(listener: impl FnOnce(&Registry) -> Listener) -> (Rc<Worker>, TcpStream) {
    let (worker, _) = worker(Snapshot::default());
    let listener = listener(&worker.telemetry.metrics);
    worker.install(Arc::new(outbound(SERVICE, listener)));
    let client = arrive(&worker, place(Role::Service(SERVICE.into()))).await;
    (worker, client)
}

/// An inbound port that takes mesh TLS only, before an application of bytes.
async fn strict(
    app: SocketAddr,
    authority: &Authority,
    authorization: Vec<Authorization>,
) -> (Rc<Worker>, SocketAddr) {
    let (worker, _) = worker(Snapshot::default());
    let (socket, place) = place(Role::Inbound);
    let address = place.address;
    let chain = TcpChain { authorization, ..mesh_chain(app) };
    let mut snapshot = inbound(address, listener(&worker.telemetry.metrics, vec![chain]));
    snapshot.tls = Some(authority.material("spiffe://td/ns/shop/sa/db"));
    worker.install(Arc::new(snapshot));
    accept(&worker, (socket, place));
    (worker, address)
}

/// A chain for mesh TLS, before an application of bytes.
fn mesh_chain(app: SocketAddr) -> TcpChain {
    let tls = DownstreamTls { require_client_certificate: true, alpn: Vec::new() };
    TcpChain { tls: Some(tls), ..TcpChain::to(&[app]).when(|m| m.transport = Some(Transport::Tls)) }
}

/// A listener on which HTTP and bytes are possible; both would go to the same place.
fn detecting(metrics: &Registry, server: SocketAddr) -> Listener {
    let http =
        TcpChain::to(&[server]).when(|m| m.application_protocols = vec!["http/1.1".into(), "h2c".into()]);
    listener(metrics, vec![http, TcpChain::to(&[server])])
}

async fn arrive(worker: &Rc<Worker>, at: (std::net::TcpListener, Arc<Place>)) -> TcpStream {
    let address = at.1.address;
    accept(worker, at);
    connect(address).await
}

async fn mesh_client(
    address: SocketAddr,
    material: &crate::tls::Material,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, crate::tls::HandshakeError> {
    handshake(connect(address).await, address, material).await
}

async fn handshake(
    socket: TcpStream,
    address: SocketAddr,
    material: &crate::tls::Material,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, crate::tls::HandshakeError> {
    let endpoint = crate::balance::EndpointTls {
        server_name: "outbound_.5432_._.db.shop".into(),
        identity: None,
        subject_alt_names: Arc::default(),
    };
    crate::tls::connect(socket, material, &endpoint, None, address).await.map(|connected| connected.stream)
}

async fn read(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).await.expect("so many bytes");
    bytes
}

/// How the other end ended, after whatever it said.
async fn end(stream: &mut TcpStream) -> Result<(), ErrorKind> {
    stream.read_to_end(&mut Vec::new()).await.map(drop).map_err(|error| error.kind())
}

fn client_hello(name: &str) -> Vec<u8> {
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).expect("a host name");
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).expect("valid");
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes).expect("memory");
    }
    bytes
}

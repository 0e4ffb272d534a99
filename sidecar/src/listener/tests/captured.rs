//! Captured connections, from the moment on at which it is known where they were going. That the kernel tells so is for
//! hosts with redirection to show.

use std::collections::HashSet;

use futures_util::FutureExt;
use tokio::net::TcpListener;

use super::*;
use crate::listener::connection::Accepted;
use crate::listener::serve;
use crate::worker::Load;

#[test]
fn what_the_mesh_does_not_know_goes_on_as_it_is_and_nothing_sent_meanwhile_is_lost() {
    on_a_worker(async {
        let (outside, server) = server().await;
        let (worker, mut demands) = worker(Snapshot::default());
        let mut client = captured(&worker, Role::CapturedOutbound, outside).await;
        client.write_all(b"sent before the answer").await.expect("open");
        let asked = demands.recv().await.expect("the worker lives");
        assert_eq!(*asked.name, *outside.to_string());
        assert!(server.accept().now_or_never().is_none(), "nothing goes out before the answer");
        worker.install(Arc::new(absent(outside)));
        let (mut accepted, _) = server.accept().await.expect("it passes");
        assert_eq!(&read(&mut accepted, 22).await, b"sent before the answer");
        accepted.write_all(b"hello").await.expect("open");
        assert_eq!(&read(&mut client, 5).await, b"hello");
        // The next one need not ask.
        let _client = captured(&worker, Role::CapturedOutbound, outside).await;
        let (mut accepted, _) = server.accept().await.expect("it passes");
        accepted.write_all(b"a server that speaks first").await.expect("open");
        assert!(demands.try_recv().is_err());
    });
}

#[test]
fn what_the_control_plane_does_not_speak_about_goes_nowhere() {
    on_a_worker(async {
        let (outside, server) = server().await;
        let (worker, _demands) = worker(Snapshot::default());
        let mut client = captured(&worker, Role::CapturedOutbound, outside).await;
        client.write_all(b"\x00secret").await.expect("open");
        assert_eq!(end(&mut client).await, Err(ErrorKind::ConnectionReset));
        assert_eq!(worker.refusals.value(Refusal::Unavailable), 1);
        assert!(server.accept().now_or_never().is_none());
    });
}

#[test]
fn only_what_the_mesh_knows_gets_out_where_policy_says_so() {
    on_a_worker(async {
        let (outside, server) = server().await;
        let (worker, _demands) = worker_with(OutboundPolicy::RegistryOnly, absent(outside));
        let mut client = captured(&worker, Role::CapturedOutbound, outside).await;
        client.write_all(b"\x00\x01").await.expect("open");
        assert_eq!(end(&mut client).await, Err(ErrorKind::ConnectionReset));
        assert_eq!(worker.refusals.value(Refusal::UnknownDestination), 1);
        // Who speaks HTTP is told.
        let mut client = captured(&worker, Role::CapturedOutbound, outside).await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("open");
        let head = read(&mut client, 12).await;
        assert!(head.starts_with(b"HTTP/1.1 50"), "{}", String::from_utf8_lossy(&head));
        assert_eq!(worker.refusals.value(Refusal::UnknownDestination), 2);
        assert!(server.accept().now_or_never().is_none());
    });
}

#[test]
fn an_address_that_the_mesh_knows_leads_where_its_listener_says() {
    on_a_worker(async {
        let (endpoint, server) = server().await;
        let (worker, _demands) = worker(Snapshot::default());
        let known = listener(&worker.telemetry.metrics, vec![TcpChain::to(&[endpoint])]);
        worker.install(Arc::new(outbound("10.96.0.10:5432", known)));
        let virtual_address = "10.96.0.10:5432".parse().expect("valid");
        let mut client = captured(&worker, Role::CapturedOutbound, virtual_address).await;
        client.write_all(b"x").await.expect("open");
        let (mut accepted, _) = server.accept().await.expect("the endpoint is connected to");
        assert_eq!(&read(&mut accepted, 1).await, b"x");
    });
}

#[test]
fn peers_reach_the_port_that_they_dialled_by_the_chain_that_is_for_it() {
    on_a_worker(async {
        let (declared, open) = server().await;
        let (other, closed) = server().await;
        let (worker, _) = worker(Snapshot::default());
        // No endpoints: to wherever the peer was going.
        let anyone = TcpChain::to(&[]).when(|m| m.destination_port = Some(declared.port()));
        let mut members = TcpChain::to(&[]).when(|m| m.transport = Some(Transport::Tls));
        members.tls = Some(DownstreamTls { require_client_certificate: true, alpn: Vec::new() });
        let listener = listener(&worker.telemetry.metrics, vec![anyone, members]);
        let mut snapshot = Snapshot::default();
        snapshot.captured.insert(declared.ip(), Arc::new(listener));
        worker.install(Arc::new(snapshot));

        let mut peer = captured(&worker, Role::CapturedInbound, declared).await;
        peer.write_all(b"x").await.expect("open");
        let (mut accepted, _) = open.accept().await.expect("the application is connected to");
        assert_eq!(&read(&mut accepted, 1).await, b"x");

        let mut peer = captured(&worker, Role::CapturedInbound, other).await;
        peer.write_all(b"plaintext").await.expect("open");
        assert_eq!(end(&mut peer).await, Err(ErrorKind::ConnectionReset));
        assert_eq!(worker.refusals.value(Refusal::NoChain), 1);
        assert!(closed.accept().now_or_never().is_none());
    });
}

#[test]
fn who_connects_straight_to_a_port_for_captured_connections_is_refused() {
    on_a_worker(async {
        let (worker, _demands) = worker(Snapshot::default());
        for (role, refused) in [(Role::CapturedOutbound, 1), (Role::CapturedInbound, 2)] {
            let mut client = arrive(&worker, place(role)).await;
            assert_eq!(end(&mut client).await, Err(ErrorKind::ConnectionReset));
            assert_eq!(worker.refusals.value(Refusal::Loop), refused);
        }
    });
}

/// A client's connection that was going to `destination` when it was redirected to a worker.
async fn captured(worker: &Rc<Worker>, role: Role, destination: SocketAddr) -> TcpStream {
    let (socket, place) = place(role);
    let (client, accepted) =
        tokio::join!(connect(place.address), async { TcpListener::from_std(socket)?.accept().await });
    let (accepted, peer) = accepted.expect("it connects");
    serve(worker, Accepted::new(accepted, peer, place, destination), Load::default().open());
    client
}

fn absent(address: SocketAddr) -> Snapshot {
    Snapshot { absent: HashSet::from([address.to_string().into()]), ..Snapshot::default() }
}

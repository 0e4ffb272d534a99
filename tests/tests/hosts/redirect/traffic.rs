//! Which connections the rules redirect, and which not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tulle_tests::hosts::APP_UID;
use tulle_tests::{LIMIT, output_of};

use super::{Client, LOOPBACK, SIDECAR_UID, Scene, connect, sh};

/// Addresses to which no host answers: those of services.
const UNROUTED: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10))];

#[tokio::test]
async fn nftables_redirect_what_is_for_the_sidecar_and_nothing_else() {
    let scene = Scene::new();
    scene.redirect(&[]).await;
    check_traffic(&scene).await;
}

#[tokio::test]
async fn iptables_redirect_the_same() {
    let scene = Scene::new();
    // The kernel's rules of the other mode go.
    scene.redirect(&["--outbound-port", "15999"]).await;
    scene.redirect(&["--mode", "iptables"]).await;
    assert!(!scene.rules().await.to_string().contains(r#""name":"tulle""#));
    check_traffic(&scene).await;
    scene.redirect(&["--mode", "iptables", "--cleanup"]).await;
    check_no_traffic(&scene).await;
}

async fn check_traffic(scene: &Scene) {
    let both = scene.here.addresses().into_iter().zip(scene.there.addresses());
    for (((here, there), unrouted), loopback) in both.zip(UNROUTED).zip(LOOPBACK) {
        // From other hosts, but for the ports of the sidecar itself. What goes straight to a port of the sidecar is
        // known by it.
        for port in [8080, 15006, 15001] {
            scene.expect(Client::There, here, port, "inbound").await;
        }
        scene.expect(Client::There, here, 15020, "app").await;
        // To other hosts, but from the sidecar.
        for client in [Client::App, Client::Root] {
            scene.expect(client, there, 8080, "outbound").await;
            scene.expect(client, unrouted, 80, "outbound").await;
        }
        scene.expect(Client::Sidecar, there, 8080, "remote").await;
        // To this host.
        for client in [Client::App, Client::Root, Client::Sidecar] {
            scene.expect(client, here, 8080, "app").await;
            scene.expect(client, loopback, 8080, "app").await;
        }
        // Probes, of every user.
        for client in [Client::App, Client::Root, Client::Sidecar] {
            scene.expect(client, loopback, 15009, "outbound").await;
            scene.expect(client, loopback, 15010, "inbound").await;
        }
    }
}

async fn check_no_traffic(scene: &Scene) {
    for (here, there) in scene.here.addresses().into_iter().zip(scene.there.addresses()) {
        scene.expect(Client::There, here, 8080, "app").await;
        scene.expect(Client::App, there, 8080, "remote").await;
    }
}

#[tokio::test]
async fn what_is_skipped_is_reached_directly() {
    for mode in ["nftables", "iptables"] {
        let scene = Scene::new();
        let ports =
            ["--mode", mode, "--skip-inbound-ports", "22,8000-8010", "--skip-outbound-ports", "8005,9000"];
        scene.redirect(&ports).await;
        for (here, there) in scene.here.addresses().into_iter().zip(scene.there.addresses()) {
            for (port, inbound, outbound) in
                [(8000, "app", "outbound"), (8005, "app", "remote"), (8080, "inbound", "outbound")]
            {
                scene.expect(Client::There, here, port, inbound).await;
                scene.expect(Client::App, there, port, outbound).await;
            }
        }
        // A subnet and a single address, each of one family; the other family is still redirected.
        let (there_v4, there_v6) = (scene.there.v4.to_string(), scene.there.v6.to_string());
        for (skip, skipped) in [("10.77.0.0/16", 0), (&there_v4, 0), ("fd77::/64", 1), (&there_v6, 1)] {
            scene.redirect(&["--mode", mode, "--skip-subnets", &format!("192.0.2.0/24,{skip}")]).await;
            for index in [0, 1] {
                let (here, there) = (scene.here.addresses()[index], scene.there.addresses()[index]);
                let (inbound, outbound) =
                    if index == skipped { ("app", "remote") } else { ("inbound", "outbound") };
                scene.expect(Client::There, here, 8080, inbound).await;
                scene.expect(Client::App, there, 8080, outbound).await;
                scene.expect(Client::App, UNROUTED[index], 80, "outbound").await;
            }
        }
        // All of one family, and the ports of the other.
        scene
            .redirect(&["--mode", mode, "--skip-subnets", "0.0.0.0/0", "--skip-inbound-ports", "1-65535"])
            .await;
        let ([here_v4, here_v6], [there_v4, there_v6]) = (scene.here.addresses(), scene.there.addresses());
        scene.expect(Client::There, here_v4, 8080, "app").await;
        scene.expect(Client::App, there_v4, 8080, "remote").await;
        scene.expect(Client::There, here_v6, 8080, "app").await;
        scene.expect(Client::App, there_v6, 8080, "outbound").await;
    }
}

#[tokio::test]
async fn the_sidecar_is_known_by_its_user_or_group() {
    let scene = Scene::new();
    let there = scene.there.addresses()[0];
    scene.redirect(&["--uid", "1000"]).await;
    scene.expect(Client::App, there, 8080, "remote").await;
    scene.expect(Client::Sidecar, there, 8080, "outbound").await;
    // The harness gives each user the group of the same number.
    for mode in ["nftables", "iptables"] {
        scene.redirect(&["--mode", mode, "--uid", "7", "--gid", &SIDECAR_UID.to_string()]).await;
        scene.expect(Client::App, there, 8080, "outbound").await;
        scene.expect(Client::Sidecar, there, 8080, "remote").await;
    }
}

#[tokio::test]
async fn what_is_only_forwarded_stays_as_it_is() {
    let scene = Scene::new();
    let beyond = scene.network.host("beyond");
    let away = ["10.88.0.1", "fd88::1"];
    for (index, setting) in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"].into_iter().enumerate() {
        let (here, last) = (scene.here.addresses()[index], beyond.addresses()[index]);
        let script = format!("echo 1 > /proc/sys/net/{setting}; ip route add {} via {last}", away[index]);
        sh(&scene.here, &script).await;
        sh(&scene.there, &format!("ip route add {} via {here}", away[index])).await;
        sh(&beyond, &format!("ip addr add {} dev lo", away[index])).await;
    }
    for mode in ["nftables", "iptables"] {
        scene.redirect(&["--mode", mode]).await;
        for away in away {
            let address: IpAddr = away.parse().expect("an address");
            let listener = beyond.listen((address, 8080)).expect("it is its own");
            let greet = async {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                stream.write_all(b"beyond").await.expect("the client waits");
            };
            let (answer, ()) = tokio::join!(connect(&scene.there, APP_UID, away, 8080), greet);
            assert_eq!(answer, "beyond", "{away}");
        }
    }
}

/// The original destination would come without the interface that tells which link is meant.
#[tokio::test]
async fn link_local_addresses_are_reached_directly() {
    let mut scene = Scene::new();
    sh(&scene.here, "ip addr add fe80::a/64 dev eth0 nodad").await;
    sh(&scene.there, "ip addr add fe80::b/64 dev eth0 nodad").await;
    scene.answer("remote", Ipv6Addr::UNSPECIFIED.into(), 8081);
    for mode in ["nftables", "iptables"] {
        scene.redirect(&["--mode", mode]).await;
        let answer = connect(&scene.here, APP_UID, "fe80::b%eth0", 8081).await;
        assert!(answer.starts_with("remote [fe80::b"), "{answer}");
    }
}

#[tokio::test]
async fn dns_goes_to_the_resolver_from_all_but_the_sidecar() {
    let mut scene = Scene::new();
    for ip in LOOPBACK {
        scene.answer("resolver", ip, 15053);
    }
    for mode in ["nftables", "iptables"] {
        scene.redirect(&["--mode", mode, "--dns-port", "15053", "--skip-subnets", "10.77.0.0/16"]).await;
        for ((loopback, there), unrouted) in LOOPBACK.into_iter().zip(scene.there.addresses()).zip(UNROUTED) {
            let resolver = scene.here.udp((loopback, 15053)).expect("it is free");
            let server = scene.there.udp((there, 53)).expect("it is free");
            // Also of a server on loopback, of a skipped subnet, and one that is not there.
            for name_server in [loopback, there, unrouted] {
                scene.expect(Client::App, name_server, 53, "resolver").await;
                let client = scene.here.udp((unspecified(loopback), 0)).expect("a port");
                query(&client, &resolver, SocketAddr::new(name_server, 53)).await;
            }
            // A packet of the sidecar's user goes to the true server.
            let mut command = scene.here.command(SIDECAR_UID, "bash");
            command.args(["-c", "echo -n question > /dev/udp/$0/53", &there.to_string()]);
            assert!(output_of(command).await.status.success());
            assert_eq!(receive(&server).await.0, b"question");
        }
    }
}

fn unspecified(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// The resolver gets the question, and the client an answer that seems to come from whom it asked.
async fn query(client: &UdpSocket, resolver: &UdpSocket, asked: SocketAddr) {
    client.send_to(b"question", asked).await.expect("it is sent");
    let (question, from) = receive(resolver).await;
    assert_eq!(question, b"question");
    resolver.send_to(b"answer", from).await.expect("it is sent");
    assert_eq!(receive(client).await, (b"answer".to_vec(), asked));
}

async fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 64];
    let received = timeout(LIMIT, socket.recv_from(&mut buffer)).await.expect("a packet in time");
    let (length, from) = received.expect("a packet");
    (buffer[..length].to_vec(), from)
}

/// Nobody looked at their packets before, so that to the kernel's table of connections the next one is the first.
#[tokio::test]
async fn connections_that_are_older_than_the_rules_stay_as_they_are() {
    for mode in ["nftables", "iptables"] {
        let scene = Scene::new();
        let mut pairs = Vec::new();
        for (client, server) in [(&scene.here, &scene.there), (&scene.there, &scene.here)] {
            for ip in server.addresses() {
                let listener = server.listen((ip, 8090)).expect("it is free");
                let near = client.connect((ip, 8090)).await.expect("it listens");
                pairs.push((near, listener.accept().await.expect("a connection").0));
            }
        }
        scene.redirect(&["--mode", mode]).await;
        for (near, far) in &mut pairs {
            pass(near, far).await;
            pass(far, near).await;
        }
        for (here, there) in scene.here.addresses().into_iter().zip(scene.there.addresses()) {
            scene.expect(Client::There, here, 8080, "inbound").await;
            scene.expect(Client::App, there, 8080, "outbound").await;
        }
    }
}

/// What one end writes, the other reads.
async fn pass(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"still here").await.expect("it is open");
    let mut read = [0; 10];
    timeout(LIMIT, to.read_exact(&mut read)).await.expect("in time").expect("it is open");
    assert_eq!(&read, b"still here");
}

/// While rules are put in place of others, no connection slips through between, and none that is open notices.
#[tokio::test]
async fn rules_are_replaced_in_one_step() {
    let scene = Scene::new();
    scene.redirect(&["--outbound-port", "15002"]).await;
    let listener = scene.here.listen((Ipv4Addr::LOCALHOST, 15002)).expect("it is free");
    let target = (scene.there.v4, 8080);
    let mut open = scene.here.connect(target).await.expect("it is redirected");
    let (mut end, _) = listener.accept().await.expect("it is redirected");
    scene.redirect(&[]).await;
    let replace = async {
        for round in 0..20 {
            scene.redirect(&["--skip-outbound-ports", &format!("{}", 1000 + round)]).await;
        }
    };
    tokio::pin!(replace);
    let (mut connections, mut done) = (0, false);
    while !done || connections < 50 {
        tokio::select! {
            () = &mut replace, if !done => done = true,
            name = name_at(scene.here.connect(target).await.expect("someone answers")) => {
                assert_eq!(name, "outb");
                connections += 1;
            }
        }
    }
    pass(&mut end, &mut open).await;
}

async fn name_at(mut stream: TcpStream) -> String {
    let mut name = String::new();
    let read = timeout(LIMIT, (&mut stream).take(4).read_to_string(&mut name)).await;
    read.expect("an answer in time").expect("a text");
    name
}

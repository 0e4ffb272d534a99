//! Lookups against a small DNS server on loopback.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::*;

/// The A records of every name, with a TTL of a second; `None`: SERVFAIL.
type Zone = Arc<Mutex<Option<Vec<Ipv4Addr>>>>;

async fn server(zone: Zone) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let address = socket.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut query = [0; 512];
        while let Ok((len, client)) = socket.recv_from(&mut query).await {
            let reply = answer(&query[..len], zone.lock().expect("no panic").as_deref());
            socket.send_to(&reply, client).await.expect("sends");
        }
    });
    address
}

/// The question comes back with its answers (RFC 1035, section 4).
fn answer(query: &[u8], zone: Option<&[Ipv4Addr]>) -> Vec<u8> {
    let end_of_name = 12 + query[12..].iter().position(|b| *b == 0).expect("a name") + 1;
    let question = &query[12..end_of_name + 4];
    let is_a = query[end_of_name..end_of_name + 2] == [0, 1];
    let records = zone.filter(|_| is_a).unwrap_or_default();
    let code = if zone.is_some() { 0x80 } else { 0x82 };
    let mut reply =
        vec![query[0], query[1], 0x81, code, 0, 1, 0, u8::try_from(records.len()).expect("few"), 0, 0, 0, 0];
    reply.extend_from_slice(question);
    for record in records {
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        reply.extend_from_slice(&record.octets());
    }
    reply
}

fn resolver(server: SocketAddr) -> Resolver {
    let mut connection = ConnectionConfig::udp();
    connection.port = server.port();
    let mut name_server = NameServerConfig::udp(server.ip());
    name_server.connections = vec![connection];
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![name_server]);
    Resolver::build(TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()))
        .expect("builds")
}

fn ips(addresses: &[[u8; 4]]) -> Vec<Ipv4Addr> {
    addresses.iter().map(|a| Ipv4Addr::from(*a)).collect()
}

async fn next(watched: &mut Watched) {
    timeout(Duration::from_secs(60), watched.changed()).await.expect("news");
}

#[tokio::test]
async fn a_watched_name_follows_its_records_and_survives_a_broken_server() {
    let zone: Zone = Arc::new(Mutex::new(Some(ips(&[[192, 0, 2, 2], [192, 0, 2, 1]]))));
    let mut watched = Watched::new(resolver(server(Arc::clone(&zone)).await));
    let host: Arc<str> = "stock.example.".into();
    watched.watch(&BTreeSet::from([Arc::clone(&host)]));
    assert!(!watched.is_settled(&host));
    next(&mut watched).await;
    let first = watched.known(&host).expect("resolved").clone();
    assert_eq!(first.all, [IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])]);

    // One address goes, another comes: the one that was chosen stays as long as it is there.
    let stays: Ipv4Addr = first.one.to_string().parse().expect("IPv4");
    *zone.lock().expect("no panic") = Some(vec![[192, 0, 2, 9].into(), stays]);
    next(&mut watched).await;
    let second = watched.known(&host).expect("resolved").clone();
    assert_eq!(second.one, first.one);
    assert_eq!(second.all.len(), 2);

    // While the server fails, nothing changes.
    *zone.lock().expect("no panic") = None;
    assert!(timeout(Duration::from_secs(3), watched.changed()).await.is_err());
    assert_eq!(watched.known(&host), Some(&second));

    watched.watch(&BTreeSet::new());
    assert_eq!(watched.known(&host), None);
}

#[tokio::test]
async fn a_name_that_fails_is_settled_without_addresses() {
    let mut watched = Watched::new(resolver(server(Arc::new(Mutex::new(None))).await));
    let host: Arc<str> = "nowhere.example.".into();
    watched.watch(&BTreeSet::from([Arc::clone(&host)]));
    next(&mut watched).await;
    assert!(watched.is_settled(&host));
    assert_eq!(watched.known(&host), None);
}

#[tokio::test]
async fn workers_look_names_up_on_the_control_thread() {
    let zone = Arc::new(Mutex::new(Some(ips(&[[192, 0, 2, 5]]))));
    let (lookups, questions) = Lookups::channel();
    let task = tokio::spawn(serve(resolver(server(Arc::clone(&zone)).await), questions));
    assert_eq!(lookups.resolve("api.example.").await, Ok(vec![IpAddr::from([192, 0, 2, 5])]));
    assert_eq!(lookups.resolve("::1").await, Ok(vec![IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16])]));
    *zone.lock().expect("no panic") = Some(Vec::new());
    let error = lookups.resolve("empty.example.").await.expect_err("no address");
    assert!(error.to_string().contains("empty.example."), "{error}");
    drop(lookups);
    timeout(Duration::from_secs(60), task).await.expect("ends with its last worker").expect("no panic");
}

#[tokio::test]
async fn the_hosts_file_is_honoured() {
    let answer = Resolver::new(None).expect("a resolver").resolve("localhost").await.expect("resolves");
    assert!(answer.addresses.iter().all(IpAddr::is_loopback), "{answer:?}");
}

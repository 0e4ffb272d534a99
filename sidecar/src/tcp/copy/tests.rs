use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};

use super::*;

#[tokio::test]
async fn each_direction_ends_on_its_own() {
    let (mut client, mut downstream) = pair().await;
    let (mut upstream, mut server) = pair().await;
    let relay = tokio::spawn(async move { relay(&mut downstream, &mut upstream, Vec::new(), None).await });

    client.write_all(b"all I have to say").await.expect("open");
    client.shutdown().await.expect("open");
    let mut said = String::new();
    server.read_to_string(&mut said).await.expect("the client's end is an orderly one");
    assert_eq!(said, "all I have to say");

    server.write_all(b"an answer, much later").await.expect("open");
    drop(server);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("so is the server's");
    assert_eq!(answer, "an answer, much later");

    let relayed = relay.await.expect("no panic");
    assert!(matches!(relayed.end, End::Closed), "{relayed:?}");
    assert_eq!((relayed.forward, relayed.back), (17, 21));
}

#[tokio::test]
async fn many_bytes_arrive_whole_through_a_slow_reader() {
    let (mut client, mut downstream) = pair().await;
    let (mut upstream, mut server) = pair().await;
    let relay = tokio::spawn(async move { relay(&mut downstream, &mut upstream, Vec::new(), None).await });
    let sent: Vec<u8> = (0..4_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        client.write_all(&sent).await.expect("open");
        client.shutdown().await.expect("open");
        client
    });
    let mut got = Vec::new();
    let mut part = [0; 1000];
    loop {
        let len = server.read(&mut part).await.expect("open");
        if len == 0 {
            break;
        }
        got.extend_from_slice(&part[..len]);
    }
    assert!(got == expected, "{} of {} bytes, or other ones", got.len(), expected.len());
    drop(server);
    writer.await.expect("no panic");
    assert_eq!(relay.await.expect("no panic").forward, 4_000_000);
}

#[tokio::test]
async fn a_side_that_takes_nothing_holds_up_the_other() {
    let (mut client, mut downstream) = duplex(1000);
    let (mut upstream, mut server) = duplex(1000);
    let relay = tokio::spawn(async move { relay(&mut downstream, &mut upstream, Vec::new(), None).await });
    let mut taken = 0;
    let block = vec![7; 100_000];
    // Writes as much as it can until nothing moves any more.
    while let Ok(Ok(len)) = tokio::time::timeout(Duration::from_millis(100), client.write(&block)).await {
        taken += len;
    }
    assert!(taken <= 3000 + SCRATCH_SIZE, "{taken} bytes were taken from the client");
    client.shutdown().await.expect("open");
    let mut got = Vec::new();
    server.read_to_end(&mut got).await.expect("open");
    assert_eq!(got.len(), taken);
    drop((client, server));
    relay.await.expect("no panic");
}

#[tokio::test]
async fn only_a_relay_on_which_nothing_moves_is_idle() {
    const IDLE: Duration = Duration::from_millis(500);
    let (mut client, mut downstream) = duplex(100);
    let (mut upstream, mut server) = duplex(100);
    let relay =
        tokio::spawn(async move { relay(&mut downstream, &mut upstream, Vec::new(), Some(IDLE)).await });
    tokio::time::sleep(IDLE / 2).await;
    let moved = Instant::now();
    client.write_all(b"x").await.expect("open");
    assert_eq!(server.read_u8().await.expect("a byte"), b'x');
    let relayed = relay.await.expect("no panic");
    assert!(matches!(relayed.end, End::Idle), "{relayed:?}");
    assert!(moved.elapsed() >= IDLE, "it ended {:?} after the last byte", moved.elapsed());
}

#[tokio::test]
async fn a_reset_names_the_side_that_it_came_from() {
    let (client, mut downstream) = pair().await;
    let (mut upstream, _server) = pair().await;
    let first = tokio::spawn(async move { relay(&mut downstream, &mut upstream, Vec::new(), None).await });
    crate::io::Stream::from(client).reset();
    let relayed = first.await.expect("no panic");
    assert!(
        matches!(&relayed.end, End::First(e) if e.kind() == io::ErrorKind::ConnectionReset),
        "{relayed:?}"
    );

    let (_client, mut downstream) = pair().await;
    let (mut upstream, server) = pair().await;
    let second = tokio::spawn(async move { relay(&mut downstream, &mut upstream, Vec::new(), None).await });
    crate::io::Stream::from(server).reset();
    let relayed = second.await.expect("no panic");
    assert!(
        matches!(&relayed.end, End::Second(e) if e.kind() == io::ErrorKind::ConnectionReset),
        "{relayed:?}"
    );
}

#[test]
fn a_relay_stays_small() {
    let (mut first, mut second) = (tokio::io::empty(), tokio::io::empty());
    let size = size_of_val(&relay(&mut first, &mut second, Vec::new(), None));
    assert!(size <= 512, "{size} bytes for each connection");
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
    let client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
    (client, listener.accept().await.expect("a client").0)
}

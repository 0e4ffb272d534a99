use std::net::SocketAddr;

use proptest::prelude::*;
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
async fn what_comes_in_bulk_between_sockets_goes_through_the_kernel_and_its_pipe_is_given_back() {
    let (mut client, mut downstream) = pair().await;
    let (mut upstream, mut server) = pair().await;
    let relay =
        tokio::spawn(async move { relay(&mut downstream, &mut upstream, b"220 hello".to_vec(), None).await });
    let mut greeting = [0; 9];
    client.read_exact(&mut greeting).await.expect("what was said before");
    assert_eq!(&greeting, b"220 hello");
    let sent = pattern(0, BULK_SIZE);
    let (said, got) = tokio::join!(client.write_all(&sent), async {
        let mut got = vec![0; BULK_SIZE];
        server.read_exact(&mut got).await.map(|_| got)
    });
    said.expect("open");
    assert!(got.expect("open") == sent, "the bytes changed on their way");
    // It is idle by now or a moment later, and the runtime has this one thread.
    while crate::tcp::splice::spare() == 0 {
        tokio::task::yield_now().await;
    }
    drop((client, server));
    let relayed = relay.await.expect("no panic");
    assert_eq!((relayed.forward, relayed.back), (BULK_SIZE as u64, 9));
    assert!(relayed.spliced > relayed.forward / 2, "{relayed:?}");
}

const BULK_SIZE: usize = 8 << 20;

#[tokio::test]
async fn a_reset_in_the_middle_of_a_bulk_transfer_ends_it_whoever_is_behind() {
    for by_reader in [true, false] {
        let (mut client, mut downstream) = pair().await;
        let (mut upstream, mut server) = pair().await;
        let relay =
            tokio::spawn(async move { relay(&mut downstream, &mut upstream, Vec::new(), None).await });
        // Until nothing moves any more: the server reads only a part, and all that is between is full.
        let block = pattern(0, 1 << 20);
        let mut sent = 0;
        while let Ok(result) =
            tokio::time::timeout(Duration::from_millis(100), client.write(&block[sent % block.len()..])).await
        {
            sent += result.expect("open");
        }
        let mut got = vec![0; sent / 2];
        server.read_exact(&mut got).await.expect("open");
        if by_reader {
            crate::io::Stream::from(server).reset();
            let relayed = relay.await.expect("no panic");
            assert!(matches!(relayed.end, End::Second(_)), "{relayed:?}");
        } else {
            crate::io::Stream::from(client).reset();
            let mut rest = Vec::new();
            let (relayed, _) = tokio::join!(relay, server.read_to_end(&mut rest));
            let relayed = relayed.expect("no panic");
            assert!(matches!(relayed.end, End::First(_)), "{relayed:?}");
        }
    }
}

/// What one side says, and how much the other takes at a time.
#[derive(Clone, Debug)]
struct Talk {
    said: Vec<usize>,
    taken: usize,
    /// Ends its own direction only when it has heard the other's end.
    polite: bool,
}

fn talk() -> impl Strategy<Value = Talk> {
    let size = prop_oneof![1..200usize, 1_000..70_000usize, 200_000..900_000usize];
    let taken = prop_oneof![Just(700usize), 5_000..100_000usize, Just(1 << 20)];
    (prop::collection::vec(size, 0..8), taken, any::<bool>()).prop_map(|(said, taken, polite)| Talk {
        said,
        taken,
        polite,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_is_said_arrives_whole_and_each_end_on_its_own(first in talk(), mut second in talk()) {
        // Two that wait for each other to end would wait for ever.
        second.polite &= !first.polite;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (client, mut downstream) = pair().await;
            let (mut upstream, server) = pair().await;
            let relay = async {
                let relayed = relay(&mut downstream, &mut upstream, Vec::new(), None).await;
                assert!(matches!(relayed.end, End::Closed), "{relayed:?}");
                relayed
            };
            let all = async {
                tokio::join!(relay, converse(client, &first, &second, 1), converse(server, &second, &first, 2))
            };
            let (relayed, ..) = tokio::time::timeout(Duration::from_secs(120), all).await.expect("in time");
            let total = |talk: &Talk| talk.said.iter().sum::<usize>() as u64;
            assert_eq!((relayed.forward, relayed.back), (total(&first), total(&second)));
        });
    }
}

/// Says what is one's own, and compares what is heard with what the other says.
async fn converse(stream: TcpStream, own: &Talk, other: &Talk, seed: u32) {
    let (mut reader, mut writer) = stream.into_split();
    let (ended, wait) = tokio::sync::oneshot::channel();
    let say = async {
        for (index, size) in own.said.iter().enumerate() {
            writer.write_all(&pattern(seed + index as u32, *size)).await.expect("open");
            tokio::task::yield_now().await;
        }
        if own.polite {
            let _ = wait.await;
        }
        writer.shutdown().await.expect("open");
    };
    let hear = async {
        let other_seed = 3 - seed;
        let expected = other.said.iter().enumerate();
        let expected: Vec<u8> =
            expected.flat_map(|(index, size)| pattern(other_seed + index as u32, *size)).collect();
        let (mut got, mut part) = (Vec::new(), vec![0; own.taken]);
        loop {
            let len = reader.read(&mut part).await.expect("an orderly end");
            if len == 0 {
                break;
            }
            got.extend_from_slice(&part[..len]);
        }
        assert!(got == expected, "{} of {} bytes, or other ones", got.len(), expected.len());
        let _ = ended.send(());
    };
    tokio::join!(say, hear);
}

fn pattern(seed: u32, size: usize) -> Vec<u8> {
    (0..size as u32).map(|n| ((n ^ seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
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
    const IDLE: Duration = Duration::from_secs(2);
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
async fn a_reset_is_noticed_while_the_other_side_takes_nothing() {
    for spliced in [true, false] {
        let (mut client, mut downstream) = pair().await;
        let (mut upstream, _server) = pair().await;
        if !spliced {
            crate::tcp::splice::spoil();
        }
        let relay =
            tokio::spawn(async move { relay(&mut downstream, &mut upstream, Vec::new(), None).await });
        let flood = vec![7; 1 << 20];
        // As much as all the buffers on the way hold.
        while tokio::time::timeout(Duration::from_secs(1), client.write_all(&flood)).await.is_ok() {}
        crate::io::Stream::from(client).reset();
        let relayed = tokio::time::timeout(Duration::from_secs(60), relay).await.expect("it is noticed");
        let relayed = relayed.expect("no panic");
        let End::First(error) = &relayed.end else { panic!("{relayed:?}") };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(relayed.spliced > 0, spliced, "{relayed:?}");
    }
}

#[tokio::test]
async fn bulk_is_copied_where_the_kernel_does_not_splice() {
    crate::tcp::splice::spoil();
    let (mut client, mut downstream) = pair().await;
    let (mut upstream, mut server) = pair().await;
    let relay = tokio::spawn(async move { relay(&mut downstream, &mut upstream, Vec::new(), None).await });
    let sent = pattern(7, 8_000_000);
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        client.write_all(&sent).await.expect("open");
        client.shutdown().await.expect("open");
        client
    });
    let mut got = Vec::new();
    server.read_to_end(&mut got).await.expect("open");
    assert!(got == expected, "{} of {} bytes, or other ones", got.len(), expected.len());
    drop(server);
    writer.await.expect("no panic");
    let relayed = relay.await.expect("no panic");
    assert_eq!((relayed.forward, relayed.spliced), (8_000_000, 0));
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

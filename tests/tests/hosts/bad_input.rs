//! Clients and peers that misbehave, between hosts: each costs little, ends in time, and is counted under a name.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tulle_tests::{LIMIT, output_of, wait_for};

use crate::{Pair, get, refused, refused_at_least};

/// Clients that never say a word.
const SILENT: usize = 10_000;

/// As long as a client may take to its first word.
const PATIENCE: Duration = Duration::from_secs(10);

/// From now on a workload of the mesh takes mTLS alone; a host outside of it finds that out.
async fn make_strict(pair: &Pair) {
    pair.mesh.manifest(
        "mtls.yaml",
        "apiVersion: tulle.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: mtls, namespace: shop}\n\
         spec: {targetRefs: [{kind: Namespace, name: shop}], mtls: {mode: Strict}}\n",
    );
    let url = format!("http://{}:8080/", pair.server.host.v4);
    let stranger = pair.mesh.host("prober");
    let strict = || async {
        match get(&stranger, &url).await {
            Ok(answer) => Err(answer),
            Err(_) => Ok(()),
        }
    };
    wait_for(LIMIT, strict).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn ten_thousand_clients_that_never_speak() {
    // What is started from here on may have as many, too.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .expect("up to the maximum everybody may");
    let enough = maximum.is_none_or(|maximum| maximum >= SILENT as u64 + 2000);
    assert!(enough, "{maximum:?} file descriptors are not enough: ulimit -n {}", SILENT + 2000);
    let pair = Pair::start().await;
    make_strict(&pair).await;
    let stranger = pair.mesh.host("stranger");
    let address = SocketAddr::from((pair.server.host.v4, 8080));
    let before = (refused(&pair.server, "silent").await, resident(&pair));
    let begun = Instant::now();
    let mut clients = Vec::with_capacity(SILENT);
    for _ in 0..SILENT {
        clients.push(stranger.connect(address).await.expect("it is taken"));
    }
    let connected = begun.elapsed();
    pair.works().await;
    let grown = resident(&pair).saturating_sub(before.1);
    assert!(grown < SILENT as u64 * 10_000, "{grown} bytes for {SILENT} silent clients");
    for client in &mut clients {
        let ended = timeout(PATIENCE + LIMIT, client.read_u8()).await.expect("it ends in time");
        assert!(ended.is_err(), "nothing is said to it");
    }
    let took = begun.elapsed();
    assert!(
        took >= PATIENCE && took < connected + PATIENCE + LIMIT,
        "{took:?}, {connected:?} of it to connect"
    );
    refused_at_least(&pair.server, "silent", before.0 + SILENT as f64).await;
    assert_eq!(refused(&pair.server, "silent").await, before.0 + SILENT as f64);
    pair.works().await;
}

/// The resident memory of the server's sidecar, in bytes.
fn resident(pair: &Pair) -> u64 {
    let path = format!("/proc/{}/status", pair.server.process.id().expect("it runs"));
    let status = std::fs::read_to_string(path).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells it");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

#[tokio::test]
async fn a_peer_that_accepts_and_never_answers() {
    let pair = Pair::start().await;
    let ghost = pair.mesh.host("ghost");
    // The system takes connections to it; nobody else does.
    let _listeners =
        [8080, 9090].map(|port| ghost.listen(SocketAddr::from((ghost.v4, port))).expect("a port"));
    pair.mesh.workload_on(&ghost, "ghost", ghost.v4, &[("http", 8080), ("tcp", 9090)]);
    let address = "10.96.0.66";
    pair.mesh.service(
        "ghost",
        &[address.parse().expect("an address")],
        &[("http", 80, "http"), ("tcp", 90, "tcp")],
    );
    pair.mesh.manifest(
        "patience.yaml",
        "apiVersion: tulle.dev/v1alpha1\nkind: BackendTrafficPolicy\nmetadata: {name: ghost, namespace: shop}\n\
         spec: {targetRefs: [{kind: Service, name: ghost}], connection: {connectTimeout: 1s}}\n",
    );
    pair.mesh.knows("Service", "ghost").await;
    let client = &pair.client.host;
    let begun = Instant::now();
    let answer = get(client, &format!("http://{address}/")).await.expect_err("nobody answers");
    assert!(answer.contains("503") || answer.contains("504"), "{answer}");
    let mut stream =
        client.connect((address.parse::<std::net::IpAddr>().expect("one"), 90)).await.expect("taken");
    stream.write_all(b"\0hello").await.expect("open");
    let ended = timeout(LIMIT, stream.read_u8()).await.expect("it ends in time");
    assert!(ended.is_err(), "nothing is said to it");
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    let counted = || async {
        let metrics = pair.client.metrics().await;
        let of = |port| {
            let cluster = format!("outbound|{port}||ghost.shop.svc.cluster.local");
            metrics.sum("tulle_upstream_connect_failures_total", &[("cluster", &cluster)])
        };
        if of(80) >= 1.0 && of(90) >= 1.0 { Ok(()) } else { Err(format!("{metrics:?}")) }
    };
    wait_for(LIMIT, counted).await.unwrap_or_else(|error| panic!("{error}"));
    pair.works().await;
}

/// Speaks TCP to an address, a handshake and a request, in the smallest fragments of IPv6 that Linux takes: the first has the
/// header, but for its options. No system would make any of TCP. Prints what comes back.
const FRAGMENTS: &str = "
import random, socket, struct, sys
source, target, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
pack = lambda ip: socket.inet_pton(socket.AF_INET6, ip)
out = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 44)
heard = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_TCP)
heard.settimeout(5)
own = random.randrange(20000, 60000)
def send(seq, ack, flags, data=b''):
    header = struct.pack('!HHIIBBHHH', own, port, seq, ack, 0xa0, flags, 65535, 0, 0) + b'\\1' * 20
    pseudo = pack(source) + pack(target) + struct.pack('!II', len(header + data), 6)
    words = pseudo + header + data
    words += b'\\0' * (len(words) % 2)
    total = sum(struct.unpack('!%dH' % (len(words) // 2), words))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    header = header[:16] + struct.pack('!H', ~total & 0xffff) + header[18:]
    segment, name = header + data, random.getrandbits(32)
    for at in range(0, len(segment), 24):
        more = at + 24 < len(segment)
        out.sendto(struct.pack('!BBHI', 6, 0, at | more, name) + segment[at:at + 24], (target, 0))
def hear():
    while True:
        packet = heard.recv(65535)
        fields = struct.unpack('!HHIIBB', packet[:14])
        if fields[:2] == (port, own):
            return fields[2], fields[5], packet[(fields[4] >> 4) * 4:]
try:
    send(1000, 0, 0x02)
    theirs, flags, _ = hear()
    if flags & 0x04:
        sys.exit(print('refused'))
    send(1001, theirs + 1, 0x10)
    send(1001, theirs + 1, 0x18, b'GET /fragment HTTP/1.1\\r\\nhost: echo\\r\\n\\r\\n')
    while True:
        _, flags, data = hear()
        if data:
            sys.exit(print(data.decode().splitlines()[0]))
        if flags & 0x05:
            sys.exit(print('ended'))
except TimeoutError:
    print('silence')
";

#[tokio::test]
async fn fragments_of_ipv6_do_not_get_past_the_sidecar() {
    let pair = Pair::start().await;
    let stranger = pair.mesh.host("stranger");
    // Its own system knows nothing of these connections, and would reset them.
    stranger
        .nft("table inet t { chain c { type filter hook output priority 0; tcp flags & rst == rst drop; }; }")
        .await;
    let server = pair.server.host.v6;
    pair.mesh.workload_at(&pair.server.host, "echo", &pair.server.host.addresses(), &[("http", 8080)]);
    let url = format!("http://[{server}]:8080/");
    wait_for(LIMIT, || get(&stranger, &url)).await.unwrap_or_else(|error| panic!("{error}"));
    let speak = async || {
        let mut command = stranger.command(0, "/usr/bin/python3");
        command.args(["-c", FRAGMENTS, &stranger.v6.to_string(), &server.to_string(), "8080"]);
        let output = output_of(command).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(speak().await, "HTTP/1.1 200 OK", "they arrive, put together");
    let peers = pair.server.metrics().await.sum("http_server_request_duration_seconds_count", &[]);
    assert!(peers >= 2.0, "the sidecar saw it");
    make_strict(&pair).await;
    let before = refused(&pair.server, "no_chain").await;
    assert_eq!(speak().await, "ended");
    refused_at_least(&pair.server, "no_chain", before + 1.0).await;
    pair.works().await;
}

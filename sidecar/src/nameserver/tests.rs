//! The resolver over real sockets, beside a control plane of the test and a name server of the test.

use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query as Asked, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tulle_mesh::model::DnsRecords;

use super::*;
use crate::telemetry::Workload;

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_name_of_the_mesh_is_asked_of_the_control_plane_and_no_other() {
    let bench = Bench::start(|_| panic!("the name server is not asked")).await;
    let v4 = bench.ask("Cart.Shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(addresses(&v4), ["10.0.0.1"]);
    assert!(v4.metadata.authoritative && v4.metadata.recursion_available && v4.metadata.recursion_desired);
    assert_eq!(v4.answers[0].name.to_string(), "Cart.Shop.svc.cluster.local.");
    assert_eq!(v4.answers[0].ttl, 30);

    // A family without an address, and a type that no name of the mesh has.
    for kind in [RecordType::AAAA, RecordType::TXT, RecordType::HTTPS, RecordType::SRV] {
        let empty = bench.ask("cart.shop.svc.cluster.local.", kind).await;
        assert_eq!(empty.metadata.response_code, ResponseCode::NoError, "{kind}");
        assert!(empty.answers.is_empty());
        assert_eq!(empty.authorities[0].name.to_string(), "cluster.local.");
    }
    for absent in ["nothing.shop.svc.cluster.local.", "www.example.com.shop.svc.cluster.local."] {
        let answer = bench.ask(absent, RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    }
    let text = bench.telemetry.metrics.encode();
    assert!(text.contains(r#"tulle_dns_answers_total{source="mesh",result="answer"} 1"#), "{text}");
}

#[tokio::test]
async fn other_names_go_upstream_once_and_are_kept_for_their_time() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let bench = Bench::start(move |query| {
        counted.fetch_add(1, Ordering::Relaxed);
        let mut answer = reply(query);
        answer.add_answer(address(&query.queries[0].name().to_string(), 60));
        Some(answer)
    })
    .await;
    let first = bench.ask("www.example.com.", RecordType::A).await;
    assert_eq!(addresses(&first), ["192.0.2.9"]);
    assert!(!first.metadata.authoritative);
    let again = bench.ask("WWW.example.com.", RecordType::A).await;
    assert_eq!(again.queries[0].name().to_string(), "WWW.example.com.");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    // Absent in the mesh, so somebody else's.
    assert_eq!(addresses(&bench.ask("example.com.", RecordType::A).await), ["192.0.2.9"]);
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_name_that_stands_for_another_is_answered_with_what_that_means() {
    let bench = Bench::start(|query| {
        assert_eq!(query.queries[0].name().to_string(), "bank.example.");
        let mut answer = reply(query);
        if query.queries[0].query_type() == RecordType::A {
            answer.add_answer(address("bank.example.", 60));
        } else {
            answer.add_authority(soa());
        }
        Some(answer)
    })
    .await;
    let answer = bench.ask("bank.shop.svc.cluster.local.", RecordType::A).await;
    let kinds: Vec<_> = answer.answers.iter().map(Record::record_type).collect();
    assert_eq!(kinds, [RecordType::CNAME, RecordType::A]);
    assert_eq!(answer.answers[1].name.to_string(), "bank.example.");
    let empty = bench.ask("bank.shop.svc.cluster.local.", RecordType::AAAA).await;
    assert_eq!((empty.metadata.response_code, empty.answers.len()), (ResponseCode::NoError, 1));
    assert_eq!(empty.authorities.len(), 1);
    let alone = bench.ask("bank.shop.svc.cluster.local.", RecordType::CNAME).await;
    assert_eq!(alone.answers.len(), 1);
    // One of the mesh's own, and two that go round in circles.
    let inner = bench.ask("alias.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(addresses(&inner), ["10.0.0.1"]);
    let circle = bench.ask("circle.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(circle.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_asked_for_over_tcp() {
    let bench = Bench::start(|query| {
        let mut answer = reply(query);
        for last in 0..200 {
            let ip = A::new(192, 0, 2, last);
            answer.add_answer(Record::from_rdata(query.queries[0].name().clone(), 60, RData::A(ip)));
        }
        Some(answer)
    })
    .await;
    let cut = bench.ask("many.example.com.", RecordType::A).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let mut stream = TcpStream::connect(bench.address).await.expect("connects");
    // Several queries at once, a byte at a time: each is answered.
    let mut sent = Vec::new();
    for id in 1..=3 {
        let query = query(id, "many.example.com.", RecordType::A);
        sent.extend_from_slice(&u16::try_from(query.len()).expect("short").to_be_bytes());
        sent.extend_from_slice(&query);
    }
    for byte in sent {
        stream.write_all(&[byte]).await.expect("sends");
    }
    let mut ids = Vec::new();
    for _ in 0..3 {
        let answer = read(&mut stream).await.expect("an answer");
        assert_eq!(answer.answers.len(), 200);
        ids.push(answer.metadata.id);
    }
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3]);
}

#[tokio::test]
async fn without_anybody_to_ask_it_says_so_and_makes_nothing_up() {
    let bench = Bench::start(|_| None).await;
    for name in ["www.example.com.", "away.shop.svc.cluster.local.", "away."] {
        let answer = bench.ask(name, RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "{name}");
    }
    let text = bench.telemetry.metrics.encode();
    assert!(!text.contains("tulle_dns_upstream_failures_total 0"), "{text}");

    // The control plane is away, and the others know no such name: nobody knows whether it exists.
    let bench = Bench::start(|query| {
        let mut answer = reply(query);
        answer.metadata.response_code = ResponseCode::NXDomain;
        answer.add_authority(soa());
        Some(answer)
    })
    .await;
    for (name, expected) in [
        ("away.shop.svc.cluster.local.", ResponseCode::ServFail),
        ("away.", ResponseCode::ServFail),
        ("away.example.", ResponseCode::NXDomain),
        ("nothing.example.", ResponseCode::NXDomain),
    ] {
        assert_eq!(bench.ask(name, RecordType::A).await.metadata.response_code, expected, "{name}");
    }
}

#[tokio::test]
async fn hostile_messages_cost_little_and_are_counted() {
    let bench = Bench::start(|_| None).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    socket.connect(bench.address).await.expect("connects");
    let mut response = query(1, "cart.shop.svc.cluster.local.", RecordType::A);
    response[2] |= 0x80;
    // No answer: an answer, nothing, and far too much.
    for message in [&response[..], &[], &vec![0; 9000]] {
        socket.send(message).await.expect("sends");
    }
    socket.send(&[0; 40]).await.expect("sends");
    let mut buffer = [0; 512];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("in time").expect("an answer");
    assert_eq!((length, buffer[3] & 0x0f), (12, 1), "the one that is a broken query");

    // More at a time than there are places for; they wait for a name server that is silent.
    let counted = |reason: &str| {
        let line = format!("tulle_dns_refused_total{{reason=\"{reason}\"}} ");
        let text = bench.telemetry.metrics.encode();
        let at = text.find(&line).expect("counted") + line.len();
        text[at..].lines().next().expect("a number").parse::<u64>().expect("a number")
    };
    let deadline = Instant::now() + PATIENCE;
    while counted("overflow") == 0 {
        assert!(Instant::now() < deadline, "no place was ever missing");
        for _ in 0..64 {
            let name = format!("x{}.example.com.", fastrand::u64(..));
            socket.send(&query(1, &name, RecordType::A)).await.expect("sends");
        }
        tokio::task::yield_now().await;
    }
    assert_eq!((counted("oversized"), counted("malformed")), (1, 3));

    // A query that is too long to be one ends its connection.
    let mut stream = TcpStream::connect(bench.address).await.expect("connects");
    stream.write_all(&[0xff, 0xff, 0, 0]).await.expect("sends");
    assert_eq!(timeout(PATIENCE, stream.read(&mut buffer)).await.expect("in time").unwrap_or(0), 0);
    // So does one that never comes to its end.
    let mut stream = TcpStream::connect(bench.address).await.expect("connects");
    stream.write_all(&[0, 30, 0, 0]).await.expect("sends");
    assert_eq!(timeout(PATIENCE, stream.read(&mut buffer)).await.expect("in time").unwrap_or(0), 0);
    assert_eq!((counted("oversized"), counted("slow")), (2, 1));
}

/// A resolver with everything around it.
struct Bench {
    address: SocketAddr,
    telemetry: Arc<Telemetry>,
    _tasks: JoinSet<()>,
}

impl Bench {
    /// `upstream` is the name server; `None`: silence.
    async fn start(upstream: impl Fn(&Message) -> Option<Message> + Send + Sync + 'static) -> Self {
        let mut tasks = JoinSet::new();
        let server = name_server(&mut tasks, Arc::new(upstream)).await;
        let (names, questions) = MeshNames::channel();
        tasks.spawn(control_plane(questions));
        let workload = Workload { namespace: "shop".into(), name: "web".into(), instance: "web-1".into() };
        let (telemetry, _) = Telemetry::new(workload, None).expect("no collector is needed");
        let resolver =
            Nameserver::new(vec![server], "cluster.local", names, Duration::from_secs(2), &telemetry);
        let (udp, tcp) = pair().await;
        let address = udp.local_addr().expect("bound");
        tasks.spawn(udp::serve(udp, Arc::clone(&resolver)));
        tasks.spawn(tcp::serve(tcp, resolver));
        Self { address, telemetry, _tasks: tasks }
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        socket.connect(self.address).await.expect("connects");
        socket.send(&query(77, name, kind)).await.expect("sends");
        let mut buffer = [0; 4096];
        let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("in time").expect("an answer");
        let answer = Message::from_vec(&buffer[..length]).expect("an answer");
        assert_eq!(answer.metadata.id, 77);
        answer
    }
}

async fn control_plane(mut questions: mpsc::Receiver<crate::xds::NameQuestion>) {
    let named = |name: &str, records| {
        NameAnswer::Held(Arc::new(DnsName { name: name.into(), ttl: Duration::from_secs(30), records }))
    };
    while let Some(question) = questions.recv().await {
        let (name, answer) = question.into_parts();
        let said = match &*name {
            "cart.shop.svc.cluster.local" => {
                named(&name, DnsRecords::Addresses(vec!["10.0.0.1".parse().expect("an address")]))
            }
            "bank.shop.svc.cluster.local" => named(&name, DnsRecords::Alias("bank.example".into())),
            "alias.shop.svc.cluster.local" => {
                named(&name, DnsRecords::Alias("cart.shop.svc.cluster.local".into()))
            }
            "circle.shop.svc.cluster.local" => named(&name, DnsRecords::Alias("circle.shop.svc".into())),
            "circle.shop.svc" => named(&name, DnsRecords::Alias("circle.shop.svc.cluster.local".into())),
            away if away.starts_with("away") => NameAnswer::Unavailable,
            _ => NameAnswer::Absent,
        };
        let _ = answer.send(said);
    }
}

/// What a name server answers.
type Answers = dyn Fn(&Message) -> Option<Message> + Send + Sync;

/// Over UDP it answers in 512 octets, or says that it can't.
async fn name_server(tasks: &mut JoinSet<()>, answer: Arc<Answers>) -> SocketAddr {
    let (udp, tcp) = pair().await;
    let address = udp.local_addr().expect("bound");
    let in_datagrams = Arc::clone(&answer);
    tasks.spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
            let asked = Message::from_vec(&buffer[..length]).expect("a query");
            let Some(answer) = in_datagrams(&asked) else { continue };
            // A forgery comes first: another identifier, another question.
            let mut forged = answer.clone();
            forged.metadata.id ^= 1;
            let mut other = answer.clone();
            other.queries =
                vec![Asked::query(Name::from_ascii("forged.example.").expect("a name"), RecordType::A)];
            let mut bytes = answer.to_vec().expect("encodes");
            if bytes.len() > 512 {
                let mut cut = answer.truncate();
                cut.metadata.truncation = true;
                bytes = cut.to_vec().expect("encodes");
            }
            for bytes in [forged.to_vec().expect("encodes"), other.to_vec().expect("encodes"), bytes] {
                udp.send_to(&bytes, client).await.expect("sends");
            }
        }
    });
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let asked = read(&mut stream).await.expect("a query");
            let bytes = answer(&asked).expect("an answer").to_vec().expect("encodes");
            stream.write_u16(u16::try_from(bytes.len()).expect("short")).await.expect("sends");
            stream.write_all(&bytes).await.expect("sends");
        }
    });
    address
}

/// UDP and TCP on one port.
async fn pair() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("bound")).await {
            return (udp, tcp);
        }
    }
}

async fn read(stream: &mut TcpStream) -> Option<Message> {
    let length = timeout(PATIENCE, stream.read_u16()).await.expect("in time").ok()?;
    let mut bytes = vec![0; length.into()];
    timeout(PATIENCE, stream.read_exact(&mut bytes)).await.expect("in time").ok()?;
    Message::from_vec(&bytes).ok()
}

fn query(id: u16, name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Asked::query(Name::from_ascii(name).expect("a name"), kind));
    message.to_vec().expect("encodes")
}

fn reply(query: &Message) -> Message {
    let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_query(query.queries[0].clone());
    answer
}

fn address(name: &str, ttl: u32) -> Record {
    Record::from_rdata(Name::from_ascii(name).expect("a name"), ttl, RData::A(A::new(192, 0, 2, 9)))
}

fn soa() -> Record {
    let name = |text| Name::from_ascii(text).expect("a name");
    let data = SOA::new(name("ns.example."), name("admin.example."), 1, 2, 3, 4, 60);
    Record::from_rdata(name("example."), 60, RData::SOA(data))
}

fn addresses(answer: &Message) -> Vec<String> {
    let found = answer.answers.iter().filter_map(|record| match &record.data {
        RData::A(ip) => Some(ip.to_string()),
        RData::AAAA(ip) => Some(ip.to_string()),
        _ => None,
    });
    found.collect()
}

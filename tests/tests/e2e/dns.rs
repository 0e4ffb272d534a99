//! The resolver of the sidecar: real clients (dig, getent, Python), a real name server (dnsmasq) for all other names.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use tokio::process::Command;
use tulle_cli::local::Sidecar;
use tulle_tests::hosts::on_hosts;
use tulle_tests::{LIMIT, NAMESPACE, Program, TestMesh, Workload, fetch, output_of, wait_for};

/// What the name server knows; everything else in `example.com` does not exist.
const ZONE: &[&str] = &[
    "--local=/example.com/",
    "--local-ttl=60",
    "--host-record=www.example.com,192.0.2.1,2001:db8::1",
    "--host-record=v4.example.com,192.0.2.4",
    "--cname=alias.example.com,www.example.com",
    "--txt-record=txt.example.com,hello world",
    "--mx-host=example.com,mx.example.com,10",
    "--srv-host=_sip._tcp.example.com,sip.example.com,5060,1,2",
    "--dns-rr=odd.example.com,65280,012345",
];

#[tokio::test]
async fn other_names_are_answered_as_their_name_server_answers_them() {
    let bench = Bench::start("127.0.0.1:0", &[]).await;
    for question in [
        &["www.example.com", "A"][..],
        &["www.example.com", "AAAA"],
        &["WwW.eXample.COM", "A"],
        &["v4.example.com", "AAAA"],
        &["alias.example.com", "A"],
        &["alias.example.com", "CNAME"],
        &["txt.example.com", "TXT"],
        &["example.com", "MX"],
        &["_sip._tcp.example.com", "SRV"],
        &["odd.example.com", "TYPE65280"],
        &["nothing.example.com", "A"],
        &["nothing.example.com", "TXT"],
        &["www.example.com", "ANY"],
        &["www.example.com", "A", "+noedns"],
        &["www.example.com", "A", "+dnssec", "+cdflag"],
        &["www.example.com", "A", "+norecurse", "+noadflag"],
        &["www.example.com", "A", "+tcp"],
        &["elsewhere.test.invalid", "A"],
        &["version.bind", "TXT", "-c", "CH"],
    ] {
        let direct = young(&bench.dig(bench.server.address, question).await);
        assert!(direct.contains("status: "), "{direct}");
        // The second time it may come from the cache.
        for _ in 0..2 {
            assert_eq!(young(&bench.dig(bench.resolver, question).await), direct, "{question:?}");
        }
    }
    let ipv6 = SocketAddr::from((Ipv6Addr::LOCALHOST, bench.resolver.port()));
    if tokio::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
        assert_eq!(bench.short(ipv6, &["www.example.com", "A"]).await, ["192.0.2.1"]);
    }
}

#[tokio::test]
async fn a_kept_answer_counts_its_time_down() {
    let mut bench = Bench::start("127.0.0.1:0", &[]).await;
    assert_eq!(bench.ttl(bench.resolver, "www.example.com").await, 60);
    bench.server.kill().await;
    let older = || async {
        match bench.ttl(bench.resolver, "www.example.com").await {
            60 => Err("it is still as it was".to_owned()),
            left => Ok(left),
        }
    };
    let left = wait_for(LIMIT, older).await.unwrap_or_else(|error| panic!("{error}"));
    assert!((30..60).contains(&left), "{left}");
    // The name server has gone, so what is not kept fails, in a time that clients still wait for.
    let failed = bench.dig(bench.resolver, &["v4.example.com", "A"]).await;
    assert!(failed.contains("status: SERVFAIL"), "{failed}");
}

#[tokio::test]
async fn what_does_not_fit_into_a_datagram_comes_over_tcp() {
    let text = "x".repeat(200);
    let many: Vec<String> = (0..20).map(|i| format!("--txt-record=many.example.com,{i}{text}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let bench = Bench::start("127.0.0.1:0", &many).await;
    let cut = bench.dig(bench.resolver, &["many.example.com", "TXT", "+ignore", "+noedns"]).await;
    assert!(cut.contains("flags: qr") && cut.contains(" tc "), "{cut}");
    for way in ["+notcp", "+tcp"] {
        let whole = bench.short(bench.resolver, &["many.example.com", "TXT", way]).await;
        assert_eq!(whole.len(), 20, "{way}");
    }
}

#[tokio::test]
async fn names_of_the_mesh_follow_its_manifests() {
    let bench = Bench::start("127.0.0.1:0", &[]).await;
    let at = bench.resolver;
    let absent = bench.dig(at, &["cart.shop.svc.cluster.local", "A"]).await;
    assert!(absent.contains("status: NXDOMAIN") && absent.contains("SOA"), "{absent}");

    bench.mesh.manifest("cart.yaml", &service("cart", "ports: [{name: http, port: 80}]"));
    let v4 = bench.becomes(&["cart.shop.svc.cluster.local", "A"], |found| found.len() == 1).await;
    let virtual_v4: Ipv4Addr = v4[0].parse().expect("an address");
    assert_eq!(virtual_v4.octets()[..2], [240, 240]);
    let v6 = bench.short(at, &["cart.shop.svc.cluster.local", "AAAA"]).await;
    assert!(v6[0].parse::<Ipv6Addr>().expect("an address").segments()[..2] == [0x2001, 2], "{v6:?}");
    for name in ["cart", "cart.shop", "cart.shop.svc", "CART.shop.SVC.cluster.local."] {
        assert_eq!(bench.short(at, &[name, "A"]).await, v4, "{name}");
    }
    let places = bench.short(at, &["_http._tcp.cart.shop.svc.cluster.local", "SRV"]).await;
    assert_eq!(places, ["0 1 80 cart.shop.svc.cluster.local."]);

    // An address of IPv4 alone: the other family is empty, and that is not "no such name".
    bench.mesh.manifest("cart.yaml", &service("cart", "clusterIP: 10.9.8.7, ports: [{port: 80}]"));
    bench.becomes(&["cart", "A"], |found| found == ["10.9.8.7"]).await;
    let empty = bench.dig(at, &["cart", "AAAA"]).await;
    assert!(empty.contains("status: NOERROR") && empty.contains("ANSWER: 0"), "{empty}");
    assert!(empty.contains(" aa ") && empty.contains(" ra"), "{empty}");

    // Headless: the endpoints, each with a name.
    let workload = |number: u8| {
        format!(
            "---\napiVersion: tulle.dev/v1alpha1\nkind: Workload\n\
             metadata: {{name: db-{number}, namespace: {NAMESPACE}, labels: {{app: db}}}}\n\
             spec: {{address: 10.1.0.{number}, serviceAccount: db, ports: [{{name: pg, port: 5432}}]}}\n"
        )
    };
    let headless = service("db", "clusterIP: None, ports: [{name: pg, port: 5432}]");
    bench.mesh.manifest("db.yaml", &format!("{headless}{}{}", workload(0), workload(1)));
    bench.becomes(&["db.shop", "A"], |found| found == ["10.1.0.0", "10.1.0.1"]).await;
    assert_eq!(bench.short(at, &["db-1.db.shop.svc.cluster.local", "A"]).await, ["10.1.0.1"]);
    let places = bench.short(at, &["_pg._tcp.db.shop.svc.cluster.local", "SRV"]).await;
    let expected = [0, 1].map(|number| format!("0 1 5432 db-{number}.db.shop.svc.cluster.local."));
    assert_eq!(places, expected);
    bench.mesh.manifest("db.yaml", &format!("{headless}{}", workload(1)));
    bench.becomes(&["db.shop", "A"], |found| found == ["10.1.0.1"]).await;

    // What stands for a name of others.
    bench.mesh.manifest(
        "www.yaml",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: www, namespace: {NAMESPACE}}}\n\
             spec: {{type: ExternalName, externalName: alias.example.com}}\n"
        ),
    );
    let chain = ["alias.example.com.", "www.example.com.", "192.0.2.1"];
    bench.becomes(&["www.shop", "A"], |found| found == chain).await;
    assert_eq!(bench.short(at, &["www.shop", "AAAA"]).await[2], "2001:db8::1");

    bench.mesh.remove_manifest("cart.yaml");
    bench.becomes(&["cart.shop.svc.cluster.local", "A"], |found| found.is_empty()).await;
    let (_, config) = fetch(&format!("http://{}/config", bench.sidecar.admin)).await.expect("it answers");
    assert!(config.contains("db.shop.svc.cluster.local") && config.contains("10.1.0.1"), "{config}");
    let (_, metrics) = fetch(&format!("http://{}/metrics", bench.sidecar.health)).await.expect("it answers");
    assert!(metrics.contains("tulle_dns_answers_total{source=\"mesh\",result=\"answer\"}"), "{metrics}");
}

#[tokio::test]
async fn names_resolve_while_the_control_plane_is_away_and_addresses_outlive_it() {
    let mut bench = Bench::start("127.0.0.1:0", &[]).await;
    bench.mesh.manifest("cart.yaml", &service("cart", "ports: [{name: http, port: 80}]"));
    let before = bench.becomes(&["cart", "A"], |found| found.len() == 1).await;
    bench.mesh.mesh.control_plane.kill().await;
    for _ in 0..3 {
        assert_eq!(bench.short(bench.resolver, &["cart", "A"]).await, before);
    }
    let unknown = bench.dig(bench.resolver, &["stock.shop.svc.cluster.local", "A"]).await;
    assert!(unknown.contains("status: SERVFAIL"), "{unknown}");
    assert_eq!(bench.short(bench.resolver, &["www.example.com", "A"]).await, ["192.0.2.1"]);

    // Others come first in the order of names, and still nothing moves.
    let all: String =
        ["aa", "ab", "cart"].map(|name| service(name, "ports: [{name: http, port: 80}]")).concat();
    bench.mesh.manifest("cart.yaml", &all);
    bench.mesh.restart_control_plane().await;
    bench.becomes(&["aa.shop", "A"], |found| found.len() == 1).await;
    assert_eq!(bench.short(bench.resolver, &["cart", "A"]).await, before);
}

#[tokio::test]
async fn programs_find_names_through_their_search_domains() {
    // Port 53, on an address that no other resolver has: a resolv.conf knows no ports.
    let address = format!("127.{}.{}.53", fastrand::u8(64..127), fastrand::u8(1..=254));
    // Where queries are redirected, they are wherever they were going to.
    let listen = if on_hosts() { "127.0.0.1:15053".into() } else { format!("{address}:53") };
    let bench = Bench::start(&listen, &[]).await;
    bench.mesh.manifest("cart.yaml", &service("cart", "clusterIP: 10.9.8.7, ports: [{port: 80}]"));
    bench.becomes(&["cart.shop", "A"], |found| found == ["10.9.8.7"]).await;
    let conf = bench.mesh.folder.path().join("resolv.conf");
    let text = format!(
        "nameserver {address}\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    );
    std::fs::write(&conf, text).expect("the folder can be written");
    for (name, expected) in [
        ("cart", "10.9.8.7"),
        ("cart.shop", "10.9.8.7"),
        ("cart.shop.svc", "10.9.8.7"),
        ("cart.shop.svc.cluster.local", "10.9.8.7"),
        ("v4.example.com", "192.0.2.4"),
    ] {
        for program in [
            format!("getent ahostsv4 {name} | cut -d' ' -f1 | sort -u"),
            format!("python3 -c 'import socket; print(socket.getaddrinfo(\"{name}\", 80)[0][4][0])'"),
        ] {
            assert_eq!(bench.with_resolv_conf(&conf, &program).await, expected, "{program}");
        }
    }
    let missing = bench.with_resolv_conf(&conf, "getent hosts nothing.example.com || echo none").await;
    assert_eq!(missing, "none");
}

/// A sidecar with a resolver, and the name server behind it.
struct Bench {
    mesh: TestMesh,
    sidecar: Sidecar,
    resolver: SocketAddr,
    server: Program,
}

impl Bench {
    async fn start(listen: &str, more: &[&str]) -> Self {
        let mesh = TestMesh::start().await;
        let server = Program::dnsmasq(&mesh.ground("client").await, &[ZONE, more].concat()).await;
        let dns = serde_json::json!({ "listen": listen, "upstream": [server.address.to_string()] });
        let sidecar = mesh.workload(Workload::new("client").config("dns", dns)).await;
        let resolver =
            sidecar.process.started["listening"]["dns"].as_str().expect("it says where it listens");
        let resolver = resolver.parse().expect("an address");
        Self { mesh, sidecar, resolver, server }
    }

    /// Waits until the resolver's answer is as it should be.
    async fn becomes(&self, question: &[&str], good: impl Fn(&[String]) -> bool) -> Vec<String> {
        let asked = || async {
            let found = self.short(self.resolver, question).await;
            if good(&found) { Ok(found) } else { Err(format!("{question:?}: {found:?}")) }
        };
        wait_for(LIMIT, asked).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// What dig prints, without what is different each time.
    async fn dig(&self, server: SocketAddr, question: &[&str]) -> String {
        let mut command = Command::new("dig");
        command.arg(format!("@{}", server.ip())).args(["-p", &server.port().to_string()]);
        command.args([
            "+nocookie",
            "+noall",
            "+comments",
            "+question",
            "+answer",
            "+authority",
            "+additional",
        ]);
        command.args(["+tries=1", "+time=40"]).args(question);
        let output = output_of(self.mesh.beside("client", command).await).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().map(|line| line.split(", id: ").next().unwrap_or(line));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The data of the answer's records, sorted but for chains.
    async fn short(&self, server: SocketAddr, question: &[&str]) -> Vec<String> {
        let text = self
            .dig(
                server,
                &[question, &["+nocomments", "+noquestion", "+noauthority", "+noadditional"]].concat(),
            )
            .await;
        let records = text.lines().filter(|line| !line.starts_with(';') && !line.is_empty());
        let mut data: Vec<String> =
            records.map(|line| line.split_whitespace().skip(4).collect::<Vec<_>>().join(" ")).collect();
        if !text.contains("\tCNAME\t") {
            data.sort();
        }
        data
    }

    async fn ttl(&self, server: SocketAddr, name: &str) -> u32 {
        let text = self.dig(server, &[name, "A", "+nocomments", "+noquestion"]).await;
        let ttl = text.lines().find(|line| !line.starts_with(';') && !line.is_empty());
        ttl.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or_else(|| panic!("{text}"))
    }

    /// What a program says where this file is `/etc/resolv.conf`.
    async fn with_resolv_conf(&self, conf: &Path, program: &str) -> String {
        let mut command = Command::new("unshare");
        let script = format!("mount --bind '{}' /etc/resolv.conf && {program}", conf.display());
        command.args(["--mount", "sh", "-c", &script]);
        let output = output_of(self.mesh.beside("client", command).await).await;
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(!complaint.contains("unshare") && !complaint.contains("mount"), "needs root: {complaint}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

fn service(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
         spec: {{selector: {{app: {name}}}, {spec}}}\n"
    )
}

/// As if no answer had been kept for a while: how TTLs count down is looked at elsewhere.
fn young(text: &str) -> String {
    (30..60).fold(text.to_owned(), |text, ttl| text.replace(&format!("\t{ttl}\tIN"), "\t60\tIN"))
}

//! Names: applications on a host whose queries are redirected to its sidecar. `/etc/resolv.conf` names the name server of
//! the network, which knows nothing of the mesh.

use std::net::{IpAddr, Ipv6Addr};

use serde_json::json;
use tulle_tests::hosts::{Host, Member, Meshed, Server, redirect_with};
use tulle_tests::{LIMIT, TestMesh, identity, output_of, wait_for};

use crate::{echo, get, passed_through, refused, replica};

/// Where sidecars resolve names.
const DNS_PORT: &str = "15053";

/// How applications are told to look for names, as in a cluster.
const SEARCH: &str =
    "search shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5 timeout:10 attempts:2\n";

/// More text than fits into any packet of a link, and than many datagrams may have.
const LARGE: usize = 3000;

/// A mesh with `echo.shop` on a host, and the network's name server on another.
struct Names {
    mesh: TestMesh,
    /// Where the name server is.
    servers: Host,
    client: Meshed,
    server: Meshed,
    /// A host that is not in the mesh, where `www.example.com` is.
    outside: Host,
    _programs: Vec<Server>,
}

impl Names {
    async fn start() -> Self {
        let mesh = TestMesh::on_hosts().await;
        mesh.service("echo", &[], &[("http", 80, "http")]);
        let (server, app) = replica(&mesh, "echo").await;
        let outside = mesh.host("outside");
        let servers = mesh.host("servers");
        let dnsmasq = name_server(&servers, &outside).await;
        let programs = vec![app, dnsmasq, echo(&outside, 8000).await];
        let client = mesh.host("client");
        let client = join(&mesh, &client, &servers.addresses()).await;
        outside.resolver(&format!("nameserver {}\n{SEARCH}", servers.v4));
        let names = Self { mesh, servers, client, server, outside, _programs: programs };
        names.becomes(&["echo.shop"], |found| !found.is_empty()).await;
        names
    }

    /// Waits until the client's resolver gives these data for a question.
    async fn becomes(&self, question: &[&str], good: impl Fn(&[String]) -> bool) -> Vec<String> {
        becomes_at(&self.client.host, question, good).await
    }
}

/// The same of another host's resolver: each learns names for itself.
async fn becomes_at(host: &Host, question: &[&str], good: impl Fn(&[String]) -> bool) -> Vec<String> {
    let asked = || async {
        let found = short(host, question).await;
        if good(&found) { Ok(found) } else { Err(format!("{question:?}: {found:?}")) }
    };
    wait_for(LIMIT, asked).await.unwrap_or_else(|error| panic!("{error}"))
}

/// Redirects a host's traffic and queries, and starts a sidecar on it.
async fn join(mesh: &TestMesh, host: &Host, servers: &[IpAddr]) -> Meshed {
    join_as(mesh, host, servers, Member::of(&host.name)).await
}

async fn join_as(mesh: &TestMesh, host: &Host, servers: &[IpAddr], member: Member) -> Meshed {
    let servers: String = servers.iter().map(|ip| format!("nameserver {ip}\n")).collect();
    host.resolver(&format!("{servers}{SEARCH}"));
    redirect_with(host, &["--dns-port", DNS_PORT]).await;
    let listen = format!("127.0.0.1:{DNS_PORT}");
    let meshed = mesh.sidecar_on(host, member.config("dns", json!({ "listen": listen }))).await;
    meshed.ready().await;
    meshed
}

/// dnsmasq, at both addresses of its host.
async fn name_server(host: &Host, outside: &Host) -> Server {
    let mut command = host.command(0, "dnsmasq");
    command.args(["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"]);
    command.args(host.addresses().map(|ip| format!("--listen-address={ip}")));
    command.args(["--local=/example.com/", "--local-ttl=60", "--edns-packet-max=4096", "--user=root"]);
    command.arg(format!("--host-record=www.example.com,{},{}", outside.v4, outside.v6));
    command.args(["--cname=alias.example.com,www.example.com", "--mx-host=example.com,mx.example.com,10"]);
    let part = "x".repeat(200);
    command.args((0..LARGE / 200).map(|n| format!("--txt-record=large.example.com,{n}{part}")));
    command.stderr(std::process::Stdio::null());
    host.serve(command, 53).await
}

/// What dig says on a host, without what differs each time; asked of whom the host asks, if nobody else is named.
async fn dig(host: &Host, question: &[&str]) -> String {
    let words =
        ["+noall", "+comments", "+question", "+answer", "+authority", "+nottlid", "+nocookie", "+tries=1"];
    let output = host.run("dig", &[&words, question].concat()).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| line.split(", id: ").next().unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

/// The data of the answer.
async fn short(host: &Host, question: &[&str]) -> Vec<String> {
    let output = host.run("dig", &[&["+short", "+tries=1"], question].concat()).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut data: Vec<String> = text.lines().map(str::to_owned).collect();
    data.sort();
    data
}

#[tokio::test]
async fn plain_names_lead_to_the_mesh() {
    let names = Names::start().await;
    let client = &names.client.host;
    let link = client.capture("eth0").await;
    for name in ["echo", "echo.shop", "echo.shop.svc", "echo.shop.svc.cluster.local", "ECHO.Shop"] {
        let answer =
            get(client, &format!("http://{name}/by-name")).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(answer.starts_with("echo /by-name\n") && answer.contains(&identity("client")), "{answer}");
    }
    // By IPv6 alone.
    let mut six = client.curl();
    six.args(["-6", "http://echo/by-name"]);
    let six = String::from_utf8_lossy(&output_of(six).await.stdout).into_owned();
    assert!(six.starts_with("echo /by-name\n") && six.contains(&identity("client")), "{six}");
    assert_eq!(passed_through(&names.client).await, 0.0);

    // Over TCP, at a name server of the other family, and at one that does not even exist.
    let addresses = short(client, &["echo.shop.svc.cluster.local"]).await;
    assert_eq!(addresses.len(), 1);
    for server in [names.servers.v4.to_string(), names.servers.v6.to_string(), "192.0.2.53".into()] {
        for way in ["+notcp", "+tcp"] {
            let question = [&format!("@{server}"), "echo.shop.svc.cluster.local", way];
            assert_eq!(short(client, &question).await, addresses, "{question:?}");
        }
    }
    let six = short(client, &["echo.shop.svc.cluster.local", "AAAA"]).await;
    assert!(six.len() == 1 && six[0].parse::<Ipv6Addr>().is_ok(), "{six:?}");
    let places = short(client, &["_http._tcp.echo.shop.svc.cluster.local", "SRV"]).await;
    assert_eq!(places, ["0 1 80 echo.shop.svc.cluster.local."]);

    // A real database by its name.
    let host = names.mesh.host("db");
    let postgres = host.ground().postgres().await;
    names.mesh.workload_on(&host, "db", host.v4, &[("main", postgres.address.port())]);
    names.mesh.service("db", &[], &[("main", 5432, "main")]);
    let _db = names.mesh.join_as(&host, Member::of("db")).await;
    names.becomes(&["db.shop"], |found| found.len() == 1).await;
    for name in ["db", "db.shop"] {
        let mut psql = client.command(1000, "psql");
        psql.args(["-h", name, "-U", "postgres", "-d", "postgres", "-XAt", "-c", "select 6 * 7"]);
        let output = output_of(psql).await;
        assert_eq!(String::from_utf8_lossy(&output.stdout), "42\n", "{output:?}");
    }
    let proven = || async {
        let metrics = names.client.metrics().await;
        let peer = [("destination_principal", &*identity("db"))];
        let count = metrics.sum("tulle_tcp_connection_duration_seconds_count", &peer);
        if count >= 2.0 { Ok(()) } else { Err(format!("{count} connections to the database")) }
    };
    wait_for(LIMIT, proven).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(!link.end().await.contain("by-name"), "nothing of it can be read on the link");
}

#[tokio::test]
async fn other_names_are_the_name_server_s() {
    let names = Names::start().await;
    let at = format!("@{}", names.servers.v4);
    for question in [
        &["www.example.com", "A"][..],
        &["www.example.com", "AAAA"],
        &["alias.example.com", "A"],
        &["example.com", "MX"],
        &["nothing.example.com", "A"],
        &["www.example.com", "A", "+tcp"],
        &["large.example.com", "TXT", "+tcp"],
        &["elsewhere.invalid", "A"],
    ] {
        let direct = dig(&names.outside, &[&[at.as_str()], question].concat()).await;
        assert!(direct.contains("status: "), "{direct}");
        // The second time it may come from what is kept.
        for _ in 0..2 {
            assert_eq!(dig(&names.client.host, question).await, direct, "{question:?}");
        }
    }
    // The search domains are tried first: names of the mesh, of which there is none.
    let mut getent = names.client.host.command(1000, "getent");
    getent.args(["ahostsv4", "www.example.com"]);
    let found = String::from_utf8_lossy(&output_of(getent).await.stdout).into_owned();
    assert!(found.starts_with(&names.outside.v4.to_string()), "{found}");
    let answer = get(&names.client.host, "http://www.example.com:8000/").await;
    assert!(answer.as_ref().is_ok_and(|text| text.starts_with("outside /")), "{answer:?}");
    assert!(passed_through(&names.client).await >= 1.0);
    let metrics = names.client.metrics().await;
    for (source, result) in [("upstream", "answer"), ("cache", "answer"), ("mesh", "answer")] {
        let count = metrics.sum("tulle_dns_answers_total", &[("source", source), ("result", result)]);
        assert!(count >= 1.0, "{source} {result}: {metrics:?}");
    }
}

#[tokio::test]
async fn answers_in_fragments_arrive_whole() {
    let names = Names::start().await;
    let client = &names.mesh.host("six");
    names.servers.mtu(1280);
    client.mtu(1280);
    let _sidecar = join(&names.mesh, client, &[names.servers.v6.into()]).await;
    let question = ["large.example.com", "TXT", "+notcp", "+ignore", "+bufsize=4096"];
    let before = fragments_of(&names.servers).await;
    for _ in 0..2 {
        let answer = dig(client, &question).await;
        assert!(answer.contains(&format!("ANSWER: {}", LARGE / 200)) && !answer.contains(" tc "), "{answer}");
    }
    assert!(fragments_of(&names.servers).await >= before + 3, "it came in fragments");
    // And what goes between sidecars fits into packets of that size.
    let path = "x".repeat(4000);
    let mut six = client.curl();
    six.args(["-6", &format!("http://echo/{path}")]);
    let six = String::from_utf8_lossy(&output_of(six).await.stdout).into_owned();
    assert!(six.starts_with(&format!("echo /{path}\n")) && six.contains(&identity("six")), "{six}");
}

/// How many fragments of IPv6 a host has made.
async fn fragments_of(host: &Host) -> u64 {
    let output = host.run("cat", &["/proc/net/snmp6"]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let count = text.lines().find_map(|line| line.strip_prefix("Ip6FragCreates"));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or_else(|| panic!("{text}"))
}

#[tokio::test]
async fn endpoints_of_a_headless_service_have_names() {
    let names = Names::start().await;
    let client = &names.client.host;
    // Both addresses of a host belong to its workload.
    names.mesh.workload_at(&names.server.host, "echo", &names.server.host.addresses(), &[("http", 8080)]);
    let (second, _app) = replica(&names.mesh, "second").await;
    names.mesh.manifest(
        "headless.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: all, namespace: shop}\nspec:\n  clusterIP: None\n  \
         selector: {app: echo}\n  ports: [{name: http, port: 8080, targetPort: http}]\n",
    );
    let [first, both] = [&names.server.host, &second.host].map(|host| host.v4.to_string());
    names.becomes(&["all.shop.svc.cluster.local"], |found| *found == [first.clone(), both.clone()]).await;
    let six = names.server.host.v6.to_string();
    assert_eq!(short(client, &["all.shop.svc.cluster.local", "AAAA"]).await, [six]);
    let places = short(client, &["_http._tcp.all.shop.svc.cluster.local", "SRV"]).await;
    let expected = ["echo", "second"].map(|name| format!("0 1 8080 {name}.all.shop.svc.cluster.local."));
    assert_eq!(places, expected);
    for (name, options) in [("echo", ["-4"]), ("echo", ["-6"]), ("second", ["-4"])] {
        let mut command = client.curl();
        command.args(options).arg(format!("http://{name}.all.shop:8080/headless"));
        let answer = String::from_utf8_lossy(&output_of(command).await.stdout).into_owned();
        assert!(answer.starts_with(&format!("{name} /headless\n")), "{name} {options:?}: {answer}");
        assert!(answer.contains(&identity("client")), "{name} {options:?}: {answer}");
    }
    assert_eq!(passed_through(&names.client).await, 0.0);
}

#[tokio::test]
async fn an_external_name_is_known_to_the_mesh() {
    let names = Names::start().await;
    let member = Member::of("only").config("outbound", json!({ "policy": "RegistryOnly" }));
    let only = names.mesh.host("only");
    let only = join_as(&names.mesh, &only, &names.servers.addresses(), member).await;
    let external = |name: &str, target: &str, ports: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{type: ExternalName, externalName: {target}{ports}}}\n"
        )
    };
    names.mesh.manifest(
        "external.yaml",
        &[
            external("www", "alias.example.com", ", ports: [{name: main, port: 8000}]"),
            external("any", "alias.example.com", ""),
            external("same", "echo.shop.svc.cluster.local", ", ports: [{port: 80}]"),
        ]
        .concat(),
    );
    for host in [&names.client.host, &only.host] {
        becomes_at(host, &["www.shop"], |found| found.len() == 1).await;
    }
    // A declared one is known, so that policy lets it through.
    for meshed in [&names.client, &only] {
        let answer = get(&meshed.host, "http://www:8000/").await.unwrap_or_else(|error| panic!("{error}"));
        assert!(answer.starts_with("outside /\n"), "{answer}");
        // What stands for a Service is that Service.
        let answer = get(&meshed.host, "http://same/").await.unwrap_or_else(|error| panic!("{error}"));
        assert!(answer.contains(&identity(&meshed.host.name)), "{answer}");
    }
    assert_eq!(refused(&only, "unknown_destination").await, 0.0);
    assert_eq!(passed_through(&names.client).await, 0.0);
    // Without ports it is a name like any other's, which resolves, and leads to what the mesh does not know.
    let found = short(&names.client.host, &["any.shop"]).await;
    assert!(found.contains(&"alias.example.com.".to_owned()), "{found:?}");
    assert!(get(&names.client.host, "http://any:8000/").await.is_ok());
    assert!(get(&only.host, "http://any:8000/").await.is_err());
    assert_eq!(refused(&only, "unknown_destination").await, 1.0);
    assert_eq!(passed_through(&names.client).await, 1.0);
}

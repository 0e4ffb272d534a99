//! The bookshop of `tulle demo` on hosts: each service, the customers and the control plane on one of its own, and no
//! service with a setting that speaks of the mesh.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::json;
use tokio::process::Command;
use tulle_cli::demo::apps::Surroundings;
use tulle_cli::demo::edges::{Edge, unproven};
use tulle_cli::demo::traces::Traces;
use tulle_cli::demo::{MANIFESTS, verdict};
use tulle_cli::local::Process;
use tulle_tests::hosts::{APP_UID, Host, Member, Meshed, Wire};
use tulle_tests::{LIMIT, TestMesh, binary, output_of, wait_for};

/// Where every service serves.
const PORT: u16 = 8080;

/// The services' virtual addresses, in the order of the manifests.
const NAMES: [&str; 6] = ["web", "cart", "recommend", "stock", "stock-v1", "stock-v2"];

#[tokio::test]
async fn the_bookshop_keeps_its_promises() {
    let (traces, collector) = Traces::collect(None).await.expect("a collector");
    let mesh = TestMesh::on_hosts_with("bookshop.example", &[]).await;
    for (name, text) in MANIFESTS {
        mesh.manifest(name, &with_addresses(text));
    }
    let mut shop = Vec::new();
    for (name, account, port, args) in [
        ("web", "web", "http", &["web"][..]),
        ("cart", "cart", "http", &["cart"]),
        ("recommend", "recommend", "grpc", &["recommend"]),
        ("stock-v1", "stock", "http", &["stock", "--version", "v1"]),
        ("stock-v2", "stock", "http", &["stock", "--version", "v2", "--failing-percent", "20"]),
    ] {
        let host = mesh.host(name);
        let app = app(&mesh, &host, args).await;
        shop.push((join(&mesh, &host, account, &collector).await, Some(app)));
        workload(&mesh, &host, account, port);
    }
    let customers = mesh.host("customers");
    shop.push((join(&mesh, &customers, "customers", &collector).await, None));

    let open = || async {
        let page = page(&customers).await;
        if page.contains("\"recommended\"") { Ok(()) } else { Err(page) }
    };
    wait_for(LIMIT, open).await.unwrap_or_else(|error| panic!("{error}"));
    // As many as the verdict on a split of nine to one needs.
    let mut load = customers.command(APP_UID, "h2load");
    load.args(["--h1", "-n", "3000", "-c", "8", "http://web.shop/"]);
    let load = output_of(load).await;
    let text = String::from_utf8_lossy(&load.stdout);
    assert!(text.contains("3000 succeeded, 0 failed"), "{text}");

    let (mut edges, mut strangers) = (Vec::new(), 0.0);
    for ((meshed, _), _) in &shop {
        let metrics = meshed.metrics().await;
        edges.extend(Edge::of(&meshed.host.name, &metrics));
        strangers += unproven(&metrics);
    }
    let promises = verdict::check(&edges, Ok(strangers), &traces, Duration::from_secs(5)).await;
    let (report, kept) = verdict::report(&promises);
    assert!(kept, "{report}");
}

/// The manifests, with a virtual address for each Service.
fn with_addresses(text: &str) -> String {
    let mut documents: Vec<String> = text.split("\n---\n").map(str::to_owned).collect();
    for document in documents.iter_mut().filter(|document| document.contains("\nkind: Service\n")) {
        let name = NAMES.iter().position(|name| document.contains(&format!("\n  name: {name}\n")));
        let address = address(name.expect("it is one of the shop's"));
        *document = document.replacen("\nspec:\n", &format!("\nspec:\n  clusterIP: {address}\n"), 1);
    }
    documents.join("\n---\n")
}

fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 0, u8::try_from(index).expect("few") + 1)
}

/// One service's process, which knows its peers by their names alone.
async fn app(mesh: &TestMesh, host: &Host, args: &[&str]) -> Process {
    names(host);
    let mut command = host.command(APP_UID, binary("tulle"));
    command.args(["demo-app", "--listen", &format!("[::]:{PORT}")]).args(args);
    let app = Process::start(&host.name, command, &mesh.mesh.logs).await;
    let mut app = app.unwrap_or_else(|error| panic!("{error}"));
    let surroundings = Surroundings { http_proxy: None, recommend: Some("recommend.shop:80".into()) };
    let line = serde_json::to_string(&surroundings).expect("it is JSON");
    app.tell(&line).await.expect("it listens");
    app
}

/// What a name server would say of the shop's names.
fn names(host: &Host) {
    let line = |(index, name): (usize, &&str)| format!("{} {name}.shop\n", address(index));
    host.names(&NAMES.iter().enumerate().map(line).collect::<String>());
}

/// A sidecar that sends its spans to the collector of this test.
async fn join(mesh: &TestMesh, host: &Host, account: &str, collector: &str) -> (Meshed, Wire) {
    let address: SocketAddr = collector.trim_start_matches("http://").parse().expect("an address");
    let wire = Wire::out_of(host, address, address).expect("the port is free");
    let member = Member::of(account).config("otlp", json!({ "endpoint": collector }));
    (mesh.join_as(host, member).await, wire)
}

/// The Workload that stands for a service.
fn workload(mesh: &TestMesh, host: &Host, account: &str, port: &str) {
    let mut labels = json!({ "app": account });
    if let Some(version) = host.name.strip_prefix("stock-") {
        labels["version"] = json!(version);
    }
    let workload = json!({
        "apiVersion": "tulle.dev/v1alpha1",
        "kind": "Workload",
        "metadata": { "name": host.name, "namespace": "shop", "labels": labels },
        "spec": {
            "address": host.v4.to_string(),
            "serviceAccount": account,
            "ports": [{ "name": port, "port": PORT }],
        },
    });
    mesh.manifest(&format!("workload-{}.yaml", host.name), &workload.to_string());
}

/// The shop's page, or why there is none.
async fn page(customers: &Host) -> String {
    names(customers);
    let mut command: Command = customers.curl();
    command.arg("http://web.shop/");
    let output = output_of(command).await;
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

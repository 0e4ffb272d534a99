//! The application's own TLS: routed by server name, carried inside the mesh's, and ended by nobody but its own server.

use std::net::SocketAddr;
use std::path::Path;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tokio::process::Command;
use tulle_cli::local::Sidecar;
use tulle_tests::{LIMIT, NAMESPACE, Program, TestMesh, Workload, curl, identity, output_of, wait_for};

const NGINX: &str = "
  server {
    listen 127.0.0.1:@@PORT@@ ssl;
    ssl_certificate @@DIR@@/cert.pem;
    ssl_certificate_key @@DIR@@/key.pem;
    root @@DIR@@;
  }
";

/// nginx with a certificate of its own for `names`, whose page says `page`.
async fn server(page: &str, names: &[&str]) -> (TempDir, Program) {
    let folder = tempfile::tempdir().expect("a folder");
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(names).expect("host names").self_signed(&key).expect("a key");
    let (certificate, key) = (certificate.pem(), key.serialize_pem());
    for (file, text) in [("cert.pem", certificate.as_str()), ("key.pem", &key), ("page", page)] {
        std::fs::write(folder.path().join(file), text).expect("the folder can be written");
    }
    let nginx = Program::nginx(folder.path(), NGINX).await;
    (folder, nginx)
}

/// Two servers with TLS of their own behind sidecars, and the routes that tell which names lead to which.
struct Names {
    mesh: TestMesh,
    client: Sidecar,
    gold: (TempDir, Sidecar),
    silver: (TempDir, Sidecar),
    _servers: [Program; 2],
}

impl Names {
    async fn start() -> Self {
        let mesh = TestMesh::start().await;
        let (gold_folder, gold) = server("gold", &["a.example"]).await;
        let (silver_folder, silver) = server("silver", &["one.b.example", "two.b.example"]).await;
        let gold_sidecar = mesh.workload(Workload::new("gold").app(gold.address)).await;
        let silver_sidecar = mesh.workload(Workload::new("silver").app(silver.address)).await;
        mesh.manifest("routes.yaml", &(route("gold", "a.example") + &route("silver", "'*.b.example'")));
        let client = mesh.workload(Workload::new("client").port("gold.shop:80")).await;
        let names = Self {
            mesh,
            client,
            gold: (gold_folder, gold_sidecar),
            silver: (silver_folder, silver_sidecar),
            _servers: [gold, silver],
        };
        // The routes are in force once the other server answers.
        let routed = || async {
            match names.get("one.b.example", names.silver.0.path()).await.as_str() {
                "silver" => Ok(()),
                other => Err(format!("the routes are not in force: {other:?}")),
            }
        };
        wait_for(LIMIT, routed).await.unwrap_or_else(|error| panic!("{error}"));
        names
    }

    fn port(&self) -> SocketAddr {
        self.client.ports["gold.shop:80"]
    }

    /// What curl gets from `name`, whose server has to prove itself with the certificate in `folder`.
    async fn get(&self, name: &str, folder: &Path) -> String {
        let port = self.port().port();
        let mut command = curl();
        command.args(["--resolve", &format!("{name}:{port}:127.0.0.1"), "--cacert"]);
        command.arg(folder.join("cert.pem")).arg(format!("https://{name}:{port}/page"));
        String::from_utf8_lossy(&output_of(command).await.stdout).into_owned()
    }

    async fn refused(&self) -> f64 {
        let metrics = self.client.metrics().await.expect("it answers");
        metrics.sum("tulle_connections_refused_total", &[("reason", "no_chain")])
    }
}

fn route(service: &str, name: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\n\
         metadata: {{name: {service}, namespace: {NAMESPACE}}}\nspec:\n  \
         parentRefs: [{{group: \"\", kind: Service, name: gold, port: 80}}]\n  hostnames: [{name}]\n  \
         rules: [{{backendRefs: [{{name: {service}, port: 80}}]}}]\n"
    )
}

#[tokio::test]
async fn each_name_leads_to_its_server_whose_certificate_is_the_one_that_arrives() {
    let names = Names::start().await;
    assert_eq!(names.get("a.example", names.gold.0.path()).await, "gold");
    for name in ["one.b.example", "two.b.example"] {
        assert_eq!(names.get(name, names.silver.0.path()).await, "silver");
    }
    // Around it was the mesh's own TLS, on both ways.
    let carried = || async {
        for (server, account) in [(&names.gold.1, "gold"), (&names.silver.1, "silver")] {
            let series = "tulle_tcp_connection_duration_seconds_count";
            let metrics = server.metrics().await?;
            let from = metrics.sum(series, &[("source_principal", &identity("client"))]);
            let all = metrics.sum(series, &[("direction", "inbound")]);
            if from < 1.0 || from != all {
                return Err(format!("{from} of {all} connections to {account} came from the client"));
            }
        }
        Ok(())
    };
    wait_for(LIMIT, carried).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn a_name_without_a_route_is_reset_and_counted() {
    let names = Names::start().await;
    // A wildcard stands for at least one label, and a client without SNI for no name.
    for (count, name) in [(1.0, "c.example"), (2.0, "b.example"), (3.0, "")] {
        let before = names.refused().await;
        let mut command = Command::new("openssl");
        command.args(["s_client", "-brief", "-connect", &names.port().to_string()]);
        match name {
            "" => command.arg("-noservername"),
            name => command.args(["-servername", name]),
        };
        let output = output_of(command).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && !said.contains("ESTABLISHED"), "{count}: {said}");
        assert!(said.contains("errno=104") || said.contains("reset"), "{said}");
        assert_eq!(names.refused().await, before + 1.0, "{name:?}");
    }
    assert_eq!(names.get("a.example", names.gold.0.path()).await, "gold");
    drop(names.mesh);
}

#[tokio::test]
async fn tls_of_the_application_needs_no_route_and_no_word_about_it() {
    let (folder, nginx) = server("gold", &["a.example"]).await;
    let pair = crate::Pair::start_untold(nginx.address).await;
    let port = pair.port().port();
    let mut command = curl();
    command.args(["--resolve", &format!("a.example:{port}:127.0.0.1"), "--cacert"]);
    command.arg(folder.path().join("cert.pem")).arg(format!("https://a.example:{port}/page"));
    let output = output_of(command).await;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "gold", "{output:?}");
}

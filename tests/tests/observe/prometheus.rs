//! The real Prometheus with the discovery that is shipped, and the real dashboard's queries.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tulle_cli::local::Sidecar;
use tulle_tests::{App, LIMIT, NAMESPACE, TestMesh, Workload, exchange, fetch, script, wait_for};

/// A running Prometheus.
struct Prometheus {
    url: String,
    _child: Child,
    _folder: TempDir,
}

/// A pod as Kubernetes tells it to who looks for what to scrape.
struct Pod<'a> {
    name: &'a str,
    /// The sidecar's health port.
    health: SocketAddr,
    /// The annotation `prometheus.io/port`.
    announced: u16,
}

impl Prometheus {
    /// One with the jobs of `manifests/prometheus`, for which `pods` stand in for Kubernetes' list of pods: the discovery of
    /// those is no part of Debian's package.
    async fn start(pods: &[Pod<'_>]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let shipped =
            std::fs::read_to_string(manifests().join("prometheus/prometheus.yaml")).expect("it is shipped");
        let (discovery, interval) = ("kubernetes_sd_configs:\n  - role: pod\n", "scrape_interval: 15s");
        assert_eq!(
            (shipped.matches(discovery).count(), shipped.matches(interval).count()),
            (2, 1),
            "{shipped}"
        );
        let config = shipped
            .replace(discovery, "file_sd_configs:\n  - files: [pods.json]\n")
            .replace(interval, "scrape_interval: 500ms");
        std::fs::write(folder.path().join("prometheus.yaml"), config).expect("it can be written");
        // Each port of a pod is a target.
        let targets = pods.iter().flat_map(|pod| {
            let ports = [("http", 1), ("tulle-health", pod.health.port())];
            ports.map(|(name, port)| {
                json!({
                    "targets": [SocketAddr::new(pod.health.ip(), port).to_string()],
                    "labels": {
                        "__meta_kubernetes_namespace": NAMESPACE,
                        "__meta_kubernetes_pod_name": pod.name,
                        "__meta_kubernetes_pod_phase": "Running",
                        "__meta_kubernetes_pod_ip": pod.health.ip().to_string(),
                        "__meta_kubernetes_pod_container_port_name": name,
                        "__meta_kubernetes_pod_annotation_prometheus_io_scrape": "true",
                        "__meta_kubernetes_pod_annotation_prometheus_io_port": pod.announced.to_string(),
                        "__meta_kubernetes_pod_annotation_prometheus_io_path": "/metrics",
                    },
                })
            })
        });
        let targets = Value::from(targets.collect::<Vec<_>>()).to_string();
        std::fs::write(folder.path().join("pods.json"), targets).expect("it can be written");
        let mut command = Command::new("prometheus");
        command.args([
            "--config.file=prometheus.yaml",
            "--storage.tsdb.path=data",
            "--web.listen-address=127.0.0.1:0",
        ]);
        command.current_dir(folder.path()).stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("prometheus: {error}; run tests/setup"));
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let listens = async {
            let mut said = String::new();
            while let Some(line) = lines.next_line().await.expect("it can be read") {
                if let Some((_, address)) = line.split_once("msg=\"Listening on\" address=") {
                    return format!("http://{address}");
                }
                said += &line;
                said += "\n";
            }
            panic!("Prometheus ended:\n{said}");
        };
        let url = timeout(LIMIT, listens).await.expect("it starts in time");
        // It goes on to write.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { url, _child: child, _folder: folder }
    }

    async fn ask(&self, path: &str) -> Result<Value, String> {
        let (status, text) = fetch(&format!("{}/api/v1/{path}", self.url)).await?;
        let answer: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        if status == 200 { Ok(answer["data"].clone()) } else { Err(answer.to_string()) }
    }

    /// The numbers that a query gives, each with its labels.
    async fn query(&self, query: &str) -> Result<Vec<(Value, f64)>, String> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let data = self.ask(&format!("query?query={encoded}")).await?;
        let results = data["result"].as_array().into_iter().flatten();
        let number = |result: &Value| result["value"][1].as_str().and_then(|value| value.parse().ok());
        Ok(results.filter_map(|result| Some((result["metric"].clone(), number(result)?))).collect())
    }
}

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

/// Every query of the dashboard, by its panel and its letter there.
fn dashboard() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(manifests().join("grafana/tulle.json")).expect("it is shipped");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let (mut queries, mut row) = (BTreeMap::new(), String::new());
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        if panel["type"] == "row" {
            row = title.to_owned();
        }
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |field: &str| target[field].as_str().expect("it has one").to_owned();
            let query = text("expr").replace("$__rate_interval", "10s").replace("$namespace", ".*");
            assert!(!query.contains('$'), "{query}");
            queries.insert(format!("{row} / {title} / {}", text("refId")), query);
        }
    }
    queries
}

/// A mesh in which something of everything happens.
struct Busy {
    mesh: TestMesh,
    client: Sidecar,
    servers: Vec<Sidecar>,
    _apps: Vec<App>,
    traffic: JoinSet<()>,
}

impl Busy {
    async fn start() -> Self {
        let good = App::fixed(200, "ok").await;
        let bad = App::fixed(503, "not now").await;
        // It begins, and says no more.
        let slow = App::start(|_| b"HTTP/1.1 2".to_vec()).await;
        let own = App::start(|_| script(200, "own_metric 1\n")).await;
        let raw = echo().await;
        let closed =
            TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("it is bound");
        let mesh = TestMesh::start().await;
        let mut servers = Vec::new();
        for (name, service, app, protocol) in [
            ("good", "echo", good.address, "http"),
            ("bad", "echo", bad.address, "http"),
            ("slow", "slow", slow.address, "http"),
            ("raw", "raw", raw, "tcp"),
        ] {
            let workload = Workload::new(name).service(service).app(app).protocol(protocol);
            servers.push(mesh.workload(workload).await);
        }
        for service in ["echo", "raw"] {
            mesh.manifest(
                &format!("service-{service}.yaml"),
                &format!(
                    "apiVersion: v1\nkind: Service\nmetadata: {{name: {service}, namespace: {NAMESPACE}}}\n\
                     spec: {{selector: {{app: {service}}}, ports: [{{name: main, port: 80, targetPort: main, appProtocol: {}}}]}}\n",
                    if service == "raw" { "tcp" } else { "http" }
                ),
            );
        }
        mesh.outside("closed", closed, Some("http")).await;
        mesh.manifest(
            "policies.yaml",
            &format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: echo, namespace: {NAMESPACE}}}\n\
                 spec:\n  parentRefs: [{{group: '', kind: Service, name: echo}}]\n  rules:\n  \
                 - backendRefs: [{{name: echo, port: 80}}]\n    retry: {{codes: [503], attempts: 2, backoff: 1ms}}\n\
                 ---\napiVersion: tulle.dev/v1alpha1\nkind: BackendTrafficPolicy\nmetadata: {{name: echo, namespace: {NAMESPACE}}}\n\
                 spec:\n  targetRefs: [{{kind: Service, name: echo}}]\n  \
                 outlierDetection: {{consecutiveErrors: 5, baseEjectionTime: 1s}}\n  \
                 retryConstraint: {{budget: {{percent: 1, interval: 10s}}, minRetryRate: {{count: 1, interval: 1s}}}}\n\
                 ---\napiVersion: tulle.dev/v1alpha1\nkind: BackendTrafficPolicy\nmetadata: {{name: slow, namespace: {NAMESPACE}}}\n\
                 spec:\n  targetRefs: [{{kind: Service, name: slow}}]\n  circuitBreaker: {{maxConcurrentRequests: 1}}\n"
            ),
        );
        mesh.knows("BackendTrafficPolicy", "slow").await;
        let closed = format!("closed.shop:{}", closed.port());
        let ports = ["echo.shop:80", "slow.shop:80", "raw.shop:80", &closed];
        let client = ports.iter().fold(Workload::new("client"), |workload, port| workload.port(port));
        let client = mesh.workload(client).await;
        let mut traffic = JoinSet::new();
        for (service, host) in [("echo.shop:80", "echo.shop"), (&closed, "closed.shop")] {
            let port = client.ports[service];
            let request = format!("GET /x HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            traffic.spawn(async move {
                loop {
                    exchange(port, request.as_bytes()).await;
                }
            });
        }
        for port in [client.ports["slow.shop:80"]; 2] {
            traffic.spawn(async move {
                loop {
                    let mut stream = TcpStream::connect(port).await.expect("it listens");
                    let request = b"GET / HTTP/1.1\r\nhost: slow.shop\r\n\r\n";
                    stream.write_all(request).await.expect("it is open");
                    // One of the two waits for ever, and the other is refused again and again.
                    let _ = stream.read_u8().await;
                }
            });
        }
        let port = client.ports["raw.shop:80"];
        traffic.spawn(async move {
            loop {
                let mut stream = TcpStream::connect(port).await.expect("it listens");
                let _ = stream.write_all(b"hello").await;
                let _ = stream.read_exact(&mut [0; 5]).await;
            }
        });
        Self { mesh, client, servers, _apps: vec![good, bad, slow, own], traffic }
    }
}

/// A server that sends back what it gets.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn every_query_of_the_dashboard_has_an_answer() {
    let mut busy = Busy::start().await;
    let own = busy._apps[3].address.port();
    let mut pods = vec![Pod { name: "client", health: busy.client.health, announced: own }];
    for (name, server) in ["good", "bad", "slow", "raw"].into_iter().zip(&busy.servers) {
        pods.push(Pod { name, health: server.health, announced: server.health.port() });
    }
    let prometheus = Prometheus::start(&pods).await;

    // Each pod once, by what it announces; the sidecar of who announces metrics of its own besides.
    let targets = || async {
        let data = prometheus.ask("targets?state=active").await?;
        let targets = data["activeTargets"].as_array().into_iter().flatten();
        let told = |target: &Value| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            [
                &target["scrapePool"],
                &target["labels"]["namespace"],
                &target["labels"]["pod"],
                &target["health"],
            ]
            .map(text)
        };
        let found: Vec<_> = targets.map(told).collect();
        let up = |job: &str, pod: &str| [job, NAMESPACE, pod, "up"].map(str::to_owned);
        let mut expected =
            BTreeSet::from(["bad", "client", "good", "raw", "slow"].map(|pod| up("pods", pod)));
        // A sidecar of this test has a port of its own where one in a pod has 15020.
        expected.extend(pods.iter().map(|pod| up("sidecars", pod.name)));
        let count = found.len();
        let found: BTreeSet<_> = found.into_iter().collect();
        if found == expected && count == expected.len() { Ok(()) } else { Err(format!("{found:#?}")) }
    };
    wait_for(LIMIT, targets).await.unwrap_or_else(|error| panic!("{error}"));
    let own = || async {
        let found = prometheus.query("own_metric").await?;
        if found.len() == 1 { Ok(()) } else { Err(format!("{found:?}")) }
    };
    wait_for(LIMIT, own).await.unwrap_or_else(|error| panic!("{error}"));

    let queries = dashboard();
    assert!(queries.len() > 35, "{queries:#?}");
    for (name, query) in &queries {
        // Every panel shows something; these more than nothing at all, since that has happened.
        let happened = [
            "Requests per",
            "Failed",
            "Latency",
            "Refused",
            "TCP",
            "Ejections",
            "Retries",
            "Open",
            "could not",
        ];
        let happened = happened.iter().any(|part| name.contains(part)) && !name.ends_with(" / B");
        let answered = || async {
            let found = prometheus.query(query).await?;
            let shown =
                found.iter().any(|(_, number)| if happened { *number > 0.0 } else { number.is_finite() });
            if shown { Ok(()) } else { Err(format!("{name}\n{query}\n{found:#?}")) }
        };
        wait_for(LIMIT * 2, answered).await.unwrap_or_else(|error| panic!("{error}"));
    }

    // And they tell the truth of who called whom.
    let edges = &queries["Edges: who calls whom / Requests per second / A"];
    let edges = prometheus.query(edges).await.expect("as before");
    let told: BTreeSet<_> = edges
        .iter()
        .map(|(labels, _)| {
            [&labels["source_workload"], &labels["destination_service"]]
                .map(|label| label.as_str().unwrap_or_default().to_owned())
        })
        .collect();
    for service in ["echo.shop", "slow.shop", "closed.shop"] {
        let of = |edge: &&[String; 2]| edge[0] == "shop/client" && edge[1].starts_with(service);
        assert!(told.iter().any(|edge| of(&edge)), "{service}: {told:?}");
    }
    busy.traffic.shutdown().await;
    drop(busy.mesh);
}

//! A kubelet's probes of an injected pod, while mTLS is strict and nobody is allowed anything: what the pod declares is
//! answered by what the application says, and the door through which it is asked leads nowhere else.
//!
//! The pod is injected by the code of the webhook; a host stands for the pod, and another one for the kubelet, which asks
//! with curl what the injected pod tells it to.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tulle_control_plane::inject::{self, Namespace, SIDECAR, Settings};
use tulle_tests::hosts::{APP_UID, Host, Member, Meshed, Server};
use tulle_tests::{LIMIT, TestMesh, output_of, python, wait_for};

use crate::get;

const HTTP: u16 = 8080;
const GRPC: u16 = 9000;
/// What the application answers, and no probe may show.
const SECRET: &str = "what nobody may read";

/// A pod, its application, and a kubelet.
struct Probed {
    mesh: TestMesh,
    pod: Value,
    meshed: Meshed,
    kubelet: Host,
    app: Option<Server>,
    log: PathBuf,
}

impl Probed {
    /// A pod with one container, `app`, which has these probes. Strict, and nobody is allowed anything.
    async fn start(probes: Value) -> Self {
        let mut container = json!({
            "name": "app",
            "image": "app:1",
            "ports": [{"name": "web", "containerPort": HTTP}, {"name": "rpc", "containerPort": GRPC}],
        });
        container.as_object_mut().expect("a map").extend(probes.as_object().expect("a map").clone());
        let pod = json!({"metadata": {"name": "web"}, "spec": {"containers": [container]}});
        let pod = inject::inject(&pod, &Namespace::enabled("shop"), &Settings::default());
        let pod = pod.expect("it gets a sidecar").template;

        let mesh = TestMesh::on_hosts().await;
        let host = mesh.host("web");
        mesh.workload_on(&host, "web", host.v4, &[("http", HTTP)]);
        let config = json!({ "addresses": [host.v4.to_string()] });
        let member = Member::of("web").config("probes", told(&pod)).config("capture", config);
        let meshed = mesh.join_as(&host, member).await;
        mesh.manifest(
            "closed.yaml",
            "apiVersion: tulle.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: strict, namespace: shop}\nspec:\n  \
             targetRefs: [{kind: Namespace, name: shop}]\n  mtls: {mode: Strict}\n---\n\
             apiVersion: tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: shop}\nspec:\n  \
             targetRefs: [{kind: Namespace, name: shop}]\n  action: ALLOW\n  enforcementLevel: Network\n  rules: []\n",
        );
        let kubelet = mesh.host("kubelet");
        let log = mesh.folder.path().join("requests");
        std::fs::write(&log, "").expect("the folder is ours");
        std::os::unix::fs::chown(&log, Some(APP_UID), Some(APP_UID)).expect("root may");
        let mut probed = Self { mesh, pod, meshed, kubelet, app: None, log };
        probed.live().await;
        let member = probed.mesh.join("client").await;
        for host in [&probed.kubelet, &member.host] {
            let refused = || async {
                match get(host, &format!("http://{}:{HTTP}/", probed.meshed.host.v4)).await {
                    Err(_) => Ok(()),
                    Ok(_) => Err(format!("{host:?} is let in")),
                }
            };
            wait_for(LIMIT, refused).await.unwrap_or_else(|error| panic!("{error}"));
        }
        std::fs::write(&probed.log, "").expect("it is ours");
        probed
    }

    /// Starts the application.
    async fn live(&mut self) {
        let host = &self.meshed.host;
        let script = python("health.py");
        let mut command = host.place(APP_UID, &script);
        command.args([&HTTP.to_string(), &GRPC.to_string()]).arg(&self.log);
        self.app = Some(host.serve(command, HTTP).await);
    }

    async fn die(&mut self) {
        self.app.take().expect("it lives").kill().await;
    }

    /// Tells the application how to be: `http` a status, `grpc` a serving status.
    async fn be(&self, state: &str) {
        let mut command = self.meshed.host.curl();
        command.args(["--fail", "-X", "PUT", "-d", state, &format!("http://127.0.0.1:{HTTP}/state")]);
        assert!(output_of(command).await.status.success());
    }

    /// Where the kubelet asks for a probe.
    fn address(&self) -> SocketAddr {
        (self.meshed.host.v4, 15020).into()
    }

    /// What the kubelet gets for a probe of `app`: the status, and the body.
    async fn probe(&self, field: &str) -> (u16, String) {
        let probe = &self.pod["spec"]["containers"][0][field]["httpGet"];
        let (path, port) = (probe["path"].as_str().expect("a path"), &probe["port"]);
        let mut command = self.kubelet.curl();
        command.args(["-w", "\n%{http_code}", &format!("http://{}:{port}{path}", self.meshed.host.v4)]);
        let output = output_of(command).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!text.contains(SECRET), "{text}");
        let (body, status) = text.rsplit_once('\n').expect("a status");
        (status.parse().expect("a number"), body.into())
    }

    /// Waits until a probe ends so: one verdict is good for a moment.
    async fn until(&self, field: &str, status: u16) -> String {
        let ended = || async {
            match self.probe(field).await {
                (now, body) if now == status => Ok(body),
                other => Err(format!("{field}: {other:?} instead of {status}")),
            }
        };
        wait_for(Duration::from_secs(5), ended).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// What reached the application: each request once.
    fn seen(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).expect("it is ours");
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines.dedup();
        lines
    }
}

/// What injection tells the sidecar to ask.
fn told(pod: &Value) -> Value {
    let sidecar = pod["spec"]["initContainers"].as_array().expect("there are some");
    let sidecar = sidecar.iter().find(|container| container["name"] == SIDECAR).expect("it is there");
    let mut args = sidecar["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let probes = args.find_map(|argument| argument.strip_prefix("--probes=")).expect("it has probes");
    serde_json::from_str(&probes.replace("$$", "$")).expect("JSON")
}

#[tokio::test]
async fn an_application_passes_and_fails_its_probes_as_it_is() {
    let mut probed = Probed::start(json!({
        "startupProbe": {"tcpSocket": {"port": "web"}},
        "livenessProbe": {"grpc": {"port": GRPC, "service": "shop.Cart"}, "timeoutSeconds": 5},
        "readinessProbe": {"httpGet": {"port": "web", "path": "/ready?full=1"}, "timeoutSeconds": 5},
    }))
    .await;
    for field in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(probed.probe(field).await.0, 200, "{field}: {}", probed.meshed.process.log());
    }
    assert_eq!(probed.seen(), ["Check shop.Cart", "GET /ready?full=1 HTTP/1.1"]);

    probed.be("http=500").await;
    assert_eq!(probed.until("readinessProbe", 500).await, "the application answers 500\n");
    probed.be("http=399").await;
    probed.until("readinessProbe", 200).await;
    probed.be("grpc=2").await;
    assert_eq!(probed.until("livenessProbe", 503).await, "the application says NOT_SERVING\n");
    assert_eq!(probed.probe("startupProbe").await.0, 200, "it still listens");
    probed.be("grpc=1").await;
    probed.until("livenessProbe", 200).await;

    probed.die().await;
    for field in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let reason = probed.until(field, 503).await;
        assert!(reason.contains("refused"), "{field}: {reason}");
    }
    probed.live().await;
    for field in ["startupProbe", "livenessProbe", "readinessProbe"] {
        probed.until(field, 200).await;
    }
    // What runs in the container, as an exec probe does, asks as ever.
    let answer = get(&probed.meshed.host, &format!("http://{}:{HTTP}/", probed.meshed.host.v4)).await;
    assert_eq!(answer.as_deref(), Ok(SECRET));
}

#[tokio::test]
async fn redirects_of_the_application_and_a_hung_one() {
    let probed = Probed::start(json!({
        "livenessProbe": {"httpGet": {"port": HTTP, "path": "/moved"}, "timeoutSeconds": 5},
        "startupProbe": {"httpGet": {"port": HTTP, "path": "/away"}, "timeoutSeconds": 5},
        "readinessProbe": {"httpGet": {"port": HTTP, "path": "/", "httpHeaders": [{"name": "X-Key", "value": "k"}]}},
    }))
    .await;
    for field in ["livenessProbe", "startupProbe"] {
        assert_eq!(probed.probe(field).await.0, 200, "{field}");
    }
    assert_eq!(
        probed.seen(),
        ["GET /away HTTP/1.1", "GET /moved HTTP/1.1", "GET /ready HTTP/1.1"],
        "one redirect leads to the application, the other away"
    );
    probed.be("http=503").await;
    probed.until("livenessProbe", 503).await;
    assert_eq!(probed.until("startupProbe", 200).await, "the application answers 302\n");

    let id = probed.app.as_ref().and_then(Server::id).expect("it runs");
    let mut stop = probed.meshed.host.command(0, "kill");
    stop.args(["-STOP", &id.to_string()]);
    assert!(output_of(stop).await.status.success());
    let reason = probed.until("readinessProbe", 503).await;
    assert_eq!(reason, "no answer within 1s\n");
}

#[tokio::test]
async fn the_door_of_probes_leads_nowhere_else() {
    let probed = Probed::start(json!({
        "readinessProbe": {"httpGet": {"port": HTTP, "path": "/healthz"}, "timeoutSeconds": 5},
        "livenessProbe": {"tcpSocket": {"port": GRPC}},
    }))
    .await;
    let address = probed.address();
    let host = format!("host: {address}\r\n");
    for (request, status) in [
        // Other paths, and other spellings of this one; what is the sidecar's own is answered by itself.
        ("GET /ready HTTP/1.1\r\n{host}\r\n", 200),
        ("GET /healthz HTTP/1.1\r\n{host}\r\n", 404),
        ("GET /probe HTTP/1.1\r\n{host}\r\n", 404),
        ("GET /probe/ HTTP/1.1\r\n{host}\r\n", 404),
        ("GET /probe/app HTTP/1.1\r\n{host}\r\n", 404),
        ("GET /probe/app/startup HTTP/1.1\r\n{host}\r\n", 404),
        ("GET /probe/app/readiness/ HTTP/1.1\r\n{host}\r\n", 404),
        ("GET /probe/app//readiness HTTP/1.1\r\n{host}\r\n", 404),
        ("GET /probe/app/../app/readiness HTTP/1.1\r\n{host}\r\n", 404),
        ("GET /probe/app%2freadiness HTTP/1.1\r\n{host}\r\n", 404),
        ("GET /probe/app/%72eadiness HTTP/1.1\r\n{host}\r\n", 404),
        ("GET /probe/APP/readiness HTTP/1.1\r\n{host}\r\n", 404),
        ("GET /probe/app/readiness;x HTTP/1.1\r\n{host}\r\n", 404),
        ("GET /probe/app/readiness%00 HTTP/1.1\r\n{host}\r\n", 404),
        ("GET /probe/127.0.0.1:15000/config HTTP/1.1\r\n{host}\r\n", 404),
        // Other methods.
        ("POST /probe/app/readiness HTTP/1.1\r\n{host}content-length: 0\r\n\r\n", 405),
        ("DELETE /probe/app/readiness HTTP/1.1\r\n{host}\r\n", 405),
        ("CONNECT 127.0.0.1:8080 HTTP/1.1\r\n{host}\r\n", 404),
        // What is said besides changes nothing about what is asked.
        ("GET /probe/app/readiness?path=/other&port=9000 HTTP/1.1\r\n{host}\r\n", 200),
        ("GET http://127.0.0.1:15000/probe/app/readiness HTTP/1.1\r\n{host}\r\n", 200),
        (
            "GET /probe/app/readiness HTTP/1.1\r\nhost: evil.example\r\nx-forwarded-host: evil.example\r\n\r\n",
            200,
        ),
        (
            "GET /probe/app/readiness HTTP/1.1\r\n{host}x: y\r\nupgrade: websocket\r\nconnection: upgrade, x\r\n\r\n",
            200,
        ),
        // A second request in the body of the first, for who reads it in another way.
        (
            "GET /probe/app/readiness HTTP/1.1\r\n{host}content-length: 38\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\nx: y\r\n\r\n",
            200,
        ),
        (
            "GET /probe/app/readiness HTTP/1.1\r\n{host}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET \
             /smuggled HTTP/1.1\r\n{host}\r\n",
            200,
        ),
        ("GET /probe/app/readiness HTTP/1.1\r\n{host}transfer-encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        ("GET /probe/app/readiness\r\nGET /smuggled HTTP/1.1\r\n\r\n", 400),
    ] {
        let request = request.replace("{host}", &host);
        let answer = exchange(&probed.kubelet, address, &request).await;
        let line = answer.lines().next().unwrap_or_default();
        assert!(
            line.starts_with(&format!("HTTP/1.1 {status}")),
            "{request:?} brings {answer:?} instead of {status}"
        );
        assert!(!answer.contains(SECRET), "{request:?}: {answer:?}");
    }
    assert_eq!(probed.seen(), ["GET /healthz HTTP/1.1"], "the application was asked what is declared");
    // At the application's own port nothing has opened: neither for this path nor for any other.
    for path in ["/healthz", "/", "/probe/app/readiness"] {
        let request = format!("GET {path} HTTP/1.1\r\n{host}\r\n");
        assert_eq!(exchange(&probed.kubelet, (probed.meshed.host.v4, HTTP).into(), &request).await, "");
    }
    assert_eq!(probed.seen(), ["GET /healthz HTTP/1.1"]);
}

#[tokio::test]
async fn a_crowd_at_the_door_keeps_no_kubelet_out_and_costs_the_application_nothing() {
    let probed = Probed::start(
        json!({"readinessProbe": {"httpGet": {"port": HTTP, "path": "/ready"}, "timeoutSeconds": 5}}),
    )
    .await;
    let address = probed.address();
    let crowd = probed.mesh.host("crowd");
    let mut slow = Vec::new();
    for number in 0..500 {
        let mut stream = crowd.connect(address).await.expect("the port is open");
        // Half of them say nothing at all. Those that are one too many are closed.
        if number % 2 == 0 {
            let _ = stream.write_all(b"GET /probe/app/readiness HTTP/1.1\r\nx: ").await;
        }
        slow.push(stream);
    }
    let request = format!("GET /probe/app/readiness HTTP/1.1\r\nhost: {address}\r\n\r\n");
    assert_eq!(exchange(&crowd, address, &request).await, "", "who has so many gets no more");
    // And some ask as fast as they can.
    let (start, mut hasty) = (Instant::now(), Vec::new());
    for _ in 0..4 {
        let kubelet = probed.kubelet.clone();
        hasty.push(tokio::spawn(async move {
            let request = format!("GET /probe/app/readiness HTTP/1.1\r\nhost: {address}\r\n\r\n");
            for _ in 0..50 {
                let answer = exchange(&kubelet, address, &request).await;
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
            }
        }));
    }
    for _ in 0..5 {
        assert_eq!(probed.probe("readinessProbe").await.0, 200);
    }
    for hasty in hasty {
        hasty.await.expect("each is answered");
    }
    let quarters = start.elapsed().as_millis() / 250;
    let asked = std::fs::read_to_string(&probed.log).expect("it is ours").lines().count();
    assert!(
        asked as u128 <= quarters + 1,
        "the application was asked {asked} times in {:?}",
        start.elapsed()
    );
    drop(slow);
}

#[tokio::test]
async fn probes_are_answered_while_the_control_plane_is_away() {
    let probed =
        Probed::start(json!({"livenessProbe": {"tcpSocket": {"port": HTTP}, "timeoutSeconds": 5}})).await;
    probed.mesh.hosts().control.cut();
    probed.until("livenessProbe", 200).await;
    assert_eq!(probed.kubelet_at(probed.meshed.host.v4.into(), HTTP).await, "");
}

impl Probed {
    /// What the kubelet gets at a port in plaintext.
    async fn kubelet_at(&self, ip: IpAddr, port: u16) -> String {
        exchange(&self.kubelet, (ip, port).into(), "GET / HTTP/1.1\r\nhost: web\r\n\r\n").await
    }
}

/// Sends bytes and reads the first answer, or all until the end where there is none.
async fn exchange(host: &Host, address: SocketAddr, request: &str) -> String {
    // A reset may be there before the handshake's end is noticed.
    let Ok(mut stream) = host.connect(address).await else { return String::new() };
    let mut answer = Vec::new();
    if stream.write_all(request.as_bytes()).await.is_ok() {
        let read = async {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                answer.extend_from_slice(&buffer[..count]);
                let text = String::from_utf8_lossy(&answer);
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                if body.len() >= length.and_then(|length| length.parse().ok()).unwrap_or(0) {
                    break;
                }
            }
        };
        tokio::time::timeout(LIMIT, read).await.expect("it ends");
    }
    String::from_utf8_lossy(&answer).into_owned()
}

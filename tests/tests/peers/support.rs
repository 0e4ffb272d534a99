//! Envoy and gRPC programs as members of a test's mesh: their certificates, bootstraps and processes.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;
use tulle_tests::{
    LIMIT, NAMESPACE, TRUST_DOMAIN, TestMesh, binary, certs, fetch, output_of, python, wait_for,
};

/// The folder of a service account's certificates, which `tulle certs` fills.
pub(crate) async fn certificates(mesh: &TestMesh, service_account: &str) -> PathBuf {
    let folder = mesh.folder.path().join("certs").join(service_account);
    let output = output_of(certs(mesh, service_account, &folder)).await;
    assert!(output.status.success(), "{output:?}");
    folder
}

/// The bootstrap of a program, as `tulle bootstrap` prints it.
pub(crate) async fn bootstrap(mesh: &TestMesh, program: &str, certs: &Path, more: &[&str]) -> Value {
    let mut command = Command::new(binary("tulle"));
    command.args(["bootstrap", program, "--trust-domain", TRUST_DOMAIN, "--certs"]).arg(certs);
    command.args(["--control-plane", &mesh.mesh.xds().to_string()]).args(more);
    let output = output_of(command).await;
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Writes a bootstrap to a file.
fn file(mesh: &TestMesh, name: &str, bootstrap: &Value) -> PathBuf {
    let path = mesh.folder.path().join(format!("{name}.json"));
    std::fs::write(&path, bootstrap.to_string()).expect("the folder can be written");
    path
}

/// A Service and the Workload behind it, on loopback, whose sidecar or server is at the mesh port.
pub(crate) fn service(name: &str, service_account: &str, mesh_port: u16, app: u16, protocol: &str) -> String {
    let objects = [
        json!({
            "apiVersion": "tulle.dev/v1alpha1",
            "kind": "Workload",
            "metadata": { "name": name, "namespace": NAMESPACE, "labels": { "app": name } },
            "spec": {
                "address": "127.0.0.1",
                "serviceAccount": service_account,
                "ports": [{ "name": "main", "port": app, "meshPort": mesh_port }],
            },
        }),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": {
                "selector": { "app": name },
                "ports": [{ "name": "main", "port": 80, "targetPort": "main", "appProtocol": protocol }],
            },
        }),
    ];
    objects.iter().map(|object| format!("---\n{object}\n")).collect()
}

/// A policy that lets one service account alone call a Service.
pub(crate) fn only(service: &str, caller: &str) -> String {
    let policy = json!({
        "apiVersion": "tulle.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": format!("only-{caller}"), "namespace": NAMESPACE },
        "spec": {
            "targetRefs": [{ "kind": "Service", "name": service }],
            "action": "ALLOW",
            "enforcementLevel": "Application",
            "rules": [{ "sources": [{ "type": "ServiceAccount", "serviceAccount": { "name": caller } }] }],
        },
    });
    format!("{policy}\n")
}

/// A program with proxyless gRPC that calls a target when told to.
pub(crate) struct GrpcClient {
    _child: Child,
    stdin: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl GrpcClient {
    /// One that is a service account.
    pub(crate) async fn start(mesh: &TestMesh, service_account: &str, target: &str) -> Self {
        let certs = certificates(mesh, service_account).await;
        let bootstrap = bootstrap(mesh, "grpc", &certs, &[]).await;
        let mut command = python("xds_client.py");
        command.arg(target).env("GRPC_VERBOSITY", "NONE");
        command.env("GRPC_XDS_BOOTSTRAP", file(mesh, &format!("grpc-{service_account}"), &bootstrap));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("python: {error}; run tests/setup"));
        let stdin = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Self { _child: child, stdin, answers }
    }

    /// Calls; the code's name, and what came with it: the reply or the details.
    pub(crate) async fn call(&mut self, metadata: &Value) -> (String, String) {
        let wish = json!({ "metadata": metadata });
        self.stdin.write_all(format!("{wish}\n").as_bytes()).await.expect("it runs");
        let line = timeout(LIMIT, self.answers.next_line()).await.expect("in time").expect("it can be read");
        let said: Value = serde_json::from_str(&line.expect("it runs")).expect("JSON");
        let text = |field: &str| said[field].as_str().expect("text").to_owned();
        (text("code"), text("details") + &text("reply"))
    }

    /// Calls until a code comes.
    pub(crate) async fn until(&mut self, code: &str) -> String {
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let (now, text) = self.call(&json!({})).await;
            if now == code {
                return text;
            }
            assert!(tokio::time::Instant::now() < deadline, "{now} in place of {code}: {text}");
        }
    }
}

/// A gRPC server that takes its listener from the control plane.
pub(crate) struct GrpcServer {
    child: Child,
}

impl GrpcServer {
    /// One that asks for its listener as a service account, and proves itself with the certificates of a folder.
    pub(crate) async fn start(mesh: &TestMesh, service_account: &str, proof: &Path, listen: &str) -> Self {
        let certs = certificates(mesh, service_account).await;
        let mut bootstrap = bootstrap(mesh, "grpc", &certs, &[]).await;
        let files = &mut bootstrap["certificate_providers"]["default"]["config"];
        files["certificate_file"] = json!(proof.join("tls.crt"));
        files["private_key_file"] = json!(proof.join("tls.key"));
        let mut command = python("xds_server.py");
        command.arg(listen).env("GRPC_VERBOSITY", "NONE");
        command.env("GRPC_XDS_BOOTSTRAP", file(mesh, &format!("server-{service_account}"), &bootstrap));
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().unwrap_or_else(|error| panic!("python: {error}; run tests/setup"));
        Self { child }
    }

    /// Kills it.
    pub(crate) async fn stop(mut self) {
        self.child.kill().await.expect("it runs");
    }
}

/// Calls an address as gRPC without xDS; the code's name and what came with it.
pub(crate) async fn call(port: SocketAddr) -> String {
    let script = "import grpc, sys\nc = grpc.insecure_channel(sys.argv[1])\ntry:\n    \
                  print('OK', c.unary_unary('/test.Echo/Unary')(b'abc', timeout=5))\nexcept grpc.RpcError as e:\n    \
                  print(e.code().name, e.details())\n";
    let mut command = Command::new(python("xds_client.py").as_std().get_program());
    command.args(["-c", script, &port.to_string()]);
    String::from_utf8(output_of(command).await.stdout).expect("UTF-8")
}

/// Calls until a code comes.
pub(crate) async fn until_called(port: SocketAddr, start: &str) -> String {
    let said = || async {
        let said = call(port).await;
        if said.starts_with(start) { Ok(said) } else { Err(format!("not {start}: {said}")) }
    };
    wait_for(LIMIT, said).await.unwrap_or_else(|error| panic!("{error}"))
}

/// A range of loopback for virtual addresses, of this test alone.
pub(crate) fn range() -> String {
    format!("127.{}.{}.0/24", fastrand::u8(16..250), fastrand::u8(..))
}

/// The virtual address of a Service of the mesh.
pub(crate) async fn virtual_address(mesh: &TestMesh, service: &str) -> SocketAddr {
    let path = mesh.mesh.state.join("virtual-addresses.json");
    let name = format!("{service}.{NAMESPACE}.svc.cluster.local");
    let given = || async {
        let text = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
        let held: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let address: Option<IpAddr> = held[&name][0].as_str().and_then(|ip| ip.parse().ok());
        address.ok_or_else(|| format!("{name} has none: {text}"))
    };
    let ip = wait_for(LIMIT, given).await.unwrap_or_else(|error| panic!("{error}"));
    SocketAddr::new(ip, 80)
}

/// Envoy, by its own word of its place.
pub(crate) struct Envoy {
    _child: Child,
    log: PathBuf,
    admin: SocketAddr,
}

impl Envoy {
    /// One that is a service account, and proves itself to peers with the certificates of another folder where one is given;
    /// `more` goes to `tulle bootstrap`.
    pub(crate) async fn start(
        mesh: &TestMesh,
        service_account: &str,
        proof: Option<&Path>,
        more: &[&str],
    ) -> Self {
        let certs = certificates(mesh, service_account).await;
        let more = [&["--admin", "0"], more].concat();
        let mut bootstrap = bootstrap(mesh, "envoy", &certs, &more).await;
        if let Some(proof) = proof {
            bootstrap["node"]["metadata"]["TULLE_CERTS"] = json!(proof);
        }
        let path = file(mesh, &format!("envoy-{service_account}"), &bootstrap);
        let (log, address) = (path.with_extension("log"), path.with_extension("admin"));
        let python = python("xds_client.py");
        let mut command = Command::new(Path::new(python.as_std().get_program()).with_file_name("envoy"));
        command.arg("-c").arg(&path).args(["--concurrency", "1", "--disable-hot-restart", "-l", "info"]);
        command.arg("--admin-address-path").arg(&address);
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        command.stderr(std::fs::File::create(&log).expect("a file"));
        let child = command.spawn().unwrap_or_else(|error| panic!("envoy: {error}; run tests/setup"));
        let listens = || async {
            let text = std::fs::read_to_string(&address).map_err(|error| error.to_string())?;
            text.trim().parse().map_err(|_| format!("{text:?} is no address"))
        };
        let admin = wait_for(LIMIT, listens).await.unwrap_or_else(|error| panic!("envoy: {error}"));
        Self { _child: child, log, admin }
    }

    /// Waits until it has a listener at an address.
    pub(crate) async fn listens(&self, address: SocketAddr) {
        let has = || async {
            let (_, listeners) = fetch(&format!("http://{}/listeners", self.admin)).await?;
            match tokio::net::TcpStream::connect(address).await {
                Ok(_) if listeners.contains(&format!("::{address}")) => Ok(()),
                _ => Err(format!("no listener at {address}: {listeners}\n{}", self.log())),
            }
        };
        wait_for(LIMIT, has).await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// The sum of its counters whose names end so.
    pub(crate) async fn count(&self, suffix: &str) -> u64 {
        let (_, text) = fetch(&format!("http://{}/stats", self.admin)).await.expect("it answers");
        let values =
            text.lines().filter_map(|line| line.split_once(": ")).filter(|(name, _)| name.ends_with(suffix));
        values.filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

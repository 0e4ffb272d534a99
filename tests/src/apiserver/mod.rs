//! A real Kubernetes API server: etcd and kube-apiserver as `tests/apiserver/build` makes them, without a kubelet, a
//! scheduler or a controller, as envtest does it.
//!
//! In: nothing but the programs (in `target/kubernetes`). Out: a server on loopback with RBAC and service-account tokens,
//! kubeconfigs for it, and kubectl. Everything ends with the test program, however that ends.
//!
//! What no controller does, a test does: a namespace has no service account `default` until [`ApiServer::namespace`] has
//! made it, a pod that stands on a node stays there until it is deleted by force, EndpointSlices are written by hand.

mod keeper;
mod pki;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};

use keeper::Kept;
pub use keeper::kept;
use pki::Pki;

/// How long the server may take to start, on a machine that has much else to do.
const START: Duration = Duration::from_secs(120);

/// The longest that kubectl may take.
const KUBECTL: Duration = Duration::from_secs(60);

/// Flags of a server that has ClusterTrustBundles, which in 1.34 is to be asked for.
pub const CLUSTER_TRUST_BUNDLES: [&str; 2] = [
    "--runtime-config=certificates.k8s.io/v1beta1/clustertrustbundles=true",
    "--feature-gates=ClusterTrustBundle=true,ClusterTrustBundleProjection=true",
];

/// Which CustomResourceDefinitions of the Gateway API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Those that a cluster has by default.
    Standard,
    /// Those with fields that may still change, such as retries.
    Experimental,
}

/// A running API server.
#[derive(Debug)]
pub struct ApiServer {
    /// Where it serves, over TLS.
    pub address: SocketAddr,
    /// The kubeconfig of who may do everything.
    pub kubeconfig: PathBuf,
    // Dropped in this order: the server goes before its store, and both before what they keep.
    server: Option<Kept>,
    etcd: Kept,
    etcd_address: SocketAddr,
    flags: Vec<String>,
    pki: Pki,
    namespaces: AtomicU32,
    folder: TempDir,
}

/// The one of [`ApiServer::shared`].
static SHARED: OnceCell<ApiServer> = OnceCell::const_new();

impl ApiServer {
    /// The one that the tests of this program share: each works in namespaces of its own.
    pub async fn shared() -> &'static Self {
        SHARED.get_or_init(Self::start).await
    }

    /// An own one, which has nothing but what every API server has.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// An own one with more flags.
    pub async fn start_with(flags: &[&str]) -> Self {
        let folder = crate::test_folder();
        let pki = Pki::make(folder.path());
        let etcd_address = free_port();
        let mut api = Self {
            address: free_port(),
            kubeconfig: folder.path().join("admin.kubeconfig"),
            etcd: start_etcd(folder.path(), etcd_address),
            server: None,
            etcd_address,
            flags: flags.iter().map(ToString::to_string).collect(),
            pki,
            namespaces: AtomicU32::new(0),
            folder,
        };
        let user = json!({ "client-certificate": api.pki.admin, "client-key": api.pki.admin_key });
        api.write_kubeconfig(&api.kubeconfig, &user);
        api.restart().await;
        api
    }

    /// Kills the server: who asks it then finds nobody listening. Its objects stay.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Starts the server where there is none, and waits until it is ready.
    pub async fn restart(&mut self) {
        let log = self.folder.path().join("apiserver.log");
        let deadline = Instant::now() + START;
        loop {
            let mut server = self.server.take().unwrap_or_else(|| self.start_server());
            let ended = server.has_ended();
            self.server = Some(server);
            if ended {
                // etcd may have been too late, or a port was taken between its choice and its use.
                let etcd = tail(&self.folder.path().join("etcd.log"));
                let ends = "the API server ends at once";
                assert!(Instant::now() < deadline, "{ends}:\n{}\netcd:\n{etcd}", tail(&log));
                self.server = None;
                if self.etcd.has_ended() {
                    assert!(etcd.contains("address already in use"), "etcd ends at once:\n{etcd}");
                    self.etcd_address = free_port();
                    self.etcd = start_etcd(self.folder.path(), self.etcd_address);
                }
                continue;
            }
            match self.try_kubectl(&["get", "--raw", "/readyz"]).await {
                Ok(_) => return,
                Err(error) => {
                    assert!(
                        Instant::now() < deadline,
                        "the API server is not ready: {error}\n{}",
                        tail(&log)
                    );
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Has etcd forget all that was before the newest revision, as it does by itself every few minutes. Who asks the server,
    /// once it is started again, for what happened since is told that this is gone.
    pub async fn compact(&self) {
        let call = async |path: &str, body: Value| -> Value {
            let mut command = crate::curl();
            let url = format!("http://{}/v3/kv/{path}", self.etcd_address);
            command.args(["--fail", "--data", &body.to_string(), &url]);
            let output = crate::output_of(command).await;
            serde_json::from_slice(&output.stdout).expect("etcd answers with JSON")
        };
        // Some key, for the answer's header.
        let read = call("range", json!({ "key": "AA==" })).await;
        let revision = &read["header"]["revision"];
        call("compaction", json!({ "revision": revision, "physical": true })).await;
    }

    /// A new namespace with a service account `default`: its name, which begins with `prefix`.
    pub async fn namespace(&self, prefix: &str) -> String {
        let name = format!("{prefix}-{}", self.namespaces.fetch_add(1, Ordering::Relaxed));
        self.make_namespace(&name).await;
        name
    }

    /// The namespace of a name, with a service account `default`.
    pub async fn make_namespace(&self, name: &str) {
        let account = json!({ "name": "default", "namespace": name });
        self.apply(&format!(
            "{}\n---\n{}",
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }),
            json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": account }),
        ))
        .await;
    }

    /// Installs the Gateway API's kinds, and waits until they are served.
    pub async fn install_gateway_api(&self, channel: Channel) {
        let folder = programs().join("gateway-api").join(match channel {
            Channel::Standard => "standard",
            Channel::Experimental => "experimental",
        });
        self.install_crds(&folder, "gateway.networking.").await;
    }

    /// Installs Tulle's own kinds, and waits until they are served.
    pub async fn install_tulle(&self) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/crds");
        self.install_crds(&folder, "").await;
    }

    /// Files of a folder that begin with `prefix`; server-side, because some are too large for kubectl's annotation, and
    /// whatever a test has changed in them before.
    async fn install_crds(&self, folder: &Path, prefix: &str) {
        let mut arguments: Vec<String> =
            ["apply", "--server-side", "--force-conflicts"].map(Into::into).to_vec();
        let files = std::fs::read_dir(folder).unwrap_or_else(|error| {
            panic!("{}: {error}; run tests/setup", folder.display());
        });
        for file in files {
            let path = file.expect("the folder can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(prefix) && name.ends_with(".yaml") && name != "kustomization.yaml" {
                arguments.push(format!("--filename={}", path.display()));
            }
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.kubectl(&arguments).await;
        self.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).await;
    }

    /// A token of a service account, as the kubelet asks for it: for an audience, and bound to a pod where one is named.
    pub async fn token(&self, namespace: &str, account: &str, audience: &str, pod: Option<&str>) -> String {
        let audience = format!("--audience={audience}");
        let mut arguments = vec!["create", "token", account, "-n", namespace, &audience];
        let bound = pod.map(|pod| format!("--bound-object-name={pod}"));
        if let Some(bound) = &bound {
            arguments.extend(["--bound-object-kind=Pod", bound.as_str()]);
        }
        self.kubectl(&arguments).await.trim().to_owned()
    }

    /// The kubeconfig of a service account, which may do what RBAC allows it.
    pub async fn kubeconfig_of(&self, namespace: &str, account: &str) -> PathBuf {
        let token = self.kubectl(&["create", "token", account, "-n", namespace]).await;
        let path = self.folder.path().join(format!("{namespace}.{account}.kubeconfig"));
        self.write_kubeconfig(&path, &json!({ "token": token.trim() }));
        path
    }

    /// Runs kubectl as who may do everything: its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub async fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.try_kubectl(arguments).await;
        output.unwrap_or_else(|error| panic!("kubectl {}: {error}", arguments.join(" ")))
    }

    /// Runs kubectl as who may do everything: its standard output.
    ///
    /// # Errors
    /// Its standard error when it fails.
    pub async fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.run_kubectl(arguments, "").await
    }

    /// `kubectl apply` of a text: what it says.
    ///
    /// # Panics
    /// When it fails.
    pub async fn apply(&self, manifests: &str) -> String {
        self.try_apply(manifests).await.unwrap_or_else(|error| panic!("kubectl apply: {error}\n{manifests}"))
    }

    /// `kubectl apply` of a text: what it says.
    ///
    /// # Errors
    /// Its standard error when it fails.
    pub async fn try_apply(&self, manifests: &str) -> Result<String, String> {
        let apply = async || self.run_kubectl(&["apply", "-f", "-"], manifests).await;
        match apply().await {
            // Somebody who applies the same object made it between kubectl's look and its creation (two pods of a test
            // bring the same service account): now there is one to change.
            Err(error) if error.contains("(AlreadyExists)") => apply().await,
            outcome => outcome,
        }
    }

    /// Replaces an object's status, as only its controller does.
    pub async fn patch_status(&self, namespace: &str, kind: &str, name: &str, status: &Value) {
        let patch = json!({ "status": status }).to_string();
        let place = ["-n", namespace, "patch", kind, name, "--subresource=status", "--type=merge", "-p"];
        self.kubectl(&[&place[..], &[patch.as_str()]].concat()).await;
    }

    /// An object as the server has it.
    pub async fn get(&self, namespace: &str, kind: &str, name: &str) -> Value {
        let text = self.kubectl(&["-n", namespace, "get", kind, name, "-o", "json"]).await;
        serde_json::from_str(&text).expect("kubectl writes JSON")
    }

    /// What service accounts of Tulle's namespaces have asked for so far, as the server's audit log has it: one event for
    /// each request.
    ///
    /// # Panics
    /// When the log can't be read.
    pub fn audited(&self) -> Vec<Value> {
        let text =
            std::fs::read_to_string(self.folder.path().join("audit.log")).expect("the server writes it");
        // The last line may be half.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// `kubectl apply` of a text whose unknown fields the server drops, with no more than a warning.
    ///
    /// # Panics
    /// When it fails.
    pub async fn apply_loosely(&self, manifests: &str) -> String {
        let applied = self.run_kubectl(&["apply", "--validate=ignore", "-f", "-"], manifests).await;
        applied.unwrap_or_else(|error| panic!("kubectl apply: {error}\n{manifests}"))
    }

    async fn run_kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new(programs().join("kubectl"));
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        // Its cache of what the server serves would outlive a change of that.
        command.arg("--cache-dir").arg(self.folder.path().join("kubectl"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("kubectl: {error}; run tests/setup"));
        let mut stdin = child.stdin.take().expect("it is piped");
        let feed = async move {
            // One that fails early does not read it all.
            let _ = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
        };
        let both = async { tokio::join!(feed, child.wait_with_output()).1 };
        let output =
            timeout(KUBECTL, both).await.expect("kubectl ends in time").expect("it can be waited for");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    fn write_kubeconfig(&self, path: &Path, user: &Value) {
        let server = format!("https://{}", self.address);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "clusters": [{
                "name": "test",
                "cluster": { "server": server, "certificate-authority": self.pki.ca },
            }],
            "users": [{ "name": "test", "user": user }],
        });
        std::fs::write(path, config.to_string()).expect("the folder can be written");
    }

    fn start_server(&self) -> Kept {
        let (folder, pki) = (self.folder.path(), &self.pki);
        let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
        let mut command = vec![programs().join("kube-apiserver").display().to_string()];
        command.extend([
            format!("--etcd-servers=http://{}", self.etcd_address),
            format!("--bind-address={}", self.address.ip()),
            format!("--secure-port={}", self.address.port()),
            flag("cert-dir", folder),
            flag("client-ca-file", &pki.ca),
            flag("tls-cert-file", &pki.server),
            flag("tls-private-key-file", &pki.server_key),
            flag("service-account-key-file", &pki.accounts),
            flag("service-account-signing-key-file", &pki.accounts_key),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--authorization-mode=RBAC".into(),
            "--allow-privileged=true".into(),
            // Webhooks are dialled at the pods behind their Service: there is no kube-proxy.
            "--enable-aggregator-routing=true".into(),
            // The address of this server is no endpoint: it is on loopback.
            "--endpoint-reconciler-type=none".into(),
            "--shutdown-delay-duration=0s".into(),
            flag("audit-log-path", &folder.join("audit.log")),
            flag("audit-policy-file", &audit_policy(folder)),
        ]);
        command.extend_from_slice(&self.flags);
        Kept::start(&command, &folder.join("apiserver.log"), None)
    }
}

fn start_etcd(folder: &Path, address: SocketAddr) -> Kept {
    let peers = free_port();
    let command = [
        programs().join("etcd").display().to_string(),
        format!("--data-dir={}", folder.join("etcd").display()),
        format!("--listen-client-urls=http://{address}"),
        format!("--advertise-client-urls=http://{address}"),
        format!("--listen-peer-urls=http://{peers}"),
        format!("--initial-advertise-peer-urls=http://{peers}"),
        format!("--initial-cluster=default=http://{peers}"),
        "--unsafe-no-fsync".into(),
    ];
    // It is the last to go: nothing drops the folder of the one that is shared.
    Kept::start(&command, &folder.join("etcd.log"), Some(folder))
}

/// What goes to the audit log: requests of the service accounts that come with the manifests.
fn audit_policy(folder: &Path) -> PathBuf {
    let groups = ["tulle-system", "tulle-cni"].map(|name| format!("system:serviceaccounts:{name}"));
    let policy = json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{ "level": "Metadata", "userGroups": groups }, { "level": "None" }],
    });
    let path = folder.join("audit-policy.yaml");
    std::fs::write(&path, policy.to_string()).expect("the folder can be written");
    path
}

/// Where `tests/apiserver/build` has put the programs: kubectl and helm for those who run them by themselves.
pub fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kubernetes")
}

fn free_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, crate::free_port()))
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

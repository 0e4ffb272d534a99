//! The control plane of other making, and a sidecar under it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use serde_json::{Value, json};
use tokio::process::Command;
use tulle_cli::local::{Process, Sidecar};

use super::text;
use crate::{LIMIT, NAMESPACE, TRUST_DOMAIN, binaries, identity, wait_for};

/// Who may prove that they call: each has a certificate.
pub const CALLERS: [&str; 3] = ["web", "web-2", "cart"];

/// `tests/python/ads.py`, running.
pub struct Ads {
    /// Where it serves those who need no proof.
    pub plain: SocketAddr,
    /// Where it serves those who prove themselves.
    pub(super) tls: SocketAddr,
    process: Process,
    folder: PathBuf,
    pki: [PathBuf; 3],
    commands: u64,
    /// What was ever served, by type and name.
    served: BTreeMap<(String, String), Value>,
}

/// A client's answer to a response.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The client's user agent.
    pub agent: String,
    /// The type of the response.
    pub kind: String,
    /// What it rejects and why; empty when it took all.
    pub error: String,
    /// The last command to the control plane that the response knew of.
    pub command: u64,
}

impl Ads {
    /// Starts it with certificates of its own.
    pub(super) async fn start(folder: &Path) -> Self {
        let pki = write_pki(folder);
        let process = run(&pki, &[], folder).await;
        let port = |field: &str| {
            let port = process.started[field].as_u64().and_then(|port| u16::try_from(port).ok());
            SocketAddr::from(([127, 0, 0, 1], port.expect("it says where it listens")))
        };
        let (plain, tls) = (port("plain"), port("tls"));
        Self { plain, tls, folder: folder.into(), process, pki, commands: 0, served: BTreeMap::new() }
    }

    /// Starts it again where it was, with all that it has served and with `changed` besides.
    pub async fn restart(&mut self, changed: Vec<Value>) {
        let ports = [self.tls, self.plain].map(|address| address.port().to_string());
        self.process = run(&self.pki, &ports, &self.folder).await;
        self.commands = 0;
        self.keep(&changed);
        let all = self.served.values().cloned().collect();
        self.set(all).await;
    }

    /// Has it serve resources, and waits until it does: the number of the command, and the types of which something is new or
    /// another than before.
    pub async fn set(&mut self, resources: Vec<Value>) -> (u64, Vec<String>) {
        self.keep(&resources);
        self.tell(json!({ "set": resources })).await
    }

    /// Has it serve a resource no longer.
    pub async fn remove(&mut self, kind: &str, name: &str) {
        self.tell(json!({ "remove": [{ "type": kind, "name": name }] })).await;
    }

    /// Has it say messages to the sidecar as they are, all of them so often.
    pub async fn say(&mut self, messages: &[Vec<u8>], times: usize) {
        let messages: Vec<_> = messages.iter().map(|message| BASE64_STANDARD.encode(message)).collect();
        self.tell(json!({ "say": messages, "to": "tulle", "times": times })).await;
    }

    /// Kills it.
    pub async fn kill(&mut self) {
        self.process.kill().await;
    }

    /// All answers to responses so far.
    pub fn answered(&self) -> Vec<Answered> {
        let answers = self.said().into_iter().filter_map(|line| {
            Some(Answered {
                agent: text(&line["agent"]),
                kind: text(&line["type"]),
                error: text(&line["error"]),
                command: line["answers"].as_u64()?,
            })
        });
        answers.collect()
    }

    /// How many responses a client has not answered yet. What a stream that is gone was sent needs no answer.
    pub fn unanswered(&self, agent: &str) -> usize {
        let said = self.said();
        let begins = |line: &Value, field: &str| line[field].as_str().is_some_and(|of| of.starts_with(agent));
        let newest = said.iter().rposition(|line| begins(line, "stream")).unwrap_or_default();
        let sent = said[newest..].iter().filter(|line| begins(line, "sent")).count();
        let of_it = said[newest..].iter().filter(|line| begins(line, "agent"));
        sent.saturating_sub(of_it.filter(|line| line["answers"].is_u64()).count())
    }

    /// How many streams clients with this user agent have opened so far.
    pub fn streams(&self, agent: &str) -> usize {
        self.said().iter().filter(|line| line["stream"] == agent).count()
    }

    /// Starts a sidecar with a local port for each service and one for peers, which reaches the control plane at an address.
    pub(super) async fn sidecar(
        &self,
        folder: &Path,
        at: SocketAddr,
        services: &[&str],
        inbound: SocketAddr,
    ) -> Sidecar {
        let config = json!({
            "workload": { "namespace": NAMESPACE, "serviceAccount": "client", "name": "client" },
            "trustDomain": TRUST_DOMAIN,
            "controlPlane": { "address": at.to_string(), "rootFile": folder.join("root.pem") },
            "identity": {
                "certificateFile": folder.join("client.pem"),
                "keyFile": folder.join("client.key"),
                "bundleFile": folder.join("root.pem"),
            },
            "outbound": {
                "proxy": "127.0.0.1:0",
                "ports": services.iter()
                    .map(|service| json!({ "listen": "127.0.0.1:0", "service": service }))
                    .collect::<Vec<_>>(),
            },
            // Where its connections go, the listener's routes say.
            "inbound": [{ "listen": inbound.to_string(), "app": "127.0.0.1:1" }],
            "admin": "127.0.0.1:0",
            "health": "127.0.0.1:0",
            "workers": 1,
        });
        let path = folder.join("sidecar.yaml");
        std::fs::write(&path, config.to_string()).expect("the folder can be written");
        let mut command = Command::new(binaries().sidecar);
        command.args(["run", "--config"]).arg(&path);
        let started = Process::start("sidecar", command, folder).await;
        let sidecar = started.and_then(Sidecar::of).unwrap_or_else(|error| panic!("{error}"));
        sidecar
            .ready(LIMIT)
            .await
            .unwrap_or_else(|error| panic!("{error}\n{}\n{}", sidecar.process.log(), self.process.log()));
        sidecar
    }

    fn keep(&mut self, resources: &[Value]) {
        let key = |resource: &Value| (text(&resource["@type"]), text(&resource["name@wire"]));
        self.served.extend(resources.iter().map(|resource| (key(resource), resource.clone())));
    }

    async fn tell(&mut self, mut command: Value) -> (u64, Vec<String>) {
        self.commands += 1;
        let id = self.commands;
        command["id"] = json!(id);
        self.process.tell(&command.to_string()).await.expect("it runs");
        let this = &*self;
        let done = || async {
            let said = this.said();
            let done = said.iter().find(|line| line["done"] == id);
            let done = done.map(|done| done["changed"].as_array().into_iter().flatten().map(text).collect());
            done.ok_or_else(|| format!("the control plane does not obey:\n{}", this.process.log()))
        };
        let changed = wait_for(LIMIT, done).await.unwrap_or_else(|error| panic!("{error}"));
        (id, changed)
    }

    /// What it has said, but for a line that is not whole yet.
    fn said(&self) -> Vec<Value> {
        let out = std::fs::read_to_string(self.folder.join("ads.py.out")).unwrap_or_default();
        out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

async fn run(pki: &[PathBuf], ports: &[String], folder: &Path) -> Process {
    let paths = pki.iter().map(|path| path.to_str().expect("UTF-8"));
    let args: Vec<&str> = paths.chain(ports.iter().map(String::as_str)).collect();
    super::python("ads.py", &args, folder).await
}

/// A root, the control plane's certificate and the client's: the paths of the control plane's certificate, key and root.
fn write_pki(folder: &Path) -> [PathBuf; 3] {
    let key = || KeyPair::generate().expect("the system gives random bytes");
    let put = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("the folder can be written");
        path
    };
    let root_key = key();
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = root.self_signed(&root_key).expect("the parameters are sound");
    let issuer = Issuer::new(root, root_key);
    let leaf = |names: Vec<SanType>, subject: &[(DnType, &str)]| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        // With the subject of its issuer it would be taken for one that signed itself.
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in subject {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let key = key();
        let leaf = params.signed_by(&key, &issuer).expect("the parameters are sound");
        (leaf.pem(), key.serialize_pem())
    };
    let (server, server_key) = leaf(vec![SanType::IpAddress([127, 0, 0, 1].into())], &[]);
    for name in ["client"].iter().chain(&CALLERS) {
        let uri = SanType::URI(identity(name).try_into().expect("ASCII"));
        // The last of them has names of all kinds.
        let (certificate, key) = match *name == CALLERS[2] {
            false => leaf(vec![uri], &[]),
            true => {
                let dns = |name: &str| SanType::DnsName(name.try_into().expect("ASCII"));
                let subject =
                    [(DnType::OrganizationName, "Net, Lace \"Co\""), (DnType::CommonName, "gr\u{fc}n")];
                leaf(vec![dns("cart.test"), uri, dns("*.cart.test")], &subject)
            }
        };
        put(&format!("{name}.pem"), certificate);
        put(&format!("{name}.key"), key);
    }
    [put("server.pem", server), put("server.key", server_key), put("root.pem", certificate.pem())]
}

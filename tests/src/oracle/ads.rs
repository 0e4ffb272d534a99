//! The control plane of other making, and a sidecar under it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};
use tokio::process::Command;
use tulle_cli::local::{Process, Sidecar};

use super::text;
use crate::{LIMIT, NAMESPACE, TRUST_DOMAIN, binaries, identity, wait_for};

/// `tests/python/ads.py`, running.
pub struct Ads {
    /// Where it serves those who need no proof.
    pub plain: SocketAddr,
    tls: SocketAddr,
    process: Process,
    folder: PathBuf,
    commands: u64,
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
        let paths = write_pki(folder);
        let paths: Vec<&str> = paths.iter().map(|path| path.to_str().expect("UTF-8")).collect();
        let process = super::python("ads.py", &paths, folder).await;
        let port = |field: &str| {
            let port = process.started[field].as_u64().and_then(|port| u16::try_from(port).ok());
            SocketAddr::from(([127, 0, 0, 1], port.expect("it says where it listens")))
        };
        Self { plain: port("plain"), tls: port("tls"), folder: folder.into(), process, commands: 0 }
    }

    /// Has it serve resources, and waits until it does: the number of the command.
    pub async fn set(&mut self, resources: Vec<Value>) -> u64 {
        self.tell(json!({ "set": resources })).await
    }

    /// Has it serve a resource no longer.
    pub async fn remove(&mut self, kind: &str, name: &str) {
        self.tell(json!({ "remove": [{ "type": kind, "name": name }] })).await;
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

    /// Starts a sidecar with a local port for each service.
    pub(super) async fn sidecar(&self, folder: &Path, services: &[&str]) -> Sidecar {
        let config = json!({
            "workload": { "namespace": NAMESPACE, "serviceAccount": "client", "name": "client" },
            "trustDomain": TRUST_DOMAIN,
            "controlPlane": { "address": self.tls.to_string(), "rootFile": folder.join("root.pem") },
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

    async fn tell(&mut self, mut command: Value) -> u64 {
        self.commands += 1;
        let id = self.commands;
        command["id"] = json!(id);
        self.process.tell(&command.to_string()).await.expect("it runs");
        let this = &*self;
        let done = || async {
            match this.said().iter().any(|line| line["done"] == id) {
                true => Ok(()),
                false => Err(format!("the control plane does not obey:\n{}", this.process.log())),
            }
        };
        wait_for(LIMIT, done).await.unwrap_or_else(|error| panic!("{error}"));
        id
    }

    /// What it has said, but for a line that is not whole yet.
    fn said(&self) -> Vec<Value> {
        let out = std::fs::read_to_string(self.folder.join("ads.py.out")).unwrap_or_default();
        out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
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
    let leaf = |name: SanType| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        // With the subject of its issuer it would be taken for one that signed itself.
        params.distinguished_name = DistinguishedName::new();
        let key = key();
        let leaf = params.signed_by(&key, &issuer).expect("the parameters are sound");
        (leaf.pem(), key.serialize_pem())
    };
    let (server, server_key) = leaf(SanType::IpAddress([127, 0, 0, 1].into()));
    let (client, client_key) = leaf(SanType::URI(identity("client").try_into().expect("ASCII")));
    put("client.pem", client);
    put("client.key", client_key);
    [put("server.pem", server), put("server.key", server_key), put("root.pem", certificate.pem())]
}

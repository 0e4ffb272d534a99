//! A webhook that answers every write to the status of the HTTPRoute `trial` with 409.
//!
//! In: AdmissionReviews over TLS. Out: that somebody was faster, always; and when each was asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

type Times = Arc<Mutex<Vec<Instant>>>;

/// The webhook. Ends when dropped.
pub(crate) struct Conflicts {
    address: SocketAddr,
    certificate: String,
    times: Times,
    serving: JoinHandle<()>,
}

impl Conflicts {
    pub(crate) async fn start() -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("the name is an address");
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![cert.der().clone()], key).expect("the key is its own");
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = tcp.local_addr().expect("it is bound");
        let listener = Listener { tcp, tls: TlsAcceptor::from(Arc::new(config)) };
        let times = Times::default();
        let router = Router::new().route("/", post(refuse)).with_state(times.clone());
        let serving =
            tokio::spawn(async { axum::serve(listener, router).await.expect("it serves for ever") });
        Self { address, certificate: cert.pem(), times, serving }
    }

    /// What makes the API server ask it.
    pub(crate) fn configuration(&self) -> String {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": { "name": "conflicts" },
            "webhooks": [{
                "name": "conflicts.example.com",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "clientConfig": {
                    "url": format!("https://{}/", self.address),
                    "caBundle": BASE64_STANDARD.encode(&self.certificate),
                },
                "matchConditions": [{ "name": "trial", "expression": "object.metadata.name == 'trial'" }],
                "rules": [{
                    "apiGroups": ["gateway.networking.k8s.io"], "apiVersions": ["*"],
                    "operations": ["UPDATE"], "resources": ["httproutes/status"],
                }],
            }],
        })
        .to_string()
    }

    /// When it was asked.
    pub(crate) fn times(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.times.lock().expect("nobody panics with it")
    }
}

impl Drop for Conflicts {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn refuse(State(times): State<Times>, Json(review): Json<Value>) -> Json<Value> {
    times.lock().expect("nobody panics with it").push(Instant::now());
    let status = json!({ "code": 409, "reason": "Conflict", "message": "somebody was faster" });
    let response = json!({ "uid": review["request"]["uid"], "allowed": false, "status": status });
    Json(json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response }))
}

struct Listener {
    tcp: TcpListener,
    tls: TlsAcceptor,
}

impl axum::serve::Listener for Listener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, peer) = self.tcp.accept().await.expect("the listener stays");
            if let Ok(stream) = self.tls.accept(stream).await {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

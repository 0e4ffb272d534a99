//! The admin interface on loopback, and health and metrics for everyone.
//!
//! In: requests of operators, of the CLI and of a Kubernetes probe. Out: what the sidecar believes and how it does. It
//! never shows a key, and what changes something is a POST that no web page can send: a page in an operator's browser
//! is refused, whatever name it gives this address.

mod csds;
mod dump;
mod explain;
mod guard;
mod health;
mod port;
pub mod types;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::port::Port;
use self::types::LogState;
use crate::app::{InForce, LogControl, Stop};
use crate::probes::Probes;
use crate::telemetry::Telemetry;
use crate::xds::Handle;

/// What the interface shows and changes.
pub(crate) struct Admin {
    /// Configuration and certificates.
    pub(crate) handle: Handle,
    /// What all workers serve from.
    pub(crate) in_force: watch::Receiver<InForce>,
    /// Metrics.
    pub(crate) telemetry: Arc<Telemetry>,
    /// The log.
    pub(crate) log: LogControl,
    /// The end.
    pub(crate) stop: Arc<Stop>,
    /// Probes of the application.
    pub(crate) probes: Probes,
    /// Why redirection is not proven; `None` where it is, or where nothing is captured.
    pub(crate) unproven: watch::Receiver<Option<String>>,
}

/// The servers, while they run.
pub(crate) struct Answering {
    servers: Vec<JoinHandle<()>>,
    end: watch::Sender<()>,
}

/// Serves the admin interface on `admin`, and health and metrics on `health`.
///
/// # Errors
/// When the sockets can't be registered with the runtime.
pub(crate) fn serve(
    state: Arc<Admin>,
    admin: TcpListener,
    health: Vec<TcpListener>,
) -> io::Result<Answering> {
    let end = watch::Sender::new(());
    let start = |listener, router, csds| -> io::Result<JoinHandle<()>> {
        Ok(tokio::spawn(Port::new(listener, router, csds)?.serve(end.subscribe())))
    };
    let mut servers = vec![start(admin, router(state.clone()), Some(state.clone()))?];
    for listener in health {
        servers.push(start(listener, health::router(state.clone()), None)?);
    }
    Ok(Answering { servers, end })
}

impl Answering {
    /// Stops answering.
    pub(crate) async fn end(self) {
        self.end.send_replace(());
        for mut server in self.servers {
            if timeout(LAST_ANSWERS, &mut server).await.is_err() {
                server.abort();
            }
        }
    }
}

/// How long requests to these ports may take once the sidecar ends.
const LAST_ANSWERS: Duration = Duration::from_millis(200);

fn router(state: Arc<Admin>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/config", get(dump::config))
        .route("/certs", get(dump::certificates))
        .route("/explain", get(explain::explain).post(explain::explain))
        .route("/drain", post(drain))
        .route("/log", get(log).post(set_log))
        .layer(middleware::from_fn(guard::refuse_browsers))
        .with_state(state)
}

async fn index() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], INDEX)
}

const INDEX: &str = "\
GET  /config   what this sidecar believes: listeners, routes, clusters, endpoints and how they do
GET  /certs    its certificate and trust bundle, without keys
GET  /explain?host=cart.shop:80&method=GET&path=/&header=name:value
               where a request would go, and why each other route does not match
POST /drain    finish what is in flight, then exit
GET  /log      what is logged
CSDS           (gRPC) each resource of the control plane as it was received, and what is awaited or refused
POST /log?level=info,tulle_sidecar::xds=debug
";

async fn drain(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    admin.stop.ask();
    (StatusCode::ACCEPTED, "draining\n")
}

async fn log(State(admin): State<Arc<Admin>>) -> Json<LogState> {
    Json(LogState { level: admin.log.level().as_str().to_owned() })
}

#[derive(Deserialize)]
struct SetLog {
    level: String,
}

async fn set_log(State(admin): State<Arc<Admin>>, Query(set): Query<SetLog>) -> Response {
    let level = match set.level.parse() {
        Ok(level) => level,
        Err(error) => return bad_request(&format!("level: {error}")),
    };
    match admin.log.set(level) {
        Ok(()) => log(State(admin)).await.into_response(),
        Err(error) => (StatusCode::CONFLICT, format!("{error}\n")).into_response(),
    }
}

fn bad_request(message: &str) -> Response {
    (StatusCode::BAD_REQUEST, format!("{message}\n")).into_response()
}

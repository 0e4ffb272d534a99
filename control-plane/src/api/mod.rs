//! The HTTP API of port 15014: what the control plane knows, for people, for Prometheus and for the CLI.
//!
//! | path | answer |
//! | --- | --- |
//! | `/ready` | 200 when sidecars are served; 503 before, and while the control plane stops; a line for what is waited for |
//! | `/metrics` | Prometheus text |
//! | `/api/v1/proxies` | [`types::ProxyList`] |
//! | `/api/v1/objects` | [`types::ObjectList`] |
//!
//! It only reads. Nothing here is secret towards who may reach the port, which is the loopback unless told otherwise:
//! no key, no token, no content of a resource.

pub mod types;

use std::future::IntoFuture;
use std::io;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::types::{ObjectList, ProxyList};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::status::Board;
use crate::xds::proxies::Proxies;

/// What the API shows.
pub struct Api {
    /// Who is connected.
    pub proxies: Arc<Proxies>,
    /// What became of each object.
    pub board: Arc<Board>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// Whether it serves, and what it waits for.
    pub health: Arc<Health>,
    /// Cancelled when the control plane stops.
    pub stop: CancellationToken,
}

impl Api {
    /// Serves connections of `listener` until the control plane stops.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(self, listener: TcpListener) -> io::Result<()> {
        let stop = self.stop.clone();
        let router = Router::new()
            .route("/ready", get(ready))
            .route("/metrics", get(metrics))
            .route("/api/v1/proxies", get(proxies))
            .route("/api/v1/objects", get(objects))
            .with_state(Arc::new(self));
        tokio::select! {
            served = axum::serve(listener, router).into_future() => served,
            () = stop.cancelled() => Ok(()),
        }
    }
}

async fn ready(State(api): State<Arc<Api>>) -> (StatusCode, String) {
    if api.stop.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".into());
    }
    let (started, text) = api.health.report();
    (if started { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

async fn metrics(State(api): State<Arc<Api>>) -> Response {
    match api.metrics.text() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn proxies(State(api): State<Arc<Api>>) -> Json<ProxyList> {
    Json(ProxyList { proxies: api.proxies.status() })
}

async fn objects(State(api): State<Arc<Api>>) -> Json<ObjectList> {
    Json(api.board.objects())
}

//! Health and metrics: whether the process lives, whether it may get traffic, what it has counted, and whether the
//! application beside it is well.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::Admin;
use crate::worker::drain::Phase;

pub(super) fn router(state: Arc<Admin>) -> Router {
    Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/probe/{*name}", get(probe))
        .with_state(state)
}

/// Ready with a certificate, the configuration of all inbound ports and (with capture) the proof of redirection, until the
/// sidecar drains.
async fn ready(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let readiness = admin.in_force.borrow().readiness;
    let mut missing = String::new();
    if admin.stop.phase() > Phase::Running {
        missing.push_str("draining\n");
    }
    if !readiness.certificate {
        missing.push_str("no certificate yet\n");
    }
    if !readiness.configuration {
        missing.push_str("no configuration for the inbound ports yet\n");
    }
    if let Some(reason) = &*admin.unproven.borrow() {
        let _ = writeln!(missing, "connections are not redirected yet:\n{reason}");
    }
    if missing.is_empty() {
        return (StatusCode::OK, "ready\n".into());
    }
    if let Some(status) = admin.handle.status().await
        && let Some(error) = status.stream.last_error.filter(|_| !status.stream.open)
    {
        // Into a string, which takes everything.
        let _ = writeln!(missing, "{error}");
    }
    (StatusCode::SERVICE_UNAVAILABLE, missing)
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let now = Instant::now();
    let snapshot = admin.in_force.borrow().snapshot.clone();
    snapshot.clusters.values().for_each(|cluster| cluster.gauge(now));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], admin.telemetry.metrics.encode())
}

/// The verdict of a probe. The name is compared as it was sent: what would mean the same in another spelling is unknown.
async fn probe(State(admin): State<Arc<Admin>>, uri: Uri) -> impl IntoResponse {
    let name = uri.path().strip_prefix("/probe/").unwrap_or_default();
    match admin.probes.ask(name).await {
        Some(verdict) => (verdict.status, verdict.reason + "\n"),
        None => (StatusCode::NOT_FOUND, "there is no such probe\n".into()),
    }
}

//! Health and metrics: whether the process lives, whether it may get traffic, and what it has counted.

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::Admin;
use crate::worker::drain::Phase;

pub(super) fn router(state: Arc<Admin>) -> Router {
    Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
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
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], admin.telemetry.metrics.encode())
}

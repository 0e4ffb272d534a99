//! `stock`: how many copies of a book are left. One version of it fails now and then.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;

use super::Stock;

pub(super) async fn serve(
    listener: TcpListener,
    stock: Stock,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<(), String> {
    let state = std::sync::Arc::new(stock);
    let app = Router::new().route("/stock/{book}", get(left)).with_state(state);
    axum::serve(listener, app).with_graceful_shutdown(end).await.map_err(|error| error.to_string())
}

async fn left(Path(book): Path<String>, State(stock): State<std::sync::Arc<Stock>>) -> Response {
    if fastrand::u8(..100) < stock.failing_percent {
        return (StatusCode::SERVICE_UNAVAILABLE, "the shelf is being counted\n").into_response();
    }
    Json(json!({ "book": book, "left": 7, "version": stock.version })).into_response()
}

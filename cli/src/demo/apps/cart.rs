//! `cart`: what a customer has in the cart, with stock's word on whether it is there.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{Surroundings, trace_headers};

pub(super) async fn serve(
    listener: TcpListener,
    surroundings: &Surroundings,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<(), String> {
    let client = surroundings.client()?;
    let app = Router::new().route("/cart/{customer}", get(cart)).with_state(client);
    axum::serve(listener, app).with_graceful_shutdown(end).await.map_err(|error| error.to_string())
}

async fn cart(
    Path(customer): Path<String>,
    State(client): State<reqwest::Client>,
    headers: HeaderMap,
) -> Response {
    let book = "the-tale-of-tulle";
    let request = client.get(format!("http://stock.shop/stock/{book}")).headers(trace_headers(&headers));
    match request.send().await {
        Ok(response) if response.status().is_success() => match response.json::<Value>().await {
            Ok(stock) => Json(json!({ "customer": customer, "items": [stock] })).into_response(),
            Err(error) => (StatusCode::BAD_GATEWAY, format!("stock: {error}")).into_response(),
        },
        Ok(response) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("stock said {}", response.status())).into_response()
        }
        Err(error) => (StatusCode::BAD_GATEWAY, format!("stock: {error}")).into_response(),
    }
}

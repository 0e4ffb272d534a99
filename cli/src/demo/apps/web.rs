//! `web`: the shop's page, put together from the cart and a recommendation.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::recommend::Recommender;
use super::{Surroundings, trace_headers};

#[derive(Clone)]
struct Shop {
    http: reqwest::Client,
    recommender: Recommender,
}

pub(super) async fn serve(
    listener: TcpListener,
    surroundings: &Surroundings,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<(), String> {
    let recommend = surroundings.recommend.as_deref().ok_or("web must be told where recommend is")?;
    let shop = Shop { http: surroundings.client()?, recommender: Recommender::new(recommend)? };
    let app = Router::new().route("/", get(page)).with_state(shop);
    axum::serve(listener, app).with_graceful_shutdown(end).await.map_err(|error| error.to_string())
}

async fn page(State(shop): State<Shop>, headers: HeaderMap) -> Response {
    let trace = trace_headers(&headers);
    let cart = async {
        let response = shop.http.get("http://cart.shop/cart/ada").headers(trace.clone()).send().await;
        let response = response.and_then(|response| response.error_for_status());
        response.map_err(|error| format!("cart: {error}"))?.json::<Value>().await.map_err(|e| e.to_string())
    };
    let recommended = async {
        let book = shop.recommender.recommend("ada", &trace).await;
        book.map_err(|status| format!("recommend: {}", status.message()))
    };
    match tokio::join!(cart, recommended) {
        (Ok(cart), Ok(book)) => Json(json!({ "cart": cart, "recommended": book })).into_response(),
        (Err(error), _) | (_, Err(error)) => (StatusCode::BAD_GATEWAY, error).into_response(),
    }
}

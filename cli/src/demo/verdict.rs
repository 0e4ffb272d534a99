//! Whether the mesh did what it promises.

use std::time::Duration;

use super::edges::Edge;
use super::shop::TRACED;
use super::traces::Traces;
use crate::local::wait_for;

/// A promise, and what became of it.
pub struct Promise {
    text: &'static str,
    /// What was seen, either way.
    seen: String,
    kept: bool,
}

/// The edges that there must be: caller, service, and the identity that the service must prove.
const EDGES: [(&str, &str, &str); 5] = [
    ("customers", "web", "spiffe://bookshop.example/ns/shop/sa/web"),
    ("web", "cart", "spiffe://bookshop.example/ns/shop/sa/cart"),
    ("web", "recommend", "spiffe://bookshop.example/ns/shop/sa/recommend"),
    ("cart", "stock-v1", "spiffe://bookshop.example/ns/shop/sa/stock"),
    ("cart", "stock-v2", "spiffe://bookshop.example/ns/shop/sa/stock"),
];

/// The share of stock's requests that the manifests give to v2, in percent.
const SPLIT: f64 = 10.0;

/// Checks every promise on the totals of a run. Spans may still come in for `settle`.
pub async fn check(
    edges: &[Edge],
    unproven: Result<f64, String>,
    traces: &Traces,
    settle: Duration,
) -> Vec<Promise> {
    let joined = wait_for(settle, || async {
        traces.joined(TRACED).ok_or_else(|| "no trace has spans of all services".to_owned())
    });
    vec![mutual_tls(edges, unproven), success(edges), failures(edges), split(edges), trace(joined.await)]
}

/// The promises as lines, and whether all were kept.
pub fn report(promises: &[Promise]) -> (String, bool) {
    let line = |promise: &Promise| {
        let mark = if promise.kept { "ok    " } else { "FAILED" };
        format!("{mark}  {}: {}\n", promise.text, promise.seen)
    };
    (promises.iter().map(line).collect(), promises.iter().all(|promise| promise.kept))
}

fn mutual_tls(edges: &[Edge], unproven: Result<f64, String>) -> Promise {
    let text = "every hop is mTLS between the expected identities";
    let wrong = EDGES.iter().find_map(|&(from, to, peer)| match find(edges, from, to) {
        None => Some(format!("no request went from {from} to {to}")),
        Some(edge) if edge.peers != [peer] => Some(format!("{from} → {to} met {:?}, not {peer}", edge.peers)),
        Some(_) => None,
    });
    let wrong = wrong.or_else(|| match &unproven {
        Ok(count) if *count == 0.0 => None,
        Ok(count) => Some(format!("{count} requests came from a peer without an identity")),
        Err(error) => Some(error.clone()),
    });
    let kept = wrong.is_none();
    Promise { text, seen: wrong.unwrap_or_else(|| format!("{} edges", EDGES.len())), kept }
}

fn success(edges: &[Edge]) -> Promise {
    let stock = stock(edges);
    let (requests, successes) =
        stock.iter().fold((0.0, 0.0), |(all, good), edge| (all + edge.requests, good + edge.successes));
    let share = if requests > 0.0 { successes / requests * 100.0 } else { 0.0 };
    Promise {
        text: "at least 99.9 % of cart's requests to stock succeed after retries",
        seen: format!("{share:.3} % of {requests}"),
        kept: share >= 99.9,
    }
}

/// Without this the promise above would hold for a v2 that never fails.
fn failures(edges: &[Edge]) -> Promise {
    let v2 = find(edges, "cart", "stock-v2").map_or(100.0, Edge::success_before_retries);
    Promise {
        text: "while stock-v2 fails about 20 % of what it gets",
        seen: format!("{:.1} % failed", 100.0 - v2),
        kept: (10.0..=30.0).contains(&(100.0 - v2)),
    }
}

fn split(edges: &[Edge]) -> Promise {
    let total: f64 = stock(edges).iter().map(|edge| edge.requests).sum();
    let v2 = find(edges, "cart", "stock-v2").map_or(0.0, |edge| edge.requests);
    let share = if total > 0.0 { v2 / total * 100.0 } else { 0.0 };
    Promise {
        text: "stock-v2 gets 10 % of stock's requests, within 3 points",
        seen: format!("{share:.1} %"),
        kept: (share - SPLIT).abs() <= 3.0,
    }
}

fn trace(joined: Result<Vec<super::traces::Span>, String>) -> Promise {
    let text = "the spans of one request join across all services";
    match joined {
        Ok(spans) => Promise { text, seen: format!("{} spans", spans.len()), kept: true },
        Err(reason) => Promise { text, seen: reason, kept: false },
    }
}

fn stock(edges: &[Edge]) -> Vec<&Edge> {
    edges.iter().filter(|edge| edge.from == "cart" && edge.to.starts_with("stock-")).collect()
}

fn find<'a>(edges: &'a [Edge], from: &str, to: &str) -> Option<&'a Edge> {
    edges.iter().find(|edge| edge.from == from && edge.to == to)
}

//! The edges as a table.

use std::time::Duration;

use super::edges::Edge;

/// A line per edge: rates over `window`, or totals without one.
pub(super) fn of(edges: &[Edge], window: Option<Duration>) -> String {
    let volume = if window.is_some() { "req/s" } else { "requests" };
    let mut text = format!(
        "{:<22} {:>8} {:>9} {:>9} {:>8} {:>8} {:>8} {:>8}  {}\n",
        "edge", volume, "before", "success", "p50 ms", "p99 ms", "retries", "ejected", "peer"
    );
    for edge in edges {
        let requests = window.map_or(edge.requests, |window| edge.requests / window.as_secs_f64());
        text.push_str(&format!(
            "{:<22} {:>8.0} {:>8.2}% {:>8.2}% {:>8.2} {:>8.2} {:>8.0} {:>8.0}  {}\n",
            format!("{} → {}", edge.from, edge.to),
            requests,
            edge.success_before_retries(),
            edge.success(),
            edge.quantile(0.5),
            edge.quantile(0.99),
            edge.retries,
            edge.ejections,
            peers(edge),
        ));
    }
    text
}

fn peers(edge: &Edge) -> String {
    match &edge.peers[..] {
        [] => "not proven".into(),
        peers => peers.join(" "),
    }
}

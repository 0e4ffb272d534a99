//! What the sidecars' metrics say of each edge of the bookshop.

use std::collections::BTreeMap;

use crate::local::Samples;

/// The totals of one edge since its sidecar started.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edge {
    /// Who calls.
    pub from: String,
    /// The backend's service.
    pub to: String,
    /// Requests, whatever the number of attempts.
    pub requests: f64,
    /// Requests whose caller got no failure.
    pub successes: f64,
    /// Attempts, retries included.
    pub attempts: f64,
    /// Attempts that failed.
    pub attempt_failures: f64,
    /// Attempts after the first.
    pub retries: f64,
    /// Endpoints taken out so far.
    pub ejections: f64,
    /// Whom the endpoints proved to be.
    pub peers: Vec<String>,
    /// Upper bounds in seconds with how many requests were not slower.
    buckets: BTreeMap<u64, f64>,
}

impl Edge {
    /// The edges out of one sidecar: one for each backend that got a request.
    pub fn of(from: &str, samples: &Samples) -> Vec<Self> {
        let mut edges: BTreeMap<String, Self> = BTreeMap::new();
        for sample in samples.select("http_client_request_duration_seconds_count", &[]) {
            let cluster = sample.label("backend");
            if cluster.is_empty() {
                continue;
            }
            let edge = edges.entry(cluster.into()).or_default();
            edge.requests += sample.value;
            if succeeded(sample.label("http_response_status_code"), sample.label("rpc_grpc_status_code")) {
                edge.successes += sample.value;
            }
            let peer = sample.label("destination_principal");
            if !peer.is_empty() && !edge.peers.iter().any(|known| known == peer) {
                edge.peers.push(peer.into());
            }
        }
        for (cluster, edge) in &mut edges {
            let labels = [("cluster", cluster.as_str())];
            let total = |name: &str| samples.sum(&format!("tulle_upstream_{name}_total"), &labels);
            edge.from = from.into();
            edge.to = service(cluster).into();
            edge.attempts = total("attempts");
            edge.attempt_failures = total("attempt_failures");
            edge.retries = total("retries");
            edge.ejections = total("ejections");
            let backend = [("backend", cluster.as_str())];
            for sample in samples.select("http_client_request_duration_seconds_bucket", &backend) {
                let bound = sample.label("le").parse::<f64>().unwrap_or(f64::INFINITY);
                *edge.buckets.entry(bound.to_bits()).or_default() += sample.value;
            }
        }
        edges.into_values().collect()
    }

    /// What was added since `earlier`, a reading of the same edge.
    pub fn since(&self, earlier: Option<&Self>) -> Self {
        let Some(earlier) = earlier else {
            return self.clone();
        };
        let buckets = self
            .buckets
            .iter()
            .map(|(bound, count)| (*bound, count - earlier.buckets.get(bound).copied().unwrap_or_default()));
        Self {
            requests: self.requests - earlier.requests,
            successes: self.successes - earlier.successes,
            attempts: self.attempts - earlier.attempts,
            attempt_failures: self.attempt_failures - earlier.attempt_failures,
            retries: self.retries - earlier.retries,
            ejections: self.ejections,
            buckets: buckets.collect(),
            ..self.clone()
        }
    }

    /// The share of requests that succeeded, in percent.
    pub fn success(&self) -> f64 {
        percent(self.successes, self.requests)
    }

    /// The share of attempts that succeeded, in percent: what callers would have seen without retries.
    pub fn success_before_retries(&self) -> f64 {
        percent(self.attempts - self.attempt_failures, self.attempts)
    }

    /// The duration that a share `q` of the requests did not exceed, in milliseconds; between two bounds by
    /// interpolation, as Prometheus does it.
    pub fn quantile(&self, q: f64) -> f64 {
        let total = self.buckets.values().copied().fold(0.0, f64::max);
        let rank = total * q;
        let (mut below, mut counted) = (0.0, 0.0);
        // Non-negative floats sort as their bits do.
        for (&bits, &count) in &self.buckets {
            let bound = f64::from_bits(bits);
            if count >= rank && count > counted {
                let share = (rank - counted) / (count - counted);
                let bound = if bound.is_finite() { bound } else { below };
                return (below + (bound - below) * share) * 1e3;
            }
            (below, counted) = (bound, count);
        }
        0.0
    }
}

/// How many requests arrived at a sidecar from a peer that proved no identity.
pub fn unproven(samples: &Samples) -> f64 {
    samples.sum("http_server_request_duration_seconds_count", &[("source_principal", "")])
}

/// `outbound|80||stock-v2.shop.svc.cluster.local` is `stock-v2`.
fn service(cluster: &str) -> &str {
    let fqdn = cluster.rsplit('|').next().unwrap_or(cluster);
    fqdn.split('.').next().unwrap_or(fqdn)
}

fn succeeded(status: &str, grpc: &str) -> bool {
    status.parse::<u16>().is_ok_and(|status| status < 500) && matches!(grpc, "" | "0")
}

fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole * 100.0 } else { 100.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_adds_up_what_its_sidecar_counted() {
        let page = r#"
http_client_request_duration_seconds_count{backend="outbound|80||stock-v2.shop.svc.cluster.local",http_response_status_code="200",destination_principal="spiffe://td/ns/shop/sa/stock"} 98
http_client_request_duration_seconds_count{backend="outbound|80||stock-v2.shop.svc.cluster.local",http_response_status_code="503",destination_principal="spiffe://td/ns/shop/sa/stock"} 2
http_client_request_duration_seconds_bucket{le="0.001",backend="outbound|80||stock-v2.shop.svc.cluster.local"} 50
http_client_request_duration_seconds_bucket{le="0.005",backend="outbound|80||stock-v2.shop.svc.cluster.local"} 100
http_client_request_duration_seconds_bucket{le="+Inf",backend="outbound|80||stock-v2.shop.svc.cluster.local"} 100
tulle_upstream_attempts_total{cluster="outbound|80||stock-v2.shop.svc.cluster.local"} 120
tulle_upstream_attempt_failures_total{cluster="outbound|80||stock-v2.shop.svc.cluster.local"} 22
tulle_upstream_retries_total{cluster="outbound|80||stock-v2.shop.svc.cluster.local"} 20
http_client_request_duration_seconds_count{http_response_status_code="404"} 7
"#;
        let edges = Edge::of("cart", &Samples::parse(page));
        let [edge] = &edges[..] else { panic!("one backend, one edge: {edges:?}") };
        assert_eq!((edge.from.as_str(), edge.to.as_str()), ("cart", "stock-v2"));
        assert_eq!((edge.requests, edge.success(), edge.retries), (100.0, 98.0, 20.0));
        assert!((edge.success_before_retries() - 81.67).abs() < 0.01);
        assert_eq!(edge.peers, ["spiffe://td/ns/shop/sa/stock"]);
        assert_eq!(edge.quantile(0.5), 1.0);
        assert!((edge.quantile(0.99) - 4.92).abs() < 1e-9);
        let nothing = edge.since(Some(edge));
        assert_eq!((nothing.requests, nothing.quantile(0.5)), (0.0, 0.0));
    }
}

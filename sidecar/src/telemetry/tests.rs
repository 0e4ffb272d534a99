//! What a user sees: metrics text, log lines and spans.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Request, StatusCode};
use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanKind, Status};
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{AccessLogFormat, Format, TrafficDirection};

use super::metrics::{HttpLabels, Registry};
use super::record::{Failure, RequestRecord, RetrySkipped};
use super::series::HttpSeries;
use super::trace::TraceContext;
use super::{Workload, access_log, span};
use crate::http::proxy::{Downstream, Target};

fn workload() -> Workload {
    Workload { namespace: "shop".into(), name: "cart".into(), instance: "cart-1".into() }
}

fn labels(service: &str) -> HttpLabels {
    HttpLabels {
        direction: TrafficDirection::Outbound,
        service: service.into(),
        route: "split".into(),
        backend: "outbound|80||stock.shop.svc.cluster.local".into(),
    }
}

struct Sample {
    request: http::request::Parts,
    peer: SpiffeId,
    trace: TraceContext,
    downstream: Downstream,
}

impl Sample {
    fn new(method: &str) -> Self {
        let request = Request::builder()
            .method(method)
            .uri("/items/7?token=secret")
            .header("host", "stock.shop")
            .header("authorization", "Bearer secret")
            .header("user-agent", "curl \"x\"")
            .body(())
            .expect("valid");
        let address = "127.0.0.1:50000".parse().expect("valid");
        Self {
            request: request.into_parts().0,
            peer: "spiffe://td/ns/shop/sa/stock".parse().expect("valid"),
            trace: TraceContext::start(&http::HeaderMap::new(), [1, 2, 3], true),
            downstream: Downstream {
                direction: TrafficDirection::Outbound,
                peer: address,
                direct: address,
                local: address,
                original: None,
                identity: None,
                certificate: None,
                tls: false,
                tls_facts: None,
                server_name: None,
                target: Target::Authority,
            },
        }
    }

    fn record<'a>(&'a self, series: &'a HttpSeries, status: u16) -> RequestRecord<'a> {
        RequestRecord {
            series,
            direction: TrafficDirection::Outbound,
            trace: Some(&self.trace),
            spans: None,
            tags: &[],
            access_log: None,
            draw: 0,
            start: SystemTime::UNIX_EPOCH,
            duration: Duration::from_millis(3),
            request: &self.request,
            status: StatusCode::from_u16(status).ok(),
            response_headers: None,
            grpc_status: None,
            request_bytes: 10,
            response_bytes: 20,
            error: None,
            route: "split",
            cluster: "outbound|80||stock.shop.svc.cluster.local",
            cluster_alias: "stock",
            endpoint: Some("127.0.0.1:9".parse().expect("valid")),
            attempts: 2,
            retry_skipped: None,
            peer: Some(&self.peer),
            client: self.downstream.peer,
            believed: self.downstream.peer,
            downstream: &self.downstream,
        }
    }
}

#[test]
fn requests_are_counted_by_status_error_and_peer() {
    let registry = Registry::new(&workload());
    let series = registry.http(labels("stock.shop"));
    assert!(Arc::ptr_eq(&series, &registry.http(labels("stock.shop"))));
    let sample = Sample::new("GET");
    series.record(&sample.record(&series, 200));
    series.record(&sample.record(&series, 200));
    let mut failed = sample.record(&series, 503);
    failed.error = Some(Failure { token: "connection_refused", flags: "UF", details: "" });
    series.record(&failed);

    let text = registry.encode();
    let ok = "source_workload=\"shop/cart\",destination_service=\"stock.shop\",http_route=\"split\",\
              backend=\"outbound|80||stock.shop.svc.cluster.local\",http_request_method=\"GET\",\
              http_response_status_code=\"200\",destination_workload=\"shop/stock\",\
              destination_principal=\"spiffe://td/ns/shop/sa/stock\"";
    assert!(text.contains(&format!("http_client_request_duration_seconds_count{{{ok}}} 2\n")), "{text}");
    let bucket = |le, n| format!("http_client_request_duration_seconds_bucket{{le=\"{le}\",{ok}}} {n}\n");
    assert!(text.contains(&bucket("0.0025", 0)) && text.contains(&bucket("0.005", 2)), "{text}");
    assert!(text.contains(&bucket("+Inf", 2)), "{text}");
    assert!(text.contains("http_response_status_code=\"503\",error_type=\"connection_refused\""), "{text}");
    assert!(text.contains("http_client_response_body_bytes_total{"), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn invented_methods_and_many_peers_do_not_grow_the_metrics() {
    let registry = Registry::new(&workload());
    let series = registry.http(labels("stock.shop"));
    for i in 0..1000 {
        let mut sample = Sample::new(&format!("METHOD{i}"));
        series.record(&sample.record(&series, 200));
        sample.peer = format!("spiffe://td/ns/shop/sa/peer{i}").parse().expect("valid");
        series.record(&sample.record(&series, 200));
    }
    let text = registry.encode();
    let lines = text.lines().filter(|line| line.starts_with("http_client_request_duration_seconds_count"));
    assert!(lines.count() <= 130);
    assert!(text.contains("http_request_method=\"_OTHER\""));
    assert!(text.contains("otel_metric_overflow=\"true\""));
    let total: u64 = text
        .lines()
        .filter(|line| line.starts_with("http_client_request_duration_seconds_count"))
        .map(|line| line.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).expect("a count"))
        .sum();
    assert_eq!(total, 2000);
}

#[test]
fn edges_that_no_snapshot_holds_are_forgotten() {
    let registry = Registry::new(&workload());
    let kept = registry.http(labels("kept"));
    let sample = Sample::new("GET");
    kept.record(&sample.record(&kept, 200));
    let dropped = registry.http(labels("dropped"));
    dropped.record(&sample.record(&dropped, 200));
    drop(dropped);
    registry.sweep();
    let text = registry.encode();
    assert!(text.contains("destination_service=\"kept\""));
    assert!(!text.contains("destination_service=\"dropped\""));
}

#[test]
fn own_counters_and_gauges_are_in_the_text() {
    let registry = Registry::new(&workload());
    registry.counter("tulle_refused", "Refused connections.", &[("reason", "a \"quote\"")]).add(3);
    registry.gauge("tulle_certificate_expiry_seconds", "Until the leaf ends.", &[]).set(-4);
    let text = registry.encode();
    assert!(text.contains("tulle_refused_total{reason=\"a \\\"quote\\\"\"} 3\n"), "{text}");
    assert!(text.contains("tulle_certificate_expiry_seconds{} -4\n"), "{text}");
}

#[test]
fn a_log_line_has_what_its_format_asks_for_and_no_secret() {
    let registry = Registry::new(&workload());
    let series = registry.http(labels("stock.shop"));
    let sample = Sample::new("GET");
    let record = sample.record(&series, 200);
    let format = "%REQ(:METHOD)% %REQ(:AUTHORITY)% %RESPONSE_CODE% %REQ(AUTHORIZATION)% %REQ(X-NONE?USER-AGENT):6% \
                  %UPSTREAM_REQUEST_ATTEMPT_COUNT% %START_TIME% 100%% %NO_SUCH%";
    assert_eq!(
        access_log::request_line(&AccessLogFormat::Text(Format::lenient(format)), &record),
        "GET stock.shop 200 [redacted] curl \\ 2 1970-01-01T00:00:00.000Z 100% -"
    );
    let json = access_log::request_line(&AccessLogFormat::Json, &record);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["http.response.status_code"], 200);
    assert_eq!(json["url.path"], "/items/7");
    assert_eq!(json["tulle.peer.principal"], "spiffe://td/ns/shop/sa/stock");
    assert_eq!(json["trace_id"], "00000000000000010000000000000002");
    assert!(!json.to_string().contains("secret"));
    let text = access_log::request_line(&AccessLogFormat::Text(Format::lenient("")), &record);
    assert!(text.starts_with("[1970-01-01T00:00:00.000Z] \"GET "), "{text}");
}

#[test]
fn a_span_tells_the_request_and_no_secret() {
    let registry = Registry::new(&workload());
    let series = registry.http(labels("stock.shop"));
    let sample = Sample::new("GET");
    let mut record = sample.record(&series, 404);
    let outbound = span::of_request(&record);
    assert_eq!(outbound.name, "GET split");
    assert_eq!(outbound.span_kind, SpanKind::Client);
    assert_eq!(outbound.status, Status::error(""));
    assert_eq!(outbound.span_context.trace_id().to_string(), "00000000000000010000000000000002");
    assert_eq!(outbound.end_time, outbound.start_time + Duration::from_millis(3));
    assert!(!format!("{outbound:?}").contains("secret"));
    assert!(!format!("{outbound:?}").contains("tulle.retry.skipped"));

    for (skipped, value) in [(RetrySkipped::BodyTooLarge, "body_too_large"), (RetrySkipped::Budget, "budget")]
    {
        record.retry_skipped = Some(skipped);
        let span = span::of_request(&record);
        assert!(span.attributes.contains(&KeyValue::new("tulle.retry.skipped", value)), "{span:?}");
        let line = access_log::request_line(&AccessLogFormat::Json, &record);
        assert!(line.contains(&format!("\"tulle.retry.skipped\":\"{value}\"")), "{line}");
    }

    record.direction = TrafficDirection::Inbound;
    let inbound = span::of_request(&record);
    assert_eq!(inbound.span_kind, SpanKind::Server);
    assert_eq!(inbound.status, Status::Unset, "a server is not at fault for a 404");
}

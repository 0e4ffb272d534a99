//! Records as spans, with the attributes of OpenTelemetry's semantic conventions for HTTP and RPC.
//!
//! Neither query strings nor header values get into a span, but for headers that a listener names, which hold no credentials.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, Version};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{CustomTag, TagValue, TrafficDirection};

use super::record::{AttemptRecord, Failure, RequestRecord, grpc_server_fault};
use super::trace::TraceContext;

/// The server span of an inbound request, or the client span of an outbound one. Only for sampled records.
pub(super) fn of_request(record: &RequestRecord<'_>) -> SpanData {
    let server = record.direction == TrafficDirection::Inbound;
    let method = record.request.method.as_str();
    let mut attributes = vec![
        KeyValue::new("http.request.method", method.to_owned()),
        KeyValue::new("url.path", record.request.uri.path().to_owned()),
        KeyValue::new("network.protocol.version", version(record.request.version)),
        KeyValue::new("client.address", record.client.ip().to_string()),
        KeyValue::new("http.request.body.size", saturate(record.request_bytes)),
        KeyValue::new("http.response.body.size", saturate(record.response_bytes)),
        KeyValue::new("tulle.attempts", i64::from(record.attempts)),
    ];
    let host = record.request.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
    if let Some(host) = record.request.uri.authority().map(|host| host.as_str()).or(host) {
        attributes.push(KeyValue::new("server.address", host.to_owned()));
    }
    if !record.route.is_empty() {
        attributes.push(KeyValue::new("http.route", record.route.to_owned()));
    }
    if !record.cluster.is_empty() {
        attributes.push(KeyValue::new("tulle.cluster", record.cluster.to_owned()));
    }
    if let Some(why) = record.retry_skipped {
        attributes.push(KeyValue::new("tulle.retry.skipped", why.as_str()));
    }
    outcome(&mut attributes, record.status, record.grpc_status, record.error, record.peer, record.endpoint);
    tags(&mut attributes, record.tags, &record.request.headers);
    let failed = record.error.is_some()
        || record.grpc_status.is_some_and(grpc_server_fault)
        || record
            .status
            .is_none_or(|status| status.is_server_error() || (!server && status.is_client_error()));
    // A Service without routes has one that says nothing.
    let name = match record.route {
        "" | "default" => method.to_owned(),
        route => format!("{method} {route}"),
    };
    let kind = if server { SpanKind::Server } else { SpanKind::Client };
    span(record.trace, name, kind, record.start, record.duration, attributes, failed.then_some(record.error))
}

/// The span of one attempt. Only for sampled records.
pub(super) fn of_attempt(record: &AttemptRecord<'_>) -> SpanData {
    let path = record.path.split('?').next().unwrap_or_default();
    let mut attributes = vec![
        KeyValue::new("http.request.method", record.method.as_str().to_owned()),
        KeyValue::new("url.path", path.to_owned()),
        KeyValue::new("server.address", record.authority.to_owned()),
        KeyValue::new("tulle.cluster", record.cluster.to_owned()),
    ];
    if record.resend_count > 0 {
        attributes.push(KeyValue::new("http.request.resend_count", i64::from(record.resend_count)));
    }
    let endpoint = Some(record.endpoint);
    outcome(&mut attributes, record.status, record.grpc_status, record.error, record.peer, endpoint);
    tags(&mut attributes, record.tags, record.headers);
    let failed = record.failed() || record.status.is_some_and(|status| status.is_client_error());
    let name = format!("{} attempt", record.method);
    span(
        record.trace,
        name,
        SpanKind::Client,
        record.start,
        record.duration,
        attributes,
        failed.then_some(record.error),
    )
}

fn outcome(
    attributes: &mut Vec<KeyValue>,
    status: Option<StatusCode>,
    grpc_status: Option<u32>,
    error: Option<Failure<'_>>,
    peer: Option<&SpiffeId>,
    endpoint: Option<SocketAddr>,
) {
    if let Some(status) = status {
        attributes.push(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
    }
    if let Some(grpc_status) = grpc_status {
        attributes.push(KeyValue::new("rpc.grpc.status_code", i64::from(grpc_status)));
    }
    match (error, status) {
        (Some(error), _) => attributes.push(KeyValue::new("error.type", error.token)),
        (None, Some(status)) if status.is_server_error() => {
            attributes.push(KeyValue::new("error.type", status.as_str().to_owned()));
        }
        _ => {}
    }
    if let Some(peer) = peer {
        attributes.push(KeyValue::new("tulle.peer.principal", peer.as_str().to_owned()));
    }
    if let Some(endpoint) = endpoint {
        attributes.push(KeyValue::new("network.peer.address", endpoint.ip().to_string()));
        attributes.push(KeyValue::new("network.peer.port", i64::from(endpoint.port())));
    }
}

/// What the listener wants on its spans besides.
fn tags(attributes: &mut Vec<KeyValue>, tags: &[CustomTag], headers: &HeaderMap) {
    for CustomTag { name, value } in tags {
        let value = match value {
            TagValue::Literal(value) => value.clone(),
            TagValue::Header { name, default } => headers
                .get(name)
                .map_or_else(|| default.clone(), |value| String::from_utf8_lossy(value.as_bytes()).into()),
        };
        if !value.is_empty() {
            attributes.push(KeyValue::new(name.clone(), value));
        }
    }
}

/// `failed` holds what is known of the failure where the span is one.
fn span(
    trace: Option<&TraceContext>,
    name: String,
    span_kind: SpanKind,
    start_time: SystemTime,
    duration: Duration,
    attributes: Vec<KeyValue>,
    failed: Option<Option<Failure<'_>>>,
) -> SpanData {
    let (trace_id, span_id, parent_id) =
        trace.map_or((0, 0, 0), |trace| (trace.trace_id, trace.span_id, trace.parent_id));
    let state = trace
        .and_then(|trace| trace.state.as_ref()?.to_str().ok()?.parse::<TraceState>().ok())
        .unwrap_or_default();
    SpanData {
        span_context: SpanContext::new(
            TraceId::from(trace_id),
            SpanId::from(span_id),
            TraceFlags::SAMPLED,
            false,
            state,
        ),
        parent_span_id: SpanId::from(parent_id),
        parent_span_is_remote: span_kind == SpanKind::Server,
        span_kind,
        name: name.into(),
        start_time,
        end_time: start_time + duration,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: match failed {
            None => Status::Unset,
            Some(error) => Status::error(error.map_or_else(String::new, |error| error.details.to_owned())),
        },
        instrumentation_scope: InstrumentationScope::builder("tulle").build(),
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

fn saturate(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

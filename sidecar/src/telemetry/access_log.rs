//! A line per request or connection, on standard output.
//!
//! In: records of listeners that ask for a log. Out: lines, written by a thread of their own, because standard output
//! may block. A full queue drops lines and counts them. Values of headers that carry secrets are never written.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::SystemTime;

use http::header::{HOST, USER_AGENT};
use http::{HeaderMap, HeaderName};
use serde_json::{Map, Value, json};
use tulle_mesh::model::{
    AccessLogFormat, AddressPart, Format, HeadField, Operator, PathMoment, REDACTED, TimeFormat,
    TrafficDirection, is_secret_header,
};
use tulle_mesh::route::RequestView;

use super::metrics::{Counter, Registry};
use super::operators::{hostname, protocol, write_address, write_path};
use super::record::{ConnectionRecord, RequestRecord, RetrySkipped};
use crate::http::request_id::REQUEST_ID;

/// How many lines wait at most.
const QUEUE: usize = 8192;

/// What an empty text format stands for: Envoy's default format.
const DEFAULT_FORMAT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
                              %RESPONSE_CODE_DETAILS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
                              \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
                              \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"";

/// Where the workers put lines.
pub(super) struct Writer {
    /// The writing thread starts with the first line.
    sender: OnceLock<Option<SyncSender<String>>>,
    dropped: Arc<Counter>,
}

impl Writer {
    pub(super) fn new(metrics: &Registry) -> Self {
        let help = "Access log lines that were dropped because standard output was too slow.";
        Self { sender: OnceLock::new(), dropped: metrics.counter("tulle_access_log_dropped", help, &[]) }
    }

    /// Hands a line over, or drops it when the queue is full.
    pub(super) fn write(&self, line: String) {
        let sender = self.sender.get_or_init(|| {
            let (sender, receiver) = sync_channel(QUEUE);
            let thread = std::thread::Builder::new().name("access-log".into());
            match thread.spawn(move || write_lines(&receiver)) {
                Ok(_) => Some(sender),
                Err(error) => {
                    tracing::error!(%error, "no access log: its thread can't be started");
                    None
                }
            }
        });
        if sender.as_ref().is_none_or(|sender| sender.try_send(line).is_err()) {
            self.dropped.increment();
        }
    }
}

fn write_lines(lines: &Receiver<String>) {
    let mut out = std::io::stdout().lock();
    while let Ok(line) = lines.recv() {
        let more = lines.try_iter().take(255);
        let text = std::iter::once(line).chain(more).fold(String::new(), |text, line| text + &line + "\n");
        // Nobody reads standard output any more: the counter of dropped lines shows it once the queue is full.
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}

/// The line of a request.
pub(super) fn request_line(format: &AccessLogFormat, record: &RequestRecord<'_>) -> String {
    match format {
        AccessLogFormat::Json => request_json(record),
        AccessLogFormat::Text(format) => write(format, |operator| request_field(record, operator)),
    }
}

/// The line of a TCP connection.
pub(super) fn connection_line(format: &AccessLogFormat, record: &ConnectionRecord<'_>) -> String {
    match format {
        AccessLogFormat::Json => connection_json(record),
        AccessLogFormat::Text(format) => write(format, |operator| connection_field(record, operator)),
    }
}

fn request_json(record: &RequestRecord<'_>) -> String {
    let mut line = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() && value != "" {
            line.insert(name.into(), value);
        }
    };
    put("timestamp", timestamp(record.start).into());
    put("direction", direction(record.direction).into());
    put("http.request.method", record.request.method.as_str().into());
    put("url.path", record.request.uri.path().into());
    put("server.address", json!(request_header(record, &HeadField::Authority)));
    put("network.protocol.version", format!("{:?}", record.request.version).into());
    put("http.response.status_code", json!(record.status.map(|status| status.as_u16())));
    put("rpc.grpc.status_code", json!(record.grpc_status));
    put("duration_ms", json!(record.duration.as_secs_f64() * 1e3));
    put("http.request.body.size", record.request_bytes.into());
    put("http.response.body.size", record.response_bytes.into());
    put("error.type", json!(record.error.map(|error| error.token)));
    put("error.details", json!(record.error.map(|error| error.details)));
    put("http.route", record.route.into());
    put("tulle.cluster", record.cluster.into());
    put("network.peer.address", json!(record.endpoint.map(|endpoint| endpoint.to_string())));
    put("tulle.attempts", record.attempts.into());
    put("tulle.retry.skipped", json!(record.retry_skipped.map(RetrySkipped::as_str)));
    put("tulle.peer.principal", json!(record.peer.map(|peer| peer.as_str())));
    put("client.address", record.client.to_string().into());
    put("trace_id", json!(record.trace.map(|trace| format!("{:032x}", trace.trace_id))));
    put("span_id", json!(record.trace.map(|trace| format!("{:016x}", trace.span_id))));
    put("user_agent.original", json!(header(&record.request.headers, &USER_AGENT)));
    put("http.request.header.x-request-id", json!(header(&record.request.headers, &REQUEST_ID)));
    Value::Object(line).to_string()
}

fn connection_json(record: &ConnectionRecord<'_>) -> String {
    json!({
        "timestamp": timestamp(record.start),
        "direction": direction(record.direction),
        "duration_ms": record.duration.as_secs_f64() * 1e3,
        "tulle.received_bytes": record.received,
        "tulle.sent_bytes": record.sent,
        "error.type": record.error.map(|error| error.token),
        "error.details": record.error.map(|error| error.details),
        "tulle.cluster": record.cluster,
        "network.peer.address": record.endpoint.map(|endpoint| endpoint.to_string()),
        "tulle.peer.principal": record.peer.map(|peer| peer.as_str()),
        "client.address": record.client.to_string(),
    })
    .to_string()
}

/// Writes a text; `-` stands for what is missing. No value begins another line.
fn write(format: &Format, mut value: impl FnMut(&Operator) -> Option<String>) -> String {
    static DEFAULT: LazyLock<Format> = LazyLock::new(|| Format::lenient(DEFAULT_FORMAT));
    let format = if format.is_empty() { &*DEFAULT } else { format };
    let mut line = Vec::with_capacity(256);
    format.write(b"-", &mut line, |operator, out| {
        let value = value(operator).unwrap_or_default();
        out.extend(value.bytes().filter(|byte| !byte.is_ascii_control()));
    });
    String::from_utf8_lossy(&line).into_owned()
}

fn request_field(record: &RequestRecord<'_>, operator: &Operator) -> Option<String> {
    let request = record.request;
    match operator {
        Operator::StartTime(format) => Some(time(format, record.start)),
        Operator::Request(field, other) => {
            request_header(record, field).or_else(|| request_header(record, other.as_ref()?))
        }
        Operator::Response(field, other) => {
            response_header(record, field).or_else(|| response_header(record, other.as_ref()?))
        }
        Operator::Protocol => Some(protocol(request.version).to_owned()),
        Operator::Status => Some(record.status.map_or(0, |status| status.as_u16()).to_string()),
        Operator::Flags => Some(record.error.map_or("-", |error| error.flags).to_owned()),
        Operator::Details => record.error.map(|error| error.details.to_owned()),
        Operator::BytesReceived => Some(record.request_bytes.to_string()),
        Operator::BytesSent => Some(record.response_bytes.to_string()),
        Operator::Duration => Some(record.duration.as_millis().to_string()),
        Operator::Host => record.endpoint.map(|endpoint| endpoint.to_string()),
        Operator::Upstream(part) => record.endpoint.map(|endpoint| address(endpoint, *part)),
        Operator::Cluster => Some(record.cluster_alias.to_owned()),
        Operator::ClusterName => Some(record.cluster.to_owned()),
        Operator::Attempts => Some(record.attempts.to_string()),
        Operator::Client(part) => Some(address(record.believed, *part)),
        Operator::Peer(part) => Some(address(record.downstream.direct, *part)),
        Operator::Local(part) => Some(address(record.downstream.local, *part)),
        Operator::ServerName => record.downstream.server_name.as_deref().map(str::to_owned),
        Operator::Tls(part) => {
            let tls = record.downstream.tls_facts.as_ref()?;
            Some(text(|out| tls.write(part, out)))
        }
        Operator::Path(part) => match part.which {
            // What was sent is not kept.
            PathMoment::Original => None,
            PathMoment::Came | PathMoment::Current => {
                Some(text(|out| write_path(&request.uri, part.query, out)))
            }
        },
        Operator::QueryParameter(name) => {
            let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
            let view = RequestView::new(&request.method, "", path, &request.headers);
            view.query_value(name).map(|value| value.into_owned())
        }
        Operator::StreamId => header(&request.headers, &REQUEST_ID),
        Operator::PeerUriSan if record.direction == TrafficDirection::Inbound => {
            record.peer.map(|peer| peer.to_string())
        }
        Operator::UpstreamPeerUriSan if record.direction == TrafficDirection::Outbound => {
            record.peer.map(|peer| peer.to_string())
        }
        Operator::Route => Some(record.route.to_owned()),
        Operator::GrpcStatus => record.grpc_status.map(|status| status.to_string()),
        Operator::TraceId => record.trace.map(|trace| format!("{:032x}", trace.trace_id)),
        Operator::Hostname => Some(hostname().to_owned()),
        _ => None,
    }
}

fn request_header(record: &RequestRecord<'_>, field: &HeadField) -> Option<String> {
    let request = record.request;
    match field {
        HeadField::Method => Some(request.method.to_string()),
        HeadField::Path => request.uri.path_and_query().map(|path| path.as_str().to_owned()),
        HeadField::Authority => {
            let authority = request.uri.authority().map(|authority| authority.as_str().to_owned());
            authority.or_else(|| header(&request.headers, &HOST))
        }
        HeadField::Scheme => request.uri.scheme_str().map(str::to_owned),
        HeadField::Status => None,
        HeadField::Named(name) => header(&request.headers, name),
    }
}

fn response_header(record: &RequestRecord<'_>, field: &HeadField) -> Option<String> {
    match field {
        HeadField::Status => record.status.map(|status| status.as_str().to_owned()),
        HeadField::Named(name) => header(record.response_headers?, name),
        _ => None,
    }
}

fn connection_field(record: &ConnectionRecord<'_>, operator: &Operator) -> Option<String> {
    match operator {
        Operator::StartTime(format) => Some(time(format, record.start)),
        Operator::Flags => Some(record.error.map_or("-", |error| error.flags).to_owned()),
        Operator::Details => record.error.map(|error| error.details.to_owned()),
        Operator::Status => Some("0".into()),
        Operator::BytesReceived => Some(record.received.to_string()),
        Operator::BytesSent => Some(record.sent.to_string()),
        Operator::Duration => Some(record.duration.as_millis().to_string()),
        Operator::Host => record.endpoint.map(|endpoint| endpoint.to_string()),
        Operator::Upstream(part) => record.endpoint.map(|endpoint| address(endpoint, *part)),
        Operator::Cluster | Operator::ClusterName => Some(record.cluster.to_owned()),
        Operator::Client(part) => Some(address(record.client, *part)),
        Operator::PeerUriSan if record.direction == TrafficDirection::Inbound => {
            record.peer.map(|peer| peer.to_string())
        }
        Operator::Hostname => Some(hostname().to_owned()),
        _ => None,
    }
}

fn time(format: &TimeFormat, time: SystemTime) -> String {
    text(|out| format.write(time, out))
}

fn address(address: SocketAddr, part: AddressPart) -> String {
    text(|out| write_address(address, part, out))
}

fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut text = Vec::new();
    write(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

fn header(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let value = headers.get(name)?;
    if is_secret_header(name.as_str()) {
        return Some(REDACTED.into());
    }
    let mut text = String::new();
    for &byte in value.as_bytes() {
        match byte {
            b'"' => text.push_str("\\\""),
            0x20..0x7f => text.push(char::from(byte)),
            _ => write!(text, "\\x{byte:02x}").expect("writing to a string does not fail"),
        }
    }
    Some(text)
}

fn direction(direction: TrafficDirection) -> &'static str {
    match direction {
        TrafficDirection::Inbound => "inbound",
        TrafficDirection::Outbound => "outbound",
    }
}

/// RFC 3339, in UTC, with milliseconds.
fn timestamp(time: SystemTime) -> String {
    match jiff::Timestamp::try_from(time) {
        Ok(time) => format!("{time:.3}"),
        Err(_) => "-".into(),
    }
}

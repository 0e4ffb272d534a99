//! A trace collector: takes the sidecars' spans over OTLP, keeps the newest traces, and passes everything on to another
//! collector where one is named.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span as WireSpan;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

/// How many traces are kept.
const KEPT: usize = 2000;

/// The collected traces. Cheap to clone.
#[derive(Clone, Default)]
pub struct Traces {
    state: Arc<Mutex<State>>,
    forward: Option<TraceServiceClient<Channel>>,
    /// It was said that the other collector does not take them.
    warned: Arc<AtomicBool>,
}

#[derive(Default)]
struct State {
    traces: HashMap<Vec<u8>, Vec<Span>>,
    order: VecDeque<Vec<u8>>,
}

/// A span, as far as it is shown.
#[derive(Clone, Debug)]
pub struct Span {
    /// `service.name` of whoever sent it.
    pub service: String,
    /// `service.instance.id` of whoever sent it.
    pub instance: String,
    /// Its name.
    pub name: String,
    /// Its ID.
    pub id: Vec<u8>,
    /// The ID of the span above it; empty for a root.
    pub parent: Vec<u8>,
    /// OpenTelemetry's number: 2 server, 3 client.
    pub kind: i32,
    /// In nanoseconds since 1970.
    pub start: u64,
    /// In nanoseconds since 1970.
    pub end: u64,
    /// Its attributes, as text.
    pub attributes: HashMap<String, String>,
    /// Whether its status is an error.
    pub error: bool,
}

impl Traces {
    /// Starts the collector on a port of the kernel's choice on loopback, and gives its URL. `forward` is the URL of
    /// another OTLP/gRPC endpoint that gets everything too.
    ///
    /// # Errors
    /// When it can't listen, or `forward` is not a URL.
    pub async fn collect(forward: Option<&str>) -> Result<(Self, String), String> {
        let forward = forward.map(|url| {
            let endpoint =
                Endpoint::from_shared(url.to_owned()).map_err(|error| format!("{url}: {error}"))?;
            Ok::<_, String>(TraceServiceClient::new(endpoint.connect_lazy()))
        });
        let traces = Self { forward: forward.transpose()?, ..Self::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
        let address: SocketAddr = listener.local_addr().map_err(|error| error.to_string())?;
        let service = TraceServiceServer::new(traces.clone());
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        Ok((traces, format!("http://{address}")))
    }

    /// The newest trace in which each of `services` has a span and whose parents are all there; of several the one
    /// with the most spans.
    pub fn joined(&self, services: &[&str]) -> Option<Vec<Span>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = state.order.iter().filter_map(|id| {
            let spans = state.traces.get(id)?;
            let ids: HashSet<&[u8]> = spans.iter().map(|span| span.id.as_slice()).collect();
            let roots = spans.iter().filter(|span| !ids.contains(span.parent.as_slice())).count();
            let all = services.iter().all(|service| spans.iter().any(|span| span.service == *service));
            (all && roots == 1).then_some(spans)
        });
        whole.max_by_key(|spans| spans.len()).cloned()
    }

    /// All spans that are kept.
    pub fn spans(&self) -> Vec<Span> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.traces.values().flatten().cloned().collect()
    }

    fn keep(&self, request: &ExportTraceServiceRequest) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in &request.resource_spans {
            let attributes = resource.resource.as_ref().map_or(&[][..], |resource| &resource.attributes);
            let mut of = text_of(attributes);
            let mut take = |name| of.remove(name).unwrap_or_default();
            let (service, instance) = (take("service.name"), take("service.instance.id"));
            for span in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
                state.keep(Span::of(&service, &instance, span), &span.trace_id);
            }
        }
    }
}

impl State {
    fn keep(&mut self, span: Span, trace: &[u8]) {
        if !self.traces.contains_key(trace) {
            self.order.push_back(trace.to_vec());
        }
        self.traces.entry(trace.to_vec()).or_default().push(span);
        if self.order.len() > KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.traces.remove(&oldest);
        }
    }
}

#[tonic::async_trait]
impl TraceService for Traces {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let request = request.into_inner();
        self.keep(&request);
        if let Some(forward) = &self.forward
            && let Err(status) = forward.clone().export(request).await
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            // Said once, and not passed on: the sidecars would send what is kept here a second time.
            eprintln!("traces can't be passed on: {status}");
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Span {
    fn of(service: &str, instance: &str, span: &WireSpan) -> Self {
        Self {
            service: service.into(),
            instance: instance.into(),
            name: span.name.clone(),
            id: span.span_id.clone(),
            parent: span.parent_span_id.clone(),
            kind: span.kind,
            start: span.start_time_unix_nano,
            end: span.end_time_unix_nano,
            attributes: text_of(&span.attributes),
            error: span.status.as_ref().is_some_and(|status| status.code == 2),
        }
    }
}

fn text_of(attributes: &[KeyValue]) -> HashMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(value) => Some(value.clone()),
        any_value::Value::IntValue(value) => Some(value.to_string()),
        any_value::Value::BoolValue(value) => Some(value.to_string()),
        any_value::Value::DoubleValue(value) => Some(value.to_string()),
        _ => None,
    };
    let pairs = attributes.iter().filter_map(|attribute| Some((attribute.key.clone(), text(attribute)?)));
    pairs.collect()
}

/// A trace as a tree: a line per span, those below it indented, in the order of their start.
pub fn tree(spans: &[Span]) -> String {
    let ids: HashSet<&[u8]> = spans.iter().map(|span| span.id.as_slice()).collect();
    let mut ordered: Vec<&Span> = spans.iter().collect();
    ordered.sort_by_key(|span| span.start);
    let mut lines = String::new();
    for root in ordered.iter().filter(|span| !ids.contains(span.parent.as_slice())) {
        branch(root, &ordered, "", "", &mut lines);
    }
    lines
}

fn branch(span: &Span, all: &[&Span], first: &str, rest: &str, lines: &mut String) {
    let attribute = |name: &str| span.attributes.get(name).map_or("", String::as_str);
    let kind = match span.kind {
        2 => "server",
        3 => "client",
        _ => "",
    };
    let millis = span.end.saturating_sub(span.start) as f64 / 1e6;
    let status = [attribute("http.response.status_code"), attribute("rpc.grpc.status_code")];
    let status = match status {
        [http, ""] => http.to_owned(),
        [http, grpc] => format!("{http} grpc {grpc}"),
    };
    let retry = match attribute("http.request.resend_count") {
        "" => String::new(),
        count => format!("  retry {count}"),
    };
    let failed = if span.error { "  failed" } else { "" };
    let what = format!("{first}{} {kind}", span.instance);
    let asked = format!("{}{}", attribute("server.address"), attribute("url.path"));
    lines.push_str(&format!(
        "{what:<38} {millis:>8.2} ms  {status:<11} {:<18} {asked}{retry}{failed}\n",
        span.name
    ));
    let below: Vec<&&Span> = all.iter().filter(|other| other.parent == span.id).collect();
    for (index, child) in below.iter().enumerate() {
        let last = index + 1 == below.len();
        let (branch_mark, continuation) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        branch(child, all, &format!("{rest}{branch_mark}"), &format!("{rest}{continuation}"), lines);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};

    use super::*;

    fn span(id: u8, parent: &[u8], service: &str, start: u64) -> Span {
        Span {
            service: service.into(),
            instance: service.into(),
            name: "GET".into(),
            id: vec![id],
            parent: parent.to_vec(),
            kind: 3,
            start,
            end: start + 1_000_000,
            attributes: HashMap::new(),
            error: false,
        }
    }

    #[test]
    fn a_tree_indents_what_is_below() {
        let spans =
            [span(2, &[1], "b", 2), span(1, &[], "a", 1), span(4, &[2], "d", 4), span(3, &[1], "c", 3)];
        let lines = tree(&spans);
        let starts: Vec<&str> =
            lines.lines().map(|line| line.split(" client").next().unwrap_or("")).collect();
        assert_eq!(starts, ["a", "├─ b", "│  └─ d", "└─ c"]);
    }

    #[tokio::test]
    async fn traces_are_passed_on_where_somebody_takes_them() {
        let wire = |id| WireSpan { trace_id: vec![id; 16], span_id: vec![id; 8], ..WireSpan::default() };
        let request = |id| ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                scope_spans: vec![ScopeSpans { spans: vec![wire(id)], ..ScopeSpans::default() }],
                ..ResourceSpans::default()
            }],
        };
        let (other, url) = Traces::collect(None).await.expect("a port");
        let (traces, _) = Traces::collect(Some(&url)).await.expect("a port");
        traces.export(Request::new(request(1))).await.expect("taken");
        assert!(traces.joined(&[""]).is_some() && other.joined(&[""]).is_some());

        let (traces, _) = Traces::collect(Some("http://127.0.0.1:1")).await.expect("a port");
        traces.export(Request::new(request(2))).await.expect("taken all the same");
        assert!(traces.joined(&[""]).is_some());
        assert!(Traces::collect(Some("not a url")).await.is_err());
    }

    #[test]
    fn only_a_whole_trace_is_joined() {
        let traces = Traces::default();
        let keep = |span, trace: &[u8]| traces.state.lock().expect("not poisoned").keep(span, trace);
        keep(span(1, &[], "a", 1), b"x");
        keep(span(2, &[9], "b", 2), b"x");
        assert!(traces.joined(&["a", "b"]).is_none(), "the span above b is missing");
        keep(span(9, &[1], "a", 1), b"x");
        assert_eq!(traces.joined(&["a", "b"]).map(|spans| spans.len()), Some(3));
        assert!(traces.joined(&["a", "c"]).is_none());
    }
}

//! The real Jaeger, asked over its query API, and what must be true of every trace in it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use serde_json::Value;
use tempfile::TempDir;
use tulle_cli::demo::jaeger::Jaeger;
use tulle_tests::{LIMIT, fetch, wait_for};

/// Where `tests/apiserver/build --jaeger` puts it.
pub(crate) const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/jaeger/jaeger");

/// A running Jaeger.
pub(crate) struct Shown {
    jaeger: Jaeger,
    _folder: TempDir,
}

/// A trace as its query API tells it.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) spans: Vec<Hop>,
}

/// A span.
pub(crate) struct Hop {
    id: String,
    parent: Option<String>,
    /// Microseconds since 1970.
    start: u64,
    pub(crate) service: String,
    pub(crate) name: String,
    pub(crate) tags: BTreeMap<String, String>,
}

/// Who sends a request that is traced already: its own span, the root of all.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) trace: u128,
    pub(crate) span: u64,
}

impl Shown {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let jaeger = Jaeger::start(Path::new(PROGRAM), folder.path()).await;
        let jaeger = jaeger.unwrap_or_else(|error| panic!("{error}; run tests/apiserver/build --jaeger"));
        Self { jaeger, _folder: folder }
    }

    /// Where spans go.
    pub(crate) fn otlp(&self) -> &str {
        &self.jaeger.otlp
    }

    /// All traces in which a service has a part.
    pub(crate) async fn traces(&self, service: &str) -> HashMap<String, Trace> {
        traces(&self.jaeger.query, service).await
    }

    /// A caller's trace, once it has at least so many spans; all of it is as every trace must be.
    pub(crate) async fn whole(&self, caller: &Caller, spans: usize) -> Trace {
        let id = format!("{:032x}", caller.trace);
        whole(&self.jaeger.query, &id, spans).await
    }

    /// Reports the caller's own span, as a program with a tracing library does.
    pub(crate) async fn report(&self, caller: &Caller) {
        let name = AnyValue { value: Some(any_value::Value::StringValue("caller".into())) };
        let named = KeyValue { key: "service.name".into(), value: Some(name), ..KeyValue::default() };
        let span = Span {
            trace_id: caller.trace.to_be_bytes().into(),
            span_id: caller.span.to_be_bytes().into(),
            name: "call".into(),
            kind: 3,
            start_time_unix_nano: 1,
            end_time_unix_nano: 2,
            ..Span::default()
        };
        let spans = ResourceSpans {
            resource: Some(Resource { attributes: vec![named], ..Resource::default() }),
            scope_spans: vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        };
        let mut client = TraceServiceClient::connect(self.otlp().to_owned()).await.expect("it listens");
        let request = ExportTraceServiceRequest { resource_spans: vec![spans] };
        client.export(request).await.expect("it takes spans");
    }
}

impl Caller {
    pub(crate) fn new() -> Self {
        Self { trace: fastrand::u128(1..), span: fastrand::u64(1..) }
    }

    /// W3C's header.
    pub(crate) fn traceparent(&self) -> String {
        format!("traceparent: 00-{:032x}-{:016x}-01\r\n", self.trace, self.span)
    }
}

/// All traces that a Jaeger has in which a service has a part, by ID.
pub(crate) async fn traces(query: &str, service: &str) -> HashMap<String, Trace> {
    let found = ask(&format!("{query}/api/traces?service={service}&limit=20000&lookback=1h")).await;
    let all = found["data"].as_array().into_iter().flatten();
    all.map(|trace| (trace["traceID"].as_str().expect("an ID").to_owned(), Trace::read(trace))).collect()
}

/// A trace, once it has at least so many spans and is as every trace must be.
pub(crate) async fn whole(query: &str, id: &str, spans: usize) -> Trace {
    let found = || async {
        let answer = ask(&format!("{query}/api/traces/{id}")).await;
        let trace = Trace::read(&answer["data"][0]);
        let faults = trace.faults();
        if trace.spans.len() >= spans && faults.is_empty() {
            return Ok(trace);
        }
        Err(format!("trace {id}, of {spans} spans: {faults:#?}\n{trace:#?}"))
    };
    wait_for(LIMIT, found).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn ask(url: &str) -> Value {
    let (_, text) = fetch(url).await.expect("Jaeger answers");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

impl Trace {
    fn read(trace: &Value) -> Self {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let spans = trace["spans"].as_array().into_iter().flatten();
        let spans = spans.map(|span| {
            let process = &trace["processes"][span["processID"].as_str().expect("a process")];
            let tags = [&span["tags"], &process["tags"]].into_iter().filter_map(Value::as_array).flatten();
            let parents = span["references"].as_array().into_iter().flatten();
            let mut parents = parents.filter(|reference| reference["refType"] == "CHILD_OF");
            Hop {
                id: text(&span["spanID"]),
                parent: parents.next().map(|reference| text(&reference["spanID"])),
                start: span["startTime"].as_u64().expect("a time"),
                service: text(&process["serviceName"]),
                name: text(&span["operationName"]),
                tags: tags.map(|tag| (text(&tag["key"]), text(&tag["value"]))).collect(),
            }
        });
        Self { spans: spans.collect() }
    }

    /// The one span of a service and kind (`client`, `server`, `attempt`).
    pub(crate) fn one(&self, service: &str, kind: &str) -> &Hop {
        match self.all(service, kind)[..] {
            [one] => one,
            _ => panic!("not one {kind} span of {service}: {self:#?}"),
        }
    }

    /// The spans of a service and kind, in the order of their start.
    pub(crate) fn all(&self, service: &str, kind: &str) -> Vec<&Hop> {
        let mut found: Vec<_> =
            self.spans.iter().filter(|hop| hop.service == service && hop.kind() == kind).collect();
        found.sort_by_key(|hop| hop.start);
        found
    }

    /// The spans below another.
    pub(crate) fn below<'a>(&'a self, above: &'a Hop) -> impl Iterator<Item = &'a Hop> {
        self.spans.iter().filter(|hop| hop.parent.as_ref() == Some(&above.id))
    }

    /// What is not as it must be: there is one root and every other span's parent is there; each request that goes out has a
    /// span for each attempt, in their order; each attempt that found its peer has the peer's span below it, and both
    /// name each other.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let by_id: HashMap<&str, &Hop> = self.spans.iter().map(|hop| (hop.id.as_str(), hop)).collect();
        if by_id.len() != self.spans.len() {
            faults.push("two spans have one ID".to_owned());
        }
        let roots = self.spans.iter().filter(|hop| hop.parent.is_none()).count();
        if roots != 1 {
            faults.push(format!("{roots} roots"));
        }
        for hop in &self.spans {
            let mut fault = |what: String| faults.push(format!("{} {}: {what}", hop.service, hop.name));
            let above = hop.parent.as_deref().map(|id| by_id.get(id));
            if matches!(above, Some(None)) {
                fault("its parent is not there".into());
            }
            let above = above.flatten().copied();
            let below: Vec<_> = self.below(hop).collect();
            match hop.kind() {
                "client" if hop.service != "caller" => {
                    let mut attempts: Vec<_> =
                        below.iter().filter(|below| below.kind() == "attempt").collect();
                    attempts.sort_by_key(|attempt| attempt.start);
                    if attempts.len() != below.len()
                        || hop.tag("tulle.attempts") != attempts.len().to_string()
                    {
                        fault(format!(
                            "{} attempts, and {} are told",
                            attempts.len(),
                            hop.tag("tulle.attempts")
                        ));
                    }
                    for (index, attempt) in attempts.iter().enumerate() {
                        let expected = if index == 0 { String::new() } else { index.to_string() };
                        if attempt.tag("http.request.resend_count") != expected {
                            fault(format!("attempt {index} says that it is another"));
                        }
                    }
                }
                "attempt" => {
                    if !above.is_some_and(|above| above.kind() == "client" && above.service == hop.service) {
                        fault("it is no part of a request".into());
                    }
                    match below[..] {
                        [server] => {
                            if hop.peer() != server.service || server.kind() != "server" {
                                fault(format!("it found {:?}, and not {}", hop.peer(), server.service));
                            }
                        }
                        // It was given up, perhaps before anything of it had arrived.
                        [] if hop.tag("http.response.status_code").is_empty() => {}
                        _ => fault(format!("{} are below it", below.len())),
                    }
                }
                "server" => {
                    if let Some(above) = above
                        && above.service != "caller"
                        && (above.kind() != "attempt" || hop.peer() != above.service)
                    {
                        fault(format!("it was asked by {:?}, not by {}", hop.peer(), above.service));
                    }
                }
                _ => {}
            }
        }
        faults
    }
}

impl fmt::Debug for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, parent, service, name, start, tags } = self;
        write!(
            f,
            "{id} below {} at {start}: {service} {name} {tags:?}",
            parent.as_deref().unwrap_or("nothing")
        )
    }
}

impl Hop {
    /// `client`, `attempt` or `server`.
    pub(crate) fn kind(&self) -> &str {
        match self.tag("span.kind") {
            "client" if self.name.ends_with(" attempt") => "attempt",
            kind => kind,
        }
    }

    /// A tag's value; empty where it has none.
    pub(crate) fn tag(&self, name: &str) -> &str {
        self.tags.get(name).map_or("", String::as_str)
    }

    /// Whether Jaeger shows it as an error.
    pub(crate) fn failed(&self) -> bool {
        self.tag("error") == "true"
    }

    /// The service account of who was at the other end.
    fn peer(&self) -> &str {
        self.tag("tulle.peer.principal").rsplit('/').next().unwrap_or_default()
    }
}

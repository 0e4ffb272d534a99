//! All series as OpenMetrics text, which Prometheus reads.
//!
//! Names and labels follow OpenTelemetry's semantic conventions, dots turned into underscores.

use std::fmt;
use std::fmt::Error;

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry as Encoder;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, encoding::text};
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::TrafficDirection;

use super::Workload;
use super::metrics::{ClusterSeries, Counter, Families, Gauge, HttpLabels};
use super::series::{Histogram, Key, TcpSeries};

/// Everything as text.
pub(super) fn text(workload: &Workload, families: &Families) -> String {
    let mut page = Page::default();
    page.http(workload, families);
    page.tcp(workload, families);
    page.clusters(families);
    page.own(families);

    let mut encoder = Encoder::default();
    encoder.register_collector(Box::new(page));
    let mut out = String::new();
    text::encode(&mut out, &encoder).expect("writing to a string does not fail");
    out
}

/// All values, read at one moment, by family.
#[derive(Debug, Default)]
struct Page(Vec<FamilyPage>);

#[derive(Debug)]
struct FamilyPage {
    name: String,
    help: &'static str,
    kind: MetricType,
    samples: Vec<(LabelSet, Value)>,
}

#[derive(Debug)]
enum Value {
    Counter(u64),
    Gauge(i64),
    Histogram { sum: f64, count: u64, buckets: Vec<(f64, u64)> },
}

impl Page {
    fn http(&mut self, workload: &Workload, families: &Families) {
        for (direction, side) in
            [(TrafficDirection::Inbound, "server"), (TrafficDirection::Outbound, "client")]
        {
            let mut durations = Vec::new();
            let (mut requests, mut responses) = (Vec::new(), Vec::new());
            for (labels, series) in families.http.iter().filter(|(labels, _)| labels.direction == direction) {
                series.durations.each(|key, histogram| {
                    let labels = edge(workload, labels).and_key(direction, key);
                    durations.push((labels, histogram.into()));
                });
                requests.push((edge(workload, labels), Value::Counter(series.request_bytes.value())));
                responses.push((edge(workload, labels), Value::Counter(series.response_bytes.value())));
            }
            let name = |what| format!("http_{side}_{what}");
            self.push(
                name("request_duration_seconds"),
                "From a request's head to the end of its response.",
                MetricType::Histogram,
                durations,
            );
            self.push(name("request_body_bytes"), "Bytes of request bodies.", MetricType::Counter, requests);
            self.push(
                name("response_body_bytes"),
                "Bytes of response bodies.",
                MetricType::Counter,
                responses,
            );
        }
    }

    fn tcp(&mut self, workload: &Workload, families: &Families) {
        let edge = |labels: &HttpLabels| {
            let direction = match labels.direction {
                TrafficDirection::Inbound => "inbound",
                TrafficDirection::Outbound => "outbound",
            };
            edge(workload, labels).and("direction", direction)
        };
        let mut each = |name: &str, help, value: fn(&TcpSeries) -> u64| {
            let samples = families.tcp.iter();
            let samples = samples.map(|(labels, series)| (edge(labels), Value::Counter(value(series))));
            self.push(name.to_owned(), help, MetricType::Counter, samples.collect());
        };
        each("tulle_tcp_connections", "TCP connections that have ended.", |series| {
            series.connections.value()
        });
        each(
            "tulle_tcp_connection_failures",
            "TCP connections that the mesh ended or could not forward.",
            |series| series.failures.value(),
        );
        each("tulle_tcp_received_bytes", "Bytes from TCP clients.", |series| series.received_bytes.value());
        each("tulle_tcp_sent_bytes", "Bytes to TCP clients.", |series| series.sent_bytes.value());
        each(
            "tulle_tcp_spliced_bytes",
            "Bytes of TCP connections that the kernel moved by itself, in both directions.",
            |series| series.spliced_bytes.value(),
        );
        let mut durations = Vec::new();
        for (labels, series) in &families.tcp {
            series.durations.each(|key, histogram| {
                durations.push((edge(labels).and_key(labels.direction, key), histogram.into()));
            });
        }
        self.push(
            "tulle_tcp_connection_duration_seconds".to_owned(),
            "How long TCP connections lasted.",
            MetricType::Histogram,
            durations,
        );
    }

    fn clusters(&mut self, families: &Families) {
        type Pick = fn(&ClusterSeries) -> &Counter;
        let all: [(&str, &'static str, Pick); 10] = [
            ("attempts", "Requests sent to endpoints, retries included.", |c| &c.attempts),
            ("attempt_failures", "Attempts that failed.", |c| &c.attempt_failures),
            ("retries", "Attempts after the first.", |c| &c.retries),
            ("retries_refused", "Retries that the budget forbade.", |c| &c.retries_refused),
            ("overflows", "Requests refused by a limit of the cluster.", |c| &c.overflows),
            ("ejections", "Endpoints taken out for a while.", |c| &c.ejections),
            ("panics", "Choices among ejected or unhealthy endpoints, for want of others.", |c| &c.panics),
            ("connections", "Connections made to endpoints.", |c| &c.connections),
            ("connect_failures", "Connections that could not be made.", |c| &c.connect_failures),
            ("tls_failures", "TLS handshakes with endpoints that failed.", |c| &c.tls_failures),
        ];
        for (name, help, pick) in all {
            let samples = families.clusters.iter().map(|(cluster, series)| {
                (LabelSet::default().and("cluster", &**cluster), Value::Counter(pick(series).value()))
            });
            self.push(format!("tulle_upstream_{name}"), help, MetricType::Counter, samples.collect());
        }
        type Level = fn(&ClusterSeries) -> &Gauge;
        let levels: [(&str, &'static str, Level); 4] = [
            ("endpoints", "Endpoints.", |c| &c.endpoints),
            ("ejected_endpoints", "Endpoints that are taken out for a while.", |c| &c.ejected_endpoints),
            ("active_requests", "Requests under way to endpoints.", |c| &c.active_requests),
            ("open_connections", "Connections to endpoints.", |c| &c.open_connections),
        ];
        for (name, help, level) in levels {
            let samples = families.clusters.iter().map(|(cluster, series)| {
                (LabelSet::default().and("cluster", &**cluster), Value::Gauge(level(series).value()))
            });
            self.push(format!("tulle_upstream_{name}"), help, MetricType::Gauge, samples.collect());
        }
    }

    fn own(&mut self, families: &Families) {
        let labels = |labels: &[(&'static str, String)]| {
            labels.iter().fold(LabelSet::default(), |set, (name, value)| set.and(name, value.as_str()))
        };
        for (name, family) in &families.counters {
            let samples = family.series.iter();
            let samples = samples.map(|(set, counter)| (labels(set), Value::Counter(counter.value())));
            self.push((*name).to_owned(), family.help, MetricType::Counter, samples.collect());
        }
        for (name, family) in &families.gauges {
            let samples = family.series.iter();
            let samples = samples.map(|(set, gauge)| (labels(set), Value::Gauge(gauge.value())));
            self.push((*name).to_owned(), family.help, MetricType::Gauge, samples.collect());
        }
    }

    fn push(&mut self, name: String, help: &'static str, kind: MetricType, samples: Vec<(LabelSet, Value)>) {
        if !samples.is_empty() {
            self.0.push(FamilyPage { name, help, kind, samples });
        }
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        for family in &self.0 {
            let help = family.help.trim_end_matches('.');
            let mut metric = encoder.encode_descriptor(&family.name, help, None, family.kind)?;
            for (labels, value) in &family.samples {
                value.encode(metric.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

impl Value {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), Error> {
        match self {
            Self::Counter(value) => encoder.encode_counter::<LabelSet, _, f64>(value, None),
            Self::Gauge(value) => encoder.encode_gauge(value),
            Self::Histogram { sum, count, buckets } => {
                encoder.encode_histogram::<LabelSet>(*sum, *count, buckets, None)
            }
        }
    }
}

impl From<&Histogram> for Value {
    fn from(histogram: &Histogram) -> Self {
        let buckets = histogram.buckets();
        // From the same reading as the buckets: a count below their sum would be refused by a scraper.
        let count = buckets.iter().map(|(_, count)| count).sum();
        Self::Histogram { sum: histogram.sum(), count, buckets: buckets.into() }
    }
}

#[derive(Debug, Default)]
struct LabelSet(Vec<(&'static str, String)>);

impl LabelSet {
    fn and(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.0.push((name, value.to_string()));
        self
    }

    fn and_key(self, direction: TrafficDirection, key: Option<Key<'_>>) -> Self {
        let Some(key) = key else {
            return self.and("otel_metric_overflow", true);
        };
        let mut set = self;
        if !key.method.is_empty() {
            set = set.and("http_request_method", key.method);
        }
        if key.status > 0 {
            set = set.and("http_response_status_code", key.status);
        }
        if let Some(grpc) = key.grpc {
            set = set.and("rpc_grpc_status_code", grpc);
        }
        if !key.error.is_empty() {
            set = set.and("error_type", key.error);
        }
        match (direction, key.peer) {
            (_, None) => set,
            (TrafficDirection::Inbound, Some(peer)) => {
                set.and_peer("source_workload", "source_principal", peer)
            }
            (TrafficDirection::Outbound, Some(peer)) => {
                set.and_peer("destination_workload", "destination_principal", peer)
            }
        }
    }

    fn and_peer(self, workload: &'static str, principal: &'static str, peer: &SpiffeId) -> Self {
        let set = match (peer.namespace(), peer.service_account()) {
            (Some(namespace), Some(account)) => self.and(workload, format_args!("{namespace}/{account}")),
            _ => self,
        };
        set.and(principal, peer)
    }
}

impl EncodeLabelSet for LabelSet {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), Error> {
        self.0.as_slice().encode(encoder)
    }
}

/// The labels that all series of an edge share.
fn edge(workload: &Workload, labels: &HttpLabels) -> LabelSet {
    let own = match labels.direction {
        TrafficDirection::Inbound => "destination_workload",
        TrafficDirection::Outbound => "source_workload",
    };
    let mut set = LabelSet::default()
        .and(own, format_args!("{}/{}", workload.namespace, workload.name))
        .and("destination_service", &*labels.service);
    if !labels.route.is_empty() {
        set = set.and("http_route", &*labels.route);
    }
    if !labels.backend.is_empty() {
        set = set.and("backend", &*labels.backend);
    }
    set
}

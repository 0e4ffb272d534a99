//! What command operators stand for in the heads that a route changes (`%REQ(x-user)%`, `%UPSTREAM_HOST%`).
//!
//! In: an operator, and what is known of the request by then. Out: its value as Envoy has it, or nothing. Of a request, nothing is
//! known yet of its answer, nor of the endpoint; an attempt after the first has the values of the first.

use std::io::Write;
use std::net::SocketAddr;

use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use tulle_mesh::model::{AddressPart, Backend, HeadField, HeaderMutations, Operator, PathMoment, PathPart};
use tulle_mesh::route::{RouteId, RouteTable, filter};

use super::exchange::Exchange;
use super::headers;
use super::request_id::REQUEST_ID;
use crate::telemetry::operators::{hostname, protocol, write_address, write_path};

/// What operators stand for at one moment of a request.
pub(super) struct Words<'a> {
    exchange: &'a Exchange,
    moment: Moment<'a>,
}

/// Which head is changed.
#[derive(Clone, Copy)]
pub(super) enum Moment<'a> {
    /// The request's, before it is sent.
    Request,
    /// An endpoint's answer.
    Answer(StatusCode),
    /// An answer of the sidecar itself: its status, and why there is none of an endpoint, in Envoy's abbreviations and words.
    Local(StatusCode, &'a str, &'a str),
}

impl<'a> Words<'a> {
    pub(super) fn new(exchange: &'a Exchange, moment: Moment<'a>) -> Self {
        Self { exchange, moment }
    }

    /// Makes changes to a head, one level after the other.
    pub(super) fn change<'c>(
        &self,
        levels: impl IntoIterator<Item = &'c HeaderMutations>,
        head: &mut HeaderMap,
    ) {
        for changes in levels {
            filter::mutate_headers(changes, head, |own, operator, out| self.write(own, operator, out));
        }
    }

    /// Makes the changes of a route to an answer: that of `backend`, or one of the sidecar itself.
    pub(super) fn change_answer(
        &self,
        table: &RouteTable,
        id: RouteId,
        backend: Option<&Backend>,
        head: &mut HeaderMap,
    ) {
        let attempts = self.exchange.attempts();
        if table.virtual_host(id).tell_attempts.client && attempts > 0 {
            head.insert(headers::ATTEMPT_COUNT, HeaderValue::from(attempts));
        }
        self.change(table.response_headers(id, backend), head);
    }

    /// Writes what `operator` stands for behind `out`. `own` is the head that is changed.
    fn write(&self, own: &HeaderMap, operator: &Operator, out: &mut Vec<u8>) {
        let exchange = self.exchange;
        let downstream = &exchange.downstream;
        let text = |text: Option<&str>, out: &mut Vec<u8>| {
            out.extend_from_slice(text.unwrap_or_default().as_bytes());
        };
        match operator {
            Operator::Request(field, other) => self.request(own, field, other.as_ref(), out),
            Operator::Response(field, other) => {
                let begun = out.len();
                self.response(own, field, out);
                if let Some(other) = other.as_ref().filter(|_| out.len() == begun) {
                    self.response(own, other, out);
                }
            }
            Operator::Protocol => text(Some(protocol(exchange.request.version)), out),
            Operator::StartTime(format) => format.write(exchange.start, out),
            Operator::Client(part) => write_address(exchange.believed(), *part, out),
            Operator::Peer(part) => write_address(downstream.direct, *part, out),
            Operator::Local(part) => write_address(downstream.local, *part, out),
            Operator::Host => {
                if let Some(endpoint) = self.endpoint() {
                    write_address(endpoint, AddressPart::Whole, out);
                }
            }
            Operator::Upstream(part) => {
                if let (Moment::Answer(_), Some(endpoint)) = (self.moment, self.endpoint()) {
                    write_address(endpoint, *part, out);
                }
            }
            Operator::Cluster => text(exchange.cluster_alias(), out),
            Operator::ClusterName => text(exchange.cluster(), out),
            // A route without a name is called by its number.
            Operator::Route => text(exchange.route_name().filter(|name| !name.starts_with('#')), out),
            Operator::Status => match self.moment {
                Moment::Answer(status) => out.extend_from_slice(status.as_str().as_bytes()),
                Moment::Request | Moment::Local(..) => out.push(b'0'),
            },
            Operator::Flags => match self.moment {
                Moment::Local(_, flags, _) => text(Some(flags), out),
                Moment::Request | Moment::Answer(_) => out.push(b'-'),
            },
            Operator::Details => match self.moment {
                Moment::Request => {}
                Moment::Answer(_) => text(Some("via_upstream"), out),
                Moment::Local(_, _, details) => text(Some(details), out),
            },
            Operator::Path(part) => self.path(*part, out),
            Operator::QueryParameter(name) => text(exchange.view().query_value(name).as_deref(), out),
            Operator::StreamId => {
                let id = exchange.request.headers.get(REQUEST_ID);
                out.extend_from_slice(id.map_or(&b""[..], |id| id.as_bytes()));
            }
            Operator::Tls(part) => {
                if let Some(tls) = &downstream.tls_facts {
                    tls.write(part, out);
                }
            }
            Operator::ServerName => text(downstream.server_name.as_deref(), out),
            Operator::PeerUriSan => text(downstream.identity.as_ref().map(|identity| identity.as_str()), out),
            Operator::Hostname => text(Some(hostname()), out),
            Operator::BytesReceived => number(exchange.body.bytes(), out),
            Operator::BytesSent => number(exchange.response_bytes, out),
            Operator::Duration => match self.moment {
                Moment::Request => out.push(b'0'),
                _ => number(exchange.begun.elapsed().as_millis(), out),
            },
            Operator::Attempts => match self.moment {
                Moment::Request => out.push(b'1'),
                _ => number(exchange.attempts(), out),
            },
            Operator::TraceId => {
                if let Some(trace) = &exchange.trace {
                    write!(out, "{:032x}", trace.trace_id).expect("a vector grows");
                }
            }
            // Where configuration is read, these are refused.
            Operator::GrpcStatus | Operator::UpstreamPeerUriSan | Operator::Other(_) => {}
        }
    }

    /// As the request is while its own head is changed; else as it was sent, or, if it never was, as it came.
    fn request(&self, own: &HeaderMap, field: &HeadField, other: Option<&HeadField>, out: &mut Vec<u8>) {
        let came = &self.exchange.request;
        let (sent, fields) = match self.moment {
            Moment::Request => (None, own),
            Moment::Answer(_) | Moment::Local(..) => {
                let sent = self.exchange.sent.as_deref();
                (sent, sent.map_or(&came.headers, |sent| &sent.headers))
            }
        };
        let uri = sent.map_or(&came.uri, |sent| &sent.uri);
        let value = |field: &HeadField| -> Option<&[u8]> {
            match field {
                HeadField::Method => Some(came.method.as_str().as_bytes()),
                HeadField::Path => Some(uri.path_and_query()?.as_str().as_bytes()),
                HeadField::Authority => {
                    let host = sent.and_then(|sent| sent.headers.get(http::header::HOST));
                    Some(host.map_or_else(|| headers::authority(came).as_bytes(), |host| host.as_bytes()))
                }
                HeadField::Scheme => Some(headers::scheme(&came.headers).as_bytes()),
                HeadField::Status => None,
                HeadField::Named(name) => fields.get(name).map(|value| value.as_bytes()),
            }
        };
        let found = value(field).filter(|value| !value.is_empty()).or_else(|| value(other?));
        out.extend_from_slice(found.unwrap_or_default());
    }

    fn response(&self, own: &HeaderMap, field: &HeadField, out: &mut Vec<u8>) {
        let value = match (field, self.moment) {
            (_, Moment::Request) => return,
            (HeadField::Status, Moment::Answer(status) | Moment::Local(status, ..)) => {
                out.extend_from_slice(status.as_str().as_bytes());
                return;
            }
            (HeadField::Named(name), _) => own.get(name),
            (HeadField::Authority, _) => own.get(http::header::HOST),
            _ => None,
        };
        out.extend_from_slice(value.map_or(&b""[..], |value| value.as_bytes()));
    }

    fn path(&self, part: PathPart, out: &mut Vec<u8>) {
        let came = &self.exchange.request.uri;
        let sent = match self.moment {
            Moment::Request => None,
            Moment::Answer(_) | Moment::Local(..) => self.exchange.sent.as_deref().map(|sent| &sent.uri),
        };
        let of = |uri: &Uri| uri.path_and_query().cloned();
        let rewritten = || sent.filter(|sent| of(sent) != of(came)).is_some();
        let uri = match part.which {
            PathMoment::Original if !rewritten() => return,
            PathMoment::Original | PathMoment::Came => came,
            PathMoment::Current => sent.unwrap_or(came),
        };
        write_path(uri, part.query, out);
    }

    fn endpoint(&self) -> Option<SocketAddr> {
        match self.moment {
            Moment::Request => None,
            Moment::Answer(_) | Moment::Local(..) => self.exchange.endpoint,
        }
    }
}

fn number(number: impl std::fmt::Display, out: &mut Vec<u8>) {
    write!(out, "{number}").expect("a vector grows");
}

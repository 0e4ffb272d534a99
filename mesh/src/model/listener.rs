//! Listeners: what happens to a connection, by where it goes (outbound) or where it arrives (inbound).

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use super::{
    AccessLog, Authorization, ClientCertificate, Http2, Http10, HttpFilter, PerMillion, RequestIds,
    RouteConfiguration, ServerHeader, Tracing, Upgrade,
};

/// What a sidecar does with the connections of one destination.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// `<fqdn>:<port>` (outbound), `tulle/inbound/<ip>:<port>`, or `tulle/inbound/<ip>` for all ports.
    pub name: String,
    /// Which side of the application it serves.
    pub direction: TrafficDirection,
    /// The address it stands for: an inbound listener's own, or a service's virtual address where it has one.
    pub address: Option<SocketAddr>,
    /// Tried by how specific their conditions are, as in Envoy; never empty.
    pub chains: Vec<FilterChain>,
    /// The last of `chains` is the default: for what none of the others takes, and without a condition of its own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub has_default: bool,
    /// The first bytes are looked at for a ClientHello and what that asks for; else each connection is plaintext to the
    /// conditions of chains.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tls_inspector: bool,
    /// The first bytes of plaintext are looked at for HTTP; else plaintext is of no application protocol.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub http_inspector: bool,
    /// A proxy in front tells whose connection it is, before its first byte; `None`: there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
}

impl Listener {
    /// Chains without a default among them, at no address. It looks for TLS and for HTTP where one of them asks for that.
    pub fn new(name: impl Into<String>, direction: TrafficDirection, chains: Vec<FilterChain>) -> Self {
        Self {
            name: name.into(),
            direction,
            address: None,
            has_default: false,
            tls_inspector: chains.iter().any(FilterChain::asks_for_tls),
            http_inspector: chains.iter().any(FilterChain::asks_for_http),
            proxy_protocol: None,
            chains,
        }
    }

    /// Whether it makes a difference which HTTP plaintext is, or whether it is any.
    pub fn looks_for_http(&self) -> bool {
        self.http_inspector && self.chains.iter().any(FilterChain::asks_for_http)
    }

    /// The chains that are chosen by their conditions, and the one for all that none of them takes.
    pub fn split_default(&self) -> (&[FilterChain], Option<&FilterChain>) {
        match self.chains.split_last() {
            Some((default, others)) if self.has_default => (others, Some(default)),
            _ => (&self.chains, None),
        }
    }
}

/// Connections begin with a header of the PROXY protocol, which names the client. Where they go stays what was dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyProtocol {
    /// Connections without a header are taken, too.
    pub optional: bool,
    /// Version 1, a line of text, is understood; else what begins so is no header.
    pub version_1: bool,
    /// The same of version 2, which is binary.
    pub version_2: bool,
}

/// Which side of the application a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TrafficDirection {
    /// From peers to the application.
    Inbound,
    /// From the application to other services.
    Outbound,
}

/// One way of treating a connection.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FilterChain {
    /// For logs and dumps.
    pub name: String,
    /// Which connections it is for.
    pub matches: ChainMatch,
    /// End TLS here, or `None` to take the bytes as they are.
    pub tls: Option<DownstreamTls>,
    /// Authorization of the connection as such, checked before the first byte is forwarded; in order. Its policies hold
    /// no condition on a header or a path.
    pub authorization: Vec<Authorization>,
    /// What is inside.
    pub protocol: Protocol,
}

impl FilterChain {
    /// Whether it goes by what a ClientHello tells, or by whether there is one.
    pub fn asks_for_tls(&self) -> bool {
        let by_alpn = !self.matches.application_protocols.is_empty() && self.tls.is_some();
        self.matches.transport.is_some() || !self.matches.server_names.is_empty() || by_alpn
    }

    /// Whether it goes by the application protocol of plaintext. With TLS that stands in a ClientHello.
    pub fn asks_for_http(&self) -> bool {
        !self.matches.application_protocols.is_empty() && self.matches.transport != Some(Transport::Tls)
    }
}

/// Which connections a chain is for; an empty condition matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ChainMatch {
    /// The port that the peer addressed.
    pub destination_port: Option<u16>,
    /// The address that the peer addressed is in one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ranges: Vec<IpNet>,
    /// Whether the connection starts with a TLS ClientHello.
    pub transport: Option<Transport>,
    /// ALPN offers one of these, or the listener's `http_inspector` has found it in plaintext: `http/1.0`, `http/1.1`,
    /// `h2c`.
    pub application_protocols: Vec<String>,
    /// One of these is the SNI; `*.suffix` matches one or more labels in front.
    pub server_names: Vec<String>,
    /// The other end of the connection itself is in one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub direct_source_ranges: Vec<IpNet>,
    /// Whether the client is on this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_type: Option<SourceType>,
    /// The client, where a proxy in front tells who that is the one that it names, is in one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ranges: Vec<IpNet>,
    /// The client's port is one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ports: Vec<u16>,
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceType {
    /// At 127.0.0.1, at ::1, or at the address that it addressed.
    SameIpOrLoopback,
    /// Anywhere else, other loopback addresses included.
    External,
}

/// How a connection starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Transport {
    /// With a TLS ClientHello.
    Tls,
    /// With anything else.
    Plaintext,
}

/// How the server end of a mesh connection proves itself and what it asks of the peer. The certificate and the trust
/// bundle are the workload's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DownstreamTls {
    /// Refuse a peer without a certificate of the mesh.
    pub require_client_certificate: bool,
    /// What is offered in ALPN, best first.
    pub alpn: Vec<String>,
}

/// What a chain carries.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(
    clippy::large_enum_variant,
    reason = "almost every chain is of HTTP, so that a box would only cost a step"
)]
pub enum Protocol {
    /// HTTP/1.1 or HTTP/2, told apart by ALPN or by the HTTP/2 preface.
    Http(HttpConnection),
    /// Bytes.
    Tcp(TcpProxy),
}

/// How HTTP is served on a connection. A limit that is `None` takes the sidecar's default.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpConnection {
    /// Where the routes are.
    pub routes: RouteSource,
    /// Run in order for each request, before the route's own.
    pub filters: Vec<HttpFilter>,
    /// Close a connection without requests after this long; zero: never.
    pub idle_timeout: Option<Duration>,
    /// Give up a stream on which nothing moves for this long; zero: never.
    pub stream_idle_timeout: Option<Duration>,
    /// Give up a request, from its head to the end of its answer, after this long where its route says nothing; zero: never.
    pub max_stream_duration: Option<Duration>,
    /// What becomes of header names with an underscore, which some servers take for a hyphen.
    pub underscores: Underscores,
    /// Give up when a request's head has not arrived this long after its first byte (408).
    pub request_headers_timeout: Option<Duration>,
    /// Give a client this long to close its end of an HTTP/1 connection that is closed; zero: no time at all.
    pub close_timeout: Option<Duration>,
    /// The most bytes a request's head may have (431).
    pub max_request_headers_bytes: Option<u32>,
    /// The most header fields a request may have (431).
    pub max_headers: Option<u32>,
    /// Connections of clients that speak HTTP/2.
    pub http2: Http2,
    /// What is done to paths before anything is decided by them.
    pub paths: PathHandling,
    /// Who the client is where proxies stand before, and what the next hop is told of it.
    pub forwarding: Forwarding,
    /// To what requests may switch, where their route says nothing of it. Any other switch is refused (403).
    pub upgrades: Vec<Upgrade>,
    /// Whether old clients are served.
    pub http_10: Http10,
    /// How requests are known along their way.
    pub request_ids: RequestIds,
    /// What is told of who the client has proved to be.
    pub client_certificate: ClientCertificate,
    /// Who says that it answers.
    pub server: ServerHeader,
    /// Span settings, or `None` for none.
    pub tracing: Option<Tracing>,
    /// A line per request, or `None` for none.
    pub access_log: Option<AccessLog>,
}

impl HttpConnection {
    /// How long nothing may move on a stream within a mesh. Envoy's 5 minutes, which hold where nothing is said, end streams of gRPC
    /// and WebSockets that are merely quiet.
    pub const MESH_STREAM_IDLE: Duration = Duration::from_secs(3600);
    /// How many streams a connection may have at once within a mesh: four times what RFC 9113, section 6.5.2, asks for at least.
    /// Enough for a sidecar's many callers, and so few that a connection's buffers stay bounded. Envoy has 1024.
    pub const MESH_STREAMS: u32 = 400;

    /// One without filters, tracing and log, as a mesh has it: with the sidecar's limits, but for those above, and for whatever it can
    /// carry: old clients, every upgrade.
    pub fn new(routes: RouteSource) -> Self {
        Self {
            routes,
            filters: Vec::new(),
            idle_timeout: None,
            stream_idle_timeout: Some(Self::MESH_STREAM_IDLE),
            max_stream_duration: None,
            underscores: Underscores::default(),
            request_headers_timeout: None,
            close_timeout: None,
            max_request_headers_bytes: None,
            max_headers: None,
            http2: Http2 { streams: Some(Self::MESH_STREAMS), ..Http2::default() },
            paths: PathHandling::default(),
            forwarding: Forwarding::default(),
            upgrades: Upgrade::all(),
            http_10: Http10 { accepted: true, default_host: None },
            request_ids: RequestIds::default(),
            client_certificate: ClientCertificate::default(),
            server: ServerHeader::default(),
            tracing: None,
            access_log: None,
        }
    }
}

/// Who the client of a request is, and what X-Forwarded-For and X-Forwarded-Proto say to the next hop. The default is Envoy's: the
/// last address in X-Forwarded-For is believed, and the field stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Forwarding {
    /// The connection is the client's own: its address counts, and is added to X-Forwarded-For.
    pub use_remote_address: bool,
    /// So many addresses from the end of X-Forwarded-For are those of proxies that are trusted, or, with
    /// `use_remote_address`, one less.
    pub trusted_hops: u32,
    /// The address of the connection is not added even so.
    pub skip_append: bool,
}

/// What is done to a request's path before policies and routes see it. The default is nothing, as in Envoy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathHandling {
    /// Resolve dot segments, take a backslash for a slash, spell unreserved characters as themselves (RFC 3986, 6.2.2).
    pub normalize: bool,
    /// Make one slash of several.
    pub merge_slashes: bool,
    /// What becomes of `%2F` and `%5C`, before all else.
    pub escaped_slashes: EscapedSlashes,
}

impl PathHandling {
    /// A path that can be written in several ways is written in one, but for escaped slashes.
    pub const NORMAL: Self =
        Self { normalize: true, merge_slashes: true, escaped_slashes: EscapedSlashes::Keep };
}

/// What becomes of the escaped slashes and backslashes of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum EscapedSlashes {
    /// They stay.
    #[default]
    Keep,
    /// The request is refused.
    Reject,
    /// The client is sent to the path without them; a gRPC client, which follows no redirect, is refused.
    Redirect,
    /// They become what they stand for.
    Unescape,
}

/// What becomes of header names with an underscore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Underscores {
    /// They pass.
    #[default]
    Allow,
    /// The request is refused.
    Reject,
    /// They are taken away.
    Drop,
}

/// Where a listener's routes are.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RouteSource {
    /// In a route configuration of this name, fetched over RDS.
    Named(String),
    /// Here.
    Inline(RouteConfiguration),
}

/// Forwarding of bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpProxy {
    /// The clusters and their weights; each connection draws one. Never empty, and not all of weight 0.
    pub backends: Vec<(String, u32)>,
    /// Close when nothing has moved in either direction for this long; `None`: the sidecar's default; zero: never.
    pub idle_timeout: Option<Duration>,
    /// Close this long after the client has connected, whatever moves; `None`: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_duration: Option<MaxDuration>,
    /// How many endpoints are tried until one takes the connection; at least 1.
    pub max_connect_attempts: u32,
    /// Clusters that choose by a hash choose by the client's address.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub hashes_source_ip: bool,
    /// A line per connection, or `None` for none.
    pub access_log: Option<AccessLog>,
}

impl TcpProxy {
    /// One as the mesh has them: several endpoints are tried, and there is no log.
    pub fn new(backends: Vec<(String, u32)>) -> Self {
        Self {
            backends,
            idle_timeout: None,
            max_duration: None,
            max_connect_attempts: 4,
            hashes_source_ip: false,
            access_log: None,
        }
    }
}

/// How long a connection may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MaxDuration {
    /// The least; never zero.
    pub least: Duration,
    /// Up to which part of that more, at random.
    pub jitter: PerMillion,
}

//! Routes: where a request goes, and what is done to it on the way.

use http::{HeaderName, StatusCode};
use serde::{Deserialize, Serialize, Serializer};

use super::filter::FAULT_FILTER;
use super::{
    Fault, FilterOverrides, FilterSettings, Forward, HeaderChanges, HeaderMatch, HeaderMutations, PathMatch,
    PathRewrite, PerMillion, QueryMatch, RateLimitRule,
};

/// The routes of one listener.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteConfiguration {
    /// The name under which it is fetched.
    pub name: String,
    /// By host name; no domain stands in two of them.
    pub virtual_hosts: Vec<VirtualHost>,
    /// Changes to the heads of all of them, after those of their virtual hosts.
    #[serde(skip_serializing_if = "HeaderChanges::is_empty")]
    pub headers: HeaderChanges,
    /// After a backend's own changes come those of the configuration, and those of the route last.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub specific_headers_last: bool,
}

impl RouteConfiguration {
    /// One that changes no head.
    pub fn new(name: impl Into<String>, virtual_hosts: Vec<VirtualHost>) -> Self {
        let headers = HeaderChanges::default();
        Self { name: name.into(), virtual_hosts, headers, specific_headers_last: false }
    }
}

/// The routes of a set of host names.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualHost {
    /// For logs and dumps.
    pub name: String,
    /// The hosts; never empty.
    pub domains: Vec<Domain>,
    /// The first that matches is taken.
    pub routes: Vec<Route>,
    /// Changes to the heads of all of them, after those of the route.
    #[serde(skip_serializing_if = "HeaderChanges::is_empty")]
    pub headers: HeaderChanges,
    /// Whom `x-envoy-attempt-count` tells how often a request was sent.
    #[serde(skip_serializing_if = "TellAttempts::is_nobody")]
    pub tell_attempts: TellAttempts,
    /// What limits on the rate of requests see of them, besides what their routes say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rate_limits: Vec<RateLimitRule>,
}

/// Whom `x-envoy-attempt-count` tells how often a request was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TellAttempts {
    /// The endpoint, with the first attempt already; else only where there was one before.
    pub endpoint: bool,
    /// The client.
    pub client: bool,
}

impl TellAttempts {
    fn is_nobody(&self) -> bool {
        *self == Self::default()
    }
}

impl VirtualHost {
    /// One that changes no head.
    pub fn new(name: impl Into<String>, domains: Vec<Domain>, routes: Vec<Route>) -> Self {
        Self {
            name: name.into(),
            domains,
            routes,
            headers: HeaderChanges::default(),
            tell_attempts: TellAttempts::default(),
            rate_limits: Vec::new(),
        }
    }
}

/// A pattern for host names. Exact beats the longest suffix beats the longest prefix beats `*`, without regard to
/// case; a port counts where the pattern has one (Envoy's `VirtualHost.domains`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Domain {
    /// `cart.shop` or `cart.shop:80`.
    Exact(String),
    /// `*.shop`: held as `.shop`; at least one character must stand in front.
    Suffix(String),
    /// `cart.*`: held as `cart.`; at least one character must follow.
    Prefix(String),
    /// `*`.
    Any,
}

impl Domain {
    /// Reads a pattern, in lower case.
    pub fn parse(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            _ if text == "*" => Self::Any,
            (Some(suffix), _) => Self::Suffix(suffix.into()),
            (_, Some(prefix)) => Self::Prefix(prefix.into()),
            _ => Self::Exact(text),
        }
    }
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
            Self::Any => f.write_str("*"),
        }
    }
}

impl Serialize for Domain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// Unique within its virtual host; a label in metrics and spans.
    pub name: String,
    /// The object that it was made from, for explanations.
    pub origin: Option<Origin>,
    /// Which requests it is for.
    pub matches: RouteMatch,
    /// What happens to them.
    pub action: RouteAction,
    /// Changes to the request, after those of the backend.
    pub request_headers: HeaderMutations,
    /// Changes to the response, after those of the backend.
    pub response_headers: HeaderMutations,
    /// What is said of the listener's filters, for requests that take it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: FilterOverrides,
}

impl Route {
    /// One that changes nothing of the request or its response.
    pub fn new(name: impl Into<String>, matches: RouteMatch, action: RouteAction) -> Self {
        Self {
            name: name.into(),
            origin: None,
            matches,
            action,
            request_headers: HeaderMutations::default(),
            response_headers: HeaderMutations::default(),
            filters: FilterOverrides::new(),
        }
    }

    /// The faults that its requests have, where it says something of the filter for them.
    pub fn fault(&self) -> Option<&Fault> {
        self.filters.iter().find_map(|said| match &said.settings {
            Some(FilterSettings::Fault(fault)) if said.filter == FAULT_FILTER => Some(fault),
            _ => None,
        })
    }
}

/// The object that a route was made from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// `HTTPRoute`, `GRPCRoute`, `Service`, ...
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Which of its rules, from 0.
    pub rule: u32,
    /// Which of the rule's matches, from 0.
    pub matched: u32,
}

/// Which requests a route is for: all conditions must hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteMatch {
    /// On the path.
    pub path: PathMatch,
    /// Compare the path with regard to case (regular expressions always do).
    pub case_sensitive: bool,
    /// On headers, and on the method as `:method`.
    pub headers: Vec<HeaderMatch>,
    /// On query parameters.
    pub query: Vec<QueryMatch>,
    /// Only gRPC requests (`content-type: application/grpc`, bare or with a suffix).
    pub grpc: bool,
    /// Only this part of the requests, drawn at random.
    pub fraction: Option<PerMillion>,
}

impl RouteMatch {
    /// All requests with such a path.
    pub fn new(path: PathMatch) -> Self {
        Self {
            path,
            case_sensitive: true,
            headers: Vec::new(),
            query: Vec::new(),
            grpc: false,
            fraction: None,
        }
    }
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(
    clippy::large_enum_variant,
    reason = "almost every route forwards, so that a box would only cost a step"
)]
pub enum RouteAction {
    /// It goes to a backend.
    Forward(Forward),
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// The mesh answers.
    Respond(DirectResponse),
    /// The route stands for what a proxyless gRPC server does itself (Envoy's `non_forwarding_action`).
    NonForwarding,
}

/// An answer that sends the client elsewhere; a part that is `None` stays as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// The host.
    pub host: Option<String>,
    /// The port; the well-known one of the scheme is left out of the location.
    pub port: Option<u16>,
    /// The path.
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    #[serde(with = "status")]
    pub status: StatusCode,
    /// Drop the query.
    pub strip_query: bool,
}

/// An answer of the mesh itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectResponse {
    /// The status.
    #[serde(with = "status")]
    pub status: StatusCode,
    /// The body, `text/plain`; empty for none.
    pub body: String,
}

pub(super) mod status {
    use super::{Serializer, StatusCode};

    pub(in crate::model) fn serialize<S: Serializer>(
        status: &StatusCode,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(status.as_u16())
    }
}

pub(super) mod header_name {
    use super::{HeaderName, Serializer};

    pub(in crate::model) fn serialize<S: Serializer>(
        name: &HeaderName,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(name.as_str())
    }
}

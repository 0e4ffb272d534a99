//! What is configured: the resources that the control plane makes, xDS carries and the sidecar runs.
//!
//! These types are the common language of both ends. They follow Envoy's v3 API in shape, so that each maps to one
//! protobuf and back without loss, but hold only what Tulle acts on and only in valid forms. They carry no state.

mod authorization;
mod cluster;
mod cors;
mod dns;
mod endpoint;
mod fault;
mod filter;
mod format;
mod forward;
mod headers;
mod http;
mod listener;
mod matching;
mod rate;
mod retry;
mod route;
mod secret;
mod session;
mod telemetry;

pub use authorization::{Action, Authorization, Permission, Policy, Principal};
pub use cluster::{
    Cluster, Discovery, DnsFamily, FailurePercentage, HappyEyeballs, HashFunction, Hashing, HostPort,
    IpFamily, Keepalive, Limits, LoadBalancer, LocalOrigin, OutlierDetection, Panic, RetryBudget,
    SessionHealth, SuccessRate, UpstreamProtocol, UpstreamTls,
};
pub use cors::Cors;
pub use dns::{DnsName, DnsRecords, DnsTarget, is_domain_name};
pub use endpoint::{
    DropOverload, Endpoint, EndpointAddress, Health, LoadAssignment, Locality, LocalityEndpoints,
};
pub use fault::{AskedShare, Fault, FaultAbort, FaultPart, Whole};
pub use filter::{
    AdaptiveConcurrency, CORS_FILTER, FAULT_FILTER, FilterOverride, FilterOverrides, FilterSettings,
    HttpFilter, ReplaceableFilter,
};
pub use format::{
    AddressPart, Format, FormatError, HeadField, Operator, PathMoment, PathPart, TimeFormat, TlsPart,
};
pub use forward::{Backend, Forward, HashPolicy, HostRewrite, Mirror, MirrorHost, PathRewrite, Split};
pub use headers::{
    HeaderChanges, HeaderMutation, HeaderMutations, HeaderOp, HeaderText, REDACTED, is_secret_header,
};
pub use http::{CertificateDetails, ClientCertificate, Http2, Http10, RequestIds, ServerHeader, Upgrade};
pub use listener::{
    ChainMatch, DownstreamTls, EscapedSlashes, FilterChain, Forwarding, HttpConnection, Listener,
    MaxDuration, PathHandling, Protocol, ProxyProtocol, RouteSource, SourceType, TcpProxy, TrafficDirection,
    Transport, Underscores,
};
pub use matching::{
    HeaderMatch, HeaderTest, PathMatch, PerMillion, QueryMatch, Regex, StringMatch, Substitution,
};
pub use rate::{
    DescriptorBucket, HostRules, LocalRateLimit, RateAction, RateDescriptors, RateLimitAnswer, RateLimitRule,
    RouteRateLimits, TokenBucket,
};
pub use retry::{GrpcTimeout, RateLimitedBackoff, ResetHeader, RetryOn, RetryPolicy, Timeouts};
pub use route::{
    DirectResponse, Domain, Origin, Redirect, Route, RouteAction, RouteConfiguration, RouteMatch,
    TellAttempts, VirtualHost,
};
pub use secret::{PrivateKey, Secret, SecretValue};
pub use session::{Session, SessionCarrier};
pub use telemetry::{AccessLog, AccessLogFormat, Comparison, CustomTag, LogFilter, TagValue, Tracing};

//! Authorization: who may do what (Envoy's RBAC, whose trees of conditions these are).

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{HeaderMatch, StringMatch};

/// A set of policies of one action. A request passes a list of sets when no DENY set matches and each ALLOW set does.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Authorization {
    /// For logs and metrics.
    pub name: String,
    /// What a match means.
    pub action: Action,
    /// Named after the object that each was made from; the set matches when one does. In the order of their names, which
    /// differ, since that is all the order that they have on the wire.
    pub policies: Vec<Policy>,
    /// Only report what would have happened.
    pub audit_only: bool,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// The request passes; without a match in the set it is refused.
    Allow,
    /// The request is refused; without a match in the set it passes.
    Deny,
    /// The request passes either way, and a match is counted and logged.
    Audit,
}

/// One policy: a permission and a principal must both match.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// `<namespace>/<name>#<rule>` of the object.
    pub name: String,
    /// One of these must hold.
    pub permissions: Vec<Permission>,
    /// One of these must hold.
    pub principals: Vec<Principal>,
}

/// A condition on what is asked.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Permission {
    /// Everything.
    Any,
    /// All hold.
    And(Vec<Permission>),
    /// One holds.
    Or(Vec<Permission>),
    /// It does not hold.
    Not(Box<Permission>),
    /// On a header; `:method`, `:path` and `:authority` are the request's own.
    Header(HeaderMatch),
    /// On the path without its query.
    UrlPath(StringMatch),
    /// On the port that was addressed.
    DestinationPort(u16),
    /// The port that was addressed is one from the first to the last.
    DestinationPortRange(u16, u16),
    /// On the address that was addressed.
    DestinationIp(IpNet),
    /// On the SNI.
    RequestedServerName(StringMatch),
}

/// A condition on who asks.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Principal {
    /// Anyone.
    Any,
    /// All hold.
    And(Vec<Principal>),
    /// One holds.
    Or(Vec<Principal>),
    /// It does not hold.
    Not(Box<Principal>),
    /// A peer that speaks TLS, which ends here. Where there is a condition, the SPIFFE ID of its certificate meets it, and
    /// without a certificate the empty text; without a condition it may have proved nothing.
    Authenticated(Option<StringMatch>),
    /// The peer's own address (`direct_remote_ip`).
    SourceIp(IpNet),
    /// The address that a proxy in front tells by the PROXY protocol; without one, the peer's own (`source_ip`).
    ConnectionIp(IpNet),
    /// The client's address, as far as the listener believes the proxies before it.
    RemoteIp(IpNet),
    /// On a header.
    Header(HeaderMatch),
    /// On the path without its query.
    UrlPath(StringMatch),
}

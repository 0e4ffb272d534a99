//! One tree for what policies ask of peers and of requests, and its evaluation.

use std::cell::OnceCell;

use ipnet::IpNet;

use crate::identity::SpiffeId;
use crate::model::{HeaderMatch, Permission, Principal, StringMatch};

use super::Facts;
use super::path::{self, Readings};

/// The facts, with what is derived from them once it is asked for.
pub(super) struct Seen<'f> {
    pub(super) facts: Facts<'f>,
    readings: OnceCell<Readings<'f>>,
}

impl<'f> Seen<'f> {
    pub(super) fn new(facts: &Facts<'f>) -> Self {
        Self { facts: *facts, readings: OnceCell::new() }
    }

    /// How the request's path can be read; `None` where there is no request.
    pub(super) fn readings(&self) -> Option<&Readings<'f>> {
        let request = self.facts.request?;
        Some(self.readings.get_or_init(|| path::readings(request.path)))
    }
}

#[derive(Debug)]
pub(super) enum Condition {
    Any,
    And(Vec<Condition>),
    Or(Vec<Condition>),
    Not(Box<Condition>),
    Leaf(Leaf),
}

#[derive(Debug)]
pub(super) enum Leaf {
    Header(HeaderMatch),
    /// In normal form.
    UrlPath(StringMatch),
    DestinationPort(u16),
    DestinationPortRange(u16, u16),
    DestinationIp(IpNet),
    RequestedServerName(StringMatch),
    Authenticated(Option<StringMatch>),
    SourceIp(IpNet),
    ConnectionIp(IpNet),
    RemoteIp(IpNet),
}

impl Condition {
    /// One of the permissions and one of the principals.
    pub(super) fn of_policy(permissions: Vec<Permission>, principals: Vec<Principal>) -> Self {
        let permissions = permissions.into_iter().map(Self::from).collect();
        let principals = principals.into_iter().map(Self::from).collect();
        Self::And(vec![Self::Or(permissions), Self::Or(principals)])
    }

    /// Whether it holds, where an undecidable condition counts as `unclear`.
    pub(super) fn holds(&self, seen: &Seen<'_>, unclear: bool) -> bool {
        match self {
            Self::Any => true,
            Self::And(all) => all.iter().all(|condition| condition.holds(seen, unclear)),
            Self::Or(any) => any.iter().any(|condition| condition.holds(seen, unclear)),
            // What counts against the request below a negation is the opposite of what does above it.
            Self::Not(inner) => !inner.holds(seen, !unclear),
            Self::Leaf(leaf) => leaf.holds(seen).unwrap_or(unclear),
        }
    }
}

impl Leaf {
    /// Whether it holds; `None` where that can't be decided.
    pub(super) fn holds(&self, seen: &Seen<'_>) -> Option<bool> {
        let facts = &seen.facts;
        match self {
            Self::Header(header) => Some(header.matches(facts.request?.values(&header.name))),
            Self::UrlPath(condition) => match seen.readings()? {
                Readings::One(path) => Some(condition.matches(path)),
                Readings::Two { strict, lax } => {
                    let answer = condition.matches(strict);
                    (condition.matches(lax) == answer).then_some(answer)
                }
                Readings::Unreadable => None,
            },
            Self::DestinationPort(port) => Some(facts.destination.port() == *port),
            Self::DestinationPortRange(first, last) => {
                Some((*first..=*last).contains(&facts.destination.port()))
            }
            Self::DestinationIp(net) => Some(net.contains(&facts.destination.ip().to_canonical())),
            Self::RequestedServerName(condition) => {
                Some(condition.matches(facts.server_name.unwrap_or_default()))
            }
            // Without a name that is proved Envoy looks at the certificate's subject, which is empty without a certificate.
            Self::Authenticated(condition) => Some(
                facts.tls
                    && condition.as_ref().is_none_or(|condition| {
                        condition.matches(facts.peer.map(SpiffeId::as_str).unwrap_or_default())
                    }),
            ),
            Self::SourceIp(net) => Some(net.contains(&facts.source_ip.to_canonical())),
            Self::ConnectionIp(net) => Some(net.contains(&facts.connection_ip.to_canonical())),
            Self::RemoteIp(net) => Some(net.contains(&facts.remote_ip.to_canonical())),
        }
    }
}

impl From<Permission> for Condition {
    fn from(permission: Permission) -> Self {
        let all = |list: Vec<Permission>| list.into_iter().map(Self::from).collect();
        match permission {
            Permission::Any => Self::Any,
            Permission::And(list) => Self::And(all(list)),
            Permission::Or(list) => Self::Or(all(list)),
            Permission::Not(inner) => Self::Not(Box::new((*inner).into())),
            Permission::Header(header) => Self::Leaf(Leaf::Header(header)),
            Permission::UrlPath(condition) => Self::Leaf(Leaf::UrlPath(path::condition(condition))),
            Permission::DestinationPort(port) => Self::Leaf(Leaf::DestinationPort(port)),
            Permission::DestinationPortRange(first, last) => {
                Self::Leaf(Leaf::DestinationPortRange(first, last))
            }
            Permission::DestinationIp(net) => Self::Leaf(Leaf::DestinationIp(net)),
            Permission::RequestedServerName(condition) => Self::Leaf(Leaf::RequestedServerName(condition)),
        }
    }
}

impl From<Principal> for Condition {
    fn from(principal: Principal) -> Self {
        let all = |list: Vec<Principal>| list.into_iter().map(Self::from).collect();
        match principal {
            Principal::Any => Self::Any,
            Principal::And(list) => Self::And(all(list)),
            Principal::Or(list) => Self::Or(all(list)),
            Principal::Not(inner) => Self::Not(Box::new((*inner).into())),
            Principal::Authenticated(condition) => Self::Leaf(Leaf::Authenticated(condition)),
            Principal::SourceIp(net) => Self::Leaf(Leaf::SourceIp(net)),
            Principal::ConnectionIp(net) => Self::Leaf(Leaf::ConnectionIp(net)),
            Principal::RemoteIp(net) => Self::Leaf(Leaf::RemoteIp(net)),
            Principal::Header(header) => Self::Leaf(Leaf::Header(header)),
            Principal::UrlPath(condition) => Self::Leaf(Leaf::UrlPath(path::condition(condition))),
        }
    }
}

//! Why a connection or a request may pass or not: how each policy came out, and the first of its conditions that did not
//! hold. As in records of routes, credentials never stand in it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::Action;
use crate::route::shown_header;

use super::condition::{Condition, Leaf, Seen};
use super::path::Readings;
use super::{Authorizer, Facts, Set, Verdict};

/// A decision, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationRecord {
    /// Whether it may pass.
    pub allowed: bool,
    /// The set that refused it.
    pub set: Option<String>,
    /// The policy that decided: the DENY policy that matched, or the first ALLOW policy; `None` where no policy of an ALLOW
    /// set matched, and where there is no set.
    pub by: Option<String>,
    /// Where no policy of an ALLOW set matched: that with the fewest failing conditions.
    pub nearest: Option<NearMiss>,
    /// All policies, in the order in which they are asked; those that only report come last.
    pub policies: Vec<PolicyRecord>,
}

/// An ALLOW policy that nearly matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NearMiss {
    /// Its name.
    pub policy: String,
    /// How many conditions would have to come out differently.
    pub failing: usize,
    /// The first of them.
    pub first: FailedFact,
}

/// How a policy came out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRecord {
    /// The set that it belongs to.
    pub set: String,
    /// What a match means.
    pub action: Action,
    /// It only reports.
    pub audit_only: bool,
    /// Its name.
    pub policy: String,
    /// Whether it matched.
    pub matched: bool,
    /// Where it did not: the first condition that does not hold.
    pub failed: Option<FailedFact>,
}

/// A condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedFact {
    /// What it is on.
    pub on: FactKind,
    /// What the policy asks for.
    pub expected: String,
    /// What there is, or `None` where there is nothing.
    pub actual: Option<String>,
}

/// What a condition of a policy is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FactKind {
    /// The peer's proven identity.
    Identity,
    /// The peer's address.
    SourceIp,
    /// The client's address, behind proxies that are believed.
    RemoteIp,
    /// The port that was addressed.
    DestinationPort,
    /// The address that was addressed.
    DestinationIp,
    /// The SNI.
    ServerName,
    /// The method.
    Method,
    /// The path.
    Path,
    /// The header of this name.
    Header(String),
    /// Nothing: the policy can't match whatever comes.
    Nothing,
}

pub(super) fn explain(authorizer: &Authorizer, facts: &Facts<'_>) -> AuthorizationRecord {
    let seen = Seen::new(facts);
    let verdict = authorizer.check(facts);
    let (set, by) = match verdict {
        Verdict::Allowed { by } => (None, by),
        Verdict::Denied { set, by } => (Some(set), by),
    };
    let refusing = authorizer.allow.iter().find(|set| by.is_none() && set.matching(&seen).is_none());
    let sets = [&authorizer.deny, &authorizer.allow, &authorizer.audit].into_iter().flatten();
    AuthorizationRecord {
        allowed: verdict.is_allowed(),
        set: set.map(Into::into),
        by: by.map(Into::into),
        nearest: refusing.and_then(|set| nearest(set, &seen)),
        policies: sets.flat_map(|set| policies(set, &seen)).collect(),
    }
}

fn policies(set: &Set, seen: &Seen<'_>) -> impl Iterator<Item = PolicyRecord> {
    set.policies.iter().map(|policy| {
        let doubt = Doubt { unclear: set.unclear(), wanted: true };
        let failed = doubt.blame(&policy.condition, seen);
        PolicyRecord {
            set: set.name.clone(),
            action: set.action,
            audit_only: set.audit_only,
            policy: policy.name.clone(),
            matched: failed.is_none(),
            failed,
        }
    })
}

fn nearest(set: &Set, seen: &Seen<'_>) -> Option<NearMiss> {
    let doubt = Doubt { unclear: set.unclear(), wanted: true };
    let near = set.policies.iter().min_by_key(|policy| doubt.failing(&policy.condition, seen))?;
    Some(NearMiss {
        policy: near.name.clone(),
        failing: doubt.failing(&near.condition, seen),
        first: doubt.blame(&near.condition, seen)?,
    })
}

/// What is asked of a condition at its place below negations.
#[derive(Clone, Copy)]
struct Doubt {
    /// What it counts as when it can't be decided.
    unclear: bool,
    /// What it should come out as for the policy to match.
    wanted: bool,
}

impl Doubt {
    fn negated(self) -> Self {
        Self { unclear: !self.unclear, wanted: !self.wanted }
    }

    /// How many conditions would have to come out differently for `condition` to be as wanted.
    fn failing(self, condition: &Condition, seen: &Seen<'_>) -> usize {
        if condition.holds(seen, self.unclear) == self.wanted {
            return 0;
        }
        let each = |list: &[Condition]| -> Vec<usize> {
            list.iter().map(|condition| self.failing(condition, seen)).collect()
        };
        match condition {
            Condition::Any | Condition::Leaf(_) => 1,
            Condition::Not(inner) => self.negated().failing(inner, seen),
            Condition::And(list) if self.wanted => each(list).iter().sum(),
            Condition::Or(list) if !self.wanted => each(list).iter().sum(),
            // One of them is enough.
            Condition::And(list) | Condition::Or(list) => each(list).into_iter().min().unwrap_or(1),
        }
    }

    /// The first condition that is to blame, in the nearest of alternatives; `None` where `condition` is as wanted.
    fn blame(self, condition: &Condition, seen: &Seen<'_>) -> Option<FailedFact> {
        if condition.holds(seen, self.unclear) == self.wanted {
            return None;
        }
        match condition {
            Condition::Any => Some(FailedFact::nothing()),
            Condition::Leaf(leaf) => Some(FailedFact::of(leaf, self.wanted, seen)),
            Condition::Not(inner) => self.negated().blame(inner, seen),
            Condition::And(list) if self.wanted => list.iter().find_map(|inner| self.blame(inner, seen)),
            Condition::Or(list) if !self.wanted => list.iter().find_map(|inner| self.blame(inner, seen)),
            Condition::And(list) | Condition::Or(list) => {
                match list.iter().min_by_key(|inner| self.failing(inner, seen)) {
                    Some(nearest) => self.blame(nearest, seen),
                    None => Some(FailedFact::nothing()),
                }
            }
        }
    }
}

impl FailedFact {
    fn nothing() -> Self {
        Self { on: FactKind::Nothing, expected: "nothing that could ever hold".into(), actual: None }
    }

    fn of(leaf: &Leaf, wanted: bool, seen: &Seen<'_>) -> Self {
        let facts = &seen.facts;
        let actual_path = || match seen.readings()? {
            Readings::One(path) => Some(path.clone().into_owned()),
            Readings::Two { strict, lax } => Some(format!("{strict} or, to some servers, {lax}")),
            Readings::Unreadable => facts.request.map(|request| format!("{} (no valid path)", request.path)),
        };
        let (on, expected, actual) = match leaf {
            Leaf::Header(header) => {
                let value = facts.request.and_then(|request| request.header(&header.name));
                let (expected, actual) = shown_header(header, value);
                let on = match header.name.as_str() {
                    ":method" => FactKind::Method,
                    name => FactKind::Header(name.into()),
                };
                (on, expected, actual)
            }
            Leaf::UrlPath(condition) => (FactKind::Path, condition.to_string(), actual_path()),
            Leaf::DestinationPort(port) => {
                (FactKind::DestinationPort, port.to_string(), Some(facts.destination.port().to_string()))
            }
            Leaf::DestinationPortRange(first, last) => (
                FactKind::DestinationPort,
                format!("{first} to {last}"),
                Some(facts.destination.port().to_string()),
            ),
            Leaf::DestinationIp(net) => {
                (FactKind::DestinationIp, format!("in {net}"), Some(facts.destination.ip().to_string()))
            }
            Leaf::RequestedServerName(condition) => {
                (FactKind::ServerName, condition.to_string(), facts.server_name.map(Into::into))
            }
            Leaf::Authenticated(condition) => {
                let expected = match condition {
                    Some(condition) => condition.to_string(),
                    None => "any, or none, over TLS".into(),
                };
                (FactKind::Identity, expected, facts.peer.map(ToString::to_string))
            }
            Leaf::SourceIp(net) => {
                (FactKind::SourceIp, format!("in {net}"), Some(facts.source_ip.to_string()))
            }
            Leaf::ConnectionIp(net) => {
                (FactKind::RemoteIp, format!("in {net}"), Some(facts.connection_ip.to_string()))
            }
            Leaf::RemoteIp(net) => {
                (FactKind::RemoteIp, format!("in {net}"), Some(facts.remote_ip.to_string()))
            }
        };
        let on_http = matches!(leaf, Leaf::Header(_) | Leaf::UrlPath(_));
        Self {
            on,
            expected: if wanted { expected } else { format!("not {expected}") },
            actual: match facts.request {
                None if on_http => Some("a connection without HTTP".into()),
                _ => actual,
            },
        }
    }
}

impl fmt::Display for AuthorizationRecord {
    /// A line for the verdict, and one for each policy.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.allowed, &self.set, &self.by) {
            (true, _, Some(policy)) => write!(f, "allowed by {policy:?}")?,
            (true, _, None) => f.write_str("allowed: no ALLOW policy applies here")?,
            (false, _, Some(policy)) => write!(f, "denied by {policy:?}")?,
            (false, set, None) => {
                write!(f, "denied: no ALLOW policy of {:?} matches", set.as_deref().unwrap_or_default())?;
            }
        }
        if let Some(near) = &self.nearest {
            let plural = if near.failing == 1 { "" } else { "s" };
            write!(
                f,
                "; nearest is {:?}, {} condition{plural} short: {}",
                near.policy, near.failing, near.first
            )?;
        }
        self.policies.iter().try_for_each(|policy| write!(f, "\n  {policy}"))
    }
}

impl fmt::Display for PolicyRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = match self.action {
            Action::Allow => "ALLOW",
            Action::Deny => "DENY",
            Action::Audit => "AUDIT",
        };
        let audit = if self.audit_only { " (only reported)" } else { "" };
        write!(f, "{action}{audit} {:?}: ", self.policy)?;
        match &self.failed {
            Some(failed) => failed.fmt(f),
            None => f.write_str("matches"),
        }
    }
}

impl fmt::Display for FailedFact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}", self.on, self.expected)?;
        match (&self.actual, &self.on) {
            (Some(actual), _) => write!(f, ", there is {actual:?}"),
            (None, FactKind::Nothing) => Ok(()),
            (None, _) => f.write_str(", there is none"),
        }
    }
}

impl fmt::Display for FactKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity => f.write_str("identity"),
            Self::SourceIp => f.write_str("source address"),
            Self::RemoteIp => f.write_str("client address"),
            Self::DestinationPort => f.write_str("port"),
            Self::DestinationIp => f.write_str("destination address"),
            Self::ServerName => f.write_str("server name"),
            Self::Method => f.write_str("method"),
            Self::Path => f.write_str("path"),
            Self::Header(name) => write!(f, "header {name:?}"),
            Self::Nothing => f.write_str("conditions"),
        }
    }
}

//! Authorization: whether a connection or a request may pass.
//!
//! In: sets of policies, compiled once into an [`Authorizer`], and the [`Facts`] of each connection or request. Out: a
//! [`Verdict`], what audits have to say, and on demand an [`AuthorizationRecord`] with the first failing condition of
//! each policy. First every DENY set must not match, then every ALLOW set must.
//!
//! A condition may be undecidable: one on HTTP where the bytes are not HTTP, or one on a path that servers read in several
//! ways, with different answers. Such a condition always counts against the request, however deep it stands under
//! negations: a DENY policy takes it to hold, an ALLOW policy takes it not to. (An AUDIT policy, which refuses nothing,
//! takes it not to.) It must never be possible to pass by being unclear.
//!
//! Conditions on paths see the path in normal form (module `path`). Write them as the path stands on the wire, `/a%20b`,
//! or in plain text, `/a b`; but a regular expression is taken as it is and must fit the normal form. A condition on the
//! header `:path` sees the path as it came, with its query, and is therefore no safe ground for a DENY.

use std::net::{IpAddr, SocketAddr};

use crate::identity::SpiffeId;
use crate::model::{Action, Authorization};
use crate::route::RequestView;

mod condition;
mod path;
mod record;

use condition::{Condition, Seen};
pub use record::{AuthorizationRecord, FactKind, FailedFact, NearMiss, PolicyRecord};

/// What is known of a connection, and of a request on it.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// Whether TLS ends here.
    pub tls: bool,
    /// The peer's identity, proved by its certificate; `None` without one.
    pub peer: Option<&'a SpiffeId>,
    /// The peer's own address.
    pub source_ip: IpAddr,
    /// The same, or the one that a proxy in front tells.
    pub connection_ip: IpAddr,
    /// The client's, as far as the proxies before are believed.
    pub remote_ip: IpAddr,
    /// The address that the peer addressed.
    pub destination: SocketAddr,
    /// The SNI.
    pub server_name: Option<&'a str>,
    /// The request; `None` where bytes are forwarded.
    pub request: Option<&'a RequestView<'a>>,
}

/// Policies, ready to be asked.
#[derive(Debug)]
pub struct Authorizer {
    deny: Vec<Set>,
    allow: Vec<Set>,
    /// What only reports: audit sets, and sets of another action that are not enforced.
    audit: Vec<Set>,
}

impl Authorizer {
    /// Compiles sets of policies. Sets of one action keep their order.
    pub fn compile(sets: Vec<Authorization>) -> Self {
        let mut authorizer = Self { deny: Vec::new(), allow: Vec::new(), audit: Vec::new() };
        for set in sets {
            let list = match set.action {
                _ if set.audit_only => &mut authorizer.audit,
                Action::Audit => &mut authorizer.audit,
                Action::Deny => &mut authorizer.deny,
                Action::Allow => &mut authorizer.allow,
            };
            list.push(Set::compile(set));
        }
        authorizer
    }

    /// Decides. Without any set, everything is allowed. It allocates only to bring a path into normal form that is not,
    /// and as conditions on headers do.
    pub fn check(&self, facts: &Facts<'_>) -> Verdict<'_> {
        let seen = Seen::new(facts);
        for set in &self.deny {
            if let Some(by) = set.matching(&seen) {
                return Verdict::Denied { set: &set.name, by: Some(by) };
            }
        }
        let mut allowed_by = None;
        for set in &self.allow {
            let Some(by) = set.matching(&seen) else {
                return Verdict::Denied { set: &set.name, by: None };
            };
            allowed_by = allowed_by.or(Some(by));
        }
        Verdict::Allowed { by: allowed_by }
    }

    /// What audits have to say, whatever the verdict is; empty without work where nothing is audited. A set has its say
    /// once.
    pub fn audits<'a>(&'a self, facts: &Facts<'_>) -> impl Iterator<Item = AuditHit<'a>> {
        let seen = Seen::new(facts);
        self.audit.iter().filter_map(move |set| {
            let matching = set.matching(&seen);
            let effect = match (set.action, matching) {
                (Action::Audit, Some(_)) => AuditEffect::Matched,
                (Action::Deny, Some(_)) | (Action::Allow, None) => AuditEffect::WouldDeny,
                (Action::Audit | Action::Deny, None) | (Action::Allow, Some(_)) => return None,
            };
            Some(AuditHit { set: &set.name, policy: matching, effect })
        })
    }

    /// Decides as [`Authorizer::check`] does, and says how each policy came out and why.
    pub fn explain(&self, facts: &Facts<'_>) -> AuthorizationRecord {
        record::explain(self, facts)
    }

    /// Whether there is nothing to decide and nothing to report.
    pub fn is_empty(&self) -> bool {
        self.deny.is_empty() && self.allow.is_empty() && self.audit.is_empty()
    }
}

/// A decision, with the names of what made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It may pass.
    Allowed {
        /// The policy that matched in the first ALLOW set; `None` where there is no such set.
        by: Option<&'a str>,
    },
    /// It may not.
    Denied {
        /// The set that refused it.
        set: &'a str,
        /// The DENY policy that matched; `None` where no policy of an ALLOW set did.
        by: Option<&'a str>,
    },
}

impl Verdict<'_> {
    /// Whether it may pass.
    pub fn is_allowed(self) -> bool {
        matches!(self, Self::Allowed { .. })
    }
}

/// What an audit has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditHit<'a> {
    /// The set.
    pub set: &'a str,
    /// The policy that matched; `None` where an ALLOW set would refuse because none did.
    pub policy: Option<&'a str>,
    /// What it means.
    pub effect: AuditEffect,
}

/// What a hit of an audit means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditEffect {
    /// A policy of an AUDIT set matched.
    Matched,
    /// The set would have refused, were it enforced.
    WouldDeny,
}

#[derive(Debug)]
struct Set {
    name: String,
    action: Action,
    audit_only: bool,
    policies: Vec<CompiledPolicy>,
}

#[derive(Debug)]
struct CompiledPolicy {
    name: String,
    /// The permissions and the principals.
    condition: Condition,
}

impl Set {
    fn compile(set: Authorization) -> Self {
        let policies = set.policies.into_iter().map(|policy| CompiledPolicy {
            name: policy.name,
            condition: Condition::of_policy(policy.permissions, policy.principals),
        });
        Self { name: set.name, action: set.action, audit_only: set.audit_only, policies: policies.collect() }
    }

    /// The name of the first policy that matches.
    fn matching(&self, seen: &Seen<'_>) -> Option<&str> {
        let unclear = self.unclear();
        let policy = self.policies.iter().find(|policy| policy.condition.holds(seen, unclear))?;
        Some(&policy.name)
    }

    /// What an undecidable condition counts as.
    fn unclear(&self) -> bool {
        self.action == Action::Deny
    }
}

#[cfg(test)]
mod tests;

//! AuthorizationPolicy, put into the model's terms.
//!
//! In: the policies whose targets a workload is among. Out: the sets of policies of each of its ports. Conditions on ports
//! are settled here, because a listener is for one port: what the application's port is called on the wire does not
//! matter.

use tulle_mesh::identity::{SpiffeId, TrustDomain};
use tulle_mesh::model::{
    Action, Authorization, HeaderMatch, HeaderTest, PathMatch, Permission, Policy, Principal, Regex,
    StringMatch,
};

use super::policies::by_age;
use super::report::{Condition, ParentStatus, Reference, Report, Subject};
use super::routes::segments;
use super::services::{Service, Services};
use super::workloads::Workload;
use crate::kinds::{
    AuthorizationAction, AuthorizationPolicySpec, AuthorizationRule, AuthorizationSource,
    AuthorizationTarget, EnforcementLevel, HttpConditions, PathConditionType,
};
use crate::source::{Key, ObjectRef, Objects};

/// The sets of policies of a port.
#[derive(Clone, Debug, Default)]
pub(super) struct Sets {
    /// Judge connections.
    pub(super) connection: Vec<Authorization>,
    /// Judge requests.
    pub(super) request: Vec<Authorization>,
}

/// All authorization policies, their rules in the model's terms.
pub(super) struct Authorizations {
    policies: Vec<Compiled>,
}

struct Compiled {
    object: ObjectRef,
    key: Key,
    targets: Vec<Target>,
    action: Action,
    level: EnforcementLevel,
    /// Ports of the application (none: all), and the rule.
    rules: Vec<(Vec<u16>, Policy)>,
}

enum Target {
    Namespace,
    Selector(std::collections::BTreeMap<String, String>),
    Service(Key),
}

impl Authorizations {
    pub(super) fn collect(
        objects: &Objects,
        services: &Services,
        trust_domain: &TrustDomain,
        report: &mut Report,
    ) -> Self {
        let policies = by_age(&objects.authorization_policies)
            .into_iter()
            .map(|(key, object)| {
                let subject = Subject::of(key, object);
                compile(key, &object.spec, &subject, services, trust_domain, report)
            })
            .collect();
        Self { policies }
    }

    /// The sets for a port of a workload, by the application's number of it. `http`: it carries HTTP.
    pub(super) fn of(&self, workload: &Workload, services: &[&Service], port: u16, http: bool) -> Sets {
        let holding: Vec<&Compiled> =
            self.policies.iter().filter(|policy| policy.holds_for(workload, services)).collect();
        let requests = |policy: &Compiled| http && policy.level == EnforcementLevel::Application;
        // ALLOW policies add up: whoever one of them lets in must not be stopped earlier by another.
        let allow_requests = holding.iter().any(|policy| policy.action == Action::Allow && requests(policy));
        let mut sets = Sets::default();
        for (action, name) in [(Action::Deny, "deny"), (Action::Allow, "allow"), (Action::Audit, "audit")] {
            let (mut request, mut connection) = (None::<Vec<Policy>>, None::<Vec<Policy>>);
            for policy in holding.iter().filter(|policy| policy.action == action) {
                let at_request = requests(policy) || (action == Action::Allow && allow_requests);
                let list = if at_request { &mut request } else { &mut connection };
                let rules =
                    policy.rules.iter().filter(|(ports, _)| ports.is_empty() || ports.contains(&port));
                let rules = rules.filter_map(|(_, rule)| {
                    if at_request { Some(rule.clone()) } else { of_connection(rule, action) }
                });
                list.get_or_insert_default().extend(rules);
            }
            let set = |policies| Authorization { name: name.into(), action, policies, audit_only: false };
            // Without rules, ALLOW lets no one in; the others do nothing.
            let keep = |policies: &Vec<Policy>| action == Action::Allow || !policies.is_empty();
            sets.request.extend(request.filter(keep).map(set));
            sets.connection.extend(connection.filter(keep).map(set));
        }
        sets
    }
}

/// What a rule says of a connection, which has neither methods nor paths. In doubt less is let in: conditions on requests
/// never hold where they would allow, and always where they would deny.
fn of_connection(rule: &Policy, action: Action) -> Option<Policy> {
    if rule.permissions == [Permission::Any] {
        return Some(rule.clone());
    }
    let denied = || Policy { permissions: vec![Permission::Any], ..rule.clone() };
    (action == Action::Deny).then(denied)
}

impl Authorizations {
    /// The policies that hold for a workload.
    pub(super) fn holding<'a>(
        &'a self,
        workload: &'a Workload,
        services: &'a [&Service],
    ) -> impl Iterator<Item = &'a ObjectRef> + 'a {
        self.policies
            .iter()
            .filter(|policy| policy.holds_for(workload, services))
            .map(|policy| &policy.object)
    }

    /// The application's ports that the policies of a workload name.
    pub(super) fn ports<'a>(
        &'a self,
        workload: &'a Workload,
        services: &'a [&Service],
    ) -> impl Iterator<Item = u16> + 'a {
        let holding = self.policies.iter().filter(|policy| policy.holds_for(workload, services));
        holding.flat_map(|policy| &policy.rules).flat_map(|(ports, _)| ports.iter().copied())
    }
}

impl Compiled {
    fn holds_for(&self, workload: &Workload, services: &[&Service]) -> bool {
        self.key.namespace == workload.key.namespace
            && self.targets.iter().any(|target| match target {
                Target::Namespace => true,
                Target::Selector(labels) => workload.selected(labels),
                Target::Service(key) => services.iter().any(|service| service.key == *key),
            })
    }
}

fn compile(
    key: &Key,
    spec: &AuthorizationPolicySpec,
    subject: &Subject,
    services: &Services,
    trust_domain: &TrustDomain,
    report: &mut Report,
) -> Compiled {
    let mut level = spec.enforcement_level;
    let mut rules = Vec::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        let field = format!("spec.rules[{index}]");
        if rule.http.is_some() && spec.enforcement_level == EnforcementLevel::Network {
            let reason = "conditions on requests need enforcementLevel: Application";
            let fix = "set it; until then the policy is taken as if it were";
            report.error(subject, format!("{field}.http"), reason, fix);
            level = EnforcementLevel::Application;
        }
        let mut faults = Vec::new();
        let policy = Policy {
            name: format!("{}/{}#{index}", key.namespace, key.name),
            permissions: permissions(rule.http.as_ref(), &field, &mut faults),
            principals: principals(rule, key, trust_domain, &field, &mut faults),
        };
        for (field, reason) in faults {
            report.error(subject, field, reason, "correct it; until then it matches nothing");
        }
        let ports = rule.network_attributes.clone().unwrap_or_default().ports;
        rules.push((ports, policy));
    }
    let mut targets = Vec::new();
    for (index, reference) in spec.target_refs.iter().enumerate() {
        let field = format!("spec.targetRefs[{index}]");
        let accepted = match target(key, reference, services) {
            Ok(target) => {
                targets.push(target);
                Condition::accepted()
            }
            Err((part, reason, message)) => {
                report.error(subject, format!("{field}{part}"), message.clone(), "correct the target");
                Condition::failed("Accepted", reason, message)
            }
        };
        let kind = ["Service", "Namespace"].into_iter().find(|kind| *kind == reference.kind).unwrap_or("Pod");
        let parent = ObjectRef {
            kind,
            namespace: if kind == "Namespace" { String::new() } else { key.namespace.clone() },
            name: reference.name.clone().unwrap_or_else(|| "*".into()),
        };
        let reference = Reference {
            group: reference.group.clone(),
            kind: reference.kind.clone(),
            namespace: None,
            name: parent.name.clone(),
            section_name: None,
            port: None,
        };
        report.status(&subject.object, ParentStatus { parent, reference, conditions: vec![accepted] });
    }
    let action = match spec.action {
        AuthorizationAction::Allow => Action::Allow,
        AuthorizationAction::Deny => Action::Deny,
        AuthorizationAction::Audit => Action::Audit,
    };
    Compiled { object: subject.object.clone(), key: key.clone(), targets, action, level, rules }
}

/// A part of the field, a reason for the condition, and a message.
type TargetFault = (&'static str, &'static str, String);

fn target(policy: &Key, reference: &AuthorizationTarget, services: &Services) -> Result<Target, TargetFault> {
    let name = reference.name.as_deref();
    let needs_name = || (".name", "Invalid", format!("a target of kind {} needs a name", reference.kind));
    if !reference.group.is_empty() && reference.group != "core" {
        return Err((".group", "Invalid", format!("group {:?} has no targets", reference.group)));
    }
    match reference.kind.as_str() {
        "Pod" => match &reference.selector {
            None => {
                Err((".selector", "Invalid", "a target of kind Pod needs a selector; {} is all pods".into()))
            }
            Some(selector) if selector.match_labels.is_empty() => Ok(Target::Namespace),
            Some(selector) => Ok(Target::Selector(selector.match_labels.clone())),
        },
        "Namespace" if name == Some(&policy.namespace) => Ok(Target::Namespace),
        "Namespace" => {
            name.ok_or_else(needs_name)?;
            Err((".name", "Invalid", format!("the policy is in namespace {}", policy.namespace)))
        }
        "Service" => {
            let name = name.ok_or_else(needs_name)?;
            match services.find(&policy.namespace, name) {
                Some(service) => Ok(Target::Service(service.key.clone())),
                None => {
                    let message = format!("there is no Service {}/{name}", policy.namespace);
                    Err((".name", "TargetNotFound", message))
                }
            }
        }
        kind => Err((".kind", "Invalid", format!("{kind} can't be a target: use Pod, Service or Namespace"))),
    }
}

fn principals(
    rule: &AuthorizationRule,
    policy: &Key,
    trust_domain: &TrustDomain,
    field: &str,
    faults: &mut Vec<(String, String)>,
) -> Vec<Principal> {
    if rule.sources.is_empty() {
        return vec![Principal::Any];
    }
    let mut principals = Vec::new();
    for (index, source) in rule.sources.iter().enumerate() {
        match identity(source, policy, trust_domain) {
            Ok(identity) => principals.push(Principal::Authenticated(Some(identity))),
            Err(reason) => faults.push((format!("{field}.sources[{index}]"), reason)),
        }
    }
    principals
}

fn identity(
    source: &AuthorizationSource,
    policy: &Key,
    trust_domain: &TrustDomain,
) -> Result<StringMatch, String> {
    match (&source.service_account, &source.spiffe) {
        (Some(account), None) => {
            let namespace = account.namespace.as_deref().unwrap_or(&policy.namespace);
            // A name in the place of "*" only serves to check the namespace.
            let name = if account.name == "*" { "any" } else { &account.name };
            let id = SpiffeId::workload(trust_domain, namespace, name).map_err(|error| error.to_string())?;
            Ok(match account.name.as_str() {
                "*" => StringMatch::prefix(id.as_str().trim_end_matches(name)),
                _ => StringMatch::exact(id.as_str()),
            })
        }
        (None, Some(spiffe)) => match spiffe.0.strip_suffix('*') {
            Some(start) if start.starts_with("spiffe://") => Ok(StringMatch::prefix(start)),
            Some(_) => Err(format!("{:?} does not start with \"spiffe://\"", spiffe.0)),
            None => {
                let id: SpiffeId = spiffe
                    .0
                    .parse()
                    .map_err(|error: tulle_mesh::identity::IdentityError| error.to_string())?;
                Ok(StringMatch::exact(id.as_str()))
            }
        },
        _ => Err("a source has either serviceAccount or spiffe, by its type".into()),
    }
}

fn permissions(
    http: Option<&HttpConditions>,
    field: &str,
    faults: &mut Vec<(String, String)>,
) -> Vec<Permission> {
    let Some(http) = http else { return vec![Permission::Any] };
    let mut all = Vec::new();
    if !http.methods.is_empty() {
        let method = |method: &String| {
            let test = HeaderTest::Value(StringMatch::exact(method));
            Permission::Header(HeaderMatch::new(":method", test))
        };
        all.push(Permission::Or(http.methods.iter().map(method).collect()));
    }
    if !http.paths.is_empty() {
        let mut paths = Vec::new();
        for (index, path) in http.paths.iter().enumerate() {
            let matched = match path.kind {
                _ if !path.value.starts_with('/') && path.kind != PathConditionType::RegularExpression => {
                    Err(format!("the path {:?} does not start with \"/\"", path.value))
                }
                PathConditionType::Exact => Ok(Permission::UrlPath(StringMatch::exact(&path.value))),
                PathConditionType::RegularExpression => {
                    Regex::new(path.value.clone()).map(|regex| Permission::UrlPath(StringMatch::Regex(regex)))
                }
                PathConditionType::PathPrefix => Ok(match segments(&path.value) {
                    PathMatch::Segments(start) => Permission::Or(vec![
                        Permission::UrlPath(StringMatch::prefix(format!("{start}/"))),
                        Permission::UrlPath(StringMatch::exact(start)),
                    ]),
                    _ => Permission::Any,
                }),
            };
            match matched {
                Ok(matched) => paths.push(matched),
                Err(reason) => faults.push((format!("{field}.http.paths[{index}]"), reason)),
            }
        }
        all.push(Permission::Or(paths));
    }
    vec![Permission::And(all)]
}

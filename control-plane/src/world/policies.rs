//! Which policy holds for what.
//!
//! In: policies of one kind and their targets. Out: at most one policy per target. Of two policies for one target the older
//! wins and the other is reported (GEP-713, class Direct); a target that does not exist is reported too.

use std::collections::BTreeMap;

use super::report::{Condition, ParentStatus, Reference, Report, Subject};
use super::services::Services;
use crate::kinds::{BackendTrafficPolicy, InboundPolicy, PolicyTarget, TelemetryPolicy};
use crate::source::{Key, Kind, Object, ObjectRef, Table};

/// A policy that names Services or Namespaces as its targets.
pub(super) trait Targeted: Kind {
    /// The kinds that it may target.
    const TARGETS: &'static [&'static str];
    /// It may single out a port of a Service.
    const PORTS: bool;

    fn targets(&self) -> &[PolicyTarget];
}

impl Targeted for BackendTrafficPolicy {
    const TARGETS: &'static [&'static str] = &["Service"];
    const PORTS: bool = true;

    fn targets(&self) -> &[PolicyTarget] {
        &self.spec.target_refs
    }
}

impl Targeted for InboundPolicy {
    const TARGETS: &'static [&'static str] = &["Service", "Namespace"];
    const PORTS: bool = false;

    fn targets(&self) -> &[PolicyTarget] {
        &self.spec.target_refs
    }
}

impl Targeted for TelemetryPolicy {
    const TARGETS: &'static [&'static str] = &["Service", "Namespace"];
    const PORTS: bool = false;

    fn targets(&self) -> &[PolicyTarget] {
        &self.spec.target_refs
    }
}

/// The policies of a kind, by target.
pub(super) struct Attached<'a, P> {
    by_target: BTreeMap<Target, (Subject, &'a P)>,
}

/// A Service (or one of its ports) or a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Service { key: Key, port: Option<String> },
    Namespace(String),
}

impl<'a, P: Targeted> Attached<'a, P> {
    pub(super) fn collect(table: &'a Table<P>, services: &Services, report: &mut Report) -> Self {
        let mut attached = Self { by_target: BTreeMap::new() };
        for (key, object) in by_age(table) {
            let subject = Subject::of(key, object);
            for (index, reference) in object.targets().iter().enumerate() {
                let accepted = attached.attach(&subject, key, object, index, reference, services, report);
                let parent = ObjectRef {
                    kind: P::TARGETS
                        .iter()
                        .find(|kind| **kind == reference.kind)
                        .copied()
                        .unwrap_or("Service"),
                    namespace: if reference.kind == "Namespace" {
                        String::new()
                    } else {
                        key.namespace.clone()
                    },
                    name: reference.name.clone(),
                };
                let status = ParentStatus {
                    parent,
                    reference: Reference {
                        group: reference.group.clone(),
                        kind: reference.kind.clone(),
                        namespace: None,
                        name: reference.name.clone(),
                        section_name: reference.section_name.clone(),
                        port: None,
                    },
                    conditions: vec![accepted],
                };
                report.status(&subject.object, status);
            }
        }
        attached
    }

    #[expect(clippy::too_many_arguments, reason = "one step of the loop above")]
    fn attach(
        &mut self,
        subject: &Subject,
        key: &Key,
        object: &'a Object<P>,
        index: usize,
        reference: &PolicyTarget,
        services: &Services,
        report: &mut Report,
    ) -> Condition {
        let field = format!("spec.targetRefs[{index}]");
        let target = match find(&field, key, reference, services, P::TARGETS, P::PORTS) {
            Ok(target) => target,
            Err(fault) => {
                report.error(subject, fault.field, fault.message.clone(), fault.fix);
                return Condition::failed("Accepted", fault.reason, fault.message);
            }
        };
        if let Some((winner, _)) = self.by_target.get(&target) {
            let message = format!("{} is older and holds for the same target", winner.object);
            report.warning(subject, field, message.clone(), "merge the two policies, or remove one");
            return Condition::failed("Accepted", "Conflicted", message);
        }
        self.by_target.insert(target, (subject.clone(), &object.value));
        Condition::accepted()
    }

    /// The policy for a port of a Service: one that names the port goes before one for the whole Service.
    pub(super) fn of_port(&self, service: &Key, port: Option<&str>) -> Option<(&Subject, &'a P)> {
        port.and_then(|port| self.service(service, Some(port))).or_else(|| self.service(service, None))
    }

    /// The policies for a Service and for its namespace, in the order in which they count.
    pub(super) fn of_service(&self, service: &Key) -> impl Iterator<Item = (&Subject, &'a P)> {
        self.service(service, None).into_iter().chain(self.of_namespace(&service.namespace))
    }

    /// The policy for a namespace.
    pub(super) fn of_namespace(&self, namespace: &str) -> Option<(&Subject, &'a P)> {
        let found = self.by_target.get(&Target::Namespace(namespace.into()));
        found.map(|(subject, policy)| (subject, *policy))
    }

    fn service(&self, service: &Key, port: Option<&str>) -> Option<(&Subject, &'a P)> {
        let target = Target::Service { key: service.clone(), port: port.map(Into::into) };
        self.by_target.get(&target).map(|(subject, policy)| (subject, *policy))
    }
}

/// Why a target does not hold.
struct Fault {
    field: String,
    reason: &'static str,
    message: String,
    fix: String,
}

fn find(
    field: &str,
    policy: &Key,
    reference: &PolicyTarget,
    services: &Services,
    kinds: &[&str],
    ports: bool,
) -> Result<Target, Box<Fault>> {
    let fault = |part: &str, reason, message: String, fix: String| {
        Err(Box::new(Fault { field: format!("{field}{part}"), reason, message, fix }))
    };
    let core = reference.group.is_empty() || reference.group == "core";
    if !core || !kinds.contains(&reference.kind.as_str()) {
        let message = format!("{} can't be a target", reference.kind);
        return fault(".kind", "Invalid", message, format!("target one of: {}", kinds.join(", ")));
    }
    if reference.section_name.is_some() && !ports {
        let message = "a port can't be singled out here".into();
        return fault(".sectionName", "Invalid", message, "remove it".into());
    }
    if reference.kind == "Namespace" {
        if reference.name != policy.namespace {
            let message =
                format!("the policy is in namespace {}, not in {}", policy.namespace, reference.name);
            return fault(
                ".name",
                "Invalid",
                message,
                "put the policy into the namespace that it is for".into(),
            );
        }
        return Ok(Target::Namespace(reference.name.clone()));
    }
    let Some(service) = services.find(&policy.namespace, &reference.name) else {
        let message = format!("there is no Service {}/{}", policy.namespace, reference.name);
        let fix = "correct the name, or create the Service; a policy is in the namespace of its targets";
        return fault(".name", "TargetNotFound", message, fix.into());
    };
    if let Some(section) = &reference.section_name
        && !service.ports.iter().any(|port| port.name.as_ref() == Some(section))
    {
        let message =
            format!("Service {}/{} has no port named {section:?}", policy.namespace, reference.name);
        return fault(".sectionName", "TargetNotFound", message, "use the name of one of its ports".into());
    }
    Ok(Target::Service { key: service.key.clone(), port: reference.section_name.clone() })
}

/// Objects from the oldest; those of unknown age last, by name.
pub(super) fn by_age<T: Kind>(table: &Table<T>) -> Vec<(&Key, &Object<T>)> {
    let mut objects: Vec<_> = table.iter().collect();
    objects.sort_by_key(|(key, object)| {
        let created = created(&*object.value);
        (created.is_none(), created, *key)
    });
    objects
}

/// When an object was created, in seconds since 1970.
pub(super) fn created<T: Kind>(object: &T) -> Option<i64> {
    object.meta().creation_timestamp.as_ref().map(|time| time.0.as_second())
}

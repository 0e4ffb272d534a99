//! What the control plane says of objects, with codes: the same as `tulle check` prints.
//!
//! Which code a problem has follows from its object's kind, its severity and the field that it is about.

use tulle_control_plane::source::{Problem, Severity};

use super::Finding;
use super::codes::Code;

/// The findings of problems.
pub(super) fn findings(problems: Vec<Problem>) -> Vec<Finding> {
    problems
        .into_iter()
        .map(|problem| {
            let place = problem.place().trim_end().to_owned();
            let object = problem.object.as_ref();
            let (kind, namespace, name) =
                object.map_or(("", "", ""), |object| (object.kind, &object.namespace, &object.name));
            let code = code(kind, problem.severity == Severity::Error, &problem.field);
            let mut finding =
                Finding::about(code, (kind, namespace, name), problem.field, problem.reason, problem.fix);
            if object.is_none() {
                finding.object = String::new();
            }
            Finding { place, ..finding }
        })
        .collect()
}

/// The code of a problem with a field of an object.
pub(super) fn code(kind: &str, error: bool, field: &str) -> Code {
    let has = |part: &str| field.contains(part);
    match (kind, error) {
        ("HTTPRoute" | "GRPCRoute" | "TLSRoute" | "TCPRoute", _) if has("parentRefs") => match error {
            true => Code::RouteNotAttached,
            false => Code::RouteConflicted,
        },
        ("HTTPRoute" | "GRPCRoute" | "TLSRoute" | "TCPRoute", true) => {
            let of_filter = has(".filters[") && !has(".requestMirror.backendRef");
            match (of_filter, has("backendRef")) {
                (true, _) => Code::FilterNotSupported,
                (false, true) => Code::BackendNotFound,
                (false, false) => Code::RouteInvalid,
            }
        }
        ("HTTPRoute" | "GRPCRoute" | "TLSRoute" | "TCPRoute", false) if has(".matches[") => {
            Code::ShadowedRule
        }
        ("HTTPRoute" | "GRPCRoute" | "TLSRoute" | "TCPRoute", false) => Code::RouteDoubtful,
        ("BackendTrafficPolicy" | "InboundPolicy" | "AuthorizationPolicy" | "TelemetryPolicy", _) => {
            match (has("targetRefs"), error) {
                (true, true) => Code::TargetNotFound,
                (true, false) => Code::PolicyConflicted,
                (false, true) => Code::PolicyInvalid,
                (false, false) => Code::PolicyDoubtful,
            }
        }
        ("Service", true) => Code::ServiceInvalid,
        ("Service", false) => Code::ServiceDoubtful,
        ("Pod" | "Workload", true) => Code::WorkloadInvalid,
        (_, true) => Code::Unreadable,
        (_, false) => Code::NotUnderstood,
    }
}

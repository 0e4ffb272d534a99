//! Whether an object can be in force at all, in the words of `tulle check`.
//!
//! In: an object that is about to be stored. Out: a refusal with all its errors, or warnings. Only what the object itself
//! says is judged: what it refers to may come later.

use serde_json::Value;

use super::review::{Answer, Request};
use crate::kinds::GROUP;
use crate::source::manifests::once::{self, Input};
use crate::source::{Problem, Severity};

pub(super) fn judge(request: &Request) -> Answer {
    let Some(object) = request.object.as_ref().filter(|object| is_ours(request, object)) else {
        return Answer::allowed(request);
    };
    // Who takes a finalizer off an object that was stored before must not be kept from it.
    if request.old_object.as_ref().is_some_and(|old| old["spec"] == object["spec"]) {
        return Answer::allowed(request);
    }
    let input = Input::Text { name: "object".into(), text: named(request, object.clone()).to_string() };
    let problems = match once::load(&[input]) {
        Ok(loaded) => loaded.problems,
        Err(error) => return Answer::denied(request, error.to_string()),
    };
    let of =
        |severity| problems.iter().filter(move |problem| problem.severity == severity).map(Problem::message);
    let errors: Vec<String> = of(Severity::Error).collect();
    if errors.is_empty() {
        Answer::allowed(request).warned(of(Severity::Warning))
    } else {
        Answer::denied(request, errors.join("\n"))
    }
}

/// Routes may be for a Gateway that is none of the mesh's business.
fn is_ours(request: &Request, object: &Value) -> bool {
    if request.kind.group == GROUP {
        return true;
    }
    let parents = object["spec"]["parentRefs"].as_array().into_iter().flatten();
    parents
        .into_iter()
        .any(|parent| parent["kind"] == "Service" && matches!(parent["group"].as_str(), None | Some("")))
}

/// What the API server knows beside the object: a generated name and the namespace come later.
fn named(request: &Request, mut object: Value) -> Value {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        if let Some(namespace) = &request.namespace {
            meta.entry("namespace").or_insert_with(|| namespace.as_str().into());
        }
        let generated = meta.get("generateName").cloned().unwrap_or_else(|| request.name.as_str().into());
        meta.entry("name").or_insert(generated);
        // Longer than the rest of the object, and nobody's business here.
        meta.remove("managedFields");
    }
    object
}

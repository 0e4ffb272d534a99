//! From the JSON of an object to its type, whatever the source.
//!
//! In: the JSON of one object. Out: the object, and what is wrong with it: unknown fields, missing fields, wrong types, each
//! with what to write instead.

use serde_json::Value;
use tulle_mesh::yaml::{Step, parse_path};

use super::{Kind, Severity};

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Where, from the object's root.
    pub(super) path: Vec<Step>,
    /// Of a warning, the object may be used all the same.
    pub(super) severity: Severity,
    /// What is wrong.
    pub(super) reason: String,
    /// What to do about it.
    pub(super) fix: String,
}

/// Reads an object of kind `T`. The object is `None` when it must not be used.
pub(super) fn read<T: Kind>(json: Value) -> (Option<T>, Vec<Fault>) {
    let mut unknown = Vec::new();
    let mut note = |path: serde_ignored::Path<'_>| unknown.push(steps(&path));
    let decoded: Result<T, _> =
        serde_path_to_error::deserialize(serde_ignored::Deserializer::new(json, &mut note));
    let mut faults = Vec::new();
    let severity = if T::STRICT { Severity::Error } else { Severity::Warning };
    // The types of the Gateway API and Tulle don't look at apiVersion and kind, which were compared before; and what a
    // newer API server says in a status is not the author's fault.
    unknown.retain(|path| {
        !matches!(path.first(), Some(Step::Field(first)) if ["apiVersion", "kind", "status"].contains(&first.as_str()))
    });
    for path in unknown {
        let (reason, fix) = unknown_field::<T>(&path);
        faults.push(Fault { path, severity, reason, fix });
    }
    let value = match decoded {
        Ok(value) => {
            if let Err((path, reason)) = value.check() {
                let path = std::iter::once(Step::Field("spec".into())).chain(parse_path(&path)).collect();
                let fix = "correct the value".into();
                faults.push(Fault { path, severity: Severity::Error, reason, fix });
            }
            Some(value)
        }
        Err(error) => {
            let mut path = error_steps(error.path());
            let message = error.inner().to_string();
            let (reason, fix) = match quoted(&message, "unknown field `") {
                Some(field) => {
                    let field = Step::Field(field.to_owned());
                    if path.last() != Some(&field) {
                        path.push(field);
                    }
                    unknown_field::<T>(&path)
                }
                None => advice(&message),
            };
            faults.push(Fault { path, severity: Severity::Error, reason, fix });
            None
        }
    };
    let usable = faults.iter().all(|fault| fault.severity == Severity::Warning);
    (value.filter(|_| usable), faults)
}

fn unknown_field<T: Kind>(path: &[Step]) -> (String, String) {
    let Some((Step::Field(name), parents)) = path.split_last() else {
        return ("the field is unknown".into(), "remove it".into());
    };
    let known = known_fields::<T>(parents);
    let fix = match closest(name, &known) {
        Some(meant) => format!("did you mean {meant:?}?"),
        None if known.is_empty() => "remove it".into(),
        None => format!("remove it, or use one of: {}", known.join(", ")),
    };
    (format!("the field {name:?} is unknown"), fix)
}

/// The fields that the schema of `T` has at a path.
fn known_fields<T: Kind>(path: &[Step]) -> Vec<String> {
    let settings = schemars::generate::SchemaSettings::openapi3().with(|s| s.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    let mut at = &schema;
    for step in path {
        // An optional value's schema may be wrapped.
        let wrapped = ["anyOf", "allOf"]
            .iter()
            .find_map(|key| at.get(key)?.as_array()?.iter().find(|part| part.get("properties").is_some()));
        at = wrapped.unwrap_or(at);
        let inner = match step {
            Step::Field(name) => at.get("properties").and_then(|fields| fields.get(name)),
            Step::Index(_) => at.get("items"),
        };
        match inner {
            Some(inner) => at = inner,
            None => return Vec::new(),
        }
    }
    let fields = |schema: &Value| schema.get("properties").and_then(Value::as_object).cloned();
    let found = fields(at).or_else(|| at.get("anyOf")?.as_array()?.iter().find_map(fields));
    found.into_iter().flatten().map(|(name, _)| name).collect()
}

/// What to do about an error of serde, whose messages have a stable form.
fn advice(message: &str) -> (String, String) {
    let reason = message.replace('`', "\"");
    let fix = if let Some(field) = quoted(message, "missing field `") {
        format!("add {field:?}")
    } else if let Some(given) = quoted(message, "unknown variant `") {
        let allowed: Vec<String> = message
            .split_once("expected")
            .map_or("", |(_, rest)| rest)
            .split('`')
            .skip(1)
            .step_by(2)
            .map(Into::into)
            .collect();
        match closest(given, &allowed) {
            Some(meant) => format!("did you mean {meant:?}?"),
            None => format!("write one of: {}", allowed.join(", ")),
        }
    } else if message.contains("expected a string") {
        "put the value in quotes".into()
    } else if let Some((_, expected)) = message.split_once("expected ") {
        format!("write {}", expected.replace('`', "\""))
    } else {
        "correct the value".into()
    };
    (reason, fix)
}

fn quoted<'a>(message: &'a str, start: &str) -> Option<&'a str> {
    let (_, rest) = message.split_once(start)?;
    rest.split_once('`').map(|(text, _)| text)
}

/// The candidate that `text` is most likely a misspelling of.
pub(super) fn closest<'a>(text: &str, candidates: &'a [String]) -> Option<&'a str> {
    let lower = text.to_ascii_lowercase();
    candidates
        .iter()
        .map(|candidate| (edits(&lower, &candidate.to_ascii_lowercase()), candidate.as_str()))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().min(text.len()) / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// How many characters must be added, removed or replaced (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().take(64).enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let cost = if left == *right { diagonal } else { 1 + diagonal.min(row[j]).min(row[j + 1]) };
            diagonal = row[j + 1];
            row[j + 1] = cost;
        }
    }
    row[b.len()]
}

fn steps(path: &serde_ignored::Path<'_>) -> Vec<Step> {
    use serde_ignored::Path as P;
    let (parent, step) = match path {
        P::Root => return Vec::new(),
        P::Seq { parent, index } => (parent, Some(Step::Index(*index))),
        P::Map { parent, key } => (parent, Some(Step::Field(key.clone()))),
        P::Some { parent } | P::NewtypeStruct { parent } | P::NewtypeVariant { parent } => (parent, None),
    };
    let mut steps = steps(parent);
    steps.extend(step);
    steps
}

fn error_steps(path: &serde_path_to_error::Path) -> Vec<Step> {
    use serde_path_to_error::Segment;
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Field(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

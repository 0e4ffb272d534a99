//! From a tree to a typed object.
//!
//! In: the tree of one object. Out: the object and the place where it was written, and what is wrong with it, with
//! positions.

use std::path::Path;
use std::sync::Arc;

use tulle_mesh::yaml::{Node, Step, path_text};

use crate::source::read::read;
use crate::source::{Key, Kind, Object, ObjectRef, Place, Problem, Severity, object_ref};

/// Reads an object of kind `T`. The object is `None` when it must not be used.
pub(super) fn decode<T: Kind>(file: &Path, node: &Node) -> (ObjectRef, Option<Object<T>>, Vec<Problem>) {
    let mut key = object_key::<T>(node);
    let object = object_ref::<T>(&key);
    let report = |path: &[Step], severity, reason: String, fix: String| {
        let (line, column) = node.position(path);
        Problem {
            file: Some(file.to_owned()),
            line: Some(line),
            column: Some(column),
            severity,
            object: Some(object.clone()),
            field: path_text(path),
            reason,
            fix,
        }
    };
    if key.name.is_empty() {
        let path = [Step::Field("metadata".into()), Step::Field("name".into())];
        let problem =
            report(&path, Severity::Error, "the object has no name".into(), "set metadata.name".into());
        return (object, None, vec![problem]);
    }
    let (value, faults) = read::<T>(node.json());
    let problems = faults
        .into_iter()
        .map(|fault| report(&fault.path, fault.severity, fault.reason, fault.fix))
        .collect();
    let value = value.map(|mut value| {
        let meta = value.meta_mut();
        meta.namespace = T::NAMESPACED.then(|| std::mem::take(&mut key.namespace));
        meta.managed_fields = None;
        let place = Place { file: file.to_owned(), line: node.line, fields: node.lines() };
        Object { value: Arc::new(value), place: Some(Arc::new(place)) }
    });
    (object, value, problems)
}

fn object_key<T: Kind>(node: &Node) -> Key {
    let text = |name| node.field("metadata").and_then(|meta| meta.text(name)).unwrap_or_default();
    let namespace = match text("namespace") {
        _ if !T::NAMESPACED => "",
        "" => "default",
        namespace => namespace,
    };
    Key::new(namespace, text("name"))
}

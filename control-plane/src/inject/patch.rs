//! The difference of two JSON values as a JSON Patch (RFC 6902).
//!
//! In: what there is, and what there shall be. Out: operations that make the one of the other, and none where they are the
//! same. Lists are compared from both ends, so that entries put in front or behind are one operation each.

use serde::Serialize;
use serde_json::Value;

/// One step of a patch.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Operation {
    /// Puts a value into an object, or before an entry of a list.
    Add {
        /// Where, as a JSON Pointer.
        path: String,
        /// What.
        value: Value,
    },
    /// Takes a value out.
    Remove {
        /// Where.
        path: String,
    },
    /// Puts a value in the place of another.
    Replace {
        /// Where.
        path: String,
        /// What.
        value: Value,
    },
}

/// The operations that make `to` of `from`.
pub fn diff(from: &Value, to: &Value) -> Vec<Operation> {
    let mut operations = Vec::new();
    compare("", from, to, &mut operations);
    operations
}

fn compare(path: &str, from: &Value, to: &Value, operations: &mut Vec<Operation>) {
    match (from, to) {
        (from, to) if from == to => {}
        (Value::Object(from), Value::Object(to)) => {
            for (key, old) in from {
                match to.get(key) {
                    Some(new) => compare(&child(path, key), old, new, operations),
                    None => operations.push(Operation::Remove { path: child(path, key) }),
                }
            }
            for (key, new) in to.iter().filter(|(key, _)| !from.contains_key(*key)) {
                operations.push(Operation::Add { path: child(path, key), value: new.clone() });
            }
        }
        (Value::Array(from), Value::Array(to)) => lists(path, from, to, operations),
        (_, to) => operations.push(Operation::Replace { path: path.into(), value: to.clone() }),
    }
}

fn lists(path: &str, from: &[Value], to: &[Value], operations: &mut Vec<Operation>) {
    let same = |(from, to): &(&Value, &Value)| from == to;
    let front = from.iter().zip(to).take_while(same).count();
    let back = from[front..].iter().rev().zip(to[front..].iter().rev()).take_while(same).count();
    let (old, new) = (&from[front..from.len() - back], &to[front..to.len() - back]);
    let both = old.len().min(new.len());
    for (index, (old, new)) in old.iter().zip(new).enumerate() {
        compare(&format!("{path}/{}", front + index), old, new, operations);
    }
    // From the end, so that the others keep their places.
    for index in (both..old.len()).rev() {
        operations.push(Operation::Remove { path: format!("{path}/{}", front + index) });
    }
    for (index, value) in new.iter().enumerate().skip(both) {
        let path = format!("{path}/{}", front + index);
        operations.push(Operation::Add { path, value: value.clone() });
    }
}

/// RFC 6901, section 3.
fn child(path: &str, key: &str) -> String {
    format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"))
}

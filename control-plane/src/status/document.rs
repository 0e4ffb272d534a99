//! The status of an object, as JSON: what the API server keeps of what the mesh says.
//!
//! In: conditions at each parent or target, and the status that is there. Out: the status as it should be. Entries of other
//! controllers are never touched, and a condition that did not change keeps the time of its last change, so that what is
//! the same is the same text. Pure.

use serde_json::{Map, Value, json};

use crate::world::{Condition, Reference};

/// Who writes: every entry of a status names its author (Gateway API, `controllerName`).
pub const CONTROLLER: &str = "tulle.dev/mesh";

/// The most entries that the Gateway API's schemas allow in a route's status.
const MAX_PARENTS: usize = 32;

/// The same for a policy's status.
const MAX_ANCESTORS: usize = 16;

/// What an object's status should say.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Wanted {
    /// It is a policy, whose entries are called otherwise than a route's.
    pub policy: bool,
    /// The generation of the object that the entries are about.
    pub generation: i64,
    /// One entry per parent or target.
    pub entries: Vec<(Reference, Vec<Condition>)>,
}

impl Wanted {
    /// The name of the list of entries.
    pub fn list(&self) -> &'static str {
        if self.policy { "ancestors" } else { "parents" }
    }

    /// The list of entries as it should be, where `status` is there; `None` where nothing has to change. `now`: RFC 3339.
    pub fn merge(&self, status: &Value, now: &str) -> Option<Value> {
        let before = status[self.list()].as_array().map(Vec::as_slice).unwrap_or_default();
        let (own, others): (Vec<&Value>, Vec<&Value>) =
            before.iter().partition(|entry| entry["controllerName"] == CONTROLLER);
        let room = if self.policy { MAX_ANCESTORS } else { MAX_PARENTS }.saturating_sub(others.len());
        let wanted: Vec<Value> =
            self.entries.iter().take(room).map(|entry| self.entry(entry, &own, now)).collect();
        if wanted.iter().collect::<Vec<_>>() == own {
            return None;
        }
        Some(others.into_iter().cloned().chain(wanted).collect())
    }

    fn entry(
        &self,
        (reference, conditions): &(Reference, Vec<Condition>),
        own: &[&Value],
        now: &str,
    ) -> Value {
        let key = if self.policy { "ancestorRef" } else { "parentRef" };
        let reference = reference_json(reference);
        let before = own.iter().find(|entry| entry[key] == reference);
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|condition| {
                let status = if condition.status { "True" } else { "False" };
                let known = before.and_then(|entry| entry["conditions"].as_array()).into_iter().flatten();
                let mut same =
                    known.filter(|known| known["type"] == condition.kind && known["status"] == status);
                let since = same.next().and_then(|known| known["lastTransitionTime"].as_str()).unwrap_or(now);
                json!({
                    "type": condition.kind,
                    "status": status,
                    "reason": condition.reason,
                    "message": shortened(&condition.message),
                    "observedGeneration": self.generation,
                    "lastTransitionTime": since,
                })
            })
            .collect();
        json!({ key: reference, "controllerName": CONTROLLER, "conditions": conditions })
    }
}

/// A reference as its author wrote it: who reads a status looks for it in the spec.
fn reference_json(reference: &Reference) -> Value {
    let mut fields = Map::new();
    fields.insert("group".into(), json!(reference.group));
    fields.insert("kind".into(), json!(reference.kind));
    fields.insert("name".into(), json!(reference.name));
    if let Some(namespace) = &reference.namespace {
        fields.insert("namespace".into(), json!(namespace));
    }
    if let Some(section) = &reference.section_name {
        fields.insert("sectionName".into(), json!(section));
    }
    if let Some(port) = reference.port {
        fields.insert("port".into(), json!(port));
    }
    Value::Object(fields)
}

/// The API server refuses messages of more than 32768 characters; nobody reads a tenth of that.
fn shortened(message: &str) -> String {
    const LONGEST: usize = 2048;
    match message.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-02T00:00:00Z";

    fn wanted(status: bool) -> Wanted {
        let reference = Reference {
            group: String::new(),
            kind: "Service".into(),
            namespace: None,
            name: "cart".into(),
            section_name: None,
            port: Some(80),
        };
        let reason = if status { "Accepted" } else { "Conflicted" };
        let condition = Condition { kind: "Accepted", status, reason, message: String::new() };
        Wanted { policy: false, generation: 3, entries: vec![(reference, vec![condition])] }
    }

    fn foreign() -> Value {
        json!({"parentRef": {"name": "gateway"}, "controllerName": "example.com/gateway", "conditions": []})
    }

    #[test]
    fn an_entry_is_what_the_gateway_api_asks_for() {
        let list = wanted(true).merge(&Value::Null, NOW).expect("a change");
        assert_eq!(
            list,
            json!([{
                "parentRef": {"group": "", "kind": "Service", "name": "cart", "port": 80},
                "controllerName": "tulle.dev/mesh",
                "conditions": [{
                    "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
                    "observedGeneration": 3, "lastTransitionTime": NOW,
                }],
            }])
        );
    }

    #[test]
    fn what_is_there_already_is_left_alone_and_times_stay() {
        let list = wanted(true).merge(&Value::Null, "2026-01-01T00:00:00Z").expect("a change");
        assert_eq!(wanted(true).merge(&json!({"parents": list}), NOW), None, "nothing to write");
        let newer = Wanted { generation: 4, ..wanted(true) };
        let list = newer.merge(&json!({"parents": list}), NOW).expect("another generation");
        assert_eq!(
            list[0]["conditions"][0]["lastTransitionTime"], "2026-01-01T00:00:00Z",
            "it did not change"
        );
        let list = wanted(false).merge(&json!({"parents": list}), NOW).expect("a change");
        assert_eq!(list[0]["conditions"][0]["lastTransitionTime"], NOW);
    }

    #[test]
    fn entries_of_others_stay_as_and_where_they_are() {
        let status = json!({"parents": [foreign()]});
        let list = wanted(true).merge(&status, NOW).expect("a change");
        assert_eq!((list.as_array().map(Vec::len), &list[0]), (Some(2), &foreign()));
        let gone = Wanted { entries: Vec::new(), ..wanted(true) };
        assert_eq!(gone.merge(&json!({"parents": list}), NOW), Some(json!([foreign()])));
        assert_eq!(gone.merge(&status, NOW), None);
        let full = json!({"parents": vec![foreign(); 32]});
        assert_eq!(wanted(true).merge(&full, NOW), None, "there is no room for one more");
    }

    #[test]
    fn a_long_message_is_cut() {
        assert_eq!(shortened(&"ä".repeat(3000)).chars().count(), 2049);
    }
}

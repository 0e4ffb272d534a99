use serde_json::{Value, json};

use super::patch::diff;
use super::*;

mod decisions;
mod parts;
mod probes;
mod properties;

fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {
            "initContainers": [{"name": "migrate", "image": "migrate:1"}],
            "containers": [
                {"name": "app", "image": "web:1", "ports": [{"containerPort": 8080}]},
                {"name": "cache", "image": "cache:1"},
            ],
        },
    })
}

fn enabled() -> Namespace {
    Namespace::enabled("shop")
}

fn injected(template: &Value, settings: &Settings) -> Value {
    inject(template, &enabled(), settings).expect("it gets a sidecar").template
}

fn skipped(template: &Value, namespace: &Namespace) -> Skip {
    inject(template, namespace, &Settings::default()).expect_err("it gets none")
}

fn names<'a>(template: &'a Value, list: &str) -> Vec<&'a str> {
    let all = template["spec"][list].as_array().into_iter().flatten();
    all.filter_map(|entry| entry["name"].as_str()).collect()
}

fn named<'a>(template: &'a Value, list: &str, name: &str) -> &'a Value {
    let mut all = template["spec"][list].as_array().into_iter().flatten();
    all.find(|entry| entry["name"] == name).expect("there is one of this name")
}

fn annotated(mut template: Value, annotations: &[(&str, &str)]) -> Value {
    for (name, value) in annotations {
        template["metadata"]["annotations"][*name] = (*value).into();
    }
    template
}

/// Applies a patch as RFC 6902 says.
fn patched(mut value: Value, operations: &[patch::Operation]) -> Value {
    use patch::Operation::{Add, Remove, Replace};
    for operation in operations {
        let (Add { path, .. } | Remove { path } | Replace { path, .. }) = operation;
        let Some((parent, key)) = path.rsplit_once('/') else {
            let Replace { value: whole, .. } = operation else { panic!("the whole is only replaced") };
            value = whole.clone();
            continue;
        };
        let key = key.replace("~1", "/").replace("~0", "~");
        match (value.pointer_mut(parent).expect("the parent is there"), operation) {
            (Value::Object(map), Add { value, .. }) => drop(map.insert(key, value.clone())),
            (Value::Object(map), Replace { value, .. }) => {
                map.insert(key, value.clone()).expect("it is there");
            }
            (Value::Object(map), Remove { .. }) => drop(map.shift_remove(&key).expect("it is there")),
            (Value::Array(list), Add { value, .. }) => {
                list.insert(key.parse().expect("an index"), value.clone());
            }
            (Value::Array(list), Replace { value, .. }) => {
                list[key.parse::<usize>().expect("an index")] = value.clone();
            }
            (Value::Array(list), Remove { .. }) => drop(list.remove(key.parse().expect("an index"))),
            (other, _) => panic!("{other} has no parts"),
        }
    }
    value
}

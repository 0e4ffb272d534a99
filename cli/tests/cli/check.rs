//! `tulle check` on folders with faults.

use serde_json::json;

use crate::tulle::{folder, tulle, tulle_with};

const CART: &str = "apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{name: http, port: 80}]}
";

/// A route to cart; `rule` is its only one, from line 7 on.
fn route(name: &str, rule: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: shop}}
spec:
  parentRefs: [{{kind: Service, group: '', name: cart, port: 80}}]
  rules:
  - {rule}
    backendRefs: [{{name: cart, port: 80}}]
"
    )
}

const PREFIX: &str = "matches: [{path: {type: PathPrefix, value: /a}}]";

#[test]
fn the_bookshop_is_in_order() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's folder");
    let run = tulle(root, &["check", "-f", "manifests/demo", "--strict"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""), "{}", run.out);
    assert!(run.out.starts_with("no errors, no warnings in "), "{}", run.out);
}

#[test]
fn every_fault_has_its_place_and_its_remedy() {
    let typo = route("typo", "matchs: []");
    let lost = route("lost", PREFIX).replace("name: cart, port: 80}]\n", "name: carrt, port: 80}]\n");
    let (one, two) = (route("one", PREFIX), route("two", PREFIX));
    let folder = folder(&[
        ("cart.yaml", CART),
        ("broken.yaml", "a: [1\nb: 2\n"),
        ("typo.yaml", &typo),
        ("lost.yaml", &lost),
        ("one.yaml", &one),
        ("two.yaml", &two),
        ("ignored.txt", "a: [1"),
    ]);
    let run = tulle(folder.path(), &["check", "-f", "."]);
    assert_eq!(run.code, 1, "{}", run.err);
    let expected = [
        "./broken.yaml:2:2: error: not valid YAML: ",
        "./lost.yaml:5: error: HTTPRoute shop/lost: spec.parentRefs[0].name: there is no Service shop/carrt; ",
        "./lost.yaml:8: error: HTTPRoute shop/lost: spec.rules[0].backendRefs[0].name: there is no Service shop/carrt; ",
        "./two.yaml:7: warning: HTTPRoute shop/two: spec.rules[0].matches[0]: never matches: ",
        "./typo.yaml:7:5: error: HTTPRoute shop/typo: spec.rules[0].matchs: the field \"matchs\" is unknown; did you mean \"matches\"?",
    ];
    let problems: Vec<&str> = run.out.lines().filter(|line| line.starts_with("./")).collect();
    let mut sorted = problems.clone();
    sorted.sort_unstable();
    assert_eq!(problems, sorted, "they are sorted");
    for line in expected {
        assert!(
            problems.iter().any(|problem| problem.starts_with(line)),
            "{line:?} is missing:\n{}",
            run.out
        );
    }
    assert_eq!(run.out.lines().last(), Some("4 errors, 1 warning in 4 objects"), "the others are read");
}

#[test]
fn warnings_fail_only_when_strict() {
    let both = format!("{CART}---\n{}---\n{}", route("one", PREFIX), route("two", PREFIX));
    let folder = folder(&[("all.yaml", &both)]);
    let run = tulle(folder.path(), &["check", "-f", "all.yaml"]);
    assert_eq!(run.code, 0, "{}", run.out);
    assert!(run.out.ends_with("no errors, 1 warning in 3 objects\n"), "{}", run.out);
    assert_eq!(tulle(folder.path(), &["check", "-f", "all.yaml", "--strict"]).code, 1);
}

#[test]
fn programs_get_the_same() {
    let folder = folder(&[("typo.yaml", &route("typo", "matchs: []")), ("cart.yaml", CART)]);
    let run = tulle(folder.path(), &["check", "-f", "typo.yaml", "cart.yaml", "-o", "json"]);
    assert_eq!(run.code, 1);
    let answer = run.json();
    assert_eq!(
        (&answer["errors"], &answer["warnings"], &answer["objects"]),
        (&json!(1), &json!(0), &json!(1))
    );
    let problem = &answer["problems"][0];
    assert_eq!((&problem["file"], &problem["line"]), (&json!("typo.yaml"), &json!(7)));
    assert_eq!((&problem["severity"], &problem["object"]["name"]), (&json!("error"), &json!("typo")));
    assert_eq!(problem["field"], "spec.rules[0].matchs");

    let yaml = tulle(folder.path(), &["check", "-f", "typo.yaml", "-f", "cart.yaml", "-o", "yaml"]);
    let read: serde_json::Value = serde_saphyr::from_str(&yaml.out).expect("it is YAML");
    assert_eq!(read, answer);
}

#[test]
fn standard_input_is_a_file_too() {
    let folder = folder(&[]);
    let run = tulle_with(folder.path(), &["check", "-f", "-"], &[], &route("typo", "matchs: []"));
    assert_eq!(run.code, 1);
    assert!(run.out.starts_with("<stdin>:7:5: error: HTTPRoute shop/typo: "), "{}", run.out);
}

#[test]
fn a_wrong_call_is_no_verdict() {
    let folder = folder(&[]);
    let missing = tulle(folder.path(), &["check", "-f", "nowhere"]);
    assert_eq!(missing.code, 2);
    assert!(missing.err.starts_with("error: can't read manifests from nowhere: "), "{}", missing.err);
    // Without files a cluster is meant.
    let nowhere = tulle_with(folder.path(), &["check"], &[("KUBECONFIG", "/nowhere")], "");
    assert_eq!(nowhere.code, 2);
    assert!(nowhere.err.contains("kubeconfig"), "{}", nowhere.err);
}

use std::path::Path;

/// With `UPDATE=1` in the environment, writes the files instead of comparing them.
#[test]
fn committed_crds_are_those_of_the_types() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/crds");
    for (file, yaml) in super::crds().expect("schemas are valid") {
        let path = dir.join(file);
        if std::env::var_os("UPDATE").is_some_and(|value| value == "1") {
            std::fs::write(&path, &yaml).expect("writable");
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == yaml,
            "{file} does not match the types: run UPDATE=1 cargo test -p tulle-control-plane crds"
        );
    }
}

#[test]
fn schemas_are_structural_and_described() {
    for (file, yaml) in super::crds().expect("schemas are valid") {
        let crd: serde_json::Value = serde_saphyr::from_str(&yaml).expect("YAML");
        assert_eq!(crd["spec"]["group"], super::GROUP, "{file}");
        let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        described(file, spec);
    }
}

/// Kubernetes refuses `additionalProperties` beside `properties`, and users read the descriptions with
/// `kubectl explain`.
fn described(at: &str, schema: &serde_json::Value) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let at = format!("{at}.{name}");
        assert!(property.get("description").is_some(), "{at} has no description");
        assert!(property.get("$ref").is_none(), "{at} has a reference");
        assert!(
            property.get("properties").is_none() || property.get("additionalProperties").is_none(),
            "{at}"
        );
        described(&at, property);
        described(&at, &property["items"]);
    }
}

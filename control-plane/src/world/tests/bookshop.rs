use std::path::Path;

use serde_json::{Value, json};

use super::support::{assert_survives_the_wire, settings};
use crate::source::ManifestsSource;
use crate::world::World;

/// The demo's manifests, with a Workload for each process as the demo makes them.
fn bookshop() -> World {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/demo");
    let dir = tempfile::tempdir().expect("a temporary folder");
    for entry in std::fs::read_dir(&demo).expect("the demo's folder").flatten() {
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copied");
    }
    let mut workloads = String::new();
    let processes = [
        ("web", "web", "", "http", 1),
        ("cart", "cart", "", "http", 2),
        ("recommend", "recommend", "", "grpc", 3),
        ("stock-v1", "stock", ", version: v1", "http", 4),
        ("stock-v2", "stock", ", version: v2", "http", 5),
    ];
    for (name, app, version, port, number) in processes {
        workloads.push_str(&format!(
            "---\napiVersion: tulle.dev/v1alpha1\nkind: Workload\n\
             metadata: {{name: {name}, namespace: shop, labels: {{app: {app}{version}}}}}\n\
             spec:\n  address: 127.0.0.1\n  serviceAccount: {app}\n  ports:\n  \
             - {{name: {port}, port: {}, meshPort: {}}}\n",
            8000 + number,
            25000 + number
        ));
    }
    std::fs::write(dir.path().join("30-workloads.yaml"), workloads).expect("written");
    let (_, loaded) = ManifestsSource::load(dir.path()).expect("readable");
    assert_eq!(loaded.problems, []);
    let world = World::build(&loaded.objects, &settings());
    assert_survives_the_wire(&world);
    world
}

/// With `UPDATE=1` in the environment, writes the file instead of comparing it.
#[test]
fn the_bookshop_is_made_of_these_resources() {
    let world = bookshop();
    assert_eq!(world.problems(), []);
    let seen = json!({
        "keys": {
            "listeners": world.listeners().keys().collect::<Vec<_>>(),
            "routes": world.routes().keys().collect::<Vec<_>>(),
            "clusters": world.clusters().keys().collect::<Vec<_>>(),
            "endpoints": world.assignments().keys().collect::<Vec<_>>(),
        },
        "the split": value(world.route("outbound|80||stock.shop.svc.cluster.local").expect("made")),
        "its listener": value(world.listener("stock.shop.svc.cluster.local:80").expect("made")),
        "a backend": value(world.cluster("outbound|80||stock-v2.shop.svc.cluster.local").expect("made")),
        "its endpoints": value(world.assignment("outbound|80||stock-v2.shop.svc.cluster.local").expect("made")),
        "what v2 lets in": value(world.listener("tulle/inbound/127.0.0.1:25005").expect("made")),
        "workloads": value(&world.workloads().to_vec()),
        "conditions": value(&world.statuses().iter().map(|(object, status)| json!([object.to_string(), status])).collect::<Vec<_>>()),
    });
    let text = format!("{}\n", serde_json::to_string_pretty(&seen).expect("JSON"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/world/tests/bookshop.json");
    if std::env::var_os("UPDATE").is_some_and(|update| update == "1") {
        std::fs::write(&path, &text).expect("writable");
    }
    let golden: Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap_or_default()).unwrap_or_default();
    for (part, value) in seen.as_object().expect("an object") {
        assert_eq!(
            golden.get(part),
            Some(value),
            "{part}: if it is right, UPDATE=1 cargo test -p tulle-control-plane bookshop"
        );
    }
}

fn value<T: serde::Serialize>(resource: &T) -> Value {
    serde_json::to_value(resource).expect("JSON")
}

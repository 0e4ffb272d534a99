use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::*;

const ROUTE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: stock
  namespace: shop
spec:
  parentRefs:
  - kind: Service
    group: ''
    name: stock
  rules:
  - backendRefs:
    - name: stock-v1
      port: 80
";

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: shop}
spec: {ports: [{port: 80}]}
";

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (name, text) in files {
        put(dir.path(), name, text);
    }
    dir
}

fn put(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().expect("in the folder")).expect("created");
    fs::write(path, text).expect("written");
}

fn names(objects: &Objects) -> Vec<String> {
    objects.refs().iter().map(ToString::to_string).collect()
}

/// The problems, with paths relative to the folder.
fn problems(dir: &Path, loaded: &Loaded) -> Vec<String> {
    let prefix = format!("{}/", dir.display());
    loaded.problems.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect()
}

#[test]
fn documents_lists_and_json_are_read_and_other_kinds_ignored() {
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: apps/v1\n  kind: Deployment\n  metadata: {{name: x}}\n- {}",
        SERVICE.trim_end().replace('\n', "\n  ").replace("name: stock", "name: listed")
    );
    let dir = folder(&[
        ("a.yaml", &format!("# comment\n---\n{ROUTE}---\n---\n{SERVICE}")),
        ("deep/er/b.json", r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"}}"#),
        ("c.yml", &list),
        ("notes.txt", "not: [yaml"),
        (".hidden.yaml", "not: [yaml"),
    ]);
    let (_, loaded) = ManifestsSource::load(dir.path()).expect("readable");
    assert_eq!(problems(dir.path(), &loaded), Vec::<String>::new());
    assert_eq!(
        names(&loaded.objects),
        ["Namespace shop", "Service shop/listed", "Service shop/stock", "HTTPRoute shop/stock"]
    );
    let route = loaded.objects.http_routes.values().next().expect("read");
    let place = route.place.as_ref().expect("from a file");
    assert_eq!(place.line, 3);
    assert_eq!(place.line_of("spec.rules[0].backendRefs[0].name"), 15);
    assert_eq!(place.line_of("spec.rules[0].filters[3].type"), 14);
}

#[test]
fn each_fault_is_reported_with_its_line_and_what_to_do() {
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "an unknown field",
            &ROUTE.replace("backendRefs", "backendRef"),
            &[
                "x.yaml:12:5: error: HTTPRoute shop/stock: spec.rules[0].backendRef: the field \"backendRef\" is unknown; did you mean \"backendRefs\"?",
            ],
        ),
        (
            "a wrong type",
            &ROUTE.replace("port: 80", "port: eighty"),
            &[
                "x.yaml:14:7: error: HTTPRoute shop/stock: spec.rules[0].backendRefs[0].port: invalid type: string \"eighty\", expected i32; write i32",
            ],
        ),
        (
            "a number for a string",
            &ROUTE.replace("name: stock-v1", "name: 5"),
            &[
                "x.yaml:13:7: error: HTTPRoute shop/stock: spec.rules[0].backendRefs[0].name: invalid type: integer \"5\", expected a string; put the value in quotes",
            ],
        ),
        (
            "a missing field",
            &ROUTE.replace("    - name: stock-v1\n      port: 80", "    - port: 80"),
            &[
                "x.yaml:13:7: error: HTTPRoute shop/stock: spec.rules[0].backendRefs[0]: missing field \"name\"; add \"name\"",
            ],
        ),
        (
            "an unknown field of a policy",
            "apiVersion: tulle.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: p}\nspec:\n  targetRefs: []\n  mtsl: {mode: Strict}\n",
            &[
                "x.yaml:6:3: error: InboundPolicy default/p: spec.mtsl: the field \"mtsl\" is unknown; did you mean \"mtls\"?",
            ],
        ),
        (
            "an unknown value",
            "apiVersion: tulle.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: p}\nspec:\n  targetRefs: []\n  mtls: {mode: Strikt}\n",
            &[
                "x.yaml:6:10: error: InboundPolicy default/p: spec.mtls.mode: unknown variant \"Strikt\", expected one of \"Strict\", \"Permissive\", \"Disabled\"; did you mean \"Strict\"?",
            ],
        ),
        (
            "a bad duration",
            "apiVersion: tulle.dev/v1alpha1\nkind: HTTPFaultFilter\nmetadata: {name: f}\nspec: {delay: {duration: 1.5s}}\n",
            &[
                "x.yaml:4:16: error: HTTPFaultFilter default/f: spec.delay.duration: \"1.5s\" is not a duration: write numbers with the units h, m, s or ms, such as 1m30s; correct the value",
            ],
        ),
        (
            "a bad duration in a type that takes any text",
            &ROUTE.replace("port: 80", "port: 80\n    timeouts: {request: 1.5s}"),
            &[
                "x.yaml:15:16: error: HTTPRoute shop/stock: spec.rules[0].timeouts.request: \"1.5s\" is not a duration: write numbers with the units h, m, s or ms, such as 1m30s; correct the value",
            ],
        ),
        (
            "a misspelled kind",
            "apiVersion: tulle.dev/v1alpha1\nkind: InboundPolcy\nmetadata: {name: p}\n",
            &[
                "x.yaml:1: error: kind: there is no kind \"InboundPolcy\" in \"tulle.dev/v1alpha1\"; did you mean \"InboundPolicy\"?",
            ],
        ),
        (
            "an unknown version",
            &ROUTE.replace("k8s.io/v1", "k8s.io/v3"),
            &[
                "x.yaml:1: error: kind: there is no kind \"HTTPRoute\" in \"gateway.networking.k8s.io/v3\"; write apiVersion: gateway.networking.k8s.io/v1",
            ],
        ),
        (
            "no name",
            &SERVICE.replace("name: stock, ", ""),
            &["x.yaml:3:1: error: Service shop/: metadata.name: the object has no name; set metadata.name"],
        ),
        (
            "twice the same object",
            &format!("{SERVICE}---\n{SERVICE}"),
            &[
                "x.yaml:6: error: Service shop/stock: metadata.name: the object is already there, in x.yaml:1, which stays in force; remove one of the two, or rename it",
            ],
        ),
        (
            "not an object",
            "- a\n- b\n",
            &[
                "x.yaml:1: error: a document must be an object with apiVersion and kind; write a Kubernetes object",
            ],
        ),
        (
            "an unknown field of a kind that may come from a newer cluster",
            &SERVICE.replace("spec: {", "spec: {novelty: 1, "),
            &[
                "x.yaml:4:8: warning: Service shop/stock: spec.novelty: the field \"novelty\" is unknown; remove it, or use one of: ",
            ],
        ),
    ];
    for (what, text, expected) in cases {
        let dir = folder(&[("x.yaml", text)]);
        let (_, loaded) = ManifestsSource::load(dir.path()).expect("readable");
        let found = problems(dir.path(), &loaded);
        assert_eq!(found.len(), expected.len(), "{what}: {found:#?}");
        for (found, expected) in found.iter().zip(*expected) {
            assert!(found.starts_with(expected), "{what}:\n   found {found}\nexpected {expected}");
        }
    }
}

#[test]
fn a_broken_object_keeps_its_last_good_version_and_others_change() {
    let dir = folder(&[("route.yaml", ROUTE), ("service.yaml", SERVICE)]);
    let (mut source, first) = ManifestsSource::load(dir.path()).expect("readable");
    assert!(first.problems.is_empty(), "{:?}", first.problems);

    put(dir.path(), "route.yaml", &ROUTE.replace("backendRefs", "backendRef"));
    put(dir.path(), "service.yaml", &SERVICE.replace("port: 80", "port: 81"));
    let second = source.reload();
    assert_eq!(second.problems.len(), 1);
    let route = |loaded: &Loaded| loaded.objects.http_routes.values().next().map(|route| route.value.clone());
    assert!(Arc::ptr_eq(&route(&first).expect("good"), &route(&second).expect("kept")));
    let service = second.objects.services.values().next().expect("read");
    assert_eq!(
        service.spec.as_ref().and_then(|spec| spec.ports.as_ref()?.first()).map(|port| port.port),
        Some(81)
    );

    // Syntax that hides which objects there are keeps those of the file; the good document beside it applies.
    put(dir.path(), "route.yaml", &format!("{}---\n{}", "a: [\n", SERVICE.replace("stock", "other")));
    let third = source.reload();
    assert!(problems(dir.path(), &third)[0].contains("not valid YAML"), "{:?}", third.problems);
    assert_eq!(names(&third.objects), ["Service shop/other", "Service shop/stock", "HTTPRoute shop/stock"]);

    // What is gone is gone, and what is good again applies.
    fs::remove_file(dir.path().join("service.yaml")).expect("removed");
    put(dir.path(), "route.yaml", ROUTE);
    let fourth = source.reload();
    assert!(fourth.problems.is_empty(), "{:?}", fourth.problems);
    assert_eq!(names(&fourth.objects), ["HTTPRoute shop/stock"]);
}

#[test]
fn an_object_that_moves_to_another_file_and_breaks_is_kept() {
    let dir = folder(&[("a.yaml", ROUTE)]);
    let (mut source, _) = ManifestsSource::load(dir.path()).expect("readable");
    fs::rename(dir.path().join("a.yaml"), dir.path().join("b.yaml")).expect("renamed");
    put(dir.path(), "b.yaml", &ROUTE.replace("port: 80", "port: x"));
    assert_eq!(names(&source.reload().objects), ["HTTPRoute shop/stock"]);
}

#[test]
fn files_that_can_not_be_read_are_reported() {
    let dir = folder(&[("service.yaml", SERVICE)]);
    fs::write(dir.path().join("latin.yaml"), b"a: 1\nname: caf\xe9\n").expect("written");
    let large = fs::File::create(dir.path().join("large.yaml")).expect("created");
    large.set_len(MAX_FILE + 1).expect("sized");
    std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).expect("linked");
    let (_, loaded) = ManifestsSource::load(dir.path()).expect("readable");
    assert_eq!(
        problems(dir.path(), &loaded),
        [
            "large.yaml: error: the file has 8388609 bytes, more than the 8388608 that are read; split it",
            "latin.yaml:2: error: the file is not UTF-8; save it as UTF-8",
        ]
    );
    assert_eq!(names(&loaded.objects), ["Service shop/stock"]);
    let missing = ManifestsSource::load(dir.path().join("missing")).map(|_| ()).expect_err("no such folder");
    assert!(missing.to_string().starts_with("can't read manifests from "), "{missing}");
}

#[tokio::test]
async fn changes_are_noticed_however_they_are_made() {
    let dir = folder(&[("service.yaml", SERVICE)]);
    let (source, first) = ManifestsSource::load(dir.path()).expect("readable");
    let (sender, mut receiver) = watch::channel(Arc::new(first));
    let watching = tokio::spawn(source.watch(sender));
    let mut next = async || {
        timeout(Duration::from_secs(9), receiver.changed())
            .await
            .expect("noticed in time")
            .expect("watching");
        names(&receiver.borrow_and_update().objects)
    };

    put(dir.path(), "route.yaml", ROUTE);
    assert_eq!(next().await, ["Service shop/stock", "HTTPRoute shop/stock"]);

    // As editors save.
    put(dir.path(), ".route.yaml.swp", &ROUTE.replace("name: stock\n", "name: renamed\n"));
    fs::rename(dir.path().join(".route.yaml.swp"), dir.path().join("route.yaml")).expect("renamed");
    assert_eq!(next().await, ["Service shop/stock", "HTTPRoute shop/renamed"]);

    // As a mounted ConfigMap changes.
    put(dir.path(), "..v1/mounted.yaml", &SERVICE.replace("stock", "one"));
    put(dir.path(), "..v2/mounted.yaml", &SERVICE.replace("stock", "two"));
    std::os::unix::fs::symlink("..v1", dir.path().join("..data")).expect("linked");
    std::os::unix::fs::symlink("..data/mounted.yaml", dir.path().join("mounted.yaml")).expect("linked");
    assert_eq!(next().await, ["Service shop/one", "Service shop/stock", "HTTPRoute shop/renamed"]);
    std::os::unix::fs::symlink("..v2", dir.path().join("..new")).expect("linked");
    fs::rename(dir.path().join("..new"), dir.path().join("..data")).expect("switched");
    assert_eq!(next().await, ["Service shop/stock", "Service shop/two", "HTTPRoute shop/renamed"]);

    // In a folder that is new.
    put(dir.path(), "new/more.yaml", &SERVICE.replace("stock", "more"));
    assert_eq!(
        next().await,
        ["Service shop/more", "Service shop/stock", "Service shop/two", "HTTPRoute shop/renamed"]
    );
    drop(receiver);
    timeout(Duration::from_secs(9), watching).await.expect("ends with its receivers").expect("no panic");
}

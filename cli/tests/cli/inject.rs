//! `tulle inject` and `tulle uninject`: manifests in, manifests out.

use serde_json::{Value, json};

use crate::tulle::{folder, tulle, tulle_with};

const SHOP: &str = "\
# The shop.
apiVersion: v1
kind: Service
metadata: {name: web}   # stays as it is written
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2
  template:
    metadata:
      labels:
        app: web
        since: '2026'
    spec:
      unheardOf: yes
      containers:
      - name: app
        image: web:1
        ports: [{name: web, containerPort: 8080}]
        readinessProbe: {httpGet: {port: web, path: '/ready?full=1'}, periodSeconds: 5}
        env:
        - name: SWITCH
          value: \"on\"
        - name: MODE
          value: '0755'
        args:
        - |
          two
          lines
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: report, namespace: quiet}
spec:
  jobTemplate: {spec: {template: {spec: {containers: [{name: job, image: job:1}]}}}}
---
apiVersion: v1
kind: Namespace
metadata: {name: quiet, labels: {tulle.dev/inject: disabled}}
";

#[test]
fn pods_get_sidecars_and_everything_else_stays() {
    let folder = folder(&[("shop.yaml", SHOP)]);
    let run = tulle(folder.path(), &["inject", "-f", "shop.yaml", "--sidecar-image", "sidecar:test"]);
    assert_eq!(run.code, 0, "{}", run.err);
    assert_eq!(
        run.err,
        "injected: Deployment web\nskipped: CronJob quiet/report: the namespace has the label tulle.dev/inject: disabled\n"
    );
    let (service, rest) = run.out.split_once("---\n").expect("documents");
    assert_eq!(service, SHOP.split_once("---\n").expect("documents").0);
    assert!(rest.ends_with(SHOP.split_once("---\napiVersion: batch/v1").expect("it is there").1), "{rest}");

    let documents = documents(&run.out);
    let spec = &documents[1]["spec"]["template"]["spec"];
    let names: Vec<&Value> = spec["initContainers"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|container| &container["name"])
        .collect();
    assert_eq!(names, ["tulle-init", "tulle-sidecar"]);
    assert_eq!(spec["initContainers"][1]["image"], "sidecar:test");
    assert_eq!(documents[1]["spec"]["replicas"], 2);

    // The kubelet asks the sidecar, and the sidecar what the manifest says.
    let app = &spec["containers"][0];
    assert_eq!(
        app["readinessProbe"],
        json!({"httpGet": {"path": "/probe/app/readiness", "port": 15020, "scheme": "HTTP"}, "periodSeconds": 5})
    );
    let args = spec["initContainers"][1]["args"].to_string();
    assert!(args.contains("--probes=") && args.contains("/ready?full=1"), "{args}");

    // Texts that look like something else stay texts, for kubectl too.
    assert_eq!(app["env"], json!([{"name": "SWITCH", "value": "on"}, {"name": "MODE", "value": "0755"}]));
    assert_eq!(app["args"], json!(["two\nlines\n"]));
    assert_eq!(spec["unheardOf"], true);
    assert!(!run.out.contains("value: on\n") && !run.out.contains("value: 0755\n"), "{}", run.out);

    let back = tulle_with(folder.path(), &["uninject", "-f", "-"], &[], &run.out);
    assert_eq!((back.code, self::documents(&back.out)), (0, self::documents(SHOP)), "{}", back.err);
    let again =
        tulle_with(folder.path(), &["inject", "-f", "-", "--sidecar-image", "sidecar:test"], &[], &run.out);
    assert_eq!(again.out, run.out);
}

#[test]
fn the_lists_of_kubectl_are_gone_through() {
    let pod = |name: &str, extra: &str| {
        format!(
            "- apiVersion: v1\n  kind: Pod\n  metadata: {{name: {name}, namespace: shop}}\n  spec: {{{extra}containers: \
             [{{name: app, image: x, ports: [{{containerPort: 53, protocol: UDP}}]}}]}}\n"
        )
    };
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n{}{}",
        pod("node", "hostNetwork: true, "),
        pod("web", "")
    );
    let folder = folder(&[]);
    let run = tulle_with(folder.path(), &["inject", "-f", "-"], &[], &list);
    assert_eq!(run.code, 0, "{}", run.err);
    let lines: Vec<&str> = run.err.lines().collect();
    assert_eq!(lines.len(), 3, "{}", run.err);
    assert!(lines[0].starts_with("skipped: Pod shop/node: spec.hostNetwork is true"), "{}", run.err);
    assert_eq!(lines[1], "injected: Pod shop/web");
    assert!(lines[2].starts_with("warning: Pod shop/web: the mesh carries TCP alone"), "{}", run.err);
    let items = &documents(&run.out)[0]["items"];
    assert!(items[0]["spec"].get("initContainers").is_none());
    assert_eq!(items[1]["spec"]["initContainers"][1]["name"], "tulle-sidecar");
}

#[test]
fn what_is_no_yaml_is_refused_with_its_line() {
    let folder = folder(&[("bad.yaml", "a: 1\n---\nb: [\n")]);
    let run = tulle(folder.path(), &["inject", "-f", "bad.yaml"]);
    assert_eq!((run.code, run.out.as_str()), (2, ""));
    assert!(run.err.starts_with("error: bad.yaml: the document of line 2: "), "{}", run.err);
    assert_eq!(tulle(folder.path(), &["inject", "-f", "nowhere.yaml"]).code, 2);
}

/// As whoever applies it reads it.
fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).expect("YAML")
}

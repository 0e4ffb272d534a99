//! `tulle analyze` on folders.

use crate::tulle::{folder, tulle, tulle_with};

const SHOP: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {tulle.dev/inject: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{name: http, port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart-1, namespace: shop, labels: {app: cart}}
spec:
  initContainers: [{name: tulle-sidecar, image: 'tulle/sidecar:VERSION'}]
  containers: [{name: cart, image: cart, ports: [{name: web, containerPort: 8080}]}]
";

fn shop() -> String {
    SHOP.replace("VERSION", env!("CARGO_PKG_VERSION"))
}

/// The codes that are found in a shop with more objects, without those that every shop has.
fn codes(more: &str) -> Vec<String> {
    let folder = folder(&[("shop.yaml", &format!("{}---\n{more}", shop()))]);
    let run = tulle(folder.path(), &["analyze", "-f", ".", "-o", "json"]);
    let found = run.json();
    let codes = found["findings"].as_array().expect("a list").iter().map(|finding| {
        assert!(!finding["hint"].as_str().expect("a text").is_empty(), "{finding}");
        finding["code"].as_str().expect("a text").to_owned()
    });
    codes.collect()
}

#[test]
fn a_shop_in_order_has_no_findings() {
    let folder = folder(&[("shop.yaml", &shop())]);
    let run = tulle(folder.path(), &["analyze", "-f", ".", "--failure-threshold", "info"]);
    assert_eq!((run.code, run.out.as_str()), (0, "0 errors, 0 warnings, 0 notes\n"), "{}", run.err);
}

#[test]
fn each_kind_of_finding_has_its_code() {
    let service = |name: &str, spec: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
        )
    };
    let route = |kind: &str, spec: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: shop}}\nspec: {{{spec}}}\n"
        )
    };
    let policy = |kind: &str, spec: &str| {
        format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p, namespace: shop}}\nspec: {{{spec}}}\n"
        )
    };
    let pod = |namespace: &str, labels: &str, spec: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: {namespace}, labels: {{{labels}}}}}\nspec: {{{spec}}}\n"
        )
    };
    let cart = "parentRefs: [{group: '', kind: Service, name: cart}]";
    let app = "containers: [{name: app, image: app}]";
    let cases = [
        (route("HTTPRoute", "parentRefs: [{group: '', kind: Service, name: carts}]"), "TUL0101"),
        (
            route("HTTPRoute", &format!("{cart}, rules: [{{backendRefs: [{{name: carts, port: 80}}]}}]")),
            "TUL0103",
        ),
        (
            route(
                "HTTPRoute",
                &format!(
                    "{cart}, rules: [{{filters: [{{type: ExternalAuth}}], backendRefs: [{{name: cart, port: 80}}]}}]"
                ),
            ),
            "TUL0105",
        ),
        (route("HTTPRoute", "rules: [{backendRefs: [{name: cart, port: 80}]}]"), "TUL0108"),
        (policy("InboundPolicy", "targetRefs: [{kind: Service, name: carts}]"), "TUL0201"),
        (
            policy(
                "AuthorizationPolicy",
                "targetRefs: [{kind: Pod, selector: {matchLabels: {app: carts}}}], action: ALLOW",
            ),
            "TUL0205",
        ),
        (service("s", "selector: {app: cart}, ports: [{name: api, port: 90}]"), "TUL0303"),
        (service("s", "selector: {app: cart}, ports: [{port: 53, protocol: UDP}]"), "TUL0304"),
        (service("s", "selector: {app: carts}, ports: [{name: http, port: 90}]"), "TUL0305"),
        (service("s", "selector: {app: cart}, ports: [{name: http, port: 90, targetPort: webb}]"), "TUL0306"),
        (
            service("s", "selector: {app: cart}, sessionAffinity: ClientIP, ports: [{name: http, port: 90}]"),
            "TUL0307",
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: n, labels: {tulle.dev/injection: enabled}}\n"
                .into(),
            "TUL0402",
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: n, labels: {tulle.dev/inject: 'true'}}\n"
                .into(),
            "TUL0403",
        ),
        (pod("shop", "a: b", &format!("hostNetwork: true, {app}")), "TUL0404"),
        (pod("shop", "a: b", app), "TUL0405"),
        (pod("shop", "a: b", &format!("securityContext: {{runAsUser: 2102}}, {app}")), "TUL0406"),
        (
            pod(
                "other",
                "a: b",
                "containers: [{name: tulle-sidecar, image: 'example.com:5000/tulle/sidecar:v0.0.1@sha256:0'}]",
            ),
            "TUL0407",
        ),
        (
            pod("shop", "a: b", "containers: [{name: istio-proxy, image: p}, {name: app, image: app}]"),
            "TUL0408",
        ),
    ];
    for (object, code) in cases {
        assert_eq!(codes(&object), [code], "{object}");
    }
    let strict = policy("InboundPolicy", "targetRefs: [{kind: Service, name: cart}], mtls: {mode: Strict}");
    assert_eq!(
        codes(&format!("{strict}---\n{}", pod("shop", "tulle.dev/inject: disabled", app))),
        ["TUL0206"]
    );
    assert_eq!(
        codes(&pod("shop", "tulle.dev/inject: disabled", &format!("hostNetwork: true, {app}"))),
        [""; 0]
    );
}

#[test]
fn findings_have_a_place_and_a_hint_and_decide_the_exit_code() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {selector: {app: cart}, ports: [{name: api, port: 90}]}\n";
    let lost = "apiVersion: tulle.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: p, namespace: other}\nspec: {targetRefs: [{kind: Service, name: gone}]}\n";
    let folder = folder(&[("a.yaml", &shop()), ("b.yaml", service), ("c.yaml", lost)]);
    let run = tulle(folder.path(), &["analyze", "-f", "."]);
    assert_eq!(run.code, 1, "{}", run.err);
    let lines: Vec<_> = run.out.lines().collect();
    assert_eq!(
        lines[0],
        "error TUL0201 ./c.yaml:4: InboundPolicy other/p: spec.targetRefs[0].name: there is no Service other/gone"
    );
    assert!(lines[2].starts_with("info TUL0303 ./b.yaml:4: Service shop/s: spec.ports[0]: "), "{}", run.out);
    assert_eq!(lines[4], "1 errors, 0 warnings, 1 notes");

    let only = |args: &[&str]| tulle(folder.path(), &[&["analyze", "-f", "."], args].concat()).code;
    assert_eq!(only(&["-n", "shop"]), 0, "the error is in another namespace");
    assert_eq!(only(&["-n", "shop", "--failure-threshold", "info"]), 1);
    assert_eq!(only(&["--suppress", "TUL0201"]), 0);
    assert_eq!(only(&["--suppress", "TUL9999"]), 2);
    let piped = tulle_with(folder.path(), &["analyze", "-f", "-"], &[], lost);
    assert_eq!(piped.code, 1);
    assert!(
        tulle(folder.path(), &["analyze", "--list"]).out.contains("| TUL0303 | info | AmbiguousProtocol |")
    );
}

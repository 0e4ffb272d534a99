//! `tulle explain` on the bookshop.

use std::path::Path;

use serde_json::json;

use crate::tulle::{Run, folder, tulle};

/// The bookshop's workloads, as the demo adds them; recommend has none.
const WORKLOADS: &str = "
{apiVersion: tulle.dev/v1alpha1, kind: Workload, metadata: {name: stock-v1, namespace: shop, labels: {app: stock, version: v1}},
 spec: {address: 127.0.0.1, serviceAccount: stock, ports: [{name: http, port: 8080, meshPort: 9001}]}}
---
{apiVersion: tulle.dev/v1alpha1, kind: Workload, metadata: {name: stock-v2, namespace: shop, labels: {app: stock, version: v2}},
 spec: {address: 127.0.0.1, serviceAccount: stock, ports: [{name: http, port: 8081, meshPort: 9002}]}}
---
{apiVersion: tulle.dev/v1alpha1, kind: Workload, metadata: {name: cart, namespace: shop, labels: {app: cart}},
 spec: {address: 127.0.0.1, serviceAccount: cart, ports: [{name: http, port: 8082, meshPort: 9003}]}}
";

/// Routes of cart, with each kind of answer.
const ROUTES: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: cart, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /v1}, headers: [{name: x-user, value: ada}]}]
    filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /cart}}}
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-tier, value: gold}], remove: [x-debug]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-by, value: tulle}]}}
    backendRefs: [{name: cart, port: 80}]
  - matches: [{path: {type: Exact, value: /old}}]
    filters:
    - {type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /new}, statusCode: 301}}
  - matches: [{path: {type: Exact, value: /gone}}]
    backendRefs: [{name: nothing, port: 80}]
";

fn explain(args: &[&str]) -> Run {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/demo");
    let folder = folder(&[("workloads.yaml", WORKLOADS), ("routes.yaml", ROUTES)]);
    let demo = demo.to_str().expect("UTF-8");
    tulle(folder.path(), &[&["explain", "-f", demo, ".", "--from"], args].concat())
}

/// Whether a line starts with a title and holds a text.
#[track_caller]
fn assert_line(run: &Run, title: &str, text: &str) {
    let found = run.out.lines().any(|line| line.trim_start().starts_with(title) && line.contains(text));
    assert!(found, "no line {title:?} with {text:?} (status {}):\n{}{}", run.code, run.out, run.err);
}

#[test]
fn a_request_is_followed_to_both_versions_of_stock() {
    let run = explain(&["shop/cart", "--to", "stock.shop", "--path", "/stock/1"]);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    assert_line(&run, "request", "GET /stock/1 to stock.shop from spiffe://cluster.local/ns/shop/sa/cart");
    assert_line(&run, "listener", "stock.shop.svc.cluster.local:80 (stock.shop:80 was dialled)");
    assert_line(&run, "route", "(HTTPRoute shop/stock rule 0 match 0) at ");
    assert_line(&run, "route", "10-routes.yaml:");
    assert_line(&run, "timeout", "request 5 s, each attempt 1 s");
    assert_line(&run, "retry", "at most 8 retries on ");
    assert_line(&run, "backend", "90.0 % to outbound|80||stock-v1.shop.svc.cluster.local");
    assert_line(&run, "backend", "10.0 % to outbound|80||stock-v2.shop.svc.cluster.local");
    assert_line(
        &run,
        "endpoint",
        "127.0.0.1:9002 shop/stock-v2, mTLS to spiffe://cluster.local/ns/shop/sa/stock",
    );
    assert_line(&run, "inbound", "mTLS strict; allowed by shop/stock-for-cart#0 at ");
    assert_line(&run, "inbound", "20-policies.yaml:");
    assert_line(&run, "outcome", "forwarded");
    assert!(!run.out.contains('\u{1b}'), "no colours in a pipe: {:?}", run.out);
}

#[test]
fn who_is_not_let_in_learns_by_which_condition() {
    let run = explain(&["shop/cart", "--to", "stock:80", "--method", "DELETE"]);
    assert_eq!(run.code, 3, "{}", run.err);
    assert_line(&run, "inbound", "denied: no ALLOW policy matches; nearest is shop/stock-for-cart#0 at ");
    assert_line(&run, "inbound", "method: expected = \"GET\", there is \"DELETE\"");
    assert_line(&run, "outcome", "refused (403): 127.0.0.1:9001 does not allow it");

    let run = explain(&["shop/web", "--to", "stock:80"]);
    assert_eq!(run.code, 3);
    assert_line(&run, "inbound", "identity: expected = \"spiffe://cluster.local/ns/shop/sa/cart\"");
    assert_line(&run, "note", "no workload that is known here is spiffe://cluster.local/ns/shop/sa/web");
    assert_line(&run, "note", "`tulle analyze` finds 1 problem in these objects");
}

#[test]
fn filters_show_what_becomes_of_the_request() {
    let args = ["shop/web", "--to", "cart.shop", "--path", "/v1/a?b=c", "-H", "X-User: ada"];
    let run = explain(&args);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    assert_line(&run, "becomes", "GET /cart/a?b=c to cart.shop");
    assert_line(&run, "request", "remove x-debug");
    assert_line(&run, "request", "set x-tier: gold");
    assert_line(&run, "response", "add x-by: tulle");
    assert_line(&run, "not", "path: expected = \"/old\", the request has \"/v1/a\"");
    assert_line(&run, "not", "routes.yaml:1");

    let answer = explain(&[&args[..], &["-o", "json"]].concat()).json();
    assert_eq!(answer["dialled"], "cart.shop:80");
    assert_eq!(answer["outcome"], json!({ "result": "forwarded" }));
    let backend = &answer["action"]["forward"]["backends"][0];
    assert_eq!(backend["becomes"]["target"], "/cart/a?b=c");
    assert_eq!(backend["endpoints"][0]["inbound"]["mtlsMode"], "strict");
    let yaml = explain(&[&args[..], &["-o", "yaml"]].concat());
    assert_eq!(yaml.code, 0);
    assert!(yaml.out.contains("dialled: cart.shop:80\n"), "{}", yaml.out);
}

#[test]
fn a_missing_header_is_named() {
    let run = explain(&["shop/web", "--to", "cart.shop", "--path", "/v1/a"]);
    assert_eq!(run.code, 3);
    assert_line(&run, "not", "header \"x-user\": expected = \"ada\", the request has none");
    assert_line(&run, "route", "none of cart.shop.svc.cluster.local:80 (host *) matches");
    assert_line(&run, "outcome", "refused (404): no route matches");
}

#[test]
fn answers_of_the_mesh_are_told_apart() {
    let run = explain(&["shop/web", "--to", "cart.shop", "--path", "/old?a"]);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    assert_line(&run, "redirect", "301 to http://cart.shop/new?a");
    assert_line(&run, "outcome", "answered with 301");

    let run = explain(&["shop/web", "--to", "cart.shop", "--path", "/gone"]);
    assert_eq!(run.code, 3, "{}{}", run.out, run.err);
    assert_line(&run, "outcome", "refused (500)");

    let run = explain(&["shop/web", "--to", "recommend.shop"]);
    assert_eq!(run.code, 3, "{}{}", run.out, run.err);
    assert_line(&run, "endpoint", "none");
    assert_line(
        &run,
        "outcome",
        "refused (503): cluster outbound|80||recommend.shop.svc.cluster.local has no healthy",
    );
}

#[test]
fn a_name_outside_the_mesh_gets_the_nearest_there_is() {
    let run = explain(&["shop/web", "--to", "cart.shop:8080"]);
    assert_eq!((run.code, run.out.as_str()), (3, ""));
    assert!(
        run.err.contains("cart.shop:8080 is not in the mesh: there is cart.shop.svc.cluster.local:80"),
        "{}",
        run.err
    );
    let run = explain(&["shop/web", "--to", "example.org"]);
    assert_eq!(run.code, 3);
    assert!(run.err.contains("no Service has this name"), "{}", run.err);
}

#[test]
fn a_wrong_call_says_what_is_right() {
    for (args, hint) in [
        (&["shop", "--to", "cart.shop"][..], "shop/web"),
        (&["shop/web", "--to", "http://cart.shop/"], "HOST:PORT"),
        (&["shop/web", "--to", "cart.shop", "--path", "v1"], "starts with /"),
        (&["shop/web", "--to", "cart.shop", "-H", "x-user"], "name: value"),
        (&["shop/web"], "--to"),
    ] {
        let run = explain(args);
        assert_eq!(run.code, 2, "{args:?}");
        assert!(run.err.contains(hint), "{args:?}: {}", run.err);
    }
}

//! The features of the Gateway API that the mesh says it has, as far as no other test of traffic shows them; and that each
//! has a test.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tulle_control_plane::status::features::SUPPORTED;
use tulle_tests::{App, LIMIT, Seen, exchange, script, wait_for};

use crate::routing::Shop;

/// Each feature, and the test that would fail without it.
const TESTS: [(&str, &str, &str); 36] = [
    ("GRPCRoute", "tests/tests/e2e/http2.rs", "grpc_methods_have_routes_of_their_own"),
    ("GRPCRouteNamedRouteRule", "control-plane/src/world/tests/gamma.rs", "named_rules_keep_their_names"),
    ("HTTPRoute", "tests/tests/e2e/routing.rs", "rules_are_matched_by_path_header_query_and_method"),
    ("HTTPRoute303RedirectStatusCode", "tests/tests/e2e/features.rs", "redirects_name_what_they_are_told_to"),
    ("HTTPRoute307RedirectStatusCode", "tests/tests/e2e/features.rs", "redirects_name_what_they_are_told_to"),
    ("HTTPRoute308RedirectStatusCode", "tests/tests/e2e/features.rs", "redirects_name_what_they_are_told_to"),
    (
        "HTTPRouteBackendProtocolH2C",
        "tests/tests/e2e/http2.rs",
        "clients_of_either_version_reach_an_http2_application",
    ),
    ("HTTPRouteBackendProtocolWebSocket", "tests/tests/e2e/http1.rs", "websockets_pass"),
    (
        "HTTPRouteBackendRequestHeaderModification",
        "tests/tests/e2e/features.rs",
        "each_backend_is_asked_in_its_own_way",
    ),
    ("HTTPRouteBackendTimeout", "tests/tests/e2e/features.rs", "an_attempt_has_a_time_of_its_own"),
    ("HTTPRouteCORS", "tests/tests/e2e/gateway.rs", "pages_of_other_origins_hear_what_they_may_do"),
    ("HTTPRouteHostRewrite", "tests/tests/e2e/features.rs", "each_backend_is_asked_in_its_own_way"),
    ("HTTPRouteMethodMatching", "tests/tests/e2e/features.rs", "methods_have_rules_of_their_own"),
    ("HTTPRouteNamedRouteRule", "control-plane/src/world/tests/gamma.rs", "named_rules_keep_their_names"),
    (
        "HTTPRouteParentRefPort",
        "control-plane/src/world/tests/routes.rs",
        "parents_select_ports_by_number_and_name",
    ),
    ("HTTPRoutePathRedirect", "tests/tests/e2e/features.rs", "redirects_name_what_they_are_told_to"),
    ("HTTPRoutePathRewrite", "tests/tests/e2e/routing.rs", "filters_change_requests_and_responses"),
    ("HTTPRoutePortRedirect", "tests/tests/e2e/features.rs", "redirects_name_what_they_are_told_to"),
    (
        "HTTPRouteQueryParamMatching",
        "tests/tests/e2e/routing.rs",
        "rules_are_matched_by_path_header_query_and_method",
    ),
    ("HTTPRouteRequestMirror", "tests/tests/e2e/routing.rs", "filters_change_requests_and_responses"),
    ("HTTPRouteRequestMultipleMirrors", "tests/tests/e2e/features.rs", "a_request_may_have_several_mirrors"),
    ("HTTPRouteRequestPercentageMirror", "tests/tests/e2e/gateway.rs", "a_part_of_the_requests_is_mirrored"),
    ("HTTPRouteRequestTimeout", "tests/tests/e2e/resilience.rs", "a_timeout_names_itself"),
    (
        "HTTPRouteResponseHeaderModification",
        "tests/tests/e2e/routing.rs",
        "filters_change_requests_and_responses",
    ),
    ("HTTPRouteRetry", "tests/tests/e2e/resilience.rs", "a_route_may_ask_for_retries"),
    ("HTTPRouteSchemeRedirect", "tests/tests/e2e/features.rs", "redirects_name_what_they_are_told_to"),
    ("Mesh", "tests/tests/e2e/http1.rs", "curl_reaches_a_service_by_all_its_names"),
    ("MeshClusterIPMatching", "tests/tests/kubernetes/source.rs", "what_is_applied_changes_traffic"),
    ("MeshConsumerRoute", "control-plane/tests/server/mesh.rs", "a_consumer_route_is_for_its_own_namespace"),
    (
        "MeshHTTPRouteBackendRequestHeaderModification",
        "tests/tests/e2e/features.rs",
        "each_backend_is_asked_in_its_own_way",
    ),
    ("MeshHTTPRouteNamedRouteRule", "control-plane/src/world/tests/gamma.rs", "named_rules_keep_their_names"),
    (
        "MeshHTTPRouteQueryParamMatching",
        "tests/tests/e2e/routing.rs",
        "rules_are_matched_by_path_header_query_and_method",
    ),
    ("MeshHTTPRouteRedirectPath", "tests/tests/e2e/features.rs", "redirects_name_what_they_are_told_to"),
    ("MeshHTTPRouteRedirectPort", "tests/tests/e2e/features.rs", "redirects_name_what_they_are_told_to"),
    ("MeshHTTPRouteRewritePath", "tests/tests/e2e/routing.rs", "filters_change_requests_and_responses"),
    ("MeshHTTPRouteSchemeRedirect", "tests/tests/e2e/features.rs", "redirects_name_what_they_are_told_to"),
];

/// Whether a file has a test of a name, which is not left out.
fn has_test(text: &str, name: &str) -> bool {
    let Some(at) = text.find(&format!("fn {name}()")) else { return false };
    // Its attributes: what is above it, up to the end of what was before.
    let above = text[..at].rsplit("\n}").next().unwrap_or_default();
    (above.contains("#[test]") || above.contains("#[tokio::test")) && !above.contains("#[ignore")
}

#[test]
fn each_feature_that_is_told_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let tested = TESTS.map(|(feature, ..)| feature);
    assert_eq!(tested, SUPPORTED, "what is told, and what has a test, in the same order");
    for (feature, file, test) in TESTS {
        let text = std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(has_test(&text, test), "{feature}: {file} has no test {test}");
    }
    assert!(!has_test("#[ignore]\n#[test]\nfn a() {\n}\n", "a"), "one that does not run is none");
    assert!(!has_test("#[test]\nfn b() {\n}\nfn a() {\n}\n", "a"), "nor is a function");
}

#[tokio::test]
async fn redirects_name_what_they_are_told_to() {
    let shop = Shop::open().await;
    let cases = [
        (303, "", "http://echo.shop/0/x?y=z"),
        (307, "port: 8443", "http://echo.shop:8443/1/x?y=z"),
        (308, "scheme: https", "https://echo.shop/2/x?y=z"),
        (301, "path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}", "http://echo.shop/new/x?y=z"),
        (302, "path: {type: ReplaceFullPath, replaceFullPath: /here}", "http://echo.shop/here?y=z"),
    ];
    let rules: Vec<String> = cases
        .iter()
        .enumerate()
        .map(|(at, (status, more, _))| {
            let comma = if more.is_empty() { "" } else { ", " };
            format!(
                "  - matches: [{{path: {{type: PathPrefix, value: /{at}}}}}]\n    filters: \
                 [{{type: RequestRedirect, requestRedirect: {{statusCode: {status}{comma}{more}}}}}]"
            )
        })
        .collect();
    shop.route(&rules.join("\n")).await;
    let asked = shop.v1.seen().len();
    for (at, (status, more, location)) in cases.into_iter().enumerate() {
        let answer = shop.get(&format!("/{at}/x?y=z")).await;
        assert_eq!((answer.status(), answer.header("location")), (status, location), "{more}");
    }
    assert_eq!(shop.v1.seen().len(), asked, "no application is asked");
}

#[tokio::test]
async fn each_backend_is_asked_in_its_own_way() {
    let shop = Shop::open().await;
    shop.route(
        "  - filters: [{type: URLRewrite, urlRewrite: {hostname: other.example}}]
    backendRefs:
    - name: echo-v1
      port: 80
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-backend, value: one}]}}]
    - name: echo-v2
      port: 80
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: x-backend, value: two}], remove: [x-gone]}}]",
    )
    .await;
    let both = || async {
        let answer = shop.get_with("/both", "x-backend: zero\r\nx-gone: g\r\n").await;
        assert_eq!(answer.status(), 200, "{}", answer.text);
        let last = |app: &App| app.seen().into_iter().rev().find(|seen| seen.line.contains("/both"));
        match (last(&shop.v1), last(&shop.v2)) {
            (Some(v1), Some(v2)) => Ok((v1, v2)),
            _ => Err("one of two was never asked".to_owned()),
        }
    };
    let (v1, v2) = wait_for(LIMIT, both).await.unwrap_or_else(|error| panic!("{error}"));
    let all = |seen: &Seen| {
        let values = seen.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-backend"));
        values.map(|(_, value)| value.replace(' ', "")).collect::<Vec<_>>().join(",")
    };
    assert_eq!((all(&v1), v1.header("x-gone"), v1.header("host")), ("one".into(), "g", "other.example"));
    assert_eq!((all(&v2), v2.header("x-gone"), v2.header("host")), ("zero,two".into(), "", "other.example"));
}

#[tokio::test]
async fn methods_have_rules_of_their_own() {
    let shop = Shop::open().await;
    shop.route(
        "  - matches: [{method: POST}]
    backendRefs: [{name: echo-v2, port: 80}]
  - matches: [{method: GET}]
    backendRefs: [{name: echo-v1, port: 80}]",
    )
    .await;
    for (method, expected) in [("GET", "v1 GET"), ("POST", "v2 POST")] {
        let request = format!(
            "{method} / HTTP/1.1\r\nhost: echo.shop\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        let answer = exchange(shop.port, request.as_bytes()).await;
        assert!(answer.text.contains(expected), "{method}: {}", answer.text);
    }
    let request = "PUT / HTTP/1.1\r\nhost: echo.shop\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    assert_eq!(exchange(shop.port, request.as_bytes()).await.status(), 404);
}

#[tokio::test]
async fn a_request_may_have_several_mirrors() {
    let shop = Shop::open().await;
    shop.route(
        "  - filters:
    - {type: RequestMirror, requestMirror: {backendRef: {name: echo-v2, port: 80}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: echo-v1, port: 80}}}
    backendRefs: [{name: echo-v1, port: 80}]",
    )
    .await;
    let count = |seen: Vec<Seen>| seen.iter().filter(|seen| seen.line.contains("/copy")).count();
    assert_eq!(shop.get("/copy").await.status(), 200);
    let arrived = || async {
        match (count(shop.v1.seen()), count(shop.v2.seen())) {
            (2, 1) => Ok(()),
            found => Err(format!("{found:?} instead of a request and a copy, and a copy")),
        }
    };
    wait_for(LIMIT, arrived).await.unwrap_or_else(|error| panic!("{error}"));
}

/// An attempt that takes too long is given up, and another is made within the time of the whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_attempt_has_a_time_of_its_own() {
    let slow = AtomicBool::new(true);
    let app = App::start(move |seen| {
        if seen.line.contains("/slow") && slow.swap(false, Ordering::Relaxed) {
            std::thread::sleep(Duration::from_secs(10));
        }
        script(200, "")
    });
    let shop = Shop::of(app.await).await;
    shop.route(
        "  - timeouts: {request: 60s, backendRequest: 3s}
    retry: {codes: [504], attempts: 2}
    backendRefs: [{name: echo-v1, port: 80}]",
    )
    .await;
    let started = std::time::Instant::now();
    let answer = shop.get("/slow").await;
    assert_eq!(answer.status(), 200, "{}", answer.text);
    let took = started.elapsed();
    assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(10), "{took:?}");
    assert_eq!(shop.v1.seen().iter().filter(|seen| seen.line.contains("/slow")).count(), 2);
}

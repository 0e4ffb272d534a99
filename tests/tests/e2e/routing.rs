//! Routes, from a changed manifest to a changed request.

use tulle_tests::{Answer, App, LIMIT, NAMESPACE, TestMesh, Workload, exchange, script, wait_for};

/// A service `echo` with two versions, and a client of it.
pub(crate) struct Shop {
    mesh: TestMesh,
    pub(crate) v1: App,
    pub(crate) v2: App,
    pub(crate) port: std::net::SocketAddr,
    _sidecars: Vec<tulle_cli::local::Sidecar>,
}

impl Shop {
    pub(crate) async fn open() -> Self {
        Self::of(App::start(|seen| script(200, &format!("v1 {}", seen.line))).await).await
    }

    /// With an application of another kind as its first version.
    pub(crate) async fn of(v1: App) -> Self {
        let v2 = App::start(|seen| script(200, &format!("v2 {}", seen.line))).await;
        let mesh = TestMesh::start().await;
        let mut sidecars = Vec::new();
        for (name, app) in [("echo-v1", &v1), ("echo-v2", &v2)] {
            sidecars.push(mesh.workload(Workload::new(name).app(app.address).protocol("http")).await);
        }
        mesh.manifest(
            "echo.yaml",
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: echo, namespace: {NAMESPACE}}}\nspec:\n  \
                 selector: {{app: echo-v1}}\n  ports: [{{name: http, port: 80, targetPort: main}}]\n"
            ),
        );
        let client = mesh.workload(Workload::new("client").port("echo.shop:80")).await;
        let port = client.ports["echo.shop:80"];
        sidecars.push(client);
        Self { mesh, v1, v2, port, _sidecars: sidecars }
    }

    /// Puts the rules of an HTTPRoute on `echo` in force.
    pub(crate) async fn route(&self, rules: &str) {
        let marker = format!("/marker-{}", fastrand::u32(..));
        let manifest = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
             metadata: {{name: echo, namespace: {NAMESPACE}}}\nspec:\n  parentRefs: [{{group: \"\", kind: Service, name: echo}}]\n  \
             rules:\n{rules}\n  - matches: [{{path: {{type: Exact, value: {marker}}}}}]\n    \
             filters: [{{type: RequestRedirect, requestRedirect: {{hostname: marker, statusCode: 302}}}}]\n"
        );
        self.mesh.manifest("route.yaml", &manifest);
        let in_force = || async {
            match self.get(&marker).await.status() {
                302 => Ok(()),
                status => Err(format!("the route is not in force: {status}")),
            }
        };
        let problems = self.mesh.mesh.control_plane.log();
        wait_for(LIMIT, in_force).await.unwrap_or_else(|error| panic!("{error}\n{problems}"));
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.get_with(path, "").await
    }

    pub(crate) async fn get_with(&self, path: &str, headers: &str) -> Answer {
        let request = format!("GET {path} HTTP/1.1\r\nhost: echo.shop\r\n{headers}connection: close\r\n\r\n");
        exchange(self.port, request.as_bytes()).await
    }
}

#[tokio::test]
async fn rules_are_matched_by_path_header_query_and_method() {
    let shop = Shop::open().await;
    shop.route(
        "  - matches:
    - path: {type: PathPrefix, value: /v2}
    - headers: [{name: x-version, value: two}]
    - queryParams: [{name: version, value: two}]
    backendRefs: [{name: echo-v2, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /v1}, method: GET}]
    backendRefs: [{name: echo-v1, port: 80}]",
    )
    .await;
    for (path, headers, expected) in [
        ("/v2", "", "v2"),
        ("/v2/x", "", "v2"),
        ("/v1/x", "", "v1"),
        ("/v1", "x-version: two\r\n", "v1"),
        ("/other", "x-version: two\r\n", "v2"),
        ("/other?a=b&version=two", "", "v2"),
    ] {
        let answer = shop.get_with(path, headers).await;
        assert!(answer.text.ends_with(&format!("{expected} GET {path} HTTP/1.1")), "{path}: {}", answer.text);
    }
    for path in ["/v2example", "/other", "/other?version=one"] {
        let answer = shop.get(path).await;
        assert_eq!(answer.status(), 404, "{path}: {}", answer.text);
        assert!(answer.header("proxy-status").starts_with("tulle; "), "{}", answer.text);
    }
}

#[tokio::test]
async fn traffic_is_split_by_weight() {
    let shop = Shop::open().await;
    shop.route(
        "  - backendRefs: [{name: echo-v1, port: 80, weight: 9}, {name: echo-v2, port: 80, weight: 1}]",
    )
    .await;
    let (before_v1, before_v2) = (shop.v1.seen().len(), shop.v2.seen().len());
    let request = "GET / HTTP/1.1\r\nhost: echo.shop\r\n\r\n".repeat(1999)
        + "GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
    let answer = exchange(shop.port, request.as_bytes()).await;
    assert_eq!(answer.statuses(), vec![200; 2000]);
    let v2 = shop.v2.seen().len() - before_v2;
    assert_eq!(shop.v1.seen().len() - before_v1 + v2, 2000);
    // Six standard deviations of a binomial around 200.
    assert!((120..=280).contains(&v2), "{v2} of 2000");
}

#[tokio::test]
async fn filters_change_requests_and_responses() {
    let shop = Shop::open().await;
    shop.route(
        "  - matches: [{path: {type: PathPrefix, value: /old}}]
    filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: x-set, value: s}], add: [{name: x-add, value: b}], remove: [x-gone]}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-answer, value: a}]}}
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /moved}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: new.example, statusCode: 301,
      path: {type: ReplaceFullPath, replaceFullPath: /here}}}]
  - matches: [{path: {type: PathPrefix, value: /mirrored}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: echo-v2, port: 80}}}]
    backendRefs: [{name: echo-v1, port: 80}]",
    )
    .await;
    let answer = shop.get_with("/old/a?b=c", "x-add: a\r\nx-gone: g\r\n").await;
    assert!(answer.text.ends_with("v1 GET /new/a?b=c HTTP/1.1"), "{}", answer.text);
    assert_eq!(answer.header("x-answer"), "a");
    let seen = shop.v1.seen().pop().expect("one");
    let added: Vec<&str> = seen
        .headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("x-add"))
        .map(|(_, v)| v.as_str())
        .collect();
    assert_eq!((seen.header("x-set"), seen.header("x-gone")), ("s", ""));
    assert_eq!(added.join(",").replace(' ', ""), "a,b");

    let moved = shop.get("/moved/x?y=z").await;
    assert_eq!((moved.status(), moved.header("location")), (301, "https://new.example/here?y=z"));

    let mirrored = shop.get("/mirrored").await;
    assert!(mirrored.text.ends_with("v1 GET /mirrored HTTP/1.1"), "{}", mirrored.text);
    let arrived = || async {
        let seen = shop.v2.seen();
        let found = seen.iter().any(|seen| seen.line == "GET /mirrored HTTP/1.1");
        found.then_some(()).ok_or_else(|| format!("no copy arrived: {seen:?}"))
    };
    wait_for(LIMIT, arrived).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn a_missing_backend_answers_500_and_the_rest_goes_on() {
    let shop = Shop::open().await;
    shop.route(
        "  - matches: [{path: {type: PathPrefix, value: /gone}}]
    backendRefs: [{name: no-such-service, port: 80}]
  - backendRefs: [{name: echo-v1, port: 80}]",
    )
    .await;
    assert_eq!(shop.get("/gone").await.status(), 500);
    assert_eq!(shop.get("/").await.status(), 200);
    let objects = shop.mesh.api("/api/v1/objects").await.to_string();
    assert!(objects.contains("BackendNotFound") && objects.contains("no-such-service"), "{objects}");
}

#[tokio::test]
async fn faults_are_injected_as_asked() {
    let shop = Shop::open().await;
    shop.mesh.manifest(
        "fault.yaml",
        &format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: HTTPFaultFilter\nmetadata: {{name: teapot, namespace: {NAMESPACE}}}\n\
             spec:\n  abort: {{statusCode: 418}}\n---\n\
             apiVersion: tulle.dev/v1alpha1\nkind: HTTPFaultFilter\nmetadata: {{name: slow, namespace: {NAMESPACE}}}\n\
             spec:\n  delay: {{duration: 300ms}}\n"
        ),
    );
    shop.route(
        "  - matches: [{path: {type: PathPrefix, value: /teapot}}]
    filters: [{type: ExtensionRef, extensionRef: {group: tulle.dev, kind: HTTPFaultFilter, name: teapot}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /slow}}]
    filters: [{type: ExtensionRef, extensionRef: {group: tulle.dev, kind: HTTPFaultFilter, name: slow}}]
    backendRefs: [{name: echo-v1, port: 80}]",
    )
    .await;
    let before = shop.v1.seen().len();
    assert_eq!(shop.get("/teapot").await.status(), 418);
    assert_eq!(shop.v1.seen().len(), before, "the application is spared");
    let started = std::time::Instant::now();
    assert_eq!(shop.get("/slow").await.status(), 200);
    assert!(started.elapsed() >= std::time::Duration::from_millis(300));
}

#[tokio::test]
async fn a_changed_manifest_is_in_force_within_a_second_and_nothing_fails_meanwhile() {
    let shop = Shop::open().await;
    shop.route("  - backendRefs: [{name: echo-v1, port: 80}]").await;
    for round in 0..4 {
        let (backend, text) = if round % 2 == 0 { ("echo-v2", "v2") } else { ("echo-v1", "v1") };
        let started = std::time::Instant::now();
        shop.mesh.manifest(
            "route.yaml",
            &format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
                 metadata: {{name: echo, namespace: {NAMESPACE}}}\nspec:\n  \
                 parentRefs: [{{group: \"\", kind: Service, name: echo}}]\n  \
                 rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]\n"
            ),
        );
        loop {
            let answer = shop.get("/").await;
            assert_eq!(answer.status(), 200, "{}", answer.text);
            if answer.text.contains(&format!("{text} GET")) {
                break;
            }
            assert!(started.elapsed() < LIMIT, "the change never came into force");
        }
    }
}

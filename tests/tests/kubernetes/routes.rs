//! Routes as a real API server takes them: each feature that the mesh has, in the form that the Gateway API's own schemas
//! and rules allow.

use tulle_tests::apiserver::{ApiServer, Channel};

/// Rules of an HTTPRoute, one per feature.
const HTTP_RULES: [&str; 14] = [
    "{matches: [{path: {type: PathPrefix, value: /v2}, method: GET, headers: [{name: version, value: two}], queryParams: [{name: animal, value: whale}]}], backendRefs: [{name: cart, port: 80}]}",
    "{matches: [{path: {type: RegularExpression, value: '/v[0-9]+'}}], backendRefs: [{name: cart, port: 80}]}",
    "{name: split, backendRefs: [{name: cart, port: 80, weight: 70}, {name: gone, port: 80, weight: 0}]}",
    "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: a}], add: [{name: X-B, value: b}], remove: [X-C]}}, {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-D, value: d}]}}], backendRefs: [{name: cart, port: 80}]}",
    "{backendRefs: [{name: cart, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-E, value: e}]}}]}]}",
    "{matches: [{path: {type: PathPrefix, value: /old}}], filters: [{type: URLRewrite, urlRewrite: {hostname: other.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}], backendRefs: [{name: cart, port: 80}]}",
    "{filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: new.example, port: 8443, statusCode: 308, path: {type: ReplaceFullPath, replaceFullPath: /here}}}]}",
    "{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 303}}]}",
    "{filters: [{type: RequestMirror, requestMirror: {percent: 25, backendRef: {name: copy, namespace: other, port: 80}}}, {type: RequestMirror, requestMirror: {fraction: {numerator: 1, denominator: 3}, backendRef: {name: copy, port: 80}}}], backendRefs: [{name: cart, port: 80}]}",
    "{filters: [{type: CORS, cors: {allowOrigins: ['https://*.example.com', 'http://local:8080'], allowCredentials: true, allowMethods: [GET, PUT], allowHeaders: ['*'], exposeHeaders: [X-Seen], maxAge: 60}}], backendRefs: [{name: cart, port: 80}]}",
    "{timeouts: {request: 2s, backendRequest: 500ms}, retry: {codes: [500, 503], attempts: 3, backoff: 10ms}, backendRefs: [{name: cart, port: 80}]}",
    "{sessionPersistence: {sessionName: basket, type: Cookie, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}, backendRefs: [{name: cart, port: 80}]}",
    "{sessionPersistence: {sessionName: X-Basket, type: Header}, backendRefs: [{name: cart, port: 80}]}",
    "{filters: [{type: ExtensionRef, extensionRef: {group: tulle.dev, kind: HTTPFaultFilter, name: slow}}], backendRefs: [{name: cart, port: 80}]}",
];

fn route(kind: &str, name: &str, more: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: cart, namespace: other, port: 80}}], {more}}}\n---\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_server_takes_every_kind_of_route_that_the_mesh_has() {
    let api = ApiServer::shared().await;
    api.install_gateway_api(Channel::Experimental).await;
    api.install_tulle().await;
    let namespace = api.namespace("routes").await;
    let backend = "rules: [{backendRefs: [{name: cart, port: 80}]}]";
    let mut manifests: String = HTTP_RULES
        .iter()
        .enumerate()
        .map(|(at, rule)| route("HTTPRoute", &format!("http-{at}"), &format!("rules: [{rule}]")))
        .collect();
    manifests += &route(
        "GRPCRoute",
        "grpc",
        "rules: [{name: first, matches: [{method: {service: a.B, method: Get}, headers: [{name: x, value: one}]}], \
         backendRefs: [{name: cart, port: 80, weight: 3}, {name: gone, port: 80, weight: 0}]}]",
    );
    manifests += &route("TCPRoute", "tcp", backend);
    manifests += &route("TLSRoute", "tls", &format!("hostnames: ['*.example.com'], {backend}"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("routes.yaml");
    std::fs::write(&file, &manifests).expect("it can be written");
    let file = format!("--filename={}", file.display());
    let said = api.kubectl(&["-n", &namespace, "apply", "--server-side", "--dry-run=server", &file]).await;
    assert_eq!(said.lines().count(), HTTP_RULES.len() + 3, "{said}");

    // And the demo's, with no field that the schemas would drop.
    let demo = format!("--filename={}/../manifests/demo", env!("CARGO_MANIFEST_DIR"));
    api.make_namespace("shop").await;
    let said = api.kubectl(&["apply", "--dry-run=server", "--validate=strict", &demo]).await;
    assert!(said.contains("server dry run"), "{said}");
}

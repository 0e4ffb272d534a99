//! Authorization and limits at the receiving sidecar.

use tulle_tests::{App, LIMIT, NAMESPACE, TestMesh, Workload, exchange, wait_for};

fn request(method: &str, path: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nhost: echo.shop\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        .into_bytes()
}

#[tokio::test]
async fn a_policy_lets_in_whom_it_names_and_says_why_not() {
    let app = App::fixed(200, "").await;
    let mesh = TestMesh::start().await;
    let _server = mesh.workload(Workload::new("echo").app(app.address).protocol("http")).await;
    let cart = mesh.workload(Workload::new("cart").port("echo.shop:80")).await;
    let web = mesh.workload(Workload::new("web").port("echo.shop:80")).await;
    let (cart, web) = (cart.ports["echo.shop:80"], web.ports["echo.shop:80"]);
    assert_eq!(exchange(web, &request("GET", "/")).await.status(), 200, "everyone may, by default");

    mesh.manifest(
        "allow.yaml",
        &format!(
            "apiVersion: tulle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: readers, namespace: {NAMESPACE}}}
spec:
  targetRefs: [{{kind: Service, name: echo}}]
  action: ALLOW
  enforcementLevel: Application
  rules:
  - sources: [{{type: ServiceAccount, serviceAccount: {{name: cart}}}}]
    http: {{methods: [GET], paths: [{{type: PathPrefix, value: /public}}]}}
---
apiVersion: tulle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: no-secrets, namespace: {NAMESPACE}}}
spec:
  targetRefs: [{{kind: Service, name: echo}}]
  action: DENY
  enforcementLevel: Application
  rules:
  - http: {{paths: [{{type: PathPrefix, value: /public/secret}}]}}
"
        ),
    );
    let in_force = || async {
        match exchange(web, &request("GET", "/public")).await.status() {
            403 => Ok(()),
            status => Err(format!("web still gets {status}")),
        }
    };
    wait_for(LIMIT, in_force).await.unwrap_or_else(|error| panic!("{error}"));
    let before = app.seen().len();
    for (port, method, path, status) in [
        (cart, "GET", "/public/a", 200),
        (cart, "POST", "/public/a", 403),
        (cart, "GET", "/private", 403),
        (cart, "GET", "/public/secret/x", 403),
        (cart, "GET", "/public/%73ecret", 403),
        (cart, "GET", "/public/a/../secret", 403),
        (cart, "GET", "/public//secret", 403),
        (web, "GET", "/public/a", 403),
    ] {
        let answer = exchange(port, &request(method, path)).await;
        assert_eq!(answer.status(), status, "{method} {path}: {}", answer.text);
        if status == 403 {
            let why = answer.header("proxy-status");
            assert!(why.starts_with("tulle; error=http_request_denied"), "{why}");
        }
    }
    assert_eq!(app.seen().len(), before + 1, "what is denied never reaches the application");
}

#[tokio::test]
async fn a_rate_limit_answers_429_and_says_when_to_come_back() {
    let app = App::fixed(200, "").await;
    let mesh = TestMesh::start().await;
    let _server = mesh.workload(Workload::new("echo").app(app.address).protocol("http")).await;
    let client = mesh.workload(Workload::new("client").port("echo.shop:80")).await;
    let port = client.ports["echo.shop:80"];
    mesh.manifest(
        "limit.yaml",
        &format!(
            "apiVersion: tulle.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {{name: limit, namespace: {NAMESPACE}}}\n\
             spec:\n  targetRefs: [{{kind: Service, name: echo}}]\n  \
             rateLimit: {{total: {{count: 3, interval: 1h}}}}\n"
        ),
    );
    let limited = || async {
        let answer = exchange(port, &request("GET", "/")).await;
        if answer.status() != 429 {
            return Err(format!("no limit yet: {}", answer.status()));
        }
        Ok(answer)
    };
    let answer = wait_for(LIMIT, limited).await.unwrap_or_else(|error| panic!("{error}"));
    let after: u64 = answer.header("retry-after").parse().unwrap_or_else(|_| panic!("{}", answer.text));
    assert!((1..=3600).contains(&after), "{after}");
    let before = app.seen().len();
    assert_eq!(exchange(port, &request("GET", "/")).await.status(), 429);
    assert_eq!(app.seen().len(), before);
}

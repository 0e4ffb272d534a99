//! The command line against a running mesh.

use serde_json::Value;
use tokio::process::Command;
use tulle_cli::local::Sidecar;
use tulle_tests::{App, TRUST_DOMAIN, TestMesh, Workload, binary, identity, output_of, wait_for};

/// What a run gave: status, standard output, standard error.
async fn tulle(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(binary("tulle"));
    command.args(args);
    let output = output_of(command).await;
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("it is not killed"), text(output.stdout), text(output.stderr))
}

async fn json(args: &[&str]) -> Value {
    let (code, out, err) = tulle(&[args, &["-o", "json"]].concat()).await;
    assert_eq!(code, 0, "{args:?}: {out}{err}");
    serde_json::from_str(&out).expect("JSON")
}

/// A client and a service, with a route for one of its paths.
async fn mesh() -> (TestMesh, App, [Sidecar; 2]) {
    let mesh = TestMesh::start().await;
    mesh.manifest(
        "route.yaml",
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: cart, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /v1}, headers: [{name: x-user, value: ada}]}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /cart}}}]
    backendRefs: [{name: cart, port: 80}]
  - matches: [{path: {type: Exact, value: /}}]
    backendRefs: [{name: cart, port: 80}]
",
    );
    let app = App::fixed(200, "cart").await;
    let cart = mesh.workload(Workload::new("cart").app(app.address).protocol("http")).await;
    let web = mesh.workload(Workload::new("web")).await;
    (mesh, app, [cart, web])
}

#[tokio::test]
async fn a_sidecar_explains_as_the_manifests_do() {
    let (mesh, _app, [_cart, web]) = mesh().await;
    let admin = web.admin.to_string();
    let manifests = mesh.mesh.manifests.to_str().expect("UTF-8").to_owned();
    for request in [
        &["--to", "cart.shop", "--path", "/v1/a?b=c%20d", "-H", "x-user: ada"][..],
        &["--to", "cart.shop:80", "--path", "/v1", "-H", "x-user: ada lovelace+1"],
        &["--to", "cart.shop", "--method", "POST"],
        &["--to", "cart.shop", "-H", "host: other.example"],
    ] {
        let live = [&["explain", "--sidecar", &admin], request].concat();
        let offline = [
            &["explain", "-f", &manifests, "--trust-domain", TRUST_DOMAIN, "--from", "shop/web"][..],
            request,
        ]
        .concat();
        // The sidecar fetches endpoints a moment after the listener that leads to them.
        let same = || async {
            let (code, out, err) = tulle(&[&live[..], &["-o", "json"]].concat()).await;
            let (offline_code, offline_out, offline_err) =
                tulle(&[&offline[..], &["-o", "json"]].concat()).await;
            let parse = |out: &str, err: &str| {
                serde_json::from_str::<Value>(out)
                    .map_err(|error| format!("{request:?}: {error}: {out}{err}"))
            };
            let (mut live, mut offline) = (parse(&out, &err)?, parse(&offline_out, &offline_err)?);
            for answer in [&mut live, &mut offline] {
                let fields = answer.as_object_mut().expect("an object");
                // Only who has the manifests knows these, and the peers' policies.
                fields.remove("places");
                fields.remove("notes");
                let backends = answer.pointer_mut("/action/forward/backends").and_then(Value::as_array_mut);
                for endpoint in
                    backends.into_iter().flatten().flat_map(|b| b["endpoints"].as_array_mut()).flatten()
                {
                    endpoint["inbound"].take();
                }
            }
            match live == offline && code == offline_code {
                true => Ok(()),
                false => Err(format!("{request:?}: {code} {live:#}\nis not {offline_code} {offline:#}")),
            }
        };
        wait_for(tulle_tests::LIMIT, same).await.unwrap_or_else(|error| panic!("{error}"));
    }

    let (code, out, _) = tulle(&["explain", "--sidecar", &admin, "--to", "cart.shop"]).await;
    assert_eq!(code, 0, "{out}");
    assert!(out.contains(&format!("shop/cart, mTLS to {}", identity("cart"))), "{out}");
    assert!(out.contains("decided by its own sidecar"), "{out}");
    let (code, _, err) = tulle(&["explain", "--sidecar", &admin, "--to", "nowhere.shop"]).await;
    assert_eq!(code, 3, "{err}");
    assert!(
        err.contains("nowhere.shop:80 is not known to the sidecar: the control plane knows no such service"),
        "{err}"
    );
}

#[tokio::test]
async fn status_and_config_show_the_running_mesh() {
    let (mesh, _app, [cart, web]) = mesh().await;
    let http = mesh.mesh.http().to_string();
    let synced = || async {
        let status = json(&["status", "--control-plane", &http]).await;
        let proxies = status["proxies"].as_array().expect("a list").clone();
        let synced = |name: &str| {
            proxies.iter().any(|proxy| proxy["identity"] == identity(name) && proxy["synced"] == true)
        };
        if synced("cart") && synced("web") { Ok(()) } else { Err(format!("{status:#}")) }
    };
    wait_for(tulle_tests::LIMIT, synced).await.expect("both sidecars are in sync");
    let (code, out, err) = tulle(&["status", "--control-plane", &http]).await;
    assert_eq!(code, 0, "{err}");
    for part in [identity("cart"), identity("web"), "synced".into(), "expires in".into()] {
        assert!(out.contains(&part), "{part} is missing:\n{out}");
    }

    let (cart, web) = (cart.admin.to_string(), web.admin.to_string());
    let certs = json(&["config", "certs", "--sidecar", &web]).await;
    assert_eq!(certs["certs"]["leaf"]["uris"][0], identity("web"));
    let (_, out, _) = tulle(&["config", "--sidecar", &cart]).await;
    for part in ["connected", "tulle/inbound/127.0.0.1:", "mtls-http", "inbound|", &identity("cart")] {
        assert!(out.contains(part), "{part} is missing:\n{out}");
    }
}

//! Bad input to the mesh: the message that names it, and that everything else keeps working.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};
use serde_json::json;
use tulle_cli::local::{Sidecar, SidecarSpec};
use tulle_control_plane::ca::tokens;
use tulle_tests::{App, LIMIT, NAMESPACE, TestMesh, Workload, exchange, fetch, identity, wait_for};

use crate::Pair;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";

/// Waits until a sidecar's log has all of `words`; it must not be ready meanwhile.
async fn says_why_it_is_not_ready(sidecar: &Sidecar, words: &[&str]) {
    let check = || async {
        let (status, body) = fetch(&format!("http://{}/ready", sidecar.health)).await?;
        assert_eq!(status, 503, "it has no identity: {body}");
        let (status, _) = fetch(&format!("http://{}/live", sidecar.health)).await?;
        assert_eq!(status, 200, "a restart would not help");
        let log = sidecar.process.log();
        let missing: Vec<_> = words.iter().filter(|word| !log.contains(**word)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?} are not in {log}")) }
    };
    wait_for(LIMIT, check).await.unwrap_or_else(|error| panic!("{error}"));
}

fn spec(name: &str) -> SidecarSpec {
    SidecarSpec {
        namespace: NAMESPACE.into(),
        service_account: "client".into(),
        name: name.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn an_expired_token_is_refused_by_name() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    let token = tokens::mint(&pair.mesh.mesh.state, NAMESPACE, "client", Duration::from_secs(60), long_ago);
    let token = token.unwrap_or_else(|error| panic!("{error}"));
    let path = pair.mesh.folder.path().join("expired");
    std::fs::write(&path, &token).expect("the folder can be written");
    let late = pair.mesh.mesh.sidecar_with_token(&spec("late"), &path).await;
    let late = late.unwrap_or_else(|error| panic!("{error}"));
    says_why_it_is_not_ready(&late, &["token", "expired"]).await;
    assert!(!late.process.log().contains(&token), "a token is a secret");
    assert_eq!(exchange(pair.port(), GET).await.status(), 200);
}

#[tokio::test]
async fn a_sidecar_of_another_trust_domain_trusts_nobody_here() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    let stranger = Workload::new("stranger").config("trustDomain", json!("other.example"));
    let stranger = pair.mesh.start_sidecar(&stranger).await;
    let (here, there) = ("spiffe://test.example/", "spiffe://other.example/");
    says_why_it_is_not_ready(&stranger, &[here, there]).await;
    assert_eq!(exchange(pair.port(), GET).await.status(), 200);
}

/// When a certificate is good.
#[derive(Clone, Copy)]
pub(crate) enum Validity {
    /// Now.
    Now,
    /// Until an hour ago.
    Before,
}

/// The configuration of an identity whose files hold a certificate of the mesh's own root.
pub(crate) fn files(mesh: &TestMesh, name: &str, validity: Validity) -> serde_json::Value {
    let folder = mesh.folder.path().join(name);
    std::fs::create_dir(&folder).expect("the folder can be written");
    let (certificate, key) = certificate(mesh, &identity(name), validity);
    for (file, text) in [("cert.pem", certificate), ("key.pem", key)] {
        std::fs::write(folder.join(file), text).expect("the folder can be written");
    }
    json!({
        "certificateFile": folder.join("cert.pem"),
        "keyFile": folder.join("key.pem"),
        "bundleFile": mesh.mesh.state.join("root.pem"),
    })
}

/// A certificate of the mesh's own root for loopback, and its key, in PEM.
pub(crate) fn certificate(mesh: &TestMesh, id: &str, validity: Validity) -> (String, String) {
    let root = only_entry(&mesh.mesh.state.join("roots"));
    let read = |path: PathBuf| std::fs::read_to_string(path).expect("the control plane wrote it");
    let key = KeyPair::from_pem(&read(root.join("key.pem"))).expect("a key");
    let issuer = Issuer::from_ca_cert_pem(&read(root.join("cert.pem")), key).expect("a root");
    let mut params = CertificateParams::default();
    let hour = Duration::from_secs(3600);
    let now = SystemTime::now();
    params.not_before = (now - 2 * hour).into();
    params.not_after = match validity {
        Validity::Now => now + hour,
        Validity::Before => now - hour,
    }
    .into();
    let loopback = std::net::Ipv4Addr::LOCALHOST.into();
    params.subject_alt_names =
        vec![SanType::URI(id.try_into().expect("ASCII")), SanType::IpAddress(loopback)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().expect("a key");
    let leaf = params.signed_by(&key, &issuer).expect("a leaf");
    (leaf.pem(), key.serialize_pem())
}

fn only_entry(folder: &Path) -> PathBuf {
    let mut entries = std::fs::read_dir(folder).expect("it is there");
    entries.next().expect("an entry").expect("it can be read").path()
}

#[tokio::test]
async fn an_expired_leaf_opens_no_door() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    // One that is good, to know that only the time is wrong with the other.
    let fresh = Workload::new("fresh")
        .port("echo.shop:80")
        .config("identity", files(&pair.mesh, "fresh", Validity::Now));
    let fresh = pair.mesh.workload(fresh).await;
    assert_eq!(exchange(fresh.ports["echo.shop:80"], GET).await.status(), 200);
    let before = app.seen().len();

    let stale = Workload::new("stale")
        .port("echo.shop:80")
        .config("identity", files(&pair.mesh, "stale", Validity::Before));
    let stale = pair.mesh.start_sidecar(&stale).await;
    says_why_it_is_not_ready(&stale, &["expired", "stale/cert.pem"]).await;
    let answer = exchange(stale.ports["echo.shop:80"], GET).await;
    assert_eq!(answer.status(), 503, "{}", answer.text);
    assert_eq!(app.seen().len(), before, "nothing passes without an identity");
    assert_eq!(exchange(pair.port(), GET).await.status(), 200);
}

#[tokio::test]
async fn of_routes_that_contradict_each_other_one_holds_and_the_other_says_so() {
    let app = App::fixed(200, "").await;
    let pair = Pair::start(app.address, "http").await;
    let parents = "parentRefs: [{group: \"\", kind: Service, name: echo}]";
    let redirect = |name: &str, since: &str, to: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
             metadata: {{name: {name}, namespace: {NAMESPACE}, creationTimestamp: \"{since}\"}}\nspec:\n  {parents}\n  rules:\n  \
             - matches: [{{path: {{type: Exact, value: /who}}}}]\n    \
             filters: [{{type: RequestRedirect, requestRedirect: {{hostname: {to}, statusCode: 302}}}}]\n  \
             - matches: [{{path: {{type: Exact, value: /{name}}}}}]\n    \
             filters: [{{type: RequestRedirect, requestRedirect: {{hostname: {to}, statusCode: 302}}}}]\n  \
             - matches: [{{path: {{type: Exact, value: /}}}}]\n    backendRefs: [{{name: echo, port: 80}}]\n"
        )
    };
    let tcp = format!(
        "---\napiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {{name: raw, namespace: {NAMESPACE}}}\n\
         spec:\n  {parents}\n  rules: [{{backendRefs: [{{name: echo, port: 80}}]}}]\n"
    );
    pair.mesh.manifest(
        "routes.yaml",
        &(redirect("newer", "2026-02-01T00:00:00Z", "newer.example")
            + &redirect("older", "2026-01-01T00:00:00Z", "older.example")
            + &tcp),
    );
    let get = async |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n");
        exchange(pair.port(), request.as_bytes()).await
    };
    let in_force = || async {
        match get("/newer").await.status() {
            302 => Ok(()),
            status => Err(format!("the routes are not in force: {status}")),
        }
    };
    wait_for(LIMIT, in_force).await.unwrap_or_else(|error| panic!("{error}"));
    // Where two rules are for the same requests the older object's is taken; what only one of them says holds as well.
    let answer = get("/who").await;
    assert!(answer.header("location").contains("older.example"), "{}", answer.text);
    assert_eq!(get("/older").await.status(), 302);
    assert_eq!(get("/").await.status(), 200);
    let objects = pair.mesh.api("/api/v1/objects").await;
    let raw = objects["objects"].as_array().expect("a list").iter().find(|object| object["name"] == "raw");
    let raw = raw.unwrap_or_else(|| panic!("{objects}")).to_string();
    assert!(raw.contains("Conflicted") && raw.contains("holds for the same port"), "{raw}");
}

#[tokio::test]
async fn a_sidecar_that_cant_write_its_state_says_so_and_serves() {
    let app = App::fixed(200, "").await;
    let mesh = TestMesh::start().await;
    let _server = mesh.workload(Workload::new("echo").app(app.address).protocol("http")).await;
    let file = mesh.folder.path().join("a-file");
    std::fs::write(&file, "").expect("the folder can be written");
    let client = Workload::new("client").port("echo.shop:80").config("stateDir", json!(file.join("state")));
    let client = mesh.workload(client).await;
    assert_eq!(exchange(client.ports["echo.shop:80"], GET).await.status(), 200);
    let said = || async {
        assert_eq!(exchange(client.ports["echo.shop:80"], GET).await.status(), 200);
        let log = client.process.log();
        if log.contains("a-file/state") { Ok(()) } else { Err(format!("the folder is not named: {log}")) }
    };
    wait_for(LIMIT, said).await.unwrap_or_else(|error| panic!("{error}"));
}

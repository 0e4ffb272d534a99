//! What a control plane signs with: its own root, which is never replaced in silence, or an intermediate of somebody else.

use tulle_control_plane::ca::tokens::AUDIENCE;
use tulle_tests::TRUST_DOMAIN;
use tulle_tests::apiserver::ApiServer;
use tulle_tests::cert_manager::CertManager;

use crate::ca::rotate;
use crate::client::{connect, create};
use crate::installed::manifests;
use crate::plane::{Plane, SYSTEM, readiness, trust_bundle, until};

/// While a control plane lives, the Secret of its CA comes back as it was; without one, none makes another root where
/// pods trust the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_that_is_deleted_is_not_replaced_by_another() {
    let api = ApiServer::start().await;
    api.kubectl(&["apply", "-k", &manifests("base")]).await;
    let account = api.kubeconfig_of(SYSTEM, "tulle-control-plane").await;
    let mut plane = Plane::start_as(&account, &[]).await;
    trust_bundle(&api, SYSTEM).await;
    rotate(&api, "prepare").await;
    until(async || match trust_bundle(&api, SYSTEM).await {
        text if text.matches("BEGIN CERTIFICATE").count() == 2 => Ok(()),
        text => Err(text),
    })
    .await;
    // But for the bundle, which follows from the rest.
    let content = async || {
        let mut data = api.get(SYSTEM, "secret", "tulle-ca").await["data"].clone();
        data["root.pem"].take();
        data
    };
    let before = content().await;
    api.kubectl(&["-n", SYSTEM, "delete", "secret", "tulle-ca"]).await;
    until(async || api.try_kubectl(&["-n", SYSTEM, "get", "secret", "tulle-ca"]).await).await;
    assert!(content().await == before, "it is another");
    assert!(plane.process.log().contains("it was gone, and is written back"), "{}", plane.process.log());

    plane.process.kill().await;
    let backup = api.kubectl(&["-n", SYSTEM, "get", "secret", "tulle-ca", "-o", "json"]).await;
    api.kubectl(&["-n", SYSTEM, "delete", "secret", "tulle-ca"]).await;
    let asked = || asked_for(&api, "configmaps", "tulle-trust-bundle", "get");
    let seen = asked();
    let restore = async {
        until(async || if asked() > seen { Ok(()) } else { Err("it has not looked for the bundle".into()) })
            .await;
        assert!(api.try_kubectl(&["-n", SYSTEM, "get", "secret", "tulle-ca"]).await.is_err());
        api.apply(&backup).await;
    };
    let (plane, ()) = tokio::join!(Plane::start_as(&account, &[]), restore);
    let log = plane.process.log();
    assert!(log.contains("it is gone: restore it from a backup"), "{log}");
    assert!(content().await == before, "it is another");
}

/// An intermediate in a Secret is waited for, signs, is replaced by the next, and kept where the next can't sign.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intermediate_signs_and_its_successor_after_it() {
    let api = ApiServer::start().await;
    api.kubectl(&["apply", "-k", &manifests("cert-manager")]).await;
    let shop = api.namespace("shop").await;
    let account = api.kubeconfig_of(SYSTEM, "tulle-control-plane").await;
    let authority = CertManager::new();
    let (first, second) = (authority.intermediate(), authority.intermediate());
    let make = async {
        let asked = || asked_for(&api, "secrets", "tulle-intermediate", "list");
        until(async || if asked() > 0 { Ok(()) } else { Err("it has not looked for it".into()) }).await;
        api.apply(&first.manifest(SYSTEM, "tulle-intermediate")).await;
    };
    let flags = ["--ca-secret", "tulle-intermediate"];
    let (plane, ()) = tokio::join!(Plane::start_as(&account, &flags), make);
    assert_eq!(trust_bundle(&api, &shop).await.trim(), authority.root.trim());
    assert!(api.try_kubectl(&["-n", SYSTEM, "get", "secret", "tulle-ca"]).await.is_err(), "it needs none");

    let pod = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "cart", "namespace": shop },
        "spec": { "nodeName": "n1", "containers": [{ "name": "cart", "image": "cart" }] },
    });
    api.apply(&pod.to_string()).await;
    let token = api.token(&shop, "default", AUDIENCE, Some("cart")).await;
    let identity = format!("spiffe://{TRUST_DOMAIN}/ns/{shop}/sa/default");
    let chain = async || {
        let channel = connect(&plane, &authority.root).await;
        let chain = create(channel, Some(&token), &identity).await.expect("it is a pod's token");
        chain[1..].iter().map(|pem| pem.trim().to_owned()).collect::<Vec<_>>()
    };
    let signed_by = |secret: &tulle_tests::cert_manager::TlsSecret| {
        vec![secret.certificate.trim().to_owned(), authority.root.trim().to_owned()]
    };
    assert_eq!(chain().await, signed_by(&first));

    let mut broken = second.clone();
    broken.key.clone_from(&first.key);
    api.apply(&broken.manifest(SYSTEM, "tulle-intermediate")).await;
    until(async || match readiness(plane.http()).await {
        (200, text) if text.contains("tls.key must be of the first certificate of tls.crt") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(chain().await, signed_by(&first), "the last that could sign stays");
    api.apply(&second.manifest(SYSTEM, "tulle-intermediate")).await;
    until(
        async || {
            if chain().await == signed_by(&second) { Ok(()) } else { Err("the first still signs".into()) }
        },
    )
    .await;
    assert_eq!(readiness(plane.http()).await, (200, "ready\n".into()));
    let log = plane.process.log();
    assert!(!log.contains("PRIVATE KEY") && !log.contains(&token), "{log}");
}

/// How often the control plane has asked for an object.
fn asked_for(api: &ApiServer, resource: &str, name: &str, verb: &str) -> usize {
    let asked = api.audited().into_iter().filter(|event| {
        let object = &event["objectRef"];
        event["verb"] == verb && object["resource"] == resource && object["name"] == name
    });
    asked.count()
}

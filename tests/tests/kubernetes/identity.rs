//! Who gets a certificate: the pod that a token is bound to, for its service account, as long as the pod lives.

use serde_json::json;
use tonic::Code;
use tulle_control_plane::ca::tokens::AUDIENCE;
use tulle_tests::TRUST_DOMAIN;
use tulle_tests::apiserver::ApiServer;

use crate::client::{connect, create};
use crate::plane::{Plane, SYSTEM, trust_bundle};

/// A pod's own token gets the pod's identity; every other proof is refused, with the reason and without the token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_living_pod_gets_the_certificate_of_its_service_account() {
    let mut api = ApiServer::start().await;
    api.make_namespace(SYSTEM).await;
    let shop = api.namespace("shop").await;
    for account in ["cart", "web"] {
        api.kubectl(&["-n", &shop, "create", "serviceaccount", account]).await;
    }
    for pod in ["cart-1", "cart-2", "cart-3", "cart-4"] {
        make_pod(&api, &shop, pod).await;
    }
    let plane = Plane::start(&api).await;
    let channel = connect(&plane, &trust_bundle(&api, &shop).await).await;
    let ask = async |token: &str, account: &str| {
        create(channel.clone(), Some(token), &identity(&shop, account)).await
    };

    let good = api.token(&shop, "cart", AUDIENCE, Some("cart-1")).await;
    let chain = ask(&good, "cart").await.expect("the pod's own token");
    assert!(chain[0].contains("BEGIN CERTIFICATE"));

    let refused = async |token: &str, account: &str, code: Code, reason: &str| {
        let status = ask(token, account).await.expect_err(reason);
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(reason), "{:?} does not say {reason:?}", status.message());
        assert!(!status.message().contains(token), "{status}");
    };
    refused(&good, "web", Code::PermissionDenied, "proved to be").await;
    let other = api.token(&shop, "cart", "https://kubernetes.default.svc", Some("cart-1")).await;
    refused(&other, "cart", Code::Unauthenticated, "audience").await;
    let unbound = api.token(&shop, "cart", AUDIENCE, None).await;
    refused(&unbound, "cart", Code::Unauthenticated, "not bound to a pod").await;
    refused("no.token.atall", "cart", Code::Unauthenticated, "no JWT").await;
    let forged = format!("{}.{}", good.rsplit_once('.').expect("three parts").0, "c2lnbmVkIGJ5IG1l");
    refused(&forged, "cart", Code::Unauthenticated, "refuses the token").await;

    let gone = api.token(&shop, "cart", AUDIENCE, Some("cart-2")).await;
    api.kubectl(&["-n", &shop, "delete", "pod", "cart-2", "--force", "--grace-period=0"]).await;
    // The API server remembers for some seconds what it said of a token; the pod itself it tells as it is.
    refused(&gone, "cart", Code::Unauthenticated, "").await;
    make_pod(&api, &shop, "cart-2").await;
    refused(&gone, "cart", Code::Unauthenticated, "").await;

    let ending = api.token(&shop, "cart", AUDIENCE, Some("cart-3")).await;
    ask(&ending, "cart").await.expect("it is not yet told to end");
    api.kubectl(&["-n", &shop, "delete", "pod", "cart-3", "--wait=false"]).await;
    refused(&ending, "cart", Code::Unauthenticated, "being deleted").await;

    let over = api.token(&shop, "cart", AUDIENCE, Some("cart-4")).await;
    api.patch_status(&shop, "pod", "cart-4", &json!({ "phase": "Succeeded" })).await;
    refused(&over, "cart", Code::Unauthenticated, "has ended").await;

    let nothing = create(channel.clone(), None, &identity(&shop, "cart")).await.expect_err("no proof");
    assert_eq!(nothing.code(), Code::Unauthenticated);

    // Who can't be asked has not said no: the sidecar tries again.
    api.kill();
    let unknown = ask(&good, "cart").await.expect_err("nobody can tell");
    assert_eq!(unknown.code(), Code::Unavailable, "{unknown}");
    api.restart().await;
    ask(&good, "cart").await.expect("the API server is back");

    let log = plane.process.log();
    for token in [&good, &gone, &ending, &over] {
        assert!(!log.contains(token.as_str()), "a token is in the log");
    }
}

async fn make_pod(api: &ApiServer, namespace: &str, name: &str) {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace },
        "spec": {
            "serviceAccountName": "cart",
            "nodeName": "n1",
            "containers": [{ "name": "cart", "image": "cart" }],
        },
    });
    api.apply(&pod.to_string()).await;
}

fn identity(namespace: &str, account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{account}")
}

//! Two who want the same: policies for one target, and controllers that write to one status.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tulle_tests::apiserver::{ApiServer, Channel};

use crate::check::tulle;
use crate::conflicting::Conflicts;
use crate::plane::{Plane, SYSTEM, until};

/// The entry that another controller writes.
fn foreign(message: &str) -> Value {
    json!({
        "parentRef": { "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gateway" },
        "controllerName": "example.com/gateway",
        "conditions": [{
            "type": "Accepted", "status": "True", "reason": "Accepted", "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
        }],
    })
}

async fn server() -> ApiServer {
    let api = ApiServer::start().await;
    api.install_gateway_api(Channel::Experimental).await;
    api.install_tulle().await;
    for namespace in [SYSTEM, "shop"] {
        api.make_namespace(namespace).await;
    }
    for service in ["cart", "web"] {
        let ports = "{ports: [{name: http, port: 80}]}";
        api.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {service}, namespace: shop}}\nspec: {ports}\n"
        ))
        .await;
    }
    api
}

/// The policy that was made first holds for a target, whatever the names; the other says so, names it, and takes its place when
/// it goes. For a target of its own the other holds all along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_older_of_two_policies_holds_and_the_other_names_it() {
    let api = server().await;
    let plane = Plane::start(&api).await;
    let policy = |kind: &str, name: &str, targets: &[&str]| {
        let targets: Vec<_> = targets.iter().map(|name| json!({ "kind": "Service", "name": name })).collect();
        json!({
            "apiVersion": "tulle.dev/v1alpha1", "kind": kind,
            "metadata": { "name": name, "namespace": "shop" },
            "spec": { "targetRefs": targets },
        })
        .to_string()
    };
    for kind in ["BackendTrafficPolicy", "InboundPolicy", "TelemetryPolicy"] {
        api.apply(&policy(kind, "z-first", &["cart"])).await;
        let made = async |name: &str| {
            api.get("shop", kind, name).await["metadata"]["creationTimestamp"]
                .as_str()
                .expect("a time")
                .to_owned()
        };
        let first = made("z-first").await;
        // The API server tells ages in whole seconds.
        loop {
            api.apply(&policy(kind, "a-second", &["cart", "web"])).await;
            if made("a-second").await > first {
                break;
            }
            api.kubectl(&["-n", "shop", "delete", kind, "a-second"]).await;
        }
        let wait = async |name: &str, target: usize, condition: &str, reason: &str| {
            let path = format!(
                "--for=jsonpath={{.status.ancestors[{target}].conditions[?(@.type==\"{condition}\")].reason}}={reason}"
            );
            api.kubectl(&["-n", "shop", "wait", kind, name, &path, "--timeout=30s"]).await
        };
        wait("z-first", 0, "Accepted", "Accepted").await;
        wait("a-second", 0, "Accepted", "Conflicted").await;
        wait("a-second", 0, "Programmed", "Overridden").await;
        wait("a-second", 1, "Accepted", "Accepted").await;
        wait("a-second", 1, "Programmed", "Programmed").await;
        let told = api.get("shop", kind, "a-second").await["status"].to_string();
        let words = format!("{kind} shop/z-first is older and holds for the same target");
        assert!(told.contains(&words), "{told}");
        let table = api.kubectl(&["-n", "shop", "get", kind]).await;
        let row = |name: &str| {
            let row = table.lines().find(|line| line.starts_with(name));
            row.unwrap_or_else(|| panic!("{table}")).split_whitespace().collect::<Vec<_>>()
        };
        assert!(row("z-first").contains(&"True"), "{table}");
        assert!(row("a-second").iter().any(|cell| cell.contains("False")), "{table}");
        let (_, found) = tulle(&api.kubeconfig, &["analyze", "-n", "shop"]).await;
        assert!(found.to_string().contains(&words), "{found:#}");

        api.kubectl(&["-n", "shop", "delete", kind, "z-first"]).await;
        wait("a-second", 0, "Accepted", "Accepted").await;
        wait("a-second", 0, "Programmed", "Programmed").await;
    }
    assert!(!plane.process.log().contains("panicked"));
}

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: cart, port: 80}]
  rules: [{backendRefs: [{name: cart, port: 80}]}]
";

/// Who applies a status of its own is told by the API server that ours is there. Whoever takes it away by force gets it back
/// beside what he wrote; who does so again and again is answered ever more slowly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_others_take_away_comes_back_and_theirs_stays() {
    let api = server().await;
    let _plane = Plane::start(&api).await;
    api.apply(ROUTE).await;
    both(&api, None).await;
    let apply = async |message: &str, force: bool| {
        let status = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": { "name": "cart", "namespace": "shop" },
            "status": { "parents": [foreign(message)] },
        });
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("status.json");
        std::fs::write(&file, status.to_string()).expect("it can be written");
        let file = format!("--filename={}", file.display());
        let force = format!("--force-conflicts={force}");
        let arguments =
            ["apply", "--server-side", "--subresource=status", "--field-manager=gateway", &force, &file];
        api.try_kubectl(&arguments).await
    };
    let refused = apply("politely", false).await.expect_err("the list is one field, and ours");
    assert!(refused.contains("conflict with \"tulle-control-plane\""), "{refused}");
    both(&api, None).await;
    apply("by force", true).await.expect("whoever insists may");
    both(&api, Some("by force")).await;

    // How often ours came back while it was taken away at once.
    let mut back = BTreeSet::new();
    let until = Instant::now() + Duration::from_secs(12);
    let mut round = 0;
    while Instant::now() < until {
        let (ours, _, version) = parents(&api).await;
        if ours {
            back.insert(version);
            round += 1;
            apply(&format!("round {round}"), true).await.expect("whoever insists may");
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert!((1..=5).contains(&back.len()), "in 12 s it came back {} times", back.len());
    both(&api, Some(&format!("round {round}"))).await;
}

/// What the API server refuses for one object is written for all others, and for that one as soon as it may; the log is not
/// filled with it meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_is_refused_is_written_later_and_keeps_nothing_up() {
    let api = server().await;
    api.apply(REFUSAL).await;
    until_refused(&api, "not today").await;
    api.apply(ROUTE).await;
    let plane = Plane::start(&api).await;
    both(&api, None).await;
    let refused = || plane.process.log().matches("can't write the status of HTTPRoute shop/trial").count();
    until(async || if refused() > 0 { Ok(()) } else { Err(plane.process.log()) }).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(refused(), 1, "{}", plane.process.log());
    api.kubectl(&["delete", "validatingadmissionpolicybinding", "refusal"]).await;
    until_written(&api).await;
}

/// A conflict that does not end, which to try again at once is no use for, is left alone for ever longer, and nothing else waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conflict_without_end_is_left_alone_ever_longer() {
    let api = server().await;
    let conflicts = Conflicts::start().await;
    api.apply(&conflicts.configuration()).await;
    until_refused(&api, "somebody was faster").await;
    conflicts.times().clear();
    api.apply(ROUTE).await;
    let plane = Plane::start(&api).await;
    both(&api, None).await;
    sleep(Duration::from_secs(12)).await;
    let times = conflicts.times().clone();
    // Within an effort it is tried again after a fraction of a second, between two of them it is left alone for 1, 2, 4 s.
    let efforts = 1 + times.windows(2).filter(|two| two[1] - two[0] > Duration::from_millis(700)).count();
    assert!((2..=5).contains(&efforts), "in 12 s there were {efforts} efforts: {times:?}");
    let told = plane.process.log().matches("can't write the status of HTTPRoute shop/trial").count();
    assert_eq!(told, 1, "{}", plane.process.log());
    api.kubectl(&["delete", "validatingwebhookconfiguration", "conflicts"]).await;
    until_written(&api).await;
}

const REFUSAL: &str = "
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: refusal}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
    - {apiGroups: [gateway.networking.k8s.io], apiVersions: ['*'], operations: [UPDATE], resources: [httproutes/status]}
  validations: [{expression: \"object.metadata.name != 'trial'\", message: not today}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: refusal}
spec: {policyName: refusal, validationActions: [Deny]}
";

/// Makes the route `trial`, whose status can't be written for this reason: once the API server has heard of who refuses it.
async fn until_refused(api: &ApiServer, reason: &str) {
    until(async || {
        api.apply(&ROUTE.replace("name: cart, namespace", "name: trial, namespace")).await;
        let status = json!({ "status": { "parents": [foreign("a trial")] } }).to_string();
        let patch = ["patch", "httproute", "trial", "--subresource=status", "--type=merge", "-p", &status];
        match api.try_kubectl(&[&["-n", "shop"][..], &patch].concat()).await {
            Err(refused) if refused.contains(reason) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Waits until the route `trial` has our status.
async fn until_written(api: &ApiServer) {
    until(async || match api.get("shop", "httproute", "trial").await["status"].to_string() {
        status if status.contains("tulle.dev/mesh") => Ok(()),
        status => Err(status),
    })
    .await;
}

/// Whether the route `cart` has our entry, what the other controller's says, and its version.
async fn parents(api: &ApiServer) -> (bool, Option<String>, String) {
    let route = api.get("shop", "httproute", "cart").await;
    let parents = route["status"]["parents"].as_array().cloned().unwrap_or_default();
    let of = |controller: &str| parents.iter().find(|entry| entry["controllerName"] == controller);
    let other = of("example.com/gateway").map(|entry| {
        let message = entry["conditions"][0]["message"].as_str().expect("a text").to_owned();
        assert_eq!(entry, &foreign(&message), "it is as it was written");
        message
    });
    (of("tulle.dev/mesh").is_some(), other, route["metadata"]["resourceVersion"].to_string())
}

/// Waits until our entry is there, and with it the other's, of these words.
async fn both(api: &ApiServer, other: Option<&str>) {
    until(async || match parents(api).await {
        (true, found, _) if found.as_deref() == other => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await;
}

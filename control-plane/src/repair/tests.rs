//! Who is stranded, and how many may go.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::limit::Limit;
use super::stranded::{Stranded, is_ready};

/// A pod whose init container `tulle-validate` has this state, and had that one.
fn pod(state: Value, last: Value) -> Value {
    let owner = json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "cart", "uid": "u-1", "controller": true });
    json!({
        "metadata": { "name": "cart-0", "namespace": "shop", "uid": "u-2", "resourceVersion": "7",
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u-0" }, owner] },
        "spec": { "nodeName": "n1", "containers": [] },
        "status": { "initContainerStatuses": [
            { "name": "other", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": { "terminated": { "exitCode": 95 } } },
            { "name": "tulle-validate", "image": "", "imageID": "", "ready": false, "restartCount": 1,
                "state": state, "lastState": last },
        ] },
    })
}

fn stranded(pod: Value) -> Option<Stranded> {
    Stranded::of(&serde_json::from_value::<Pod>(pod).expect("a pod"))
}

#[test]
fn a_pod_whose_last_validation_found_no_rules_is_stranded() {
    let ended = |code: i32| json!({ "terminated": { "exitCode": code } });
    let (waits, runs) = (json!({ "waiting": { "reason": "CrashLoopBackOff" } }), json!({ "running": {} }));
    for (state, last, expected) in [
        (ended(95), json!({}), true),
        (waits.clone(), ended(95), true),
        (ended(95), ended(1), true),
        // It tries once more, it did well, it failed for another reason, it has not run at all.
        (runs, ended(95), false),
        (ended(0), ended(95), false),
        (ended(1), ended(95), false),
        (waits.clone(), ended(137), false),
        (waits, json!({}), false),
        (json!({}), ended(95), false),
    ] {
        let text = format!("{state} after {last}");
        assert_eq!(stranded(pod(state, last)).is_some(), expected, "{text}");
    }
}

#[test]
fn a_stranded_pod_is_known_by_its_controller_and_its_node() {
    let good = pod(json!({ "terminated": { "exitCode": 95 } }), json!({}));
    let found = stranded(good.clone()).expect("it is");
    assert_eq!((found.owner.as_deref(), found.node.as_str()), (Some("u-1"), "n1"));
    assert_eq!(found.version.as_deref(), Some("7"));

    let mut bare = good.clone();
    bare["metadata"]["ownerReferences"].as_array_mut().expect("a list").pop();
    assert_eq!(stranded(bare).expect("it is").owner, None);
    let mut leaving = good;
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert!(stranded(leaving).is_none());
    assert!(stranded(json!({ "metadata": { "name": "x" } })).is_none());
}

#[test]
fn deletions_are_bounded_for_all_and_for_each_owner_on_a_node() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut limit = Limit::new(start);
    let allowed = |limit: &mut Limit, owner: &str, node: &str, now| {
        (0..100).filter(|_| limit.allows(owner, node, now)).count()
    };
    assert_eq!(allowed(&mut limit, "a", "n1", start), 5);
    assert_eq!(allowed(&mut limit, "b", "n1", start), 5);
    assert!(limit.is_in_vain("a", "n1", start) && !limit.is_in_vain("a", "n2", start));
    // All that is left for all is used up.
    assert_eq!(allowed(&mut limit, "a", "n2", start), 0);
    assert_eq!(allowed(&mut limit, "a", "n2", after(3)), 3);
    // What did not help five times is tried every two minutes.
    assert_eq!(allowed(&mut limit, "a", "n1", after(119)), 0);
    assert!(!limit.is_in_vain("a", "n1", after(121)));
    assert_eq!(allowed(&mut limit, "a", "n1", after(121)), 1);
    assert_eq!(allowed(&mut limit, "a", "n1", after(3600)), 5);
}

#[test]
fn readiness_is_the_condition_of_that_name() {
    let pod = |status: &str| -> Pod {
        let conditions =
            json!([{ "type": "Initialized", "status": "True" }, { "type": "Ready", "status": status }]);
        serde_json::from_value(json!({ "metadata": {}, "status": { "conditions": conditions } }))
            .expect("a pod")
    };
    assert!(is_ready(&pod("True")) && !is_ready(&pod("False")) && !is_ready(&Pod::default()));
}

//! Who gets a sidecar, and who does not and why.

use super::*;

#[test]
fn the_pods_label_goes_before_the_namespaces() {
    let labels = [None, Some("enabled"), Some("disabled")];
    for namespace in labels {
        for own in labels {
            let expected = matches!((namespace, own), (_, Some("enabled")) | (Some("enabled"), None));
            let mut facts = Namespace { name: "shop".into(), ..Namespace::default() };
            facts.labels.extend(namespace.map(|value| (INJECT_LABEL.into(), value.into())));
            let mut pod = pod();
            if let Some(value) = own {
                pod["metadata"]["labels"][INJECT_LABEL] = value.into();
            }
            let result = inject(&pod, &facts, &Settings::default());
            assert_eq!(result.is_ok(), expected, "namespace {namespace:?}, pod {own:?}");
            if let Err(skip) = result {
                assert!(skip.is_wanted(), "{skip}");
            }
        }
    }
}

#[test]
fn a_value_that_means_nothing_is_told() {
    let mut own = pod();
    own["metadata"]["labels"][INJECT_LABEL] = "true".into();
    let skip = skipped(&own, &enabled());
    assert_eq!(skip.to_string(), "the pod's label tulle.dev/inject is \"true\"; write enabled or disabled");
    assert!(!skip.is_wanted());
    let labels = [(INJECT_LABEL.to_owned(), "yes".to_owned())].into();
    let namespace = Namespace { name: "shop".into(), labels, ..Namespace::default() };
    assert!(matches!(skipped(&pod(), &namespace), Skip::Label { of: "namespace", .. }));
    // The pod's own word is clear.
    own["metadata"]["labels"][INJECT_LABEL] = "enabled".into();
    assert!(inject(&own, &namespace, &Settings::default()).is_ok());
}

#[test]
fn where_a_sidecar_would_do_harm_or_be_gone_around_there_is_none() {
    let cases: [(&str, Value, &str); 9] = [
        ("/spec/hostNetwork", json!(true), "HostNetwork"),
        ("/spec/os", json!({"name": "windows"}), "Windows"),
        ("/metadata/labels/tulle.dev~1component", json!("control-plane"), "ControlPlane"),
        ("/spec/containers/1/name", json!("istio-proxy"), "OtherMesh"),
        ("/spec/initContainers/0/name", json!("linkerd-init"), "OtherMesh"),
        ("/spec/initContainers/0/securityContext", json!({"runAsUser": 2102}), "SidecarUser"),
        ("/spec/securityContext", json!({"runAsUser": 2102}), "SidecarUser"),
        ("/spec/containers/1/name", json!("tulle-sidecar"), "NameTaken"),
        ("/spec/volumes", json!([{"name": "tulle-token", "emptyDir": {}}]), "NameTaken"),
    ];
    for (path, value, reason) in cases {
        let (parent, key) = path.rsplit_once('/').expect("a path");
        let mut pod = pod();
        pod.pointer_mut(parent).expect("there")[key.replace("~1", "/")] = value;
        let skip = skipped(&pod, &enabled());
        assert_eq!(skip.reason(), reason, "{path}: {skip}");
    }
    for namespace in ["kube-system", "tulle-system"] {
        assert_eq!(skipped(&pod(), &Namespace::enabled(namespace)).reason(), "SystemNamespace");
    }
    assert_eq!(skipped(&json!({"spec": {"containers": "none"}}), &enabled()).reason(), "Unreadable");
    assert_eq!(skipped(&json!({"metadata": {}}), &enabled()).reason(), "Unreadable");
}

#[test]
fn a_user_of_ones_own_is_no_ones_else() {
    let mut pod = pod();
    pod["spec"]["securityContext"] = json!({"runAsUser": 2102});
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array_mut().expect("a list") {
            container["securityContext"] = json!({"runAsUser": 1000});
        }
    }
    assert!(inject(&pod, &enabled(), &Settings::default()).is_ok(), "no container is the sidecar's user");
}

#[test]
fn values_that_a_pod_could_not_start_with_are_refused_by_name() {
    for (name, value) in [
        ("tulle.dev/native-sidecar", "yes"),
        ("tulle.dev/cpu-request", "lots"),
        ("tulle.dev/memory-limit", "0"),
        ("tulle.dev/memory-limit", ".5Gi"),
        ("tulle.dev/skip-inbound-ports", "22,70000"),
        ("tulle.dev/skip-outbound-ports", "9-1"),
        ("tulle.dev/skip-subnets", "10.0.0.0/40"),
        ("tulle.dev/outbound-policy", "Allow"),
        ("tulle.dev/shutdown-grace-period", "30"),
        ("tulle.dev/lame-duck", "31s"),
        ("tulle.dev/rewrite-probes", "no"),
        ("tulle.dev/log-level", "loud"),
        ("tulle.dev/log-format", "xml"),
        ("tulle.dev/image", "--privileged"),
    ] {
        let skip = skipped(&annotated(pod(), &[(name, value)]), &enabled());
        let text = skip.to_string();
        assert!(text.starts_with(&format!("annotation {name} is {value:?}; write ")), "{text}");
    }
    let crossed = [("tulle.dev/memory-request", "2Gi"), ("tulle.dev/memory-limit", "1Gi")];
    assert_eq!(
        skipped(&annotated(pod(), &crossed), &enabled()).to_string(),
        "annotation tulle.dev/memory-request is \"2Gi\"; write no more than the limit, 1Gi"
    );
}

#[test]
fn ports_that_are_not_carried_are_told() {
    let mut pod = pod();
    pod["spec"]["containers"][1]["ports"] = json!([{"containerPort": 53, "protocol": "UDP"}]);
    let injected = inject(&pod, &enabled(), &Settings::default()).expect("it gets a sidecar");
    assert_eq!(injected.warnings, ["the mesh carries TCP alone: ports 53 stay as they are"]);
}

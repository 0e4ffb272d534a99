//! What holds for every pod.

use proptest::prelude::*;

use super::*;

/// Lists and maps that are there have entries: one without is taken for none.
fn pods() -> impl Strategy<Value = Value> {
    let container = |name: String| {
        let ports = prop::collection::vec(1u16..9999, 0..3);
        let probe = prop::sample::select(vec![
            None,
            Some(json!({"periodSeconds": 2, "httpGet": {"path": "/a", "port": 1}, "x": 1})),
            Some(json!({"tcpSocket": {"port": "5"}, "timeoutSeconds": 2})),
            Some(json!({"grpc": {"port": 7, "service": null}})),
            Some(json!({"exec": {"command": ["true"]}})),
            Some(json!({"httpGet": {"path": "/probe/app0/readiness", "port": 15020}})),
        ]);
        (Just(name), ports, any::<bool>(), probe).prop_map(|(name, ports, limited, probe)| {
            let mut container = json!({"name": name, "image": "i", "unheardOf": {"x": [1, null]}});
            if !ports.is_empty() {
                container["ports"] = ports.iter().map(|port| json!({"containerPort": port})).collect();
            }
            if let Some(probe) = probe {
                container["readinessProbe"] = probe;
            }
            if limited {
                container["resources"] = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
            }
            container
        })
    };
    let containers = move |prefix: &'static str, sizes: std::ops::Range<usize>| {
        sizes.prop_flat_map(move |number| {
            (0..number).map(|index| container(format!("{prefix}{index}"))).collect::<Vec<_>>()
        })
    };
    let keys = prop::sample::select(vec![
        "app",
        "prometheus.io/scrape",
        "prometheus.io/path",
        "kubectl.kubernetes.io/default-container",
        "tulle.dev/log-level",
        "a~b/c",
    ]);
    let map = prop::collection::btree_map(keys, Just("info"), 0..4);
    (containers("init", 0..3), containers("app", 1..4), map.clone(), map, any::<bool>(), any::<bool>())
        .prop_map(|(init, app, labels, annotations, volumes, named)| {
            let mut pod = json!({"spec": {"containers": app}});
            if !init.is_empty() {
                pod["spec"]["initContainers"] = init.into();
            }
            if volumes {
                pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
            }
            if named {
                pod["metadata"]["generateName"] = "web-".into();
            }
            if !labels.is_empty() {
                pod["metadata"]["labels"] = json!(labels);
            }
            if !annotations.is_empty() {
                pod["metadata"]["annotations"] = json!(annotations);
            }
            pod
        })
}

fn settings() -> impl Strategy<Value = (Settings, Namespace)> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(native, cni, inherited)| {
        let redirection = if cni { Redirection::Cni } else { Redirection::Init };
        let mut namespace = enabled();
        if inherited {
            namespace.annotations.insert("tulle.dev/log-level".into(), "debug".into());
            namespace.annotations.insert("tulle.dev/cpu-limit".into(), "2".into());
        }
        (Settings { native, redirection, ..Settings::default() }, namespace)
    })
}

proptest! {
    #[test]
    fn twice_is_once_and_back_is_the_start(
        pod in pods(), (first, namespace) in settings(), (second, _) in settings()
    ) {
        let once = inject(&pod, &namespace, &first).expect("it gets a sidecar").template;
        let twice = inject(&once, &namespace, &first).expect("again").template;
        prop_assert_eq!(&twice, &once);
        prop_assert_eq!(&uninject(&once), &pod);
        // What was injected otherwise before leaves no trace.
        let fresh = inject(&pod, &namespace, &second).expect("it gets a sidecar").template;
        let changed = inject(&once, &namespace, &second).expect("again").template;
        prop_assert_eq!(changed, fresh);
    }

    #[test]
    fn a_patch_makes_the_one_of_the_other(from in json_values(), to in json_values()) {
        let operations = diff(&from, &to);
        prop_assert_eq!(operations.is_empty(), from == to);
        prop_assert_eq!(patched(from, &operations), to);
    }
}

fn json_values() -> impl Strategy<Value = Value> {
    let leaf =
        prop_oneof![Just(json!(null)), any::<bool>().prop_map(Value::from), (0..3).prop_map(Value::from)];
    leaf.prop_recursive(3, 20, 4, |inner| {
        let keys = prop::sample::select(vec!["a", "b", "c/d", "e~f"]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(keys, inner, 0..4)
                .prop_map(|map| map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    })
}

//! What becomes of a pod's probes.

use super::*;

/// A pod whose one container has these ports and this readiness probe.
fn probed(probe: Value) -> Value {
    let mut pod = pod();
    let container = &mut pod["spec"]["containers"][0];
    container["ports"] =
        json!([{"name": "web", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090}]);
    container["readinessProbe"] = probe;
    pod
}

/// What the sidecar is told to ask, as it sees it.
fn questions(pod: &Value) -> Value {
    let list = if names(pod, "containers").contains(&SIDECAR) { "containers" } else { "initContainers" };
    let mut args = named(pod, list, SIDECAR)["args"].as_array().into_iter().flatten();
    let questions = args.find_map(|argument| argument.as_str()?.strip_prefix("--probes="));
    questions.map_or(Value::Null, |text| serde_json::from_str(&text.replace("$$", "$")).expect("JSON"))
}

#[test]
fn the_kubelet_asks_the_sidecar_and_the_sidecar_asks_what_is_declared() {
    for (probe, question) in [
        (json!({"httpGet": {"port": 8080}}), json!({"http": {"port": 8080, "path": "/"}})),
        (
            json!({"httpGet": {"port": "web", "path": "ready?a=1&b=$(HOME) x#end", "scheme": "HTTPS", "httpHeaders":
                [{"name": "Host", "value": "web.example"}, {"name": "X-Key", "value": "k"}]}, "timeoutSeconds": 7}),
            json!({"http": {"port": 8080, "path": "/ready?a=1&b=$(HOME)%20x", "tls": true, "headers":
                [{"name": "Host", "value": "web.example"}, {"name": "X-Key", "value": "k"}]}, "timeout": "7s"}),
        ),
        (json!({"tcpSocket": {"port": "metrics"}}), json!({"tcp": {"port": 9090}})),
        (json!({"tcpSocket": {"port": "5432"}}), json!({"tcp": {"port": 5432}})),
        (json!({"grpc": {"port": 9000}}), json!({"grpc": {"port": 9000, "service": ""}})),
        (
            json!({"grpc": {"port": 9000, "service": "shop.Cart"}}),
            json!({"grpc": {"port": 9000, "service": "shop.Cart"}}),
        ),
    ] {
        let mut probe = probe;
        probe["periodSeconds"] = 3.into();
        let before = probed(probe.clone());
        let pod = injected(&before, &Settings::default());
        let mut expected = json!({"name": "app/readiness", "timeout": "1s"});
        expected.as_object_mut().expect("a map").extend(question.as_object().expect("a map").clone());
        assert_eq!(questions(&pod), json!([expected]));
        let rewritten = &pod["spec"]["containers"][0]["readinessProbe"];
        assert_eq!(
            rewritten["httpGet"],
            json!({"path": "/probe/app/readiness", "port": 15020, "scheme": "HTTP"}),
            "with no header of the application's"
        );
        assert_eq!(rewritten["periodSeconds"], 3);
        assert_eq!(rewritten["timeoutSeconds"], probe["timeoutSeconds"]);
        assert!(rewritten.get("tcpSocket").is_none() && rewritten.get("grpc").is_none());
        assert_eq!(uninject(&pod), before);
    }
}

#[test]
fn each_container_has_probes_of_its_own_and_ports_of_its_own() {
    let mut pod = probed(json!({"httpGet": {"port": "web"}}));
    pod["spec"]["containers"][0]["livenessProbe"] = json!({"tcpSocket": {"port": "web"}});
    pod["spec"]["containers"][0]["startupProbe"] = json!({"grpc": {"port": 1}});
    pod["spec"]["containers"][1]["ports"] = json!([{"name": "web", "containerPort": 6379}]);
    pod["spec"]["containers"][1]["livenessProbe"] = json!({"tcpSocket": {"port": "web"}});
    // A native sidecar of the application's.
    pod["spec"]["initContainers"][0]["restartPolicy"] = "Always".into();
    pod["spec"]["initContainers"][0]["startupProbe"] = json!({"httpGet": {"port": 1, "path": "/up"}});
    for settings in [Settings::default(), Settings { native: false, ..Settings::default() }] {
        let injected = injected(&pod, &settings);
        let questions = questions(&injected);
        let asked: Vec<String> = questions.as_array().expect("a list").iter().map(Value::to_string).collect();
        for question in [
            r#"{"name":"app/startup","timeout":"1s","grpc":{"port":1,"service":""}}"#,
            r#"{"name":"app/liveness","timeout":"1s","tcp":{"port":8080}}"#,
            r#"{"name":"app/readiness","timeout":"1s","http":{"port":8080,"path":"/"}}"#,
            r#"{"name":"cache/liveness","timeout":"1s","tcp":{"port":6379}}"#,
            r#"{"name":"migrate/startup","timeout":"1s","http":{"port":1,"path":"/up"}}"#,
        ] {
            assert!(asked.contains(&question.into()), "{question} in {asked:?}");
        }
        assert_eq!(asked.len(), 5);
        assert_eq!(uninject(&injected), pod);
    }
}

#[test]
fn what_is_not_the_sidecar_s_to_ask_stays() {
    for (probe, told) in [
        (json!({"exec": {"command": ["true"]}}), false),
        (json!({"httpGet": {"port": 8080, "host": "other.example"}}), false),
        (json!({"tcpSocket": {"port": 8080, "host": "10.0.0.1"}}), false),
        (json!({"httpGet": {"port": 15020, "path": "/ready"}}), false),
        (json!({"periodSeconds": 1}), false),
        (json!({"httpGet": {"port": "absent"}}), true),
        (json!({"tcpSocket": {"port": 70000}}), true),
        (json!({"httpGet": {"port": 8080, "httpHeaders": [{"name": "X-Key", "value": "secret\n"}]}}), true),
    ] {
        let before = probed(probe.clone());
        let injected = inject(&before, &enabled(), &Settings::default()).expect("it gets a sidecar");
        assert_eq!(injected.template["spec"]["containers"][0]["readinessProbe"], probe);
        assert_eq!(questions(&injected.template), Value::Null);
        assert_eq!(injected.warnings.len(), usize::from(told), "{:?}", injected.warnings);
        assert!(
            injected
                .warnings
                .iter()
                .all(|warning| warning.contains("container app") && !warning.contains("secret"))
        );
    }
    let off = annotated(probed(json!({"httpGet": {"port": 8080}})), &[("tulle.dev/rewrite-probes", "false")]);
    assert_eq!(questions(&injected(&off, &Settings::default())), Value::Null);
}

#[test]
fn another_round_asks_the_same_and_what_has_changed_meanwhile() {
    let settings = Settings::default();
    let mut pod = injected(&probed(json!({"httpGet": {"port": "web", "path": "/old"}})), &settings);
    // What the API server fills in.
    pod["spec"]["containers"][0]["readinessProbe"]["successThreshold"] = 1.into();
    assert_eq!(diff(&pod, &injected(&pod, &settings)), []);
    // Another webhook or the user has a probe of their own by now.
    pod["spec"]["containers"][0]["readinessProbe"] = json!({"httpGet": {"port": "web", "path": "/new"}});
    let again = injected(&pod, &settings);
    assert_eq!(questions(&again)[0]["http"]["path"], "/new");
    let bare = uninject(&again);
    assert_eq!(
        bare["spec"]["containers"][0]["readinessProbe"],
        json!({"httpGet": {"port": "web", "path": "/new"}})
    );
}

#[test]
fn a_forged_record_gives_back_nothing_that_was_not_rewritten() {
    let record = json!({"probes": {
        "app/readiness": {"exec": {"command": ["evil"]}},
        "cache/readiness": {"httpGet": {"port": 1}},
    }});
    let mut pod =
        annotated(probed(json!({"tcpSocket": {"port": 1}})), &[(STATUS_ANNOTATION, &record.to_string())]);
    assert_eq!(uninject(&pod)["spec"]["containers"], pod["spec"]["containers"]);
    pod["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/probe/app/readiness", "port": 15020}});
    assert_eq!(uninject(&pod)["spec"]["containers"], pod["spec"]["containers"], "exec is never rewritten");
}

#[test]
fn hooks_that_strict_mtls_would_refuse_and_jobs_that_would_not_end_are_told() {
    let mut pod = pod();
    pod["spec"]["restartPolicy"] = "Never".into();
    pod["spec"]["containers"][1]["lifecycle"] =
        json!({"postStart": {"exec": {"command": ["true"]}}, "preStop": {"httpGet": {"port": 1}}});
    let warnings = |settings| inject(&pod, &enabled(), &settings).expect("it gets a sidecar").warnings;
    let native = warnings(Settings::default());
    assert!(
        native.len() == 1 && native[0].starts_with("the preStop hook of container cache asks"),
        "{native:?}"
    );
    let classic = warnings(Settings { native: false, ..Settings::default() });
    assert!(classic.len() == 2 && classic[0].contains("127.0.0.1:15000/drain"), "{classic:?}");
}

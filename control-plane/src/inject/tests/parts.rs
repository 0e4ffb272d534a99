//! What is put into a pod.

use super::*;

#[test]
fn the_sidecar_starts_before_all_others() {
    let pod = injected(&pod(), &Settings::default());
    assert_eq!(names(&pod, "initContainers"), ["tulle-init", "tulle-sidecar", "migrate"]);
    assert_eq!(names(&pod, "containers"), ["app", "cache"]);
    let sidecar = named(&pod, "initContainers", SIDECAR);
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert_eq!(sidecar["startupProbe"]["httpGet"], json!({"path": "/ready", "port": 15020}));
    assert_eq!(sidecar["startupProbe"]["failureThreshold"], 120);
    assert_eq!(sidecar["livenessProbe"]["httpGet"]["path"], "/live");
    assert_eq!(sidecar["readinessProbe"]["httpGet"]["path"], "/ready");
    assert_eq!(pod["metadata"]["labels"], json!({"app": "web", "tulle.dev/tls": "mesh"}));
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(annotations["kubectl.kubernetes.io/default-container"], "app");
    assert_eq!(annotations["kubectl.kubernetes.io/default-logs-container"], "app");
    assert_eq!(annotations["prometheus.io/port"], "15020");
    let status: Value =
        serde_json::from_str(annotations[STATUS_ANNOTATION].as_str().expect("text")).expect("JSON");
    assert_eq!(status["containers"], json!(["tulle-init", "tulle-sidecar"]));
}

#[test]
fn the_classic_sidecar_stands_first_beside_the_others() {
    let settings = Settings { native: false, ..Settings::default() };
    let pod = injected(&pod(), &settings);
    assert_eq!(names(&pod, "initContainers"), ["migrate", "tulle-init"]);
    assert_eq!(names(&pod, "containers"), ["tulle-sidecar", "app", "cache"]);
    let sidecar = named(&pod, "containers", SIDECAR);
    assert!(sidecar.get("restartPolicy").is_none() && sidecar.get("startupProbe").is_none());
    assert_eq!(sidecar["lifecycle"]["postStart"]["exec"]["command"], json!(["/tulle-sidecar", "await"]));
}

#[test]
fn only_who_redirects_has_a_capability_and_with_cni_nobody() {
    let init = injected(&pod(), &Settings::default());
    let context = &named(&init, "initContainers", INIT)["securityContext"];
    assert_eq!(context["capabilities"], json!({"add": ["NET_ADMIN"], "drop": ["ALL"]}));
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["readOnlyRootFilesystem"], true);

    let cni = injected(&pod(), &Settings { redirection: Redirection::Cni, ..Settings::default() });
    assert_eq!(names(&cni, "initContainers"), ["tulle-validate", "tulle-sidecar", "migrate"]);
    for name in [VALIDATE, SIDECAR] {
        let context = &named(&cni, "initContainers", name)["securityContext"];
        assert_eq!(
            *context,
            json!({
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": true,
                "runAsGroup": 2102,
                "runAsNonRoot": true,
                "runAsUser": 2102,
                "seccompProfile": {"type": "RuntimeDefault"},
            }),
            "{name}"
        );
    }
}

#[test]
fn annotations_set_what_they_name_and_the_namespaces_are_shown_on_the_pod() {
    let mut namespace = enabled();
    for (name, value) in [
        ("tulle.dev/skip-outbound-ports", "5432"),
        ("tulle.dev/log-level", "debug"),
        ("tulle.dev/cpu-limit", "1"),
        ("example.com/other", "x"),
    ] {
        namespace.annotations.insert(name.into(), value.into());
    }
    let own = annotated(
        pod(),
        &[
            ("tulle.dev/log-level", "warn"),
            ("tulle.dev/skip-inbound-ports", "22,9000-9010"),
            ("tulle.dev/shutdown-grace-period", "1m30s"),
            ("tulle.dev/lame-duck", "40s"),
            ("tulle.dev/image", "registry.example/sidecar:2"),
        ],
    );
    let pod = inject(&own, &namespace, &Settings::default()).expect("it gets a sidecar").template;
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(annotations["tulle.dev/skip-outbound-ports"], "5432");
    assert_eq!(annotations["tulle.dev/log-level"], "warn");
    assert!(annotations.get("example.com/other").is_none());
    let init = named(&pod, "initContainers", INIT);
    assert_eq!(
        init["args"],
        json!(["init", "--skip-inbound-ports=22,9000-9010", "--skip-outbound-ports=5432"])
    );
    let sidecar = named(&pod, "initContainers", SIDECAR);
    assert_eq!(sidecar["image"], "registry.example/sidecar:2");
    assert_eq!(sidecar["resources"]["limits"]["cpu"], "1");
    let args = sidecar["args"].as_array().expect("a list");
    for argument in
        ["--log-level=warn", "--grace-period=90000ms", "--lame-duck=40000ms", "--address=$(POD_IPS)"]
    {
        assert!(args.contains(&argument.into()), "{argument} is not in {args:?}");
    }
    assert_eq!(uninject(&pod), own, "what the namespace gave goes again");
}

#[test]
fn a_guaranteed_pod_stays_guaranteed() {
    let mut pod = pod();
    for list in ["containers", "initContainers"] {
        for container in pod["spec"][list].as_array_mut().expect("a list") {
            container["resources"] = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        }
    }
    let guaranteed = injected(&pod, &Settings::default());
    for name in [INIT, SIDECAR] {
        let resources = &named(&guaranteed, "initContainers", name)["resources"];
        assert_eq!(resources["limits"], json!({"cpu": "50m", "memory": "256Mi"}));
        assert_eq!(resources["requests"], resources["limits"]);
    }
    pod["spec"]["containers"][0]["resources"]["requests"] = json!({"cpu": "100m"});
    let burstable = injected(&pod, &Settings::default());
    let resources = &named(&burstable, "initContainers", SIDECAR)["resources"];
    assert_eq!(resources["requests"], json!({"cpu": "50m", "memory": "32Mi"}));
}

#[test]
fn metrics_of_the_application_stay_where_they_are() {
    let own = annotated(pod(), &[("prometheus.io/port", "9090")]);
    let pod = injected(&own, &Settings::default());
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(annotations["prometheus.io/port"], "9090");
    assert!(annotations.get("prometheus.io/scrape").is_none());
}

#[test]
fn the_patch_touches_nothing_else() {
    let before = pod();
    let after = injected(&before, &Settings::default());
    let operations = diff(&before, &after);
    let paths: Vec<String> = operations
        .iter()
        .map(|operation| {
            serde_json::to_value(operation).expect("JSON")["path"].as_str().expect("text").into()
        })
        .collect();
    assert_eq!(
        paths,
        [
            "/metadata/labels/tulle.dev~1tls",
            "/metadata/annotations",
            "/spec/initContainers/0",
            "/spec/initContainers/1",
            "/spec/volumes",
        ]
    );
    assert_eq!(patched(before, &operations), after);
}

#[test]
fn what_others_add_to_the_sidecar_stays_on_another_round() {
    let mut pod = injected(&pod(), &Settings::default());
    // The API server's defaults and admission, and another injector's container in front.
    let sidecar = &mut pod["spec"]["initContainers"][1];
    sidecar["terminationMessagePath"] = "/dev/termination-log".into();
    sidecar["readinessProbe"]["timeoutSeconds"] = 1.into();
    sidecar["volumeMounts"]
        .as_array_mut()
        .expect("a list")
        .push(json!({"name": "kube-api-access", "mountPath": "/x"}));
    pod["spec"]["volumes"][0]["projected"]["defaultMode"] = 420.into();
    assert_eq!(diff(&pod, &injected(&pod, &Settings::default())), []);

    let init = pod["spec"]["initContainers"].as_array_mut().expect("a list");
    init.insert(0, json!({"name": "vault", "image": "vault:1"}));
    let again = injected(&pod, &Settings::default());
    assert_eq!(names(&again, "initContainers"), ["tulle-init", "tulle-sidecar", "vault", "migrate"]);
    let kept = &named(&again, "initContainers", SIDECAR)["terminationMessagePath"];
    assert_eq!(kept, "/dev/termination-log");
}

#[test]
fn another_version_or_setting_replaces_the_sidecar() {
    let limit = [("tulle.dev/cpu-limit", "2")];
    let limited = injected(&annotated(pod(), &limit), &Settings::default());
    let mut freed = limited.clone();
    freed["metadata"]["annotations"].as_object_mut().expect("a map").shift_remove(limit[0].0);
    let freed = injected(&freed, &Settings::default());
    assert_eq!(freed, injected(&pod(), &Settings::default()), "no limit is left");

    let classic = Settings { native: false, ..Settings::default() };
    assert_eq!(injected(&limited, &classic), injected(&annotated(pod(), &limit), &classic));
}

#[test]
fn a_forged_record_takes_out_nothing_but_the_sidecar() {
    let mut pod = pod();
    let record =
        json!({"containers": ["app"], "volumes": ["data"], "annotations": ["owner", "prometheus.io/port"]});
    pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    let pod = annotated(pod, &[(STATUS_ANNOTATION, &record.to_string()), ("owner", "ada")]);
    let bare = uninject(&pod);
    assert_eq!(names(&bare, "containers"), ["app", "cache"]);
    assert_eq!(names(&bare, "volumes"), ["data"]);
    assert_eq!(bare["metadata"]["annotations"], json!({"owner": "ada"}));
    // And one that can't be read is none.
    let garbled = annotated(injected(&self::pod(), &Settings::default()), &[(STATUS_ANNOTATION, "{")]);
    assert_eq!(names(&injected(&garbled, &Settings::default()), "initContainers").len(), 3);
}

#[test]
fn templates_are_found_in_all_kinds_that_make_pods() {
    for (api, kind, path) in [
        ("v1", "Pod", ""),
        ("apps/v1", "Deployment", "/spec/template"),
        ("apps/v1", "StatefulSet", "/spec/template"),
        ("apps/v1", "DaemonSet", "/spec/template"),
        ("apps/v1", "ReplicaSet", "/spec/template"),
        ("batch/v1", "Job", "/spec/template"),
        ("batch/v1", "CronJob", "/spec/jobTemplate/spec/template"),
    ] {
        let template = json!({"spec": {"containers": []}});
        let mut object = match path {
            "" => template.clone(),
            "/spec/template" => json!({"spec": {"template": template}}),
            _ => json!({"spec": {"jobTemplate": {"spec": {"template": template}}}}),
        };
        object["apiVersion"] = api.into();
        object["kind"] = kind.into();
        let found = workloads::template(&mut object).expect(kind);
        assert!(found["spec"]["containers"].is_array(), "{kind}");
    }
    assert!(workloads::template(&mut json!({"apiVersion": "v1", "kind": "Service"})).is_none());
    assert!(
        workloads::template(&mut json!({"apiVersion": "example.com/v1", "kind": "Deployment"})).is_none()
    );
}

#[test]
fn roots_come_from_the_namespace_or_from_the_cluster_as_told() {
    let volume = |settings: &Settings| {
        let pod = injected(&pod(), settings);
        let volumes = pod["spec"]["volumes"].as_array().expect("a list").clone();
        volumes.into_iter().find(|volume| volume["name"] == "tulle-trust-bundle").expect("it is there")
    };
    let items = json!([{"key": "root.pem", "path": "root.pem"}]);
    assert_eq!(
        volume(&Settings::default())["configMap"],
        json!({"name": "tulle-trust-bundle", "items": items})
    );
    let settings = Settings { trust: Trust::ClusterTrustBundle, ..Settings::default() };
    assert_eq!(
        volume(&settings),
        json!({
            "name": "tulle-trust-bundle",
            "projected": {"sources": [{"clusterTrustBundle": {"name": "tulle-trust-bundle", "path": "root.pem"}}]},
        })
    );
    assert_eq!(uninject(&injected(&pod(), &settings)), pod(), "nothing of it stays");
}

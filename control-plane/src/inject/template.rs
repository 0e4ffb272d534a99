//! The containers and volumes that make a sidecar.
//!
//! In: the options of one pod. Out: Kubernetes' own types, so that no field can be misspelled. Nothing here depends on
//! what was injected before.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, ClusterTrustBundleProjection, ConfigMapVolumeSource, Container, ContainerPort,
    EmptyDirVolumeSource, EnvVar, EnvVarSource, ExecAction, HTTPGetAction, KeyToPath, Lifecycle,
    LifecycleHandler, ObjectFieldSelector, Probe, ProjectedVolumeSource, ResourceRequirements,
    SeccompProfile, SecurityContext, ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::decide::Facts;
use super::options::{Options, Quantity, Redirection, Settings, Trust};
use super::{HEALTH_PORT, INIT, SIDECAR, SIDECAR_USER, TRUST_VOLUME, VALIDATE};
use crate::ca::cluster_bundle::NAME as CLUSTER_TRUST_BUNDLE;
use crate::ca::distribute::{KEY as TRUST_KEY, NAME as TRUST_CONFIG_MAP};

/// The names of all volumes of a sidecar.
pub(super) const VOLUMES: [&str; 3] = [TOKEN, TRUST_VOLUME, STATE];
const TOKEN: &str = "tulle-token";
const STATE: &str = "tulle-state";

const TOKEN_FOLDER: &str = "/var/run/secrets/tulle.dev/token";
const TRUST_FOLDER: &str = "/var/run/secrets/tulle.dev/trust";
const STATE_FOLDER: &str = "/var/lib/tulle";

/// How long a token is good for, in seconds; the kubelet renews it at 80 % of that. Sidecars show it when they have no
/// certificate that they could renew.
const TOKEN_SECONDS: i64 = 12 * 3600;

/// The program in the image.
const PROGRAM: &str = "/tulle-sidecar";

/// The container that redirects, or that shows that traffic is redirected. It runs before all others.
pub(super) fn redirecting(facts: &Facts, options: &Options, settings: &Settings) -> Container {
    let (name, command) = match settings.redirection {
        Redirection::Init => (INIT, "init"),
        Redirection::Cni => (VALIDATE, "validate"),
    };
    let mut args = vec![command.to_owned()];
    if settings.redirection == Redirection::Init {
        for (flag, value) in [
            ("--skip-inbound-ports", &options.skip_inbound_ports),
            ("--skip-outbound-ports", &options.skip_outbound_ports),
            ("--skip-subnets", &options.skip_subnets),
        ] {
            args.extend(value.iter().map(|value| format!("{flag}={value}")));
        }
    }
    let context = match settings.redirection {
        // Whom the image's file gave NET_ADMIN could not be started without it: the sidecar, from the same file. So it is
        // root that changes the rules, with nothing else that root may do.
        Redirection::Init => SecurityContext {
            capabilities: Some(Capabilities {
                add: Some(vec!["NET_ADMIN".into()]),
                drop: Some(vec!["ALL".into()]),
            }),
            run_as_user: Some(0),
            run_as_group: Some(0),
            run_as_non_root: Some(false),
            ..restricted()
        },
        Redirection::Cni => restricted(),
    };
    Container {
        name: name.into(),
        image: Some(options.image.clone()),
        image_pull_policy: settings.pull_policy.clone(),
        command: Some(vec![PROGRAM.into()]),
        args: Some(args),
        security_context: Some(context),
        resources: Some(resources(facts, options)),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        ..Container::default()
    }
}

/// The sidecar itself.
pub(super) fn sidecar(facts: &Facts, options: &Options, probes: &[Value], settings: &Settings) -> Container {
    let mount = |name: &str, folder: &str, read_only| VolumeMount {
        name: name.into(),
        mount_path: folder.into(),
        read_only,
        ..VolumeMount::default()
    };
    Container {
        name: SIDECAR.into(),
        image: Some(options.image.clone()),
        image_pull_policy: settings.pull_policy.clone(),
        command: Some(vec![PROGRAM.into()]),
        args: Some(arguments(options, probes, settings)),
        env: Some(vec![
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("POD_SERVICE_ACCOUNT", "spec.serviceAccountName"),
            field("POD_IPS", "status.podIPs"),
        ]),
        ports: Some(vec![ContainerPort {
            name: Some("tulle-health".into()),
            container_port: i32::from(HEALTH_PORT),
            ..ContainerPort::default()
        }]),
        // With this a kubelet starts the application once the sidecar is ready.
        startup_probe: options.native.then(|| Probe {
            period_seconds: Some(1),
            failure_threshold: Some(120),
            ..health("/ready")
        }),
        liveness_probe: Some(Probe {
            period_seconds: Some(10),
            failure_threshold: Some(3),
            ..health("/live")
        }),
        readiness_probe: Some(Probe {
            period_seconds: Some(2),
            failure_threshold: Some(3),
            ..health("/ready")
        }),
        // And without such probes, with this: containers are started one after the other.
        lifecycle: (!options.native).then(|| Lifecycle {
            post_start: Some(LifecycleHandler {
                exec: Some(ExecAction { command: Some(vec![PROGRAM.into(), "await".into()]) }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        restart_policy: options.native.then(|| "Always".into()),
        security_context: Some(restricted()),
        resources: Some(resources(facts, options)),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some(vec![
            mount(TOKEN, TOKEN_FOLDER, Some(true)),
            mount(TRUST_VOLUME, TRUST_FOLDER, Some(true)),
            mount(STATE, STATE_FOLDER, None),
        ]),
        ..Container::default()
    }
}

/// The volumes of the sidecar.
pub(super) fn volumes(settings: &Settings) -> Vec<Volume> {
    let token = ServiceAccountTokenProjection {
        audience: Some(settings.audience.clone()),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: "token".into(),
    };
    let token = VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() };
    vec![
        projected(TOKEN, token),
        trust(settings),
        Volume { name: STATE.into(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() },
    ]
}

/// The roots, in a file of one name wherever they come from.
fn trust(settings: &Settings) -> Volume {
    match settings.trust {
        Trust::ConfigMap => Volume {
            name: TRUST_VOLUME.into(),
            config_map: Some(ConfigMapVolumeSource {
                name: TRUST_CONFIG_MAP.into(),
                items: Some(vec![KeyToPath { key: TRUST_KEY.into(), path: TRUST_KEY.into(), mode: None }]),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        Trust::ClusterTrustBundle => {
            let bundle = ClusterTrustBundleProjection {
                name: Some(CLUSTER_TRUST_BUNDLE.into()),
                path: TRUST_KEY.into(),
                ..ClusterTrustBundleProjection::default()
            };
            let source =
                VolumeProjection { cluster_trust_bundle: Some(bundle), ..VolumeProjection::default() };
            projected(TRUST_VOLUME, source)
        }
    }
}

fn projected(name: &str, source: VolumeProjection) -> Volume {
    Volume {
        name: name.into(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![source]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// What the sidecar is told. All of it is in flags: variables of the environment may come from Services of the
/// namespace.
fn arguments(options: &Options, probes: &[Value], settings: &Settings) -> Vec<String> {
    let mut args = vec![
        "run".to_owned(),
        "--capture".into(),
        format!("--control-plane={}", settings.control_plane),
        format!("--trust-domain={}", settings.trust_domain),
        format!("--cluster-domain={}", settings.cluster_domain),
        format!("--root-file={TRUST_FOLDER}/{TRUST_KEY}"),
        format!("--token-file={TOKEN_FOLDER}/token"),
        format!("--state-dir={STATE_FOLDER}"),
        "--namespace=$(POD_NAMESPACE)".into(),
        "--service-account=$(POD_SERVICE_ACCOUNT)".into(),
        "--name=$(POD_NAME)".into(),
        "--address=$(POD_IPS)".into(),
        format!("--log-level={}", options.log_level),
    ];
    for (flag, value) in [
        ("--log-format", &options.log_format),
        ("--outbound-policy", &options.outbound_policy),
        ("--grace-period", &options.grace_period),
        ("--lame-duck", &options.lame_duck),
        ("--otlp", &settings.otlp),
    ] {
        args.extend(value.iter().map(|value| format!("{flag}={value}")));
    }
    if !probes.is_empty() {
        // A dollar sign would begin a variable.
        let probes = Value::from(probes).to_string().replace('$', "$$");
        args.push(format!("--probes={probes}"));
    }
    args
}

/// What every Pod Security level allows.
fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".into()]) }),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        run_as_user: Some(SIDECAR_USER),
        run_as_group: Some(SIDECAR_USER),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
        ..SecurityContext::default()
    }
}

fn field(name: &str, path: &str) -> EnvVar {
    let source = ObjectFieldSelector { api_version: None, field_path: path.into() };
    EnvVar {
        name: name.into(),
        value: None,
        value_from: Some(EnvVarSource { field_ref: Some(source), ..EnvVarSource::default() }),
    }
}

fn health(path: &str) -> Probe {
    let port = IntOrString::Int(i32::from(HEALTH_PORT));
    Probe {
        http_get: Some(HTTPGetAction { path: Some(path.into()), port, ..HTTPGetAction::default() }),
        ..Probe::default()
    }
}

fn resources(facts: &Facts, options: &Options) -> ResourceRequirements {
    let given = &options.resources;
    let (mut requests, mut limits) =
        (amounts(&given.cpu_request, &given.memory_request), amounts(&given.cpu_limit, &given.memory_limit));
    if is_guaranteed(facts) {
        // One container whose requests are not its limits would put the whole pod into a lower class.
        for (name, request) in requests {
            limits.entry(name).or_insert(request);
        }
        requests = limits.clone();
    }
    ResourceRequirements {
        requests: (!requests.is_empty()).then_some(requests),
        limits: (!limits.is_empty()).then_some(limits),
        claims: None,
    }
}

type Amounts = BTreeMap<String, resource::Quantity>;

fn amounts(cpu: &Option<Quantity>, memory: &Option<Quantity>) -> Amounts {
    let both = [("cpu", cpu), ("memory", memory)].into_iter();
    let given = both.filter_map(|(name, amount)| Some((name, amount.as_ref()?)));
    given.map(|(name, amount)| (name.into(), resource::Quantity(amount.as_str().into()))).collect()
}

/// Whether the pod is of the class Guaranteed without a sidecar: every container has limits of CPU and memory, and
/// requests of the same (which limits stand for where there are none).
fn is_guaranteed(facts: &Facts) -> bool {
    facts.all_containers().all(|container| {
        let resources = container.resources.as_ref();
        let limits = resources.and_then(|resources| resources.limits.as_ref());
        let requests = resources.and_then(|resources| resources.requests.as_ref());
        ["cpu", "memory"].iter().all(|name| {
            let limit = limits.and_then(|limits| limits.get(*name));
            let request = requests.and_then(|requests| requests.get(*name));
            limit.is_some() && (request.is_none() || request == limit)
        })
    })
}

//! `tulle install` and `tulle uninstall`: the manifests of the control plane, for kubectl.
//!
//! In: the files of `manifests/`, which are a part of this program, and what the user sets. Out: YAML. Without settings it is
//! what `kubectl kustomize manifests/base` makes, and with `--ha` what `manifests/ha` makes: those folders are the truth. The
//! chart in `manifests/helm` knows the same settings by the same names.

use std::str::FromStr;

use clap::Args;
use serde_json::{Value, json};
use tulle_control_plane::inject::Quantity;
use tulle_control_plane::kinds;
use tulle_mesh::identity::TrustDomain;

use crate::output::{Failure, write};

/// The files of `manifests/base`, in its order.
const BASE: [&str; 4] = [
    include_str!("../../../manifests/base/namespace.yaml"),
    include_str!("../../../manifests/base/rbac.yaml"),
    include_str!("../../../manifests/base/control-plane.yaml"),
    include_str!("../../../manifests/base/webhooks.yaml"),
];
/// The name of the control plane's Deployment.
const CONTROL_PLANE: &str = tulle_control_plane::inject::webhook::SERVICE;
/// What `manifests/ha` lays over it.
const HA: &str = include_str!("../../../manifests/ha/control-plane.yaml");

/// The files of `manifests/cni`, in its order.
const CNI: [&str; 3] = [
    include_str!("../../../manifests/cni/namespace.yaml"),
    include_str!("../../../manifests/cni/plugin.yaml"),
    include_str!("../../../manifests/cni/repair.yaml"),
];

/// What is installed.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Three replicas on different nodes, and pods that wait rather than start without a sidecar.
    #[arg(long)]
    ha: bool,
    /// A setting, as trustDomain=example.com; may be given several times. The keys are below.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<Setting>,
}

/// What is taken down.
#[derive(Debug, Args)]
pub struct UninstallArgs {
    /// The CustomResourceDefinitions too, and with them all policies in the cluster.
    #[arg(long)]
    crds: bool,
    /// The CNI plugin too. Pods that it redirects must be gone before.
    #[arg(long)]
    cni: bool,
}

/// Examples of `tulle install`, for `--help`.
pub const INSTALL_EXAMPLES: &str = "\
Examples:
  tulle install | kubectl apply -f -
  tulle install --ha --set trustDomain=example.com | kubectl apply -f -

Keys of --set:
  ha               true or false: the same as --ha
  createNamespace  false where the namespace tulle-system is there already
  image            the control plane's image
  sidecarImage     the sidecars' image
  cniImage         the CNI plugin's image
  imagePullPolicy  of all of them: Always, IfNotPresent or Never
  replicas         of the control plane
  cpuRequest, memoryRequest, memoryLimit
                   of the control plane
  trustDomain      the first part of identities; it can't be changed later
  clusterDomain    the end of Services' names
  failurePolicy    Ignore or Fail: what becomes of new pods while no control plane answers
  redirection      init or cni: who redirects pods' traffic; with cni its plugin is installed as well
  trustBundle      config-map or cluster-trust-bundle: where pods find the roots that they trust
  sidecarLogLevel, sidecarOtlp
                   what sidecars log, and where their spans go";

/// Examples of `tulle uninstall`, for `--help`.
pub const UNINSTALL_EXAMPLES: &str = "\
Examples:
  tulle uninstall | kubectl delete -f -

Pods keep their sidecars until they are made anew. The trust bundles that the control plane put into namespaces go with
  kubectl delete configmaps -A --field-selector metadata.name=tulle-trust-bundle
and with `kubectl delete clustertrustbundle tulle-trust-bundle`, where the API server serves that kind";

/// Prints the manifests.
///
/// # Errors
/// When standard output can't be written.
pub fn install(args: &InstallArgs) -> Result<(), Failure> {
    let mut objects = manifests()?;
    let given = |wanted: &Key| args.settings.iter().rev().find(|setting| setting.key == *wanted);
    let is = |key: &Key, value: &str| given(key).is_some_and(|setting| setting.value == value);
    if given(&Key::Ha).map_or(args.ha, |setting| setting.value == "true") {
        make_available(&mut objects)?;
    }
    if is(&Key::CreateNamespace, "false") {
        objects.retain(|object| object["kind"] != "Namespace");
    }
    if is(&Key::Flag("--redirection"), "cni") {
        objects.extend(read(&CNI)?);
    }
    for setting in &args.settings {
        setting.apply(&mut objects);
    }
    print(&objects)
}

/// Prints what to delete: the last made goes first.
///
/// # Errors
/// When standard output can't be written.
pub fn uninstall(args: &UninstallArgs) -> Result<(), Failure> {
    let mut objects = if args.crds { crds()? } else { Vec::new() };
    objects.extend(read(&BASE)?);
    if args.cni {
        objects.extend(read(&CNI)?);
    }
    objects.reverse();
    print(&objects)
}

/// All that is installed without settings.
///
/// # Errors
/// When this program's own manifests can't be read.
pub(super) fn manifests() -> Result<Vec<Value>, Failure> {
    let mut objects = crds()?;
    objects.extend(read(&BASE)?);
    Ok(objects)
}

fn crds() -> Result<Vec<Value>, Failure> {
    let files = kinds::crds().map_err(Failure::new)?;
    files.iter().map(|(_, yaml)| serde_saphyr::from_str(yaml).map_err(Failure::new)).collect()
}

fn read(files: &[&str]) -> Result<Vec<Value>, Failure> {
    let mut objects = Vec::new();
    for file in files {
        objects.extend(serde_saphyr::from_multiple::<Value>(file).map_err(Failure::new)?);
    }
    Ok(objects)
}

fn print(objects: &[Value]) -> Result<(), Failure> {
    let mut text = String::new();
    for object in objects {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(object).map_err(Failure::new)?);
    }
    write(&text)
}

/// As the overlay `manifests/ha` does.
fn make_available(objects: &mut [Value]) -> Result<(), Failure> {
    let overlay: Value = serde_saphyr::from_str(HA).map_err(Failure::new)?;
    if let Some(deployment) = find(objects, "Deployment", CONTROL_PLANE) {
        merge(deployment, &overlay);
    }
    fail_policy(objects, "Fail");
    Ok(())
}

fn merge(into: &mut Value, overlay: &Value) {
    match (into, overlay) {
        (Value::Object(into), Value::Object(overlay)) => {
            for (key, value) in overlay {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, overlay) => *into = overlay.clone(),
    }
}

fn fail_policy(objects: &mut [Value], policy: &str) {
    let configuration = find(objects, "MutatingWebhookConfiguration", "tulle");
    let webhooks = configuration.and_then(|object| object["webhooks"].as_array_mut());
    for webhook in webhooks.into_iter().flatten() {
        webhook["failurePolicy"] = policy.into();
    }
}

fn find<'a>(objects: &'a mut [Value], kind: &str, name: &str) -> Option<&'a mut Value> {
    objects.iter_mut().find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
}

/// The container of a workload that has one.
fn container<'a>(objects: &'a mut [Value], kind: &str, name: &str) -> Option<&'a mut Value> {
    find(objects, kind, name).map(|object| &mut object["spec"]["template"]["spec"]["containers"][0])
}

/// One setting, of which the value is known to be of its form.
#[derive(Clone, Debug)]
struct Setting {
    key: Key,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Ha,
    CreateNamespace,
    Image,
    CniImage,
    PullPolicy,
    Replicas,
    CpuRequest,
    MemoryRequest,
    MemoryLimit,
    FailurePolicy,
    /// A flag of the control plane.
    Flag(&'static str),
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
        let one_of = |known: &[&str]| {
            let found = known.contains(&value);
            found.then_some(()).ok_or_else(|| format!("{key} is one of {}", known.join(", ")))
        };
        let key = match key {
            "ha" | "createNamespace" => {
                one_of(&["true", "false"])?;
                if key == "ha" { Key::Ha } else { Key::CreateNamespace }
            }
            "image" => Key::Image,
            "cniImage" => Key::CniImage,
            "sidecarImage" => Key::Flag("--sidecar-image"),
            "imagePullPolicy" => {
                one_of(&["Always", "IfNotPresent", "Never"])?;
                Key::PullPolicy
            }
            "replicas" => {
                let number = value.parse::<u16>().ok().filter(|number| *number > 0);
                number.ok_or("replicas is a number from 1 to 65535")?;
                Key::Replicas
            }
            "cpuRequest" | "memoryRequest" | "memoryLimit" => {
                value.parse::<Quantity>().map_err(|expected| format!("{key} is {expected}"))?;
                match key {
                    "cpuRequest" => Key::CpuRequest,
                    "memoryRequest" => Key::MemoryRequest,
                    _ => Key::MemoryLimit,
                }
            }
            "trustDomain" => {
                value.parse::<TrustDomain>().map_err(|error| error.to_string())?;
                Key::Flag("--trust-domain")
            }
            "clusterDomain" => Key::Flag("--cluster-domain"),
            "failurePolicy" => {
                one_of(&["Ignore", "Fail"])?;
                Key::FailurePolicy
            }
            "redirection" => {
                one_of(&["init", "cni"])?;
                Key::Flag("--redirection")
            }
            "trustBundle" => {
                one_of(&["config-map", "cluster-trust-bundle"])?;
                Key::Flag("--trust-bundle")
            }
            "sidecarLogLevel" => Key::Flag("--sidecar-log-level"),
            "sidecarOtlp" => Key::Flag("--sidecar-otlp"),
            _ => return Err("there is no such key; `tulle install --help` lists them".into()),
        };
        if value.is_empty() || value.contains(char::is_whitespace) {
            return Err("write a value without spaces".into());
        }
        Ok(Self { key, value: value.into() })
    }
}

impl Setting {
    fn apply(&self, objects: &mut [Value]) {
        if let Key::FailurePolicy = self.key {
            return fail_policy(objects, &self.value);
        }
        let text = Value::from(self.value.as_str());
        // Of two programs there are several containers.
        let of_plugin = [("DaemonSet", "tulle-cni")];
        let of_control_plane = [("Deployment", CONTROL_PLANE), ("Deployment", "tulle-cni-repair")];
        let (field, images) = match self.key {
            Key::Image => ("image", &of_control_plane[..]),
            Key::CniImage => ("image", &of_plugin[..]),
            Key::PullPolicy => {
                ("imagePullPolicy", &[of_plugin[0], of_control_plane[0], of_control_plane[1]][..])
            }
            _ => ("", &[][..]),
        };
        for (kind, name) in images {
            if let Some(container) = container(objects, kind, name) {
                container[field] = text.clone();
            }
        }
        if let (Key::Replicas, Some(deployment)) = (self.key, find(objects, "Deployment", CONTROL_PLANE)) {
            deployment["spec"]["replicas"] = json!(self.value.parse::<u16>().unwrap_or(1));
        }
        let Some(container) = container(objects, "Deployment", CONTROL_PLANE) else { return };
        match self.key {
            Key::PullPolicy => flag(container, "--sidecar-pull-policy", &self.value),
            Key::CpuRequest => container["resources"]["requests"]["cpu"] = text,
            Key::MemoryRequest => container["resources"]["requests"]["memory"] = text,
            Key::MemoryLimit => container["resources"]["limits"]["memory"] = text,
            Key::Flag(name) => flag(container, name, &self.value),
            Key::Ha
            | Key::CreateNamespace
            | Key::Image
            | Key::CniImage
            | Key::Replicas
            | Key::FailurePolicy => {}
        }
    }
}

/// Gives the control plane a flag, in the place of the one that it has.
fn flag(container: &mut Value, name: &str, value: &str) {
    let Some(args) = container["args"].as_array_mut() else { return };
    let flag = format!("{name}={value}");
    let same = |arg: &&mut Value| {
        arg.as_str().and_then(|arg| arg.strip_prefix(name)).is_some_and(|rest| rest.starts_with('='))
    };
    match args.iter_mut().find(same) {
        Some(arg) => *arg = flag.into(),
        None => args.push(flag.into()),
    }
}

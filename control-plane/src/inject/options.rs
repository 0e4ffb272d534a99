//! What can be set: the mesh's settings, and the annotations by which a pod or its namespace differs.
//!
//! In: annotations. Out: [`Options`] of one pod, checked: a value that Kubernetes or the sidecar would refuse is refused
//! here, where the reason can be told, instead of in a pod that does not start.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use super::Namespace;
use super::decide::{Facts, Skip};

/// How sidecars are in this mesh.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The namespace of the control plane.
    pub namespace: String,
    /// The image of the sidecar, which also redirects.
    pub image: String,
    /// When it is pulled; Kubernetes' default where it is not given.
    pub pull_policy: Option<String>,
    /// The control plane's host and port.
    pub control_plane: String,
    /// The first part of identities.
    pub trust_domain: String,
    /// The end of Services' names.
    pub cluster_domain: String,
    /// For whom the sidecar's token is.
    pub audience: String,
    /// Who redirects traffic.
    pub redirection: Redirection,
    /// Where pods find the roots that they trust.
    pub trust: Trust,
    /// The sidecar is an init container that is restarted (Kubernetes 1.29), not a container beside the others.
    pub native: bool,
    /// What a sidecar may use.
    pub resources: Resources,
    /// What sidecars log.
    pub log_level: String,
    /// Where spans go; nowhere where it is not given.
    pub otlp: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: "tulle-system".into(),
            image: concat!("tulle-sidecar:", env!("CARGO_PKG_VERSION")).into(),
            pull_policy: None,
            control_plane: "tulle-control-plane.tulle-system.svc:15012".into(),
            trust_domain: "cluster.local".into(),
            cluster_domain: "cluster.local".into(),
            audience: crate::ca::tokens::AUDIENCE.into(),
            redirection: Redirection::Init,
            trust: Trust::ConfigMap,
            native: true,
            resources: Resources::default(),
            log_level: "info".into(),
            otlp: None,
        }
    }
}

/// Who redirects a pod's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirection {
    /// An init container, which needs NET_ADMIN.
    Init,
    /// The CNI plugin; an init container without privileges shows that it did.
    Cni,
}

/// Where pods find the roots that they trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// In a ConfigMap of their namespace.
    ConfigMap,
    /// In a ClusterTrustBundle: the API server and the kubelets have to know these.
    ClusterTrustBundle,
}

/// What a sidecar may use; what is not given is not said.
#[derive(Clone, Debug, PartialEq)]
pub struct Resources {
    /// CPU that is kept for it.
    pub cpu_request: Option<Quantity>,
    /// CPU at most; also decides the number of its threads.
    pub cpu_limit: Option<Quantity>,
    /// Memory that is kept for it.
    pub memory_request: Option<Quantity>,
    /// Memory at most.
    pub memory_limit: Option<Quantity>,
}

impl Default for Resources {
    fn default() -> Self {
        let quantity = |text: &str| Some(text.parse().expect("a literal of the right form"));
        Self {
            cpu_request: quantity("50m"),
            cpu_limit: None,
            memory_request: quantity("32Mi"),
            memory_limit: quantity("256Mi"),
        }
    }
}

/// An amount, as Kubernetes writes it: `100m`, `64Mi`, `1.5`.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantity {
    text: String,
    amount: f64,
}

impl Quantity {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Quantity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || "an amount, as 100m (of a CPU) or 64Mi (of memory)".to_owned();
        let digits = text.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let (number, suffix) = text.split_at(digits);
        let factor = match suffix {
            "m" => 1e-3,
            "" => 1.0,
            "k" => 1e3,
            "M" => 1e6,
            "G" => 1e9,
            "Ki" => 1024.0,
            "Mi" => 1_048_576.0,
            "Gi" => 1_073_741_824.0,
            _ => return Err(error()),
        };
        let amount = number.parse::<f64>().map_err(|_| error())? * factor;
        if number.starts_with('.') || number.ends_with('.') || amount <= 0.0 {
            return Err(error());
        }
        Ok(Self { text: text.into(), amount })
    }
}

/// How one pod's sidecar is.
pub(super) struct Options {
    pub(super) native: bool,
    pub(super) image: String,
    pub(super) log_level: String,
    pub(super) log_format: Option<String>,
    pub(super) resources: Resources,
    pub(super) skip_inbound_ports: Option<String>,
    pub(super) skip_outbound_ports: Option<String>,
    pub(super) skip_subnets: Option<String>,
    pub(super) outbound_policy: Option<String>,
    pub(super) grace_period: Option<String>,
    pub(super) lame_duck: Option<String>,
    /// The sidecar asks the application what the kubelet was to ask.
    pub(super) rewrite_probes: bool,
    /// The annotations of the namespace that the pod takes over, so that it shows what holds for it.
    pub(super) inherited: BTreeMap<&'static str, String>,
}

/// The annotations that set something, in the order of the documentation.
pub(super) const ANNOTATIONS: [&str; 15] = [
    IMAGE,
    NATIVE,
    CPU_REQUEST,
    CPU_LIMIT,
    MEMORY_REQUEST,
    MEMORY_LIMIT,
    SKIP_INBOUND,
    SKIP_OUTBOUND,
    SKIP_SUBNETS,
    OUTBOUND_POLICY,
    GRACE_PERIOD,
    LAME_DUCK,
    REWRITE_PROBES,
    LOG_LEVEL,
    LOG_FORMAT,
];
const IMAGE: &str = "tulle.dev/image";
const NATIVE: &str = "tulle.dev/native-sidecar";
const CPU_REQUEST: &str = "tulle.dev/cpu-request";
const CPU_LIMIT: &str = "tulle.dev/cpu-limit";
const MEMORY_REQUEST: &str = "tulle.dev/memory-request";
const MEMORY_LIMIT: &str = "tulle.dev/memory-limit";
/// Ports of a pod that redirection leaves alone.
pub(crate) const SKIP_INBOUND: &str = "tulle.dev/skip-inbound-ports";
const SKIP_OUTBOUND: &str = "tulle.dev/skip-outbound-ports";
const SKIP_SUBNETS: &str = "tulle.dev/skip-subnets";
const OUTBOUND_POLICY: &str = "tulle.dev/outbound-policy";
const GRACE_PERIOD: &str = "tulle.dev/shutdown-grace-period";
const LAME_DUCK: &str = "tulle.dev/lame-duck";
const REWRITE_PROBES: &str = "tulle.dev/rewrite-probes";
const LOG_LEVEL: &str = "tulle.dev/log-level";
const LOG_FORMAT: &str = "tulle.dev/log-format";

impl Options {
    pub(super) fn of(facts: &Facts, namespace: &Namespace, settings: &Settings) -> Result<Self, Skip> {
        let mut inherited = BTreeMap::new();
        for name in ANNOTATIONS {
            if let (None, Some(value)) = (facts.annotations.get(name), namespace.annotations.get(name)) {
                inherited.insert(name, value.clone());
            }
        }
        let given = Given { own: &facts.annotations, inherited: &inherited };
        let resources = Resources {
            cpu_request: given.quantity(CPU_REQUEST, &settings.resources.cpu_request)?,
            cpu_limit: given.quantity(CPU_LIMIT, &settings.resources.cpu_limit)?,
            memory_request: given.quantity(MEMORY_REQUEST, &settings.resources.memory_request)?,
            memory_limit: given.quantity(MEMORY_LIMIT, &settings.resources.memory_limit)?,
        };
        let native = given.parsed(NATIVE, "true or false", truth)?;
        let grace_period = given.parsed(GRACE_PERIOD, "a length of time, as 30s", duration)?;
        let longest = grace_period.unwrap_or(SIDECAR_GRACE);
        let lame_duck = format!("a length of time, as 20s, of no more than the grace period, {longest:?}");
        let lame_duck =
            given.parsed(LAME_DUCK, lame_duck, |text| duration(text).filter(|time| *time <= longest))?;
        let native = native.unwrap_or(settings.native);
        Ok(Self {
            native,
            image: given.parsed(IMAGE, "the name of an image", word)?.unwrap_or(settings.image.clone()),
            log_level: given
                .parsed(LOG_LEVEL, "what to log, as info or info,tulle_sidecar::xds=debug", log_level)?
                .unwrap_or(settings.log_level.clone()),
            log_format: given.parsed(LOG_FORMAT, "text or json", one_of(&["text", "json"]))?,
            resources: given.in_order(resources, &settings.resources)?,
            skip_inbound_ports: given.parsed(SKIP_INBOUND, PORTS, ports)?,
            skip_outbound_ports: given.parsed(SKIP_OUTBOUND, PORTS, ports)?,
            skip_subnets: given.parsed(SKIP_SUBNETS, "networks, as 10.1.0.0/16,fd00:1::/64", subnets)?,
            outbound_policy: given.parsed(
                OUTBOUND_POLICY,
                "AllowAny or RegistryOnly",
                one_of(&["AllowAny", "RegistryOnly"]),
            )?,
            grace_period: grace_period.map(span),
            // A native sidecar is told to end once nothing is left that new connections could go to.
            lame_duck: lame_duck.or(native.then_some(Duration::ZERO)).map(span),
            rewrite_probes: given.parsed(REWRITE_PROBES, "true or false", truth)?.unwrap_or(true),
            inherited,
        })
    }
}

/// The grace period that a sidecar has by itself.
const SIDECAR_GRACE: Duration = Duration::from_secs(30);

const PORTS: &str = "ports, as 22,8000-8010";

/// The annotations that hold for a pod.
struct Given<'a> {
    own: &'a BTreeMap<String, String>,
    inherited: &'a BTreeMap<&'static str, String>,
}

impl Given<'_> {
    fn value(&self, name: &'static str) -> Option<&str> {
        self.own.get(name).or(self.inherited.get(name)).map(|text| text.trim())
    }

    fn parsed<T>(
        &self,
        name: &'static str,
        expected: impl fmt::Display,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Skip> {
        let Some(text) = self.value(name) else { return Ok(None) };
        let value = parse(text);
        value.map(Some).ok_or_else(|| self.wrong(name, expected))
    }

    fn quantity(&self, name: &'static str, default: &Option<Quantity>) -> Result<Option<Quantity>, Skip> {
        let Some(text) = self.value(name) else { return Ok(default.clone()) };
        text.parse().map(Some).map_err(|expected: String| self.wrong(name, expected))
    }

    /// A request above its limit would keep the pod from being made. Where one of the two is only the mesh's default, it
    /// yields to the other.
    fn in_order(&self, mut resources: Resources, defaults: &Resources) -> Result<Resources, Skip> {
        let above = |request: &Option<Quantity>, limit: &Option<Quantity>| matches!((request, limit), (Some(request), Some(limit)) if request.amount > limit.amount);
        for (request, limit, request_name, limit_name, default) in [
            (
                &mut resources.cpu_request,
                &mut resources.cpu_limit,
                CPU_REQUEST,
                CPU_LIMIT,
                &defaults.cpu_limit,
            ),
            (
                &mut resources.memory_request,
                &mut resources.memory_limit,
                MEMORY_REQUEST,
                MEMORY_LIMIT,
                &defaults.memory_limit,
            ),
        ] {
            if !above(request, limit) {
                continue;
            }
            match (self.value(request_name), self.value(limit_name)) {
                (Some(_), Some(_)) => {
                    let limit = limit.as_ref().map_or("", Quantity::as_str);
                    return Err(self.wrong(request_name, format!("no more than the limit, {limit}")));
                }
                (Some(_), None) => *limit = request.clone().filter(|_| default.is_some()),
                _ => *request = limit.clone(),
            }
        }
        Ok(resources)
    }

    fn wrong(&self, name: &'static str, expected: impl fmt::Display) -> Skip {
        let value = self.value(name).unwrap_or_default().into();
        Skip::Annotation { name, value, expected: expected.to_string() }
    }
}

/// Something that is written without spaces and can't be taken for a flag.
fn word(text: &str) -> Option<String> {
    let plain =
        !text.is_empty() && !text.starts_with('-') && text.bytes().all(|byte| byte.is_ascii_graphic());
    plain.then(|| text.into())
}

fn one_of(known: &'static [&'static str]) -> impl Fn(&str) -> Option<String> {
    move |text| known.contains(&text).then(|| text.into())
}

fn ports(text: &str) -> Option<String> {
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
    let range = |entry: &str| {
        let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
        matches!((port(first), port(last)), (Some(first), Some(last)) if first <= last)
    };
    let mut entries = text.split(',').filter(|entry| !entry.trim().is_empty());
    entries.all(range).then(|| text.into())
}

fn subnets(text: &str) -> Option<String> {
    let network = |text: &str| text.parse::<IpNet>().is_ok() || text.parse::<std::net::IpAddr>().is_ok();
    let mut entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries.all(network).then(|| text.into())
}

fn truth(text: &str) -> Option<bool> {
    text.parse().ok()
}

fn duration(text: &str) -> Option<Duration> {
    Some(text.parse::<crate::kinds::Duration>().ok()?.get())
}

/// In the sidecar's own form, which knows one unit.
fn span(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// A level, or levels of modules.
fn log_level(text: &str) -> Option<String> {
    let level = |word: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&word);
    let module = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-:".contains(&byte))
    };
    let mut directives =
        text.split(',').map(|directive| directive.split_once('=').unwrap_or(("tulle", directive)));
    directives.all(|(name, word)| module(name) && level(word)).then(|| text.into())
}

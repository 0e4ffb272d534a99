//! The cluster itself: its API server, its version, its nodes, and the kinds that the mesh is configured with.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::Value;
use tulle_control_plane::kinds;
use tulle_control_plane::kubernetes::Cluster;
use tulle_control_plane::source::Objects;
use tulle_control_plane::source::kubernetes::{GATEWAY_RELEASE, has_all};

use super::report::Report;
use crate::output::Failure;

/// The first version whose API server judges Tulle's kinds by their own rules (CEL).
const OLDEST: Version = Version(1, 25);
/// The first version that has native sidecars by default.
const NATIVE: Version = Version(1, 29);

/// The Gateway API's group.
const GATEWAY: &str = "gateway.networking.k8s.io";

/// Whether the API server answers, and can be lived with; without it nothing else can be checked.
pub(super) async fn check(cluster: &Cluster, report: &mut Report) -> bool {
    report.section("kubernetes");
    let what = "the API server answers";
    let told = match cluster.client.apiserver_version().await {
        Ok(told) => told,
        Err(error) => {
            let mut reason = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(inner) = cause {
                let text = inner.to_string();
                if !reason.contains(&text) {
                    reason = format!("{reason}: {text}");
                }
                cause = inner.source();
            }
            report.fail(what, reason, "check --kubeconfig and --context; `kubectl version` asks the same");
            return false;
        }
    };
    report.pass(format!("{what}: {}", told.git_version));
    match Version::parse(&told.git_version) {
        Some(version) if version >= OLDEST => report.pass(format!("its version is {OLDEST} or later")),
        _ => report.fail(
            format!("its version is {OLDEST} or later"),
            format!("it is {}", told.git_version),
            "upgrade the cluster: policies could not be judged when they are applied",
        ),
    }
    sidecars(cluster, &told.git_version, report).await;
    true
}

/// Whether containers that start before others and end after them can be had, on all nodes.
async fn sidecars(cluster: &Cluster, server: &str, report: &mut Report) {
    let what = format!("native sidecars: the API server and all nodes are {NATIVE} or later");
    let hint = "annotate namespaces with tulle.dev/native-sidecar: \"false\"; their pods then need Tulle's order of start";
    if Version::parse(server).is_none_or(|version| version < NATIVE) {
        return report.warn(what, format!("the API server is {server}"), hint);
    }
    let nodes = match Api::<Node>::all(cluster.client.clone()).list(&ListParams::default()).await {
        Ok(nodes) => nodes,
        Err(error) => return report.untold(what, &error),
    };
    let old: Vec<String> = nodes
        .iter()
        .filter_map(|node| {
            let kubelet = &node.status.as_ref()?.node_info.as_ref()?.kubelet_version;
            let version = Version::parse(kubelet)?;
            (version < NATIVE).then(|| format!("{} is {kubelet}", node.name_any()))
        })
        .collect();
    if old.is_empty() { report.pass(what) } else { report.warn(what, old.join(", "), hint) }
}

/// Whether the kinds are there: Tulle's own in this version, and the Gateway API's.
///
/// # Errors
/// When this program's own definitions can't be read.
pub(super) async fn kinds(cluster: &Cluster, report: &mut Report) -> Result<(), Failure> {
    report.section("kinds");
    let (mut missing, mut other) = (Vec::new(), Vec::new());
    let what = "Tulle's kinds are installed, in this version";
    let Some(definitions) = definitions(cluster, report, what).await? else { return Ok(()) };
    for (name, definition) in definitions {
        match definition {
            None => missing.push(name),
            Some(Definition { established: false, .. }) => missing.push(format!("{name} (not established)")),
            Some(Definition { same: false, .. }) => other.push(name),
            Some(_) => {}
        }
    }
    if !missing.is_empty() {
        report.fail(
            what,
            format!("there is no {}", missing.join(", ")),
            "tulle install | kubectl apply -f -",
        );
    }
    if !other.is_empty() {
        let reason = format!(
            "of another version: {}; fields that they lack are lost when objects are applied",
            other.join(", ")
        );
        report.warn(what, reason, "tulle install | kubectl apply -f -, with the version that is to run");
    }
    if missing.is_empty() && other.is_empty() {
        report.pass(what);
    }
    gateway(cluster, report).await;
    Ok(())
}

/// A definition of one of Tulle's kinds, as the cluster has it.
pub(super) struct Definition {
    /// Whether the API server serves it.
    established: bool,
    /// Whether it is the one of this version.
    pub(super) same: bool,
}

/// The definitions of Tulle's kinds by their names, each where the cluster has it; `None` where that can't be told, which
/// the report says of `what`.
///
/// # Errors
/// When this program's own definitions can't be read.
pub(super) async fn definitions(
    cluster: &Cluster,
    report: &mut Report,
    what: &str,
) -> Result<Option<Vec<(String, Option<Definition>)>>, Failure> {
    let api = Api::<CustomResourceDefinition>::all(cluster.client.clone());
    let mut definitions = Vec::new();
    for (name, wanted) in wanted()? {
        let found = match api.get_opt(&name).await {
            Ok(found) => found,
            Err(error) => {
                report.untold(what, &error);
                return Ok(None);
            }
        };
        let compare = |found: CustomResourceDefinition| -> Result<Definition, Failure> {
            let spec = serde_json::to_value(&found.spec).map_err(Failure::new)?;
            Ok(Definition { established: is_established(&found), same: holds(&spec, &wanted) })
        };
        definitions.push((name, found.map(compare).transpose()?));
    }
    Ok(Some(definitions))
}

/// The names of Tulle's definitions, and what they say.
///
/// # Errors
/// When this program's own definitions can't be read.
fn wanted() -> Result<Vec<(String, Value)>, Failure> {
    let files = kinds::crds().map_err(Failure::new)?;
    let read = files.iter().map(|(_, yaml)| {
        let mut object: Value = serde_saphyr::from_str(yaml).map_err(Failure::new)?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        Ok((name, object["spec"].take()))
    });
    read.collect()
}

/// Whether one value has all that another has; of lists, the same entries.
fn holds(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| found.get(key).is_some_and(|found| holds(found, wanted)))
        }
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len()
                && found.iter().zip(wanted).all(|(found, wanted)| holds(found, wanted))
        }
        // 1 and 1.0 are one number to an API server.
        (Value::Number(found), Value::Number(wanted)) => found.as_f64() == wanted.as_f64(),
        (found, wanted) => found == wanted,
    }
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let status = definition.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    conditions.into_iter().any(|condition| condition.type_ == "Established" && condition.status == "True")
}

/// Which of the Gateway API's kinds are there, in versions that are read.
pub(super) async fn gateway(cluster: &Cluster, report: &mut Report) {
    let what = "the Gateway API is installed";
    let definitions = Api::<CustomResourceDefinition>::all(cluster.client.clone());
    let (mut there, mut absent, mut unread) = (Vec::new(), Vec::new(), Vec::new());
    let (mut version, mut channel, mut older) = (String::new(), String::new(), Vec::new());
    for (kind, versions) in Objects::kinds(GATEWAY) {
        let name = format!("{}s.{GATEWAY}", kind.to_ascii_lowercase());
        let found = match definitions.get_opt(&name).await {
            Ok(found) => found,
            Err(error) => return report.untold(what, &error),
        };
        let Some(found) = found else {
            absent.push(kind);
            continue;
        };
        let annotation = |name: &str| {
            found.annotations().get(&format!("gateway.networking.k8s.io/{name}")).cloned().unwrap_or_default()
        };
        (version, channel) = (annotation("bundle-version"), annotation("channel"));
        if !has_all(&version) {
            older.push(format!(
                "{kind} ({})",
                if version.is_empty() { "of no known release" } else { &version }
            ));
        }
        let served = found.spec.versions.iter().filter(|version| version.served);
        match served.into_iter().any(|version| versions.contains(&version.name.as_str())) {
            true => there.push(kind),
            false => unread.push(kind),
        }
    }
    let hint = "https://gateway-api.sigs.k8s.io/guides/ has the command; it is taken up without a restart";
    if there.is_empty() && unread.is_empty() {
        return report.warn(what, "it is not: Services are in the mesh, but nothing routes", hint);
    }
    let what = format!("{what}: {} {version}, {channel} channel", there.join(", "));
    if !unread.is_empty() {
        let reason = format!("no version that Tulle reads is served of {}", unread.join(", "));
        return report.warn(what, reason, "install a later version of the Gateway API");
    }
    if !older.is_empty() {
        let (major, minor) = GATEWAY_RELEASE;
        let reason = format!(
            "older than v{major}.{minor}: {}; fields that they lack are lost when objects are applied",
            older.join(", ")
        );
        return report.warn(what, reason, "install a later version of the Gateway API");
    }
    let without = if absent.is_empty() { String::new() } else { format!("; without {}", absent.join(", ")) };
    report.pass(what + &without);
}

/// The version of a server or a node: its first two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim_start_matches('v').split('.');
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?;
        let end = minor.find(|end: char| !end.is_ascii_digit()).unwrap_or(minor.len());
        Some(Self(major, minor[..end].parse().ok()?))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_are_read_as_providers_write_them() {
        for (text, version) in [
            ("v1.34.0", Version(1, 34)),
            ("v1.29.8-gke.1031000", Version(1, 29)),
            ("v1.30+", Version(1, 30)),
            ("1.9", Version(1, 9)),
        ] {
            assert_eq!(Version::parse(text), Some(version), "{text}");
        }
        assert!(Version::parse("latest").is_none() && Version::parse("v1").is_none());
        assert!(Version(1, 9) < OLDEST && Version(1, 28) < NATIVE);
    }

    #[test]
    fn what_a_server_adds_makes_no_difference_and_what_it_lacks_does() {
        let wanted = json!({ "a": [{ "b": 1 }], "c": "d" });
        assert!(holds(&json!({ "a": [{ "b": 1.0, "default": true }], "c": "d", "e": [] }), &wanted));
        for found in
            [json!({ "a": [{ "b": 2 }], "c": "d" }), json!({ "a": [], "c": "d" }), json!({ "c": "d" })]
        {
            assert!(!holds(&found, &wanted), "{found}");
        }
    }
}

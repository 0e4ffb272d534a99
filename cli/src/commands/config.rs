//! `tulle config`: what a sidecar believes.
//!
//! The sidecar's own JSON is read loosely: what a column needs and is not there leaves the cell empty, so that a newer or
//! older sidecar can still be looked into. `-o json` and `-o yaml` give what it said, unchanged.

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::cluster::ClusterArgs;
use super::forward::Forward;
use super::remote;
use crate::output::table::Table;
use crate::output::{Failure, OutputArgs, print, style};

/// The port of a sidecar's admin interface, on its pod's loopback.
const ADMIN_PORT: u16 = 15000;
/// The admin interface of a sidecar on this machine.
const DEFAULT: &str = "http://127.0.0.1:15000";

/// Whom to ask, and for what.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// What to show.
    #[arg(value_enum, default_value_t)]
    section: Section,
    /// The pod whose sidecar is asked, in the cluster.
    #[arg(value_name = "POD")]
    pod: Option<String>,
    /// The pod's namespace.
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    namespace: String,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The admin interface of a sidecar outside of a cluster; without a pod http://127.0.0.1:15000.
    #[arg(long, value_name = "URL", env = "TULLE_SIDECAR")]
    sidecar: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// A part of what a sidecar believes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// What happens to connections, by destination or by port.
    Listeners,
    /// The rules of HTTP listeners, in the order in which they are tried.
    Routes,
    /// Where requests may go.
    Clusters,
    /// The addresses behind clusters, and how they do.
    Endpoints,
    /// The certificate and the roots that are trusted.
    Certs,
    /// All of it.
    #[default]
    All,
}

/// Examples, for `--help`.
pub const EXAMPLES: &str = "\
Examples:
  tulle config all web-1 -n shop          the sidecar of a pod
  tulle config endpoints web-1 -n shop
  tulle config                            the sidecar on this machine
  tulle config routes --sidecar http://127.0.0.1:15000 -o yaml";

/// Shows a part of what a sidecar believes, or all.
///
/// # Errors
/// When the sidecar does not answer.
pub async fn run(args: &ConfigArgs) -> Result<(), Failure> {
    let forward = match &args.pod {
        Some(pod) => Some(Forward::open(&args.cluster, &args.namespace, pod, ADMIN_PORT).await?),
        None => None,
    };
    let sidecar = match (&forward, &args.sidecar) {
        (Some(forward), _) => &forward.url,
        (None, Some(sidecar)) => sidecar,
        (None, None) => DEFAULT,
    };
    let certs = matches!(args.section, Section::Certs | Section::All);
    let mut answer = match args.section {
        Section::Certs => Map::new(),
        section => section.part(remote::get(sidecar, "/config", &[]).await?),
    };
    if certs {
        answer.insert("certs".into(), remote::get(sidecar, "/certs", &[]).await?);
    }
    print(args.output.output, &Value::Object(answer), |answer| tables(args.section, answer))
}

impl Section {
    /// What of a dump belongs to the section.
    fn part(self, mut dump: Map<String, Value>) -> Map<String, Value> {
        let fields: &[&str] = match self {
            Self::All => return dump,
            Self::Listeners | Self::Routes => &["outbound", "inbound", "absent"],
            Self::Clusters | Self::Endpoints => &["clusters"],
            Self::Certs => &[],
        };
        dump.retain(|field, _| fields.contains(&field.as_str()));
        dump
    }
}

fn tables(section: Section, answer: &Value) -> String {
    type Make = fn(&Value) -> Table;
    let all: [(Section, &str, Make); 5] = [
        (Section::Listeners, "Listeners", listeners),
        (Section::Routes, "Routes", routes),
        (Section::Clusters, "Clusters", clusters),
        (Section::Endpoints, "Endpoints", endpoints),
        (Section::Certs, "Certificates", certificates),
    ];
    if section != Section::All {
        let made = all.iter().filter(|(of, _, _)| *of == section);
        return made.map(|(_, _, make)| make(answer).render()).collect();
    }
    let mut text = stream(answer);
    for (_, title, make) in all {
        text.push_str(&format!("\n{}\n{}", style::title(title), make(answer).render()));
    }
    text
}

/// A line on the way to the control plane.
fn stream(answer: &Value) -> String {
    let stream = &answer["sync"]["stream"];
    let address = word(&stream["address"]);
    let state = match stream["open"].as_bool() {
        Some(true) => style::good("connected"),
        _ => format!("{} {}", style::bad("not connected"), word(&stream["lastError"])),
    };
    format!("Snapshot {} from {address}, {}\n", word(&answer["generation"]), state.trim_end())
}

fn listeners(answer: &Value) -> Table {
    let mut table = Table::new(&["LISTENER", "DIRECTION", "CHAINS", "ALIASES", "IDLE"]);
    for (direction, listener) in both(answer) {
        let chains = list(&listener["listener"]["chains"]).iter().map(|chain| word(&chain["name"]));
        table.row([
            word(&listener["name"]),
            direction.into(),
            chains.collect::<Vec<_>>().join(" "),
            list(&listener["aliases"]).iter().map(word).collect::<Vec<_>>().join(" "),
            format!("{}s", word(&listener["idleSeconds"])),
        ]);
    }
    for name in list(&answer["absent"]) {
        table.row([word(name), "outbound".into(), style::doubtful("does not exist")]);
    }
    table
}

fn routes(answer: &Value) -> Table {
    let mut table = Table::new(&["LISTENER", "ROUTE", "MATCHES", "ACTION"]);
    for (_, listener) in both(answer) {
        let chains = listener["routes"].as_object();
        for route in chains.into_iter().flat_map(Map::values).flat_map(list) {
            table.row([
                word(&listener["name"]),
                word(&route["name"]),
                conditions(&route["matches"]),
                action(&route["action"]),
            ]);
        }
    }
    table
}

fn clusters(answer: &Value) -> Table {
    let mut table = Table::new(&["CLUSTER", "DISCOVERY", "LOAD BALANCER", "TLS", "ENDPOINTS"]);
    for cluster in list(&answer["clusters"]) {
        let model = &cluster["cluster"];
        table.row([
            word(&cluster["name"]),
            variant(&model["discovery"]).0,
            variant(&model["loadBalancer"]).0,
            if model["tls"].is_null() { "plaintext".into() } else { "mTLS".into() },
            list(&cluster["endpoints"]).len().to_string(),
        ]);
    }
    table
}

fn endpoints(answer: &Value) -> Table {
    let titles = ["CLUSTER", "ADDRESS", "WORKLOAD", "HEALTH", "IN FLIGHT", "LATENCY", "IDENTITY"];
    let mut table = Table::new(&titles);
    for cluster in list(&answer["clusters"]) {
        for endpoint in list(&cluster["endpoints"]) {
            let health = match (endpoint["ejected"].as_bool(), endpoint["health"].as_str()) {
                (Some(true), _) => style::bad("ejected"),
                (_, Some("healthy")) => style::good("healthy"),
                _ => style::doubtful(word(&endpoint["health"])),
            };
            let identity = match (endpoint["identity"].as_str(), endpoint["tls"].as_bool()) {
                (Some(identity), _) => identity.to_owned(),
                (None, Some(true)) => "any of the mesh".into(),
                (None, _) => style::doubtful("plaintext"),
            };
            let latency = endpoint["latencyMs"].as_f64().map(|latency| format!("{latency:.2} ms"));
            table.row([
                word(&cluster["name"]),
                word(&endpoint["address"]),
                word(&endpoint["workload"]),
                health,
                word(&endpoint["inFlight"]),
                latency.unwrap_or_default(),
                identity,
            ]);
        }
    }
    table
}

fn certificates(answer: &Value) -> Table {
    let mut table = Table::new(&["CERTIFICATE", "NAME", "VALID UNTIL", "LEFT", "SERIAL"]);
    let certs = &answer["certs"];
    let leaf = Some(&certs["leaf"]).filter(|leaf| !leaf.is_null());
    let roots = list(&certs["roots"]).iter().map(|root| ("root", root));
    for (kind, certificate) in leaf.map(|leaf| ("own", leaf)).into_iter().chain(roots) {
        let uris: Vec<String> = list(&certificate["uris"]).iter().map(word).collect();
        let name = if uris.is_empty() { word(&certificate["subject"]) } else { uris.join(" ") };
        let left = match certificate["expiresIn"].as_i64() {
            Some(seconds @ 1..) => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
            Some(_) => style::bad("expired"),
            None => String::new(),
        };
        table.row([kind.into(), name, word(&certificate["notAfter"]), left, word(&certificate["serial"])]);
    }
    table
}

/// All listeners with their direction.
fn both(answer: &Value) -> impl Iterator<Item = (&'static str, &Value)> {
    let of = |field: &'static str| list(&answer[field]).iter().map(move |listener| (field, listener));
    of("outbound").chain(of("inbound"))
}

/// The conditions of a route: its path, and what else it asks for.
fn conditions(matches: &Value) -> String {
    let (kind, value) = variant(&matches["path"]);
    let mut text = format!("{kind} {}", value.map(word).unwrap_or_default());
    let mut also = |field: &str, noun: &str| {
        for condition in list(&matches[field]) {
            text.push_str(&format!(", {noun} {}", word(&condition["name"])));
        }
    };
    also("headers", "header");
    also("query", "query");
    if matches["grpc"] == Value::Bool(true) {
        text.push_str(", gRPC");
    }
    text
}

fn action(action: &Value) -> String {
    let (kind, value) = variant(action);
    let backends = value.map(|value| list(&value["backends"])).unwrap_or_default();
    let shares =
        backends.iter().map(|backend| format!("{} {}", word(&backend["weight"]), word(&backend["cluster"])));
    match kind.as_str() {
        "forward" => shares.collect::<Vec<_>>().join(", "),
        _ => format!("{kind} {}", value.map(|value| word(&value["status"])).unwrap_or_default()),
    }
}

/// The name of a variant, and what it holds: `"roundRobin"`, or `{"eds": ...}`.
fn variant(value: &Value) -> (String, Option<&Value>) {
    match value.as_object().and_then(|object| object.iter().next()) {
        Some((name, inner)) => (name.clone(), Some(inner)),
        None => (word(value), None),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn each_part_has_its_table() {
        let answer = json!({
            "generation": 7,
            "sync": { "stream": { "address": "127.0.0.1:15012", "open": true } },
            "outbound": [{
                "name": "stock.shop.svc.cluster.local:80",
                "aliases": ["stock.shop:80"],
                "idleSeconds": 3,
                "listener": { "chains": [{ "name": "http" }] },
                "routes": { "http": [{
                    "name": "split",
                    "matches": { "path": { "prefix": "/" }, "headers": [{ "name": "x-user" }], "grpc": true },
                    "action": { "forward": { "backends": [
                        { "cluster": "v1", "weight": 90 }, { "cluster": "v2", "weight": 10 },
                    ] } },
                }] },
            }],
            "inbound": [],
            "absent": ["nothing.shop:80"],
            "clusters": [{
                "name": "v1",
                "cluster": { "discovery": { "eds": "v1" }, "loadBalancer": "peakEwma", "tls": {} },
                "endpoints": [
                    { "address": "10.0.0.1:80", "workload": "shop/v1", "identity": "spiffe://td/a", "tls": true,
                      "health": "healthy", "inFlight": 2, "latencyMs": 1.234, "ejected": true },
                    { "address": "10.0.0.2:80", "tls": false, "health": "draining", "ejected": false },
                ],
            }],
            "certs": {
                "leaf": { "subject": "", "uris": ["spiffe://td/me"], "serial": "0a", "notAfter": "2026-11-23", "expiresIn": 7260 },
                "roots": [{ "subject": "CN=root", "uris": [], "serial": "0b", "notAfter": "2036", "expiresIn": -1 }],
            },
        });
        let all = plain(&tables(Section::All, &answer));
        for part in [
            "Snapshot 7 from 127.0.0.1:15012, connected\n",
            "stock.shop.svc.cluster.local:80   outbound    http             stock.shop:80   3s\n",
            "nothing.shop:80                   outbound    does not exist\n",
            "split   prefix /, header x-user, gRPC   90 v1, 10 v2\n",
            "v1        eds         peakEwma        mTLS   2\n",
            "v1        10.0.0.1:80   shop/v1    ejected    2           1.23 ms   spiffe://td/a\n",
            "draining                         plaintext\n",
            "own           spiffe://td/me   2026-11-23    2h1m      0a\n",
            "root          CN=root          2036          expired   0b\n",
        ] {
            assert!(all.contains(part), "{part:?} is missing:\n{all}");
        }
        let only = plain(&tables(Section::Clusters, &answer));
        assert!(only.starts_with("CLUSTER") && !only.contains("10.0.0.1"), "{only}");
    }

    #[test]
    fn a_sidecar_without_control_plane_says_so() {
        let answer = json!({ "generation": 0, "sync": { "stream": {
            "address": "a:1", "open": false, "lastError": "connection refused" } } });
        let text = plain(&tables(Section::All, &answer));
        assert!(text.starts_with("Snapshot 0 from a:1, not connected connection refused\n"), "{text}");
    }
}

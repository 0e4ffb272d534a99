//! A pod's probes, asked by the sidecar instead of the kubelet.
//!
//! In: a pod as JSON. Out: its probes of HTTP, TCP and gRPC as questions to the sidecar, which asks the application what
//! the pod declares; and back. A kubelet can't ask by itself: it has no certificate for strict mTLS, it is nobody whom
//! authorization could allow, and redirection accepts its connections whether the application lives or not. Probes that
//! run a command in the container, or that go to another host or to the sidecar, stay as they are. When, how often and how
//! patiently a kubelet asks is never changed.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Map, Value, json};

use super::HEALTH_PORT;

/// What was done to a pod's probes.
#[derive(Default)]
pub(super) struct Rewritten {
    /// The questions, as the sidecar reads them in `--probes`.
    pub(super) questions: Vec<Value>,
    /// What the probes were, by the questions' names.
    pub(super) originals: Map<String, Value>,
    /// What their owner should know.
    pub(super) warnings: Vec<String>,
}

/// The fields of a container that are probes, and what they are called in names of questions.
const PROBES: [(&str, &str); 3] =
    [("startupProbe", "startup"), ("livenessProbe", "liveness"), ("readinessProbe", "readiness")];
/// The ways to ask that a sidecar knows.
const HANDLERS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];
/// What a kubelet can't send as it is, and sends so.
const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Turns the probes of a pod without sidecar to one.
pub(super) fn rewrite(pod: &mut Value) -> Rewritten {
    let mut done = Rewritten::default();
    for container in containers(pod) {
        let container_name = container["name"].as_str().unwrap_or_default().to_owned();
        let ports = container["ports"].clone();
        for (field, kind) in PROBES {
            let Some(probe) = container.get_mut(field).and_then(Value::as_object_mut) else { continue };
            let name = format!("{container_name}/{kind}");
            let Some((handler, asked)) = handler(probe) else { continue };
            match question(&name, handler, &asked, probe.get("timeoutSeconds"), &ports) {
                _ if done.originals.contains_key(&name) => {}
                Ok(Some(question)) => {
                    replace(probe, handler, ("httpGet", asking(&name)));
                    done.originals.insert(name, json!({ handler: asked }));
                    done.questions.push(question);
                }
                Ok(None) => {}
                Err(fault) => done.warnings.push(format!(
                    "the {kind} probe of container {container_name} stays as it is, and fails where mTLS is strict: {fault}"
                )),
            }
        }
    }
    done
}

/// Gives a pod its probes back. What does not look as [`rewrite`] left it is someone else's, and stays.
pub(super) fn restore(pod: &mut Value, originals: &Value) {
    for container in containers(pod) {
        let container_name = container["name"].as_str().unwrap_or_default().to_owned();
        for (field, kind) in PROBES {
            let name = format!("{container_name}/{kind}");
            let original = originals[&name].as_object().and_then(|original| original.iter().next());
            let probe = container.get_mut(field).and_then(Value::as_object_mut);
            let (Some(probe), Some((handler, asked))) = (probe, original) else { continue };
            let ours = asking(&name);
            let is_ours = |now: &Value| ["path", "port"].iter().all(|part| now[part] == ours[part]);
            if HANDLERS.contains(&handler.as_str()) && probe.get("httpGet").is_some_and(is_ours) {
                replace(probe, "httpGet", (handler, asked.clone()));
            }
        }
    }
}

fn containers(pod: &mut Value) -> impl Iterator<Item = &mut Value> {
    let spec = pod.get_mut("spec").and_then(Value::as_object_mut);
    let lists = spec.into_iter().flat_map(|spec| {
        spec.iter_mut().filter(|(name, _)| ["initContainers", "containers"].contains(&name.as_str()))
    });
    lists.filter_map(|(_, list)| list.as_array_mut()).flatten().filter(|container| container.is_object())
}

/// How a probe asks, where a sidecar can ask so too.
fn handler(probe: &Map<String, Value>) -> Option<(&'static str, Value)> {
    let mut given = HANDLERS.into_iter().filter_map(|name| Some((name, probe.get(name)?.clone())));
    given.next().filter(|(_, asked)| asked.is_object())
}

/// What the kubelet asks instead.
fn asking(name: &str) -> Value {
    json!({"path": format!("/probe/{name}"), "port": HEALTH_PORT, "scheme": "HTTP"})
}

/// Puts a handler into the place of another.
fn replace(probe: &mut Map<String, Value>, old: &str, (new, asked): (&str, Value)) {
    let all = std::mem::take(probe).into_iter();
    *probe = all
        .map(|(name, value)| if name == old { (new.to_owned(), asked.clone()) } else { (name, value) })
        .collect();
}

/// The question; `None` for one that is not the sidecar's.
fn question(
    name: &str,
    handler: &str,
    asked: &Value,
    timeout: Option<&Value>,
    ports: &Value,
) -> Result<Option<Value>, String> {
    if !asked["host"].as_str().unwrap_or_default().is_empty() {
        return Ok(None);
    }
    let port = port(&asked["port"], ports)?;
    if port == HEALTH_PORT {
        return Ok(None);
    }
    let check = match handler {
        "httpGet" => ("http", http(asked, port)?),
        "tcpSocket" => ("tcp", json!({ "port": port })),
        _ => ("grpc", json!({"port": port, "service": asked["service"].as_str().unwrap_or_default()})),
    };
    let seconds = timeout.and_then(Value::as_u64).unwrap_or(1).max(1);
    Ok(Some(json!({"name": name, "timeout": format!("{seconds}s"), check.0: check.1})))
}

fn http(asked: &Value, port: u16) -> Result<Value, String> {
    let path = asked["path"].as_str().unwrap_or_default();
    let path = path.split('#').next().unwrap_or_default();
    let slash = if path.starts_with('/') { "" } else { "/" };
    let headers = asked["httpHeaders"].as_array().into_iter().flatten().map(|header| {
        let (name, value) = (header["name"].as_str()?, header["value"].as_str().unwrap_or_default());
        let can_be_sent = http::HeaderName::from_bytes(name.as_bytes()).is_ok()
            && http::HeaderValue::from_str(value).is_ok();
        can_be_sent.then(|| json!({"name": name, "value": value}))
    });
    let headers: Option<Vec<Value>> = headers.collect();
    let mut question =
        json!({"port": port, "path": format!("{slash}{}", utf8_percent_encode(path, ESCAPED))});
    match headers {
        None => return Err("it has a header that can't be sent".into()),
        Some(headers) if headers.is_empty() => {}
        Some(headers) => question["headers"] = headers.into(),
    }
    if asked["scheme"] == "HTTPS" {
        question["tls"] = true.into();
    }
    Ok(question)
}

/// The number of a port, which may be the name of one of the container's own.
fn port(port: &Value, ports: &Value) -> Result<u16, String> {
    let number = match port {
        Value::String(name) => {
            let mut named =
                ports.as_array().into_iter().flatten().filter(|port| port["name"] == name.as_str());
            match named.next() {
                Some(port) => port["containerPort"].as_u64(),
                None => name.parse().ok(),
            }
        }
        other => other.as_u64(),
    };
    let number = number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0);
    number.ok_or_else(|| format!("{port} is no port of the container"))
}

//! Probes of the application that the sidecar answers for it.
//!
//! In: the list of the file or of `--probes`. Out: [`Probe`]s whose every part can be sent as it is. A probe's header may
//! hold a credential: no message and no `Debug` shows its value.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::value::{Span, maybe_parsed};
use super::{ConfigError, Settings};

/// A question to the application, at `/probe/<name>` of the health port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Probe {
    /// Its name, as `web/readiness`.
    pub name: String,
    /// What is asked.
    pub check: Check,
    /// How long the answer may take.
    pub timeout: Duration,
}

/// What an application is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// Whether this is answered with a status from 200 to 399.
    Http(HttpCheck),
    /// Whether this port takes connections.
    Tcp(NonZeroU16),
    /// Whether `grpc.health.v1.Health` on this port says SERVING of the service; the whole server is the empty one.
    Grpc(NonZeroU16, String),
}

/// A GET request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    /// The port.
    pub port: NonZeroU16,
    /// Path and query.
    pub target: PathAndQuery,
    /// Whether over TLS, with whatever certificate the application has.
    pub tls: bool,
    /// What the request says besides, in place of the usual fields of the same names.
    pub headers: HeaderMap,
}

/// The list as a flag holds it: not shown in messages, because there may be a credential in it.
#[derive(Clone)]
pub struct ProbeList(String);

impl FromStr for ProbeList {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.into()))
    }
}

impl fmt::Debug for ProbeList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProbeList(..)")
    }
}

/// A kubelet's own.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);

/// Takes the flag's list, else the file's.
///
/// # Errors
/// When the flag's is not such a list, or a name is there twice.
pub(super) fn combine(file: Vec<Probe>, flags: &Settings) -> Result<Vec<Probe>, ConfigError> {
    let wrong = |reason, fix| ConfigError::Conflict { field: "probes", reason, fix };
    let probes = match &flags.probes {
        Some(ProbeList(text)) => serde_json::from_str::<Vec<Probe>>(text).map_err(|error| {
            // Its own words may quote a value.
            let place = format!("line {} column {}", error.line(), error.column());
            wrong(format!("--probes is no list of probes, as {place} shows"), EXAMPLE)
        })?,
        None => file,
    };
    for (index, probe) in probes.iter().enumerate() {
        if probes[..index].iter().any(|other| other.name == probe.name) {
            return Err(wrong(format!("there are two with the name {}", probe.name), "rename one of them"));
        }
    }
    Ok(probes)
}

const EXAMPLE: &str =
    r#"write, for example, [{"name": "web/readiness", "http": {"port": 8080, "path": "/ready"}}]"#;

/// A probe as it is written: one of the three checks.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    name: String,
    #[serde(default, deserialize_with = "maybe_parsed")]
    timeout: Option<Span>,
    http: Option<WrittenHttp>,
    tcp: Option<WrittenTcp>,
    grpc: Option<WrittenGrpc>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenHttp {
    port: NonZeroU16,
    #[serde(default = "root")]
    path: String,
    #[serde(default)]
    tls: bool,
    #[serde(default)]
    headers: Vec<WrittenHeader>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenHeader {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenTcp {
    port: NonZeroU16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenGrpc {
    port: NonZeroU16,
    #[serde(default)]
    service: String,
}

fn root() -> String {
    "/".into()
}

impl TryFrom<Written> for Probe {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let Written { name, timeout, http, tcp, grpc } = written;
        if !is_name(&name) {
            return Err(
                "name is not words of a-z, 0-9 and - with a / between; write, for example, web/readiness",
            );
        }
        let check = match (http, tcp, grpc) {
            (Some(http), None, None) => Check::Http(http.try_into()?),
            (None, Some(tcp), None) => Check::Tcp(tcp.port),
            (None, None, Some(grpc)) => Check::Grpc(grpc.port, grpc.service),
            _ => return Err("a probe asks in one way; write one of http, tcp and grpc"),
        };
        let timeout = timeout.map_or(DEFAULT_TIMEOUT, |Span(timeout)| timeout);
        Ok(Self { name, check, timeout })
    }
}

impl TryFrom<WrittenHttp> for HttpCheck {
    type Error = &'static str;

    fn try_from(written: WrittenHttp) -> Result<Self, Self::Error> {
        let WrittenHttp { port, path, tls, headers } = written;
        let target = path.starts_with('/').then(|| path.parse().ok()).flatten();
        let target = target.ok_or("path is not one that can be sent; write, for example, /ready?full=1")?;
        let mut fields = HeaderMap::new();
        for WrittenHeader { name, value } in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "a header's name is none")?;
            let mut value = HeaderValue::from_str(&value).map_err(|_| "a header's value can't be sent")?;
            value.set_sensitive(true);
            fields.append(name, value);
        }
        Ok(Self { port, target, tls, headers: fields })
    }
}

/// Whether a name can stand in a path as it is.
fn is_name(name: &str) -> bool {
    let word = |word: &str| {
        !word.is_empty()
            && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    name.split('/').all(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Probe>, String> {
        let flags = Settings { probes: Some(ProbeList(text.into())), ..Settings::default() };
        combine(Vec::new(), &flags).map_err(|error| error.to_string())
    }

    #[test]
    fn each_check_is_read_whole() {
        let probes = read(
            r#"[
                {"name": "web/readiness", "timeout": "250ms", "http": {"port": 8080, "path": "/a?b=%20c", "tls": true,
                 "headers": [{"name": "X-Key", "value": "hidden"}, {"name": "x-key", "value": "too"}]}},
                {"name": "db/liveness", "tcp": {"port": 5432}},
                {"name": "api/startup", "grpc": {"port": 9000, "service": "shop.Cart"}}
            ]"#,
        )
        .expect("a list");
        let Check::Http(http) = &probes[0].check else { panic!("{probes:?}") };
        assert_eq!((http.port.get(), http.target.as_str(), http.tls), (8080, "/a?b=%20c", true));
        assert_eq!(http.headers.get_all("x-key").iter().collect::<Vec<_>>(), ["hidden", "too"]);
        assert_eq!(probes[0].timeout, Duration::from_millis(250));
        assert_eq!(probes[1].check, Check::Tcp(NonZeroU16::new(5432).expect("not zero")));
        assert_eq!(probes[1].timeout, Duration::from_secs(1), "the default");
        assert!(matches!(&probes[2].check, Check::Grpc(_, service) if service == "shop.Cart"));
        let shown = format!("{probes:?} {:?}", ProbeList("hidden".into()));
        assert!(!shown.contains("hidden") && !shown.contains("too"), "{shown}");
    }

    #[test]
    fn what_can_t_be_asked_is_refused_and_never_quoted() {
        for text in [
            r#"{"name": "a", "tcp": {"port": 1}}"#,
            r#"[{"name": "a", "tcp": {"port": 0}}]"#,
            r#"[{"name": "a", "tcp": {"port": "secret"}}]"#,
            r#"[{"name": "a", "tcp": {"port": 1, "host": "secret"}}]"#,
            r#"[{"name": "a"}]"#,
            r#"[{"name": "a", "tcp": {"port": 1}, "grpc": {"port": 1}}]"#,
            r#"[{"name": "", "tcp": {"port": 1}}]"#,
            r#"[{"name": "a//b", "tcp": {"port": 1}}]"#,
            r#"[{"name": "a/../b", "tcp": {"port": 1}}]"#,
            r#"[{"name": "a", "http": {"port": 1, "path": "secret"}}]"#,
            r#"[{"name": "a", "http": {"port": 1, "path": "/secret x"}}]"#,
            r#"[{"name": "a", "http": {"port": 1, "path": "http://other/secret"}}]"#,
            r#"[{"name": "a", "http": {"port": 1, "path": "/\r\nsecret: x"}}]"#,
            r#"[{"name": "a", "http": {"port": 1, "headers": [{"name": "a", "value": "secret\r\nb: c"}]}}]"#,
            r#"[{"name": "a", "http": {"port": 1, "headers": [{"name": "a b", "value": "secret"}]}}]"#,
            r#"[{"name": "a", "tcp": {"port": 1}}, {"name": "a", "tcp": {"port": 2}}]"#,
            "secret",
        ] {
            let error = read(text).expect_err(text);
            assert!(error.starts_with("probes: ") && !error.contains("secret"), "{text}: {error}");
        }
    }
}

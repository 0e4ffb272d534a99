//! The values of settings that are more than a word: each is parsed once, from a flag, the environment or the file
//! alike, and says what would be right when it is not.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tulle_mesh::address::ServicePort;

/// A length of time: a whole number and `ms`, `s`, `m` or `h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || ValueError::new(text, "a length of time", "250ms, 30s, 5m or 1h");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().map_err(|_| error())?;
        let milliseconds = match &text[digits..] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(error()),
        };
        number.checked_mul(milliseconds).map(|ms| Self(Duration::from_millis(ms))).ok_or_else(error)
    }
}

/// An address that only this host (or pod) reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopbackAddr(SocketAddr);

impl LoopbackAddr {
    /// The address.
    pub fn get(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for LoopbackAddr {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let AnyAddr(address) = text.parse()?;
        if address.ip().is_loopback() {
            Ok(Self(address))
        } else {
            Err(ValueError::new(
                text,
                "a loopback address (others could act as this workload there)",
                "127.0.0.1:0",
            ))
        }
    }
}

/// An IP address and a port; port 0 stands for any free one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AnyAddr(pub(super) SocketAddr);

impl FromStr for AnyAddr {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let parsed = text.parse();
        parsed
            .map(Self)
            .map_err(|_| ValueError::new(text, "an IP address and a port", "127.0.0.1:0 or [::1]:0"))
    }
}

/// A server that answers DNS queries: an IP address, and a port where that is not 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct NameServer(pub SocketAddr);

impl FromStr for NameServer {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let address = text.parse().or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, 53)));
        match address {
            Ok(address) if address.port() != 0 && !address.ip().is_unspecified() => Ok(Self(address)),
            _ => Err(ValueError::new(text, "the address of a name server", "10.0.0.2 or [fd00::2]:53")),
        }
    }
}

impl TryFrom<String> for NameServer {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

/// A domain name, in lower case and without a dot at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainName(String);

impl DomainName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for DomainName {
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl FromStr for DomainName {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(valid);
        if name.len() <= 200 && name.split('.').all(label) {
            Ok(Self(name))
        } else {
            Err(ValueError::new(text, "a domain name", "cluster.local"))
        }
    }
}

/// A local port that stands for a service: `<loopback address>=<service>:<port>` as a flag.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalPort {
    /// Where the application connects to.
    #[serde(deserialize_with = "loopback")]
    pub listen: SocketAddr,
    /// Which service that is.
    #[serde(deserialize_with = "service")]
    pub service: ServicePort,
}

impl FromStr for LocalPort {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (listen, service) = text.split_once('=').ok_or_else(|| {
            ValueError::new(text, "a local address and a service", "127.0.0.1:9001=cart.shop:80")
        })?;
        Ok(Self { listen: listen.parse::<LoopbackAddr>()?.0, service: parse_service(service)? })
    }
}

/// A port on which peers reach the workload, and the application behind it: `<address>=<address>` as a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeshPort {
    /// What peers dial: an address of the workload, never a wildcard, because the listener's name holds it.
    #[serde(deserialize_with = "mesh_address")]
    pub listen: SocketAddr,
    /// Where the application listens.
    #[serde(deserialize_with = "app_address")]
    pub app: SocketAddr,
}

impl FromStr for MeshPort {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (listen, app) = text.split_once('=').ok_or_else(|| {
            ValueError::new(text, "a mesh address and the application's", "10.0.0.7:8080=127.0.0.1:8080")
        })?;
        Ok(Self { listen: listen.parse::<MeshAddr>()?.0, app: app.parse::<AppAddr>()?.0 })
    }
}

/// An address of the workload that peers can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnAddress(pub IpAddr);

impl FromStr for OwnAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let reachable = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast();
        let address = text.parse().ok().map(|ip: IpAddr| ip.to_canonical()).filter(reachable);
        address
            .map(Self)
            .ok_or_else(|| ValueError::new(text, "an IP address of this workload", "10.0.0.7 or fd00::7"))
    }
}

impl<'de> Deserialize<'de> for OwnAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

struct MeshAddr(SocketAddr);

impl FromStr for MeshAddr {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let AnyAddr(address) = text.parse()?;
        if address.ip().is_unspecified() {
            return Err(ValueError::new(text, "one address of this workload", "10.0.0.7:8080"));
        }
        Ok(Self(address))
    }
}

struct AppAddr(SocketAddr);

impl FromStr for AppAddr {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let AnyAddr(address) = text.parse()?;
        if address.port() == 0 || address.ip().is_unspecified() {
            return Err(ValueError::new(text, "an address to connect to", "127.0.0.1:8080"));
        }
        Ok(Self(address))
    }
}

/// The control plane's `<host>:<port>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlAddress {
    host: String,
    port: u16,
}

impl ControlAddress {
    /// The host: a name or an IP address, the latter without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for ControlAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || ValueError::new(text, "a host and a port", "tulle-control-plane.tulle-system:15012");
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: address.port() });
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        match port.parse() {
            Ok(port) if port != 0 && !host.is_empty() && host.bytes().all(valid) => {
                Ok(Self { host: host.into(), port })
            }
            _ => Err(error()),
        }
    }
}

/// An `http://` or `https://` URL without a path: a gRPC endpoint.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint(http::Uri);

impl Endpoint {
    /// The URL.
    pub fn uri(&self) -> &http::Uri {
        &self.0
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for Endpoint {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || ValueError::new(text, "a URL of a gRPC endpoint", "http://127.0.0.1:4317");
        let uri: http::Uri = text.parse().map_err(|_| error())?;
        let authority = uri.authority().ok_or_else(error)?;
        let known = matches!(uri.scheme_str(), Some("http" | "https"));
        if known
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none()
            && !authority.as_str().contains('@')
        {
            Ok(Self(uri))
        } else {
            Err(error())
        }
    }
}

/// What is logged: a level, or levels by module, as `info,tulle_sidecar::xds=debug`.
#[derive(Clone, Debug, PartialEq)]
pub struct LogLevel {
    text: String,
    targets: Targets,
}

impl LogLevel {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The same for `tracing`.
    pub(crate) fn targets(&self) -> &Targets {
        &self.targets
    }
}

impl Default for LogLevel {
    fn default() -> Self {
        Self { text: "info".into(), targets: Targets::new().with_default(LevelFilter::INFO) }
    }
}

impl FromStr for LogLevel {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let error = || ValueError::new(text, "what to log", "info or info,tulle_sidecar::xds=debug");
        let mut targets = Targets::new();
        let mut empty = true;
        for directive in text.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
            targets = logged(directive, targets).ok_or_else(error)?;
            empty = false;
        }
        if empty { Err(error()) } else { Ok(Self { text: text.into(), targets }) }
    }
}

/// Adds one directive: a level, or a module and its level. A lone word that is no level would be the name of a module;
/// it is refused, because it would silence all the others.
fn logged(directive: &str, targets: Targets) -> Option<Targets> {
    let level = |word: &str| word.parse::<LevelFilter>().ok().filter(|_| !word.is_empty());
    let Some((module, word)) = directive.split_once('=') else {
        return Some(targets.with_default(level(directive)?));
    };
    let named = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '-' | ':');
    if module.is_empty() || !module.chars().all(named) {
        return None;
    }
    Some(targets.with_target(module, level(word)?))
}

/// A value that is not of its form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueError {
    text: String,
    expected: &'static str,
    example: &'static str,
}

impl ValueError {
    pub(crate) fn new(text: &str, expected: &'static str, example: &'static str) -> Self {
        Self { text: text.into(), expected, example }
    }
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not {}; write, for example, {}", self.text, self.expected, self.example)
    }
}

impl std::error::Error for ValueError {}

fn parse_service(text: &str) -> Result<ServicePort, ValueError> {
    let error = || ValueError::new(text, "a service and its port", "cart.shop:80");
    let service: ServicePort = text.to_ascii_lowercase().parse().map_err(|_| error())?;
    if service.port == 0 { Err(error()) } else { Ok(service) }
}

/// Parses a text of the file.
pub(super) fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Text::deserialize(deserializer)?.0.parse().map_err(serde::de::Error::custom)
}

/// As [`parsed`], for a field that may be missing.
pub(super) fn maybe_parsed<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let text = Option::<Text>::deserialize(deserializer)?;
    text.map(|text| text.0.parse().map_err(serde::de::Error::custom)).transpose()
}

/// A text; a number without quotes is one too, of which the parser says better what it lacks.
#[derive(Deserialize)]
#[serde(try_from = "serde_json::Value")]
struct Text(String);

impl TryFrom<serde_json::Value> for Text {
    type Error = &'static str;

    fn try_from(value: serde_json::Value) -> Result<Self, Self::Error> {
        match value {
            serde_json::Value::String(text) => Ok(Self(text)),
            serde_json::Value::Number(number) => Ok(Self(number.to_string())),
            _ => Err("a text is expected"),
        }
    }
}

fn loopback<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    parsed::<D, LoopbackAddr>(deserializer).map(LoopbackAddr::get)
}

fn mesh_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    parsed::<D, MeshAddr>(deserializer).map(|address| address.0)
}

fn app_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    parsed::<D, AppAddr>(deserializer).map(|address| address.0)
}

fn service<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ServicePort, D::Error> {
    let text = Text::deserialize(deserializer)?;
    parse_service(&text.0).map_err(serde::de::Error::custom)
}

//! A call of the runtime: its environment and its standard input, checked.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::failure::{Code, Failure};

/// The versions of the specification that are spoken, oldest first.
pub(super) const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The longest configuration: annotations are at most 256 KiB, each byte of which may be escaped in six.
const MAX_CONFIGURATION: u64 = 2 << 20;

/// What the runtime wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            _ => return None,
        })
    }

    /// The version that brought it, by its place among [`VERSIONS`].
    fn since(self) -> usize {
        match self {
            Self::Add | Self::Del | Self::Version => 0,
            Self::Check => 1,
            Self::Gc | Self::Status => 3,
        }
    }

    /// Whether it is about one container.
    fn is_of_container(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

/// A checked call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) verb: Verb,
    /// The version that it is made in.
    pub(super) version: String,
    /// The pod's network namespace; DEL may come after it has gone.
    pub(super) netns: Option<PathBuf>,
    pub(super) configuration: Map<String, Value>,
}

impl Call {
    /// Reads a call. An error comes with the version in which to say so.
    pub(super) fn read(
        variable: impl Fn(&str) -> Option<OsString>,
        input: impl Read,
    ) -> Result<Self, (String, Failure)> {
        let latest = VERSIONS[VERSIONS.len() - 1];
        let verb = verb(&variable).map_err(|failure| (latest.to_owned(), failure))?;
        let configuration = configuration(input).map_err(|failure| (latest.to_owned(), failure))?;
        let version = version(verb, &configuration).map_err(|failure| (latest.to_owned(), failure))?;
        let netns = match container(verb, &variable) {
            Ok(netns) => netns,
            Err(failure) => return Err((version, failure)),
        };
        Ok(Self { verb, version, netns, configuration })
    }
}

fn verb(variable: &impl Fn(&str) -> Option<OsString>) -> Result<Verb, Failure> {
    let said = variable("CNI_COMMAND").unwrap_or_default();
    said.to_str().and_then(Verb::parse).ok_or_else(|| {
        let wanted = "ADD, DEL, CHECK, GC, STATUS or VERSION";
        wrong("CNI_COMMAND", &format!("{} is not {wanted}", said.to_string_lossy()))
    })
}

fn configuration(input: impl Read) -> Result<Map<String, Value>, Failure> {
    let mut text = Vec::new();
    let read = input.take(MAX_CONFIGURATION + 1).read_to_end(&mut text);
    read.map_err(|error| Failure::new(Code::Io, "the configuration can't be read", error))?;
    if text.len() as u64 > MAX_CONFIGURATION {
        let why = format!("it is longer than {MAX_CONFIGURATION} bytes");
        return Err(Failure::new(Code::InvalidConfiguration, "the configuration is too long", why));
    }
    serde_json::from_slice(&text)
        .map_err(|error| Failure::new(Code::NotJson, "the configuration is not a JSON object", error))
}

fn version(verb: Verb, configuration: &Map<String, Value>) -> Result<String, Failure> {
    // A configuration without a version is of the first, 0.1.0.
    let version = configuration.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
    if verb == Verb::Version {
        // The runtime asks because it does not know.
        let spoken = VERSIONS.contains(&version).then_some(version);
        return Ok(spoken.unwrap_or(VERSIONS[VERSIONS.len() - 1]).to_owned());
    }
    match VERSIONS.iter().position(|spoken| *spoken == version) {
        Some(place) if place >= verb.since() => Ok(version.to_owned()),
        found => {
            let spoken = VERSIONS[verb.since()..].join(", ");
            let why = match found {
                Some(_) => format!("cniVersion {version} has no such command; those that have it: {spoken}"),
                None => format!("cniVersion {version} is not spoken; those that are: {spoken}"),
            };
            Err(Failure::new(Code::IncompatibleVersion, "incompatible CNI version", why))
        }
    }
}

fn container(verb: Verb, variable: &impl Fn(&str) -> Option<OsString>) -> Result<Option<PathBuf>, Failure> {
    if !verb.is_of_container() {
        return Ok(None);
    }
    let text = |name: &str| variable(name).unwrap_or_default().to_string_lossy().into_owned();
    let id = text("CNI_CONTAINERID");
    let mut bytes = id.bytes();
    let starts = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !starts || !bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte)) {
        return Err(wrong("CNI_CONTAINERID", "it must be letters, digits, '_', '.' and '-'"));
    }
    let interface = text("CNI_IFNAME");
    // The kernel's own rule for names of interfaces.
    let odd = interface.chars().any(|c| c == '/' || c == ':' || c.is_whitespace());
    if odd || matches!(interface.as_str(), "" | "." | "..") || interface.len() > 15 {
        return Err(wrong("CNI_IFNAME", "it must be the name of an interface, of 15 bytes at most"));
    }
    let netns = variable("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from);
    if netns.is_none() && verb != Verb::Del {
        return Err(wrong("CNI_NETNS", "it must be the path of the pod's network namespace"));
    }
    Ok(netns)
}

fn wrong(variable: &str, why: &str) -> Failure {
    Failure::new(Code::InvalidEnvironment, format!("invalid environment variable {variable}"), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "a-1_b.c"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/a"),
    ];

    /// The call, with one variable changed; or the code of the failure.
    fn call(change: (&str, &str), input: &str) -> Result<Call, Code> {
        let variable = |name: &str| {
            let changed = (change.0 == name).then_some(change.1);
            let good = || GOOD.iter().find(|(good, _)| *good == name).map(|(_, value)| *value);
            changed.or_else(good).map(OsString::from)
        };
        Call::read(variable, input.as_bytes()).map_err(|(_, failure)| failure.code)
    }

    #[test]
    fn a_good_call_is_read() {
        for version in VERSIONS {
            let call = call(("", ""), &format!(r#"{{"cniVersion":"{version}"}}"#)).expect(version);
            assert_eq!((call.verb, call.version.as_str()), (Verb::Add, version));
            assert_eq!(call.netns, Some("/run/netns/a".into()));
        }
    }

    #[test]
    fn a_bad_environment_is_refused() {
        let bad = [
            ("CNI_COMMAND", ""),
            ("CNI_COMMAND", "add"),
            ("CNI_CONTAINERID", ""),
            ("CNI_CONTAINERID", "../a"),
            ("CNI_CONTAINERID", "-a"),
            ("CNI_IFNAME", ""),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "sixteen-bytes-it"),
            ("CNI_NETNS", ""),
        ];
        for change in bad {
            let code = call(change, r#"{"cniVersion":"1.0.0"}"#).expect_err(change.1);
            assert_eq!(code, Code::InvalidEnvironment, "{change:?}");
        }
    }

    #[test]
    fn each_version_has_its_commands() {
        let places = [("ADD", 0), ("DEL", 0), ("CHECK", 1), ("GC", 3), ("STATUS", 3)];
        for (verb, since) in places {
            for (place, version) in VERSIONS.iter().enumerate() {
                let input = format!(r#"{{"cniVersion":"{version}"}}"#);
                let code = call(("CNI_COMMAND", verb), &input).err();
                let expected = (place < since).then_some(Code::IncompatibleVersion);
                assert_eq!(code, expected, "{verb} {version}");
            }
        }
        for old in [r#"{"cniVersion":"0.2.0"}"#, r#"{"cniVersion":7}"#, "{}"] {
            assert_eq!(call(("", ""), old).err(), Some(Code::IncompatibleVersion));
            assert_eq!(call(("CNI_COMMAND", "VERSION"), old).expect("any").version, "1.1.0");
        }
    }

    #[test]
    fn del_does_without_a_namespace() {
        let variable = |name: &str| match name {
            "CNI_COMMAND" => Some("DEL".into()),
            "CNI_NETNS" => None,
            _ => Some("a".into()),
        };
        let call = Call::read(variable, r#"{"cniVersion":"0.3.1"}"#.as_bytes());
        assert_eq!(call.expect("it may be gone").netns, None);
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        for bad in ["", "{", "[]", "null", "\u{0}", r#"{"cniVersion":"1.0.0"} x"#] {
            assert_eq!(call(("", ""), bad).err(), Some(Code::NotJson), "{bad:?}");
        }
        let deep = format!("{}{}", r#"{"a":"#.repeat(100_000), "1");
        assert_eq!(call(("", ""), &deep).err(), Some(Code::NotJson));
        let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(3 << 20));
        assert_eq!(call(("", ""), &long).err(), Some(Code::InvalidConfiguration));
    }
}

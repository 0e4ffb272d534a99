//! The YAML file, as it is written: every field may be missing, none may be unknown.

use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tulle_mesh::identity::TrustDomain;

use super::probe::Probe;
use super::value::{
    AnyAddr, ControlAddress, DomainName, Endpoint, LocalPort, LoopbackAddr, MeshPort, NameServer, OwnAddress,
    Span, maybe_parsed,
};
use super::{ConfigError, LogFormat, OutboundPolicy};

/// Reads a file.
///
/// # Errors
/// When it can't be read, is not YAML, or has a field that is unknown or not of its form.
pub(super) fn read(path: &Path) -> Result<File, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
    parse(path, &text)
}

pub(super) fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    let mut field = String::from(".");
    let parsed = serde_saphyr::with_deserializer_from_str(text, |deserializer| {
        // `Option`: a file that holds nothing but comments is as good as none.
        serde_path_to_error::deserialize::<_, Option<File>>(deserializer).map_err(|error| {
            field = error.path().to_string();
            error.into_inner()
        })
    });
    parsed.map(Option::unwrap_or_default).map_err(|error| {
        let location = error.location();
        ConfigError::Parse {
            path: path.to_owned(),
            line: location.map_or(0, |at| at.line()),
            column: location.map_or(0, |at| at.column()),
            field,
            reason: reason(&error),
        }
    })
}

/// The error's first line without its position, which the message has in front.
fn reason(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let first = text.lines().next().unwrap_or_default();
    let end = first.rfind(" at line ").unwrap_or(first.len());
    first[..end].to_owned()
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) workload: Workload,
    #[serde(deserialize_with = "maybe_parsed")]
    pub(super) trust_domain: Option<TrustDomain>,
    pub(super) control_plane: ControlPlane,
    pub(super) identity: Option<Identity>,
    pub(super) outbound: Outbound,
    pub(super) inbound: Vec<MeshPort>,
    pub(super) capture: Option<Capture>,
    pub(super) dns: Option<Dns>,
    #[serde(deserialize_with = "maybe_parsed")]
    pub(super) admin: Option<LoopbackAddr>,
    #[serde(deserialize_with = "maybe_parsed")]
    pub(super) health: Option<AnyAddr>,
    pub(super) probes: Vec<Probe>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) workers: Option<NonZeroU16>,
    pub(super) otlp: Option<Otlp>,
    pub(super) drain: Drain,
    pub(super) log: Log,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Workload {
    pub(super) namespace: Option<String>,
    pub(super) service_account: Option<String>,
    pub(super) name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ControlPlane {
    #[serde(deserialize_with = "maybe_parsed")]
    pub(super) address: Option<ControlAddress>,
    pub(super) server_name: Option<String>,
    pub(super) root_file: Option<PathBuf>,
    pub(super) token_file: Option<PathBuf>,
}

/// All or nothing: half of an identity is of no use.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Identity {
    pub(super) certificate_file: PathBuf,
    pub(super) key_file: PathBuf,
    pub(super) bundle_file: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Outbound {
    #[serde(deserialize_with = "maybe_parsed")]
    pub(super) proxy: Option<LoopbackAddr>,
    pub(super) ports: Vec<LocalPort>,
    pub(super) policy: Option<OutboundPolicy>,
    #[serde(deserialize_with = "maybe_parsed")]
    pub(super) demand_timeout: Option<Span>,
    #[serde(deserialize_with = "maybe_parsed")]
    pub(super) dead_peer_timeout: Option<Span>,
}

/// Its being there turns capture on.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Capture {
    pub(super) outbound: Option<u16>,
    pub(super) inbound: Option<u16>,
    pub(super) addresses: Vec<OwnAddress>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Dns {
    #[serde(deserialize_with = "maybe_parsed")]
    pub(super) listen: Option<LoopbackAddr>,
    pub(super) upstream: Option<Vec<NameServer>>,
    #[serde(deserialize_with = "maybe_parsed")]
    pub(super) cluster_domain: Option<DomainName>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Otlp {
    #[serde(deserialize_with = "maybe_parsed")]
    pub(super) endpoint: Option<Endpoint>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Drain {
    #[serde(deserialize_with = "maybe_parsed")]
    pub(super) grace_period: Option<Span>,
    #[serde(deserialize_with = "maybe_parsed")]
    pub(super) lame_duck: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Log {
    #[serde(deserialize_with = "maybe_parsed")]
    pub(super) level: Option<super::value::LogLevel>,
    pub(super) format: Option<LogFormat>,
}

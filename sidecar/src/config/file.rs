//! The YAML file, as it is written: every field may be missing, none may be unknown.

use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tulle_mesh::identity::TrustDomain;
use tulle_mesh::yaml::{Node, PARSE_STACK, SyntaxError, parse_path};

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
    let fault = |line, column, field: String, reason| ConfigError::Parse {
        path: path.to_owned(),
        line,
        column,
        field,
        reason,
    };
    let node = match tree(text) {
        Ok(Some(node)) => node,
        // A file that holds nothing but comments is as good as none.
        Ok(None) => return Ok(File::default()),
        Err(error) => {
            let position = (error.line.unwrap_or(0), error.column.unwrap_or(0));
            return Err(fault(position.0, position.1, ".".into(), error.reason));
        }
    };
    serde_path_to_error::deserialize(node.json()).map_err(|error| {
        let field = error.path().to_string();
        let (line, column) = node.position(&parse_path(&field));
        fault(line, column, field, error.into_inner().to_string())
    })
}

/// A tree first, by which types are then read: of what reads all types from YAML itself the program would be a third of a
/// megabyte larger.
fn tree(text: &str) -> Result<Option<Node>, SyntaxError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(PARSE_STACK);
        let parsing = thread.spawn_scoped(scope, || Node::parse(text, 1));
        let failed = |reason: String| Err(SyntaxError { reason, line: None, column: None });
        match parsing.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(parsed)) => parsed,
            Ok(Err(_)) => failed("it could not be parsed".into()),
            Err(error) => failed(format!("no thread to parse it: {error}")),
        }
    })
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

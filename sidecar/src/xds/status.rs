//! What the admin interface tells about the configuration: where it comes from and how it stands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use tulle_mesh::model::DnsName;
use tulle_mesh::xds::Kind;

use super::cache::{Cache, Knowledge, Names};

/// How the configuration stands.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    /// The way to the control plane.
    pub(crate) stream: StreamStatus,
    /// By type.
    pub(crate) types: Vec<TypeStatus>,
    /// What the names mean that the resolver was asked for, in their order.
    #[serde(skip)]
    pub(crate) names: Vec<Arc<DnsName>>,
}

/// How the stream to the control plane stands.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StreamStatus {
    /// The control plane's address.
    pub(crate) address: String,
    /// It is open. Without it, the last good configuration stays in force.
    pub(crate) open: bool,
    /// How many streams have been opened.
    pub(crate) opened: u64,
    /// How many responses have come.
    pub(crate) responses: u64,
    /// Why the last stream ended.
    pub(crate) last_error: Option<String>,
    /// The configuration began with the one on disk.
    pub(crate) from_disk: bool,
}

/// The resources of one type.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TypeStatus {
    /// The type.
    pub(crate) type_url: &'static str,
    /// What is held, with its versions, by canonical name.
    pub(crate) held: BTreeMap<Arc<str>, HeldStatus>,
    /// What was asked for and does not exist.
    pub(crate) absent: BTreeSet<Arc<str>>,
    /// What was asked for and has not been answered.
    pub(crate) awaited: BTreeSet<Arc<str>>,
    /// What was asked for and has not been answered in time.
    pub(crate) unavailable: BTreeSet<Arc<str>>,
    /// Whose last version was rejected, and why.
    pub(crate) rejected: BTreeMap<Arc<str>, String>,
}

/// One resource.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HeldStatus {
    /// Its version.
    pub(crate) version: String,
    /// The other names by which it is known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) aliases: Vec<Arc<str>>,
}

impl Status {
    /// Describes what is held and what is missing.
    pub(crate) fn new(stream: StreamStatus, cache: &Cache, wanted: &Names) -> Self {
        let types = wanted.iter().map(|(kind, names)| TypeStatus::new(kind, cache, names));
        let mut names: Vec<_> =
            cache.held(Kind::Dns).filter_map(|(name, _)| cache.dns(name)).cloned().collect();
        names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Self { stream, types: types.collect(), names }
    }
}

impl TypeStatus {
    fn new(kind: Kind, cache: &Cache, names: &BTreeSet<Arc<str>>) -> Self {
        let known_as = |knowledge| {
            names
                .iter()
                .filter(|name| cache.knowledge(kind, name) == knowledge)
                .cloned()
                .collect::<BTreeSet<_>>()
        };
        let held = cache.held(kind).map(|(name, held)| {
            (Arc::clone(name), HeldStatus { version: held.version.clone(), aliases: held.aliases.clone() })
        });
        Self {
            type_url: kind.type_url(),
            held: held.collect(),
            absent: known_as(Knowledge::Absent),
            awaited: known_as(Knowledge::Awaited),
            unavailable: known_as(Knowledge::Unavailable),
            rejected: cache.rejected(kind).map(|(name, why)| (Arc::clone(name), why.clone())).collect(),
        }
    }
}

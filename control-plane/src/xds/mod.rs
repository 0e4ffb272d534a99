//! The xDS server: what each sidecar asked for goes to it, when it asks and whenever it changes.
//!
//! ```text
//! Catalog ── find(kind, name, caller) ──► delta / sotw ──► one stream per proxy
//!    │                                      ▲    │
//!    └── Changed ──► Hub (fan-out) ─────────┘    └──► Proxies: sent, acked, nacked (for the HTTP API)
//! ```
//!
//! In: a [`Catalog`] of encoded resources, the news of which of them changed, and the streams' requests. Out: responses
//! by the aggregated discovery service, in the order in which nothing ever refers to what its reader doesn't have.
//! A stream never waits for an acknowledgement, never holds more than what its proxy subscribed to, and never learns of
//! a resource that the catalog doesn't show to its caller.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use envoy_types::pb::google::protobuf::Any;
use sha2::{Digest, Sha256};
pub use tulle_mesh::xds::Kind;

pub use client::Client;

mod client;
pub mod delta;
pub mod hub;
pub mod proxies;
pub mod resources;
pub mod server;
pub mod sotw;

/// The order in which one change is pushed: make before break.
pub const PUSH_ORDER: [Kind; 6] =
    [Kind::Cluster, Kind::Endpoint, Kind::Listener, Kind::Route, Kind::Secret, Kind::Dns];

/// The place of a kind in [`PUSH_ORDER`].
fn place(kind: Kind) -> usize {
    PUSH_ORDER.iter().position(|k| *k == kind).expect("PUSH_ORDER holds every kind")
}

/// The usual short name of a kind's discovery service.
pub fn abbreviation(kind: Kind) -> &'static str {
    match kind {
        Kind::Cluster => "CDS",
        Kind::Endpoint => "EDS",
        Kind::Listener => "LDS",
        Kind::Route => "RDS",
        Kind::Secret => "SDS",
        // No service has this name; it is short for the type all the same.
        Kind::Dns => "DNS",
    }
}

/// Whether all resources of a kind can be subscribed to at once.
fn has_wildcard(kind: Kind) -> bool {
    matches!(kind, Kind::Listener | Kind::Cluster)
}

/// Where the server finds resources. What it shows depends on nothing but its content and the caller's proven identity, and
/// the form of it on the kind of client.
pub trait Catalog: Send + Sync + 'static {
    /// The resource that a client means by a name or an alias.
    fn find(&self, kind: Kind, name: &str, client: &Client) -> Option<Arc<Encoded>>;

    /// The names of all resources of a kind that a client may see.
    fn names(&self, kind: Kind, client: &Client) -> Vec<Arc<str>>;
}

/// A resource, encoded once and shared by all streams.
#[derive(Debug, PartialEq)]
pub struct Encoded {
    /// Its own name.
    pub name: Arc<str>,
    /// A hash of its bytes: the same on every replica, and after a restart.
    pub version: Arc<str>,
    /// Its bytes.
    pub any: Any,
    /// A hash of name and version; those of a set of resources, combined by exclusive or, give the set's version.
    pub fingerprint: u64,
}

impl Encoded {
    /// Versions the bytes of a resource.
    pub fn new(name: &str, any: Any) -> Self {
        let version = tulle_mesh::xds::version(&any.value);
        Self { name: name.into(), fingerprint: fingerprint(name, &version), version: version.into(), any }
    }
}

/// A hash of a resource's name and version, the same everywhere.
fn fingerprint(name: &str, version: &str) -> u64 {
    let mut hash = Sha256::new();
    hash.update(name);
    hash.update([0]);
    hash.update(version);
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// The news that resources changed, appeared or went away.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Their names, and the aliases that they have or had, by place in [`PUSH_ORDER`].
    names: [HashSet<Arc<str>>; 6],
    /// Any name or address of a listener, or for a resolver, may mean another one than before.
    renamed: bool,
    /// Since when the catalog has it.
    pub at: Instant,
    /// Its place in the order of all changes, from 1; set when it is published.
    pub(crate) sequence: u64,
}

impl Changed {
    /// Collects news.
    pub fn new(names: impl IntoIterator<Item = (Kind, Arc<str>)>) -> Self {
        let mut changed = Self { names: Default::default(), renamed: false, at: Instant::now(), sequence: 0 };
        changed.add(names);
        changed
    }

    /// Adds that any name or address of a listener, or for a resolver, may mean another one than before.
    #[must_use]
    pub fn with_renamed(mut self) -> Self {
        self.renamed = true;
        self
    }

    fn add(&mut self, names: impl IntoIterator<Item = (Kind, Arc<str>)>) {
        for (kind, name) in names {
            self.names[place(kind)].insert(name);
        }
    }

    fn is_empty(&self) -> bool {
        !self.renamed && self.names.iter().all(HashSet::is_empty)
    }

    /// Whether every name of a kind must be looked up again.
    fn renamed(&self, kind: Kind) -> bool {
        self.renamed && matches!(kind, Kind::Listener | Kind::Dns)
    }

    /// What changed of a kind.
    pub fn names(&self, kind: Kind) -> &HashSet<Arc<str>> {
        &self.names[place(kind)]
    }
}

//! The configuration's way into the sidecar.
//!
//! ```text
//! workers ── Demand ──► interest ──► subscribe ──► stream ──► control plane
//!                          ▲                          │
//! snapshot ◄── build ◄── cache ◄──────────────────────┘
//!                          ▲▼
//!                         disk
//! ```
//!
//! In: demands of the workers for listeners, questions of the resolver for names, what the control plane sends (delta ADS), certificates, resolved names. Out:
//! snapshots, and answers for the resolver. A bad resource never replaces a good one, and a control plane that is away takes nothing away: what was
//! good stays in force, across a restart too.

use std::sync::Arc;

mod bounds;
mod bundle;
mod cache;
mod client_status;
mod control;
mod disk;
mod engine;
mod interest;
mod names;
mod status;
mod stream;
mod subscribe;

#[cfg(fuzzing)]
pub mod fuzzing;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub(crate) use bundle::{Heard, follow_bundle};
pub(crate) use cache::{Cache, ListenerValue};
pub(crate) use control::{Control, Handle, StartError};
pub(crate) use engine::Readiness;
pub(crate) use interest::{is_local, is_settled};
#[cfg(test)]
pub(crate) use names::NameQuestion;
pub(crate) use names::{MeshNames, NameAnswer};

/// A worker asks for the listener of a destination. The answer is the next snapshot that holds the name, in `outbound` or
/// in `absent`.
pub(crate) struct Demand {
    /// As the application named it: canonical or an alias.
    pub(crate) name: Arc<str>,
}

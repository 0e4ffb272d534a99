//! The configuration's way into the sidecar.

use std::sync::Arc;

mod cache;
mod interest;
mod stream;
mod subscribe;

pub(crate) use cache::{Cache, ListenerValue};
pub(crate) use interest::{is_local, is_settled};

/// A worker asks for the listener of a destination. The answer is the next snapshot that holds the name, in `outbound` or
/// in `absent`.
pub(crate) struct Demand {
    /// As the application named it: canonical or an alias.
    pub(crate) name: Arc<str>,
}

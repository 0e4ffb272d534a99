//! Xds.

use std::sync::Arc;

/// A worker asks for the listener of a destination. The answer is the next snapshot that holds the name, in `outbound` or
/// in `absent`.
pub(crate) struct Demand {
    /// As the application named it: canonical or an alias.
    pub(crate) name: Arc<str>,
}

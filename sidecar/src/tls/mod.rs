//! Mesh TLS: the two ends of a connection between sidecars.

/// A workload's certificate, key and trust bundle, as ready configurations for both ends.
pub(crate) struct Material {}

//! What follows 101 or a CONNECT: bytes in both directions.

/// The upstream end of an upgraded connection.
pub(crate) struct Tunnel {}

//! Sessions: requests that belong together stay at one endpoint.

use std::time::Duration;

use http::HeaderName;
use serde::Serialize;

/// Keeps the requests of a session at the endpoint that answered its first (GEP-1619). A session goes before weights: it
/// stays at its backend even when that takes no new requests. It moves only when its endpoint is gone or ejected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// What tells the mesh where a session belongs.
    pub carrier: SessionCarrier,
    /// How long after its beginning a session ends, in whole seconds; `None`: never.
    pub lifetime: Option<Duration>,
}

/// What carries a session from answer to request. The mesh writes it, the client sends it back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SessionCarrier {
    /// A cookie.
    Cookie {
        /// Its name.
        name: String,
        /// Its path attribute.
        path: String,
        /// It outlives the client's own session: it is kept for the session's lifetime.
        permanent: bool,
    },
    /// A header of the answer, which the client puts into its next request.
    Header(#[serde(with = "super::route::header_name")] HeaderName),
}

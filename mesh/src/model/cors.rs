//! Cross-origin resource sharing.

use std::time::Duration;

use serde::Serialize;

use super::StringMatch;

/// Which pages of other origins may use a route (GEP-1767): the mesh answers preflight requests, and marks answers to the
/// origins that are allowed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cors {
    /// The origins, `<scheme>://<host>[:<port>]`. One that matches `*` allows all (as in Envoy).
    pub allow_origins: Vec<StringMatch>,
    /// Requests may carry the client's cookies.
    pub allow_credentials: bool,
    /// The methods beside the safelisted ones; `*` stands for all.
    pub allow_methods: Vec<String>,
    /// The request's headers beside the safelisted ones; `*` stands for all.
    pub allow_headers: Vec<String>,
    /// The response's headers beside the safelisted ones; `*` stands for all.
    pub expose_headers: Vec<String>,
    /// How long a client may keep the answer to a preflight request, in whole seconds.
    pub max_age: Duration,
}

impl Cors {
    /// Whether a page of this origin may use the route.
    pub fn allows(&self, origin: &str) -> bool {
        self.allow_origins.iter().any(|known| known.matches("*") || known.matches(origin))
    }
}

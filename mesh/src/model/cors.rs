//! Cross-origin resource sharing.

use serde::Serialize;

use super::{PerMillion, StringMatch};

/// Which pages of other origins may use a route (GEP-1767): the mesh answers preflight requests, and marks answers to the
/// origins that are allowed. Texts are sent as they are; an empty one is not.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cors {
    /// For which part of the requests any of it holds.
    pub enabled: PerMillion,
    /// The origins, `<scheme>://<host>[:<port>]`. One that matches `*` allows all (as in Envoy).
    pub allow_origins: Vec<StringMatch>,
    /// Requests may carry the client's cookies.
    pub allow_credentials: bool,
    /// The methods beside the safelisted ones, with commas between; `*` stands for what is asked for.
    pub allow_methods: String,
    /// The request's headers beside the safelisted ones, in the same way.
    pub allow_headers: String,
    /// The response's headers beside the safelisted ones, with commas between; `*` stands for all.
    pub expose_headers: String,
    /// How long a client may keep the answer to a preflight request, in seconds.
    pub max_age: String,
    /// Pages of public networks may use it although it is in a private one, where they ask.
    pub allow_private_network: bool,
    /// A preflight request of an origin that is not allowed goes on like any other request.
    pub forward_unmatched: bool,
}

impl Cors {
    /// Whether a page of this origin may use the route.
    pub fn allows(&self, origin: &str) -> bool {
        self.allow_origins.iter().any(|known| known.matches("*") || known.matches(origin))
    }
}

impl Default for Cors {
    /// Nobody may.
    fn default() -> Self {
        Self {
            enabled: PerMillion::ALL,
            allow_origins: Vec::new(),
            allow_credentials: false,
            allow_methods: String::new(),
            allow_headers: String::new(),
            expose_headers: String::new(),
            max_age: String::new(),
            allow_private_network: false,
            forward_unmatched: false,
        }
    }
}

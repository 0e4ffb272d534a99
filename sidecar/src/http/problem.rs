//! Why a client gets no whole answer of an endpoint, as it is noted until the request's end.

use crate::error::RequestError;
use crate::telemetry::record::Failure;

/// Why there is no whole answer.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    /// An RFC 9209 token.
    pub(super) token: &'static str,
    /// What Envoy calls it for short.
    pub(super) flags: &'static str,
    /// For people.
    pub(super) details: String,
}

impl Problem {
    pub(super) fn new(token: &'static str, flags: &'static str, details: String) -> Self {
        Self { token, flags, details }
    }

    /// As records tell it.
    pub(super) fn failure(&self) -> Failure<'_> {
        Failure { token: self.token, flags: self.flags, details: &self.details }
    }
}

impl From<&RequestError> for Problem {
    fn from(error: &RequestError) -> Self {
        Self::new(error.token(), error.flags(), error.to_string())
    }
}

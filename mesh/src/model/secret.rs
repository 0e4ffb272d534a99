//! Secrets: what a sidecar proves itself with, and whom it trusts.

use std::fmt;

use serde::{Serialize, Serializer};

/// A secret under the name by which TLS settings refer to it (`default`, `ROOTCA`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    /// Its name.
    pub name: String,
    /// What it is.
    pub value: SecretValue,
}

/// What a secret is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SecretValue {
    /// The certificates of all authorities that are trusted, in PEM: one, or several while a root is being replaced.
    TrustBundle(String),
    /// A certificate of the workload.
    Certificate {
        /// The leaf and its intermediates, in PEM, leaf first.
        chain: String,
        /// The leaf's key, where the server sends it; Tulle's own never does, as keys are made in the sidecar.
        key: Option<PrivateKey>,
    },
}

/// A private key in PEM, which neither prints nor serializes itself.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(String);

impl PrivateKey {
    /// Wraps a key.
    pub fn new(pem: impl Into<String>) -> Self {
        Self(pem.into())
    }

    /// The key itself, for the TLS stack alone.
    pub fn pem(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

impl Serialize for PrivateKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("redacted")
    }
}

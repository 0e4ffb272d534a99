//! Who a workload is: SPIFFE IDs and trust domains.
//!
//! Text from certificates, tokens and configuration comes in and is parsed once; what goes out is valid by
//! construction. Source of the rules: the SPIFFE-ID standard, sections 2.1 to 2.4.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest SPIFFE ID that is accepted, in bytes (SPIFFE-ID section 2.3).
pub const MAX_SPIFFE_ID: usize = 2048;

/// The authority part of a SPIFFE ID: the root of trust under which names are unique.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name, without a scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let valid = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > 255 || !text.bytes().all(valid) {
            return Err(IdentityError::TrustDomain(text.into()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A workload's name, `spiffe://<trust domain>/<path>`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    /// Where the path starts in `uri`, at its leading slash (or its end where there is no path).
    path_at: usize,
}

impl SpiffeId {
    /// The identity that the mesh gives to a Kubernetes service account.
    ///
    /// # Errors
    /// When a part is empty or holds a character that a SPIFFE path segment may not have.
    pub fn workload(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        for part in [namespace, service_account] {
            if part.contains('/') {
                return Err(IdentityError::Path(part.into()));
            }
        }
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain's name.
    pub fn trust_domain(&self) -> &str {
        &self.uri["spiffe://".len()..self.path_at]
    }

    /// The path with its leading slash; empty for the ID of a trust domain itself.
    pub fn path(&self) -> &str {
        &self.uri[self.path_at..]
    }

    /// The namespace, where the path has the form `/ns/<namespace>/sa/<service account>`.
    pub fn namespace(&self) -> Option<&str> {
        self.kubernetes().map(|(namespace, _)| namespace)
    }

    /// The service account, where the path has the form `/ns/<namespace>/sa/<service account>`.
    pub fn service_account(&self) -> Option<&str> {
        self.kubernetes().map(|(_, account)| account)
    }

    fn kubernetes(&self) -> Option<(&str, &str)> {
        let (namespace, account) = self.path().strip_prefix("/ns/")?.split_once("/sa/")?;
        let single = |s: &str| !s.is_empty() && !s.contains('/');
        (single(namespace) && single(account)).then_some((namespace, account))
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        if uri.len() > MAX_SPIFFE_ID {
            return Err(IdentityError::TooLong(uri.len()));
        }
        let rest = uri.strip_prefix("spiffe://").ok_or_else(|| IdentityError::Scheme(uri.into()))?;
        let domain_len = rest.find('/').unwrap_or(rest.len());
        let (domain, path) = rest.split_at(domain_len);
        domain.parse::<TrustDomain>()?;
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(valid);
        if let Some(path) = path.strip_prefix('/')
            && !path.split('/').all(segment)
        {
            return Err(IdentityError::Path(path.into()));
        }
        Ok(Self { uri: uri.into(), path_at: "spiffe://".len() + domain_len })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.uri)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for TrustDomain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Why a text is not a SPIFFE ID. The fault is always the text's; trying again does not help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityError {
    /// It does not start with `spiffe://`.
    Scheme(String),
    /// The trust domain is empty, too long, or has a character outside `a-z0-9.-_`.
    TrustDomain(String),
    /// A path segment is empty, `.`, `..`, or has a character outside `A-Za-z0-9.-_`.
    Path(String),
    /// Longer than [`MAX_SPIFFE_ID`]; the length in bytes.
    TooLong(usize),
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme(text) => write!(f, "{text:?} is not a SPIFFE ID: it must start with \"spiffe://\""),
            Self::TrustDomain(text) => write!(
                f,
                "{text:?} is not a trust domain: use 1 to 255 of the characters a-z, 0-9, '.', '-' and '_'"
            ),
            Self::Path(text) => write!(
                f,
                "{text:?} is not a SPIFFE path: no segment may be empty, \".\" or \"..\", and only A-Z, a-z, 0-9, '.', \
                 '-' and '_' may be used"
            ),
            Self::TooLong(len) => {
                write!(f, "a SPIFFE ID of {len} bytes is too long: at most {MAX_SPIFFE_ID} are allowed")
            }
        }
    }
}

impl std::error::Error for IdentityError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_identity_gives_back_its_parts() {
        let domain: TrustDomain = "cluster.local".parse().expect("valid");
        let id = SpiffeId::workload(&domain, "shop", "cart").expect("valid");
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.namespace(), Some("shop"));
        assert_eq!(id.service_account(), Some("cart"));
    }

    #[test]
    fn names_that_could_be_read_two_ways_are_refused() {
        for bad in [
            "",
            "https://td/ns/a/sa/b",
            "spiffe://",
            "spiffe:///ns/a",
            "spiffe://TD/a",
            "spiffe://td/",
            "spiffe://td//a",
            "spiffe://td/a/../b",
            "spiffe://td/a?b",
            "spiffe://td/a#b",
            "spiffe://td:443/a",
            "spiffe://user@td/a",
            "spiffe://td/a%2fb",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
        let domain: TrustDomain = "td".parse().expect("valid");
        assert!(SpiffeId::workload(&domain, "a/sa/b", "c").is_err());
    }

    #[test]
    fn an_identity_of_another_form_has_no_namespace() {
        let id: SpiffeId = "spiffe://td/ns/a/sa/b/c".parse().expect("valid");
        assert_eq!(id.namespace(), None);
        let id: SpiffeId = "spiffe://td".parse().expect("valid");
        assert_eq!(id.path(), "");
    }
}

//! Changes to heads: names to remove, values to add or set, which may be texts with command operators.

use http::{HeaderName, HeaderValue};
use serde::{Serialize, Serializer};

use super::Format;
use super::format::Operator;

/// Stands in place of a credential.
pub const REDACTED: &str = "[redacted]";

/// Whether values of a header are credentials, which are never written where people read.
pub fn is_secret_header(name: &str) -> bool {
    ["authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "x-auth-token"]
        .iter()
        .any(|secret| name.eq_ignore_ascii_case(secret))
}

/// Changes to a head: first all removals; then what is set; then what is added. Whether a header is there and what operators
/// stand for is told by the head as it is after the removals.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMutations {
    /// Names whose values all go.
    #[serde(with = "names")]
    pub remove: Vec<HeaderName>,
    /// What is added or set.
    pub change: Vec<HeaderMutation>,
}

impl HeaderMutations {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.change.is_empty()
    }

    /// Whether a value has a field of the request in it.
    pub fn read_request(&self) -> bool {
        self.operators().any(|operator| {
            matches!(operator, Operator::Request(..) | Operator::Path(_) | Operator::QueryParameter(_))
        })
    }

    /// All operators in its values.
    pub fn operators(&self) -> impl Iterator<Item = &Operator> {
        let formats = self.change.iter().filter_map(|change| match &change.value {
            HeaderText::Literal(_) => None,
            HeaderText::Format { format, .. } => Some(format),
        });
        formats.flat_map(Format::operators)
    }
}

/// Changes to requests and to their responses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderChanges {
    /// To requests.
    pub request: HeaderMutations,
    /// To responses.
    pub response: HeaderMutations,
}

impl HeaderChanges {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

/// One added or set header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMutation {
    /// Its name.
    #[serde(with = "super::route::header_name")]
    pub name: HeaderName,
    /// Its value.
    pub value: HeaderText,
    /// What happens to a value that is there already.
    pub op: HeaderOp,
}

/// What a header is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderText {
    /// A value, taken literally.
    Literal(HeaderValue),
    /// A text with command operators.
    Format {
        /// The text.
        format: Format,
        /// An empty value is one, too; else it changes nothing.
        keep_empty: bool,
    },
}

impl From<HeaderValue> for HeaderText {
    fn from(value: HeaderValue) -> Self {
        Self::Literal(value)
    }
}

impl std::fmt::Display for HeaderText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Literal(value) => f.write_str(&String::from_utf8_lossy(value.as_bytes())),
            Self::Format { format, .. } => format.fmt(f),
        }
    }
}

impl Serialize for HeaderText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What happens to a header that is there already (Envoy's `HeaderAppendAction`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HeaderOp {
    /// The new value stands behind it.
    Append,
    /// The old value stays.
    AddIfAbsent,
    /// The new value takes its place, also where there was none.
    Set,
    /// The new value takes its place; nothing happens where there was none.
    SetIfPresent,
}

mod names {
    use super::{HeaderName, Serializer};

    pub(super) fn serialize<S: Serializer>(names: &[HeaderName], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(names.iter().map(HeaderName::as_str))
    }
}

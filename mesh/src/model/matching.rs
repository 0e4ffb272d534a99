//! Conditions on strings, headers, paths and query parameters, shared by routes and authorization.

use std::fmt;

use serde::{Serialize, Serializer};

/// A condition on one string.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum StringMatch {
    /// Equal, byte for byte or (with `ignore_case`) in ASCII without regard to case.
    Exact {
        /// What to compare with.
        value: String,
        /// Compare ASCII letters without regard to case.
        ignore_case: bool,
    },
    /// Starts with.
    Prefix {
        /// The start.
        value: String,
        /// Compare ASCII letters without regard to case.
        ignore_case: bool,
    },
    /// Ends with.
    Suffix {
        /// The end.
        value: String,
        /// Compare ASCII letters without regard to case.
        ignore_case: bool,
    },
    /// Holds somewhere.
    Contains {
        /// What is looked for.
        value: String,
        /// Compare ASCII letters without regard to case.
        ignore_case: bool,
    },
    /// The whole string matches (Envoy's `safe_regex`).
    Regex(Regex),
}

impl StringMatch {
    /// An exact match, with regard to case.
    pub fn exact(value: impl Into<String>) -> Self {
        Self::Exact { value: value.into(), ignore_case: false }
    }

    /// A match on the start, with regard to case.
    pub fn prefix(value: impl Into<String>) -> Self {
        Self::Prefix { value: value.into(), ignore_case: false }
    }

    /// Whether `text` meets the condition.
    pub fn matches(&self, text: &str) -> bool {
        let bytes = text.as_bytes();
        match self {
            Self::Exact { value, ignore_case: false } => text == value,
            Self::Exact { value, ignore_case: true } => text.eq_ignore_ascii_case(value),
            Self::Prefix { value, ignore_case: false } => text.starts_with(value.as_str()),
            Self::Prefix { value, ignore_case: true } => {
                bytes.get(..value.len()).is_some_and(|head| head.eq_ignore_ascii_case(value.as_bytes()))
            }
            Self::Suffix { value, ignore_case: false } => text.ends_with(value.as_str()),
            Self::Suffix { value, ignore_case: true } => bytes
                .len()
                .checked_sub(value.len())
                .is_some_and(|at| bytes[at..].eq_ignore_ascii_case(value.as_bytes())),
            Self::Contains { value, ignore_case: false } => text.contains(value.as_str()),
            Self::Contains { value, ignore_case: true } => {
                value.is_empty()
                    || bytes.windows(value.len()).any(|part| part.eq_ignore_ascii_case(value.as_bytes()))
            }
            Self::Regex(regex) => regex.matches(text),
        }
    }
}

impl fmt::Display for StringMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact { value, .. } => write!(f, "= {value:?}"),
            Self::Prefix { value, .. } => write!(f, "starts with {value:?}"),
            Self::Suffix { value, .. } => write!(f, "ends with {value:?}"),
            Self::Contains { value, .. } => write!(f, "contains {value:?}"),
            Self::Regex(regex) => write!(f, "matches /{}/", regex.as_str()),
        }
    }
}

/// A regular expression in RE2's syntax, matched against the whole of a string. It runs in linear time.
#[derive(Clone)]
pub struct Regex {
    source: String,
    compiled: regex::Regex,
}

impl Regex {
    /// Compiles `source`, and anchors it at both ends.
    ///
    /// # Errors
    /// A message for the user when the syntax is wrong or the expression compiles to more than 1 MiB.
    pub fn new(source: impl Into<String>) -> Result<Self, String> {
        let source = source.into();
        let compiled = regex::RegexBuilder::new(&format!(r"\A(?:{source})\z"))
            .size_limit(1 << 20)
            .build()
            .map_err(|error| format!("{source:?} is not a valid regular expression: {error}"))?;
        Ok(Self { source, compiled })
    }

    /// The expression as it was given.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Whether the whole of `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        self.compiled.is_match(text)
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Regex {}

impl fmt::Debug for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.source)
    }
}

impl Serialize for Regex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.source)
    }
}

/// A condition on a request's path, without its query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Whole segments at the start: `/v2` matches `/v2` and `/v2/x`, not `/v2x` (Gateway API `PathPrefix`). Held
    /// without a trailing slash; `/` itself is [`PathMatch::Prefix`].
    Segments(String),
    /// Any text at the start, across segments (Envoy's `prefix`).
    Prefix(String),
    /// The whole path matches.
    Regex(Regex),
}

/// A condition on one header. Method and authority are matched under their HTTP/2 names, `:method` and `:authority`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMatch {
    /// Lower-case name, or a pseudo-header's.
    pub name: String,
    /// What is asked of the value; several values of one name are joined by `,` first.
    pub test: HeaderTest,
    /// Match when the test does not hold. A missing header never matches a test on its value, inverted or not.
    pub invert: bool,
}

/// What is asked of a header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HeaderTest {
    /// It is there (`true`) or missing (`false`).
    Present(bool),
    /// Its value meets a condition.
    Value(StringMatch),
    /// Its value is a whole number from `start` up to but without `end`.
    Range {
        /// The least number that matches.
        start: i64,
        /// The first number above that does not.
        end: i64,
    },
}

/// A condition on a query parameter; the first of that name counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryMatch {
    /// The parameter's name, with regard to case.
    pub name: String,
    /// A condition on the (percent-decoded) value, or `None` where any value will do.
    pub value: Option<StringMatch>,
}

/// A fraction in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PerMillion(pub u32);

impl PerMillion {
    /// Always.
    pub const ALL: Self = Self(1_000_000);

    /// From a percentage; more than 100 counts as 100.
    pub fn percent(percent: u32) -> Self {
        Self(percent.min(100) * 10_000)
    }

    /// Whether a draw falls within the fraction. `draw` is uniform over all of `u32`.
    pub fn hit(self, draw: u32) -> bool {
        (u64::from(draw) * 1_000_000) >> 32 < u64::from(self.0)
    }
}

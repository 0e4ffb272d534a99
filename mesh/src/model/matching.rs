//! Conditions on strings, headers, paths and query parameters, shared by routes and authorization.
//!
//! Each condition answers for one value that its caller took out of a request; none knows of requests.

use std::borrow::Cow;
use std::fmt;

use serde::ser::SerializeStruct;
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
        let (verb, value, ignore_case) = match self {
            Self::Exact { value, ignore_case } => ("=", value, *ignore_case),
            Self::Prefix { value, ignore_case } => ("starts with", value, *ignore_case),
            Self::Suffix { value, ignore_case } => ("ends with", value, *ignore_case),
            Self::Contains { value, ignore_case } => ("contains", value, *ignore_case),
            Self::Regex(regex) => return write!(f, "matches `{}`", regex.as_str()),
        };
        write!(f, "{verb} {value:?}{}", if ignore_case { ", in any case" } else { "" })
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
        // By itself first: `a)|(?:b` is no expression, but would be one between the anchors, and escape them.
        compile(&source, &source)?;
        let compiled = compile(&format!(r"\A(?:{source})\z"), &source)?;
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

/// A replacement in RE2's syntax: each match of a pattern, wherever it stands, gives way to a text (Envoy's
/// `RegexMatchAndSubstitute`).
#[derive(Clone)]
pub struct Substitution {
    pattern: String,
    replacement: String,
    compiled: regex::Regex,
    /// `replacement` in the syntax of the `regex` crate.
    template: String,
}

impl Substitution {
    /// Compiles `pattern`, unanchored. In `replacement`, `\0` is the whole match, `\1` to `\9` are its groups and `\\` is
    /// a backslash.
    ///
    /// # Errors
    /// A message for the user when the pattern is not valid or too large (as for [`Regex::new`]), or the replacement
    /// names a group that the pattern does not have, or holds another escape.
    pub fn new(pattern: impl Into<String>, replacement: impl Into<String>) -> Result<Self, String> {
        let (pattern, replacement) = (pattern.into(), replacement.into());
        let compiled = compile(&pattern, &pattern)?;
        let mut template = String::with_capacity(replacement.len());
        let mut characters = replacement.chars();
        while let Some(character) = characters.next() {
            match character {
                '$' => template.push_str("$$"),
                '\\' => match characters.next() {
                    Some('\\') => template.push('\\'),
                    Some(digit)
                        if digit.to_digit(10).is_some_and(|n| (n as usize) < compiled.captures_len()) =>
                    {
                        template.push_str("${");
                        template.push(digit);
                        template.push('}');
                    }
                    other => {
                        let escape: String = other.into_iter().collect();
                        return Err(format!(
                            "{replacement:?} is not a valid replacement: \"\\{escape}\" is neither \"\\\\\" nor a group \
                             that {pattern:?} has (\"\\0\" to \"\\{}\")",
                            (compiled.captures_len() - 1).min(9)
                        ));
                    }
                },
                _ => template.push(character),
            }
        }
        Ok(Self { pattern, replacement, compiled, template })
    }

    /// The pattern as it was given.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// The replacement as it was given.
    pub fn replacement(&self) -> &str {
        &self.replacement
    }

    /// `text` with each match replaced.
    pub fn apply<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.compiled.replace_all(text, self.template.as_str())
    }
}

impl PartialEq for Substitution {
    fn eq(&self, other: &Self) -> bool {
        (&self.pattern, &self.replacement) == (&other.pattern, &other.replacement)
    }
}

impl Eq for Substitution {}

impl fmt::Debug for Substitution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/ -> {:?}", self.pattern, self.replacement)
    }
}

impl Serialize for Substitution {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Substitution", 2)?;
        object.serialize_field("pattern", &self.pattern)?;
        object.serialize_field("substitution", &self.replacement)?;
        object.end()
    }
}

/// Compiles `expression`; errors speak of `source`, which the user wrote.
fn compile(expression: &str, source: &str) -> Result<regex::Regex, String> {
    regex::RegexBuilder::new(expression)
        .size_limit(1 << 20)
        .build()
        .map_err(|error| format!("{source:?} is not a valid regular expression: {error}"))
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

impl PathMatch {
    /// Whether `path` meets the condition; without `case_sensitive`, ASCII letters are compared without regard to
    /// case (but by a regular expression).
    pub fn matches(&self, path: &str, case_sensitive: bool) -> bool {
        let starts = |start: &str| match path.as_bytes().get(..start.len()) {
            Some(head) if case_sensitive => head == start.as_bytes(),
            Some(head) => head.eq_ignore_ascii_case(start.as_bytes()),
            None => false,
        };
        match self {
            Self::Exact(whole) => path.len() == whole.len() && starts(whole),
            Self::Segments(start) => {
                starts(start) && matches!(path.as_bytes().get(start.len()), None | Some(b'/'))
            }
            Self::Prefix(start) => starts(start),
            Self::Regex(regex) => regex.matches(path),
        }
    }
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => write!(f, "= {path:?}"),
            Self::Segments(path) => write!(f, "{path:?} or below"),
            Self::Prefix(path) => write!(f, "starts with {path:?}"),
            Self::Regex(regex) => write!(f, "matches `{}`", regex.as_str()),
        }
    }
}

/// A condition on one header. Method and authority are matched under their HTTP/2 names, `:method` and `:authority`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMatch {
    /// Lower-case name, or a pseudo-header's.
    pub name: String,
    /// What is asked of the value. Where a name has several, one that passes is enough, as with Envoy since 1.39: joined to
    /// one text, a second value would hide the first from a rule that denies it.
    pub test: HeaderTest,
    /// Match when the test does not hold. A missing header never matches a test on its value, inverted or not.
    pub invert: bool,
    /// A missing header counts as one that is there and empty.
    pub missing_is_empty: bool,
}

impl HeaderMatch {
    /// A condition that is not inverted, and that a missing header meets only where it asks for that.
    pub fn new(name: impl Into<String>, test: HeaderTest) -> Self {
        Self { name: name.into(), test, invert: false, missing_is_empty: false }
    }

    /// Whether the header with these values meets the condition; it is missing where there are none.
    pub fn matches<V: AsRef<str>>(&self, values: impl IntoIterator<Item = V>) -> bool {
        let mut values = values.into_iter().peekable();
        let none = values.peek().is_none();
        let missing = none && !self.missing_is_empty;
        let passes = match &self.test {
            HeaderTest::Present(present) => missing != *present,
            _ if missing => return false,
            test if none => test.passes(""),
            test => values.any(|value| test.passes(value.as_ref())),
        };
        passes != self.invert
    }
}

impl fmt::Display for HeaderMatch {
    /// The condition on the value; the name is not part of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let HeaderTest::Present(present) = self.test {
            return f.write_str(if present != self.invert { "present" } else { "missing" });
        }
        if self.invert {
            f.write_str("not: ")?;
        }
        match &self.test {
            HeaderTest::Present(_) => {}
            HeaderTest::Value(condition) => condition.fmt(f)?,
            HeaderTest::Range { start, end } => write!(f, "from {start} up to but without {end}")?,
        }
        f.write_str(if self.missing_is_empty { " (a missing one is empty)" } else { "" })
    }
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

impl HeaderTest {
    /// Whether one value passes. One that is there has passed whether it is asked to be.
    fn passes(&self, value: &str) -> bool {
        match self {
            Self::Present(present) => *present,
            Self::Value(condition) => condition.matches(value),
            Self::Range { start, end } => {
                value.parse().is_ok_and(|number: i64| (*start..*end).contains(&number))
            }
        }
    }
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

impl QueryMatch {
    /// Whether the first value of that name, percent-decoded, or `None` where there is none, meets the condition.
    pub fn matches(&self, value: Option<&str>) -> bool {
        match (&self.value, value) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(condition), Some(value)) => condition.matches(value),
        }
    }
}

impl fmt::Display for QueryMatch {
    /// The condition on the value; the name is not part of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(condition) => condition.fmt(f),
            None => f.write_str("present"),
        }
    }
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

#[cfg(test)]
mod tests;

//! Why a resource is not accepted: which one, where in it, what is wrong, and what to do about it.
//!
//! The text travels back to the control plane in a NACK and stands in logs, so it never holds key material.

use std::fmt;

use super::Kind;

/// Why a resource is not accepted. The fault is always the sender's; the same bytes never become valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XdsError {
    /// The type is none that Tulle asks for.
    UnknownType(String),
    /// The bytes are not a protobuf message of the type that they are said to be.
    Malformed {
        /// Which type of resource.
        kind: Kind,
        /// What the decoder says.
        problem: String,
    },
    /// A field's value is not valid, or would be lost although it has a meaning.
    Invalid {
        /// Which type of resource.
        kind: Kind,
        /// The resource's name; empty where that is what is missing.
        name: String,
        /// Where, e.g. `virtual_hosts[0].routes[3].match`.
        field: String,
        /// What is wrong there, and what to do.
        problem: String,
    },
}

impl XdsError {
    /// The name of the resource, where it could be read.
    pub fn resource_name(&self) -> Option<&str> {
        match self {
            Self::Invalid { name, .. } if !name.is_empty() => Some(name),
            _ => None,
        }
    }
}

impl fmt::Display for XdsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownType(url) => write!(
                f,
                "{url:?} is not a type of resource that is served here: use the v3 Listener, RouteConfiguration, Cluster, \
                 ClusterLoadAssignment, Secret or DnsTable"
            ),
            Self::Malformed { kind, problem } => {
                write!(f, "{kind}: not a valid protobuf message: {problem}")
            }
            Self::Invalid { kind, name, field, problem } => {
                write!(f, "{kind}")?;
                if !name.is_empty() {
                    write!(f, " {name}")?;
                }
                write!(f, ": ")?;
                if !field.is_empty() {
                    write!(f, "{field}: ")?;
                }
                f.write_str(problem)
            }
        }
    }
}

impl std::error::Error for XdsError {}

/// A problem and the way to it from the message that is being decoded; each caller puts its own step in front.
#[derive(Debug)]
pub(super) struct FieldError {
    field: String,
    problem: String,
}

/// What decoding a part of a resource gives.
pub(super) type Decoded<T> = Result<T, FieldError>;

impl FieldError {
    /// A problem of the very value that is being decoded.
    pub(super) fn new(problem: impl Into<String>) -> Self {
        Self { field: String::new(), problem: problem.into() }
    }

    /// Names the resource.
    pub(super) fn of(self, kind: Kind, name: &str) -> XdsError {
        XdsError::Invalid { kind, name: name.into(), field: self.field, problem: self.problem }
    }

    fn inside(self, step: impl fmt::Display) -> Self {
        let separator = if self.field.is_empty() || self.field.starts_with('[') { "" } else { "." };
        Self { field: format!("{step}{separator}{}", self.field), problem: self.problem }
    }
}

/// Puts a step in front of an error's way.
pub(super) trait At<T> {
    /// The error is in this field.
    fn at(self, field: &str) -> Decoded<T>;
    /// The error is in this item of a list.
    fn at_item(self, field: &str, index: usize) -> Decoded<T>;
    /// The error is in this entry of a map.
    fn at_key(self, field: &str, key: &str) -> Decoded<T>;
}

impl<T> At<T> for Decoded<T> {
    fn at(self, field: &str) -> Decoded<T> {
        self.map_err(|error| error.inside(field))
    }

    fn at_item(self, field: &str, index: usize) -> Decoded<T> {
        self.map_err(|error| error.inside(format_args!("{field}[{index}]")))
    }

    fn at_key(self, field: &str, key: &str) -> Decoded<T> {
        self.map_err(|error| error.inside(format_args!("{field}[{key:?}]")))
    }
}

/// Decodes each item of a list, and says which one is wrong.
pub(super) fn each<P, T>(
    field: &str,
    items: impl IntoIterator<Item = P>,
    decode: impl Fn(P) -> Decoded<T>,
) -> Decoded<Vec<T>> {
    items.into_iter().enumerate().map(|(index, item)| decode(item).at_item(field, index)).collect()
}

/// Refuses a value that has a meaning which would be lost.
pub(super) fn unsupported(is_set: bool, field: &str, fix: &str) -> Decoded<()> {
    if is_set { Err(FieldError::new(format!("is not supported: {fix}"))).at(field) } else { Ok(()) }
}

/// Refuses a message that sets one of some fields for which nothing stands in the model: a `Decoded<()>`. Those behind
/// `switches` may be there, but not true.
macro_rules! refuse {
    ($message:expr; $($field:ident),* $(; switches $($switch:ident),+)?) => {
        $crate::xds::error::refuse_set(&[
            $(($crate::xds::error::is_set(&$message.$field), stringify!($field)),)*
            $($(($message.$switch.as_ref().is_some_and(|switch| switch.value), stringify!($switch)),)+)?
        ])
    };
}
pub(super) use refuse;

/// Refuses the first of some fields that is set.
pub(super) fn refuse_set(fields: &[(bool, &str)]) -> Decoded<()> {
    let set = fields.iter().find(|(is_set, _)| *is_set);
    set.map_or(Ok(()), |(_, field)| unsupported(true, field, "leave it out"))
}

/// Whether a field holds anything but its default.
pub(super) fn is_set<T: Default + PartialEq>(field: &T) -> bool {
    *field != T::default()
}

/// The value of a field that must be there.
pub(super) fn required<T>(value: Option<T>, field: &str) -> Decoded<T> {
    value.ok_or_else(|| FieldError::new("is missing: set it")).at(field)
}

/// A text that must not be empty.
pub(super) fn non_empty(text: String, field: &str) -> Decoded<String> {
    if text.is_empty() { Err(FieldError::new("is empty: set it")).at(field) } else { Ok(text) }
}

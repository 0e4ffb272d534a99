//! The normal form of paths, and those that have none.
//!
//! Normal form (RFC 3986, 6.2.2): unreserved characters stand for themselves, everything that may not stand in a path is
//! percent-encoded with capital digits, dot segments are resolved, and repeated slashes are one.
//!
//! Servers differ in more than that. Some take `%2F`, `\` and `%5C` for a slash, cut parameters (`;v=1`) off segments, or merge
//! slashes before they resolve dots. What such a server would read is the lax reading, and where it differs from the
//! normal form, a path has two. A path that leads above the root, holds a NUL or a broken escape has none. Decoding
//! twice (`%252F`) is not foreseen: a server that does it is broken for more than policies.

use std::borrow::Cow;

use crate::escape::{self, is_unreserved};
use crate::model::StringMatch;

/// How a path can be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Readings<'p> {
    /// In one way.
    One(Cow<'p, str>),
    /// In two ways, by different servers.
    Two { strict: String, lax: String },
    /// In none.
    Unreadable,
}

/// Reads a path. The targets of `OPTIONS *` and `CONNECT`, `*` and the empty path, are their own normal form.
pub(super) fn readings(path: &str) -> Readings<'_> {
    if is_plain(path) || matches!(path, "*" | "") {
        return Readings::One(path.into());
    }
    let Some(spelled) = spelled(path).filter(|path| path.starts_with('/')) else {
        return Readings::Unreadable;
    };
    let separated = without_parameters(&spelled.replace("%2F", "/").replace("%5C", "/"));
    match (resolved(&spelled, false), resolved(&separated, true)) {
        (Some(strict), Some(lax)) if strict == lax => Readings::One(strict.into()),
        (Some(strict), Some(lax)) => Readings::Two { strict, lax },
        _ => Readings::Unreadable,
    }
}

/// A condition on paths, with its text brought into the spelling of the normal form.
pub(super) fn condition(condition: StringMatch) -> StringMatch {
    match condition {
        StringMatch::Exact { value, ignore_case } => {
            StringMatch::Exact { value: literal(&value), ignore_case }
        }
        StringMatch::Prefix { value, ignore_case } => {
            StringMatch::Prefix { value: literal(&value), ignore_case }
        }
        StringMatch::Suffix { value, ignore_case } => {
            StringMatch::Suffix { value: literal(&value), ignore_case }
        }
        StringMatch::Contains { value, ignore_case } => {
            StringMatch::Contains { value: literal(&value), ignore_case }
        }
        StringMatch::Regex(regex) => StringMatch::Regex(regex),
    }
}

/// Whether a path is in normal form and has no other reading, so that nothing needs to be done. It may say no of some
/// that are.
fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    let plain = |b: u8| may_stand(b) && b != b';';
    bytes.first() == Some(&b'/')
        && bytes.iter().all(|b| plain(*b))
        && !bytes.windows(2).any(|pair| matches!(pair, b"//" | b"/."))
}

/// Spells every character in its one way; `None` for a NUL or a broken escape.
fn spelled(path: &str) -> Option<String> {
    let mut text = String::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                let escaped = escape::unescaped(&[bytes.next()?, bytes.next()?])?;
                if !is_unreserved(escaped) {
                    escape::push(&mut text, escaped);
                    continue;
                }
                escaped
            }
            _ => byte,
        };
        push(&mut text, byte);
    }
    (!text.contains("%00")).then_some(text)
}

/// As [`spelled`] for the text of a condition, in which a `%` may also stand for itself.
fn literal(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for (at, part) in value.split('%').enumerate() {
        let escape =
            (at > 0).then(|| part.get(..2).and_then(|digits| spelled(&format!("%{digits}")))).flatten();
        let rest = match escape {
            Some(escape) => {
                text.push_str(&escape);
                &part[2..]
            }
            None => {
                if at > 0 {
                    escape::push(&mut text, b'%');
                }
                part
            }
        };
        rest.bytes().for_each(|byte| push(&mut text, byte));
    }
    text
}

/// Cuts from each segment what stands behind a `;`.
fn without_parameters(path: &str) -> String {
    let segments: Vec<&str> =
        path.split('/').map(|segment| segment.split_once(';').map_or(segment, |(name, _)| name)).collect();
    segments.join("/")
}

/// Resolves dot segments and merges slashes, in this order or (`merge_first`) the other; `None` for a path that leads
/// above the root.
fn resolved(path: &str, merge_first: bool) -> Option<String> {
    let mut kept: Vec<&str> = Vec::new();
    let mut ends_open = false;
    for segment in path.split('/').skip(1) {
        ends_open = matches!(segment, "" | "." | "..");
        match segment {
            "." => {}
            ".." => drop(kept.pop()?),
            "" if merge_first => {}
            _ => kept.push(segment),
        }
    }
    let mut text = String::with_capacity(path.len());
    for segment in kept.into_iter().filter(|segment| !segment.is_empty()) {
        text.push('/');
        text.push_str(segment);
    }
    if ends_open {
        text.push('/');
    }
    Some(text)
}

fn push(text: &mut String, byte: u8) {
    match may_stand(byte) {
        true => text.push(char::from(byte)),
        false => escape::push(text, byte),
    }
}

/// Whether a byte may stand in a path as it is: RFC 3986's `pchar`, and the slash.
fn may_stand(byte: u8) -> bool {
    is_unreserved(byte) || matches!(byte, b'/' | b'!' | b'$' | b'&'..=b',' | b':' | b';' | b'=' | b'@')
}

#[cfg(test)]
mod tests;

//! What is done to a request's path before anything is decided by it.
//!
//! In: the target of a request as it was sent, and what its listener says of paths. Out: the target that policies, routes and
//! the backend see. As Envoy does it: escaped slashes first, then dot segments, then repeated slashes; a query is never
//! touched. A path that needs nothing costs one look at each byte.

use crate::escape::{self, is_unreserved, unescaped};
use crate::model::{EscapedSlashes, PathHandling};

/// What becomes of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Normalized {
    /// It stays as it is.
    Same,
    /// This stands in its place.
    Changed(String),
    /// The client is sent there, to ask again.
    Redirect(String),
    /// The request is refused: its path holds an escaped slash, and may not.
    Refused,
}

/// Normalizes the path of a target (path and query, without scheme and authority).
pub fn normalize(target: &str, how: &PathHandling) -> Normalized {
    let end = target.find(['?', '#']).unwrap_or(target.len());
    let (path, rest) = target.split_at(end);
    // `OPTIONS *` and CONNECT have no path.
    if !path.starts_with('/') || is_plain(path, how) {
        return Normalized::Same;
    }
    let mut text = match how.escaped_slashes {
        EscapedSlashes::Keep => path.to_owned(),
        _ => unescape_slashes(path),
    };
    let had_escaped = text != path;
    if had_escaped && how.escaped_slashes == EscapedSlashes::Reject {
        return Normalized::Refused;
    }
    if how.normalize {
        text = resolve(&text);
    }
    if how.merge_slashes {
        text = merge_slashes(&text);
    }
    match text == path {
        true => Normalized::Same,
        false if had_escaped && how.escaped_slashes == EscapedSlashes::Redirect => {
            Normalized::Redirect(text + rest)
        }
        false => Normalized::Changed(text + rest),
    }
}

/// Whether nothing could need a change. It may say no of some paths that stay as they are.
fn is_plain(path: &str, how: &PathHandling) -> bool {
    let mut before = 0;
    for byte in path.bytes() {
        let suspicious = match byte {
            b'/' => before == b'/' && how.merge_slashes,
            b'.' => before == b'/' && how.normalize,
            b'%' => how.normalize || how.escaped_slashes != EscapedSlashes::Keep,
            b'\\' => how.normalize,
            _ => how.normalize && must_be_escaped(byte),
        };
        if suspicious {
            return false;
        }
        before = byte;
    }
    true
}

fn unescape_slashes(path: &str) -> String {
    path.replace("%2F", "/").replace("%2f", "/").replace("%5C", "\\").replace("%5c", "\\")
}

/// Resolves dot segments, takes a backslash for a slash, spells unreserved characters as themselves and escapes what may
/// not stand in a path: what browsers do to the path of a URL. What would lead above the root leads to the root.
fn resolve(path: &str) -> String {
    let spelled = spell(path);
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = spelled.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        // Some servers take parameters off dot segments too (`..;v=1`).
        match segment.split_once(';').map_or(segment, |(name, _)| name) {
            "." => {}
            ".." => {
                kept.pop();
            }
            _ => {
                kept.push(segment);
                continue;
            }
        }
        if is_last {
            // `/a/..` is the folder in which `a` stands, and so is `/a/.` of `a`.
            kept.push("");
        }
    }
    let mut text = String::with_capacity(spelled.len());
    for segment in kept {
        text.push('/');
        text.push_str(segment);
    }
    text
}

fn spell(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    let bytes = path.as_bytes();
    // Where the last `%` that begins no escape stands in the text.
    let mut stray = None;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'\\' => text.push('/'),
            b'%' => match bytes.get(at..at + 2).and_then(unescaped) {
                Some(meant) if is_unreserved(meant) => {
                    at += 2;
                    text.push(char::from(meant));
                    escape_stray(&mut text, stray, bytes.get(at));
                }
                Some(_) => text.push('%'),
                None => {
                    stray = Some(text.len());
                    text.push('%');
                }
            },
            byte if must_be_escaped(byte) => escape::push(&mut text, byte),
            byte => text.push(char::from(byte)),
        }
    }
    text
}

/// Escapes the `%` at `stray` where the character that was put last makes it the beginning of an escape, so that nobody
/// reads what nobody wrote. `next` is what follows.
fn escape_stray(text: &mut String, stray: Option<usize>, next: Option<&u8>) {
    let Some(stray) = stray else { return };
    let mut digits = text.as_bytes()[stray + 1..].to_vec();
    digits.extend((digits.len() == 1).then_some(next).flatten());
    if digits.len() == 2 && unescaped(&digits).is_some() {
        text.insert_str(stray + 1, "25");
    }
}

fn must_be_escaped(byte: u8) -> bool {
    !byte.is_ascii_graphic() || matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}')
}

fn merge_slashes(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for next in path.chars() {
        if next != '/' || !text.ends_with('/') {
            text.push(next);
        }
    }
    text
}

#[cfg(test)]
mod tests;

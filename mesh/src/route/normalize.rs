//! What is done to a request's path before anything is decided by it.
//!
//! In: the target of a request as it was sent, and what its listener says of paths. Out: the target that policies, routes and
//! the backend see. As Envoy does it: escaped slashes first, then dot segments, then repeated slashes; a query is never
//! touched. A path that needs nothing costs one look at each byte.

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
    let mut text = path.to_owned();
    let mut redirect = false;
    if how.escaped_slashes != EscapedSlashes::Keep && has_escaped_slash(path) {
        redirect = match how.escaped_slashes {
            EscapedSlashes::Reject => return Normalized::Refused,
            EscapedSlashes::Redirect => true,
            EscapedSlashes::Unescape | EscapedSlashes::Keep => false,
        };
        text = unescape_slashes(&text);
    }
    if how.normalize {
        text = resolve(&text);
    }
    if how.merge_slashes {
        text = merge_slashes(&text);
    }
    match text == path {
        true => Normalized::Same,
        false if redirect => Normalized::Redirect(text + rest),
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
            _ => how.normalize && must_be_escaped(byte),
        };
        if suspicious || (byte == b'\\' && how.normalize) {
            return false;
        }
        before = byte;
    }
    true
}

fn has_escaped_slash(path: &str) -> bool {
    path.as_bytes().windows(3).any(|escape| escaped_slash(escape).is_some())
}

/// The slash, or the backslash, that three bytes are an escape of.
fn escaped_slash(escape: &[u8]) -> Option<char> {
    match escape {
        [b'%', b'2', b'f' | b'F', ..] => Some('/'),
        [b'%', b'5', b'c' | b'C', ..] => Some('\\'),
        _ => None,
    }
}

fn unescape_slashes(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(next) = rest.chars().next() {
        match escaped_slash(rest.as_bytes()) {
            Some(slash) => {
                text.push(slash);
                rest = &rest[3..];
            }
            None => {
                text.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    text
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
            b'%' => match bytes.get(at..at + 2).and_then(escaped) {
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
            byte if must_be_escaped(byte) => text.push_str(&format!("%{byte:02X}")),
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
    if digits.len() == 2 && escaped(&digits).is_some() {
        text.insert_str(stray + 1, "25");
    }
}

fn escaped(digits: &[u8]) -> Option<u8> {
    let value = |digit: u8| char::from(digit).to_digit(16);
    let (high, low) = (value(*digits.first()?)?, value(*digits.get(1)?)?);
    u8::try_from(high << 4 | low).ok()
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
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

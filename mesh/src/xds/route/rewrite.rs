//! New paths for forwarded and redirected requests.
//!
//! A rewrite of the prefix on whole segments is written for each half of the pair: for the very path the replacement itself, for
//! what is below it the replacement with one slash behind. An empty replacement says the same as `/` and is written so.

use envoy_types::pb::envoy::config::route::v3::redirect_action::PathRewriteSpecifier;
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher};

use crate::model::{PathRewrite, Substitution};
use crate::xds::error::{At, Decoded, FieldError, non_empty, required};

/// Matches any whole path: Envoy can't replace a whole path when it forwards, other than by an expression.
const WHOLE_PATH: &str = r"^(?s:.*)$";

/// `prefix_rewrite` and `regex_rewrite` of a forwarding route.
pub(super) fn encode_forward(
    path: Option<&PathRewrite>,
    below: bool,
) -> (String, Option<RegexMatchAndSubstitute>) {
    match path {
        None => (String::new(), None),
        Some(PathRewrite::Prefix(prefix)) => (encode_prefix(prefix, below), None),
        Some(PathRewrite::Full(path)) => {
            (String::new(), Some(substitute(WHOLE_PATH, path.replace('\\', r"\\"))))
        }
        Some(PathRewrite::Regex(regex)) => (String::new(), Some(encode_regex(regex))),
    }
}

pub(super) fn decode_forward(
    prefix: String,
    regex: Option<RegexMatchAndSubstitute>,
    path: String,
) -> Decoded<Option<PathRewrite>> {
    let set = [!prefix.is_empty(), regex.is_some(), !path.is_empty()];
    if set.into_iter().filter(|set| *set).count() > 1 {
        return Err(FieldError::new(
            "more than one of prefix_rewrite, regex_rewrite and path_rewrite is set",
        ));
    }
    if path.contains('%') {
        return Err(FieldError::new("command operators are not supported: use regex_rewrite"))
            .at("path_rewrite");
    }
    match regex {
        Some(regex) => Ok(Some(decode_regex(regex).at("regex_rewrite")?)),
        None if !prefix.is_empty() => Ok(Some(PathRewrite::Prefix(prefix))),
        None => Ok((!path.is_empty()).then_some(PathRewrite::Full(path))),
    }
}

pub(super) fn encode_redirect(path: Option<&PathRewrite>, below: bool) -> Option<PathRewriteSpecifier> {
    path.map(|path| match path {
        PathRewrite::Full(path) => PathRewriteSpecifier::PathRedirect(path.clone()),
        PathRewrite::Prefix(prefix) => PathRewriteSpecifier::PrefixRewrite(encode_prefix(prefix, below)),
        PathRewrite::Regex(regex) => PathRewriteSpecifier::RegexRewrite(encode_regex(regex)),
    })
}

pub(super) fn decode_redirect(path: PathRewriteSpecifier) -> Decoded<Option<PathRewrite>> {
    match path {
        PathRewriteSpecifier::PathRedirect(path) => Ok((!path.is_empty()).then_some(PathRewrite::Full(path))),
        PathRewriteSpecifier::PrefixRewrite(prefix) => {
            Ok((!prefix.is_empty()).then_some(PathRewrite::Prefix(prefix)))
        }
        PathRewriteSpecifier::RegexRewrite(regex) => Ok(Some(decode_regex(regex).at("regex_rewrite")?)),
        PathRewriteSpecifier::PathRewrite(_) => {
            Err(FieldError::new("is not supported: use path_redirect")).at("path_rewrite")
        }
    }
}

fn encode_prefix(replacement: &str, below: bool) -> String {
    if below {
        return format!("{}/", replacement.trim_end_matches('/'));
    }
    if replacement.is_empty() { "/".into() } else { replacement.into() }
}

pub(super) fn encode_regex(regex: &Substitution) -> RegexMatchAndSubstitute {
    substitute(regex.pattern(), regex.replacement().into())
}

fn substitute(pattern: &str, substitution: String) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute {
        pattern: Some(RegexMatcher { regex: pattern.into(), engine_type: None }),
        substitution,
    }
}

fn decode_regex(rewrite: RegexMatchAndSubstitute) -> Decoded<PathRewrite> {
    let pattern = non_empty(required(rewrite.pattern, "pattern")?.regex, "pattern.regex")?;
    if pattern == WHOLE_PATH
        && let Some(path) = literal(&rewrite.substitution)
    {
        return Ok(PathRewrite::Full(path));
    }
    Substitution::new(pattern, rewrite.substitution).map(PathRewrite::Regex).map_err(FieldError::new)
}

/// One that need not be of a path.
pub(super) fn decode_substitution(rewrite: RegexMatchAndSubstitute) -> Decoded<Substitution> {
    let pattern = non_empty(required(rewrite.pattern, "pattern")?.regex, "pattern.regex")?;
    Substitution::new(pattern, rewrite.substitution).map_err(FieldError::new)
}

/// The text that a replacement stands for, where it refers to no group.
fn literal(replacement: &str) -> Option<String> {
    let mut text = String::with_capacity(replacement.len());
    let mut characters = replacement.chars();
    while let Some(character) = characters.next() {
        if character == '\\' && characters.next() != Some('\\') {
            return None;
        }
        text.push(character);
    }
    Some(text)
}

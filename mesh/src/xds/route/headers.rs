//! Changes to heads.
//!
//! Envoy substitutes `%...%` in the values that it adds; the model's values are literal. So each `%` is doubled on the way out,
//! and a value with a command operator is refused on the way in.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use http::{HeaderName, HeaderValue};

use crate::model::{HeaderMutation, HeaderMutations, HeaderOp};
use crate::xds::error::{At, Decoded, FieldError, each, required};
use crate::xds::matching;

/// The values to add, as Envoy holds them.
pub(in crate::xds) fn add(mutations: &HeaderMutations) -> Vec<core::HeaderValueOption> {
    mutations.change.iter().map(encode_change).collect()
}

/// The names to remove, as Envoy holds them.
pub(in crate::xds) fn remove(mutations: &HeaderMutations) -> Vec<String> {
    mutations.remove.iter().map(|name| name.as_str().to_owned()).collect()
}

/// Reads the two lists of one direction, `request_headers` or `response_headers`.
pub(in crate::xds) fn decode(
    direction: &str,
    add: Vec<core::HeaderValueOption>,
    remove: Vec<String>,
) -> Decoded<HeaderMutations> {
    let changes = each(&format!("{direction}_to_add"), add, decode_change)?;
    Ok(HeaderMutations {
        remove: each(&format!("{direction}_to_remove"), remove, |name| decode_name(&name))?,
        change: changes.into_iter().flatten().collect(),
    })
}

/// Changes that do what `first` does and then what `second` does.
pub(in crate::xds) fn then(first: HeaderMutations, second: &HeaderMutations) -> HeaderMutations {
    let kept = first.change.into_iter().filter(|change| !second.remove.contains(&change.name));
    let change = kept.chain(second.change.iter().cloned()).collect();
    let mut remove = first.remove;
    remove.extend(second.remove.iter().cloned());
    HeaderMutations { remove, change }
}

fn encode_change(change: &HeaderMutation) -> core::HeaderValueOption {
    let mut header = core::HeaderValue { key: change.name.as_str().into(), ..Default::default() };
    match std::str::from_utf8(change.value.as_bytes()) {
        Ok(text) => header.value = text.replace('%', "%%"),
        Err(_) => header.raw_value = double_percents(change.value.as_bytes()),
    }
    let action = match change.op {
        HeaderOp::Append => HeaderAppendAction::AppendIfExistsOrAdd,
        HeaderOp::AddIfAbsent => HeaderAppendAction::AddIfAbsent,
        HeaderOp::Set => HeaderAppendAction::OverwriteIfExistsOrAdd,
        HeaderOp::SetIfPresent => HeaderAppendAction::OverwriteIfExists,
    };
    core::HeaderValueOption {
        header: Some(header),
        append_action: action as i32,
        keep_empty_value: change.value.is_empty(),
        ..Default::default()
    }
}

/// `None` where Envoy does nothing: an empty value is only added where `keep_empty_value` says so.
fn decode_change(option: core::HeaderValueOption) -> Decoded<Option<HeaderMutation>> {
    let op = decode_op(&option)?;
    let header = required(option.header, "header")?;
    let name = decode_name(&header.key).at("header.key")?;
    let raw = if header.value.is_empty() { header.raw_value } else { header.value.into_bytes() };
    if raw.is_empty() && !option.keep_empty_value {
        return Ok(None);
    }
    let value = halve_percents(&raw).at("header.value")?;
    let value = HeaderValue::from_bytes(&value)
        .map_err(|_| FieldError::new("holds a character that no header value may have"))
        .at("header.value")?;
    Ok(Some(HeaderMutation { name, value, op }))
}

#[expect(deprecated, reason = "other control planes still send `append`, and it goes before the new field")]
fn decode_op(option: &core::HeaderValueOption) -> Decoded<HeaderOp> {
    if let Some(append) = &option.append {
        return Ok(if append.value { HeaderOp::Append } else { HeaderOp::Set });
    }
    match HeaderAppendAction::try_from(option.append_action) {
        Ok(HeaderAppendAction::AppendIfExistsOrAdd) => Ok(HeaderOp::Append),
        Ok(HeaderAppendAction::AddIfAbsent) => Ok(HeaderOp::AddIfAbsent),
        Ok(HeaderAppendAction::OverwriteIfExistsOrAdd) => Ok(HeaderOp::Set),
        Ok(HeaderAppendAction::OverwriteIfExists) => Ok(HeaderOp::SetIfPresent),
        Err(_) => {
            Err(FieldError::new(format!("{} is not an action", option.append_action))).at("append_action")
        }
    }
}

fn decode_name(name: &str) -> Decoded<HeaderName> {
    if name.eq_ignore_ascii_case("host") {
        return Err(FieldError::new("the host may not be changed here: use host_rewrite_literal"));
    }
    matching::header_name(name)
}

fn double_percents(value: &[u8]) -> Vec<u8> {
    value.iter().flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b'%' { 2 } else { 1 })).collect()
}

fn halve_percents(value: &[u8]) -> Decoded<Vec<u8>> {
    let mut bytes = value.iter().copied().peekable();
    let mut literal = Vec::with_capacity(value.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' && bytes.next_if_eq(&b'%').is_none() {
            return Err(FieldError::new("command operators are not supported: write a literal % as %%"));
        }
        literal.push(byte);
    }
    Ok(literal)
}

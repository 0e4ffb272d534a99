//! Changes to heads.
//!
//! Envoy substitutes `%...%` in the values that it adds. A literal value of the model has each `%` doubled on the way out; one with
//! command operators stays as it was written, and is refused where it has one that the sidecar does not know.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use http::{HeaderName, HeaderValue};

use crate::model::{Format, HeaderChanges, HeaderMutation, HeaderMutations, HeaderOp, HeaderText, Operator};
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

/// What is to be added and what to be removed, in one direction.
type Lists = (Vec<core::HeaderValueOption>, Vec<String>);

/// Reads the lists of both directions.
pub(super) fn decode_both(request: Lists, response: Lists) -> Decoded<HeaderChanges> {
    Ok(HeaderChanges {
        request: decode("request_headers", request.0, request.1)?,
        response: decode("response_headers", response.0, response.1)?,
    })
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

fn encode_change(change: &HeaderMutation) -> core::HeaderValueOption {
    let mut header = core::HeaderValue { key: change.name.as_str().into(), ..Default::default() };
    let (value, keep_empty_value) = match &change.value {
        HeaderText::Literal(value) => (double_percents(value.as_bytes()), value.is_empty()),
        HeaderText::Format { format, keep_empty } => (format.source().to_vec(), *keep_empty),
    };
    match String::from_utf8(value) {
        Ok(text) => header.value = text,
        Err(error) => header.raw_value = error.into_bytes(),
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
        keep_empty_value,
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
    let value = decode_value(&raw, option.keep_empty_value).at("header.value")?;
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

fn decode_value(text: &[u8], keep_empty: bool) -> Decoded<HeaderText> {
    let valid = |text: &[u8]| {
        HeaderValue::from_bytes(text)
            .map_err(|_| FieldError::new("holds a character that no header value may have"))
    };
    let format = Format::parse(text).map_err(|error| FieldError::new(error.to_string()))?;
    if let Some(text) = format.literal() {
        return Ok(valid(text)?.into());
    }
    format.texts().try_for_each(|text| valid(text).map(drop))?;
    format.operators().try_for_each(known)?;
    Ok(HeaderText::Format { format, keep_empty })
}

fn known(operator: &Operator) -> Decoded<()> {
    let name = match operator {
        Operator::Other(name) => &**name,
        Operator::GrpcStatus => "GRPC_STATUS",
        Operator::UpstreamPeerUriSan => "UPSTREAM_PEER_URI_SAN",
        _ => return Ok(()),
    };
    let fix = match name {
        "ENVIRONMENT" => {
            "what is in the sidecar's environment is not for others to send on: write the value itself"
        }
        _ => {
            "use REQ, RESP, START_TIME, PROTOCOL, ROUTE_NAME, HOSTNAME, those of addresses (DOWNSTREAM_REMOTE_ADDRESS, \
             UPSTREAM_HOST, ...), those of TLS (DOWNSTREAM_PEER_URI_SAN, ...), PATH, QUERY_PARAM, STREAM_ID, REQUESTED_SERVER_NAME, UPSTREAM_CLUSTER, RESPONSE_CODE, \
             RESPONSE_FLAGS, RESPONSE_CODE_DETAILS, DURATION or TRACE_ID; write a literal % as %%"
        }
    };
    Err(FieldError::new(format!("%{name}% is not supported: {fix}")))
}

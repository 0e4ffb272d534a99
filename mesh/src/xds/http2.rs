//! What is set of HTTP/2, at either end of a connection.

use envoy_types::pb::envoy::config::core::v3::Http2ProtocolOptions;
use envoy_types::pb::google::protobuf::UInt32Value;

use super::error::{At, Decoded, FieldError, unsupported};
use super::proto;
use crate::model::Http2;

/// The least window (RFC 9113, section 6.9.2), and so the least that Envoy takes.
const LEAST_WINDOW: u32 = 65_535;
/// The greatest window, and the most streams (RFC 9113, section 6.9.1).
const MOST: u32 = i32::MAX.unsigned_abs();

pub(super) fn encode(http2: &Http2) -> Http2ProtocolOptions {
    Http2ProtocolOptions {
        max_concurrent_streams: proto::u32_value(http2.streams),
        initial_stream_window_size: proto::u32_value(http2.stream_window),
        initial_connection_window_size: proto::u32_value(http2.connection_window),
        ..Default::default()
    }
}

/// The ranges are Envoy's.
pub(super) fn decode(options: &Http2ProtocolOptions) -> Decoded<Http2> {
    let custom = !options.custom_settings_parameters.is_empty();
    unsupported(custom, "custom_settings_parameters", "leave them out")?;
    Ok(Http2 {
        streams: limit(options.max_concurrent_streams, 1, "max_concurrent_streams")?,
        stream_window: limit(options.initial_stream_window_size, LEAST_WINDOW, "initial_stream_window_size")?,
        connection_window: limit(
            options.initial_connection_window_size,
            LEAST_WINDOW,
            "initial_connection_window_size",
        )?,
    })
}

fn limit(limit: Option<UInt32Value>, least: u32, field: &str) -> Decoded<Option<u32>> {
    match limit.map(|limit| limit.value) {
        None => Ok(None),
        Some(limit) if (least..=MOST).contains(&limit) => Ok(Some(limit)),
        Some(limit) => {
            Err(FieldError::new(format!("{limit} is not a limit: use {least} to {MOST}"))).at(field)
        }
    }
}

//! Access logs: lines on standard output.
//!
//! Tulle's JSON line has fixed attributes; for Envoy they are spelled out with its operators. Any JSON format that is read
//! stands for Tulle's own line.

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::config::core::v3::SubstitutionFormatString;
use envoy_types::pb::envoy::config::core::v3::substitution_format_string::Format as TextFormat;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::{FileAccessLog, file_access_log};
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::{StdoutAccessLog, stdout_access_log};
use envoy_types::pb::google::protobuf::{Any, Struct};
use prost::Name;

use super::log_filter;
use crate::model::{AccessLog, AccessLogFormat, Format};
use crate::xds::error::{At, Decoded, FieldError, unsupported};
use crate::xds::proto;

const STDOUT: &str = "/dev/stdout";

/// OpenTelemetry's attributes, and where Envoy finds their values.
const ATTRIBUTES: &[(&str, &str)] = &[
    ("client.address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("duration_ms", "%DURATION%"),
    ("http.request.header.host", "%REQ(:AUTHORITY)%"),
    ("http.request.method", "%REQ(:METHOD)%"),
    ("http.request.size", "%BYTES_RECEIVED%"),
    ("http.response.size", "%BYTES_SENT%"),
    ("http.response.status_code", "%RESPONSE_CODE%"),
    ("network.protocol.name", "%PROTOCOL%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("server.address", "%UPSTREAM_HOST%"),
    ("time", "%START_TIME%"),
    ("tls.client.san", "%DOWNSTREAM_PEER_URI_SAN%"),
    ("trace_id", "%TRACE_ID%"),
    ("tulle.cluster", "%UPSTREAM_CLUSTER%"),
    ("tulle.route", "%ROUTE_NAME%"),
    ("url.path", "%REQ(:PATH)%"),
];

pub(super) fn encode(log: &AccessLog) -> pb::AccessLog {
    let file = |format: Option<TextFormat>| FileAccessLog {
        path: STDOUT.into(),
        access_log_format: format.map(|format| {
            file_access_log::AccessLogFormat::LogFormat(SubstitutionFormatString {
                format: Some(format),
                ..Default::default()
            })
        }),
    };
    let parts = match &log.format {
        AccessLogFormat::Json => {
            let attribute = |&(name, value): &(&str, &str)| (name.to_owned(), proto::text(value));
            let attributes = ATTRIBUTES.iter().map(attribute);
            // A part per attribute, as the entries of a map in fixed order; the path stands once, in front.
            let parts = attributes.map(|attribute| FileAccessLog {
                path: String::new(),
                ..file(Some(TextFormat::JsonFormat(Struct { fields: [attribute].into() })))
            });
            std::iter::once(file(None)).chain(parts).collect()
        }
        AccessLogFormat::Text(format) if format.is_empty() => vec![file(None)],
        AccessLogFormat::Text(format) => vec![file(Some(text_format(format)))],
    };
    pb::AccessLog {
        name: "envoy.access_loggers.file".into(),
        config_type: Some(pb::access_log::ConfigType::TypedConfig(Any {
            type_url: FileAccessLog::type_url(),
            value: proto::merged(parts),
        })),
        filter: log.filter.as_deref().map(log_filter::encode),
    }
}

/// The first log that goes to standard output. Others (files, services) are passed over.
pub(super) fn decode(logs: Vec<pb::AccessLog>) -> Decoded<Option<AccessLog>> {
    for (index, log) in logs.into_iter().enumerate() {
        let filter = log.filter.map(|filter| log_filter::decode(filter).map(Box::new)).transpose();
        let filter = filter.at("filter").at_item("access_log", index)?;
        let Some(pb::access_log::ConfigType::TypedConfig(config)) = log.config_type else { continue };
        if let Some(format) = decode_log(&config).at("typed_config").at_item("access_log", index)? {
            return Ok(Some(AccessLog { format, filter }));
        }
    }
    Ok(None)
}

#[expect(deprecated, reason = "other control planes still send the old forms of a format")]
fn decode_log(config: &Any) -> Decoded<Option<AccessLogFormat>> {
    use file_access_log::AccessLogFormat as File;
    let format = if proto::is::<FileAccessLog>(config) {
        let file: FileAccessLog = proto::unpack(config)?;
        if file.path != STDOUT {
            return Ok(None);
        }
        match file.access_log_format {
            None => return Ok(Some(AccessLogFormat::Text(Format::lenient("")))),
            Some(File::Format(format)) => return Ok(Some(AccessLogFormat::Text(Format::lenient(format)))),
            Some(File::JsonFormat(_) | File::TypedJsonFormat(_)) => return Ok(Some(AccessLogFormat::Json)),
            Some(File::LogFormat(format)) => format,
        }
    } else if proto::is::<StdoutAccessLog>(config) {
        match proto::unpack::<StdoutAccessLog>(config)?.access_log_format {
            None => return Ok(Some(AccessLogFormat::Text(Format::lenient("")))),
            Some(stdout_access_log::AccessLogFormat::LogFormat(format)) => format,
        }
    } else {
        return Ok(None);
    };
    decode_format(format).at("log_format").map(Some)
}

#[expect(deprecated, reason = "text_format is deprecated for text_format_source, which older Envoys lack")]
fn text_format(format: &Format) -> TextFormat {
    TextFormat::TextFormat(format.to_string())
}

#[expect(deprecated, reason = "text_format is still what others send")]
fn decode_format(format: SubstitutionFormatString) -> Decoded<AccessLogFormat> {
    use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
    unsupported(!format.formatters.is_empty(), "formatters", "use the built-in command operators")?;
    match format.format {
        None => Ok(AccessLogFormat::Text(Format::lenient(""))),
        Some(TextFormat::JsonFormat(_)) => Ok(AccessLogFormat::Json),
        Some(TextFormat::TextFormat(format)) => Ok(AccessLogFormat::Text(Format::lenient(format))),
        Some(TextFormat::TextFormatSource(source)) => match source.specifier {
            Some(Specifier::InlineString(format)) => Ok(AccessLogFormat::Text(Format::lenient(format))),
            _ => Err(FieldError::new("files and variables are not read: use inline_string"))
                .at("text_format_source"),
        },
    }
}

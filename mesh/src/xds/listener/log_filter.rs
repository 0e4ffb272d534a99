//! Of which requests there is a line in a log.

use envoy_types::pb::envoy::config::accesslog::v3 as pb;
use envoy_types::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use envoy_types::pb::envoy::config::accesslog::v3::comparison_filter::Op;
use envoy_types::pb::envoy::config::core::v3::RuntimeUInt32;

use crate::model::{Comparison, LogFilter};
use crate::xds::error::{At, Decoded, FieldError, each, required};
use crate::xds::matching;

/// What Envoy calls for short why a response is its own.
const FLAGS: [&str; 30] = [
    "LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "RLSE", "DC", "URX",
    "SI", "IH", "DPE", "UMSDR", "RFCF", "NFCF", "DT", "UPE", "NC", "OM", "DF", "DO", "DR", "UDO",
];

/// Where a value of Envoy's runtime might stand in its place; there is none.
const RUNTIME_KEY: &str = "tulle.access_log";

pub(super) fn encode(filter: &LogFilter) -> pb::AccessLogFilter {
    let specifier = match filter {
        LogFilter::Status(comparison) => {
            FilterSpecifier::StatusCodeFilter(pb::StatusCodeFilter { comparison: Some(compare(*comparison)) })
        }
        LogFilter::Duration(comparison) => {
            FilterSpecifier::DurationFilter(pb::DurationFilter { comparison: Some(compare(*comparison)) })
        }
        LogFilter::NotHealthCheck => FilterSpecifier::NotHealthCheckFilter(pb::NotHealthCheckFilter {}),
        LogFilter::Traced => FilterSpecifier::TraceableFilter(pb::TraceableFilter {}),
        LogFilter::Fraction(share) => FilterSpecifier::RuntimeFilter(pb::RuntimeFilter {
            runtime_key: RUNTIME_KEY.into(),
            percent_sampled: matching::runtime_fraction(*share).default_value,
            use_independent_randomness: true,
        }),
        LogFilter::Header(header) => {
            FilterSpecifier::HeaderFilter(pb::HeaderFilter { header: Some(matching::header(header)) })
        }
        LogFilter::Flags(flags) => {
            FilterSpecifier::ResponseFlagFilter(pb::ResponseFlagFilter { flags: flags.clone() })
        }
        LogFilter::GrpcStatus { statuses, exclude } => {
            FilterSpecifier::GrpcStatusFilter(pb::GrpcStatusFilter {
                statuses: statuses.iter().filter_map(|status| i32::try_from(*status).ok()).collect(),
                exclude: *exclude,
            })
        }
        LogFilter::All(filters) => {
            FilterSpecifier::AndFilter(pb::AndFilter { filters: filters.iter().map(encode).collect() })
        }
        LogFilter::Any(filters) => {
            FilterSpecifier::OrFilter(pb::OrFilter { filters: filters.iter().map(encode).collect() })
        }
    };
    pb::AccessLogFilter { filter_specifier: Some(specifier) }
}

pub(super) fn decode(filter: pb::AccessLogFilter) -> Decoded<LogFilter> {
    use FilterSpecifier as Specifier;
    Ok(match required(filter.filter_specifier, "filter_specifier")? {
        Specifier::StatusCodeFilter(filter) => {
            LogFilter::Status(decode_comparison(filter.comparison).at("status_code_filter")?)
        }
        Specifier::DurationFilter(filter) => {
            LogFilter::Duration(decode_comparison(filter.comparison).at("duration_filter")?)
        }
        Specifier::NotHealthCheckFilter(_) => LogFilter::NotHealthCheck,
        Specifier::TraceableFilter(_) => LogFilter::Traced,
        Specifier::RuntimeFilter(filter) => {
            let share = filter.percent_sampled.unwrap_or_default();
            LogFilter::Fraction(matching::decode_fraction(share).at("runtime_filter.percent_sampled")?)
        }
        Specifier::HeaderFilter(filter) => {
            let header = required(filter.header, "header").and_then(matching::decode_header);
            LogFilter::Header(header.at("header_filter.header")?)
        }
        Specifier::ResponseFlagFilter(filter) => {
            if let Some(unknown) = filter.flags.iter().find(|flag| !FLAGS.contains(&flag.as_str())) {
                let problem = format!("{unknown:?} is not a flag: use {}", FLAGS.join(", "));
                return Err(FieldError::new(problem)).at("response_flag_filter.flags");
            }
            LogFilter::Flags(filter.flags)
        }
        Specifier::GrpcStatusFilter(filter) => {
            let status = |status: i32| match u32::try_from(status) {
                Ok(status) if status <= 16 => Ok(status),
                _ => Err(FieldError::new(format!("{status} is not a gRPC status: use 0 to 16"))),
            };
            let statuses = each("statuses", filter.statuses, status).at("grpc_status_filter")?;
            LogFilter::GrpcStatus { statuses, exclude: filter.exclude }
        }
        Specifier::AndFilter(filter) => {
            LogFilter::All(each("filters", filter.filters, decode).at("and_filter")?)
        }
        Specifier::OrFilter(filter) => {
            LogFilter::Any(each("filters", filter.filters, decode).at("or_filter")?)
        }
        Specifier::ExtensionFilter(_) => return unknown("extension_filter"),
        Specifier::MetadataFilter(_) => return unknown("metadata_filter"),
        Specifier::LogTypeFilter(_) => return unknown("log_type_filter"),
    })
}

fn unknown(field: &str) -> Decoded<LogFilter> {
    let problem =
        "is not supported: use those of statuses, durations, headers, flags, and_filter or or_filter";
    Err(FieldError::new(problem)).at(field)
}

fn compare(comparison: Comparison) -> pb::ComparisonFilter {
    let (op, value) = match comparison {
        Comparison::Equal(value) => (Op::Eq, value),
        Comparison::AtLeast(value) => (Op::Ge, value),
        Comparison::AtMost(value) => (Op::Le, value),
        Comparison::Not(value) => (Op::Ne, value),
    };
    let value = RuntimeUInt32 { default_value: value, runtime_key: RUNTIME_KEY.into() };
    pb::ComparisonFilter { op: op as i32, value: Some(value) }
}

fn decode_comparison(comparison: Option<pb::ComparisonFilter>) -> Decoded<Comparison> {
    let comparison = required(comparison, "comparison")?;
    let value = required(comparison.value, "comparison.value")?.default_value;
    match Op::try_from(comparison.op) {
        Ok(Op::Eq) => Ok(Comparison::Equal(value)),
        Ok(Op::Ge) => Ok(Comparison::AtLeast(value)),
        Ok(Op::Le) => Ok(Comparison::AtMost(value)),
        Ok(Op::Ne) => Ok(Comparison::Not(value)),
        Err(_) => {
            Err(FieldError::new(format!("{} is no comparison: use GE", comparison.op))).at("comparison.op")
        }
    }
}

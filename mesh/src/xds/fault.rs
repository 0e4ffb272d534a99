//! Injected faults, of a listener or of a route.
//!
//! Envoy and gRPC know either an HTTP or a gRPC status for an abort. Where the model has both, the gRPC status is in the
//! field, and the HTTP status for other requests is in the filter's metadata.

use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as common;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::{
    FaultDelaySecifier, HeaderDelay,
};
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_rate_limit::{
    FixedLimit, HeaderLimit, LimitType,
};
use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::fault_abort::{ErrorType, HeaderAbort};
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::google::protobuf::Struct;
use http::StatusCode;

use super::error::{At, Decoded, FieldError, each, required};
use super::proto::{self, Fields, Read};
use super::{matching, route};
use crate::model::{Fault, FaultAbort, FaultPart};

const HTTP_STATUS: &str = "tulle.httpStatus";

pub(super) fn encode(fault: &Fault) -> pb::HttpFault {
    let delay = fault.delay.as_ref().map(|part| common::FaultDelay {
        percentage: Some(encode_share(part)),
        fault_delay_secifier: Some(match part {
            FaultPart::Fixed { value, .. } => FaultDelaySecifier::FixedDelay(proto::duration(*value)),
            FaultPart::Asked(_) => FaultDelaySecifier::HeaderDelay(HeaderDelay::default()),
        }),
    });
    let abort = fault.abort.as_ref().map(|part| pb::FaultAbort {
        percentage: Some(encode_share(part)),
        error_type: Some(match part {
            FaultPart::Fixed { value: FaultAbort { grpc_status: Some(status), .. }, .. } => {
                ErrorType::GrpcStatus(*status)
            }
            FaultPart::Fixed { value, .. } => ErrorType::HttpStatus(value.status.as_u16().into()),
            FaultPart::Asked(_) => ErrorType::HeaderAbort(HeaderAbort::default()),
        }),
        ..Default::default()
    });
    let response_rate_limit = fault.rate.as_ref().map(|part| common::FaultRateLimit {
        percentage: Some(encode_share(part)),
        limit_type: Some(match part {
            FaultPart::Fixed { value, .. } => LimitType::FixedLimit(FixedLimit { limit_kbps: *value }),
            FaultPart::Asked(_) => LimitType::HeaderLimit(HeaderLimit::default()),
        }),
    });
    let both = match &fault.abort {
        Some(FaultPart::Fixed { value, .. }) if value.grpc_status.is_some() => Some(value.status),
        _ => None,
    };
    let http_status = both.map(|status| (HTTP_STATUS.to_owned(), proto::number(status.as_u16().into())));
    pb::HttpFault {
        delay,
        abort,
        response_rate_limit,
        headers: fault.applies_to.iter().map(matching::header).collect(),
        filter_metadata: http_status.map(|status| Struct { fields: [status].into() }),
        upstream_cluster: fault.cluster.clone(),
        downstream_nodes: fault.nodes.clone(),
        max_active_faults: proto::u32_value(fault.max_active),
        ..Default::default()
    }
}

pub(super) fn decode(fault: pb::HttpFault) -> Decoded<Fault> {
    let metadata: Fields = fault.filter_metadata.unwrap_or_default().fields.into_iter().collect();
    Ok(Fault {
        delay: fault.delay.map(|delay| decode_delay(delay).at("delay")).transpose()?,
        abort: fault.abort.map(|abort| decode_abort(abort, &metadata).at("abort")).transpose()?,
        rate: fault
            .response_rate_limit
            .map(|rate| decode_rate(rate).at("response_rate_limit"))
            .transpose()?,
        applies_to: each("headers", fault.headers, matching::decode_header)?,
        cluster: fault.upstream_cluster,
        nodes: fault.downstream_nodes,
        max_active: fault.max_active_faults.map(|most| most.value),
    })
}

fn decode_delay(delay: common::FaultDelay) -> Decoded<FaultPart<std::time::Duration>> {
    let fixed = match required(delay.fault_delay_secifier, "fixed_delay")? {
        FaultDelaySecifier::FixedDelay(duration) => proto::decode_positive(Some(duration), "fixed_delay")?,
        FaultDelaySecifier::HeaderDelay(_) => None,
    };
    decode_part(fixed, delay.percentage)
}

fn decode_abort(abort: pb::FaultAbort, metadata: &Fields) -> Decoded<FaultPart<FaultAbort>> {
    let fixed = match required(abort.error_type, "error_type")? {
        ErrorType::HttpStatus(status) => {
            let status = route::decode_status(status).at("http_status")?;
            Some(FaultAbort { status, grpc_status: None })
        }
        ErrorType::GrpcStatus(grpc) => {
            // With a gRPC status alone, Envoy answers every request with 200 and that status.
            let status = match metadata.number(HTTP_STATUS).at("filter_metadata")? {
                Some(status) => route::decode_status(status).at("filter_metadata")?,
                None => StatusCode::OK,
            };
            Some(FaultAbort { status, grpc_status: Some(grpc) })
        }
        ErrorType::HeaderAbort(_) => None,
    };
    decode_part(fixed, abort.percentage)
}

fn decode_rate(rate: common::FaultRateLimit) -> Decoded<FaultPart<u64>> {
    let fixed = match required(rate.limit_type, "fixed_limit")? {
        LimitType::FixedLimit(FixedLimit { limit_kbps: 0 }) => {
            return Err(FieldError::new("is zero: set it from 1")).at("fixed_limit.limit_kbps");
        }
        LimitType::FixedLimit(limit) => Some(limit.limit_kbps),
        LimitType::HeaderLimit(_) => None,
    };
    decode_part(fixed, rate.percentage)
}

/// Without a value the request asks for one.
fn decode_part<T>(value: Option<T>, percentage: Option<FractionalPercent>) -> Decoded<FaultPart<T>> {
    let percentage = percentage.unwrap_or_default();
    match value {
        Some(value) => {
            let fraction = matching::decode_fraction(percentage).at("percentage")?;
            Ok(FaultPart::Fixed { value, fraction })
        }
        None => matching::decode_asked(percentage).at("percentage").map(FaultPart::Asked),
    }
}

fn encode_share<T>(part: &FaultPart<T>) -> FractionalPercent {
    match part {
        FaultPart::Fixed { fraction, .. } => matching::fraction(*fraction),
        FaultPart::Asked(share) => matching::asked(*share),
    }
}

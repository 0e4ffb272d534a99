//! Injected faults, of a listener or of a route.
//!
//! Envoy and gRPC know either an HTTP or a gRPC status for an abort. Where the model has both, the gRPC status is in the
//! field, and the HTTP status for other requests is in the filter's metadata.

use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as common;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use envoy_types::pb::google::protobuf::Struct;
use http::StatusCode;

use super::error::{At, Decoded, FieldError, each, refuse, required, unsupported};
use super::proto::{self, Fields, Read};
use super::{matching, route};
use crate::model::{Fault, FaultAbort, FaultDelay};

/// The name of the filter, and so of its settings on a route.
pub(super) const FILTER: &str = "envoy.filters.http.fault";

const HTTP_STATUS: &str = "tulle.httpStatus";

pub(super) fn encode(fault: &Fault) -> pb::HttpFault {
    let delay = fault.delay.as_ref().map(|delay| common::FaultDelay {
        percentage: Some(matching::fraction(delay.fraction)),
        fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(proto::duration(delay.duration))),
    });
    let abort = fault.abort.as_ref().map(|abort| pb::FaultAbort {
        percentage: Some(matching::fraction(abort.fraction)),
        error_type: Some(match abort.grpc_status {
            Some(status) => ErrorType::GrpcStatus(status),
            None => ErrorType::HttpStatus(abort.status.as_u16().into()),
        }),
        ..Default::default()
    });
    let both = fault.abort.as_ref().filter(|abort| abort.grpc_status.is_some());
    let http_status = both.map(|abort| (HTTP_STATUS.to_owned(), proto::number(abort.status.as_u16().into())));
    let filter_metadata = http_status.map(|status| Struct { fields: [status].into() });
    let headers = fault.applies_to.iter().map(matching::header).collect();
    pb::HttpFault { delay, abort, headers, filter_metadata, ..Default::default() }
}

pub(super) fn decode(fault: pb::HttpFault) -> Decoded<Fault> {
    let fix = "put the fault on the route that it is for";
    unsupported(!fault.upstream_cluster.is_empty(), "upstream_cluster", fix)?;
    unsupported(!fault.downstream_nodes.is_empty(), "downstream_nodes", fix)?;
    unsupported(fault.response_rate_limit.is_some(), "response_rate_limit", "use a delay")?;
    refuse!(fault; max_active_faults)?;
    let metadata: Fields = fault.filter_metadata.unwrap_or_default().fields.into_iter().collect();
    let delay = fault.delay.map(|delay| decode_delay(delay).at("delay")).transpose()?;
    let abort = fault.abort.map(|abort| decode_abort(abort, &metadata).at("abort")).transpose()?;
    let applies_to = each("headers", fault.headers, matching::decode_header)?;
    Ok(Fault { delay, abort, applies_to })
}

fn decode_delay(delay: common::FaultDelay) -> Decoded<FaultDelay> {
    let duration = match required(delay.fault_delay_secifier, "fixed_delay")? {
        FaultDelaySecifier::FixedDelay(duration) => {
            proto::decode_positive(Some(duration), "fixed_delay")?.unwrap_or_default()
        }
        FaultDelaySecifier::HeaderDelay(_) => {
            return Err(FieldError::new("is not supported: use fixed_delay")).at("header_delay");
        }
    };
    let fraction = matching::decode_fraction(delay.percentage.unwrap_or_default()).at("percentage")?;
    Ok(FaultDelay { duration, fraction })
}

fn decode_abort(abort: pb::FaultAbort, metadata: &Fields) -> Decoded<FaultAbort> {
    let (status, grpc_status) = match required(abort.error_type, "error_type")? {
        ErrorType::HttpStatus(status) => (route::decode_status(status).at("http_status")?, None),
        ErrorType::GrpcStatus(grpc) => {
            // With a gRPC status alone, Envoy answers every request with 200 and that status.
            let status = match metadata.number(HTTP_STATUS).at("filter_metadata")? {
                Some(status) => route::decode_status(status).at("filter_metadata")?,
                None => StatusCode::OK,
            };
            (status, Some(grpc))
        }
        ErrorType::HeaderAbort(_) => {
            return Err(FieldError::new("is not supported: use http_status or grpc_status"))
                .at("header_abort");
        }
    };
    let fraction = matching::decode_fraction(abort.percentage.unwrap_or_default()).at("percentage")?;
    Ok(FaultAbort { status, grpc_status, fraction })
}

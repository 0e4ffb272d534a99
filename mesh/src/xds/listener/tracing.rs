//! What of a connection manager's requests is traced.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::trace::v3 as trace;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::Tracing as TracingPb;
use envoy_types::pb::envoy::r#type::tracing::v3::CustomTag as CustomTagPb;
use envoy_types::pb::envoy::r#type::tracing::v3::custom_tag::{Header, Literal, Type};
use envoy_types::pb::envoy::r#type::v3::Percent;

use crate::model::{CustomTag, PerMillion, TagValue, Tracing, is_secret_header};
use crate::xds::error::{At, Decoded, FieldError, each, non_empty, refuse, required};
use crate::xds::matching::{decode_share, header_name, share};
use crate::xds::proto;

pub(super) fn encode(tracing: &Tracing, service: &str) -> TracingPb {
    let provider = tracing.collector.as_ref().map(|cluster| trace::OpenTelemetryConfig {
        grpc_service: Some(core::GrpcService {
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
                core::grpc_service::EnvoyGrpc { cluster_name: cluster.clone(), ..Default::default() },
            )),
            ..Default::default()
        }),
        service_name: service.into(),
        ..Default::default()
    });
    TracingPb {
        random_sampling: Some(share(tracing.random_sampling)),
        client_sampling: unless_all(tracing.client_sampling),
        overall_sampling: unless_all(tracing.overall_sampling),
        provider: provider.map(|config| trace::tracing::Http {
            name: "envoy.tracers.opentelemetry".into(),
            config_type: Some(trace::tracing::http::ConfigType::TypedConfig(proto::any(&config))),
        }),
        spawn_upstream_span: proto::bool_value(true),
        custom_tags: tracing.tags.iter().map(encode_tag).collect(),
        ..Default::default()
    }
}

/// A provider other than OpenTelemetry is passed over: spans then go to the sidecar's own collector.
pub(super) fn decode(tracing: TracingPb) -> Decoded<Tracing> {
    let random_sampling = decode_share(tracing.random_sampling, PerMillion::ALL).at("random_sampling")?;
    let client_sampling = decode_share(tracing.client_sampling, PerMillion::ALL).at("client_sampling")?;
    let overall_sampling = decode_share(tracing.overall_sampling, PerMillion::ALL).at("overall_sampling")?;
    let tags = each("custom_tags", tracing.custom_tags, decode_tag)?;
    let config = match tracing.provider.and_then(|provider| provider.config_type) {
        Some(trace::tracing::http::ConfigType::TypedConfig(config))
            if proto::is::<trace::OpenTelemetryConfig>(&config) =>
        {
            proto::unpack::<trace::OpenTelemetryConfig>(&config).at("provider.typed_config")?
        }
        _ => trace::OpenTelemetryConfig::default(),
    };
    refuse!(config; http_service, resource_detectors, sampler)?;
    let collector = match config.grpc_service.and_then(|service| service.target_specifier) {
        Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(service)) => Some(service.cluster_name),
        _ => None,
    };
    let collector = collector.filter(|cluster| !cluster.is_empty());
    Ok(Tracing { random_sampling, client_sampling, overall_sampling, collector, tags })
}

fn encode_tag(tag: &CustomTag) -> CustomTagPb {
    let value = match &tag.value {
        TagValue::Literal(value) => Type::Literal(Literal { value: value.clone() }),
        TagValue::Header { name, default } => {
            Type::RequestHeader(Header { name: name.as_str().into(), default_value: default.clone() })
        }
    };
    CustomTagPb { tag: tag.name.clone(), r#type: Some(value) }
}

fn decode_tag(tag: CustomTagPb) -> Decoded<CustomTag> {
    let name = non_empty(tag.tag, "tag")?;
    let value = match required(tag.r#type, "type")? {
        Type::Literal(literal) => TagValue::Literal(non_empty(literal.value, "value").at("literal")?),
        Type::RequestHeader(header) => {
            let name = header_name(&header.name).at("name").at("request_header")?;
            if is_secret_header(name.as_str()) {
                let problem =
                    format!("{name} holds credentials, which do not belong in a trace: leave the tag out");
                return Err(FieldError::new(problem)).at("name").at("request_header");
            }
            TagValue::Header { name, default: header.default_value }
        }
        Type::Environment(_) => {
            let problem =
                "what is in the sidecar's environment is not for others to see: write the value itself";
            return Err(FieldError::new(problem)).at("environment");
        }
        _ => {
            return Err(FieldError::new("is not supported: use literal or request_header")).at("type");
        }
    };
    Ok(CustomTag { name, value })
}

/// All is the default.
fn unless_all(part: PerMillion) -> Option<Percent> {
    (part != PerMillion::ALL).then(|| share(part))
}

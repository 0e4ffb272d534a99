//! HTTP connections: Envoy's connection manager.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, PathWithEscapedSlashesAction, RouteSpecifier, UpgradeConfig,
};
use envoy_types::pb::google::protobuf::{Any, BoolValue, UInt32Value};
use prost::Message;

use super::{access_log, edge, filters, tracing};
use crate::model::{
    EscapedSlashes, Forwarding, Http2, HttpConnection, PathHandling, RouteSource, Underscores, Upgrade,
};
use crate::xds::error::{At, Decoded, FieldError, non_empty, refuse, required, unsupported};
use crate::xds::{Client, http2, proto, route, upgrades};

/// The most that Envoy lets a request's head have.
const MAX_HEADERS_KB: u32 = 8192;

/// Writes a connection manager as `Any`. Routes that stand in it are written by themselves, in their own fixed order.
pub(super) fn encode_any(connection: &HttpConnection, stat_prefix: &str, client: &Client) -> Any {
    let mut manager = encode(connection, stat_prefix);
    if matches!(client, Client::Envoy(_)) {
        // To Envoy a CONNECT is for routes of its own, which there are none of, and `*` is a name like others.
        manager
            .upgrade_configs
            .retain(|upgrade| ![Upgrade::CONNECT, Upgrade::ANY].contains(&upgrade.upgrade_type.as_str()));
    }
    let mut any = proto::any(&manager);
    if let RouteSource::Inline(routes) = &connection.routes {
        any.value.extend(InlineRoutes { route_config: route::encode_bytes(routes) }.encode_to_vec());
    }
    any
}

/// `HttpConnectionManager` with nothing but its routes, as bytes.
#[derive(Clone, PartialEq, Message)]
struct InlineRoutes {
    #[prost(bytes = "vec", tag = "4")]
    route_config: Vec<u8>,
}

/// Writes a connection manager, but for routes that stand in it. `stat_prefix` is the chain's name. A limit on the bytes of a head is rounded up to whole
/// KiB, which is Envoy's unit.
fn encode(connection: &HttpConnection, stat_prefix: &str) -> pb::HttpConnectionManager {
    let underscores = match connection.underscores {
        Underscores::Allow => HeadersWithUnderscoresAction::Allow,
        Underscores::Reject => HeadersWithUnderscoresAction::RejectRequest,
        Underscores::Drop => HeadersWithUnderscoresAction::DropHeader,
    };
    let common = core::HttpProtocolOptions {
        max_stream_duration: connection.max_stream_duration.map(proto::duration),
        headers_with_underscores_action: underscores as i32,
        idle_timeout: connection.idle_timeout.map(proto::duration),
        max_headers_count: proto::u32_value(connection.max_headers),
        ..Default::default()
    };
    let head_kb = connection.max_request_headers_bytes.map(|bytes| bytes.div_ceil(1024).min(MAX_HEADERS_KB));
    let http2 = (connection.http2 != Http2::default()).then(|| http2::encode(&connection.http2));
    let mut manager = pb::HttpConnectionManager {
        codec_type: CodecType::Auto as i32,
        stat_prefix: stat_prefix.into(),
        http_filters: filters::encode(&connection.filters),
        tracing: connection.tracing.as_ref().map(|tracing| tracing::encode(tracing, stat_prefix)),
        common_http_protocol_options: (common != core::HttpProtocolOptions::default()).then_some(common),
        http2_protocol_options: http2,
        max_request_headers_kb: proto::u32_value(head_kb),
        stream_idle_timeout: connection.stream_idle_timeout.map(proto::duration),
        request_headers_timeout: connection.request_headers_timeout.map(proto::duration),
        delayed_close_timeout: connection.close_timeout.map(proto::duration),
        access_log: connection.access_log.iter().map(access_log::encode).collect(),
        normalize_path: proto::bool_value(connection.paths.normalize),
        merge_slashes: connection.paths.merge_slashes,
        use_remote_address: connection.forwarding.use_remote_address.then_some(BoolValue { value: true }),
        xff_num_trusted_hops: connection.forwarding.trusted_hops,
        skip_xff_append: connection.forwarding.skip_append,
        path_with_escaped_slashes_action: encode_escaped_slashes(connection.paths.escaped_slashes) as i32,
        upgrade_configs: connection.upgrades.iter().map(encode_upgrade).collect(),
        route_specifier: match &connection.routes {
            RouteSource::Named(name) => Some(RouteSpecifier::Rds(pb::Rds {
                config_source: proto::ads(),
                route_config_name: name.clone(),
            })),
            RouteSource::Inline(_) => None,
        },
        ..Default::default()
    };
    edge::encode(connection, &mut manager);
    manager
}

pub(super) fn decode(manager: pb::HttpConnectionManager) -> Decoded<HttpConnection> {
    if manager.codec_type == CodecType::Http3 as i32 {
        return Err(FieldError::new("HTTP3 is not supported: use AUTO")).at("codec_type");
    }
    refuse_rest(&manager)?;
    let edge = edge::decode(&manager)?;
    let common = manager.common_http_protocol_options.unwrap_or_default();
    let idle_timeout =
        proto::decode_duration(common.idle_timeout, "common_http_protocol_options.idle_timeout")?;
    let head_kb = decode_limit(manager.max_request_headers_kb, MAX_HEADERS_KB, "max_request_headers_kb")?;
    let http2 = manager.http2_protocol_options.as_ref().map(http2::decode).transpose();
    Ok(HttpConnection {
        routes: decode_routes(required(manager.route_specifier, "rds")?)?,
        filters: filters::decode(manager.http_filters)?,
        idle_timeout,
        stream_idle_timeout: proto::decode_duration(manager.stream_idle_timeout, "stream_idle_timeout")?,
        max_stream_duration: proto::decode_duration(
            common.max_stream_duration,
            "common_http_protocol_options.max_stream_duration",
        )?,
        underscores: decode_underscores(common.headers_with_underscores_action)
            .at("common_http_protocol_options.headers_with_underscores_action")?,
        request_headers_timeout: proto::decode_duration(
            manager.request_headers_timeout,
            "request_headers_timeout",
        )?,
        close_timeout: proto::decode_duration(manager.delayed_close_timeout, "delayed_close_timeout")?,
        max_request_headers_bytes: head_kb.map(|kb| kb * 1024),
        max_headers: decode_limit(
            common.max_headers_count,
            u32::MAX,
            "common_http_protocol_options.max_headers_count",
        )?,
        http2: http2.at("http2_protocol_options")?.unwrap_or_default(),
        paths: PathHandling {
            normalize: manager.normalize_path.is_some_and(|normalize| normalize.value),
            merge_slashes: manager.merge_slashes,
            escaped_slashes: decode_escaped_slashes(manager.path_with_escaped_slashes_action)
                .at("path_with_escaped_slashes_action")?,
        },
        forwarding: Forwarding {
            use_remote_address: manager.use_remote_address.is_some_and(|on| on.value),
            trusted_hops: manager.xff_num_trusted_hops,
            skip_append: manager.skip_xff_append,
        },
        upgrades: upgrades::decode(manager.upgrade_configs, decode_upgrade)?,
        http_10: edge.http_10,
        request_ids: edge.request_ids,
        client_certificate: edge.client_certificate,
        server: edge.server,
        tracing: manager.tracing.map(|tracing| tracing::decode(tracing).at("tracing")).transpose()?,
        access_log: access_log::decode(manager.access_log)?,
    })
}

fn refuse_rest(manager: &pb::HttpConnectionManager) -> Decoded<()> {
    refuse!(manager;
        append_x_forwarded_port, early_header_mutation_extensions,
        forward_client_cert_matcher, local_reply_config, original_ip_detection_extensions,
        path_normalization_options, request_id_extension, request_timeout, scheme_header_transformation,
        strip_matching_host_port, strip_port_mode, strip_trailing_host_dot, typed_header_validation_config, via;
        switches add_user_agent)?;
    let common = manager.common_http_protocol_options.as_ref();
    proto::refuse_common(common)?;
    let most = common.and_then(|common| common.max_requests_per_connection);
    unsupported(
        most.is_some(),
        "common_http_protocol_options.max_requests_per_connection",
        "set it on clusters",
    )?;
    Ok(())
}

fn encode_upgrade(upgrade: &Upgrade) -> UpgradeConfig {
    UpgradeConfig {
        upgrade_type: upgrade.protocol.clone(),
        enabled: upgrades::encode_enabled(upgrade.enabled),
        filters: Vec::new(),
    }
}

fn decode_upgrade(config: UpgradeConfig) -> Decoded<Upgrade> {
    refuse!(config; filters)?;
    upgrades::decode_one(config.upgrade_type, config.enabled)
}

fn decode_underscores(action: i32) -> Decoded<Underscores> {
    match HeadersWithUnderscoresAction::try_from(action) {
        Ok(HeadersWithUnderscoresAction::Allow) => Ok(Underscores::Allow),
        Ok(HeadersWithUnderscoresAction::RejectRequest) => Ok(Underscores::Reject),
        Ok(HeadersWithUnderscoresAction::DropHeader) => Ok(Underscores::Drop),
        Err(_) => Err(FieldError::new(format!("{action} is not an action: use ALLOW"))),
    }
}

fn encode_escaped_slashes(escaped_slashes: EscapedSlashes) -> PathWithEscapedSlashesAction {
    match escaped_slashes {
        EscapedSlashes::Keep => PathWithEscapedSlashesAction::KeepUnchanged,
        EscapedSlashes::Reject => PathWithEscapedSlashesAction::RejectRequest,
        EscapedSlashes::Redirect => PathWithEscapedSlashesAction::UnescapeAndRedirect,
        EscapedSlashes::Unescape => PathWithEscapedSlashesAction::UnescapeAndForward,
    }
}

fn decode_escaped_slashes(action: i32) -> Decoded<EscapedSlashes> {
    match PathWithEscapedSlashesAction::try_from(action) {
        Ok(
            PathWithEscapedSlashesAction::KeepUnchanged
            | PathWithEscapedSlashesAction::ImplementationSpecificDefault,
        ) => Ok(EscapedSlashes::Keep),
        Ok(PathWithEscapedSlashesAction::RejectRequest) => Ok(EscapedSlashes::Reject),
        Ok(PathWithEscapedSlashesAction::UnescapeAndRedirect) => Ok(EscapedSlashes::Redirect),
        Ok(PathWithEscapedSlashesAction::UnescapeAndForward) => Ok(EscapedSlashes::Unescape),
        Err(_) => Err(FieldError::new(format!("{action} is not an action: use KEEP_UNCHANGED"))),
    }
}

fn decode_routes(specifier: RouteSpecifier) -> Decoded<RouteSource> {
    match specifier {
        RouteSpecifier::Rds(rds) => {
            proto::decode_source(rds.config_source, "rds.config_source")?;
            Ok(RouteSource::Named(non_empty(rds.route_config_name, "rds.route_config_name")?))
        }
        RouteSpecifier::RouteConfig(mut routes) => {
            if routes.name.is_empty() {
                routes.name = "inline".into();
            }
            Ok(RouteSource::Inline(route::decode_configuration(routes).at("route_config")?))
        }
        RouteSpecifier::ScopedRoutes(_) => {
            Err(FieldError::new("is not supported: use rds or route_config")).at("scoped_routes")
        }
    }
}

fn decode_limit(limit: Option<UInt32Value>, most: u32, field: &str) -> Decoded<Option<u32>> {
    match limit.map(|limit| limit.value) {
        None => Ok(None),
        Some(limit) if (1..=most).contains(&limit) => Ok(Some(limit)),
        Some(limit) => Err(FieldError::new(format!("{limit} is not a limit: use 1 to {most}"))).at(field),
    }
}

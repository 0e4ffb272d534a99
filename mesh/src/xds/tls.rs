//! TLS settings of both ends of a mesh connection.
//!
//! A workload has one certificate and one trust bundle. Envoy reads them as secrets (`default`, `ROOTCA`) from files, gRPC takes
//! them from the provider instance `default` of its bootstrap, and Tulle's sidecar has them anyway; both references are
//! written side by side, which each of the three accepts. `tls_params` are written for Envoy alone, since gRPC refuses them.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::certificate_validation_context::TrustChainVerification;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use envoy_types::pb::google::protobuf::Any;

use super::error::{At, Decoded, FieldError, each, refuse, required, unsupported};
use super::{matching, proto};
use crate::model::{DownstreamTls, StringMatch, UpstreamTls};
use crate::xds::Client;

/// The secret, and the provider's certificate, that a workload proves itself with.
const CERTIFICATE: &str = "default";
/// The secret that holds the trust bundle.
const TRUST_BUNDLE: &str = "ROOTCA";
/// The provider instance in the bootstrap of a proxyless gRPC client.
const PROVIDER: &str = "default";
/// gRPC knows TLS by this very name.
const TLS_SOCKET: &str = "envoy.transport_sockets.tls";

pub(super) fn downstream(tls: &DownstreamTls, client: &Client) -> core::TransportSocket {
    socket(
        TLS_SOCKET,
        proto::any(&pb::DownstreamTlsContext {
            common_tls_context: Some(common(&tls.alpn, &[], client)),
            require_client_certificate: proto::bool_value(tls.require_client_certificate),
            ..Default::default()
        }),
    )
}

/// `None`: the bytes are taken as they are.
pub(super) fn decode_downstream(socket: Option<core::TransportSocket>) -> Decoded<Option<DownstreamTls>> {
    let Some(config) = decode_socket(socket)? else { return Ok(None) };
    let field = "typed_config";
    if !proto::is::<pb::DownstreamTlsContext>(&config) {
        return Err(unknown_socket(&config)).at(field);
    }
    let context: pb::DownstreamTlsContext = proto::unpack(&config).at(field)?;
    refuse!(context; ocsp_staple_policy; switches require_sni).at(field)?;
    let (alpn, names) = decode_common(context.common_tls_context).at(field)?;
    unsupported(
        !names.is_empty(),
        "typed_config.common_tls_context.match_typed_subject_alt_names",
        "restrict peers with an authorization filter",
    )?;
    let required = context.require_client_certificate.is_some_and(|required| required.value);
    Ok(Some(DownstreamTls { require_client_certificate: required, alpn }))
}

pub(super) fn upstream(tls: &UpstreamTls, client: &Client) -> core::TransportSocket {
    socket(
        TLS_SOCKET,
        proto::any(&pb::UpstreamTlsContext {
            common_tls_context: Some(common(&tls.alpn, &tls.subject_alt_names, client)),
            sni: tls.sni.clone(),
            ..Default::default()
        }),
    )
}

/// `None`: plaintext. Whether only meshed endpoints speak TLS is not said here.
pub(super) fn decode_upstream(socket: Option<core::TransportSocket>) -> Decoded<Option<UpstreamTls>> {
    let Some(config) = decode_socket(socket)? else { return Ok(None) };
    let field = "typed_config";
    if !proto::is::<pb::UpstreamTlsContext>(&config) {
        return Err(unknown_socket(&config)).at(field);
    }
    let context: pb::UpstreamTlsContext = proto::unpack(&config).at(field)?;
    unsupported(context.auto_host_sni, "typed_config.auto_host_sni", "set sni")?;
    unsupported(context.auto_sni_san_validation, "typed_config.auto_sni_san_validation", "set the names")?;
    let (alpn, subject_alt_names) = decode_common(context.common_tls_context).at(field)?;
    Ok(Some(UpstreamTls { sni: context.sni, subject_alt_names, alpn, only_meshed_endpoints: false }))
}

pub(super) fn raw_buffer() -> core::TransportSocket {
    socket("envoy.transport_sockets.raw_buffer", proto::any(&RawBuffer::default()))
}

fn socket(name: &str, config: Any) -> core::TransportSocket {
    core::TransportSocket {
        name: name.into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(config)),
    }
}

/// The settings of a socket that is not plaintext.
fn decode_socket(socket: Option<core::TransportSocket>) -> Decoded<Option<Any>> {
    let Some(socket) = socket else { return Ok(None) };
    match socket.config_type {
        Some(core::transport_socket::ConfigType::TypedConfig(config)) => {
            Ok((!proto::is::<RawBuffer>(&config)).then_some(config))
        }
        None if socket.name == "envoy.transport_sockets.raw_buffer" => Ok(None),
        None => required(None, "typed_config"),
    }
}

fn unknown_socket(config: &Any) -> FieldError {
    FieldError::new(format!(
        "{:?} is not supported here: use the TLS context of this side, or raw_buffer",
        proto::inner_type(config)
    ))
}

#[expect(deprecated, reason = "gRPC checks the names of the old field only: without it, it would check none")]
fn common(alpn: &[String], names: &[StringMatch], client: &Client) -> pb::CommonTlsContext {
    let provider = |certificate: &str| pb::CertificateProviderPluginInstance {
        instance_name: PROVIDER.into(),
        certificate_name: certificate.into(),
    };
    let secret = |name: &str| pb::SdsSecretConfig {
        name: name.into(),
        sds_config: match client {
            Client::Envoy(envoy) => Some(file_source(&envoy.certificates, name)),
            Client::Sidecar | Client::Grpc => proto::ads(),
        },
    };
    let typed = |matcher: &StringMatch| pb::SubjectAltNameMatcher {
        san_type: SanType::Uri as i32,
        matcher: Some(matching::string(matcher)),
        ..Default::default()
    };
    pb::CommonTlsContext {
        // Envoy's client end would stay below TLS 1.3.
        tls_params: matches!(client, Client::Envoy(_)).then(|| pb::TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13 as i32,
            tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
            ..Default::default()
        }),
        tls_certificate_sds_secret_configs: vec![secret(CERTIFICATE)],
        tls_certificate_provider_instance: Some(provider(CERTIFICATE)),
        alpn_protocols: alpn.to_vec(),
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(pb::CertificateValidationContext {
                    ca_certificate_provider_instance: Some(provider(TRUST_BUNDLE)),
                    match_typed_subject_alt_names: names.iter().map(typed).collect(),
                    match_subject_alt_names: match client {
                        // It goes by the typed names, and warns of these.
                        Client::Envoy(_) => Vec::new(),
                        Client::Sidecar | Client::Grpc => names.iter().map(matching::string).collect(),
                    },
                    ..Default::default()
                }),
                validation_context_sds_secret_config: Some(secret(TRUST_BUNDLE)),
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}

/// A secret in the folder that `tulle certs` keeps.
fn file_source(folder: &str, secret: &str) -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3 as i32,
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::PathConfigSource(
            core::PathConfigSource {
                path: format!("{folder}/{secret}.sds.json"),
                watched_directory: Some(core::WatchedDirectory { path: folder.into(), ..Default::default() }),
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}

/// What is offered in ALPN, and which names the peer may have.
fn decode_common(context: Option<pb::CommonTlsContext>) -> Decoded<(Vec<String>, Vec<StringMatch>)> {
    let field = "common_tls_context";
    let context = required(context, field)?;
    let names = decode_names(&context).at(field)?;
    Ok((context.alpn_protocols, names))
}

fn decode_names(context: &pb::CommonTlsContext) -> Decoded<Vec<StringMatch>> {
    refuse!(context; key_log)?;
    if let Some(params) = &context.tls_params {
        let fix = "leave them out: mesh TLS is 1.3 with the sidecar's own suites";
        unsupported(!params.compliance_policies.is_empty(), "tls_params.compliance_policies", fix)?;
    }
    let own = "a workload has one certificate: name the secret \"default\", or a provider instance";
    unsupported(!context.tls_certificates.is_empty(), "tls_certificates", own)?;
    for (index, secret) in context.tls_certificate_sds_secret_configs.iter().enumerate() {
        unsupported(secret.name != CERTIFICATE, "name", own)
            .at_item("tls_certificate_sds_secret_configs", index)?;
    }
    unsupported(context.custom_handshaker.is_some(), "custom_handshaker", "leave it out")?;
    unsupported(
        context.custom_tls_certificate_selector.is_some(),
        "custom_tls_certificate_selector",
        "leave it out",
    )?;
    match &context.validation_context_type {
        None => Ok(Vec::new()),
        Some(ValidationContextType::ValidationContext(validation)) => {
            decode_validation(validation).at("validation_context")
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) => {
            decode_trust_bundle(secret).at("validation_context_sds_secret_config")?;
            Ok(Vec::new())
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            let secret = &combined.validation_context_sds_secret_config;
            secret.as_ref().map_or(Ok(()), decode_trust_bundle).at("validation_context_sds_secret_config")?;
            let default = &combined.default_validation_context;
            default.as_ref().map_or(Ok(Vec::new()), decode_validation).at("default_validation_context")
        }
        // The deprecated references to a provider say nothing but which bundle, and a workload has one.
        Some(_) => Ok(Vec::new()),
    }
}

fn decode_trust_bundle(secret: &pb::SdsSecretConfig) -> Decoded<()> {
    unsupported(secret.name != TRUST_BUNDLE, "name", "a workload has one trust bundle: name it \"ROOTCA\"")
}

fn decode_validation(context: &pb::CertificateValidationContext) -> Decoded<Vec<StringMatch>> {
    unsupported(
        context.trusted_ca.is_some(),
        "trusted_ca",
        "a workload has one trust bundle: send it as the secret \"ROOTCA\"",
    )?;
    unsupported(
        context.system_root_certs.is_some(),
        "system_root_certs",
        "send the trust bundle as the secret \"ROOTCA\"",
    )?;
    refuse_restrictions(context)?;
    subject_alt_names(context)
}

/// Refuses what narrows or widens the set of accepted peers in a way that Tulle would not follow.
pub(super) fn refuse_restrictions(context: &pb::CertificateValidationContext) -> Decoded<()> {
    let fix = "restrict peers by match_typed_subject_alt_names";
    unsupported(!context.verify_certificate_spki.is_empty(), "verify_certificate_spki", fix)?;
    unsupported(!context.verify_certificate_hash.is_empty(), "verify_certificate_hash", fix)?;
    unsupported(context.crl.is_some(), "crl", "leave it out: certificates of the mesh are short-lived")?;
    unsupported(context.custom_validator_config.is_some(), "custom_validator_config", fix)?;
    refuse!(context; max_verify_depth; switches require_signed_certificate_timestamp)?;
    unsupported(context.allow_expired_certificate, "allow_expired_certificate", "renew certificates")?;
    unsupported(
        context.trust_chain_verification != TrustChainVerification::VerifyTrustChain as i32,
        "trust_chain_verification",
        "peers are always verified: use VERIFY_TRUST_CHAIN",
    )
}

/// The names that a peer may have: of the typed field, or where it is empty of the old one, as Envoy does it.
#[expect(deprecated, reason = "what was written for gRPC has the old field alone")]
pub(super) fn subject_alt_names(context: &pb::CertificateValidationContext) -> Decoded<Vec<StringMatch>> {
    if context.match_typed_subject_alt_names.is_empty() {
        let names = context.match_subject_alt_names.iter().cloned();
        return each("match_subject_alt_names", names, matching::decode_string);
    }
    each("match_typed_subject_alt_names", context.match_typed_subject_alt_names.iter().cloned(), |name| {
        unsupported(
            name.san_type != SanType::Uri as i32,
            "san_type",
            "peers are known by SPIFFE ID: use URI",
        )?;
        matching::decode_string(required(name.matcher, "matcher")?).at("matcher")
    })
}

//! What a connection manager does to every request and response besides routing: old clients, request IDs, what is told of the
//! client's certificate, and `server`.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    ForwardClientCertDetails, ServerHeaderTransformation, SetCurrentClientCertDetails,
};
use envoy_types::pb::google::protobuf::BoolValue;
use http::HeaderValue;

use crate::model::{CertificateDetails, ClientCertificate, Http10, HttpConnection, RequestIds, ServerHeader};
use crate::xds::error::{At, Decoded, FieldError, is_set, refuse, unsupported};

/// What Envoy calls itself where nothing else is said.
const ENVOY: HeaderValue = HeaderValue::from_static("envoy");

/// What is read here.
pub(super) struct Edge {
    pub(super) http_10: Http10,
    pub(super) request_ids: RequestIds,
    pub(super) client_certificate: ClientCertificate,
    pub(super) server: ServerHeader,
}

pub(super) fn encode(connection: &HttpConnection, manager: &mut pb::HttpConnectionManager) {
    let Http10 { accepted, default_host } = &connection.http_10;
    let http1 = core::Http1ProtocolOptions {
        accept_http_10: *accepted,
        default_host_for_http_10: default_host.as_ref().map(text).unwrap_or_default(),
        ..Default::default()
    };
    manager.http_protocol_options = is_set(&http1).then_some(http1);
    let RequestIds { generate, preserve_external, tell_client } = connection.request_ids;
    // It is on by default.
    manager.generate_request_id = (!generate).then_some(BoolValue { value: false });
    manager.preserve_external_request_id = preserve_external;
    manager.always_set_request_id_in_response = tell_client;
    let (forward, details) = encode_certificate(&connection.client_certificate);
    manager.forward_client_cert_details = forward as i32;
    manager.set_current_client_cert_details = details;
    let (server, name) = match &connection.server {
        ServerHeader::PassThrough => (ServerHeaderTransformation::PassThrough, String::new()),
        ServerHeader::Overwrite(name) => (ServerHeaderTransformation::Overwrite, text(name)),
        ServerHeader::AddIfAbsent(name) => (ServerHeaderTransformation::AppendIfAbsent, text(name)),
    };
    manager.server_header_transformation = server as i32;
    manager.server_name = name;
}

pub(super) fn decode(manager: &pb::HttpConnectionManager) -> Decoded<Edge> {
    Ok(Edge {
        http_10: decode_http_10(manager.http_protocol_options.as_ref()).at("http_protocol_options")?,
        request_ids: RequestIds {
            generate: manager.generate_request_id.is_none_or(|generate| generate.value),
            preserve_external: manager.preserve_external_request_id,
            tell_client: manager.always_set_request_id_in_response,
        },
        client_certificate: decode_certificate(manager)?,
        server: decode_server(manager)?,
    })
}

fn decode_http_10(options: Option<&core::Http1ProtocolOptions>) -> Decoded<Http10> {
    let options = options.cloned().unwrap_or_default();
    let host = header_value(&options.default_host_for_http_10).at("default_host_for_http_10")?;
    let http_10 = Http10 { accepted: options.accept_http_10, default_host: host };
    let rest = core::Http1ProtocolOptions {
        accept_http_10: false,
        default_host_for_http_10: String::new(),
        ..options
    };
    unsupported(is_set(&rest), "", "leave out all but accept_http_10 and default_host_for_http_10")?;
    Ok(http_10)
}

/// [`ClientCertificate::Identity`] is written as what is next to it; its chain says the rest.
fn encode_certificate(
    certificate: &ClientCertificate,
) -> (ForwardClientCertDetails, Option<SetCurrentClientCertDetails>) {
    let details = |details: &CertificateDetails| {
        let &CertificateDetails { certificate, chain, subject, uri, dns } = details;
        let subject = subject.then_some(BoolValue { value: true });
        Some(SetCurrentClientCertDetails {
            subject,
            cert: certificate,
            chain,
            dns,
            uri,
            ..Default::default()
        })
    };
    match certificate {
        ClientCertificate::Sanitize => (ForwardClientCertDetails::Sanitize, None),
        ClientCertificate::Forward => (ForwardClientCertDetails::ForwardOnly, None),
        ClientCertificate::Append(told) => (ForwardClientCertDetails::AppendForward, details(told)),
        ClientCertificate::Set(told) => (ForwardClientCertDetails::SanitizeSet, details(told)),
        ClientCertificate::Identity => (
            ForwardClientCertDetails::SanitizeSet,
            details(&CertificateDetails { uri: true, ..Default::default() }),
        ),
        ClientCertificate::AlwaysForward => (ForwardClientCertDetails::AlwaysForwardOnly, None),
    }
}

fn decode_certificate(manager: &pb::HttpConnectionManager) -> Decoded<ClientCertificate> {
    let said = manager.set_current_client_cert_details.unwrap_or_default();
    refuse!(said; format, issuer).at("set_current_client_cert_details")?;
    let told = CertificateDetails {
        certificate: said.cert,
        chain: said.chain,
        subject: said.subject.is_some_and(|subject| subject.value),
        uri: said.uri,
        dns: said.dns,
    };
    match ForwardClientCertDetails::try_from(manager.forward_client_cert_details) {
        Ok(ForwardClientCertDetails::Sanitize) => Ok(ClientCertificate::Sanitize),
        Ok(ForwardClientCertDetails::ForwardOnly) => Ok(ClientCertificate::Forward),
        Ok(ForwardClientCertDetails::AppendForward) => Ok(ClientCertificate::Append(told)),
        Ok(ForwardClientCertDetails::SanitizeSet) => Ok(ClientCertificate::Set(told)),
        Ok(ForwardClientCertDetails::AlwaysForwardOnly) => Ok(ClientCertificate::AlwaysForward),
        Err(_) => {
            let problem =
                format!("{} is none of the ways: use SANITIZE", manager.forward_client_cert_details);
            Err(FieldError::new(problem)).at("forward_client_cert_details")
        }
    }
}

/// Where nothing is said the application's passes, and Envoy writes its own name.
fn decode_server(manager: &pb::HttpConnectionManager) -> Decoded<ServerHeader> {
    let name = header_value(&manager.server_name).at("server_name")?;
    Ok(match ServerHeaderTransformation::try_from(manager.server_header_transformation) {
        Ok(ServerHeaderTransformation::Overwrite) => {
            name.map_or(ServerHeader::PassThrough, ServerHeader::Overwrite)
        }
        Ok(ServerHeaderTransformation::AppendIfAbsent) => ServerHeader::AddIfAbsent(name.unwrap_or(ENVOY)),
        Ok(ServerHeaderTransformation::PassThrough) => ServerHeader::PassThrough,
        Err(_) => {
            let problem =
                format!("{} is none of the ways: use PASS_THROUGH", manager.server_header_transformation);
            return Err(FieldError::new(problem)).at("server_header_transformation");
        }
    })
}

/// `None` for an empty one.
fn header_value(text: &str) -> Decoded<Option<HeaderValue>> {
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = |_| FieldError::new("holds a character that no header value may have");
    HeaderValue::from_str(text).map(Some).map_err(invalid)
}

fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

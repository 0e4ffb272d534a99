//! Secrets: the trust bundle, and certificates where a foreign control plane sends them.
//!
//! Nothing of a key ever stands in an error.

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;

use super::error::{At, Decoded, FieldError, non_empty, required, unsupported};
use super::tls;
use super::{Kind, XdsError};
use crate::model::{PrivateKey, Secret, SecretValue};

const CERTIFICATE: &str = "CERTIFICATE";

/// Writes a secret.
pub fn encode(secret: &Secret) -> pb::Secret {
    let value = match &secret.value {
        SecretValue::TrustBundle(pem) => {
            pb::secret::Type::ValidationContext(pb::CertificateValidationContext {
                trusted_ca: Some(inline(pem)),
                ..Default::default()
            })
        }
        SecretValue::Certificate { chain, key } => pb::secret::Type::TlsCertificate(pb::TlsCertificate {
            certificate_chain: Some(inline(chain)),
            private_key: key.as_ref().map(|key| inline(key.pem())),
            ..Default::default()
        }),
    };
    pb::Secret { name: secret.name.clone(), r#type: Some(value) }
}

/// Reads a secret.
///
/// # Errors
/// When it holds neither a trust bundle nor a certificate in inline PEM.
pub fn decode(message: pb::Secret) -> Result<Secret, XdsError> {
    let name = message.name.clone();
    decode_secret(message).map_err(|error| error.of(Kind::Secret, &name))
}

fn decode_secret(message: pb::Secret) -> Decoded<Secret> {
    let name = non_empty(message.name, "name")?;
    let value = match required(message.r#type, "type")? {
        pb::secret::Type::ValidationContext(context) => {
            decode_trust_bundle(context).at("validation_context")?
        }
        pb::secret::Type::TlsCertificate(certificate) => {
            decode_certificate(certificate).at("tls_certificate")?
        }
        pb::secret::Type::SessionTicketKeys(_) | pb::secret::Type::GenericSecret(_) => {
            return Err(FieldError::new("is not supported: send a validation_context or a tls_certificate"))
                .at("type");
        }
    };
    Ok(Secret { name, value })
}

fn decode_trust_bundle(context: pb::CertificateValidationContext) -> Decoded<SecretValue> {
    tls::refuse_restrictions(&context)?;
    unsupported(
        !tls::subject_alt_names(&context)?.is_empty(),
        "match_typed_subject_alt_names",
        "set it in the TLS context",
    )?;
    let pem = decode_pem(context.trusted_ca, CERTIFICATE).at("trusted_ca")?;
    Ok(SecretValue::TrustBundle(pem))
}

fn decode_certificate(certificate: pb::TlsCertificate) -> Decoded<SecretValue> {
    unsupported(certificate.pkcs12.is_some(), "pkcs12", "use certificate_chain and private_key")?;
    unsupported(certificate.private_key_provider.is_some(), "private_key_provider", "use private_key")?;
    unsupported(certificate.password.is_some(), "password", "send the key unencrypted over mTLS")?;
    let chain = decode_pem(certificate.certificate_chain, CERTIFICATE).at("certificate_chain")?;
    let key = match certificate.private_key {
        None => None,
        key => Some(PrivateKey::new(decode_pem(key, "PRIVATE KEY").at("private_key")?)),
    };
    Ok(SecretValue::Certificate { chain, key })
}

fn inline(pem: &str) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(pem.into())), ..Default::default() }
}

/// Text that holds at least one whole PEM block of this kind. What is inside the block is for the TLS stack to judge.
fn decode_pem(source: Option<DataSource>, block: &str) -> Decoded<String> {
    let text = match source.and_then(|source| source.specifier) {
        Some(Specifier::InlineString(text)) => Some(text),
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes).ok(),
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
            return Err(FieldError::new("files and variables are not read: send it as inline_bytes"));
        }
        None => return Err(FieldError::new("is missing: send it as inline_bytes")),
    };
    // A key's label may have a word in front: "RSA PRIVATE KEY", "EC PRIVATE KEY".
    let (end_of_begin, begin, end) = (format!("{block}-----"), "-----BEGIN ", "-----END ");
    text.filter(|text| {
        text.split_once(begin)
            .and_then(|(_, rest)| rest.split_once(&end_of_begin))
            .and_then(|(_, rest)| rest.split_once(end))
            .is_some_and(|(_, rest)| rest.contains(&end_of_begin))
    })
    .ok_or_else(|| FieldError::new(format!("holds no PEM block of a {block}")))
}

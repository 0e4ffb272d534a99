//! `x-forwarded-client-cert`: what the next hop is told of who the client has proved to be.
//!
//! In: how a listener wants it told, and what the client has shown. Out: Envoy's header. Never: one that a client wrote which
//! has proved nothing, unless the listener asks for just that.

use std::fmt::Write;

use http::{HeaderMap, HeaderName, HeaderValue};
use rustls_pki_types::CertificateDer;
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{CertificateDetails, ClientCertificate};

use super::proxy::Downstream;
use crate::tls::{CertificateFacts, Names, escaped_pem};

const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Once for a connection: what is told of the client that has shown `chain` to the workload `own`. `None` where no certificate is
/// told of.
pub(crate) fn describe(
    how: &ClientCertificate,
    chain: &[CertificateDer<'_>],
    own: &SpiffeId,
) -> Option<HeaderValue> {
    let (ClientCertificate::Append(details) | ClientCertificate::Set(details)) = how else { return None };
    let &CertificateDetails { certificate, chain: whole, subject, uri, dns } = details;
    let leaf = chain.first()?;
    let facts = CertificateFacts::read(leaf).ok()?;
    let names = Names::read(leaf)?;
    let mut text = format!("By={own};Hash={}", facts.fingerprint);
    let mut put = |name: &str, value: &str| write!(text, ";{name}={value}").expect("a string grows");
    if certificate {
        put("Cert", &format!("\"{}\"", escaped_pem(std::slice::from_ref(leaf))));
    }
    if whole {
        put("Chain", &format!("\"{}\"", escaped_pem(chain)));
    }
    if subject {
        put("Subject", &format!("\"{}\"", names.subject));
    }
    if uri {
        names.uris.iter().for_each(|uri| put("URI", uri));
    }
    if dns {
        names.dns.iter().for_each(|name| put("DNS", name));
    }
    HeaderValue::from_str(&text).ok()
}

/// Puts in place what the next hop is told, of a request that has just come.
pub(super) fn apply(headers: &mut HeaderMap, how: &ClientCertificate, client: &Downstream) {
    let told = match (how, &client.identity) {
        (ClientCertificate::AlwaysForward, _) | (ClientCertificate::Forward, Some(_)) => return,
        (ClientCertificate::Sanitize, _) | (_, None) => None,
        (ClientCertificate::Identity, Some(identity)) => {
            HeaderValue::from_str(&format!("URI={identity}")).ok()
        }
        (ClientCertificate::Append(_), Some(_)) => {
            client.certificate.as_ref().and_then(|told| behind(headers, told))
        }
        (ClientCertificate::Set(_), Some(_)) => client.certificate.clone(),
    };
    match told {
        Some(told) => headers.insert(CLIENT_CERT, told),
        None => headers.remove(CLIENT_CERT),
    };
}

/// What is told behind what was told before, in one line.
fn behind(headers: &HeaderMap, told: &HeaderValue) -> Option<HeaderValue> {
    let before = headers.get_all(CLIENT_CERT).iter().filter(|value| !value.is_empty());
    let all: Vec<&[u8]> = before.chain([told]).map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&all.join(&b","[..])).ok()
}

//! What is known of the TLS of a client's connection, for logs and headers that tell of it.

use std::io::Write;

use rustls::{CipherSuite, ServerConnection};
use rustls_pki_types::CertificateDer;
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::TlsPart;
use tulle_mesh::pem;

use super::certificate::CertificateFacts;
use super::names::Names;

/// The TLS of a client's connection. Kept only where it is told of.
pub(crate) struct ClientTls {
    cipher: &'static str,
    own: SpiffeId,
    leaf: Option<Leaf>,
}

struct Leaf {
    facts: CertificateFacts,
    names: Names,
    pem: String,
}

impl ClientTls {
    /// Of a connection whose handshake is over, to the workload `own`.
    pub(crate) fn of(connection: &ServerConnection, own: &SpiffeId) -> Self {
        let cipher = match connection.negotiated_cipher_suite().map(|suite| suite.suite()) {
            Some(CipherSuite::TLS13_AES_128_GCM_SHA256) => "TLS_AES_128_GCM_SHA256",
            Some(CipherSuite::TLS13_AES_256_GCM_SHA384) => "TLS_AES_256_GCM_SHA384",
            Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256) => "TLS_CHACHA20_POLY1305_SHA256",
            _ => "",
        };
        let leaf = connection.peer_certificates().and_then(<[_]>::first).and_then(|leaf| {
            let facts = CertificateFacts::read(leaf).ok()?;
            Some(Leaf { facts, names: Names::read(leaf)?, pem: escaped_pem(std::slice::from_ref(leaf)) })
        });
        Self { cipher, own: own.clone(), leaf }
    }

    /// Writes a part of what is known behind `out`.
    pub(crate) fn write(&self, part: &TlsPart, out: &mut Vec<u8>) {
        let text = match (part, &self.leaf) {
            (TlsPart::Version, _) => "TLSv1.3",
            (TlsPart::Cipher, _) => self.cipher,
            (TlsPart::LocalUriSan, _) => self.own.as_str(),
            (_, None) => "",
            (TlsPart::Subject, Some(leaf)) => &leaf.names.subject,
            (TlsPart::Issuer, Some(leaf)) => &leaf.names.issuer,
            (TlsPart::Fingerprint, Some(leaf)) => &leaf.facts.fingerprint,
            (TlsPart::Certificate, Some(leaf)) => &leaf.pem,
            (TlsPart::Serial, Some(leaf)) => {
                out.extend(leaf.facts.serial.bytes().filter(|byte| *byte != b':'));
                return;
            }
            (TlsPart::Dns, Some(leaf)) => {
                out.extend_from_slice(leaf.names.dns.join(",").as_bytes());
                return;
            }
            (TlsPart::ValidFrom(format), Some(leaf)) => return format.write(leaf.facts.not_before, out),
            (TlsPart::ValidUntil(format), Some(leaf)) => return format.write(leaf.facts.not_after, out),
        };
        out.extend_from_slice(text.as_bytes());
    }
}

/// PEM with all escaped that a URL would not hold as it is.
pub(crate) fn escaped_pem(chain: &[CertificateDer<'_>]) -> String {
    let mut text = Vec::new();
    for byte in chain.iter().flat_map(|der| pem::encode("CERTIFICATE", der).into_bytes()) {
        match byte {
            b'\n' | b' ' | b'+' | b'/' | b'=' => write!(text, "%{byte:02X}").expect("a vector grows"),
            _ => text.push(byte),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

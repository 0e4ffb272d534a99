//! What a certificate says of its holder, in the words of those who look at it.

use std::fmt::Write;

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// The names in a certificate. Reading them proves nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// Its subject, as RFC 2253 writes it.
    pub(crate) subject: String,
    /// Its issuer, in the same way.
    pub(crate) issuer: String,
    /// The URIs of its subject alternative name.
    pub(crate) uris: Vec<String>,
    /// The DNS names there.
    pub(crate) dns: Vec<String>,
}

impl Names {
    /// Reads them; `None` of what is no certificate.
    pub(crate) fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let (subject, issuer) = (rfc2253(certificate.subject()), rfc2253(certificate.issuer()));
        let mut names = Self { subject, issuer, ..Self::default() };
        let alternative = certificate.subject_alternative_name().ok()?;
        for name in alternative.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => names.dns.push((*name).to_owned()),
                _ => {}
            }
        }
        Some(names)
    }
}

/// A distinguished name, the last of its parts first, as OpenSSL writes it.
fn rfc2253(name: &X509Name<'_>) -> String {
    let parts: Vec<_> = name.iter().collect();
    let parts = parts.iter().rev().map(|part| {
        let mut values: Vec<String> = part.iter().map(attribute).collect();
        values.reverse();
        values.join("+")
    });
    parts.collect::<Vec<_>>().join(",")
}

/// What OpenSSL calls the types of attributes.
const TYPES: [(&str, &str); 16] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "SN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "GN"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let known = TYPES.iter().find(|(id, _)| *id == oid).map(|(_, name)| *name);
    let mut text = format!("{}=", known.unwrap_or(&oid));
    match (known, attribute.as_str()) {
        (Some(_), Ok(value)) => escape(value, &mut text),
        _ => {
            let value = attribute.attr_value();
            text.push('#');
            let header = [u8::try_from(value.header.tag().0).unwrap_or_default(), short(value.data.len())];
            for byte in header.iter().chain(value.data) {
                write!(text, "{byte:02X}").expect("a string grows");
            }
        }
    }
    text
}

/// The length of something short in DER; values of names are.
fn short(len: usize) -> u8 {
    u8::try_from(len).unwrap_or(u8::MAX)
}

fn escape(value: &str, out: &mut String) {
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => out.extend(['\\', char::from(byte)]),
            b' ' if at == 0 || at == last => out.push_str("\\ "),
            b'#' if at == 0 => out.push_str("\\#"),
            0x20..0x7f => out.push(char::from(byte)),
            _ => write!(out, "\\{byte:02X}").expect("a string grows"),
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn names_are_written_as_openssl_does() {
        let mut params = CertificateParams::default();
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::OrganizationName, "Net, Lace + \"Co\"");
        params.distinguished_name.push(DnType::CommonName, " gr\u{fc}n#");
        params.distinguished_name.push(DnType::CustomDnType(vec![1, 2, 3]), "x");
        params.subject_alt_names = vec![
            SanType::URI("spiffe://td/ns/a/sa/b".try_into().expect("ASCII")),
            SanType::DnsName("a.test".try_into().expect("ASCII")),
        ];
        let key = KeyPair::generate().expect("the system gives random bytes");
        let certificate = params.self_signed(&key).expect("the parameters are sound");
        let names = Names::read(certificate.der()).expect("it is one");
        assert_eq!(names.subject, r#"1.2.3=#0C0178,CN=\ gr\C3\BCn#,O=Net\, Lace \+ \"Co\""#);
        assert_eq!((names.uris, names.dns), (vec!["spiffe://td/ns/a/sa/b".into()], vec!["a.test".into()]));
        assert_eq!(Names::read(&CertificateDer::from(vec![1, 2, 3])), None);
    }
}

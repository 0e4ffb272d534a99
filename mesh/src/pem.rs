//! Certificates and keys as text (RFC 7468).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What DER is in PEM, under a label such as `CERTIFICATE`: with Unix line ends, and one at the end.
pub fn encode(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let lines: String = lines.map(|line| format!("{line}\n")).collect();
    format!("-----BEGIN {label}-----\n{lines}-----END {label}-----\n")
}

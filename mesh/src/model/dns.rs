//! Names of the mesh, and what they mean to a resolver.

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

/// A name and what a resolver answers for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsName {
    /// The whole name, in lower case and without a dot at its end. Where it is that of a service's port, it has the form
    /// `_<port>._<protocol>.<domain>`.
    pub name: String,
    /// How long an answer holds, in whole seconds.
    pub ttl: Duration,
    /// The answer.
    pub records: DnsRecords,
}

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum DnsRecords {
    /// These addresses, of either family; never none. A family without an address has an empty answer.
    Addresses(Vec<IpAddr>),
    /// The places where a service's port is served; never none.
    Services(Vec<DnsTarget>),
    /// Whatever this other name means.
    Alias(String),
}

/// A place where a service's port is served (an SRV record, RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsTarget {
    /// The name of the host.
    pub host: String,
    /// The port there.
    pub port: u16,
    /// Lower ones are tried first.
    pub priority: u16,
    /// The share among those of one priority.
    pub weight: u16,
}

/// Whether a text, in lower case, is a domain name without a dot at its end: labels of 1 to 63 octets, 253 in all (RFC
/// 1035, section 2.3.4), of the characters that host and service names have.
pub fn is_domain_name(text: &str) -> bool {
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(valid);
    text.len() <= 253 && text.split('.').all(label)
}

//! What some command operators stand for, in a log as in a header.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

use http::{Uri, Version};
use tulle_mesh::model::AddressPart;

/// A version of HTTP in Envoy's words.
pub(crate) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// Writes a part of an address behind `out`.
pub(crate) fn write_address(address: SocketAddr, part: AddressPart, out: &mut Vec<u8>) {
    // A client of IPv4 at a socket of IPv6 is one of IPv4.
    let address = match address.ip() {
        IpAddr::V6(ip) => {
            ip.to_ipv4_mapped().map_or(address, |ip| SocketAddr::new(ip.into(), address.port()))
        }
        IpAddr::V4(_) => address,
    };
    let written = match part {
        AddressPart::Whole => write!(out, "{address}"),
        AddressPart::Ip => write!(out, "{}", address.ip()),
        AddressPart::Port => write!(out, "{}", address.port()),
    };
    written.expect("a vector grows");
}

/// Writes a path behind `out`, with its query or without.
pub(crate) fn write_path(uri: &Uri, query: bool, out: &mut Vec<u8>) {
    let path = uri.path_and_query().map_or("", |path| if query { path.as_str() } else { path.path() });
    out.extend_from_slice(path.as_bytes());
}

/// The name of the host, which is that of the pod in a cluster.
pub(crate) fn hostname() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        name.trim_end().to_owned()
    });
    &NAME
}

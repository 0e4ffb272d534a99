//! Who the client of a request is where proxies stand before, and what the next hop is told of it.
//!
//! As in Envoy: what a listener does not trust it passes over, and what it adds is the other end of its own connection.

use std::net::IpAddr;
use std::sync::LazyLock;

use http::{HeaderMap, HeaderName, HeaderValue};
use tulle_mesh::model::Forwarding;

use super::exchange::Exchange;
use super::headers::FORWARDED_PROTO;
use crate::config::global_addresses;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The client's address, as the first proxy of its way knows it (Envoy's name).
const EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");

/// The client's address, of a request that is still as it came over a connection of `peer`.
pub(super) fn client(headers: &HeaderMap, how: &Forwarding, peer: IpAddr) -> IpAddr {
    let trusted = match (how.use_remote_address, how.trusted_hops) {
        (true, 0) => None,
        (true, hops) => from_end(headers, hops - 1),
        (false, hops) => from_end(headers, hops),
    };
    trusted.unwrap_or(peer)
}

/// Tells the next hop whose connection this is. Returns the client's address.
pub(super) fn mark(exchange: &mut Exchange, how: &Forwarding) -> IpAddr {
    let downstream = exchange.downstream.clone();
    let peer = downstream.peer.ip();
    let headers = &mut exchange.request.headers;
    let client = client(headers, how, peer);
    if !how.skip_append {
        // A loopback address would say nothing to another host.
        let own = || exchange.worker.own.first().copied().or_else(own_address);
        append(headers, Some(peer).filter(|peer| !peer.is_loopback()).or_else(own).unwrap_or(peer));
    }
    // Who asks for the address of the connection to count stands at the edge.
    if let Ok(client) = HeaderValue::from_str(&client.to_string()) {
        headers.insert(EXTERNAL_ADDRESS, client);
    }
    if how.trusted_hops == 0 || !headers.contains_key(FORWARDED_PROTO) {
        let encrypted = downstream.identity.is_some() || downstream.server_name.is_some();
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(if encrypted { "https" } else { "http" }));
    }
    client
}

/// An address by which other hosts can reach this one, where the workload's own are not known.
fn own_address() -> Option<IpAddr> {
    static FIRST: LazyLock<Option<IpAddr>> = LazyLock::new(|| global_addresses().first().copied());
    *FIRST
}

/// The address before the last `skipped` of X-Forwarded-For.
fn from_end(headers: &HeaderMap, skipped: u32) -> Option<IpAddr> {
    let lines = headers.get_all(FORWARDED_FOR).iter().rev();
    let mut addresses = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    let address = addresses.nth(usize::try_from(skipped).ok()?)?;
    std::str::from_utf8(address.trim_ascii()).ok()?.parse().ok()
}

/// Puts an address behind those of X-Forwarded-For, in one line.
fn append(headers: &mut HeaderMap, address: IpAddr) {
    let mut line: Vec<u8> = Vec::new();
    for before in headers.get_all(FORWARDED_FOR) {
        line.extend(before.as_bytes());
        line.push(b',');
    }
    line.extend(address.to_string().into_bytes());
    if let Ok(line) = HeaderValue::from_bytes(&line) {
        headers.insert(FORWARDED_FOR, line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        let lines = lines.iter().map(|line| (FORWARDED_FOR, HeaderValue::from_str(line).expect("valid")));
        lines.collect()
    }

    #[test]
    fn only_what_trusted_proxies_wrote_is_believed() {
        let peer: IpAddr = "10.0.0.9".parse().expect("valid");
        let cases: &[(&[&str], bool, u32, &str)] = &[
            (&[], false, 0, "10.0.0.9"),
            (&["1.1.1.1"], false, 0, "1.1.1.1"),
            (&["1.1.1.1, 2.2.2.2"], false, 0, "2.2.2.2"),
            (&["1.1.1.1", "2.2.2.2,fd00::1 "], false, 0, "fd00::1"),
            (&["1.1.1.1", "2.2.2.2,3.3.3.3"], false, 2, "1.1.1.1"),
            (&["1.1.1.1"], false, 1, "10.0.0.9"),
            (&["1.1.1.1"], false, u32::MAX, "10.0.0.9"),
            (&["nobody"], false, 0, "10.0.0.9"),
            (&["1.1.1.1"], true, 0, "10.0.0.9"),
            (&["1.1.1.1,2.2.2.2"], true, 1, "2.2.2.2"),
            (&["1.1.1.1,2.2.2.2"], true, 2, "1.1.1.1"),
            (&["1.1.1.1,2.2.2.2"], true, 3, "10.0.0.9"),
        ];
        for (lines, use_remote_address, trusted_hops, expected) in cases {
            let how = Forwarding {
                use_remote_address: *use_remote_address,
                trusted_hops: *trusted_hops,
                skip_append: false,
            };
            assert_eq!(client(&headers(lines), &how, peer).to_string(), *expected, "{lines:?} {how:?}");
        }
    }

    #[test]
    fn an_address_stands_behind_the_others() {
        let mut lines = headers(&["1.1.1.1", "2.2.2.2"]);
        append(&mut lines, "10.0.0.9".parse().expect("valid"));
        assert_eq!(lines.get_all(FORWARDED_FOR).iter().collect::<Vec<_>>(), ["1.1.1.1,2.2.2.2,10.0.0.9"]);
    }
}

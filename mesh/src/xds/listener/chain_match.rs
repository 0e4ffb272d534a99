//! Which connections a filter chain is for.
//!
//! Two chains of a listener must not both be the most specific one for a connection: that is refused, as Envoy does.

use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::listener::v3::filter_chain_match::ConnectionSourceType;
use ipnet::IpNet;

use crate::model::{ChainMatch, FilterChain, SourceType, Transport};
use crate::xds::error::{At, Decoded, FieldError, each, refuse};
use crate::xds::{matching, proto};

/// `None` where it is for all.
pub(super) fn encode(matches: &ChainMatch) -> Option<pb::FilterChainMatch> {
    let transport = match matches.transport {
        None => "",
        Some(Transport::Tls) => TLS,
        Some(Transport::Plaintext) => PLAINTEXT,
    };
    let source_type = match matches.source_type {
        None => ConnectionSourceType::Any,
        Some(SourceType::SameIpOrLoopback) => ConnectionSourceType::SameIpOrLoopback,
        Some(SourceType::External) => ConnectionSourceType::External,
    };
    let ranges = |ranges: &[IpNet]| ranges.iter().copied().map(matching::range).collect();
    (*matches != ChainMatch::default()).then(|| pb::FilterChainMatch {
        destination_port: proto::u32_value(matches.destination_port.map(u32::from)),
        prefix_ranges: ranges(&matches.destination_ranges),
        transport_protocol: transport.into(),
        application_protocols: matches.application_protocols.clone(),
        server_names: matches.server_names.clone(),
        direct_source_prefix_ranges: ranges(&matches.direct_source_ranges),
        source_type: source_type as i32,
        source_prefix_ranges: ranges(&matches.source_ranges),
        source_ports: matches.source_ports.iter().copied().map(u32::from).collect(),
        ..Default::default()
    })
}

pub(super) fn decode(matches: pb::FilterChainMatch) -> Decoded<ChainMatch> {
    // Envoy has them in its API, and does not do them either.
    refuse!(matches; address_suffix, suffix_len)?;
    let destination_port = match matches.destination_port {
        None => None,
        Some(port) => Some(proto::decode_port(port.value, "destination_port")?),
    };
    let transport = match matches.transport_protocol.as_str() {
        "" => None,
        TLS => Some(Transport::Tls),
        PLAINTEXT => Some(Transport::Plaintext),
        other => {
            let problem = format!("{other:?} is not known: use {TLS:?} or {PLAINTEXT:?}");
            return Err(FieldError::new(problem)).at("transport_protocol");
        }
    };
    let source_type = match ConnectionSourceType::try_from(matches.source_type) {
        Ok(ConnectionSourceType::Any) => None,
        Ok(ConnectionSourceType::SameIpOrLoopback) => Some(SourceType::SameIpOrLoopback),
        Ok(ConnectionSourceType::External) => Some(SourceType::External),
        Err(_) => {
            let problem = format!("{} is not a type of sources", matches.source_type);
            return Err(FieldError::new(problem)).at("source_type");
        }
    };
    let ranges = |field, ranges| {
        let truncated = |range| matching::decode_range(range).map(|range: IpNet| range.trunc());
        each(field, ranges, truncated)
    };
    Ok(ChainMatch {
        destination_port,
        destination_ranges: ranges("prefix_ranges", matches.prefix_ranges)?,
        transport,
        application_protocols: matches.application_protocols,
        server_names: each("server_names", matches.server_names, decode_server_name)?,
        direct_source_ranges: ranges("direct_source_prefix_ranges", matches.direct_source_prefix_ranges)?,
        source_type,
        source_ranges: ranges("source_prefix_ranges", matches.source_prefix_ranges)?,
        source_ports: each("source_ports", matches.source_ports, decode_source_port)?,
    })
}

const TLS: &str = "tls";
const PLAINTEXT: &str = "raw_buffer";

/// In lower case, as Envoy compares; a name that begins with a dot is one with a wildcard to it.
fn decode_server_name(name: String) -> Decoded<String> {
    let name = if name.starts_with('.') { format!("*{name}") } else { name };
    let suffix = name.strip_prefix("*.").unwrap_or(&name);
    if suffix.is_empty() || suffix.contains('*') {
        let problem = format!("{name:?} is not a server name: a * may only stand alone as its first label");
        return Err(FieldError::new(problem));
    }
    Ok(name.to_ascii_lowercase())
}

fn decode_source_port(port: u32) -> Decoded<u16> {
    let valid = u16::try_from(port).ok().filter(|port| *port > 0);
    valid.ok_or_else(|| FieldError::new(format!("{port} is not a port: use one from 1 to 65535")))
}

/// Refuses chains of which no one is the most specific for some connection.
pub(super) fn refuse_overlaps(chains: &[FilterChain]) -> Decoded<()> {
    for (index, chain) in chains.iter().enumerate() {
        let problem = if repeats(&chain.matches) {
            "says something twice".to_owned()
        } else {
            let other = chains[..index].iter().position(|other| overlap(&other.matches, &chain.matches));
            let Some(other) = other else { continue };
            let name = &chains[other].name;
            format!(
                "overlaps with that of filter_chains[{other}] ({name:?}): of two chains one must be more specific"
            )
        };
        return Err(FieldError::new(problem)).at("filter_chain_match").at_item("filter_chains", index);
    }
    Ok(())
}

/// Whether two conditions have the same value everywhere, of those that each lists, or the same lack of one.
fn overlap(one: &ChainMatch, other: &ChainMatch) -> bool {
    fn common<T: PartialEq>(one: &[T], other: &[T]) -> bool {
        (one.is_empty() && other.is_empty()) || one.iter().any(|value| other.contains(value))
    }
    one.destination_port == other.destination_port
        && one.transport == other.transport
        && one.source_type == other.source_type
        && common(&one.server_names, &other.server_names)
        && common(&one.destination_ranges, &other.destination_ranges)
        && common(&one.application_protocols, &other.application_protocols)
        && common(&one.direct_source_ranges, &other.direct_source_ranges)
        && common(&one.source_ranges, &other.source_ranges)
        && common(&one.source_ports, &other.source_ports)
}

/// Whether a value is listed twice.
fn repeats(matches: &ChainMatch) -> bool {
    fn twice<T: PartialEq>(values: &[T]) -> bool {
        values.iter().enumerate().any(|(index, value)| values[..index].contains(value))
    }
    twice(&matches.server_names)
        || twice(&matches.destination_ranges)
        || twice(&matches.application_protocols)
        || twice(&matches.direct_source_ranges)
        || twice(&matches.source_ranges)
        || twice(&matches.source_ports)
}

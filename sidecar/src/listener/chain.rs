//! Which of a listener's chains a connection takes.
//!
//! As Envoy chooses: by destination port, then destination address, server name, transport, application protocol, the other
//! end's own address, where the client is, the client's address, its port. At each step the most specific condition that
//! holds wins over a chain without that condition, and there is no way back: a chain that loses an earlier step is out even
//! when the winner loses a later one. The default chain takes what is left.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use tulle_mesh::model::{ChainMatch, Listener, SourceType, Transport};

/// What is known of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    /// Between whom it is.
    pub(super) ends: Ends,
    /// How it starts.
    pub(super) transport: Transport,
    /// The SNI, in lower case.
    pub(super) server_name: Option<&'a str>,
    /// What ALPN offers or, in plaintext, what was detected; best first.
    pub(super) protocols: &'a [&'a str],
}

/// Between whom a connection is, which is known before its client says anything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    /// What the client dialled.
    pub(super) destination: SocketAddr,
    /// The other end of the connection itself.
    pub(super) direct: SocketAddr,
    /// The client, as a proxy in front tells.
    pub(super) source: SocketAddr,
}

/// What is clear of a connection before its client says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Early {
    /// It takes this chain.
    Takes(usize),
    /// It has to be refused.
    Refused,
    /// Nothing: its first bytes have to be seen.
    Disputed,
}

/// The index of the chain for a connection; `None`: it has to be refused.
pub(super) fn choose(listener: &Listener, facts: &Facts<'_>) -> Option<usize> {
    let mut left = Left::of(listener, &facts.ends);
    left.keep_best(|matches| by_server_name(matches, facts));
    left.keep_best(|matches| by_transport(matches, facts));
    left.keep_best(|matches| by_protocol(matches, facts));
    left.by_client(&facts.ends)
}

/// What can be told where nothing that a client says can make a difference.
pub(super) fn undisputed(listener: &Listener, ends: &Ends) -> Early {
    let left = Left::of(listener, ends);
    let asks = |matches: &ChainMatch| {
        let by_protocol = !matches.application_protocols.is_empty();
        let by_hello = matches.transport.is_some() || !matches.server_names.is_empty() || by_protocol;
        (listener.tls_inspector && by_hello) || (listener.http_inspector && by_protocol)
    };
    if left.chains.iter().any(|index| asks(&listener.chains[*index].matches)) {
        return Early::Disputed;
    }
    let unseen = Facts { ends: *ends, transport: Transport::Plaintext, server_name: None, protocols: &[] };
    choose(listener, &unseen).map_or(Early::Refused, Early::Takes)
}

/// The chains that are not out yet.
struct Left<'l> {
    listener: &'l Listener,
    chains: Vec<usize>,
}

impl<'l> Left<'l> {
    /// Those for where the connection goes.
    fn of(listener: &'l Listener, ends: &Ends) -> Self {
        let (conditional, _) = listener.split_default();
        let mut left = Self { listener, chains: (0..conditional.len()).collect() };
        left.keep_best(|matches| condition(matches.destination_port, |port| port == ends.destination.port()));
        left.keep_best(|matches| by_range(&matches.destination_ranges, ends.destination.ip()));
        left
    }

    /// The one for whom the connection is from, else the default.
    fn by_client(mut self, ends: &Ends) -> Option<usize> {
        self.keep_best(|matches| by_range(&matches.direct_source_ranges, ends.direct.ip()));
        self.keep_best(|matches| condition(matches.source_type, |source| source == source_type(ends)));
        self.keep_best(|matches| by_range(&matches.source_ranges, ends.source.ip()));
        self.keep_best(|matches| match matches.source_ports.as_slice() {
            [] => Some(0),
            ports => ports.contains(&ends.source.port()).then_some(1),
        });
        let default = || self.listener.has_default.then(|| self.listener.chains.len() - 1);
        self.chains.first().copied().or_else(default)
    }

    /// Keeps those of the best score; none where a condition does not hold.
    fn keep_best(&mut self, score: impl Fn(&ChainMatch) -> Option<usize>) {
        let score = |index: usize| score(&self.listener.chains[index].matches);
        let best = self.chains.iter().filter_map(|index| score(*index)).max();
        self.chains.retain(|index| best.is_some() && score(*index) == best);
    }
}

// A condition that does not hold gives `None`, one that is not made 0, and one that holds the more the tighter it is.

fn by_transport(matches: &ChainMatch, facts: &Facts<'_>) -> Option<usize> {
    condition(matches.transport, |transport| transport == facts.transport)
}

fn condition<T>(condition: Option<T>, holds: impl FnOnce(T) -> bool) -> Option<usize> {
    condition.map_or(Some(0), |condition| holds(condition).then_some(1))
}

fn by_range(ranges: &[IpNet], ip: IpAddr) -> Option<usize> {
    if ranges.is_empty() {
        return Some(0);
    }
    let ip = ip.to_canonical();
    let holding = ranges.iter().filter(|range| range.contains(&ip));
    holding.map(|range| 1 + usize::from(range.prefix_len())).max()
}

/// Envoy's notion of a client on the same host: of the addresses of loopback it knows one for each family.
fn source_type(ends: &Ends) -> SourceType {
    let [source, destination] = [ends.source, ends.destination].map(|end| end.ip().to_canonical());
    let loopback = match source {
        IpAddr::V4(ip) => ip == std::net::Ipv4Addr::LOCALHOST,
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    match loopback || source == destination {
        true => SourceType::SameIpOrLoopback,
        false => SourceType::External,
    }
}

fn by_server_name(matches: &ChainMatch, facts: &Facts<'_>) -> Option<usize> {
    if matches.server_names.is_empty() {
        return Some(0);
    }
    let name = facts.server_name?;
    let score = |pattern: &String| match pattern.strip_prefix('*') {
        Some(suffix) => {
            let longer = name.len() > suffix.len();
            let ends = longer && name.is_char_boundary(name.len() - suffix.len());
            (ends && name[name.len() - suffix.len()..].eq_ignore_ascii_case(suffix))
                .then_some(1 + suffix.len())
        }
        None => name.eq_ignore_ascii_case(pattern).then_some(usize::MAX),
    };
    matches.server_names.iter().filter_map(score).max()
}

fn by_protocol(matches: &ChainMatch, facts: &Facts<'_>) -> Option<usize> {
    if matches.application_protocols.is_empty() {
        return Some(0);
    }
    // What the client likes best counts most.
    let place = facts.protocols.iter().position(|p| matches.application_protocols.iter().any(|own| own == p));
    place.map(|place| facts.protocols.len() - place)
}

#[cfg(test)]
mod tests;

//! Which of a listener's chains a connection takes.
//!
//! As Envoy chooses: by destination port, then server name, then transport, then application protocol. At each step the
//! most specific condition that holds wins over a chain without that condition, and there is no way back: a chain that
//! loses an earlier step is out even when the winner loses a later one.

use tulle_mesh::model::{ChainMatch, FilterChain, Transport};

/// What is known of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    /// The port that the client dialled.
    pub(super) port: u16,
    /// How it starts.
    pub(super) transport: Transport,
    /// The SNI, in lower case.
    pub(super) server_name: Option<&'a str>,
    /// What ALPN offers or, in plaintext, what was detected; best first.
    pub(super) protocols: &'a [&'a str],
}

/// The index of the chain for a connection; `None`: it has to be refused.
pub(super) fn choose(chains: &[FilterChain], facts: &Facts<'_>) -> Option<usize> {
    let mut left: Vec<usize> = (0..chains.len()).collect();
    let matches = |index: usize| &chains[index].matches;
    keep_best(&mut left, |i| by_port(matches(i), facts));
    keep_best(&mut left, |i| by_server_name(matches(i), facts));
    keep_best(&mut left, |i| by_transport(matches(i), facts));
    keep_best(&mut left, |i| by_protocol(matches(i), facts));
    left.first().copied()
}

/// The index of the chain for connections to `port`, where nothing that a client says can make a difference. Where it
/// can, `None`: its first bytes have to be seen.
pub(super) fn undisputed(chains: &[FilterChain], port: u16) -> Option<usize> {
    let unconditional = |matches: &ChainMatch| {
        matches.transport.is_none()
            && matches.application_protocols.is_empty()
            && matches.server_names.is_empty()
    };
    let facts = Facts { port, transport: Transport::Plaintext, server_name: None, protocols: &[] };
    let mut left: Vec<usize> = (0..chains.len()).collect();
    keep_best(&mut left, |i| by_port(&chains[i].matches, &facts));
    match left[..] {
        [only] if unconditional(&chains[only].matches) => Some(only),
        _ => None,
    }
}

/// Keeps those of the best score; none where a condition does not hold.
fn keep_best(left: &mut Vec<usize>, score: impl Fn(usize) -> Option<usize>) {
    let best = left.iter().filter_map(|i| score(*i)).max();
    left.retain(|i| best.is_some() && score(*i) == best);
}

// A condition that does not hold gives `None`, one that is not made 0, and one that holds the more the tighter it is.

fn by_port(matches: &ChainMatch, facts: &Facts<'_>) -> Option<usize> {
    condition(matches.destination_port, |port| port == facts.port)
}

fn by_transport(matches: &ChainMatch, facts: &Facts<'_>) -> Option<usize> {
    condition(matches.transport, |transport| transport == facts.transport)
}

fn condition<T>(condition: Option<T>, holds: impl FnOnce(T) -> bool) -> Option<usize> {
    condition.map_or(Some(0), |condition| holds(condition).then_some(1))
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

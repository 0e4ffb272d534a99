//! The rules, described once: what the kernel is told over netlink, the text for `nft` and that for `iptables` all come
//! from here.
//!
//! In: the settings. Out: sets and chains. Only the first packet that the kernel sees of a connection meets them; it
//! remembers the outcome for the others. Connections that are older than the rules stay as they are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::options::{InitSettings, PortList};
use super::probe::Direction;

/// The table's name in the family `inet`. No other table is ever touched.
pub(super) const TABLE: &str = "tulle";

/// All rules.
#[derive(Debug)]
pub(super) struct Ruleset {
    /// What the rules look up, by name.
    pub(super) sets: Vec<Set>,
    /// The chains; those that others go to come first.
    pub(super) chains: Vec<Chain>,
}

/// A named set.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) name: &'static str,
    pub(super) elements: Elements,
}

/// What a set holds: ascending, and without overlaps.
#[derive(Debug)]
pub(super) enum Elements {
    Ports(PortList),
    V4(Vec<Ipv4Net>),
    V6(Vec<Ipv6Net>),
}

impl Elements {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Ports(ports) => ports.ranges().is_empty(),
            Self::V4(nets) => nets.is_empty(),
            Self::V6(nets) => nets.is_empty(),
        }
    }
}

/// A chain.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    /// Where packets enter it; `None` where only other chains lead to it.
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Rule>,
}

/// Where packets enter a chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Base {
    pub(super) hook: Hook,
    /// Chains of lower priority come first; the first that translates an address ends the search.
    pub(super) priority: i32,
}

/// A place in the kernel's path of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// What comes from other hosts.
    Prerouting,
    /// What local programs send.
    Output,
}

/// What happens to packets that match in every respect.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) matches: Vec<Match>,
    pub(super) action: Action,
    /// Why the rule is there.
    pub(super) comment: &'static str,
}

/// A property of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// Its protocol.
    Protocol(Protocol),
    /// It is the first of a connection of TCP: SYN, without FIN, RST or ACK.
    OpensTcp,
    /// It goes to no address of this host.
    NotToThisHost,
    /// Its port of destination.
    Port(Protocol, u16),
    /// Its port of destination (of TCP) is in this set.
    PortIn(&'static str),
    /// Its destination.
    Destination(IpAddr),
    /// Its destination, of this family, is in this set.
    DestinationIn(Family, &'static str),
    /// Its source, of this family, is in this set.
    SourceIn(Family, &'static str),
    /// The user of the program that sends it.
    User(u32),
    /// The group of the program that sends it.
    Group(u32),
    /// It leaves through loopback: it goes to an address of this host.
    ThroughLoopback,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Leave the packet as it is.
    Return,
    /// Go on in that chain, and not return.
    Goto(&'static str),
    /// Send it to this port of this host instead.
    Redirect(u16),
}

const INBOUND_PORTS: &str = "inbound_skip_ports";
const INBOUND_V4: &str = "inbound_skip_v4";
const INBOUND_V6: &str = "inbound_skip_v6";
const OUTBOUND_PORTS: &str = "outbound_skip_ports";
const OUTBOUND_V4: &str = "outbound_skip_v4";
const OUTBOUND_V6: &str = "outbound_skip_v6";
const REDIRECT_INBOUND: &str = "redirect_inbound";
const REDIRECT_OUTBOUND: &str = "redirect_outbound";

/// After -100, where kube-proxy and container engines translate: what they send to a pod is not for this host.
const INBOUND: Base = Base { hook: Hook::Prerouting, priority: -90 };
/// Before -100, so that the sidecar sees the address of the service that the application meant.
const OUTBOUND: Base = Base { hook: Hook::Output, priority: -110 };

/// The port of DNS.
const DNS: u16 = 53;

/// The original destination would come without its scope, so that the sidecar could not connect to it.
const LINK_LOCAL: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);

impl Ruleset {
    /// The rules for these settings.
    pub(super) fn new(settings: &InitSettings) -> Self {
        let subnets = &settings.skip_subnets;
        let mut outbound_v6 = subnets.v6().to_vec();
        outbound_v6.push(LINK_LOCAL);
        let set = |name, elements| Set { name, elements };
        let sets = vec![
            set(INBOUND_PORTS, Elements::Ports(settings.own_ports.union(&settings.skip_inbound_ports))),
            set(INBOUND_V4, Elements::V4(subnets.v4().to_vec())),
            set(INBOUND_V6, Elements::V6(subnets.v6().to_vec())),
            set(OUTBOUND_PORTS, Elements::Ports(settings.skip_outbound_ports.clone())),
            set(OUTBOUND_V4, Elements::V4(subnets.v4().to_vec())),
            set(OUTBOUND_V6, Elements::V6(Ipv6Net::aggregate(&outbound_v6))),
        ];
        let redirect = |name, port| Chain {
            name,
            base: None,
            rules: vec![rule(&[Match::OpensTcp], Action::Redirect(port), "to the sidecar")],
        };
        let chains = vec![
            redirect(REDIRECT_INBOUND, settings.inbound_port.get()),
            redirect(REDIRECT_OUTBOUND, settings.outbound_port.get()),
            Chain { name: "prerouting", base: Some(INBOUND), rules: inbound() },
            Chain { name: "output", base: Some(OUTBOUND), rules: outbound(settings) },
        ];
        Self { sets, chains }
    }

    /// The set that a rule names.
    pub(super) fn set(&self, name: &str) -> &Elements {
        let found = self.sets.iter().find(|set| set.name == name);
        &found.expect("every set that a rule names is there").elements
    }
}

/// What other hosts send. Connections over loopback never come here: the output chain has dealt with them.
fn inbound() -> Vec<Rule> {
    let skip = |matching, comment| rule(&[matching], Action::Return, comment);
    vec![
        skip(Match::NotToThisHost, "forwarded traffic"),
        skip(Match::PortIn(INBOUND_PORTS), "ports of the sidecar, skipped ports"),
        skip(Match::SourceIn(Family::V4, INBOUND_V4), "skipped subnets"),
        skip(Match::SourceIn(Family::V6, INBOUND_V6), "skipped subnets"),
        rule(&[Match::Protocol(Protocol::Tcp)], Action::Goto(REDIRECT_INBOUND), "all other TCP"),
    ]
}

/// What local programs send.
fn outbound(settings: &InitSettings) -> Vec<Rule> {
    let skip = |matching, comment| rule(&[matching], Action::Return, comment);
    let mut rules = Vec::new();
    // First, so that every user can probe.
    for (direction, chain) in
        [(Direction::Outbound, REDIRECT_OUTBOUND), (Direction::Inbound, REDIRECT_INBOUND)]
    {
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let port = Match::Port(Protocol::Tcp, direction.probe_port());
            rules.push(rule(&[Match::Destination(ip), port], Action::Goto(chain), "probe of redirection"));
        }
    }
    rules.push(skip(Match::User(settings.uid.get()), "the sidecar's own"));
    if let Some(gid) = settings.gid {
        rules.push(skip(Match::Group(gid.get()), "the sidecar's own"));
    }
    // Before loopback, where local resolvers listen.
    if let Some(port) = settings.dns_port {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let query = [Match::Port(protocol, DNS)];
            rules.push(rule(&query, Action::Redirect(port.get()), "DNS, to the sidecar"));
        }
    }
    rules.extend([
        skip(Match::ThroughLoopback, "addresses of this host"),
        skip(Match::PortIn(OUTBOUND_PORTS), "skipped ports"),
        skip(Match::DestinationIn(Family::V4, OUTBOUND_V4), "skipped subnets"),
        skip(Match::DestinationIn(Family::V6, OUTBOUND_V6), "skipped subnets, link-local addresses"),
        rule(&[Match::Protocol(Protocol::Tcp)], Action::Goto(REDIRECT_OUTBOUND), "all other TCP"),
    ]);
    rules
}

fn rule(matches: &[Match], action: Action, comment: &'static str) -> Rule {
    Rule { matches: matches.to_vec(), action, comment }
}

//! The rules in the syntax of `nft -f`: what `--dry-run` prints. It is what netlink is told, to be read, kept, or loaded
//! by other means.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

use super::rules::{Action, Chain, Elements, Family, Hook, Match, Protocol, Rule, Ruleset, Set, TABLE};

/// The text that removes the table, also where there is none.
pub(super) fn removal() -> String {
    format!("table inet {TABLE}\ndelete table inet {TABLE}\n")
}

/// The text that puts the rules in place of those that are there, in one transaction.
impl Display for Ruleset {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}table inet {TABLE} {{", removal())?;
        for set in &self.sets {
            writeln!(f, "{set}")?;
        }
        for (index, chain) in self.chains.iter().enumerate() {
            let end = if index + 1 < self.chains.len() { "\n" } else { "" };
            write!(f, "{chain}{end}")?;
        }
        writeln!(f, "}}")
    }
}

impl Display for Set {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (kind, elements): (_, Vec<String>) = match &self.elements {
            Elements::Ports(ports) => ("inet_service", ports.ranges().iter().map(port_range).collect()),
            Elements::V4(nets) => ("ipv4_addr", nets.iter().map(ToString::to_string).collect()),
            Elements::V6(nets) => ("ipv6_addr", nets.iter().map(ToString::to_string).collect()),
        };
        writeln!(f, "\tset {} {{", self.name)?;
        writeln!(f, "\t\ttype {kind}")?;
        writeln!(f, "\t\tflags interval")?;
        if !elements.is_empty() {
            writeln!(f, "\t\telements = {{ {} }}", elements.join(", "))?;
        }
        writeln!(f, "\t}}")
    }
}

fn port_range(range: &std::ops::RangeInclusive<u16>) -> String {
    if range.start() == range.end() {
        range.start().to_string()
    } else {
        format!("{}-{}", range.start(), range.end())
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(base) = self.base {
            let hook = match base.hook {
                Hook::Prerouting => "prerouting",
                Hook::Output => "output",
            };
            writeln!(f, "\t\ttype nat hook {hook} priority {}; policy accept;", base.priority)?;
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for matching in &self.matches {
            write!(f, "{matching} ")?;
        }
        match self.action {
            Action::Return => f.write_str("return")?,
            Action::Goto(chain) => write!(f, "goto {chain}")?,
            Action::Redirect(port) => write!(f, "redirect to :{port}")?,
        }
        write!(f, " comment \"{}\"", self.comment)
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(protocol) => write!(f, "meta l4proto {protocol}"),
            Self::OpensTcp => f.write_str("tcp flags & (fin | syn | rst | ack) == syn"),
            Self::NotToThisHost => f.write_str("fib daddr type != local"),
            Self::Port(protocol, port) => write!(f, "{protocol} dport {port}"),
            Self::PortIn(set) => write!(f, "tcp dport @{set}"),
            Self::Destination(ip @ IpAddr::V4(_)) => write!(f, "ip daddr {ip}"),
            Self::Destination(ip @ IpAddr::V6(_)) => write!(f, "ip6 daddr {ip}"),
            Self::DestinationIn(family, set) => write!(f, "{family} daddr @{set}"),
            Self::SourceIn(family, set) => write!(f, "{family} saddr @{set}"),
            Self::User(uid) => write!(f, "meta skuid {uid}"),
            Self::Group(gid) => write!(f, "meta skgid {gid}"),
            Self::ThroughLoopback => f.write_str("oifname \"lo\""),
        }
    }
}

impl Display for Protocol {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl Display for Family {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        })
    }
}

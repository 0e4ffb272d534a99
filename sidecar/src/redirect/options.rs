//! What `tulle-sidecar init` is told, from flags and the environment, and checked as a whole.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::ops::RangeInclusive;
use std::str::FromStr;

use clap::{ArgAction, Args, ValueEnum, builder::BoolishValueParser};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::probe::{INBOUND_PROBE_PORT, OUTBOUND_PROBE_PORT};
use crate::config::ValueError;

/// The port that the sidecar gets the application's connections on.
pub const DEFAULT_OUTBOUND_PORT: NonZeroU16 = NonZeroU16::new(15001).expect("it is not zero");
/// The port that the sidecar gets other hosts' connections on.
pub const DEFAULT_INBOUND_PORT: NonZeroU16 = NonZeroU16::new(15006).expect("it is not zero");

/// What `tulle-sidecar init` is told.
#[derive(Clone, Debug, Args)]
pub struct InitSettings {
    /// The user that the sidecar runs as: its own connections are never redirected.
    #[arg(long, env = "TULLE_UID", value_name = "NUMBER", default_value = "2102")]
    pub uid: AccountId,
    /// A group whose connections are never redirected either.
    #[arg(long, env = "TULLE_GID", value_name = "NUMBER")]
    pub gid: Option<AccountId>,
    /// The port that the application's connections are redirected to.
    #[arg(long, env = "TULLE_OUTBOUND_PORTS", value_name = "PORT", default_value_t = DEFAULT_OUTBOUND_PORT)]
    pub outbound_port: NonZeroU16,
    /// The port that connections of other hosts are redirected to.
    #[arg(long, env = "TULLE_INBOUND_PORTS", value_name = "PORT", default_value_t = DEFAULT_INBOUND_PORT)]
    pub inbound_port: NonZeroU16,
    /// The port that DNS queries (UDP and TCP, to any server) are redirected to [default: they are not].
    #[arg(long, env = "TULLE_DNS_PORTS", value_name = "PORT")]
    pub dns_port: Option<NonZeroU16>,
    /// Ports of the application that other hosts reach directly, as 22,8000-8010.
    #[arg(long, env = "TULLE_SKIP_INBOUND_PORTS", value_name = "PORTS", default_value = "")]
    pub skip_inbound_ports: PortList,
    /// Ports of other hosts that the application reaches directly.
    #[arg(long, env = "TULLE_SKIP_OUTBOUND_PORTS", value_name = "PORTS", default_value = "")]
    pub skip_outbound_ports: PortList,
    /// Hosts to and from which nothing is redirected, as 10.1.0.0/16,192.168.1.9,fd00:1::/64.
    #[arg(long, env = "TULLE_SKIP_SUBNETS", value_name = "CIDRS", default_value = "")]
    pub skip_subnets: SubnetList,
    /// Ports of the sidecar itself that other hosts reach directly.
    #[arg(long, env = "TULLE_OWN_PORTS", value_name = "PORTS", default_value = "15000,15020")]
    pub own_ports: PortList,
    /// By which means the rules are made. With iptables, rules that were made with nftables go; not the other way round.
    #[arg(long, env = "TULLE_MODE", default_value = "nftables")]
    pub mode: Mode,
    /// Print the rules and change nothing.
    #[arg(long, env = "TULLE_DRY_RUN", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub dry_run: bool,
    /// Remove the rules.
    #[arg(long, env = "TULLE_CLEANUP", action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub cleanup: bool,
}

impl InitSettings {
    /// Refuses ports that would be redirected to two ends.
    pub(super) fn check(&self) -> Result<(), Conflict> {
        let targets = [
            ("--outbound-port", Some(self.outbound_port)),
            ("--inbound-port", Some(self.inbound_port)),
            ("--dns-port", self.dns_port),
        ];
        let targets: Vec<_> =
            targets.iter().filter_map(|(flag, port)| Some((*flag, (*port)?.get()))).collect();
        for (index, (flag, port)) in targets.iter().enumerate() {
            if let Some((other, _)) = targets[..index].iter().find(|(_, earlier)| earlier == port) {
                return Err(Conflict { flag, port: *port, other: (*other).to_owned() });
            }
            if matches!(*port, OUTBOUND_PROBE_PORT | INBOUND_PROBE_PORT) {
                return Err(Conflict { flag, port: *port, other: "the probes of redirection".into() });
            }
        }
        Ok(())
    }
}

/// By which means the rules are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// The table `inet tulle`, over netlink; needs no program, and Linux 5.2.
    Nftables,
    /// Chains of our own in the tables `nat`, by `iptables-restore` and `ip6tables-restore`.
    Iptables,
}

/// A user or group that is not root's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccountId(u32);

impl AccountId {
    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for AccountId {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.parse() {
            // The kernel's "nobody in particular".
            Ok(u32::MAX) | Err(_) => Err(ValueError::new(
                text,
                "the number of a user or group",
                "2102, and run the sidecar as that",
            )),
            Ok(0) => Err(ValueError::new(
                text,
                "an account that only the sidecar has (programs of root would go around it)",
                "2102, and run the sidecar as that",
            )),
            Ok(number) => Ok(Self(number)),
        }
    }
}

/// The most entries of a list: all of them travel to the kernel in one message.
const MAX_ENTRIES: usize = 500;

/// Ports and ranges of ports, as `22,8000-8010`: ascending, and none touches the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortList(Vec<RangeInclusive<u16>>);

impl PortList {
    /// The ranges.
    pub fn ranges(&self) -> &[RangeInclusive<u16>] {
        &self.0
    }

    /// The ports of both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::merged(self.0.iter().chain(&other.0).cloned().collect())
    }

    fn merged(mut ranges: Vec<RangeInclusive<u16>>) -> Self {
        ranges.sort_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u16>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }
}

impl FromStr for PortList {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let range = |entry: &str| {
            let error = || ValueError::new(entry, "a port from 1 to 65535, or a range", "22,8000-8010");
            let port = |text: &str| text.trim().parse::<NonZeroU16>().map_err(|_| error());
            let (first, last) = match entry.split_once('-') {
                Some((first, last)) => (port(first)?, port(last)?),
                None => (port(entry)?, port(entry)?),
            };
            if first <= last { Ok(first.get()..=last.get()) } else { Err(error()) }
        };
        entries(text)?.into_iter().map(range).collect::<Result<_, _>>().map(Self::merged)
    }
}

/// Subnets of both families, as `10.1.0.0/16,fd00:1::/64`: ascending, and none overlaps another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubnetList {
    v4: Vec<Ipv4Net>,
    v6: Vec<Ipv6Net>,
}

impl SubnetList {
    /// Those of IPv4.
    pub fn v4(&self) -> &[Ipv4Net] {
        &self.v4
    }

    /// Those of IPv6.
    pub fn v6(&self) -> &[Ipv6Net] {
        &self.v6
    }
}

impl FromStr for SubnetList {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut list = Self::default();
        for entry in entries(text)? {
            match subnet(entry)? {
                IpNet::V4(net) => list.v4.push(net),
                IpNet::V6(net) => list.v6.push(net),
            }
        }
        list.v4 = Ipv4Net::aggregate(&list.v4);
        list.v6 = Ipv6Net::aggregate(&list.v6);
        Ok(list)
    }
}

fn subnet(entry: &str) -> Result<IpNet, ValueError> {
    let error = |expected| ValueError::new(entry, expected, "10.1.0.0/16, 192.168.1.9 or fd00:1::/64");
    let net = match entry.parse::<IpAddr>() {
        Ok(ip) => IpNet::from(ip),
        Err(_) => entry.parse().map_err(|_| error("a subnet or an address"))?,
    };
    if net != net.trunc() {
        return Err(error("a subnet (its address has bits outside of the prefix)"));
    }
    match net.addr() {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            Err(error("a subnet of packets (on the wire these are IPv4; leave the ::ffff: off)"))
        }
        _ => Ok(net),
    }
}

/// The parts between commas; none of an empty text.
fn entries(text: &str) -> Result<Vec<&str>, ValueError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let entries: Vec<&str> = text.split(',').map(str::trim).collect();
    if entries.len() > MAX_ENTRIES {
        let first = format!("{},...", entries[0]);
        return Err(ValueError::new(&first, "a list of at most 500 entries", "ranges, or larger subnets"));
    }
    Ok(entries)
}

/// One port has two uses.
#[derive(Debug, PartialEq, Eq)]
pub struct Conflict {
    flag: &'static str,
    port: u16,
    other: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flag, port, other } = self;
        write!(f, "{flag}: {port} is already the port of {other}; give each a port of its own")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> Vec<(u16, u16)> {
        let list: PortList = text.parse().unwrap_or_else(|error| panic!("{error}"));
        list.ranges().iter().map(|range| (*range.start(), *range.end())).collect()
    }

    #[test]
    fn port_lists_are_sorted_and_merged() {
        assert_eq!(ports(""), []);
        assert_eq!(ports(" 22 "), [(22, 22)]);
        assert_eq!(ports("8000-8010, 22"), [(22, 22), (8000, 8010)]);
        assert_eq!(ports("5-9,10,1-3,8-12,65535"), [(1, 3), (5, 12), (65535, 65535)]);
        assert_eq!(ports("1-65535,80"), [(1, 65535)]);
        let union = "80".parse::<PortList>().unwrap().union(&"81-90,15020".parse().unwrap());
        assert_eq!(union, "80-90,15020".parse().unwrap());
    }

    #[test]
    fn bad_ports_are_named() {
        for bad in ["0", "70000", "10-5", "0-9", "-1", "80,,81", "http", "80-", "1-2-3", "80;81"] {
            let error = bad.parse::<PortList>().expect_err(bad).to_string();
            assert!(error.contains("from 1 to 65535") && error.contains("22,8000-8010"), "{error}");
        }
        let many = vec!["80"; MAX_ENTRIES + 1].join(",");
        assert!(many.parse::<PortList>().expect_err("too many").to_string().contains("at most 500"));
    }

    #[test]
    fn subnets_are_sorted_and_merged() {
        let list: SubnetList =
            "10.1.0.0/16, 10.0.0.0/16,10.1.2.0/24,192.168.1.9,fd00::1,::/0".parse().unwrap();
        let v4: Vec<String> = list.v4().iter().map(ToString::to_string).collect();
        let v6: Vec<String> = list.v6().iter().map(ToString::to_string).collect();
        assert_eq!(v4, ["10.0.0.0/15", "192.168.1.9/32"]);
        assert_eq!(v6, ["::/0"]);
        assert_eq!("".parse(), Ok(SubnetList::default()));
    }

    #[test]
    fn bad_subnets_are_named() {
        for bad in
            ["10.0.0.0/33", "10.0.0.1/8", "fd00::/129", "::ffff:10.0.0.0/104", "10.0.0", "a", "10.0.0.0/8,"]
        {
            let error = bad.parse::<SubnetList>().expect_err(bad).to_string();
            assert!(error.contains("a subnet"), "{error}");
        }
    }

    #[test]
    fn root_and_nobody_in_particular_are_no_sidecars() {
        assert_eq!("2102".parse().map(AccountId::get), Ok(2102));
        assert!("0".parse::<AccountId>().unwrap_err().to_string().contains("root"));
        for bad in ["4294967295", "4294967296", "-1", "tulle", ""] {
            assert!(bad.parse::<AccountId>().is_err(), "{bad}");
        }
    }
}

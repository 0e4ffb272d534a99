//! Virtual addresses: what a Service without a cluster IP is dialled by, where no cluster gives it one.
//!
//! In: the Services that need one, and what was chosen before. Out: for each an address of every range. An address is
//! chosen by a hash of the Service's name, so that most are the same wherever they are chosen; where two names meet, the
//! later one takes the next that is free. What was chosen is never moved: applications keep addresses for long.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A range of addresses that virtual ones are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualRange(IpNet);

impl FromStr for VirtualRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let net: IpNet = text.parse().map_err(|_| RangeError { text: text.into() })?;
        if net.max_prefix_len() - net.prefix_len() < 2 {
            return Err(RangeError { text: text.into() });
        }
        Ok(Self(net.trunc()))
    }
}

impl VirtualRange {
    /// How many addresses it has, without its first and its last one; of a large range as many as are ever needed.
    fn size(self) -> u64 {
        let bits = u32::from(self.0.max_prefix_len() - self.0.prefix_len());
        1_u64.checked_shl(bits).map_or(u64::MAX, |all| all - 2)
    }

    /// The address at a place below its size.
    fn at(self, place: u64) -> IpAddr {
        match self.0 {
            IpNet::V4(net) => {
                let place = u32::try_from(place).expect("a place below the size of a range of IPv4");
                IpAddr::V4((u32::from(net.network()) + place + 1).into())
            }
            IpNet::V6(net) => IpAddr::V6((u128::from(net.network()) + u128::from(place) + 1).into()),
        }
    }
}

impl fmt::Display for VirtualRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that is no range of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeError {
    text: String,
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a network of at least four addresses: write, for example, 240.240.0.0/16",
            self.text
        )
    }
}

impl std::error::Error for RangeError {}

/// The virtual addresses that were chosen, by the Services' whole names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VirtualAddresses(BTreeMap<String, Vec<IpAddr>>);

impl VirtualAddresses {
    /// Those of a Service, in the order of the ranges; none where none were chosen.
    pub fn of(&self, name: &str) -> &[IpAddr] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Chooses for every name in `wanted` that has none an address of each range, but none in `reserved`. What was chosen
    /// for names that are gone stays theirs, in case they come back, until a range is full. Returns the names for which
    /// a range has no address left.
    pub(super) fn choose(
        &mut self,
        ranges: &[VirtualRange],
        wanted: &BTreeSet<&str>,
        reserved: &BTreeSet<IpAddr>,
    ) -> Vec<String> {
        let within = |ip: &IpAddr| ranges.iter().any(|range| range.0.contains(ip));
        self.0.values_mut().for_each(|chosen| chosen.retain(within));
        self.0.retain(|_, chosen| !chosen.is_empty());
        let mut left_out = Vec::new();
        for range in ranges {
            let mut taken: BTreeSet<IpAddr> = self.0.values().flatten().chain(reserved).copied().collect();
            for name in wanted {
                if self.of(name).iter().any(|ip| range.0.contains(ip)) {
                    continue;
                }
                let mut found = free(*range, name, &taken);
                if found.is_none() && self.forget_gone(wanted) {
                    taken = self.0.values().flatten().chain(reserved).copied().collect();
                    found = free(*range, name, &taken);
                }
                match found {
                    Some(ip) => {
                        taken.insert(ip);
                        self.0.entry((*name).to_owned()).or_default().push(ip);
                    }
                    None => left_out.push((*name).to_owned()),
                }
            }
        }
        for chosen in self.0.values_mut() {
            chosen.sort_by_key(|ip| ranges.iter().position(|range| range.0.contains(ip)));
        }
        left_out
    }

    /// Says whether there was any.
    fn forget_gone(&mut self, wanted: &BTreeSet<&str>) -> bool {
        let before = self.0.len();
        self.0.retain(|name, _| wanted.contains(name.as_str()));
        self.0.len() < before
    }
}

/// The first free address from the place that the name's hash gives.
fn free(range: VirtualRange, name: &str, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let digest = Sha256::digest(name);
    let hash = digest.iter().take(8).fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    let (size, start) = (range.size(), hash % range.size());
    // Among one more than are taken there is a free one, if there is any.
    let tries = size.min(taken.len() as u64 + 1);
    (0..tries).map(|step| range.at((start + step) % size)).find(|ip| !taken.contains(ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(all: &[&str]) -> Vec<VirtualRange> {
        all.iter().map(|range| range.parse().expect("valid")).collect()
    }

    #[test]
    fn an_address_is_chosen_by_name_and_never_moved() {
        let ranges = ranges(&["10.0.0.0/28", "fd00::/64"]);
        let names: Vec<String> = (0..14).map(|i| format!("s{i}.shop.svc.cluster.local")).collect();
        let (mut one_by_one, mut reserved) = (VirtualAddresses::default(), BTreeSet::new());
        let mut wanted = BTreeSet::new();
        let mut before = BTreeMap::new();
        for name in &names {
            wanted.insert(name.as_str());
            assert_eq!(one_by_one.choose(&ranges, &wanted, &reserved), Vec::<String>::new());
            let chosen = one_by_one.of(name).to_vec();
            assert!(chosen[0].is_ipv4() && chosen[1].is_ipv6(), "{chosen:?}");
            before.insert(name.clone(), chosen);
            assert_eq!(before, one_by_one.0, "nothing moves when a name is added");
        }
        let different: BTreeSet<_> = one_by_one.0.values().flatten().collect();
        assert_eq!(different.len(), 28, "no address is given twice");
        assert!(!different.contains(&IpAddr::from([10, 0, 0, 0])));
        assert!(!different.contains(&IpAddr::from([10, 0, 0, 15])));

        // The range of IPv4 is full: one more finds nothing, until another is gone.
        wanted.insert("one.more");
        assert_eq!(one_by_one.choose(&ranges, &wanted, &reserved), ["one.more"]);
        wanted.remove(names[3].as_str());
        assert_eq!(one_by_one.choose(&ranges, &wanted, &reserved), Vec::<String>::new());
        assert_eq!(one_by_one.of("one.more").len(), 2);
        assert_eq!(one_by_one.of(&names[4]), before[&names[4]]);

        // Without collisions the same address is chosen everywhere, and a reserved one never.
        let mut fresh = VirtualAddresses::default();
        let first = BTreeSet::from([names[0].as_str()]);
        fresh.choose(&ranges, &first, &reserved);
        assert_eq!(fresh.of(&names[0]), before[&names[0]]);
        reserved.insert(before[&names[0]][0]);
        let mut other = VirtualAddresses::default();
        other.choose(&ranges, &first, &reserved);
        assert_ne!(other.of(&names[0])[0], before[&names[0]][0]);
    }

    #[test]
    fn a_name_that_comes_back_has_the_address_that_it_had() {
        let ranges = ranges(&["240.240.0.0/16"]);
        let mut addresses = VirtualAddresses::default();
        addresses.choose(&ranges, &BTreeSet::from(["a", "b"]), &BTreeSet::new());
        let before = addresses.clone();
        addresses.choose(&ranges, &BTreeSet::from(["b"]), &BTreeSet::new());
        addresses.choose(&ranges, &BTreeSet::from(["a", "b"]), &BTreeSet::new());
        assert_eq!(addresses, before);
        let text = serde_json::to_string(&before).expect("JSON");
        assert_eq!(serde_json::from_str::<VirtualAddresses>(&text).expect("the same"), before);
    }

    #[test]
    fn a_range_is_a_network() {
        for text in ["", "10.0.0.0", "10.0.0.0/31", "fd00::/127", "10.0.0.0/33"] {
            assert!(text.parse::<VirtualRange>().is_err(), "{text}");
        }
        assert_eq!("10.1.2.3/8".parse::<VirtualRange>().expect("valid").to_string(), "10.0.0.0/8");
        assert_eq!("::/0".parse::<VirtualRange>().expect("valid").size(), u64::MAX);
    }
}

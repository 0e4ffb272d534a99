//! The addresses of this host, as the kernel tells them.
//!
//! In: two files of `/proc`, which exist in every network namespace. Out: the addresses by which peers can reach this
//! host: no loopback, no link-local ones. Without a file (a host without IPv6) there are none of its family.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The host's own addresses of global scope, of both families, in order.
pub(crate) fn global_addresses() -> Vec<IpAddr> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let (trie, list) = (read("/proc/net/fib_trie"), read("/proc/net/if_inet6"));
    let mut all: Vec<_> = ipv4(&trie).map(IpAddr::V4).chain(ipv6(&list).map(IpAddr::V6)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The local addresses in the kernel's routing tries: a leaf `|-- <address>` is one where a line `/32 host LOCAL` is under
/// it.
fn ipv4(trie: &str) -> impl Iterator<Item = Ipv4Addr> {
    let mut leaf = None;
    let local = trie.lines().filter_map(move |line| {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse::<Ipv4Addr>().ok();
        }
        leaf.filter(|_| line == "/32 host LOCAL")
    });
    local.filter(|address| !address.is_loopback() && !address.is_link_local() && !address.is_unspecified())
}

/// The addresses in the kernel's list: address, interface, length of the prefix, scope, flags, name, all but the last in
/// hexadecimal. An address that another host has turned out to use is none.
fn ipv6(list: &str) -> impl Iterator<Item = Ipv6Addr> {
    const GLOBAL: &str = "00";
    const DUPLICATE: u8 = 0x08;
    list.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (address, scope, flags) = (fields.next()?, fields.nth(2)?, fields.next()?);
        let address = u128::from_str_radix(address, 16).ok()?;
        let flags = u8::from_str_radix(flags, 16).ok()?;
        (scope == GLOBAL && flags & DUPLICATE == 0).then(|| Ipv6Addr::from(address))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIE: &str = "\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
     |-- 169.254.7.8
        /32 host LOCAL
     +-- 192.0.2.0/24 2 0 2
        |-- 192.0.2.0
           /24 link UNICAST
        |-- 192.0.2.2
           /32 link UNICAST
           /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
Local:
     |-- 192.0.2.2
        /32 host LOCAL
";

    const LIST: &str = "\
fd000000000000000000000000000002 04 40 00 82     eth0
fd000000000000000000000000000003 04 40 00 88     eth0
00000000000000000000000000000001 01 80 10 80       lo
fe8000000000000000fc00fffe000001 04 40 20 80     eth0
broken
";

    #[test]
    fn only_local_addresses_of_global_scope_count() {
        let address = |text: &str| -> IpAddr { text.parse().expect("valid") };
        let v4: Vec<_> = ipv4(TRIE).map(IpAddr::V4).collect();
        assert_eq!(v4, [address("192.0.2.2"), address("192.0.2.2")]);
        let v6: Vec<_> = ipv6(LIST).map(IpAddr::V6).collect();
        assert_eq!(v6, [address("fd00::2")]);
    }

    #[test]
    fn the_kernel_s_own_files_are_read() {
        // Whatever this host has, loopback is in both files, and in no answer.
        assert!(fs::read_to_string("/proc/net/fib_trie").expect("Linux has it").contains("/32 host LOCAL"));
        assert!(global_addresses().iter().all(|address| !address.is_loopback()));
    }
}
